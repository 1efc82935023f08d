# SPDX-License-Identifier: Apache-2.0
"""The firmware's variables, as the kernel shows them (efivarfs): reading, and adding to signed ones.

A file has four bytes of attributes before the value. One write(2) is one SetVariable; the kernel turns the firmware's answer
into an errno (``efi_status_to_err``), and of itself says ENOSPC when less than 5 KiB of the store would be free. Files of
variables that it does not know as harmless are immutable until their flag is taken off.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from freehold.device.sysroot import Sysroot
from freehold.errors import FreeholdError
from freehold.files import read_bytes
from freehold.keys.efi import MAX_LIST_BYTES

PLACE = "sys/firmware/efi/efivars"
ATTRIBUTES = struct.Struct("<I")
_NON_VOLATILE = 1
#: _IOR('f', 1, long) and _IOW('f', 2, long); the kernel reads and writes an int.
_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS = 0x80086601, 0x40086602
_IMMUTABLE = 0x10
_FLAGS = struct.Struct("i")

#: Attributes, then what the variable's own format has: as :func:`append` does it.
Append = Callable[[Sysroot, str, UUID, int, bytes], None]

_SETUP = "what it holds can be looked at and cleared in the firmware's setup; nothing was changed"
#: The firmware's answers: what happened, what to do.
_ANSWERS = {
    errno.ENOSPC: (
        "the firmware's store of variables is full",
        "remove boot entries that nobody needs (`efibootmgr`), or make room in the firmware's setup; nothing was changed",
    ),
    errno.EINVAL: (
        "the firmware refuses the update as something that it does not know",
        "look for an update of the firmware, or take the file in by its setup; nothing was changed",
    ),
    errno.EACCES: (
        "the firmware does not believe the update",
        "its signer's certificate has to be in KEK, as the firmware itself has it (`efi-readvar -v KEK`); nothing was changed",
    ),
    errno.EROFS: ("the firmware lets nobody write its variables now", _SETUP),
    errno.EPERM: ("writing the firmware's variables is not permitted here", "as root, and not in a container"),
    errno.EIO: ("the firmware could not write to its store: a fault of the hardware", _SETUP),
}


def read(sysroot: Sysroot, name: str, guid: UUID | str, *, own: bool = False) -> bytes | None:
    """A variable's value; ``None`` when there is none. ``own``: a stored one is not the firmware's word, and counts as none.

    Raises :class:`FreeholdError` for one that cannot be read or is larger than a list can be.
    """
    try:
        data = read_bytes(_path(sysroot, name, guid), MAX_LIST_BYTES + ATTRIBUTES.size)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FreeholdError(f"the firmware's variable {name} cannot be read: {error.strerror}") from None
    if not data:  # the file of one that was refused when it was made
        return None
    if len(data) < ATTRIBUTES.size:
        raise FreeholdError(f"the firmware's variable {name} is cut short")
    return None if own and data[0] & _NON_VOLATILE else data[ATTRIBUTES.size :]


def append(sysroot: Sysroot, name: str, guid: UUID | str, attributes: int, data: bytes) -> None:
    """Hand ``data`` to the firmware for a variable, in one piece. Raises :class:`FreeholdError` with the firmware's word."""
    path = _path(sysroot, name, guid)
    written = 0
    try:
        _allow_change(path)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        # Nobody has asked the firmware yet.
        raise answer(errno.EPERM if error.errno == errno.EACCES else error.errno) from None
    try:
        written = os.write(fd, ATTRIBUTES.pack(attributes) + data)
    except OSError as error:
        raise answer(error.errno) from None
    finally:
        os.close(fd)
    if written != ATTRIBUTES.size + len(data):
        raise FreeholdError("the firmware took a part of the update only", hint="freehold dbx show")


def answer(code: int | None) -> FreeholdError:
    """The error for the kernel's ``code``."""
    said = _ANSWERS.get(code or 0)
    if said is None:
        reason = os.strerror(code) if code else "no reason given"
        return FreeholdError(f"the firmware refuses the update: {reason}", hint=_SETUP)
    return FreeholdError(said[0], hint=said[1])


def _path(sysroot: Sysroot, name: str, guid: UUID | str) -> Path:
    return sysroot.system / PLACE / f"{name}-{guid}"


def _allow_change(path: Path) -> None:
    """Take the flag off that efivarfs protects the file with; where there is no file, or no such flag, there is nothing to do."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        try:
            (flags,) = _FLAGS.unpack(fcntl.ioctl(fd, _FS_IOC_GETFLAGS, _FLAGS.pack(0)))
        except OSError:
            return
        if flags & _IMMUTABLE:
            fcntl.ioctl(fd, _FS_IOC_SETFLAGS, _FLAGS.pack(flags & ~_IMMUTABLE))
    finally:
        os.close(fd)
