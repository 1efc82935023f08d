# SPDX-License-Identifier: Apache-2.0
"""Publishing a release as static files, and serving them."""

from __future__ import annotations

import http.client
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from lab_release import COMMIT, key, real_ostree, write_release

from freehold.errors import FreeholdError, InputError
from freehold.monitor import NullMonitor
from freehold.run import Argument, Completed, run
from freehold.server import publish as work
from freehold.server.serve import Server, components
from freehold.update.manifest import parse_stream

MONITOR = NullMonitor()


class Recorder:
    """Notes the commands that a tools tree would run; `fail` makes the one that contains it fail."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.fail = ""

    def __call__(self, command: Sequence[Argument], /, *, binds: Sequence[Path] = ()) -> Completed:
        argv = [os.fspath(part) for part in command]
        self.commands.append(argv)
        if self.fail and self.fail in argv:
            raise FreeholdError("the disk is full")
        if "init" in argv:
            repo = Path(argv[1].removeprefix("--repo="))
            repo.mkdir()
            (repo / "config").write_text("")
        return Completed(tuple(argv), 0, b"", b"")


def publish(tmp_path: Path, runner: work.Runner, version: str = "1.0", timestamp: int = 1000) -> work.Published:
    write_release(tmp_path / f"store/releases/server-{version}", version, timestamp)
    return work.publish(
        work.load_release(tmp_path / f"store/releases/server-{version}"),
        tmp_path / "web",
        stream="stable",
        repo=tmp_path / "store/repo",
        sign=key("release", "vendor").sign,
        runner=runner,
        monitor=MONITOR,
    )


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_publish_and_again(tmp_path: Path) -> None:
    runner = Recorder()
    assert publish(tmp_path, runner).changed is True
    before = snapshot(tmp_path / "web")
    assert {"streams/stable.json", "streams/stable.json.sig", *(f"releases/1.0/{name}" for name in work.PUBLISHED)} <= set(
        before
    )
    pointer = parse_stream(before["streams/stable.json"])
    assert (pointer.version, pointer.stream) == ("1.0", "stable")
    assert any("pull-local" in argv and argv[-1] == COMMIT for argv in runner.commands)
    assert publish(tmp_path, runner).changed is False
    assert snapshot(tmp_path / "web") == before


def test_the_pointer_comes_last(tmp_path: Path) -> None:
    runner = Recorder()
    publish(tmp_path, runner)
    before = snapshot(tmp_path / "web")
    runner.fail = "pull-local"
    with pytest.raises(FreeholdError, match="full"):
        publish(tmp_path, runner, "2.0", 2000)
    assert snapshot(tmp_path / "web") == before
    runner.fail = ""
    assert publish(tmp_path, runner, "2.0", 2000).changed is True


def test_an_interrupted_pointer_is_completed(tmp_path: Path) -> None:
    publish(tmp_path, Recorder())
    good = snapshot(tmp_path / "web")
    (tmp_path / "web/streams/stable.json.sig").write_bytes(b"the one before")
    assert publish(tmp_path, Recorder()).changed is True
    assert snapshot(tmp_path / "web") == good


def test_a_stream_does_not_go_back(tmp_path: Path) -> None:
    publish(tmp_path, Recorder(), "2.0", 2000)
    before = snapshot(tmp_path / "web")
    with pytest.raises(InputError, match="not older"):
        publish(tmp_path, Recorder(), "1.0", 1000)
    assert snapshot(tmp_path / "web") == before


def test_a_published_release_never_changes(tmp_path: Path) -> None:
    publish(tmp_path, Recorder())
    with pytest.raises(InputError, match=r"another release was published as 1\.0"):
        publish(tmp_path, Recorder(), "1.0", 1001)


@pytest.mark.parametrize("name", work.FILES)
@pytest.mark.parametrize("damage", ["missing", "flipped", "longer"])
def test_a_damaged_release_is_not_published(tmp_path: Path, name: str, damage: str) -> None:
    directory = tmp_path / "release"
    write_release(directory, "1.0", 1000)
    assert work.load_release(directory).manifest.version == "1.0"
    path = directory / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-1] + b"\0" if damage == "flipped" else data + b"x" * 600)
    with pytest.raises(InputError):
        work.load_release(directory)


def test_publish_with_the_real_ostree(tmp_path: Path) -> None:
    prefix = real_ostree(tmp_path)
    if prefix is None:
        pytest.skip("needs ostree: on this host, or in the tools tree that the builder makes")

    def real(command: Sequence[Argument], /, *, binds: Sequence[Path] = ()) -> Completed:
        return run([*prefix, *command[1:]])

    tree = tmp_path / "tree/usr"
    tree.mkdir(parents=True)
    (tree / "file").write_text("content")
    repo = tmp_path / "store/repo"
    repo.parent.mkdir()
    run([*prefix, f"--repo={repo}", "init", "--mode=bare"])
    commit = run([*prefix, f"--repo={repo}", "commit", "--orphan", tmp_path / "tree"]).text.strip()
    directory = tmp_path / "store/releases/server-1.0"
    write_release(directory, "1.0", 1000, commit=commit)
    for changed in (True, False):
        done = work.publish(
            work.load_release(directory),
            tmp_path / "web",
            stream="stable",
            repo=repo,
            sign=key("release", "vendor").sign,
            runner=real,
            monitor=MONITOR,
        )
        assert done.changed is changed
    run([*prefix, f"--repo={tmp_path / 'web/repo'}", "fsck"])
    assert run([*prefix, f"--repo={tmp_path / 'web/repo'}", "cat", commit, "/usr/file"]).stdout == b"content"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    root = tmp_path / "served"
    (root / "a").mkdir(parents=True)
    (root / "a/file").write_bytes(b"content")
    (root / ".hidden").write_text("secret")
    (tmp_path / "outside").write_text("secret")
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "dirlink").symlink_to(tmp_path)
    os.mkfifo(root / "fifo")
    with Server(root, ("127.0.0.1", 0), connections=4) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.server_port), timeout=5)


def ask(server: Server, path: str, method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=5)
    connection.putrequest(method, path, skip_accept_encoding=True)
    connection.endheaders()
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, data


def test_serve(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    assert ask(server, "/a/file") == (200, b"content")
    assert ask(server, "/a/file", "HEAD") == (200, b"")
    assert ask(server, "/%61/file?x=1") == (200, b"content")
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 3
    assert '"GET /a/file HTTP/1.1" 200' in lines[0]


@pytest.mark.parametrize(
    "path",
    ["/", "/a", "/a/", "/missing", "/.hidden", "/link", "/dirlink/outside", "/fifo", "/../outside", "/a/../../outside",
     "/%2e%2e/outside", "/a/%2e%2e/%2e%2e/outside", "//etc/passwd", "/a//file",
     "/a/file/", "/a/file%00", "/%ff", "a/file",
     "/" + "x" * 2000,
     "/a" * 20],
)  # fmt: skip
def test_serve_refuses(server: Server, path: str) -> None:
    status, data = ask(server, path)
    assert status in (400, 404)
    assert b"secret" not in data


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_serve_other_methods(server: Server, method: str) -> None:
    assert ask(server, "/a/file", method)[0] == 501


def test_serve_a_full_house_and_recover(server: Server) -> None:
    idle = [connect(server) for _ in range(4)]
    for connection in idle:
        # A first request makes sure that its thread runs.
        connection.sendall(b"GET /a/file HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
    with pytest.raises((http.client.HTTPException, OSError)):
        ask(server, "/a/file")
    for connection in idle:
        connection.close()
    for _ in range(100):
        try:
            assert ask(server, "/a/file") == (200, b"content")
            return
        except (http.client.HTTPException, OSError):
            threading.Event().wait(0.02)
    pytest.fail("slots were not given back")


def test_serve_keeps_log_lines_whole(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    with connect(server) as connection:
        connection.sendall(b"GET /\x1b[31m\x0bforged HTTP/1.1\r\n\r\n")
        connection.recv(100)
    text = capfd.readouterr().err
    assert "\x1b" not in text
    assert "\x0b" not in text


def test_serve_faults(tmp_path: Path, server: Server) -> None:
    with pytest.raises(InputError, match="cannot be served"):
        Server(tmp_path / "missing", ("127.0.0.1", 0))
    with pytest.raises(FreeholdError, match="in use"):
        Server(tmp_path, ("127.0.0.1", server.server_port))
    with pytest.raises(FreeholdError):
        Server(tmp_path, ("127.0.0.1", 99999))


def test_components() -> None:
    assert components("/a/b") == ["a", "b"]
    assert components("http://h/a") is None
