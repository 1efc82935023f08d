# SPDX-License-Identifier: Apache-2.0
"""Kernel inputs on a running machine: giving IPE the release's signed policy, and whether it is in force.

The early step does the same at locked boots (``early/inputs.c``); here it is for ``freehold lock``. Once the guard is latched,
nobody changes IPE any more.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from freehold.errors import FreeholdError
from freehold.files import read_bytes

IPE = Path("sys/kernel/security/ipe")
#: What the kernel's answers to a policy mean.
FAULTS = {
    errno.ENOENT: "this kernel has no IPE",
    errno.ENOKEY: "the firmware does not know its signer",
    errno.EKEYREJECTED: "its signature is not right, or its signer is revoked",
    errno.EBADMSG: "it is damaged",
}


def enforce(whole: bytes, name: str, system: Path = Path("/")) -> int:
    """Give the kernel the signed policy ``whole`` and make it, called ``name``, the active one.

    0, or the errno for which the kernel refuses it (:data:`FAULTS`): all that is weaker then is that the guard judges alone.
    """
    try:
        _put(system / IPE / "new_policy", whole)
    except FileExistsError:
        # It is there already: what counts is its name, which its signature covers.
        pass
    except OSError as error:
        return error.errno or errno.EIO
    try:
        if not in_force(name, system):
            _put(system / IPE / "policies" / f"freehold-{name}" / "active", b"1")
            if read_bytes(system / IPE / "enforce", 16)[:1] != b"1":
                _put(system / IPE / "enforce", b"1")
    except FileNotFoundError:
        return errno.EBADMSG
    except OSError as error:
        return error.errno or errno.EIO
    return 0 if in_force(name, system) else errno.EIO


def in_force(name: str, system: Path = Path("/")) -> bool | None:
    """Whether the kernel enforces the policy ``name``; ``None`` when this process may not ask."""
    switches = (system / IPE / "policies" / f"freehold-{name}" / "active", system / IPE / "enforce")
    try:
        return all(read_bytes(path, 16)[:1] == b"1" for path in switches)
    except PermissionError:
        return None
    except (OSError, FreeholdError):
        return False


def _put(path: Path, data: bytes) -> None:
    """All of it by one write(2), as IPE wants it."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        if os.write(fd, data) != len(data):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
    finally:
        os.close(fd)
