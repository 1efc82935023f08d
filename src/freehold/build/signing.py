# SPDX-License-Identifier: Apache-2.0
"""The last step of a build: signing. It needs nothing of the build but its result, so that it can be done elsewhere.

An unsigned release is a directory with ``image``, ``uki.unsigned.efi``, ``manifest.unsigned.json`` (the manifest, with the
unsigned kernel image where the signed one will be), ``keychain/`` (what the machines will have) and ``build.json``.
No signature is inside of the tree, the metadata image or the kernel image's sections; what of the keys is in there
are certificates. So the key signs two things: the kernel image, for the firmware, and the manifest.

Signing writes ``uki.efi``, ``manifest.json.sig`` and, last, ``manifest.json``: only then is it a release. An interrupted
signing is done again from the start; what it needs goes when the manifest is there.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path

from freehold import atomic
from freehold.build import uki
from freehold.build.tools import Tools
from freehold.errors import InputError
from freehold.keys import verity
from freehold.keys.verify import Keychain, verify_document
from freehold.keys.x509 import Signer
from freehold.update.manifest import MANIFEST_LIMIT, Manifest, Uki, parse_manifest, serialize_manifest

UNSIGNED = "manifest.unsigned.json"
UNSIGNED_UKI = "uki.unsigned.efi"
KEYCHAIN = "keychain"


def write_unsigned(directory: Path, manifest: Manifest, kernel_image: Path, keychain: Iterable[tuple[str, bytes]]) -> None:
    """Complete the unsigned release in ``directory``, which has the image; ``manifest``'s ``uki`` is replaced."""
    (directory / KEYCHAIN).mkdir()
    for name, content in keychain:
        (directory / KEYCHAIN / name).write_bytes(content)
    shutil.copyfile(kernel_image, directory / UNSIGNED_UKI)
    described = manifest._replace(uki=_described(directory / UNSIGNED_UKI, manifest.uki.name))
    atomic.write(directory / UNSIGNED, serialize_manifest(described))


def is_unsigned(release: Path) -> bool:
    """Whether ``release`` is a release that lacks its signatures only."""
    return (release / UNSIGNED).is_file()


def manifest_of(release: Path) -> Manifest:
    """The manifest of a release, signed or not. :class:`InputError` for what is none."""
    for name in ("manifest.json", UNSIGNED):
        try:
            with (release / name).open("rb") as source:
                return parse_manifest(source.read(MANIFEST_LIMIT + 1))
        except FileNotFoundError:
            continue
    raise InputError(f"{release} is not a release")


def check(release: Path) -> Manifest:
    """The manifest of an unsigned release whose parts belong together. :class:`InputError` lists what does not.

    It says that the image and the kernel image are those of the manifest, and that the kernel image's command line names
    that image and that number. What they contain is the builder's word.
    """
    with (release / UNSIGNED).open("rb") as source:
        manifest = parse_manifest(source.read(MANIFEST_LIMIT + 1))
    faults = []
    try:
        if verity.digest_file(release / "image").hex() != manifest.image_digest:
            faults.append("image: not the one that the manifest names")
        content = (release / UNSIGNED_UKI).read_bytes()
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}") from None
    if _described(release / UNSIGNED_UKI, manifest.uki.name) != manifest.uki:
        faults.append(f"{UNSIGNED_UKI}: not the one that the manifest names")
    if f"{uki.names(manifest.image_digest, manifest.number)} ".encode() not in content:
        faults.append(f"{UNSIGNED_UKI}: its command line names another image, or another number")
    if faults:
        raise InputError(f"{release} is damaged", faults=faults)
    return manifest


def sign_release(tools: Tools, release: Path, signer: Signer) -> Manifest:
    """Sign the unsigned release in the directory ``release``; returns the manifest that was signed.

    Raises :class:`InputError` for parts that do not belong together, and for a key that the release's own machines would
    not accept; nothing is signed then.
    """
    if (release / "manifest.json").is_file():
        _tidy(release)
        return manifest_of(release)
    manifest = check(release)
    if signer.role != "release":
        raise InputError("the signing key has not the role 'release'", hint="freehold key show explains a key")
    verdict = verify_document(b"", signer.sign_document(b""), keychain=Keychain.from_directory(release / KEYCHAIN))
    if not verdict.ok:
        raise InputError(
            f"machines with this keychain would refuse the release: {verdict.reason}",
            hint="the signing key's certificate, or its vendor's, has to be in --keys or in the recipe when it is built",
        )
    partial = release / f"{atomic.TEMPORARY_PREFIX}uki.efi"
    uki.sign_efi(tools, release / UNSIGNED_UKI, partial, signer)
    signed = manifest._replace(uki=_described(partial, manifest.uki.name))
    atomic.publish(partial, release / "uki.efi")
    data = serialize_manifest(signed)
    atomic.write(release / "manifest.json.sig", signer.sign_document(data))
    atomic.write(release / "manifest.json", data)
    _tidy(release)
    return signed


def _tidy(release: Path) -> None:
    (release / UNSIGNED_UKI).unlink(missing_ok=True)
    shutil.rmtree(release / KEYCHAIN, ignore_errors=True)
    (release / UNSIGNED).unlink(missing_ok=True)


def _described(path: Path, name: str) -> Uki:
    content = path.read_bytes()
    return Uki(name, hashlib.sha256(content).hexdigest(), len(content))
