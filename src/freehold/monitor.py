# SPDX-License-Identifier: Apache-2.0
"""Progress of long work: named, timed, nested steps, shown where the reader is.

A :class:`Monitor` writes to a terminal (a line that rewrites itself), to a pipe (plain lines), or as
JSON Lines for programs (``--progress-fd``: ``{"api": 1, "event", "step", "seconds", ...}``).
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from typing import IO, Protocol

PROGRESS_API = 1
#: At most this many progress updates a second reach a terminal or a descriptor.
REFRESH_HZ = 5


class Monitor(Protocol):
    """What long-running functions report to."""

    def begin(self, step: str) -> None:
        """A step starts."""

    def end(self, step: str, seconds: float, *, failed: bool) -> None:
        """The step that began last ends."""

    def progress(self, done: int, total: int, unit: str) -> None:
        """How far the current step is; ``total`` 0 when unknown."""

    def message(self, text: str) -> None:
        """One line for the person who waits."""


class NullMonitor:
    """Says nothing."""

    def begin(self, step: str) -> None:
        """Nothing."""

    def end(self, step: str, seconds: float, *, failed: bool) -> None:
        """Nothing."""

    def progress(self, done: int, total: int, unit: str) -> None:
        """Nothing."""

    def message(self, text: str) -> None:
        """Nothing."""


class TextMonitor:
    """Lines on ``stream``; a rewriting status line when it is a terminal."""

    def __init__(self, stream: IO[str], *, terminal: bool) -> None:
        self._stream = stream
        self._terminal = terminal
        self._depth = 0
        self._last = 0.0
        self._shown = False

    def _clear(self) -> None:
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._shown = False

    def _line(self, text: str) -> None:
        self._clear()
        self._stream.write(f"{'  ' * self._depth}{text}\n")
        self._stream.flush()

    def begin(self, step: str) -> None:
        """Print the step's name."""
        self._line(f"{step} ...")
        self._depth += 1

    def end(self, step: str, seconds: float, *, failed: bool) -> None:
        """Print how long it took, or that it failed."""
        self._depth -= 1
        if failed:
            self._line(f"{step}: FAILED after {seconds:.1f} s")
        elif seconds >= 0.5:
            self._line(f"{step}: {seconds:.1f} s")

    def progress(self, done: int, total: int, unit: str) -> None:
        """Rewrite the status line, at most a few times a second; silent on a pipe."""
        now = time.monotonic()
        if not self._terminal or now - self._last < 1 / REFRESH_HZ:
            return
        self._last = now
        share = f"{100 * done // total:3d} %  " if total else ""
        self._stream.write(f"\r\x1b[K{'  ' * self._depth}{share}{done:,} {unit}")
        self._stream.flush()
        self._shown = True

    def message(self, text: str) -> None:
        """Print one line."""
        self._line(text)


class JsonMonitor:
    """JSON Lines on a descriptor, for programs."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._last = 0.0

    def _emit(self, **fields: object) -> None:
        os.write(self._fd, (json.dumps({"api": PROGRESS_API, **fields}) + "\n").encode())

    def begin(self, step: str) -> None:
        """Emit ``begin``."""
        self._emit(event="begin", step=step)

    def end(self, step: str, seconds: float, *, failed: bool) -> None:
        """Emit ``end``."""
        self._emit(event="end", step=step, seconds=round(seconds, 3), failed=failed)

    def progress(self, done: int, total: int, unit: str) -> None:
        """Emit ``progress``, at most a few times a second."""
        now = time.monotonic()
        if now - self._last >= 1 / REFRESH_HZ:
            self._last = now
            self._emit(event="progress", done=done, total=total, unit=unit)

    def message(self, text: str) -> None:
        """Emit ``message``."""
        self._emit(event="message", text=text[:2000])


@contextlib.contextmanager
def step(monitor: Monitor, name: str) -> Iterator[None]:
    """Run the block as the named, timed step ``name``."""
    started = time.monotonic()
    monitor.begin(name)
    try:
        yield
    except BaseException:
        monitor.end(name, time.monotonic() - started, failed=True)
        raise
    monitor.end(name, time.monotonic() - started, failed=False)
