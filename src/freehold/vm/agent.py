# SPDX-License-Identifier: Apache-2.0
"""A client of the QEMU guest agent: the wire, synchronisation and taking turns.

The channel serves one client at a time and keeps no sessions: each exchange takes the turn (a file
lock), synchronises, and gives the turn back, so that several commands can run in one guest at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from freehold.errors import FreeholdError
from freehold.vm.qmp import Lines

#: The agent sends at most 16 MiB of output a stream, in base64, and two of them.
MAX_LINE = 64 << 20
#: Seconds for an answer; an emulated, busy guest takes a few.
TIMEOUT = 60.0
#: Seconds for the synchronisation.
SYNC_TIMEOUT = 20.0
SENTINEL = 0xFF


class AgentError(FreeholdError):
    """The agent in the guest refused or failed a command. ``kind`` is its class of error."""

    def __init__(self, message: str, *, hint: str | None = None, kind: str = "") -> None:
        super().__init__(message, hint=hint)
        self.kind = kind


class AgentGoneError(AgentError):
    """Nothing in the guest answers: it boots, reboots, hangs, or has no agent."""


class Session:
    """The turn at a synchronised channel."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = Lines(connection, MAX_LINE)

    def synchronise(self, timeout: float) -> None:
        """Discard what earlier clients left on the way, in both directions."""
        token = secrets.randbelow(1 << 31)
        deadline = time.monotonic() + timeout
        request = json.dumps({"execute": "guest-sync-delimited", "arguments": {"id": token}}).encode()
        self._send(bytes([SENTINEL]) + request, timeout)
        while True:
            # Whatever stands before the sentinel is an answer that somebody else gave up on.
            line = self._receive(deadline).rpartition(bytes([SENTINEL]))[2]
            with contextlib.suppress(ValueError):
                answer = json.loads(line)
                if isinstance(answer, dict) and answer.get("return") == token:
                    return

    def call(self, command: str, arguments: dict[str, object] | None = None, *, timeout: float = TIMEOUT) -> object:
        """Run an agent command and return its result.

        Raises :class:`AgentError` when the agent refuses, :class:`AgentGoneError` when it is silent
        for ``timeout`` seconds.
        """
        self.post(command, arguments, timeout=timeout)
        try:
            answer = json.loads(self._receive(time.monotonic() + timeout))
        except ValueError:
            raise AgentGoneError(f"the guest's agent answered {command!r} with something that is no JSON") from None
        if not isinstance(answer, dict) or ("return" not in answer and "error" not in answer):
            raise AgentGoneError(f"the guest's agent answered {command!r} with something else")
        if "error" in answer:
            fault = answer["error"] if isinstance(answer["error"], dict) else {}
            raise AgentError(str(fault.get("desc", "the guest's agent failed")), kind=str(fault.get("class", "")))
        return answer["return"]

    def post(self, command: str, arguments: dict[str, object] | None = None, *, timeout: float = TIMEOUT) -> None:
        """Send a command whose success has no answer."""
        request: dict[str, object] = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        self._send(json.dumps(request).encode(), timeout)

    def _send(self, line: bytes, timeout: float) -> None:
        try:
            self._connection.settimeout(timeout)
            self._connection.sendall(line + b"\n")
        except TimeoutError:
            raise AgentGoneError(f"the guest takes no commands for {timeout:g} s") from None
        except OSError as error:
            raise AgentGoneError(f"the guest is gone: {error.strerror or error}") from None

    def _receive(self, deadline: float) -> bytes:
        try:
            return self._lines.line(deadline)
        except TimeoutError:
            raise AgentGoneError("the guest does not answer") from None
        except OSError as error:
            raise AgentGoneError(f"the guest is gone: {error}") from None


class Agent:
    """The channel of one machine, at ``path``; its lock lies beside it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextlib.contextmanager
    def session(self, *, timeout: float = SYNC_TIMEOUT) -> Iterator[Session]:
        """Take the turn for a few short commands; :class:`AgentGoneError` without one in ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        with self._turn(deadline), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as link:
            link.settimeout(timeout)
            try:
                link.connect(str(self._path))
            except OSError as error:
                raise AgentGoneError(f"the machine is gone: {error.strerror or error}") from None
            session = Session(link)
            session.synchronise(max(0.1, deadline - time.monotonic()))
            yield session

    def call(self, command: str, arguments: dict[str, object] | None = None, *, timeout: float = TIMEOUT) -> object:
        """One command in a session of its own."""
        with self.session(timeout=min(timeout, SYNC_TIMEOUT)) as session:
            return session.call(command, arguments, timeout=timeout)

    @contextlib.contextmanager
    def _turn(self, deadline: float) -> Iterator[None]:
        try:
            fd = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            raise AgentGoneError("the machine is gone") from None
        try:
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise AgentGoneError("the guest's agent is busy with somebody else's command") from None
                    time.sleep(0.005)
            yield
        finally:
            os.close(fd)
