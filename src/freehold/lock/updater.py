# SPDX-License-Identifier: Apache-2.0
"""The updater: the one process that may read the owner directory's secrets while the machine is locked.

It starts through the sealed launcher (``early/updater.c``), and the guard marks it: docs/guard.md, "Secrets". What it
starts is not marked, so whoever holds a secret starts nothing: a child would carry a copy of this memory.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from freehold.errors import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, FreeholdError

SECRETS = Path("/sysroot/owner/secret")
SCHEMA = "freehold-updater-1"
MAX_SECRET = 65536  # bytes
PR_GET_DUMPABLE, PR_SET_DUMPABLE = 3, 4
MCL_CURRENT, MCL_FUTURE = 1, 2


def shield() -> None:
    """Keep this process's memory out of core dumps and swap; to be called before a secret is read.

    Exec makes a process dumpable again, so the launcher cannot do it. Raises :class:`FreeholdError` where the kernel
    refuses, as when whoever started us took the capability or the limit away.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0 or libc.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise FreeholdError("the updater's memory cannot be kept out of core dumps")
    if libc.mlockall(MCL_CURRENT | MCL_FUTURE) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise FreeholdError(
            f"the updater's memory cannot be kept out of swap: {reason}",
            hint="start it with CAP_IPC_LOCK and without a memory limit",
        )


def read_secret(name: str, *, directory: Path = SECRETS, limit: int = MAX_SECRET) -> bytes:
    """The bytes of ``directory/name``, at most ``limit``, after :func:`shield`.

    Raises :class:`FreeholdError`: on a locked machine for everybody but the updater, and when there is no such secret.
    """
    if not name or "/" in name or name.startswith("."):
        raise FreeholdError(f"{name!r} is no name of a secret")
    shield()
    try:
        descriptor = os.open(directory / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise FreeholdError(f"this machine has no secret {name}") from None
    except PermissionError:
        raise FreeholdError(
            f"the secret {name} may not be read by this process",
            hint="start /usr/lib/freehold/updater, as root and directly",
        ) from None
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise FreeholdError(f"the secret {name} has more than {limit} bytes")
    return data


def self_check(directory: Path = SECRETS) -> dict[str, object]:
    """Whether this process may read secrets (``reads``; why not: ``fault``), without reading one."""
    answer: dict[str, object] = {"schema": SCHEMA, "reads": False, "fault": ""}
    try:
        shield()
        os.close(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        answer["reads"] = True
    except FreeholdError as error:
        answer["fault"] = error.message
    except OSError as error:
        answer["fault"] = f"{directory}: {error.strerror}"
    return answer


def _self_check(arguments: Sequence[str]) -> int:
    answer = self_check()
    print(json.dumps(answer), flush=True)
    return EXIT_DONE if answer["reads"] else EXIT_FAILED


#: What needs no more than this module; :mod:`freehold.device.updater` has all of them.
VERBS: dict[str, Callable[[Sequence[str]], int]] = {"self-check": _self_check}


def main(arguments: Sequence[str], verbs: Mapping[str, Callable[[Sequence[str]], int]] = VERBS) -> int:
    """Run one of the ``verbs``; returns the exit status. Messages go to standard error."""
    verb = verbs.get(arguments[0]) if arguments else None
    if verb is None:
        os.write(2, f"usage: updater {' | '.join(verbs)}\n".encode())
        return EXIT_USAGE
    try:
        return verb(arguments[1:])
    except FreeholdError as error:
        hint = f" ({error.hint})" if error.hint else ""
        os.write(2, f"updater: {error.message}{hint}\n".encode())
        return error.exit_status if error.exit_status else EXIT_FAILED
    except Exception as error:
        # Root chose what was read, and a fault's own words may repeat it: only its kind is told.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        os.write(2, f"updater: it failed: {reason}\n".encode())
        return EXIT_FAILED
