# SPDX-License-Identifier: Apache-2.0
"""The rollback floor as the device's commands see it: what the next boot will ask of a release (docs/floor.md).

The early step (``early/floor.c``) decides and is the only writer; here the owner's directory is read, which the guard
closes while locked. The TPM's copy is not asked again: the file was brought up to date with it at this boot.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from freehold.errors import VerificationError
from freehold.lock import memory
from freehold.lock.intent import MAX_NUMBER, MAX_SIGNED_BYTES, Standing, judge

MAX_BYTES = 96
_TEXT = re.compile(rb"freehold-floor 1\nraised (0|[1-9][0-9]{0,15})\nserial (0|[1-9][0-9]{0,15})\n")
_RELEASE = re.compile(r"(?:^|\s)freehold\.release=(\S*)(?=\s|\Z)")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,15}")


class Copy(NamedTuple):
    """The raised floor in the owner's directory, right up to the intent ``serial`` (0: none named a floor)."""

    raised: int
    serial: int


class Known(NamedTuple):
    """What holds for the next boot. ``floor`` is in force only where ``locked``.

    ``named`` is what the standing intent says (``None``: nothing), ``raised`` what the machine keeps beside it, and
    ``serial`` the highest intent that is known, the TPM's memory included.
    """

    locked: bool
    floor: int
    named: int | None
    raised: int
    serial: int


def parse(data: bytes) -> Copy | None:
    """Read ``OWNER/floor``; ``None`` when it is damaged, as for the early step."""
    match = _TEXT.fullmatch(data) if len(data) < MAX_BYTES else None
    if match is None or max(int(match[1]), int(match[2])) > MAX_NUMBER:
        return None
    return Copy(int(match[1]), int(match[2]))


def release_of(cmdline: str) -> int:
    """The number of the release that a kernel command line names; 0 when it names none. The last one counts."""
    found = _RELEASE.findall(cmdline)
    if not found or not _NUMBER.fullmatch(found[-1]) or int(found[-1]) > MAX_NUMBER:
        return 0
    return int(found[-1])


def judge_floor(standing: Standing, copy: Copy | None) -> Known:
    """The rule of ``early/floor.c`` for a machine with the one copy ``copy``. Pure."""
    intent = standing.intent
    named = intent.floor if intent is not None else None
    raised, serial = copy if copy is not None else (0, 0)
    if intent is not None and named is not None and (copy is None or serial < intent.serial):
        raised = named
    highest = max(serial, standing.after, intent.serial if intent is not None else 0)
    return Known(standing.state == "locked", max(raised, named or 0), named, raised, highest)


def known(owner: Path, keychain: Path) -> Known:
    """The floor of the machine whose owner's directory is ``owner``; nothing is locked where there is none.

    Raises :class:`PermissionError` for an ordinary user.
    """
    from freehold.keys.verify import Keychain

    try:
        machine = (owner / "id").read_text().strip()
    except FileNotFoundError:
        return Known(False, 0, None, 0, 0)
    signed = _read(owner / "intent", MAX_SIGNED_BYTES)
    if signed is None:
        standing = judge(None, keychain=Keychain(()), machine=machine)
    else:
        standing = judge(signed, keychain=Keychain.from_directory(keychain), machine=machine)
    standing = memory.judge(standing, signed, memory.load(owner))
    return judge_floor(standing, parse(_read(owner / "floor", MAX_BYTES) or b""))


def require(floor: Known, number: int, what: str) -> None:
    """Raise :class:`VerificationError` when release ``number``, called ``what``, would not boot on the locked machine."""
    if floor.locked and number < floor.floor:
        raise VerificationError(
            f"{what} has the number {number}, below this machine's rollback floor {floor.floor}: it would not boot",
            hint=f"the machine is unchanged; `freehold floor --lower {number}` needs the owner's key",
        )


def _read(path: Path, limit: int) -> bytes | None:
    try:
        with path.open("rb") as source:
            return source.read(limit + 1)
    except FileNotFoundError:
        return None
