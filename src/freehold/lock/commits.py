# SPDX-License-Identifier: Apache-2.0
"""The owner's commits of /etc in the owner's directory: images, and the signed intents that first named them (docs/etc.md).

The early step does the same (``early/commits.c``), and is the only one that can while the machine is locked.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import NamedTuple

from freehold import atomic
from freehold.errors import FreeholdError, InputError
from freehold.files import read_bytes
from freehold.lock.intent import MAX_NUMBER, MAX_SIGNED_BYTES, Intent, parse, split

#: Below the owner's directory.
RECORDS, IMAGES = "commits", "config"
KEPT = 64
_SERIAL = re.compile(r"[1-9][0-9]{0,15}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Record(NamedTuple):
    """A kept intent. ``serial`` is what its file is called, ``signed`` its unverified content."""

    serial: int
    signed: bytes

    @property
    def claimed(self) -> Intent | None:
        """What it says, without asking who signed it; ``None`` when it is no intent."""
        with contextlib.suppress(InputError):
            return parse(split(self.signed)[0])
        return None


def load(owner: Path) -> list[Record]:
    """The records below ``owner``, oldest first; one that is too large is empty. Raises :class:`PermissionError` for a user."""
    found = []
    try:
        names = [path.name for path in (owner / RECORDS).iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    for serial in sorted(int(name) for name in names if _SERIAL.fullmatch(name) and int(name) <= MAX_NUMBER):
        try:
            found.append(Record(serial, read_bytes(owner / RECORDS / str(serial), MAX_SIGNED_BYTES)))
        except (FreeholdError, IsADirectoryError):
            found.append(Record(serial, b""))
    return found


def config_at(records: list[Record], serial: int) -> tuple[int, str | None]:
    """Number and image of the newest of ``records`` up to ``serial``; 0 when there is none. Pure."""
    older = [record for record in records if record.serial <= serial]
    if not older:
        return 0, None
    claimed = older[-1].claimed
    return older[-1].serial, claimed.config if claimed is not None else None


def keep(owner: Path, signed: bytes) -> None:
    """Keep the verified intent ``signed``, which stands, if it names another image than the newest record up to it.

    Order: the record, then the oldest ones beyond :data:`KEPT`, then the images that none of them names. After a cut the next
    boot does the rest.
    """
    wanted = parse(split(signed)[0])
    if config_at(load(owner), wanted.serial)[1] == wanted.config:
        return
    (owner / RECORDS).mkdir(mode=0o700, exist_ok=True)
    atomic.write(owner / RECORDS / str(wanted.serial), signed, mode=0o600)
    records = load(owner)
    for record in records[:-KEPT]:
        (owner / RECORDS / str(record.serial)).unlink()
    claims = [record.claimed for record in records[-KEPT:]]
    named = {wanted.config, *(one.config for one in claims if one is not None)}
    images = owner / IMAGES
    for path in images.iterdir() if images.is_dir() else ():
        if _DIGEST.fullmatch(path.name) and path.name not in named:
            path.unlink()


def adopt(root: Path, digest: str) -> None:
    """Bring an image that was made under the lock from the inbox into the owner's directory, both below ``root``.

    Nothing when it is there, or nowhere. One rename, then both directories are flushed.
    """
    source, target = root / "inbox" / IMAGES / digest, root / "owner" / IMAGES / digest
    if source.is_file() and not target.is_file():
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        source.rename(target)
        atomic.fsync_directory(target.parent)
        atomic.fsync_directory(source.parent)
