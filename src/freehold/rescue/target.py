# SPDX-License-Identifier: Apache-2.0
"""Another machine's disk, seen from the system on a stick: its partitions, mounted so that nothing on it acts here."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from freehold import run
from freehold.device.sysroot import Sysroot, read_text
from freehold.errors import CommandError, FreeholdError, InputError, NotHereError

BLOCKS = Path("/sys/class/block")
MOUNTS = Path("/run/freehold/rescue/disk")
OPTIONS = "nosuid,nodev,noexec,nosymfollow"
_NAME = re.compile(r"^PARTNAME=(freehold-(?:root|esp))$", re.MULTILINE)
_DEVICE_NAME = re.compile(r"[a-z][a-z0-9]{0,30}")


class Target(NamedTuple):
    """A disk and our partitions on it; ``None`` for one that is not there."""

    disk: Path
    root: Path | None
    esp: Path | None

    def needed_root(self) -> Path:
        """The root partition; :class:`NotHereError` without one."""
        if self.root is None:
            raise NotHereError(
                f"{self.disk} has no partition named freehold-root",
                hint="a lost partition table is restored from a backup, not made anew: docs/getting-back-in.md",
            )
        return self.root

    def needed_esp(self) -> Path:
        """The boot partition; :class:`NotHereError` without one."""
        if self.esp is None:
            raise NotHereError(f"{self.disk} has no partition named freehold-esp", hint="docs/getting-back-in.md")
        return self.esp


def find(disk: Path, blocks: Path = BLOCKS) -> Target:
    """Our partitions on the whole disk ``disk``, by sysfs. :class:`InputError` when it is no disk, or two have a name."""
    name = disk.resolve().name
    if not _DEVICE_NAME.fullmatch(name) or not (blocks / name).exists():
        raise InputError(f"{disk} is no disk", hint="`lsblk` lists them; for example --disk /dev/sda")
    if (blocks / name / "partition").exists():
        raise InputError(f"{disk} is a partition", hint="name the whole disk")
    found: dict[str, list[Path]] = {"freehold-root": [], "freehold-esp": []}
    for part in sorted((blocks / name).iterdir()):
        match = _NAME.search(read_text(part / "uevent", 4096)) if (part / "partition").exists() else None
        if match:
            found[match[1]].append(Path("/dev") / part.name)
    doubles = [label for label, parts in found.items() if len(parts) > 1]
    if doubles:
        raise InputError(f"{disk} has two partitions named {doubles[0]}")
    return Target(Path("/dev") / name, next(iter(found["freehold-root"]), None), next(iter(found["freehold-esp"]), None))


def check_foreign(target: Target, running: Sysroot) -> None:
    """Refuse the disk of the running system, and any disk while locked (the guard would). Raises :class:`FreeholdError`."""
    if running.mode() == "locked":
        raise FreeholdError(
            "this system is locked: it writes no other disk", hint="start the machine from an open Freehold stick"
        )
    mounted = {line.split()[0] for line in read_text(running.system / "proc/mounts", 1 << 20).splitlines() if line}
    for part in (target.root, target.esp):
        if part is not None and str(part) in mounted:
            raise FreeholdError(
                f"{part} is mounted here: {target.disk} is this system's own disk, or in use",
                hint="its own disk is repaired from its rescue entry, or from a stick",
            )


@contextlib.contextmanager
def mounted(device: Path, kind: str, *, write: bool) -> Iterator[Path]:
    """``device`` for the block, read-only unless ``write``. :class:`FreeholdError` when it cannot be mounted."""
    place = MOUNTS / device.name
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    extra = "umask=0077" if kind == "vfat" else "" if write else "noload"
    options = ",".join(filter(None, ["rw" if write else "ro", OPTIONS, extra]))
    try:
        run.run(["mount", "-t", kind, "-o", options, device, place], timeout=300)
    except CommandError as error:
        raise FreeholdError(
            f"{device} cannot be mounted: {error.message}",
            hint="the boot partition is made anew by repair-esp; a root file system is checked by `e2fsck -f`",
        ) from None
    try:
        yield place
    finally:
        run.run(["umount", place], check=False, timeout=600)


def make_fat(device: Path) -> None:
    """Make an empty FAT file system on ``device``, as the builder does."""
    run.run(["mkfs.vfat", "-F", "32", "-n", "FREEHOLD", device], timeout=300)


def usable_fat(device: Path) -> bool:
    """Whether ``device`` can be mounted as FAT and read."""
    try:
        with mounted(device, "vfat", write=False) as place:
            list(place.iterdir())
    except (FreeholdError, OSError):
        return False
    return True


@contextlib.contextmanager
def sysroot_of(target: Target, running: Sysroot, *, write: bool, with_esp: bool = True) -> Iterator[Sysroot]:
    """The machine on ``target``, judged by the keychain of the running system. Without an ESP its path is an empty one."""
    with contextlib.ExitStack() as stack:
        root = stack.enter_context(mounted(target.needed_root(), "ext4", write=write))
        esp = MOUNTS / "no-esp"
        esp.mkdir(mode=0o700, parents=True, exist_ok=True)
        if with_esp:
            esp = stack.enter_context(mounted(target.needed_esp(), "vfat", write=write))
        yield running._replace(root=root, esp=esp)
