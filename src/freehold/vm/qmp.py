# SPDX-License-Identifier: Apache-2.0
"""A client of QEMU's machine protocol: one command, one answer, events skipped."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from freehold.errors import FreeholdError

#: Longest line that QEMU may send; answers to our commands have a few kilobytes.
MAX_LINE = 4 << 20
#: Seconds for a command that answers at once.
TIMEOUT = 30.0
#: Seconds that a key stays down, and that it stays up: an emulated guest misses faster ones.
KEY_SECONDS = 0.03


class QmpError(FreeholdError):
    """QEMU refused a command, or does not answer."""


class Lines:
    """JSON lines over a socket with a deadline and a size limit."""

    def __init__(self, connection: socket.socket, limit: int) -> None:
        self._connection = connection
        self._limit = limit
        self._buffer = bytearray()

    def line(self, deadline: float) -> bytes:
        """The next line without its end. Raises ``TimeoutError``, or ``ConnectionError`` at its end."""
        scanned = 0
        while (end := self._buffer.find(b"\n", scanned)) < 0:
            scanned = len(self._buffer)
            if scanned > self._limit:
                raise ConnectionError(f"a line of more than {self._limit:,} bytes")
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._connection.settimeout(left)
            data = self._connection.recv(1 << 16)
            if not data:
                raise ConnectionError("the connection was closed")
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line


class Qmp:
    """An open connection to QEMU."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = Lines(connection, MAX_LINE)
        self._next = 0

    def execute(self, command: str, arguments: dict[str, object] | None = None, *, timeout: float = TIMEOUT) -> object:
        """Run ``command`` and return its result; :class:`QmpError` when QEMU says no or nothing in time."""
        self._next += 1
        request: dict[str, object] = {"execute": command, "id": self._next}
        if arguments:
            request["arguments"] = arguments
        try:
            self._connection.settimeout(timeout)
            self._connection.sendall(json.dumps(request).encode() + b"\n")
            answer = self._answer(self._next, time.monotonic() + timeout)
        except TimeoutError:
            raise QmpError(f"QEMU did not answer {command!r} within {timeout:g} s") from None
        except (OSError, ValueError) as error:
            raise QmpError(f"QEMU went away during {command!r}: {error}") from None
        if "error" in answer:
            fault = answer["error"]
            raise QmpError(f"QEMU refused {command!r}: {fault.get('desc') if isinstance(fault, dict) else fault}")
        return answer.get("return")

    def greet(self) -> None:
        """Take the greeting and leave the negotiation mode."""
        try:
            self._lines.line(time.monotonic() + TIMEOUT)
        except TimeoutError:
            raise QmpError("QEMU does not talk to us", hint="another program may hold its monitor") from None
        except OSError as error:
            raise QmpError(f"QEMU went away: {error}") from None
        self.execute("qmp_capabilities")

    def press(self, strokes: Sequence[Sequence[str]]) -> None:
        """Press and release each group of keys, at a speed that an emulated guest follows."""
        for keys in strokes:
            for down in (True, False):
                for code in keys if down else reversed(keys):
                    key = {"down": down, "key": {"type": "qcode", "data": code}}
                    self.execute("input-send-event", {"events": [{"type": "key", "data": key}]})
                time.sleep(KEY_SECONDS)

    def _answer(self, number: int, deadline: float) -> dict[str, object]:
        while True:
            message = json.loads(self._lines.line(deadline))
            if isinstance(message, dict) and message.get("id") == number:
                return message


@contextlib.contextmanager
def connected(path: Path) -> Iterator[Qmp]:
    """A ready connection to the monitor at ``path``; :class:`QmpError` when nothing listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(TIMEOUT)
        try:
            connection.connect(str(path))
        except OSError as error:
            raise QmpError(f"QEMU's monitor is not there: {error.strerror or error}") from None
        client = Qmp(connection)
        client.greet()
        yield client
