# SPDX-License-Identifier: Apache-2.0
"""Sticks: which partitions could hold a credential, and mounting one so that nothing on it acts."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from freehold import run
from freehold.errors import CommandError, FreeholdError, InputError

#: A file system's label, or a partition's. FAT labels have eleven characters.
LABELS = ("FREEHOLD-KEY", "FREEHOLDKEY")
KINDS = ("vfat", "ext4")
MOUNTS = Path("/run/freehold/rescue")
#: Nothing on it runs, is a device, leads elsewhere, or is readable by others.
OPTIONS = "nosuid,nodev,noexec,nosymfollow"
#: Files that are looked at, at the top of a stick and one directory below.
MAX_FILES = 64
MAX_MEDIA = 64
MAX_LISTING = 1 << 20
#: Our own: neither has a credential that anybody could trust.
OWN = ("freehold-root", "freehold-esp")


class Medium(NamedTuple):
    """A partition with a file system that we read."""

    device: str
    kind: str
    label: str

    @property
    def named(self) -> bool:
        """Whether its label says that it has the credential."""
        return self.label in LABELS


def parse(listing: bytes) -> list[Medium]:
    """The media in lsblk's JSON, those with the right label first. Pure; nonsense gives none."""
    if len(listing) > MAX_LISTING:
        return []
    try:
        rows = json.loads(listing).get("blockdevices")
    except (ValueError, AttributeError, RecursionError):
        return []
    found = []
    for row in rows if isinstance(rows, list) else []:
        if not isinstance(row, dict):
            continue
        device, kind, own, mounts = (row.get(name) for name in ("path", "fstype", "partlabel", "mountpoints"))
        if not isinstance(device, str) or not device.startswith("/dev/") or ".." in device:
            continue
        if not isinstance(kind, str) or kind not in KINDS or not isinstance(mounts or [], list) or any(mounts or []):
            continue
        if isinstance(own, str) and own in OWN:
            continue
        labels = [label for label in (row.get("partlabel"), row.get("label")) if isinstance(label, str)]
        chosen = next((label for label in labels if label in LABELS), labels[-1] if labels else "")
        found.append(Medium(device, str(kind), printable(chosen, 40)))
    return sorted(found[:MAX_MEDIA], key=lambda one: (not one.named, one.device))


def printable(text: str, limit: int = 200) -> str:
    """``text`` for a console: a name on a stick must not move the cursor."""
    return "".join(character if " " <= character <= "~" else "?" for character in text[:limit])


def media() -> list[Medium]:
    """What is plugged in now."""
    done = run.run(
        ["lsblk", "--json", "--list", "-o", "PATH,FSTYPE,LABEL,PARTLABEL,MOUNTPOINTS"], check=False, timeout=30
    )
    return parse(done.stdout)


@contextlib.contextmanager
def mounted(medium: Medium, *, write: bool = False) -> Iterator[Path]:
    """``medium``, mounted for the block. :class:`FreeholdError` when it cannot be."""
    target = MOUNTS / Path(medium.device).name
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    # FAT has no modes: what a key file on it would look like.
    extra = "umask=0077" if medium.kind == "vfat" else "" if write else "noload"
    options = ",".join(filter(None, ["rw" if write else "ro", OPTIONS, extra]))
    try:
        run.run(["mount", "-t", medium.kind, "-o", options, medium.device, target], timeout=60)
    except CommandError as error:
        raise FreeholdError(f"{medium.device} cannot be mounted: {printable(error.message)}") from None
    try:
        yield target
    finally:
        run.run(["umount", target], check=False, timeout=120)


def candidates(top: Path, suffix: str) -> list[Path]:
    """Regular files that end in ``suffix``, at ``top`` and one directory below it."""
    found: list[Path] = []
    for pattern in (f"*{suffix}", f"*/*{suffix}"):
        for path in sorted(top.glob(pattern)):
            if path.is_file() and not path.is_symlink() and len(found) < MAX_FILES:
                found.append(path)
    return found


def within(top: Path, relative: str) -> Path:
    """The file ``relative`` below ``top``; :class:`InputError` for a path that leads out of it."""
    path = top / relative.lstrip("/")
    if ".." in Path(relative).parts or not path.resolve().is_relative_to(top.resolve()):
        raise InputError("that path leads out of the stick")
    if not path.is_file():
        raise InputError(f"there is no file {printable(relative)} on the stick")
    return path
