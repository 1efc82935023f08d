# SPDX-License-Identifier: Apache-2.0
"""mount(2) and its kin without libmount, which would set up a loop device for an image file."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_MOVE = 1, 2, 4, 8, 8192
MS_REC, MS_PRIVATE, MS_SLAVE = 16384, 1 << 18, 1 << 19
_CLONE_NEWNS = 0x20000
_MNT_DETACH = 2


def mount(source: str | Path, target: Path, kind: str | None, flags: int, options: str | None = None) -> None:
    """Mount; raises :class:`OSError` with the kernel's reason."""
    libc = ctypes.CDLL(None, use_errno=True)
    encoded = [os.fsencode(part) if part is not None else None for part in (source, target, kind, options)]
    if libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), os.fspath(target))


def unmount(target: Path) -> None:
    """Unmount, also while it is in use; raises :class:`OSError`."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(target), _MNT_DETACH) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), os.fspath(target))


def private_namespace(*, follow: bool = True) -> None:
    """Give this process (threads that start later, too) a mount namespace of its own; raises :class:`OSError`.

    What is mounted from now on, nobody else sees, and it goes when the process ends, however that happens. With ``follow``
    mounts that others make still arrive here, so that automatic ones go on working; without, nobody changes what is mounted.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    mount("none", Path("/"), None, MS_REC | (MS_SLAVE if follow else MS_PRIVATE))


def over(place: str, mountinfo: str) -> list[str]:
    """Where something is mounted at ``place`` or below it, from the text of mountinfo (proc_pid_mountinfo(5)). Pure."""
    points = [fields[4] for fields in (line.split(" ") for line in mountinfo.split("\n")) if len(fields) > 4]
    return [point for point in points if point == place or point.startswith(f"{place}/")]
