# SPDX-License-Identifier: Apache-2.0
"""Which deployments stay, and removing the others (``freehold cleanup``).

Order of a removal: boot entry, rescue entry, ref, directory, image, then objects. What boots loses its entries first, so
that a cut never leaves an entry whose content is gone; what a cut leaves behind, the next cleanup removes.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from freehold import atomic
from freehold.device import content, inputs, loader
from freehold.device.sysroot import ID, Sysroot, record
from freehold.errors import FreeholdError
from freehold.monitor import Monitor, step
from freehold.update.manifest import ID_LENGTH, Manifest

_IMAGE_NAME = re.compile(r"[0-9a-f]{64}\Z")
#: Where UKIs are assembled on the ESP: the boot loader does not look there.
ESP_SCRATCH = "EFI/freehold"
#: Where derived deployments are put together.
DERIVE_SCRATCH = "derive"
LAYER_SCRATCH = "layer"


def keep(
    entries: Sequence[loader.Entry], booted: str, pinned: Iterable[str], waiting: Iterable[str] = (), *, tight: bool
) -> set[str]:
    """The ids that stay: running, next, pinned, one to go back to, newer ones that failed (so that they are not
    fetched again), and ``waiting`` downloads. ``tight`` gives up what a healthy running deployment can spare.
    """
    ordered = loader.order(entries)
    kept = {booted, *pinned}
    if ordered:
        kept.add(ordered[0].id)
    running = next((entry for entry in ordered if entry.id == booted), None)
    if not tight:
        kept.update(waiting)
        if running is not None:
            kept.update(
                entry.id
                for entry in ordered
                if entry.state == "bad" and loader.compare_versions(entry.version, running.version) > 0
            )
    if not tight or running is None or running.state != "good":
        others = [entry for entry in ordered if entry.id not in (booted, ordered[0].id)]
        previous = [entry for entry in others if entry.state in ("good", "set-aside")]
        kept.update(entry.id for entry in loader.newest_first(previous)[:1])
    return kept


def cleanup(sysroot: Sysroot, monitor: Monitor, *, tight: bool = False) -> list[str]:
    """Remove what :func:`keep` does not name; the ids removed. The caller holds the deployments' lock.

    Raises :class:`FreeholdError` when the ESP is not there to ask: without its entries nothing is removed.
    """
    booted = sysroot.booted_id()
    entries = loader.listing(sysroot.esp)
    rescues = loader.rescues(sysroot.esp)
    known = {deployment.id: deployment for deployment in sysroot.all_deployments()}
    bootable = {entry.id for entry in entries}
    pinned = [deployment.id for deployment in known.values() if deployment.pinned]
    since = known[booted].manifest.timestamp if booted in known else 0
    downloads = [d.id for d in known.values() if d.id not in bootable and d.manifest.timestamp > since]
    kept = keep(entries, booted, pinned, downloads[:1], tight=tight)
    # A derived deployment stands on a release: the next derivation needs its manifest, image and kernel image.
    for identity in sorted(kept & known.keys()):
        derived = known[identity].manifest.derived
        if derived is not None:
            kept.add(derived.base[:ID_LENGTH])
    referenced = content.references(sysroot)
    # Never let prune see a deployment that stays without a ref, whoever made it.
    for identity in sorted(kept & known.keys() - referenced):
        content.reference(sysroot, identity, known[identity].manifest.commit)
    directories = {name for name in _names(sysroot.deployments) if ID.match(name)}
    images = {name[:ID_LENGTH] for name in _names(sysroot.images) if _IMAGE_NAME.match(name)}
    gone = sorted((bootable | {entry.id for entry in rescues} | directories | images | referenced) - kept)
    with step(monitor, "removing old deployments"):
        for identity in gone:
            mine = [entry for entry in loader.both(entries, rescues) if entry.id == identity]
            _remove(sysroot, identity, mine, identity in referenced)
        _sweep(sysroot)
        for identity in sorted(kept & known.keys()):
            _complete(sysroot, identity, known[identity].manifest, monitor)
        missing = (kept & (bootable | {booted})) - known.keys()
        if missing:
            # Their commit is unknown: pruning could take their objects.
            monitor.message(f"objects stay: no readable manifest for {', '.join(sorted(missing))}")
        elif gone:
            content.prune(sysroot)
    if gone:
        record(sysroot, "cleanup", removed=gone)
    return gone


def _remove(sysroot: Sysroot, identity: str, entries: Iterable[loader.Entry | loader.Rescue], referenced: bool) -> None:
    for entry in entries:
        loader.remove(sysroot.esp, entry)
    if referenced:
        content.release(sysroot, identity)
    directory = sysroot.deployments / identity
    if directory.is_dir():
        # The manifest goes first: without it the directory is no deployment.
        (directory / "manifest.json").unlink(missing_ok=True)
        atomic.fsync_directory(directory)
        shutil.rmtree(directory)
    for name in _names(sysroot.images):
        if _IMAGE_NAME.match(name) and name.startswith(identity):
            (sysroot.images / name).unlink()


def _sweep(sysroot: Sysroot) -> None:
    """What interrupted downloads, derivations and copies left."""
    for name in (DERIVE_SCRATCH, LAYER_SCRATCH):
        if (sysroot.root / name).is_dir():
            shutil.rmtree(sysroot.root / name)
    for directory, prefix in ((sysroot.images, atomic.TEMPORARY_PREFIX), (sysroot.esp / ESP_SCRATCH, "")):
        for name in _names(directory):
            if name.startswith(prefix):
                (directory / name).unlink(missing_ok=True)
    entries = sysroot.esp / loader.LINUX
    for name in _names(entries):
        # What a cut in the middle of a rename left (:func:`loader.move`).
        ours = loader.parse(name) is not None or loader.parse_rescue(name) is not None
        if ours and not (entries / name).stat().st_size:
            (entries / name).unlink()


def _complete(sysroot: Sysroot, identity: str, manifest: Manifest, monitor: Monitor) -> None:
    """Make the list of kernel inputs again where it was lost: a locked boot would end without."""
    try:
        inputs.place(sysroot, manifest)
    except (OSError, FreeholdError) as error:
        monitor.message(f"{identity}: no list of kernel inputs: {error}")


def _names(directory: Path) -> list[str]:
    try:
        return [path.name for path in directory.iterdir()]
    except FileNotFoundError:
        return []


def free_bytes(path: os.PathLike[str]) -> int:
    """Bytes that a file below ``path`` may still take; :class:`FreeholdError` when ``path`` is missing."""
    try:
        info = os.statvfs(path)
    except FileNotFoundError:
        raise FreeholdError(f"{os.fspath(path)} is missing", hint="is this machine's disk mounted?") from None
    return info.f_bavail * info.f_frsize
