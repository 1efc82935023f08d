# SPDX-License-Identifier: Apache-2.0
"""The release that a derived deployment stands on: found, verified, its kernel images kept.

Everything that goes into a derived deployment unread comes from here, so everything here is checked against the release's
signed manifest first: the image by its fs-verity digest, the kernel image by its SHA-256. The
repository's commit is believed for nothing but keeping objects.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from freehold import atomic
from freehold.device import loader
from freehold.device.sysroot import Sysroot
from freehold.errors import FreeholdError, NotHereError, VerificationError
from freehold.files import read_bytes
from freehold.keys import verity
from freehold.keys.verify import Keychain
from freehold.seal import erofs
from freehold.update import believe, rescue_entry
from freehold.update.manifest import (
    ID_LENGTH,
    IMAGE_LIMIT,
    MANIFEST_LIMIT,
    SIGNATURE_LIMIT,
    Manifest,
    Uki,
    sha256,
)

UKI = "uki.efi"


class Base(NamedTuple):
    """A verified release on this machine. ``fingerprint`` is the SHA-256 of its manifest."""

    manifest: Manifest
    fingerprint: str


def read(sysroot: Sysroot, identity: str) -> tuple[believe.Believed, bytes]:
    """The manifest of deployment ``identity``, verified by the sealed keychain, with its bytes. Raises as :func:`believed`."""
    return believed(sysroot, identity, Keychain.from_directory(sysroot.keychain), sysroot.machine)


def believed(
    sysroot: Sysroot, identity: str, keychain: Keychain, machine: str | None
) -> tuple[believe.Believed, bytes]:
    """The manifest of deployment ``identity``, verified for ``machine`` (its id), with its bytes.

    :class:`NotHereError` when it is missing, :class:`VerificationError` when it is not genuine.
    """
    directory = sysroot.deployments / identity
    try:
        data = read_bytes(directory / "manifest.json", MANIFEST_LIMIT)
        signature = read_bytes(directory / "manifest.json.sig", SIGNATURE_LIMIT)
    except OSError as error:
        raise NotHereError(f"deployment {identity} has no manifest: {error.strerror}") from None
    found = believe.manifest(data, signature, keychain, machine, f"the manifest of deployment {identity}")
    if found.manifest.id != identity:
        raise VerificationError(f"the manifest in {directory} is another deployment's")
    return found, data


def of(sysroot: Sysroot, identity: str) -> Base:
    """The release under deployment ``identity``: itself, or what it was derived from. Raises as :func:`read`."""
    found, data = read(sysroot, identity)
    derived = found.manifest.derived
    if derived is None:
        return Base(found.manifest, sha256(data))
    below, data = read(sysroot, derived.base[:ID_LENGTH])
    if below.manifest.derived is not None or sha256(data) != derived.manifest:
        raise VerificationError(f"the release under deployment {identity} is not the one that it was made from")
    return Base(below.manifest, sha256(data))


def next_to_boot(sysroot: Sysroot, entries: Sequence[loader.Entry]) -> Base:
    """The release under what boots next: a change of requests goes on top of a waiting update."""
    return of(sysroot, entries[0].id if entries else sysroot.booted_id())


def downloaded(sysroot: Sysroot, version: str) -> Base:
    """The newest release ``version`` on this machine, bootable or not. :class:`NotHereError` when there is none."""
    for deployment in sysroot.all_deployments():
        if deployment.manifest.derived is None and deployment.manifest.version == version:
            return of(sysroot, deployment.id)
    raise NotHereError(
        f"release {version} is not on this machine", hint="`freehold upgrade --download-only` brings the newest"
    )


def answered(sysroot: Sysroot, entries: Sequence[loader.Entry], release: str) -> Base:
    """The release to make a signed deployment from: the one with the image digest ``release`` when it is here and newer than what
    boots next (an update that was held), else the latter.
    """
    base = next_to_boot(sysroot, entries)
    if base.manifest.image_digest == release or sysroot.deployment(release[:ID_LENGTH]) is None:
        return base
    other = of(sysroot, release[:ID_LENGTH])
    return other if other.manifest.timestamp > base.manifest.timestamp else base


def as_releases(sysroot: Sysroot, entries: Sequence[loader.Entry]) -> list[loader.Entry]:
    """``entries`` with each derived one under its release's name, for judging what an update server offers."""
    result = []
    for entry in entries:
        deployment = sysroot.deployment(entry.id)
        derived = deployment.manifest.derived if deployment else None
        if derived is not None:
            entry = entry._replace(version=derived.version, id=derived.base[:ID_LENGTH])
        result.append(entry)
    return result


def image(sysroot: Sysroot, base: Base) -> erofs.Image:
    """The entries of the release's tree. :class:`VerificationError` unless the image is the one that was signed."""
    path = sysroot.images / base.manifest.image_digest
    try:
        data = read_bytes(path, IMAGE_LIMIT)
    except OSError as error:
        raise NotHereError(f"the image of {base.manifest.version} cannot be read: {error.strerror}") from None
    if verity.digest_bytes(data).hex() != base.manifest.image_digest:
        raise VerificationError(f"{path} is not the image that the release names")
    return erofs.read(data)


def kernel_image(sysroot: Sysroot, base: Base, entries: Sequence[loader.Entry]) -> bytes:
    """The release's UKI as it was signed, from its directory or from the boot partition.

    A copy is kept in its directory (``uki.efi``): once the release's own boot entry is gone, the next derivation
    needs it. Raises :class:`NotHereError` when no genuine one is left.
    """
    names = [entry.name for entry in entries if entry.id == base.manifest.id]
    return _kept(sysroot, base, UKI, base.manifest.uki, names)


def rescue_image(sysroot: Sysroot, base: Base) -> bytes:
    """As :func:`kernel_image`, the release's rescue UKI (``rescue.efi``)."""
    manifest = base.manifest
    return _kept(sysroot, base, rescue_entry.FILE, manifest.rescue, [rescue_entry.name(manifest.version, manifest.id)])


def _kept(sysroot: Sysroot, base: Base, file: str, wanted: Uki, names: Sequence[str]) -> bytes:
    kept = sysroot.deployments / base.manifest.id / file
    for path in [kept, *(sysroot.esp / loader.LINUX / name for name in names)]:
        data = sound(path, wanted)
        if data is not None:
            if path != kept:
                with contextlib.suppress(OSError):
                    atomic.write(kept, data)
            return data
    what = "rescue" if file == rescue_entry.FILE else "kernel"
    raise NotHereError(
        f"the {what} image of release {base.manifest.version} is not on this machine as it was signed",
        hint="`freehold upgrade` brings a release that has one",
    )


def sound(path: Path, wanted: Uki) -> bytes | None:
    """The kernel image ``path`` when it is the one that a manifest names as ``wanted``."""
    with contextlib.suppress(OSError, FreeholdError):
        data = read_bytes(path, wanted.size)
        if sha256(data) == wanted.sha256:
            return data
    return None
