# SPDX-License-Identifier: Apache-2.0
"""Fetching from a web server that may be broken or hostile.

Every answer has a stated maximum size, every wait a limit, and a server that trickles is given up on.
Redirects stay on HTTP(S) and never go from https to http. Nothing fetched here is believed: signatures and
digests are checked over the bytes by the caller or by :func:`offer`. Each failure is one line, and the
machine is as it was.
"""

from __future__ import annotations

import http.client
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urljoin, urlsplit

from freehold.errors import FreeholdError, InputError, VerificationError
from freehold.update import manifest as documents

if TYPE_CHECKING:
    from freehold.keys.verify import Keychain

UNCHANGED = "the machine is unchanged; see that the update server is reachable and published completely"
CHUNK = 1 << 18  # bytes
REDIRECTS = 3
_REDIRECT_STATUS = (301, 302, 303, 307, 308)


@dataclass(frozen=True)
class Limits:
    """How patient to be. Seconds, except ``rate``: bytes a second, below which a server counts as stalled."""

    connect: float = 15
    read: float = 30
    document: float = 60
    again: float = 1
    rate: int = 4096


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Offer:
    """A verified release that a stream points to. ``signer`` is the key that signed the manifest."""

    stream: documents.Stream
    manifest: documents.Manifest
    manifest_bytes: bytes
    signature: bytes
    signer: str


def check_url(url: str) -> str:
    """``url`` without a slash at its end; :class:`InputError` unless it is a plain http or https address."""
    try:
        # Brackets that do not close, letters that are others in disguise, and a port that is none raise.
        parts = urlsplit(url)
        port_fine = parts.port != 0
    except ValueError:
        parts, port_fine = urlsplit(""), False
    printable = url.isascii() and url.isprintable() and " " not in url
    plain = not (parts.query or parts.fragment or parts.username or parts.password)
    if parts.scheme not in ("http", "https") or not (parts.hostname and port_fine and plain and printable):
        raise InputError(
            f"{url[:200]!r} is not an update server's address", hint="it looks like https://updates.example.org"
        )
    return url.rstrip("/")


def fetch(url: str, limit: int, *, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """The document at ``url``, at most ``limit`` bytes; :class:`FreeholdError` for any other answer."""
    deadline = time.monotonic() + limits.document
    with _answer(url, {}, limits) as answer:
        if answer.status != 200:
            raise _failed(url, f"the server answered {answer.status}")
        length = _length(url, answer)
        if length is not None and length > limit:
            raise _failed(url, f"{length} bytes announced, at most {limit} expected")
        data = bytearray()
        for block in _blocks(answer):
            data += block
            if len(data) > limit:
                raise _failed(url, f"more than {limit} bytes")
            if time.monotonic() > deadline:
                raise _failed(url, f"not complete within {limits.document:g} s")
        if length is not None and len(data) != length:
            raise _failed(url, f"{len(data)} of {length} bytes arrived")
        return bytes(data)


def download(
    url: str,
    target: Path,
    size: int,
    *,
    limits: Limits = DEFAULT_LIMITS,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Fetch exactly ``size`` bytes from ``url`` into ``target`` and flush them to the disk.

    A shorter ``target`` from an interrupted download is continued when the server can, else replaced.
    The content is *not* checked: a caller whose digest does not match removes ``target``.
    """
    have = target.stat().st_size if target.is_file() else 0
    if have >= size:
        target.unlink()
        have = 0
    started = time.monotonic()
    with _answer(url, {"Range": f"bytes={have}-"} if have else {}, limits) as answer:
        if answer.status == 206 and have and _continues(answer, have, size):
            flags = os.O_WRONLY | os.O_APPEND
        elif answer.status == 200:
            have, flags = 0, os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        else:
            target.unlink(missing_ok=True)
            raise _failed(url, f"the server answered {answer.status}")
        length = _length(url, answer)
        if length is not None and have + length != size:
            target.unlink(missing_ok=True)
            raise _failed(url, f"{have + length} bytes announced, the manifest says {size}")
        fd = os.open(target, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        with os.fdopen(fd, "wb") as sink:
            done = have
            for block in _blocks(answer):
                done += len(block)
                if done > size:
                    target.unlink(missing_ok=True)
                    raise _failed(url, f"more than the {size} bytes that the manifest says")
                sink.write(block)
                progress(done)
                elapsed = time.monotonic() - started
                if elapsed > limits.read and done - have < elapsed * limits.rate:
                    raise _failed(url, f"slower than {limits.rate} bytes a second")
            if done != size:
                raise _failed(url, f"{done} of {size} bytes arrived")
            sink.flush()
            os.fsync(sink.fileno())


def offer(base: str, stream: str, keychain: Keychain, *, limits: Limits = DEFAULT_LIMITS) -> Offer:
    """What ``stream`` at ``base`` points to, signatures checked for role ``release`` by ``keychain``.

    Raises :class:`VerificationError` when anything fails its check, :class:`FreeholdError` when it
    cannot be had.
    """
    from freehold.keys.verify import verify_document

    def signed(path: str, limit: int, tries: int = 1) -> tuple[bytes, bytes, str]:
        while True:
            data = fetch(f"{base}/{path}", limit, limits=limits)
            signature = fetch(f"{base}/{path}.sig", documents.SIGNATURE_LIMIT, limits=limits)
            verdict = verify_document(data, signature, keychain=keychain)
            if verdict.ok:
                return data, signature, verdict.key or ""
            tries -= 1
            if not tries:
                raise _refused(f"{base}/{path}: {verdict.reason}")
            time.sleep(limits.again)

    if not documents.stream_valid(stream):
        raise InputError(f"{stream[:80]!r} is not a stream's name")
    try:
        # Twice: a publisher replaces pointer and signature one after the other.
        data, _, _ = signed(f"streams/{stream}.json", documents.STREAM_LIMIT, tries=2)
        pointer = documents.parse_stream(data)
        if pointer.stream != stream:
            raise _refused(f"{base}: asked for the stream {stream!r}, got a signed {pointer.stream!r}")
        data, signature, signer = signed(f"releases/{pointer.version}/manifest.json", documents.MANIFEST_LIMIT)
        if documents.sha256(data) != pointer.manifest_sha256:
            raise _refused(f"{base}: the manifest of {pointer.version} is not the one that the stream points to")
        manifest = documents.parse_manifest(data)
    except InputError as error:
        # It is the server's fault, not that of the person at the keyboard.
        raise _refused(f"{base}: {error.message}") from None
    if manifest.version != pointer.version:
        raise _refused(f"{base}: the manifest says {manifest.version}, the stream {pointer.version}")
    return Offer(pointer, manifest, data, signature, signer)


def _refused(message: str) -> VerificationError:
    return VerificationError(message, hint="the machine is unchanged; nothing from this server was used")


def _failed(url: str, reason: str) -> FreeholdError:
    return FreeholdError(f"{url}: {reason}", hint=UNCHANGED)


def _connection(parts: SplitResult, limits: Limits) -> http.client.HTTPConnection:
    host = parts.hostname or ""
    if parts.scheme == "https":
        import ssl

        context = ssl.create_default_context()
        return http.client.HTTPSConnection(host, parts.port, timeout=limits.connect, context=context)
    return http.client.HTTPConnection(host, parts.port, timeout=limits.connect)


@contextmanager
def _answer(url: str, headers: dict[str, str], limits: Limits) -> Iterator[http.client.HTTPResponse]:
    """The answer to GET ``url`` after redirects; network trouble inside the block becomes one line."""
    here = url
    connection: http.client.HTTPConnection | None = None
    try:
        for _ in range(REDIRECTS + 1):
            parts = urlsplit(here)
            connection = _connection(parts, limits)
            connection.connect()
            # From here on the waits are for data.
            connection.sock.settimeout(limits.read)
            request = {"User-Agent": "freehold", "Accept-Encoding": "identity", "Connection": "close", **headers}
            connection.request("GET", parts.path or "/", headers=request)
            answer = connection.getresponse()
            if answer.status not in _REDIRECT_STATUS:
                if answer.getheader("Content-Encoding", "identity") != "identity":
                    raise _failed(url, "the server encodes its answers, which was not asked for")
                yield answer
                return
            target = urljoin(here, answer.getheader("Location", ""))
            connection.close()
            here = _redirected(url, parts.scheme, target)
        raise _failed(url, f"more than {REDIRECTS} redirects")
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            # A file of ours, not the network: the caller says which.
            raise
        reason = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
        raise _failed(url, " ".join(reason.split())[:200]) from None
    finally:
        if connection is not None:
            connection.close()


def _redirected(url: str, scheme: str, target: str) -> str:
    try:
        checked = check_url(target)
    except InputError:
        raise _failed(url, f"redirected to {target[:100]!r}") from None
    if scheme == "https" and not checked.startswith("https:"):
        raise _failed(url, "redirected from https to http")
    return checked


def _length(url: str, answer: http.client.HTTPResponse) -> int | None:
    text = answer.getheader("Content-Length")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise _failed(url, "an unreadable Content-Length")
    return int(text)


def _continues(answer: http.client.HTTPResponse, start: int, size: int) -> bool:
    return answer.getheader("Content-Range", "") in (f"bytes {start}-{size - 1}/{size}", f"bytes {start}-{size - 1}/*")


def _blocks(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    # read1: what has arrived, so that the caller's clock runs between trickled bytes.
    while block := answer.read1(CHUNK):
        yield block
