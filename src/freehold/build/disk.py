# SPDX-License-Identifier: Apache-2.0
"""Sealed release → bootable disk: GPT with an ESP and a root partition; no mount, no loop device, no VM."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from freehold import atomic
from freehold.build import rootfs, signing
from freehold.build.enrol import DIRECTORY, NOTHING, SecureBootKeys
from freehold.build.store import Store
from freehold.build.tools import Tools
from freehold.build.uki import sign_efi
from freehold.errors import InputError
from freehold.keys.x509 import Signer
from freehold.monitor import Monitor, step
from freehold.seal import kernel_inputs
from freehold.update import rescue_entry
from freehold.update.manifest import ID_LENGTH

MIB = 1 << 20
#: Three deployments, and room for a fourth while it is staged: a pair of boot images, normal and rescue, is about 27 MiB.
ESP_SIZE = 512 * MIB
#: First partition's start, and what GPT needs at the end.
ALIGNMENT = MIB
DEFAULT_SIZE = 8 << 30
#: Boots that a new deployment may fail before the loader goes back to the one before it.
TRIES = 3
BOOT_LOADER = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi"
ESP_TYPE = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
LINUX_TYPE = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
FORMATS = {".qcow2": "qcow2"}
#: What a release has: what each deployment's directory gets of it, and the metadata image.
BOOTABLE = ("uki.efi", rescue_entry.FILE, "manifest.json", "manifest.json.sig")
PARTS = (*BOOTABLE, "image")


@dataclass(frozen=True)
class Disk:
    """A bootable disk image and the release that is on it."""

    path: Path
    release: str
    size: int
    format: str


def uki_name(name: str, version: str, digest: str, *, tries: int | None = TRIES) -> str:
    """A UKI's file name on the ESP, with boot counting (Boot Loader Specification). Pure."""
    counter = f"+{tries}" if tries is not None else ""
    return f"freehold-{version}-{digest[:16]}{counter}.efi"


def derived_uuid(*parts: str) -> str:
    """A UUID that depends on ``parts`` only, so that equal releases give equal disks. Pure."""
    return str(uuid.UUID(hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]))


def loader_conf(timeout: int, enrol: str = "off") -> str:
    """systemd-boot's configuration. The command line is sealed, so there is nothing to edit. Pure.

    ``enrol``: what it does with keys on the disk when the machine is in setup mode, in its own words.
    """
    keys = "" if enrol == "off" else f"secure-boot-enroll {enrol}\n"
    return f"timeout {timeout}\neditor no\nconsole-mode keep\n{keys}"


def _make_esp(
    tools: Tools, release: Path, manifest: dict[str, object], target: Path, signer: Signer, timeout: int, keys: SecureBootKeys
) -> None:
    staging = target.parent / "esp"
    for directory in ("EFI/BOOT", "EFI/Linux", "EFI/systemd", "loader"):
        (staging / directory).mkdir(parents=True)
    loader = staging / "EFI/BOOT/BOOTX64.EFI"
    unsigned = target.parent / "systemd-boot.efi"
    shutil.copy(tools.root / BOOT_LOADER.lstrip("/"), unsigned)
    sign_efi(tools, unsigned, loader, signer)
    shutil.copy(loader, staging / "EFI/systemd/systemd-bootx64.efi")
    name = uki_name(str(manifest["name"]), str(manifest["version"]), str(manifest["image_digest"]))
    shutil.copy(release / "uki.efi", staging / "EFI/Linux" / name)
    rescue = rescue_entry.name(str(manifest["version"]), str(manifest["image_digest"])[:ID_LENGTH])
    shutil.copy(release / rescue_entry.FILE, staging / "EFI/Linux" / rescue)
    (staging / "loader/loader.conf").write_text(loader_conf(timeout, keys.enrolment.mode))
    for update, content in keys.files(int(str(manifest["timestamp"]))).items():
        (staging / DIRECTORY).mkdir(parents=True, exist_ok=True)
        (staging / DIRECTORY / update).write_bytes(content)
    (staging / "loader/entries.srel").write_text("type1\n")
    with target.open("wb") as file:
        file.truncate(ESP_SIZE)
    serial = derived_uuid("esp", str(manifest["image_digest"]))[:8]
    environment = {"SOURCE_DATE_EPOCH": str(manifest["timestamp"]), "MTOOLS_SKIP_CHECK": "1"}
    tools.run(["mkfs.vfat", "-F", "32", "-n", "FREEHOLD", "-i", serial, "--invariant", target], binds=[target.parent])
    top = sorted(path for path in staging.iterdir())
    tools.run(["mcopy", "-s", "-b", "-Q", "-i", target, *top, "::/"], binds=[target.parent], env=environment)
    shutil.rmtree(staging)


def _make_root(
    tools: Tools, store: Store, release: Path, manifest: dict[str, object], target: Path, size: int, ignition: bytes | None,
    monitor: Monitor,
) -> None:  # fmt: skip
    staging = target.parent / "root"
    digest, commit = str(manifest["image_digest"]), str(manifest["commit"])
    repo = staging / "repo"
    repo.mkdir(parents=True)
    ref = f"freehold/deployment/{digest[:16]}"
    binds = [staging, store.repo]
    tools.run(["ostree", f"--repo={repo}", "init", "--mode=bare"], binds=binds)
    tools.run(["ostree", f"--repo={repo}", "config", "set", "core.fsync", "false"], binds=binds)
    tools.run(["ostree", f"--repo={repo}", "pull-local", "--disable-fsync", store.repo, commit], binds=binds)
    tools.run(["ostree", f"--repo={repo}", "refs", f"--create={ref}", commit], binds=binds)
    tools.run(["ostree", f"--repo={repo}", "config", "unset", "core.fsync"], binds=binds)
    tools.run(["ostree", f"--repo={repo}", "config", "set", "ex-integrity.fsverity", "yes"], binds=binds)
    objects = [
        path.parent.name + path.name.removesuffix(".file")
        for path in (repo / "objects").glob("??/*.file")
        if not path.is_symlink() and path.stat().st_size
    ]
    protected = rootfs.stage_objects(store.repo, repo, objects, monitor)
    (staging / "images").mkdir()
    protected.append(
        rootfs.Protected(f"/images/{digest}", rootfs.protect(release / "image", staging / "images" / digest))
    )
    deployment = staging / "deployments" / digest[:16]
    deployment.mkdir(parents=True)
    # The boot images are there twice: on the ESP, and here, from where a wiped ESP is made again.
    for name in BOOTABLE:
        shutil.copy(release / name, deployment / name)
    policy = signing.loadable_policy(release)
    if policy:
        (deployment / kernel_inputs.FILE).write_bytes(policy)
    if ignition is not None:
        (staging / "provision.ign").write_bytes(ignition)
        (staging / "provision.ign").chmod(0o600)
    for directory, mode in (("var", 0o755), ("state", 0o700), ("inbox", 0o700)):
        (staging / directory).mkdir(mode=mode)
    rootfs.make_ext4(tools, staging, target, protected, size=size, seed=derived_uuid("root", digest))
    shutil.rmtree(staging)


def _copy_sparse(source: Path, target: Path, offset: int) -> None:
    with source.open("rb") as reader, target.open("r+b") as writer:
        position = 0
        end = source.stat().st_size
        while position < end:
            try:
                start = os.lseek(reader.fileno(), position, os.SEEK_DATA)
            except OSError:  # nothing but a hole is left
                return
            stop = os.lseek(reader.fileno(), start, os.SEEK_HOLE)
            while start < stop:
                done = os.copy_file_range(reader.fileno(), writer.fileno(), stop - start, start, offset + start)
                if done == 0:
                    break
                start += done
            position = stop


def identity_of(digest: str, *, stick: bool) -> str:
    """What the ids of a disk are derived from: a stick must differ from the disk of a machine with the same release. Pure."""
    return f"{digest} stick" if stick else digest


def partition_table(size: int, identity: str) -> str:
    """sfdisk's script for a disk of ``size`` bytes; its ids follow from ``identity``. Pure."""
    esp, root = ESP_SIZE // 512, (size - ESP_SIZE - 2 * ALIGNMENT) // 512
    start = ALIGNMENT // 512
    return (
        f"label: gpt\nlabel-id: {derived_uuid('disk', identity)}\n"
        f"start={start}, size={esp}, type={ESP_TYPE}, uuid={derived_uuid('esp-part', identity)}, name=freehold-esp\n"
        f"start={start + esp}, size={root}, type={LINUX_TYPE}, uuid={derived_uuid('root-part', identity)}, name=freehold-root\n"
    )


def make_disk(
    tools: Tools, store: Store, release: Path, target: Path, *, signer: Signer, monitor: Monitor, size: int = DEFAULT_SIZE,
    ignition: bytes | None = None, timeout: int = 0, keys: SecureBootKeys = NOTHING, stick: bool = False,
) -> Disk:  # fmt: skip
    """Make the disk ``target`` (raw, or qcow2 by its suffix) from a sealed release.

    ``ignition`` is a provisioning file for the first boot; ``keys`` go into the firmware then; ``stick``: for starting
    a machine that has the same release on its own disk (docs/getting-back-in.md). Raises :class:`InputError` when
    ``size`` is too small or a part of the release is missing; nothing is left at ``target`` when anything fails.
    """
    if missing := [name for name in PARTS if not (release / name).is_file()]:
        hint = "build it again: it was interrupted, or made by an older freehold"
        raise InputError(f"{release.name} is no whole release: no {missing[0]} in {release}", hint=hint)
    manifest = json.loads((release / "manifest.json").read_text())
    if size < 4 << 30 or size % MIB:
        raise InputError("a disk has at least 4 GiB, in whole MiB", hint="for example --size 8G")
    work = store.scratch(f"disk-{os.getpid()}")
    temporary = target.with_name(f".{target.name}.partial")
    try:
        with step(monitor, "boot partition"):
            _make_esp(tools, release, manifest, work / "esp.img", signer, timeout, keys)
        with step(monitor, "root file system"):
            room = size - ESP_SIZE - 2 * ALIGNMENT
            _make_root(tools, store, release, manifest, work / "root.img", room, ignition, monitor)
        with step(monitor, "disk"):
            raw = work / "disk.raw"
            with raw.open("wb") as file:
                file.truncate(size)
            script = partition_table(size, identity_of(str(manifest["image_digest"]), stick=stick)).encode()
            tools.run(["sfdisk", "--quiet", raw], binds=[work], stdin=script)
            _copy_sparse(work / "esp.img", raw, ALIGNMENT)
            _copy_sparse(work / "root.img", raw, ALIGNMENT + ESP_SIZE)
            kind = FORMATS.get(target.suffix, "raw")
            if kind == "raw":
                with temporary.open("wb") as file:
                    file.truncate(size)
                _copy_sparse(raw, temporary, 0)
            else:
                converted = work / "disk.converted"
                tools.run(["qemu-img", "convert", "-f", "raw", "-O", kind, raw, converted], binds=[work])
                shutil.move(converted, temporary)
            atomic.publish(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
        shutil.rmtree(work, ignore_errors=True)
    return Disk(target, release.name, size, kind)
