# SPDX-License-Identifier: Apache-2.0
"""Boot entries: names with boot counting, their order, and switching between them.

A deployment is one UKI in ``EFI/Linux`` of the ESP, named ``freehold-VERSION-ID[+LEFT[-DONE]].efi`` after the
Boot Loader Specification. The boot loader lowers LEFT and raises DONE at each try; a healthy boot drops the
counter; at LEFT 0 the entry sorts last. ``+0`` without DONE is ours: the owner set this entry aside.
Switching renames single files, so that a power cut leaves the old order or the new one, and every
intermediate step has a bootable entry in front.

Beside it lies its rescue entry, ``freehold-rescue-VERSION-ID.efi``: never counted, never switched, no entry of a deployment
(:class:`Entry`) but a file of its own kind (:class:`Rescue`).
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from freehold import atomic
from freehold.errors import FreeholdError, NotHereError
from freehold.update import rescue_entry

#: How often a new deployment is tried before the loader falls back.
TRIES = 3
LINUX = "EFI/Linux"
_NAME = re.compile(
    r"freehold-(?!(?i:rescue)-)(?P<version>[0-9A-Za-z][0-9A-Za-z.~^_-]{0,63})-(?P<id>[0-9a-f]{16})"
    r"(?:\+(?P<left>[0-9]{1,5})(?:-(?P<done>[0-9]{1,5}))?)?\.efi\Z",
    re.ASCII,
)
_RESCUE = re.compile(
    rf"{rescue_entry.PREFIX}(?!(?i:rescue)-)(?P<version>[0-9A-Za-z][0-9A-Za-z.~^_-]{{0,63}})-(?P<id>[0-9a-f]{{16}})\.efi\Z",
    re.ASCII,
)
_VERSION_PART = re.compile(r"[~^.-]|[0-9]+|[A-Za-z]+")


class Entry(NamedTuple):
    """One boot entry. ``left`` is ``None`` once a boot was healthy, else the tries that remain."""

    version: str
    id: str
    left: int | None = None
    done: int | None = None

    @property
    def name(self) -> str:
        """The file name."""
        counter = "" if self.left is None else f"+{self.left}" + ("" if self.done is None else f"-{self.done}")
        return f"freehold-{self.version}-{self.id}{counter}.efi"

    @property
    def state(self) -> str:
        """``good``, ``trying``, ``bad`` (no try left) or ``set-aside`` (by the owner's rollback)."""
        if self.left is None:
            return "good"
        if self.left > 0:
            return "trying"
        return "set-aside" if self.done is None else "bad"

    def counted(self, left: int | None) -> Entry:
        """The same deployment with ``left`` tries and none done."""
        return Entry(self.version, self.id, left)


class Rescue(NamedTuple):
    """The rescue entry of the deployment ``id``."""

    version: str
    id: str

    @property
    def name(self) -> str:
        """The file name."""
        return rescue_entry.name(self.version, self.id)


def parse(name: str) -> Entry | None:
    """The deployment's entry that file ``name`` stands for; ``None`` when it is none of ours, or a rescue entry."""
    match = _NAME.match(name)
    if match is None:
        return None
    left, done = match["left"], match["done"]
    return Entry(match["version"], match["id"], _number(left), _number(done))


def parse_rescue(name: str) -> Rescue | None:
    """The rescue entry that file ``name`` stands for; ``None`` when it is none."""
    match = _RESCUE.match(name)
    return None if match is None else Rescue(match["version"], match["id"])


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)


def compare_versions(a: str, b: str) -> int:
    """-1, 0 or 1: the order of two versions after the UAPI version format specification, as systemd-boot has it."""
    parts_a, parts_b = _VERSION_PART.findall(a), _VERSION_PART.findall(b)
    for part_a, part_b in zip(parts_a, parts_b, strict=False):
        if part_a == part_b:
            continue
        if part_a.isdigit() and part_b.isdigit():
            if int(part_a) != int(part_b):
                return -1 if int(part_a) < int(part_b) else 1
            continue
        rank_a, rank_b = _rank(part_a), _rank(part_b)
        if rank_a != rank_b:
            return -1 if rank_a < rank_b else 1
        return -1 if part_a < part_b else 1
    if len(parts_a) == len(parts_b):
        return 0
    longer, sign = (parts_a, 1) if len(parts_a) > len(parts_b) else (parts_b, -1)
    # "1~rc" comes before "1"; anything else that follows makes a version newer.
    return -sign if longer[min(len(parts_a), len(parts_b))] == "~" else sign


def _rank(part: str) -> int:
    """``~`` sorts before the end, then ``-``, ``^``, ``.``, letters, digits."""
    if part.isdigit():
        return 6
    return {"~": 0, "-": 2, "^": 3, ".": 4}.get(part, 5)


def _compare(a: Entry, b: Entry) -> int:
    if (a.left == 0) != (b.left == 0):
        return 1 if a.left == 0 else -1
    order = compare_versions(b.version, a.version) or compare_versions(b.id, a.id)
    if order:
        return order
    # The same deployment twice (a power cut between FAT's two halves of a rename).
    left_a, left_b = (1 << 20 if e.left is None else e.left for e in (a, b))
    return (left_a < left_b) - (left_a > left_b) or (a.done or 0) - (b.done or 0)


def order(entries: Iterable[Entry]) -> list[Entry]:
    """``entries`` as the boot loader tries them: exhausted ones last, then the highest version first."""
    return sorted(entries, key=functools.cmp_to_key(_compare))


def _newer(a: Entry, b: Entry) -> int:
    return compare_versions(b.version, a.version)


def newest_first(entries: Iterable[Entry]) -> list[Entry]:
    """``entries`` by version alone, the highest first."""
    return sorted(entries, key=functools.cmp_to_key(_newer))


class Switch(NamedTuple):
    """A change of the boot order: ``chosen`` boots next; ``renames`` are (old, new) file names in order."""

    chosen: Entry
    renames: tuple[tuple[str, str], ...]


def plan_rollback(entries: Sequence[Entry], booted: str) -> Switch:
    """How to make the previous deployment boot next; ``booted`` is the running deployment's id.

    When another than the running one would boot next (an update waits, or a rollback was done already),
    the running one is chosen: the waiting change is undone. Otherwise it is the newest other that is
    good or was set aside, so that a second rollback (after the reboot) leads back.
    Raises :class:`NotHereError` when there is nothing to go back to.
    """
    ordered = order(entries)
    running = next((entry for entry in ordered if entry.id == booted), None)
    if running is not None and ordered[0].id != booted:
        chosen = running
    else:
        others = [entry for entry in ordered if entry.id != booted and entry.state in ("good", "set-aside")]
        if not others:
            raise NotHereError(
                "there is no other deployment to go back to", hint="`freehold status` lists what is on this machine"
            )
        # A set-aside entry may be newer than a good one: judge by version alone.
        chosen = newest_first(others)[0]
    return plan_switch(ordered, chosen)


def plan_boot(entries: Sequence[Entry], identity: str) -> Switch:
    """How to make the deployment ``identity`` boot next, whatever became of it before.

    Raises :class:`NotHereError` when it has no boot entry.
    """
    ordered = order(entries)
    chosen = next((entry for entry in ordered if entry.id == identity), None)
    if chosen is None:
        raise NotHereError(f"no boot entry is of the deployment {identity}", hint="the state lists what there is")
    return plan_switch(ordered, chosen)


def plan_switch(entries: Sequence[Entry], chosen: Entry) -> Switch:
    """How to make ``chosen`` boot next: first it is made bootable, then everything that sorts before it is set aside."""
    ordered = order(entries)
    renames: list[tuple[str, str]] = []
    target = chosen
    if chosen.left == 0:
        # It gets tries again rather than trust: what was set aside may not have proven itself.
        target = chosen.counted(TRIES)
        renames.append((chosen.name, target.name))
    after = [target if entry == chosen else entry for entry in ordered]
    for entry in order(after):
        if entry.id == target.id:
            break
        renames.append((entry.name, entry.counted(0).name))
    return Switch(target, tuple(renames))


def listing(esp: Path) -> list[Entry]:
    """Our entries on the ESP mounted at ``esp``, in boot order; :class:`NotHereError` when it is not mounted.

    An empty file is none: a power cut in the middle of :func:`move` can leave one, and the boot loader skips it.
    """
    return order(entry for entry in map(parse, _names(esp)) if entry is not None)


def rescues(esp: Path) -> list[Rescue]:
    """The rescue entries on the ESP mounted at ``esp``, by name; errors and empty files as for :func:`listing`."""
    return [entry for entry in map(parse_rescue, sorted(_names(esp))) if entry is not None]


def both(entries: Iterable[Entry], rescue: Iterable[Rescue]) -> list[Entry | Rescue]:
    """Every file of ours in ``EFI/Linux``: what starts a deployment, then what starts its rescue."""
    return [*entries, *rescue]


def _names(esp: Path) -> list[str]:
    try:
        return [path.name for path in (esp / LINUX).iterdir() if path.stat().st_size]
    except FileNotFoundError:
        raise NotHereError(
            f"the boot partition is not mounted at {esp}", hint="`systemctl start efi.automount`, or mount it by hand"
        ) from None


def apply(esp: Path, switch: Switch) -> None:
    """Carry out ``switch``: each rename is durable before the next begins."""
    directory = esp / LINUX
    for old, new in switch.renames:
        target = directory / new
        if target.exists() and target.stat().st_size:
            raise FreeholdError(
                f"{target} exists already", hint="remove the one of the two that is not wanted, then try again"
            )
        move(directory / old, target)


def move(source: Path, target: Path) -> None:
    """Rename a file on the ESP, durably.

    Linux' FAT makes the new name first, of an empty file; where the content is gets written with the file's inode
    (``vfat_rename``, ``__fat_write_inode``). So the file is flushed under its new name, not only the directories.
    """
    source.rename(target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    for directory in dict.fromkeys((target.parent, source.parent)):
        atomic.fsync_directory(directory)


def remove(esp: Path, entry: Entry | Rescue) -> None:
    """Delete an entry's file, durably; nothing happens when it is gone already."""
    (esp / LINUX / entry.name).unlink(missing_ok=True)
    atomic.fsync_directory(esp / LINUX)
