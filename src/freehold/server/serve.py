# SPDX-License-Identifier: Apache-2.0
"""``freehold serve``: a plain web server for a published directory.

GET and HEAD of regular files, nothing else: no listings, no symbolic links, no hidden files, no way out of the
directory. Each path component is opened relative to the one before without following links, so there is no path
to fool. Connections are limited in number and time.
"""

from __future__ import annotations

import os
import shutil
import socket
import socketserver
import stat
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote_to_bytes

from freehold.errors import FreeholdError, InputError

#: Connections served at once; further ones are closed at once and come again.
CONNECTIONS = 64
#: Seconds a client may be silent.
TIMEOUT = 30
PATH_LIMIT = 1024
DEPTH_LIMIT = 16
Request = socket.socket | tuple[bytes, socket.socket]
_PRINTABLE = str.maketrans({chr(code): f"\\x{code:02x}" for code in (*range(0x20), 0x5C, *range(0x7F, 0xA0))})


def components(target: str) -> list[str] | None:
    """The path components of a request target; ``None`` when it must not be served. Pure."""
    raw = target.split("?", 1)[0].split("#", 1)[0]
    if len(raw) > PATH_LIMIT or not raw.startswith("/"):
        return None
    try:
        path = unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        return None
    names = path[1:].split("/")
    if len(names) > DEPTH_LIMIT or any(not name or name.startswith(".") or "\0" in name for name in names):
        return None
    return names


def open_below(root: int, names: list[str]) -> int:
    """A descriptor of the regular file ``names`` below directory descriptor ``root``; :class:`OSError` otherwise."""
    here = os.dup(root)
    try:
        for name in names[:-1]:
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = inner
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(names[-1], flags, dir_fd=here)
    finally:
        os.close(here)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileNotFoundError(names[-1])
    return fd


class Handler(BaseHTTPRequestHandler):
    """One connection: requests for files, each logged as one line."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "freehold"
    sys_version = ""
    timeout = TIMEOUT

    def do_GET(self) -> None:
        """Send the file."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """Send what the file's headers would be."""
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            # A body would be taken for the next request.
            self.close_connection = True
            self.send_error(HTTPStatus.BAD_REQUEST)
            return
        names = components(self.path)
        try:
            if names is None:
                raise FileNotFoundError
            fd = open_below(self.server.root, names)
        except OSError:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        with os.fdopen(fd, "rb") as source:
            size = os.fstat(fd).st_size
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(size))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            if body:
                shutil.copyfileobj(source, self.wfile, 1 << 18)

    def log_message(self, format: str, *args: object) -> None:
        """One line on standard error; what a client sent cannot forge another."""
        text = (format % args).translate(_PRINTABLE)
        sys.stderr.write(f"{self.client_address[0]} {self.log_date_time_string()} {text}\n")


class Server(ThreadingHTTPServer):
    """A limited number of threads over the directory descriptor ``root``."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, directory: Path, address: tuple[str, int], *, connections: int = CONNECTIONS) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._slots = threading.BoundedSemaphore(connections)
        try:
            self.root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(f"{directory} cannot be served: {error.strerror}") from None
        try:
            super().__init__(address, Handler)
        except (OSError, OverflowError) as error:
            # The base class has called server_close().
            reason = getattr(error, "strerror", None) or error
            where = f"{address[0]} port {address[1]}"
            raise FreeholdError(f"{where}: {reason}", hint="choose another with --port") from None

    def server_bind(self) -> None:
        """Bind, without the base class's look-up of our own name, which can wait for DNS."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Request, client_address: tuple[str, int]) -> None:
        """Serve in a thread of its own, unless too many do."""
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Request, client_address: tuple[str, int]) -> None:
        """Serve one connection and give its slot back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Request, client_address: tuple[str, int]) -> None:
        """A client that went away is no news; anything else is a line."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            sys.stderr.write(f"{client_address[0]} {type(error).__name__}: {error}\n")

    def server_close(self) -> None:
        """Stop listening and let go of the directory."""
        super().server_close()
        os.close(self.root)


def serve(directory: Path, bind: str, port: int) -> None:
    """Serve ``directory`` until interrupted; :class:`FreeholdError` when the address is taken."""
    with Server(directory, (bind, port)) as server:
        host, actual = server.server_address[:2]
        sys.stderr.write(f"serving {directory} at http://{host!s}:{actual}\n")
        server.serve_forever()
