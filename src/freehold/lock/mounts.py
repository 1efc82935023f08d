# SPDX-License-Identifier: Apache-2.0
"""mount(2) without libmount, which would set up a loop device for an image file."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_MOVE = 1, 2, 4, 8192


def mount(source: str | Path, target: Path, kind: str | None, flags: int, options: str | None = None) -> None:
    """Mount; raises :class:`OSError` with the kernel's reason."""
    libc = ctypes.CDLL(None, use_errno=True)
    encoded = [os.fsencode(part) if part is not None else None for part in (source, target, kind, options)]
    if libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), os.fspath(target))
