# SPDX-License-Identifier: Apache-2.0
"""What the early step measured of its boot: the text, and whether the PCR vouches for it. All pure.

``early/measure.c`` extends PCR 15 with the SHA-256 of this text before anything of the disk runs, on an open machine as
well. A PCR takes nothing back: root can add to it, and cannot say that it began otherwise.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from freehold.attest.userlog import Record
from freehold.keys.eventlog import Event
from freehold.keys.pcr import KERNEL_PCR, LOCKED, NOT_LOCKED
from freehold.lock.intent import MAX_NUMBER, Lock

PCR = 15
MAX_BYTES = 1024
HEAD = "freehold-measured 1"
State = Literal["absent", "valid", "invalid"]
_NUMBER = "0|[1-9][0-9]{0,15}"
_TEXT = re.compile(
    rf"{HEAD}\nimage ([0-9a-f]{{64}})\nrelease ({_NUMBER})\nmachine ([0-9a-f]{{32}})\nintent (absent|valid|invalid)\n"
    rf"serial ({_NUMBER})\nlock (open|audit|locked)\nsigned (none|[0-9a-f]{{64}})\nrescue (yes|no)\nguard (none|audit|locked)\n"
    rf"device-key (yes|no)\n"
)
_LOCKS: dict[str, Lock] = {"open": "open", "audit": "audit", "locked": "locked"}
_STATES: dict[str, State] = {"absent": "absent", "valid": "valid", "invalid": "invalid"}


class Measured(NamedTuple):
    """A boot in its early step's words. ``signed``: SHA-256 (hex) of the signed intent, "" where none is believed.

    ``lock`` is the intent's; a ``rescue`` is locked in any case. ``guard`` is what the boot did not go on without;
    ``device_key`` says which word the early step put into PCR 11 (docs/device-key.md).
    """

    image: str
    release: int
    machine: str
    intent: State
    serial: int
    lock: Lock
    signed: str
    rescue: bool
    guard: str
    device_key: bool

    @property
    def state(self) -> str:
        """``open``, ``audit``, ``locked`` or ``rescue``."""
        return "rescue" if self.rescue else self.lock

    @property
    def word(self) -> str:
        """What went into PCR 11, after systemd-stub's measurements."""
        return LOCKED if self.device_key else NOT_LOCKED


def parse(data: bytes) -> Measured:
    """Read the text. :class:`ValueError` for anything that the early step does not write."""
    match = _TEXT.fullmatch(data.decode("latin-1")) if len(data) <= MAX_BYTES else None
    if match is None:
        raise ValueError("it is not the early step's text")
    image, release, machine, intent, serial, lock, signed, rescue, guard, device_key = match.groups()
    found = Measured(
        image, int(release), machine, _STATES[intent], int(serial), _LOCKS[lock], "" if signed == "none" else signed,
        rescue == "yes", guard, device_key == "yes",
    )  # fmt: skip
    if max(found.release, found.serial) > MAX_NUMBER or not _consistent(found):
        raise ValueError("it contradicts itself")
    return found


def _consistent(one: Measured) -> bool:
    """Whether the early step can have written it."""
    guard = {"open": "none", "audit": "audit", "locked": "locked"}["locked" if one.rescue else one.lock]
    default = {"absent": "open", "invalid": "locked"}.get(one.intent, one.lock)
    named = one.intent == "valid"
    if one.device_key and (one.rescue or not named or one.lock != "locked"):
        return False
    return one.guard == guard and one.lock == default and (one.serial > 0) == named == bool(one.signed)


def digest(text: bytes) -> bytes:
    """What a PCR is extended with for ``text``."""
    return hashlib.sha256(text).digest()


def extended(text: bytes) -> list[tuple[int, bytes]]:
    """What the early step extended with, register and digest: the word that goes with ``text``, and ``text``."""
    try:
        word = parse(text).word
    except ValueError:
        return [(PCR, digest(text))]
    return [(KERNEL_PCR, digest(word.encode())), (PCR, digest(text))]


def fault(text: bytes, events: Sequence[Event], records: Sequence[Record]) -> str:
    """Why PCR 15 does not begin with ``text`` and nothing like it twice; "" when it does.

    The order is the replay's: firmware's ``events``, ``text``, what the system measured (``records``).
    """
    if any(one.pcr == PCR for one in events):
        return "something was measured into PCR 15 before the early step"
    mine = digest(text)
    for one in records:
        if one.pcr == PCR and (one.digest == mine or one.text.startswith(HEAD.split(" ", maxsplit=1)[0])):
            return "PCR 15 has more than one such measurement"
    return ""
