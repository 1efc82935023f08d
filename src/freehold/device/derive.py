# SPDX-License-Identifier: Apache-2.0
"""A release and the owner's requests → a deployment of this machine's own.

Never proportional to the release: only what changes is read, hashed and written; everything else is the release's verified
entries, by name and digest. Order, so that a cut leaves the machine as it was:

1. :func:`assemble`: changed files into the repository (one commit on top of the release's), fs-verity on each, measured
   against what was meant; the image, read and compared with what was meant, under a temporary name, verity, measured, renamed;
   the kernel images with their new command lines, unsigned, in memory;
2. :func:`keep`: a ref. This is the last program that is started: who opens a secret to sign starts none after it;
   :func:`finish`: signatures; kernel images, signer, signature and last the manifest into ``deployments/ID``. Now it is a
   downloaded deployment like any other;
3. :func:`freehold.device.stage.commit`: one rename on the boot partition, behind that of the rescue image.

What a cut leaves after 1 or 2 has no boot entry; ``cleanup`` removes it, and the next derivation makes it again: equal
inputs give equal bytes.

What is signed is what was derived, whoever could reach the programs that wrote it: the image is compared, entry by entry and
as a kernel would read it, in the memory that is then written and named by its digest; the kernel image never leaves memory before
it is signed; each new file's content counts by the digest that the kernel enforces, which is computed here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from freehold import atomic
from freehold.device import base as bases
from freehold.device import content, inputs, loader, prune
from freehold.device.base import Base
from freehold.device.sysroot import Sysroot
from freehold.errors import FreeholdError, InputError, VerificationError
from freehold.files import read_bytes
from freehold.keys import verity
from freehold.keys.pe import Program
from freehold.keys.x509 import Signer
from freehold.lock import requests
from freehold.monitor import Monitor, step
from freehold.run import run
from freehold.seal import authenticode, cpio, erofs, kernel_inputs, repack
from freehold.seal.erofs import Image
from freehold.seal.headerball import Entry, headerball
from freehold.update import rescue_entry
from freehold.update.manifest import (
    ID_LENGTH,
    IMAGE_LIMIT,
    Derived,
    Inputs,
    Manifest,
    Uki,
    image_of,
    serialize_manifest,
    version_valid,
)

#: What names the release, in the tree and in the UKI.
OS_RELEASE = "/usr/lib/os-release"
#: The list of requests, for whoever looks at the running tree.
REQUESTS = "/usr/lib/freehold/requests"
#: Signatures over the base's own measurements: they cannot be right for another command line.
STALE_SECTIONS = frozenset({".pcrsig"})
#: Stands for the SHA-256 of a UKI whose signature is not there yet.
UNSIGNED = "0" * 64
#: Paths at once on ostree's command line.
_BATCH = 500


@dataclass(frozen=True)
class Layer:
    """What changes about the base's tree: a directory of new files (None: none), paths that go, packages then."""

    upper: Path | None = None
    entries: tuple[Entry, ...] = ()
    removed: tuple[str, ...] = ()
    packages: tuple[tuple[str, str, str], ...] | None = None


@dataclass(frozen=True)
class Unsigned:
    """A deployment that lacks its signatures: the manifest without the UKIs' digests, the UKIs without their signatures.

    ``rescue`` is :func:`rescue_image` of ``uki``; ``signature_digest`` is the Authenticode digest of ``uki``. ``policy`` is the
    text of its kernel inputs, when it has others than its release; else the manifest has the release's own signature.
    """

    manifest: Manifest
    uki: bytes
    rescue: bytes
    signature_digest: bytes = field(repr=False)
    policy: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class Signatures:
    """What the owner's side adds: PKCS#7 for each UKI, the content of ``manifest.json.sig``, and the key's name.

    ``policy``: the signature of kernel inputs that the release has not, b"" where there are none.
    """

    uki: bytes
    rescue: bytes
    manifest: bytes
    signer: str
    policy: bytes = b""


def version_of(base: Manifest, serial: int) -> str:
    """The version of a deployment derived from ``base`` for intent ``serial``: after the base's, before its next.

    In the order of the UAPI version format ``1.2 < 1.2^7 < 1.2^8 < 1.2.1``. :class:`InputError` when it gets too long.
    """
    version = f"{base.version}^{serial}"
    if not version_valid(version):
        raise InputError(f"the version {base.version} is too long for a deployment of this machine's own")
    return version


def renamed(text: str, version: str) -> str:
    """``text`` of an os-release(5) file for ``version``; everything but the version's two lines stays. Pure."""
    lines = []
    for line in text.splitlines():
        if line.startswith("IMAGE_VERSION="):
            line = f"IMAGE_VERSION={version}"
        elif line.startswith('PRETTY_NAME="Freehold '):
            line = f'{line.rpartition(" ")[0]} {version}"'
        lines.append(line)
    return "\n".join(lines) + "\n"


def merge(base: Sequence[Entry], changed: Sequence[Entry], removed: Sequence[str]) -> list[Entry]:
    """The base's entries with ``removed`` paths (and all below) taken out and ``changed`` ones put in. Pure.

    :class:`FreeholdError` when a changed file would have no directory to lie in.
    """
    entries = {entry.path: entry for entry in base}
    gone = set(removed)
    for entry in changed:
        old = entries.get(entry.path)
        if old is not None and stat.S_ISDIR(old.mode) and not stat.S_ISDIR(entry.mode):
            gone.add(entry.path)
    if gone:
        entries = {path: entry for path, entry in entries.items() if not _below(path, gone)}
    entries.update({entry.path: entry for entry in changed})
    for path in entries:
        parent = entries.get(os.path.dirname(path) or "/")  # noqa: PTH120 (names of the image, not of this machine)
        if parent is None or not stat.S_ISDIR(parent.mode):
            raise FreeholdError(f"{path} would lie in no directory")
    return [entries[path] for path in sorted(entries)]


def _below(path: str, gone: set[str]) -> bool:
    while path != "/":
        if path in gone:
            return True
        path = path.rpartition("/")[0] or "/"
    return False


def assemble(
    sysroot: Sysroot, base: Base, text: bytes, serial: int, monitor: Monitor, layer: Layer | None = None
) -> Unsigned:
    """Step 1: everything of the deployment but its signatures. The caller holds the deployments' lock.

    ``text`` is the list of requests, ``layer`` what its packages change. Raises :class:`InputError` for a request that does not
    fit, :class:`freehold.errors.VerificationError` when the base is not as it was signed, else :class:`FreeholdError`.
    """
    wanted = requests.parse(text)
    layer = layer or Layer()
    version = version_of(base.manifest, serial)
    with step(monitor, "reading the release"):
        below = bases.image(sysroot, base)
        program = repack.parse(bases.kernel_image(sysroot, base, loader.listing(sysroot.esp)))
    line = repack.content(program, ".cmdline").decode("ascii", "replace")
    if image_of(line) != base.manifest.image_digest:
        raise FreeholdError(f"the kernel image of {base.manifest.version} names another tree")
    line = requests.command_line(line, wanted.kargs)
    work = fresh(sysroot.work / prune.DERIVE_SCRATCH)
    try:
        with step(monitor, "writing changed files"):
            made = _generated(sysroot, below, version, text, layer)
            commit = _commit(sysroot, base.manifest, below, work, layer, made, version)
            changed = _objects(sysroot, commit, [*layer.entries, *(entry for entry, _ in made)])
        with step(monitor, "sealing"):
            entries = merge(below.entries, changed, layer.removed)
            digest, size = _image(sysroot, entries, commit, below.epoch, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    policy, words = _inputs(base.manifest, line, entries)
    words[f"freehold.image={base.manifest.image_digest}"] = f"freehold.image={digest}"
    uki, saving = _kernel_image(program, base.manifest.image_digest, words, line, version)
    manifest = base.manifest._replace(
        version=version, inputs=None if policy else base.manifest.inputs, commit=commit, image_digest=digest, image_size=size,
        uki=Uki(f"freehold-{version}-{digest[:ID_LENGTH]}.efi", UNSIGNED, 1),
        rescue=Uki(rescue_entry.name(version, digest[:ID_LENGTH]), UNSIGNED, 1),
        packages=base.manifest.packages if layer.packages is None else layer.packages,
        derived=Derived(
            base.manifest.image_digest, base.fingerprint, base.manifest.version, requests.name_of(text), wanted.lines
        ),
    )  # fmt: skip
    return Unsigned(manifest, uki, rescue_image(uki, saving), repack.digest(repack.parse(uki)), policy)


def _inputs(base: Manifest, line: str, entries: Sequence[Entry]) -> tuple[bytes, dict[str, str]]:
    """The policy of kernel inputs that has to be signed for a tree of ``entries``, b"" when the release's own will do, and
    what changes about the command line ``line`` for it. Pure.
    """
    if base.inputs is None or kernel_inputs.named(line) != base.inputs.name:
        return b"", {}
    policy = kernel_inputs.policy(kernel_inputs.rules(entries))
    name = kernel_inputs.check(policy)
    if name == base.inputs.name:
        return b"", {}
    return policy, {kernel_inputs.word(base.inputs.name): kernel_inputs.word(name)}


def _kernel_image(program: Program, old: str, words: Mapping[str, str], line: str, version: str) -> tuple[bytes, str]:
    """The release's kernel image, started with ``line``, and its rescue image's command line; in both ``words`` are replaced by
    those of the new tree. ``old`` is the release's tree. Pure.

    The rescue entry keeps the release's own arguments: it is for when the owner's are wrong. The early step knows the
    sealed lines from the initrd's ``/cmdline``; a second archive behind the first replaces that file.
    """
    lines = [line, rescue_entry.line(repack.content(program, ".cmdline").decode("ascii", "replace"))]
    for at, found in enumerate(lines):
        if image_of(found) != old:
            raise FreeholdError("a command line of the release's kernel image names another tree")
        lines[at] = " ".join(words.get(one, one) for one in found.split(" "))
    sealed = cpio.archive({"cmdline": cpio.Member(cpio.REGULAR, "".join(f"{one}\n" for one in lines).encode())})
    initrd = repack.content(program, ".initrd")
    contents = {
        ".cmdline": [lines[0].encode()],
        ".osrel": [renamed(repack.content(program, ".osrel").decode(), version).encode()],
        ".initrd": [initrd + b"\0" * (-len(initrd) % 4) + sealed],
    }
    return repack.exchange(program, contents, drop=STALE_SECTIONS), lines[1]


def rescue_image(uki: bytes, line: str) -> bytes:
    """The rescue image that belongs to the unsigned ``uki``, started with ``line``; unsigned.

    Pure: the machine and the owner's computer come to equal bytes, so that a request carries one kernel image only.
    """
    program = repack.parse(uki)
    release = rescue_entry.os_release(repack.content(program, ".osrel").decode("utf-8", "replace"))
    return repack.exchange(program, {".cmdline": [line.encode()], ".osrel": [release.encode()]})


def sign_uki(digest: bytes, signer: Signer) -> bytes:
    """The signature of a UKI with Authenticode ``digest``, for the firmware."""
    signer.check_dates()
    return authenticode.sign(digest, signer.certificate_der(), signer.sign)


def completed(unsigned: Unsigned, uki: bytes, rescue: bytes, policy: bytes) -> tuple[Manifest, bytes, bytes]:
    """The manifest that names both UKIs as they are with the signatures ``uki`` and ``rescue`` (PKCS#7), and these UKIs; it has
    the signature ``policy`` of the kernel inputs, where these are not the release's.

    Pure: the machine and the owner's computer come to equal bytes.
    """
    manifest = unsigned.manifest
    signed = repack.attach(unsigned.uki, uki), repack.attach(unsigned.rescue, rescue)
    named = [
        old._replace(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
        for old, data in zip((manifest.uki, manifest.rescue), signed, strict=True)
    ]
    if unsigned.policy:
        manifest = manifest._replace(inputs=Inputs(kernel_inputs.check(unsigned.policy), policy))
    return manifest._replace(uki=named[0], rescue=named[1]), *signed


def sign(unsigned: Unsigned, signer: Signer) -> Signatures:
    """All the signatures by ``signer``: the device's key, or the owner's."""
    uki = sign_uki(unsigned.signature_digest, signer)
    rescue = sign_uki(repack.digest(repack.parse(unsigned.rescue)), signer)
    policy = kernel_inputs.sign(unsigned.policy, signer) if unsigned.policy else b""
    manifest, _, _ = completed(unsigned, uki, rescue, policy)
    return Signatures(uki, rescue, signer.sign_document(serialize_manifest(manifest)), _name(signer), policy)


def _name(signer: Signer) -> str:
    from cryptography.x509.oid import NameOID

    names = signer.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value)[:64] if names else "unnamed"


def keep(sysroot: Sysroot, unsigned: Unsigned) -> None:
    """Before it is signed: its objects are pruned no more. What remains of it without a deployment, the next cleanup removes."""
    content.reference(sysroot, unsigned.manifest.id, unsigned.manifest.commit)


def finish(sysroot: Sysroot, unsigned: Unsigned, signatures: Signatures) -> Manifest:
    """Step 2, after :func:`keep`: attach the signatures and make it a deployment, which does not boot yet. Starts no program.

    Nothing is kept that this machine would not believe later: raises :class:`freehold.errors.VerificationError`.
    """
    from freehold.keys.verify import Keychain
    from freehold.update import believe

    if bool(signatures.policy) != bool(unsigned.policy):
        raise VerificationError("the signatures are not those of this deployment", hint="the machine is unchanged")
    manifest, uki, rescue = completed(unsigned, signatures.uki, signatures.rescue, signatures.policy)
    data = serialize_manifest(manifest)
    keychain = Keychain.from_directory(sysroot.keychain)
    believed = believe.manifest(data, signatures.manifest, keychain, sysroot.machine, "the new deployment")
    directory = sysroot.deployments / manifest.id
    directory.mkdir(parents=True, exist_ok=True)
    atomic.fsync_directory(sysroot.deployments)
    inputs.place(sysroot, manifest)
    atomic.write(directory / rescue_entry.FILE, rescue)
    atomic.write(directory / bases.UKI, uki)
    atomic.write(directory / "signer", believed.signer + "\n")
    atomic.write(directory / "manifest.json.sig", signatures.manifest)
    # Last: a directory without a manifest is no deployment.
    atomic.write(directory / "manifest.json", data)
    return manifest


def fresh(path: Path) -> Path:
    """An empty directory of root's own."""
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(mode=0o700)
    return path


def _generated(sysroot: Sysroot, below: Image, version: str, text: bytes, layer: Layer) -> list[tuple[Entry, bytes]]:
    """The two files that every derived tree has of its own, with their content: its name, and the list."""
    entries: Mapping[str, Entry] = {entry.path: entry for entry in below.entries}
    old = next((entry for entry in layer.entries if entry.path == OS_RELEASE), None) or entries.get(OS_RELEASE)
    if old is None or not old.digest:
        raise FreeholdError(f"the release has no {OS_RELEASE}")
    path = (
        sysroot.repo / "objects" / old.redirect.lstrip("/")
        if old.redirect
        else (layer.upper or Path()) / OS_RELEASE[1:]
    )
    data = path.read_bytes() if path.stat().st_size < 65536 else b""
    if verity.digest_bytes(data) != old.digest:
        raise FreeholdError(f"{OS_RELEASE} of the release is not as it was signed")
    contents = ((OS_RELEASE, renamed(data.decode(), version).encode()), (REQUESTS, text))
    return [
        (Entry(path, stat.S_IFREG | 0o644, 0, 0, len(data), digest=verity.digest_bytes(data)), data)
        for path, data in contents
    ]


def _commit(
    sysroot: Sysroot,
    base: Manifest,
    below: Image,
    work: Path,
    layer: Layer,
    made: Sequence[tuple[Entry, bytes]],
    version: str,
) -> str:
    """One commit: the base's tree, the layer's files, ours. Directories that only lead somewhere stay as the base has them."""
    own = work / "own"
    own.mkdir()
    known = {entry.path: entry for entry in (*below.entries, *layer.entries)}
    for entry, data in made:
        target = own / entry.path[1:]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        target.chmod(stat.S_IMODE(entry.mode))
    for directory, _, _ in os.walk(own):
        path = Path(directory)
        like = known["/" + str(path.relative_to(own)) if path != own else "/"]
        os.chown(path, like.uid, like.gid)
        path.chmod(stat.S_IMODE(like.mode))
        for name, value in like.xattrs:
            os.setxattr(path, name, value)
    trees = [f"--tree=ref={base.commit}"]
    if layer.upper is not None:
        trees.append(f"--tree=dir={layer.upper}")
    trees.append(f"--tree=dir={own}")
    skip = []
    if layer.removed:
        (work / "skip").write_text("".join(f"{path}\n" for path in layer.removed))
        skip = [f"--skip-list={work / 'skip'}"]
    content.prepare(sysroot, verity=sysroot.kernel_verity)
    done = run(
        [
            *sysroot.ostree, f"--repo={sysroot.repo}", "commit", "--orphan", f"--subject={base.name} {version}",
            f"--timestamp=@{below.epoch}", f"--add-metadata-string=version={version}", "--no-bindings", "--parent=none",
            *skip, *trees,
        ]
    )  # fmt: skip
    return done.text.strip().splitlines()[-1]


def _objects(sysroot: Sysroot, commit: str, entries: Sequence[Entry]) -> list[Entry]:
    """``entries`` with each file's object: fs-verity switched on, and the digest that is enforced the one that was meant."""
    files = sorted({entry.path for entry in entries if entry.digest})
    names: dict[str, str] = {}
    for begin in range(0, len(files), _BATCH):
        some = files[begin : begin + _BATCH]
        listing = run([*sysroot.ostree, f"--repo={sysroot.repo}", "ls", "-C", commit, *some])
        for line in listing.text.splitlines():
            _, _, _, _, checksum, path = line.split(maxsplit=5)
            names[path] = checksum
    result = {}
    for entry in entries:
        if entry.digest:
            if entry.path not in names:
                raise FreeholdError(f"{entry.path} is not in the new commit")
            checksum = names[entry.path]
            target = content.object_path(sysroot.repo, checksum)
            if sysroot.verity.measure(target) is None:
                sysroot.verity.enable(target)
            if sysroot.verity.measure(target) != entry.digest:
                raise FreeholdError(
                    f"{entry.path} changed while it was written", hint="the machine is unchanged; try again"
                )
            entry = dataclasses.replace(entry, redirect=f"/{checksum[:2]}/{checksum[2:]}.file")
        result[entry.path] = entry
    return list(result.values())


def _image(sysroot: Sysroot, entries: Sequence[Entry], commit: str, epoch: int, work: Path) -> tuple[str, int]:
    """Write the image of ``entries``; its digest (hex) and size. It has its name only when complete and durable."""
    made, ball = work / "image", work / "ball"
    ball.write_bytes(headerball(entries))
    # The UUID names the content, as in a build: nothing random gets in.
    name = uuid.UUID(hashlib.sha256(commit.encode()).hexdigest()[:32])
    run([*sysroot.mkfs, "-d0", "--tar=headerball", f"-T{epoch}", f"-U{name}", made, ball])
    data = read_bytes(made, IMAGE_LIMIT)
    fault = erofs.exactly(data, entries, epoch)
    if fault:
        raise VerificationError(f"the new image is not used: {fault}", hint="the machine is unchanged; try again")
    digest = verity.digest_bytes(data)
    target = sysroot.images / digest.hex()
    if target.is_file() and sysroot.verity.measure(target) == digest:
        return digest.hex(), len(data)
    temporary = sysroot.images / f"{atomic.TEMPORARY_PREFIX}derive"
    try:
        temporary.unlink(missing_ok=True)
        temporary.write_bytes(data)
        atomic.fsync_directory(sysroot.images)
        sysroot.verity.enable(temporary)
        if sysroot.verity.measure(temporary) != digest:
            raise FreeholdError("the kernel measures the new image differently; it is not used")
        atomic.publish(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return digest.hex(), len(data)
