# SPDX-License-Identifier: Apache-2.0
"""Bringing a release onto the machine, beside the running one.

Commit order, so that a power cut anywhere leaves the machine booting what it booted before, and the next try goes on:

1. stream pointer and manifest, signatures checked, the release judged (nothing is written);
2. room on both file systems (old deployments are removed only when it is short);
3. content into the repository, then a ref, then fs-verity on every object;
4. the metadata image under a temporary name, fs-verity on, digest compared, renamed;
5. UKI and, made out of it, rescue UKI beside the deployment's manifest, SHA-256 of both compared; the list of kernel inputs,
   made out of the image; signature, then manifest: now it is a deployment;
6. the rescue UKI copied to a place on the ESP where the boot loader does not look, flushed, read back and compared, and
   renamed into ``EFI/Linux``: one more entry in the menu, behind every deployment's;
7. **commit point**: the same with the UKI itself, whose name has three tries.

Everything before 6 is invisible to the boot loader, and what 6 adds boots only when somebody chooses it, or when nothing
else is left.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from freehold import atomic
from freehold.device import content, inputs, loader, prune
from freehold.device.sysroot import Deployment, Sysroot, UpdateConfig, read_json, record
from freehold.errors import FreeholdError, InputError, NotHereError, VerificationError
from freehold.monitor import Monitor, step
from freehold.update import fetch, parts, rescue_entry
from freehold.update.manifest import Manifest, Uki, canonical

#: Bytes that stay free on the root file system beside the image (ostree keeps a reserve of its own for objects).
ROOT_RESERVE = 64 << 20
#: Bytes that stay free on the ESP: FAT needs some, and so does the boot loader.
ESP_RESERVE = 1 << 20
#: A link that the early step makes: a second disk may have a partition of the same name.
ESP_DEVICE = "run/freehold/esp"


@dataclass(frozen=True)
class Judgement:
    """What to do with an offered release: ``new``, ``current`` (it runs), ``staged`` or ``rejected`` (failed here)."""

    verdict: str
    reason: str


def judge(offered: Manifest, running: Manifest, entries: list[loader.Entry]) -> Judgement:
    """Whether ``offered`` is an update of ``running``. Pure.

    Raises :class:`VerificationError` for one that must not be installed by ``upgrade``: older, of another
    product or architecture, or sorted behind the running one by the boot loader.
    """
    if offered.image_digest == running.image_digest:
        return Judgement("current", f"{running.version} is the newest")
    if offered.name != running.name:
        raise _refused(f"the stream is of {offered.name}, this machine runs {running.name}", "check update.stream")
    if offered.architecture != running.architecture:
        raise _refused(f"the release is for {offered.architecture}, this machine is {running.architecture}", None)
    if offered.timestamp <= running.timestamp:
        raise _refused(
            f"the server offers {offered.version}, which is not newer than the running {running.version}",
            f"`freehold deploy {offered.version}` goes back on purpose",
        )
    mine = [entry for entry in loader.order(entries) if entry.id == offered.id]
    if mine and mine[0].state in ("bad", "set-aside"):
        why = "did not come up healthy" if mine[0].state == "bad" else "was rolled back"
        return Judgement("rejected", f"{offered.version} {why} on this machine; waiting for a newer release")
    if mine:
        return Judgement("staged", f"{offered.version} is staged and boots next")
    for entry in [loader.Entry(running.version, running.id), *(entry for entry in entries if entry.left != 0)]:
        if loader.compare_versions(offered.version, entry.version) <= 0:
            raise _refused(
                f"the boot loader would sort {offered.version} behind {entry.version}, which is here already",
                "the publisher must give each release a higher version",
            )
    return Judgement("new", f"{offered.version} is new")


def running_manifest(sysroot: Sysroot) -> Deployment:
    """The running deployment, its manifest's signature checked: root may have rewritten the copy on the disk."""
    from freehold.device import base

    identity = sysroot.booted_id()
    try:
        found, _ = base.read(sysroot, identity)
    except VerificationError as error:
        raise VerificationError(f"the running deployment: {error.message}", hint=error.hint) from None
    if found.manifest.image_digest != sysroot.booted():
        raise VerificationError(f"the manifest of {identity} is another deployment's")
    return Deployment(identity, found.manifest, found.signer, (sysroot.deployments / identity / "pinned").exists())


def look(sysroot: Sysroot, config: UpdateConfig) -> fetch.Offer:
    """What the configured stream offers, verified by the sealed keychain."""
    from freehold.keys.verify import Keychain

    return fetch.offer(config.url, config.stream, Keychain.from_directory(sysroot.keychain))


def note(sysroot: Sysroot, **changes: object) -> None:
    """Change what :func:`remember` wrote (informational)."""
    atomic.write(sysroot.state / "update.json", canonical({**read_json(sysroot.state / "update.json"), **changes}) + b"\n")


def remember(sysroot: Sysroot, config: UpdateConfig, offered: Manifest | None, *, held: str = "") -> None:
    """Note the outcome of a check for ``status``: ``offered`` is what could be installed, ``held`` why it was not
    (informational).
    """
    available = {"version": offered.version, "id": offered.id, "timestamp": offered.timestamp} if offered else None
    sysroot.state.mkdir(parents=True, exist_ok=True)
    data = {"last_check": int(time.time()), "stream": config.stream, "available": available, "held": held[:500] or None}
    atomic.write(sysroot.state / "update.json", canonical(data) + b"\n")


def ensure_esp(sysroot: Sysroot) -> list[loader.Entry]:
    """The boot entries; the ESP is mounted when no unit did."""
    try:
        return loader.listing(sysroot.esp)
    except NotHereError:
        device = sysroot.system / ESP_DEVICE
        if not device.exists():
            raise
    from freehold.run import run

    run(["mount", "-o", "umask=0077,nosuid,nodev,noexec", device, sysroot.esp], timeout=60)
    return loader.listing(sysroot.esp)


def download(sysroot: Sysroot, offer: fetch.Offer, config: UpdateConfig, monitor: Monitor) -> None:
    """Steps 2 to 5: everything of ``offer`` onto the machine, nothing bootable yet. The caller holds the lock."""
    manifest = offer.manifest
    make_room(sysroot, manifest, monitor)
    with step(monitor, "fetching content"):
        content.pull(sysroot, f"{config.url}/repo", manifest.commit, manifest.id)
    with step(monitor, "verifying content"):
        content.verify_objects(sysroot, manifest.commit)
    base = f"{config.url}/releases/{manifest.version}"
    with step(monitor, "fetching image"):
        _fetch_image(sysroot, manifest, f"{base}/image", monitor)
    directory = sysroot.deployments / manifest.id
    if not directory.is_dir():
        sysroot.deployments.mkdir(exist_ok=True)
        directory.mkdir()
        atomic.fsync_directory(sysroot.deployments)
    with step(monitor, "fetching kernel"):
        _fetch_uki(directory, manifest, f"{base}/uki.efi", monitor)
        _fetch_rescue(directory, manifest, f"{base}/{rescue_entry.PARTS}")
    inputs.place(sysroot, manifest)
    atomic.write(directory / "signer", offer.signer + "\n")
    atomic.write(directory / "manifest.json.sig", offer.signature)
    # Last: a directory without a manifest is no deployment.
    atomic.write(directory / "manifest.json", offer.manifest_bytes)


def commit(sysroot: Sysroot, manifest: Manifest) -> loader.Entry:
    """Steps 6 and 7: make the downloaded deployment of ``manifest`` the next to boot.

    Raises :class:`VerificationError` when the firmware revoked its signer: three tries of it would only lead back.
    """
    from freehold.device import dbx

    entry = loader.Entry(manifest.version, manifest.id, loader.TRIES)
    directory = sysroot.deployments / manifest.id
    reason = dbx.refusal(sysroot, directory / "uki.efi")
    if reason:
        raise _refused(f"{manifest.version} would not start here: {reason}", "`freehold dbx show` lists what is revoked")
    rescue = loader.Rescue(manifest.version, manifest.id)
    _place(sysroot, directory / rescue_entry.FILE, manifest.rescue, rescue.name)
    _place(sysroot, directory / "uki.efi", manifest.uki, entry.name)
    # The commit point is passed. Both stay beside the manifest: what a wiped boot partition is made from again.
    record(sysroot, "staged", id=manifest.id, version=manifest.version)
    return entry


def _place(sysroot: Sysroot, source: Path, wanted: Uki, name: str) -> None:
    """Bring one boot image onto the ESP under ``name``, durably and whole or not at all."""
    target = sysroot.esp / loader.LINUX / name
    scratch = sysroot.esp / prune.ESP_SCRATCH
    temporary = scratch / f"{name}.tmp"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        _copy(source, temporary)
        if _sha256(temporary) != wanted.sha256:
            raise FreeholdError(
                f"{temporary} does not read back as it was written", hint="check the disk; the machine is unchanged"
            )
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise FreeholdError(
            f"the boot partition cannot be written: {error.strerror}", hint="the machine is unchanged"
        ) from None
    atomic.fsync_directory(scratch)
    loader.move(temporary, target)


def _refused(message: str, hint: str | None) -> VerificationError:
    return VerificationError(message, hint=f"the machine is unchanged; {hint}" if hint else "the machine is unchanged")


def _shortage(sysroot: Sysroot, manifest: Manifest) -> str:
    kernels = manifest.uki.size + manifest.rescue.size
    for path, need in (
        (sysroot.root, manifest.image_size + kernels + ROOT_RESERVE),
        (sysroot.esp, kernels + ESP_RESERVE),
    ):
        free = prune.free_bytes(path)
        if free < need:
            return f"{path} has {free >> 20} MiB free, {(need >> 20) + 1} MiB are needed"
    return ""


def make_room(sysroot: Sysroot, manifest: Manifest, monitor: Monitor) -> None:
    """Room for the image and the UKI of ``manifest``; old deployments go when it is short. :class:`FreeholdError`: no room."""
    for tight in (False, True):
        if not _shortage(sysroot, manifest):
            return
        prune.cleanup(sysroot, monitor, tight=tight)
    shortage = _shortage(sysroot, manifest)
    if shortage:
        raise FreeholdError(f"no room for {manifest.version}: {shortage}", hint="`freehold unpin` or free some space")


def _fetch_image(sysroot: Sysroot, manifest: Manifest, url: str, monitor: Monitor) -> None:
    target = sysroot.images / manifest.image_digest
    digest = bytes.fromhex(manifest.image_digest)
    if target.is_file() and sysroot.verity.measure(target) == digest:
        return
    sysroot.images.mkdir(exist_ok=True)
    temporary = sysroot.images / f"{atomic.TEMPORARY_PREFIX}{manifest.image_digest}"
    # After a cut between verity and rename it is complete, and can no longer be written to.
    if not (temporary.is_file() and sysroot.verity.measure(temporary) == digest):
        size = manifest.image_size
        fetch.download(url, temporary, size, progress=lambda done: monitor.progress(done, size, "bytes"))
        sysroot.verity.enable(temporary)
        if sysroot.verity.measure(temporary) != digest:
            temporary.unlink()
            raise VerificationError(f"{url}: not the image that the manifest names", hint=fetch.UNCHANGED)
    atomic.publish(temporary, target)


def _fetch_uki(directory: Path, manifest: Manifest, url: str, monitor: Monitor) -> None:
    target = directory / "uki.efi"
    if target.is_file() and _sha256(target) == manifest.uki.sha256:
        return
    temporary = directory / f"{atomic.TEMPORARY_PREFIX}uki.efi"
    size = manifest.uki.size
    fetch.download(url, temporary, size, progress=lambda done: monitor.progress(done, size, "bytes"))
    if _sha256(temporary) != manifest.uki.sha256:
        temporary.unlink()
        raise VerificationError(f"{url}: not the kernel image that the manifest names", hint=fetch.UNCHANGED)
    atomic.publish(temporary, target)


def _fetch_rescue(directory: Path, manifest: Manifest, url: str) -> None:
    """The rescue UKI out of the UKI that is here and verified, and what the server has more."""
    target = directory / rescue_entry.FILE
    if target.is_file() and _sha256(target) == manifest.rescue.sha256:
        return
    described = fetch.fetch(url, parts.LIMIT)
    try:
        made = parts.rebuild((directory / "uki.efi").read_bytes(), described, manifest.rescue.size)
    except InputError as error:
        raise VerificationError(f"{url}: {error.message}", hint=fetch.UNCHANGED) from None
    if hashlib.sha256(made).hexdigest() != manifest.rescue.sha256:
        raise VerificationError(f"{url}: not the rescue image that the manifest names", hint=fetch.UNCHANGED)
    atomic.write(target, made)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        while block := reader.read(1 << 20):
            writer.write(block)
        writer.flush()
        os.fsync(writer.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as source:
        # Ask the disk, not the cache, where the kernel lets us.
        os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(source, "sha256").hexdigest()
