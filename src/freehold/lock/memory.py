# SPDX-License-Identifier: Apache-2.0
"""What the TPM remembers of the owner's word, as the device's commands see it (docs/memory.md).

The early step (``early/memory.c``) decides, and writes what the TPM holds after it into ``OWNER/remembered``: the guard
closes that directory, the TPM's index can only be closed for writing. The same rule is here, so that commands say what the
next boot will make of the intent.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from freehold.lock.intent import MAX_NUMBER, Lock, Standing, split

MAX_BYTES = 128
NAME = "remembered"
_TEXT = re.compile(
    rb"freehold-remembered 1\nlock (open|audit|locked)\nserial (0|[1-9][0-9]{0,15})\ntext ([0-9a-f]{32})\n"
)
_LOCKS: dict[bytes, Lock] = {b"open": "open", b"audit": "audit", b"locked": "locked"}


class Remembered(NamedTuple):
    """The newest intent that ever stood: what it said, its number, the begin of its text's SHA-256."""

    lock: Lock
    serial: int
    text: bytes


def parse(data: bytes) -> Remembered | None:
    """Read ``OWNER/remembered``; ``None`` when it is none."""
    match = _TEXT.fullmatch(data) if len(data) < MAX_BYTES else None
    if match is None or int(match[2]) > MAX_NUMBER:
        return None
    return Remembered(_LOCKS[match[1]], int(match[2]), bytes.fromhex(match[3].decode()))


def judge(standing: Standing, signed: bytes | None, remembered: Remembered | None) -> Standing:
    """What ``standing``, of the intent ``signed``, is worth on a machine that remembers. Pure.

    Where the newest one locked, one that is gone or older is not believed, and only a newer one may follow.
    """
    if remembered is None:
        return standing
    if remembered.lock == "locked" and (standing.intent is not None or standing.state != "locked"):
        if standing.intent is None or signed is None:
            standing = _locked("there is no intent, and the TPM remembers that this machine was locked")
        elif not _newest(standing.intent.serial, signed, remembered):
            standing = _locked(
                f"the intent is not the newest: the TPM remembers number {remembered.serial}, which locked"
            )
    return replace(standing, after=remembered.serial)


def _locked(reason: str) -> Standing:
    return Standing("locked", None, "", reason)


def _newest(serial: int, signed: bytes, remembered: Remembered) -> bool:
    if serial != remembered.serial:
        return serial > remembered.serial
    return hashlib.sha256(split(signed)[0]).digest().startswith(remembered.text)


def load(owner: Path) -> Remembered | None:
    """What the machine whose owner's directory is ``owner`` remembers. Raises :class:`PermissionError` for a user."""
    try:
        with (owner / NAME).open("rb") as source:
            return parse(source.read(MAX_BYTES + 1))
    except (FileNotFoundError, NotADirectoryError):
        return None
