# SPDX-License-Identifier: Apache-2.0
"""Reading files with a stated maximum size, and removing them. What writes is :mod:`freehold.atomic`."""

from __future__ import annotations

import shutil
from pathlib import Path

from freehold.errors import FreeholdError, InputError


def read_bytes(path: Path, limit: int) -> bytes:
    """The file ``path``; :class:`FreeholdError` above ``limit`` bytes, :class:`OSError` when unreadable."""
    with path.open("rb") as source:
        data = source.read(limit + 1)
    if len(data) > limit:
        raise FreeholdError(f"{path} is larger than {limit} bytes")
    return data


def read_given(path: Path, limit: int) -> bytes:
    """A file that a person named; :class:`InputError` above ``limit`` bytes and when it cannot be read."""
    try:
        return read_bytes(path, limit)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except FreeholdError as error:
        raise InputError(error.message) from None


def remove(path: Path) -> None:
    """A file, a link, or a directory with all that is in it; nothing when there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
