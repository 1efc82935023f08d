# SPDX-License-Identifier: Apache-2.0
"""Fetching from a hostile web server: a real one, on the loopback, that answers whatever a test says."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lab_release import Lab, key

from freehold.errors import FreeholdError, InputError, VerificationError
from freehold.keys.verify import Keychain
from freehold.server.serve import Server
from freehold.update.fetch import Limits, check_url, download, fetch, offer

QUICK = Limits(connect=2, read=0.5, document=1, again=0.01, rate=4096)
OK = b"HTTP/1.1 200 OK\r\n"


@contextmanager
def hostile(*answers: Callable[[socket.socket, bytes], None]) -> Iterator[str]:
    """A server whose connections are answered by ``answers`` in turn, the last one again and again."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    done = threading.Event()

    def one(connection: socket.socket, answer: Callable[[socket.socket, bytes], None]) -> None:
        with connection:
            connection.settimeout(2)
            try:
                request = b""
                while b"\r\n\r\n" not in request:
                    request += connection.recv(4096)
                answer(connection, request)
            except OSError:
                return

    def loop() -> None:
        turn = 0
        while not done.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            answer = answers[min(turn, len(answers) - 1)]
            turn += 1
            threading.Thread(target=one, args=(connection, answer), daemon=True).start()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        done.set()
        thread.join()
        listener.close()


def say(data: bytes) -> Callable[[socket.socket, bytes], None]:
    return lambda connection, _: connection.sendall(data)


def body(data: bytes, status: bytes = OK) -> Callable[[socket.socket, bytes], None]:
    return say(status + b"Content-Length: %d\r\n\r\n" % len(data) + data)


def endless(connection: socket.socket, _: bytes) -> None:
    connection.sendall(OK + b"\r\n")
    while True:
        connection.sendall(b"x" * 65536)


def trickle(length: int) -> Callable[[socket.socket, bytes], None]:
    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(OK + b"Content-Length: %d\r\n\r\n" % length)
        for _byte in range(100):
            connection.sendall(b"x")
            time.sleep(0.05)

    return answer


def silence(connection: socket.socket, _: bytes) -> None:
    time.sleep(1)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (say(b"SSH-2.0-garbage\r\n"), "SSH|Bad|bad"),
        (say(b""), "closed"),
        (silence, "no answer in time"),
        (say(OK + b"Content-Length: 100\r\n\r\nshort"), "IncompleteRead|5 of 100"),
        (say(OK + b"Content-Length: -1\r\n\r\n"), "Content-Length"),
        (say(OK + b"Content-Length: 99999999\r\n\r\n"), "announced"),
        (say(OK + b"Content-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx"), "encodes"),
        (say(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"), "ncomplete|invalid"),
        (say(OK + b"X: " + b"y" * 100_000 + b"\r\n\r\n"), "line"),
        (endless, "more than 1000 bytes"),
        (trickle(500), "not complete within"),
        (body(b"no", b"HTTP/1.1 404 Not Found\r\n"), "answered 404"),
        (say(b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n"), "redirected to 'file:"),
        (say(b"HTTP/1.1 302 Found\r\nLocation: ftp://127.0.0.1/\r\n\r\n"), "redirected to 'ftp:"),
        (say(b"HTTP/1.1 302 Found\r\n\r\n"), "redirects"),
        (say(b"HTTP/1.1 302 Found\r\nLocation: /again\r\n\r\n"), "more than 3 redirects"),
    ],
)
def test_bad_answers_are_one_line(answer: Callable[[socket.socket, bytes], None], says: str) -> None:
    started = time.monotonic()
    with hostile(answer) as url, pytest.raises(FreeholdError, match=says) as caught:
        fetch(f"{url}/x", 1000, limits=QUICK)
    assert time.monotonic() - started < 5
    assert "\n" not in caught.value.message
    assert "unchanged" in (caught.value.hint or "")


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(FreeholdError, match="refused"):
        fetch(f"http://127.0.0.1:{port}/x", 10, limits=QUICK)


def test_a_redirect_is_followed() -> None:
    with hostile(say(b"HTTP/1.1 301 Moved\r\nLocation: /there\r\n\r\n"), body(b"found")) as url:
        assert fetch(f"{url}/here", 10, limits=QUICK) == b"found"


@pytest.mark.parametrize(
    "url",
    [
        "file:///x",
        "ftp://h/",
        "http://",
        "https://user@h/",
        "http://h/?q",
        "http://h:0/",
        "http://h:x/",
        "http://[",
        "http://[x]/",
        "h",
        "http://h/\n",
        "",
    ],
)
def test_addresses(url: str) -> None:
    with pytest.raises(InputError):
        check_url(url)
    assert check_url("https://h:8/x/") == "https://h:8/x"


def test_download_resumes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 40
    seen: list[bytes] = []

    def rest(connection: socket.socket, request: bytes) -> None:
        seen.append(request)
        part = b"HTTP/1.1 206 Partial\r\nContent-Length: %d\r\nContent-Range: bytes 4000-10239/10240\r\n\r\n"
        connection.sendall(part % (len(data) - 4000) + data[4000:])

    target = tmp_path / "x"
    with hostile(say(OK + b"Content-Length: 10240\r\n\r\n" + data[:4000]), rest) as url:
        with pytest.raises(FreeholdError):
            download(url, target, len(data), limits=QUICK)
        assert target.read_bytes() == data[:4000]
        download(url, target, len(data), limits=QUICK)
    assert target.read_bytes() == data
    assert b"Range: bytes=4000-\r\n" in seen[0]


def test_download_starts_over_when_the_server_cannot_resume(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_bytes(b"old")
    with hostile(body(b"the new one")) as url:
        download(url, target, 11, limits=QUICK)
    assert target.read_bytes() == b"the new one"


@pytest.mark.parametrize("size", [10, 12])
def test_download_of_another_size(tmp_path: Path, size: int) -> None:
    with hostile(body(b"12345678901")) as url, pytest.raises(FreeholdError, match="manifest says"):
        download(url, tmp_path / "x", size, limits=QUICK)
    assert not (tmp_path / "x").exists()


def test_endless_and_trickling_downloads_end(tmp_path: Path) -> None:
    with hostile(endless) as url, pytest.raises(FreeholdError, match="more than the 100000 bytes"):
        download(url, tmp_path / "x", 100_000, limits=QUICK)
    assert not (tmp_path / "x").exists()
    started = time.monotonic()
    with hostile(trickle(10_000)) as url, pytest.raises(FreeholdError, match="slower than"):
        download(url, tmp_path / "y", 10_000, limits=QUICK)
    assert time.monotonic() - started < 3


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    made = Lab(tmp_path / "lab")
    made.release("2.0", 2000)
    return made


@contextmanager
def web(lab: Lab) -> Iterator[str]:
    with Server(lab.web, ("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def ask(lab: Lab, stream: str = "stable") -> str:
    with web(lab) as url:
        return offer(url, stream, Keychain.from_directory(lab.sysroot.keychain), limits=QUICK).manifest.version


def test_a_good_offer(lab: Lab) -> None:
    with web(lab) as url:
        found = offer(url, "stable", Keychain.from_directory(lab.sysroot.keychain), limits=QUICK)
    assert found.manifest.version == "2.0"
    assert "vendor" in found.signer


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "file",
    ["streams/stable.json", "streams/stable.json.sig", "releases/2.0/manifest.json", "releases/2.0/manifest.json.sig"],
)
@pytest.mark.parametrize("damage", ["flip", "empty", "missing", "large"])
def test_a_damaged_document(lab: Lab, file: str, damage: str) -> None:
    path = lab.web / file
    if damage == "flip":
        flip(path)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "large":
        path.write_bytes(b" " * (5 << 20))
    else:
        path.unlink()
    with pytest.raises(FreeholdError) as caught:
        ask(lab)
    assert not isinstance(caught.value, InputError)
    assert (damage in ("flip", "empty")) == isinstance(caught.value, VerificationError)
    assert "unchanged" in (caught.value.hint or "")


@pytest.mark.parametrize("signer", [("release", "stranger"), ("owner", "me")])
def test_another_signer(lab: Lab, signer: tuple[str, str]) -> None:
    """A stranger's key, and a key of ours that has another role."""
    lab.release("3.0", 3000, signer=key(*signer))
    with pytest.raises(VerificationError):
        ask(lab)


def test_swapped_documents(lab: Lab) -> None:
    lab.release("3.0", 3000)
    for name in ("manifest.json", "manifest.json.sig"):
        (lab.web / "releases/2.0" / name).replace(lab.web / "releases/3.0" / name)
    with pytest.raises(VerificationError, match="not the one that the stream points to"):
        ask(lab)


def test_another_streams_pointer(lab: Lab) -> None:
    for suffix in ("", ".sig"):
        (lab.web / f"streams/stable.json{suffix}").rename(lab.web / f"streams/testing.json{suffix}")
    with pytest.raises(VerificationError, match="asked for the stream 'testing'"):
        ask(lab, "testing")


def test_signed_nonsense_is_the_servers_fault(lab: Lab) -> None:
    data = b'{"format":"freehold-stream-1"}'
    (lab.web / "streams/stable.json").write_bytes(data)
    (lab.web / "streams/stable.json.sig").write_bytes(key("release", "vendor").sign(data))
    with pytest.raises(VerificationError, match="stream pointer is not valid"):
        ask(lab)
