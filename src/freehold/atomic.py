# SPDX-License-Identifier: Apache-2.0
"""Durable writes: a reader sees the old file or the new one, also after a power cut.

Order: temporary name in the same directory, data, fsync of the file, rename, fsync of the directory.
"""

from __future__ import annotations

import os

from freehold.errors import BusyError

# Not `typing`'s: every locked boot waits for this module, see freehold.lock.machine.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

TEMPORARY_PREFIX = ".tmp-"


def fsync_directory(path: str | Path) -> None:
    """Make the names in directory ``path`` durable."""
    _fsync(path, os.O_DIRECTORY)


def flush(path: str | Path) -> None:
    """Make the data of the file ``path`` durable."""
    _fsync(path, 0)


def _fsync(path: str | Path, flags: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write(path: str | Path, data: bytes | str, *, mode: int = 0o644, group: int | None = None) -> None:
    """Replace ``path`` by ``data`` atomically and durably. ``mode`` is exact (no umask); ``group`` a gid."""
    content = data.encode() if isinstance(data, str) else data
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f"{TEMPORARY_PREFIX}{name}-{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as sink:
            sink.write(content)
            sink.flush()
            if group is not None:
                os.fchown(sink.fileno(), -1, group)
            os.fchmod(sink.fileno(), mode)
            os.fsync(sink.fileno())
        os.rename(temporary, path)
    except BaseException:
        try:
            os.unlink(temporary)
        except OSError:
            pass  # What went wrong before counts.
        raise
    fsync_directory(directory or ".")


def publish(temporary: Path, path: Path) -> None:
    """Give a finished file or directory its final name, durably.

    A file's data is flushed first. A directory must have been filled by programs that flush, or be
    one whose loss only costs time (a cache).
    """
    if temporary.is_file():
        flush(temporary)
    temporary.rename(path)
    fsync_directory(path.parent)


class exclusive:  # noqa: N801 (used like a function)
    """Hold the lock file ``path`` while the block runs; :class:`BusyError` when somebody has it, unless we may ``wait``."""

    def __init__(self, path: Path, what: str, *, wait: bool = False) -> None:
        self.path, self.what, self.wait = path, what, wait
        self.fd = -1

    def __enter__(self) -> None:
        import fcntl

        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX if self.wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"process {os.getpid()}".encode(), 0)
        except BlockingIOError:
            holder = os.pread(fd, 64, 0).decode(errors="replace").strip() or "another process"
            os.close(fd)
            raise BusyError(f"{self.what} is in use by {holder}", hint="wait for it to finish, then try again") from None
        except BaseException:
            os.close(fd)
            raise
        self.fd = fd

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self.fd)
