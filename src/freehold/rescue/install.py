# SPDX-License-Identifier: Apache-2.0
"""Putting the stick's own release onto a machine's disk, and making the machine a new owner's.

``install``, in this order; a cut leaves what the machine had, and running it again goes on:

1. content into the disk's repository, then its ref, then fs-verity on every object; objects that are there but cannot be
   read, or are something else, are replaced by the stick's;
2. the metadata image under a temporary name, fsverity on, digest compared, renamed;
3. UKI and rescue UKI beside the manifest, signature, then manifest: now it is a deployment, and nothing boots it;
4. the rescue UKI onto the boot partition, then, **commit point**, the UKI with three tries; then what sorts before it is set
   aside, and the boot loader is made whole.

``adopt`` goes on, so that a cut leaves a machine that is *locked*, not open: after 4 the old intent stands, which the new
keychain does not believe.

5. the old /etc is put together as a writable layer for an open machine, beside the one that is there;
6. what waited in the inbox, the floor, and last the intent get other names: from here on the machine starts open.

/var, the owner's directory and every older layer of /etc stay: nothing is deleted.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from freehold import atomic, run
from freehold.boot import machine_files
from freehold.device import content, inputs, loader, prune, stage
from freehold.device.sysroot import Deployment, Sysroot, record
from freehold.errors import FreeholdError, InputError, VerificationError
from freehold.keys.verify import Keychain
from freehold.lock import intent, memory
from freehold.lock.intent import Intent, Standing
from freehold.monitor import Monitor, step
from freehold.rescue import esp, merge
from freehold.update.manifest import UKI_LIMIT, Manifest

#: What of the owner's directory says whose the machine is, in the order in which it goes: the intent last.
ASIDE = ("inbox/intent", "owner/floor", "owner/intent")
#: Said where the disk's own TPM remembers the lock: it does not let a machine go whose intent is gone (docs/memory.md).
CLEAR_TPM = (
    "this machine's TPM remembers that it was locked, and keeps it locked: clear the TPM in the firmware's setup"
    " (or, started from the stick on that machine: tpm2_nvundefine -C o 0x01846668)"
)
#: A deployment is a few hundred files on top of what both have; a disk that is nearly full is told beforehand.
CONTENT_RESERVE = 1 << 30

#: Mounts a configuration image read-only and calls back with its tree.
WithImage = Callable[[Path, Callable[[Path], None]], None]


class Source(NamedTuple):
    """The stick: its system, the deployment that runs on it, and its boot loader."""

    sysroot: Sysroot
    deployment: Deployment
    boot_loader: Path


def source_of(running: Sysroot) -> Source:
    """What runs here, verified. Raises :class:`VerificationError` when its parts are not what was signed."""
    deployment = stage.running_manifest(running)
    for name, wanted in esp.kernel_images(deployment.manifest):
        path = running.deployments / deployment.id / name
        if esp.sha256(path, UKI_LIMIT) != wanted.sha256:
            raise VerificationError(f"{path} is not the boot image that its manifest names", hint="make the stick anew")
    return Source(running, deployment, running.esp / esp.LOADERS[0])


def judge_standing(target: Sysroot, keychain: Keychain) -> Standing:
    """The disk's intent as the new release would see it."""
    root = target.root / "owner"
    path = root / "intent"
    signed = path.read_bytes()[: intent.MAX_SIGNED_BYTES + 1] if path.is_file() else None
    machine = (root / "id").read_text().strip() if (root / "id").is_file() else ""
    return memory.judge(intent.judge(signed, keychain=keychain, machine=machine), signed, memory.load(root))


def check_install(target: Sysroot, source: Source) -> None:
    """Refuse an install that would leave the machine locked for ever, or for which there is no room."""
    standing = judge_standing(target, Keychain.from_directory(source.sysroot.keychain))
    if standing.state == "locked" and standing.intent is None:
        raise FreeholdError(
            f"this stick's keychain does not know the owner of that machine ({standing.reason}): it would start locked",
            hint="a stick with the owner's keychain installs; `freehold rescue adopt` makes the machine a new owner's",
        )
    check_room(target, source.deployment.manifest)


def check_room(target: Sysroot, manifest: Manifest) -> None:
    """Raise :class:`FreeholdError` when the disk has no room for the release."""
    kernels = manifest.uki.size + manifest.rescue.size
    for path, need in (
        (target.root, manifest.image_size + kernels + CONTENT_RESERVE),
        (target.esp, kernels + stage.ESP_RESERVE),
    ):
        free = prune.free_bytes(path)
        if free < need:
            raise FreeholdError(f"{path} has {free >> 20} MiB free, {(need >> 20) + 1} MiB are needed")


def install_steps(source: Source) -> list[str]:
    """What :func:`install` does, for people."""
    manifest = source.deployment.manifest
    return [
        f"copy the content of {manifest.version} ({manifest.id}) into the disk's repository",
        f"copy its image {manifest.image_digest[:16]} and enable fs-verity on it",
        "copy its boot image, rescue image and manifest: a new deployment",
        "copy both images to the boot partition: it boots next, three tries",
        "set aside what would boot before it, complete the boot loader",
        "leave /var, the owner's directory and the other deployments as they are",
    ]


def install(target: Sysroot, source: Source, monitor: Monitor) -> loader.Entry:
    """Steps 1 to 4 of the module's list; the boot entry that is next."""
    manifest = source.deployment.manifest
    with step(monitor, "copying content"):
        content.pull_local(target, source.sysroot.repo, manifest.commit, manifest.id)
    with step(monitor, "verifying content"):
        content.verify_objects(target, manifest.commit)
        renewed = renew_damaged(target, source, manifest.commit)
    if renewed:
        monitor.message(f"{renewed} damaged objects were replaced")
    with step(monitor, "copying image"):
        _copy_image(target, source, manifest)
    directory = target.deployments / manifest.id
    target.deployments.mkdir(exist_ok=True)
    directory.mkdir(exist_ok=True)
    atomic.fsync_directory(target.deployments)
    mine = source.sysroot.deployments / manifest.id
    for name, wanted in esp.kernel_images(manifest):
        if esp.sha256(directory / name, UKI_LIMIT) == wanted.sha256:
            continue
        temporary = directory / f"{atomic.TEMPORARY_PREFIX}{name}"
        shutil.copyfile(mine / name, temporary)
        if esp.sha256(temporary, UKI_LIMIT) != wanted.sha256:
            raise FreeholdError(f"{temporary} does not read back as it was written", hint="check the disk")
        atomic.publish(temporary, directory / name)
    inputs.place(target, manifest)
    atomic.write(directory / "signer", source.deployment.signer + "\n")
    for name in ("manifest.json.sig", "manifest.json"):
        atomic.write(directory / name, (mine / name).read_bytes())
    with step(monitor, "boot partition"):
        return _make_next(target, source, manifest)


def renew_damaged(target: Sysroot, source: Source, commit: str) -> int:
    """Replace objects of ``commit`` on the disk that do not read, or are not what the stick has; how many.

    A release that the disk has already is not copied again by ostree, which looks at names. Each replacement is complete
    and verified before it takes the name.
    """
    renewed = 0
    for checksum in content.objects(target, commit):
        mine = content.object_path(source.sysroot.repo, checksum)
        theirs = content.object_path(target.repo, checksum)
        wanted = source.sysroot.verity.measure(mine)
        if wanted is None:
            # The builder leaves an empty file without, the machine gives each object of its disk one. An object of the
            # stick that lost its content looks the same: it must not replace a good one.
            if mine.stat().st_size or theirs.stat().st_size:
                raise VerificationError(f"{mine} on the stick has no fs-verity", hint="make the stick anew")
            continue
        if _sound(target, theirs, wanted):
            continue
        temporary = theirs.with_name(f"{atomic.TEMPORARY_PREFIX}{theirs.name}")
        temporary.unlink(missing_ok=True)
        run.run(["cp", "-a", "--", mine, temporary])
        target.verity.enable(temporary)
        if target.verity.measure(temporary) != wanted:
            temporary.unlink()
            raise VerificationError(f"{mine} on the stick is damaged", hint="make the stick anew")
        atomic.publish(temporary, theirs)
        renewed += 1
    return renewed


def _sound(target: Sysroot, path: Path, wanted: bytes | None) -> bool:
    """Whether the disk's file is the wanted one, to its last byte: the kernel checks each block as it is read."""
    try:
        if target.verity.measure(path) != wanted:
            return False
        with path.open("rb") as file:
            while file.read(1 << 20):
                pass
    except (OSError, FreeholdError):
        return False
    return True


def _copy_image(target: Sysroot, source: Source, manifest: Manifest) -> None:
    digest = bytes.fromhex(manifest.image_digest)
    final = target.images / manifest.image_digest
    target.images.mkdir(exist_ok=True)
    if _sound(target, final, digest):
        return
    temporary = target.images / f"{atomic.TEMPORARY_PREFIX}{manifest.image_digest}"
    # After a cut between verity and rename it is complete, and can no longer be written to.
    if not _sound(target, temporary, digest):
        temporary.unlink(missing_ok=True)
        shutil.copyfile(source.sysroot.images / manifest.image_digest, temporary)
        target.verity.enable(temporary)
        if target.verity.measure(temporary) != digest:
            temporary.unlink()
            raise VerificationError("the stick's image is not the one that its manifest names", hint="make the stick anew")
    atomic.publish(temporary, final)


def _make_next(target: Sysroot, source: Source, manifest: Manifest) -> loader.Entry:
    (target.esp / loader.LINUX).mkdir(parents=True, exist_ok=True)
    sound = [
        entry for entry in esp.entries(target.esp)
        if entry.id == manifest.id and esp.sha256(target.esp / loader.LINUX / entry.name, UKI_LIMIT) == manifest.uki.sha256
    ]  # fmt: skip
    if not sound:
        for entry in esp.entries(target.esp):
            if entry.id == manifest.id:
                loader.remove(target.esp, entry)
        stage.commit(target, manifest)
    switch = loader.plan_boot(esp.entries(target.esp), manifest.id)
    loader.apply(target.esp, switch)
    wanted = esp.plan(target, Keychain.from_directory(source.sysroot.keychain), source.boot_loader)
    # Only what makes the new one boot, and its rescue entry; old, damaged entries are repair-esp's.
    rescue = f"{loader.LINUX}/{loader.Rescue(manifest.version, manifest.id).name}"
    own = [one for one in wanted.steps if one.target == rescue or not one.target.startswith(loader.LINUX)]
    esp.carry_out(target.esp, esp.Plan(tuple(own), ()))
    record(target, "rescue-install", id=manifest.id, version=manifest.version)
    return switch.chosen


def remembers_lock(target: Sysroot) -> bool:
    """Whether the disk's machine noted at its last boot that its TPM remembers a lock."""
    known = memory.load(target.root / "owner")
    return known is not None and known.lock == "locked"


def old_intent(target: Sysroot) -> Intent | None:
    """What the disk's intent says, whoever signed it: only to find the /etc that it names."""
    try:
        text, _ = intent.split((target.root / "owner/intent").read_bytes()[: intent.MAX_SIGNED_BYTES + 1])
        return intent.parse(text)
    except (OSError, InputError):
        return None


def adopt_steps(source: Source, target: Sysroot) -> list[str]:
    """What :func:`adopt` does beyond :func:`install`, for people."""
    old = old_intent(target)
    named = [name for name in ASIDE if (target.root / name).exists()]
    steps = install_steps(source)
    if old is not None:
        steps.append(f"put the /etc of the intent number {old.serial} together for an open machine; older layers stay")
    steps += [f"set {name} aside under a name with today's date" for name in named]
    steps.append("then the machine starts open, under this stick's keychain")
    return [*steps, CLEAR_TPM] if remembers_lock(target) else steps


def adopt(target: Sysroot, monitor: Monitor, with_image: WithImage, *, factory: Path, now: float | None = None) -> list[str]:
    """Steps 5 and 6, after :func:`install`; the new names of what was set aside, relative to the disk.

    ``factory``: the release's /etc, for the accounts that come with it.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    moved: list[str] = []
    owner = target.root / "owner"
    old = old_intent(target)
    if old is not None:
        with step(monitor, "keeping /etc"):
            moved += _keep_etc(target, old, with_image, factory, stamp)
    for name in ASIDE:
        path = target.root / name
        if path.exists():
            moved.append(set_aside(path, stamp).relative_to(target.root).as_posix())
    if owner.is_dir():
        atomic.write(owner / f"adopted-{stamp}", "".join(f"{name}\n" for name in moved), mode=0o600)
    record(target, "rescue-adopt", aside=moved)
    return moved


def set_aside(path: Path, stamp: str) -> Path:
    """Rename ``path`` durably to a name that is free; the new name."""
    for number in range(100):
        new = path.with_name(f"{path.name}.aside-{stamp}{f'-{number}' if number else ''}")
        if not new.exists():
            path.rename(new)
            atomic.fsync_directory(path.parent)
            return new
    raise FreeholdError(f"{path} was set aside a hundred times today")


def _keep_etc(target: Sysroot, old: Intent, with_image: WithImage, factory: Path, stamp: str) -> list[str]:
    """Make ``owner/etc/0``, which an open machine that was never locked writes to, show what the old intent showed."""
    layers = target.root / "owner/etc"
    layers.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = layers / f"{atomic.TEMPORARY_PREFIX}adopt"
    if fresh.exists():
        shutil.rmtree(fresh)
    fresh.mkdir(mode=0o700)
    upper = fresh / "upper"
    upper.mkdir(mode=0o755)
    image = target.root / "owner/config" / old.config if old.config else None
    if image is not None and image.is_file():
        with_image(image, lambda tree: _lay(tree, upper))
    # While locked nothing was written to the disk; an unlocked machine's changes lie here.
    changed = layers / str(old.serial) / "upper"
    if old.lock != "locked" and changed.is_dir():
        _lay(changed, upper)
    state, _ = machine_files.load(target.state)
    machine = target.root / "owner/id"
    machine_files.apply(state, machine.read_text().strip(), factory, upper)
    final = layers / "0"
    moved = [set_aside(final, stamp).relative_to(target.root).as_posix()] if final.exists() else []
    atomic.publish(fresh, final)
    return moved


def _lay(layer: Path, upper: Path) -> None:
    merge.lay_over(layer, upper)
