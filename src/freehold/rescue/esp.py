# SPDX-License-Identifier: Apache-2.0
"""Making a boot partition whole again from what the root file system has.

What goes there is verified before: a UKI, normal or rescue, has the SHA-256 that its deployment's signed manifest names, the
boot loader is the one that this very system was started by. Firmware verifies both again.

Order, so that a cut leaves a boot partition no worse than before: the UKIs, each under a name that the boot loader does
not look at and then renamed; the boot loader's configuration; the boot loader itself, whose presence makes the rest count.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from freehold import atomic
from freehold.device import loader, prune
from freehold.device.loader import Entry, Rescue
from freehold.device.sysroot import Deployment, Sysroot
from freehold.errors import FreeholdError, InputError
from freehold.files import read_bytes
from freehold.keys.verify import Keychain, verify_document
from freehold.update import rescue_entry
from freehold.update.manifest import MANIFEST_LIMIT, SIGNATURE_LIMIT, UKI_LIMIT, Manifest, Uki

LOADERS = ("EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi")
LOADER_LIMIT = 16 << 20
#: The boot loader's own configuration: a menu for who holds a key down, no editor (the command line is sealed).
CONFIGURATION = {"loader/loader.conf": "timeout 0\neditor no\nconsole-mode keep\n", "loader/entries.srel": "type1\n"}


class Step(NamedTuple):
    """One file to write: where on the ESP, from which file or text, and why."""

    target: str
    source: Path | bytes
    why: str


class Plan(NamedTuple):
    """What would be written, in order, and what cannot be repaired from here."""

    steps: tuple[Step, ...]
    complaints: tuple[str, ...]

    def lines(self) -> list[str]:
        """For people."""
        return [f"write {step.target}: {step.why}" for step in self.steps] + [f"! {text}" for text in self.complaints]


def genuine(sysroot: Sysroot, keychain: Keychain) -> tuple[list[Deployment], list[str]]:
    """Deployments whose manifest a release key of ``keychain`` signed, newest first; complaints about the others."""
    good, complaints = [], []
    for deployment in sysroot.all_deployments():
        directory = sysroot.deployments / deployment.id
        try:
            data = read_bytes(directory / "manifest.json", MANIFEST_LIMIT)
            signature = read_bytes(directory / "manifest.json.sig", SIGNATURE_LIMIT)
        except (OSError, FreeholdError) as error:
            complaints.append(f"{deployment.manifest.version} ({deployment.id}): {error}")
            continue
        verdict = verify_document(data, signature, keychain=keychain)
        if verdict.ok:
            good.append(deployment)
        else:
            complaints.append(f"{deployment.manifest.version} ({deployment.id}) is not believed: {verdict.reason}")
    return good, complaints


def sha256(path: Path, limit: int) -> str:
    """SHA-256 (hex) of the file ``path``; "" when it is missing, no file, or larger than ``limit`` bytes."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > limit:
            return ""
        with path.open("rb") as source:
            return hashlib.file_digest(source, "sha256").hexdigest()
    except OSError:
        # A damaged file system answers so.
        return ""


def entries(esp: Path) -> list[Entry]:
    """The boot entries in boot order, none where there is no directory of them."""
    return loader.listing(esp) if (esp / loader.LINUX).is_dir() else []


def kernel_images(manifest: Manifest) -> tuple[tuple[str, Uki], ...]:
    """The boot images beside a manifest: file name, and what the manifest says of it."""
    return (rescue_entry.FILE, manifest.rescue), ("uki.efi", manifest.uki)


def plan(sysroot: Sysroot, keychain: Keychain, boot_loader: Path | None) -> Plan:
    """What ``sysroot.esp`` lacks. ``boot_loader``: a good one, or ``None`` to use the copy that is there."""
    steps: list[Step] = []
    good, complaints = genuine(sysroot, keychain)
    found = entries(sysroot.esp)
    for deployment in good:
        manifest = deployment.manifest
        directory = sysroot.deployments / deployment.id
        # A damaged one keeps its name, and so its place and its tries.
        mine = [entry for entry in found if entry.id == deployment.id]
        named = {
            "uki.efi": [entry.name for entry in mine] or [Entry(manifest.version, manifest.id, loader.TRIES).name],
            rescue_entry.FILE: [Rescue(manifest.version, manifest.id).name],
        }
        for file, wanted in kernel_images(manifest):
            what = "boot" if file == "uki.efi" else "rescue"
            targets = [f"{loader.LINUX}/{name}" for name in named[file]]
            if any(sha256(sysroot.esp / target, UKI_LIMIT) == wanted.sha256 for target in targets):
                continue
            if sha256(directory / file, UKI_LIMIT) != wanted.sha256:
                said = f"no sound copy of its {what} image is on this disk"
                complaints.append(f"{manifest.version} ({deployment.id}): {said}")
                continue
            why = "damaged" if (sysroot.esp / targets[0]).exists() else "missing"
            steps.append(Step(targets[0], directory / file, f"the {what} image of {manifest.version} is {why}"))
    for name, text in CONFIGURATION.items():
        if not (sysroot.esp / name).is_file() or not (sysroot.esp / name).stat().st_size:
            steps.append(Step(name, text.encode(), "missing"))
    steps += _loader_steps(sysroot.esp, boot_loader, complaints)
    if not good:
        complaints.append("no deployment on this disk is believed: there is nothing to make boot entries from")
    return Plan(tuple(steps), tuple(complaints))


def _loader_steps(esp: Path, boot_loader: Path | None, complaints: list[str]) -> list[Step]:
    digests = {name: sha256(esp / name, LOADER_LIMIT) for name in LOADERS}
    if boot_loader is None:
        # The one through which we came up is the one at the place that firmware knows by itself.
        source = next((esp / name for name in LOADERS if digests[name] and (esp / name).stat().st_size), None)
        if source is None:
            complaints.append(
                "the boot partition has no boot loader to copy: `freehold rescue repair-esp` from a stick"
            )
            return []
        return [Step(name, source, "missing") for name in LOADERS if not digests[name]]
    wanted = sha256(boot_loader, LOADER_LIMIT)
    if not wanted:
        raise InputError(f"{boot_loader} is no boot loader", hint="the stick's own boot partition has it")
    return [
        Step(name, boot_loader, "differs from the stick's" if digests[name] else "missing")
        for name in LOADERS
        if digests[name] != wanted
    ]


def needed_bytes(steps: Sequence[Step]) -> int:
    """How much room the steps take."""
    return sum(len(step.source) if isinstance(step.source, bytes) else step.source.stat().st_size for step in steps)


def carry_out(esp: Path, wanted: Plan) -> None:
    """Write what is planned. Raises :class:`FreeholdError` when it does not fit or does not read back."""
    need, free = needed_bytes(wanted.steps) + (1 << 20), prune.free_bytes(esp)
    if need > free:
        raise FreeholdError(f"the boot partition has {free >> 20} MiB free, {(need >> 20) + 1} MiB are needed")
    scratch = esp / prune.ESP_SCRATCH
    scratch.mkdir(parents=True, exist_ok=True)
    for number, step in enumerate(wanted.steps):
        target = esp / step.target
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = scratch / f"repair-{number}.tmp"
        expected = _write(step.source, temporary)
        if sha256(temporary, UKI_LIMIT) != expected:
            raise FreeholdError(
                f"{target} does not read back as it was written", hint="this disk is failing: copy your data"
            )
        atomic.fsync_directory(scratch)
        loader.move(temporary, target)


def _write(source: Path | bytes, target: Path) -> str:
    """Write and flush; the SHA-256 of what was read."""
    digest = hashlib.sha256()
    with target.open("wb") as writer:
        if isinstance(source, bytes):
            digest.update(source)
            writer.write(source)
        else:
            with source.open("rb") as reader:
                while block := reader.read(1 << 20):
                    digest.update(block)
                    writer.write(block)
        writer.flush()
        os.fsync(writer.fileno())
        os.posix_fadvise(writer.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return digest.hexdigest()
