# SPDX-License-Identifier: Apache-2.0
"""The last step of a build: signing. It needs nothing of the build but its result, so that it can be done elsewhere.

An unsigned release is a directory with ``image``, ``uki.unsigned.efi``, ``rescue.unsigned.efi``, ``manifest.unsigned.json``
(the manifest, with the unsigned kernel images where the signed ones will be), ``keychain/`` (what the machines will have)
and ``build.json``. No signature is inside of the tree, the metadata image or the kernel images' sections; what of the keys
is in there are certificates. So the key signs four things: the two kernel images, for the firmware, the policy of kernel
inputs, for the kernel (:mod:`freehold.seal.kernel_inputs`: it follows from the image, and the command line names it), and the
manifest, which has that signature.

Signing writes ``rescue.efi``, ``uki.efi``, ``manifest.json.sig`` and, last, ``manifest.json``: only then is it a release. An
interrupted signing is done again from the start; what it needs goes when the manifest is there.
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
from freehold.keys import pe, verity
from freehold.keys.verify import Keychain, verify_document
from freehold.keys.x509 import Signer
from freehold.seal import kernel_inputs
from freehold.update import rescue_entry
from freehold.update.manifest import MANIFEST_LIMIT, Inputs, Manifest, Uki, parse_manifest, serialize_manifest

UNSIGNED = "manifest.unsigned.json"
UNSIGNED_UKI = "uki.unsigned.efi"
UNSIGNED_RESCUE = "rescue.unsigned.efi"
KEYCHAIN = "keychain"


def write_unsigned(
    directory: Path, manifest: Manifest, kernel_images: tuple[Path, Path], keychain: Iterable[tuple[str, bytes]]
) -> None:
    """Complete the unsigned release in ``directory``, which has the image; ``manifest``'s ``uki`` and ``rescue`` are replaced.

    ``kernel_images``: the normal and the rescue one, as :func:`freehold.build.uki.write_pair` makes them.
    """
    (directory / KEYCHAIN).mkdir()
    for name, content in keychain:
        (directory / KEYCHAIN / name).write_bytes(content)
    for source, name in zip(kernel_images, (UNSIGNED_UKI, UNSIGNED_RESCUE), strict=True):
        shutil.copyfile(source, directory / name)
    described = manifest._replace(
        uki=_described(directory / UNSIGNED_UKI, manifest.uki.name),
        rescue=_described(directory / UNSIGNED_RESCUE, manifest.rescue.name),
    )
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

    It says that the image and the kernel images are those of the manifest, that the normal one's command line names that
    image, that number and that image's kernel inputs, and that the rescue one's is the same with the rescue's words. What else
    they contain is the builder's word.
    """
    with (release / UNSIGNED).open("rb") as source:
        manifest = parse_manifest(source.read(MANIFEST_LIMIT + 1))
    faults = []
    lines = {}
    try:
        if verity.digest_file(release / "image").hex() != manifest.image_digest:
            faults.append("image: not the one that the manifest names")
        for name, named in ((UNSIGNED_UKI, manifest.uki), (UNSIGNED_RESCUE, manifest.rescue)):
            lines[name] = _command_line(release / name)
            if _described(release / name, named.name) != named:
                faults.append(f"{name}: not the one that the manifest names")
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}") from None
    normal = lines[UNSIGNED_UKI]
    if not normal.startswith(f"{uki.names(manifest.image_digest, manifest.number)} "):
        faults.append(f"{UNSIGNED_UKI}: its command line names another image, or another number")
    if rescue_entry.is_rescue(normal):
        faults.append(f"{UNSIGNED_UKI}: it is a rescue image")
    if lines[UNSIGNED_RESCUE] != rescue_entry.line(normal):
        faults.append(f"{UNSIGNED_RESCUE}: its command line is not that of the rescue image beside {UNSIGNED_UKI}")
    wanted = kernel_inputs.named(normal)
    if not faults and wanted and kernel_inputs.check(policy_of(release)) != wanted:
        faults.append(f"{UNSIGNED_UKI}: its command line names other kernel inputs than the image has")
    if faults:
        raise InputError(f"{release} is damaged", faults=faults)
    return manifest


def policy_of(release: Path) -> bytes:
    """The policy of kernel inputs of the release's image. :class:`InputError` when it is no image of ours."""
    return kernel_inputs.of_image((release / "image").read_bytes())


def loadable_policy(release: Path) -> bytes:
    """The signed release's policy of kernel inputs as the kernel takes it; b"" when the release has none."""
    inputs = manifest_of(release).inputs
    return kernel_inputs.attach(inputs.signature, policy_of(release)) if inputs is not None else b""


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
    inputs = None
    if kernel_inputs.named(_command_line(release / UNSIGNED_UKI)):
        policy = policy_of(release)
        inputs = Inputs(kernel_inputs.check(policy), kernel_inputs.sign(policy, signer))
    rescue = _sign(tools, release, UNSIGNED_RESCUE, manifest.rescue, rescue_entry.FILE, signer)
    normal = _sign(tools, release, UNSIGNED_UKI, manifest.uki, "uki.efi", signer)
    signed = manifest._replace(uki=normal, rescue=rescue, inputs=inputs)
    data = serialize_manifest(signed)
    atomic.write(release / "manifest.json.sig", signer.sign_document(data))
    atomic.write(release / "manifest.json", data)
    _tidy(release)
    return signed


def _sign(tools: Tools, release: Path, unsigned: str, named: Uki, name: str, signer: Signer) -> Uki:
    """Sign one kernel image; what the manifest has to say of it."""
    partial = release / f"{atomic.TEMPORARY_PREFIX}{name}"
    uki.sign_efi(tools, release / unsigned, partial, signer)
    described = _described(partial, named.name)
    atomic.publish(partial, release / name)
    return described


def _command_line(path: Path) -> str:
    """The command line in a kernel image, "" when it has none that can be read."""
    try:
        program = pe.parse(path.read_bytes())
        return program.stored(pe.command_line_section(program)).rstrip(b"\0").decode("ascii")
    except ValueError:
        return ""


def _tidy(release: Path) -> None:
    for name in (UNSIGNED_UKI, UNSIGNED_RESCUE):
        (release / name).unlink(missing_ok=True)
    shutil.rmtree(release / KEYCHAIN, ignore_errors=True)
    (release / UNSIGNED).unlink(missing_ok=True)


def _described(path: Path, name: str) -> Uki:
    content = path.read_bytes()
    return Uki(name, hashlib.sha256(content).hexdigest(), len(content))
