# SPDX-License-Identifier: Apache-2.0
"""A machine, a publisher and their keys in a temporary directory, for tests of updates."""

from __future__ import annotations

import datetime
import functools
import hashlib
import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

from freehold.build.store import cache_directory
from freehold.build.tools import Tools
from freehold.device.sysroot import Sysroot
from freehold.keys.formats import DocumentSignature, serialize_signature
from freehold.keys.verity import digest_bytes, digest_file
from freehold.update import parts
from freehold.update.manifest import Manifest, Stream, Uki, serialize_manifest, serialize_stream, sha256

COMMIT = "c" * 64
OBJECT = "0b" + "d" * 62


class Signs(Protocol):
    """What signs a document."""

    def sign(self, data: bytes, /) -> bytes:
        """The content of a ``.sig`` file."""


@dataclass(frozen=True)
class Key:
    """A signing key and its certificate."""

    private: rsa.RSAPrivateKey
    certificate: bytes

    def sign(self, data: bytes) -> bytes:
        """The content of a ``.sig`` file."""
        return serialize_signature(DocumentSignature(self.private.sign(data, padding.PKCS1v15(), hashes.SHA256())))


@functools.cache
def key(role: str, name: str) -> Key:
    """One key for each role and name in a test run."""
    private = rsa.generate_private_key(65537, 2048)
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, f"freehold-{role}"),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=7300))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    return Key(private, certificate.public_bytes(serialization.Encoding.DER))


class UserVerity:
    """fs-verity where the file system has none: digests are real, immutability is remembered by mode."""

    def enable(self, path: Path) -> None:
        path.chmod(0o444)

    def measure(self, path: Path) -> bytes | None:
        return None if stat.S_IMODE(path.stat().st_mode) & 0o200 else digest_file(path)


def rescue_image(uki: bytes) -> bytes:
    """The rescue UKI that belongs to ``uki``."""
    return uki[:2] + b"rescue" + uki[2:]


def manifest(
    version: str, timestamp: int, *, name: str = "server", commit: str = COMMIT
) -> tuple[Manifest, bytes, bytes]:
    """A manifest with the image and the UKI that it names; its rescue UKI is :func:`rescue_image`'s."""
    image = hashlib.sha256(version.encode()).digest() * 4000
    uki = b"MZ" + hashlib.sha256(b"uki" + version.encode()).digest() * 3000
    value = Manifest(
        name=name,
        version=version,
        commit=commit,
        image_digest=digest_bytes(image).hex(),
        image_size=len(image),
        uki=Uki("uki.efi", sha256(uki), len(uki)),
        rescue=Uki("rescue.efi", sha256(rescue_image(uki)), len(rescue_image(uki))),
        timestamp=timestamp,
        number=timestamp,
        architecture="amd64",
        kernel="6.12.1-amd64",
        suite="trixie",
        pockets=("security",),
        packages=(("base-files", version, "amd64"), ("bash", "5.2", "amd64")),
    )
    return value, image, uki


def write_release(
    directory: Path, version: str, timestamp: int, *, signer: Signs | None = None, commit: str = COMMIT
) -> Manifest:
    """A release's five files in ``directory``."""
    value, image, uki = manifest(version, timestamp, commit=commit)
    directory.mkdir(parents=True, exist_ok=True)
    data = serialize_manifest(value)
    (directory / "manifest.json").write_bytes(data)
    (directory / "manifest.json.sig").write_bytes((signer or key("release", "vendor")).sign(data))
    (directory / "image").write_bytes(image)
    (directory / "uki.efi").write_bytes(uki)
    (directory / "rescue.efi").write_bytes(rescue_image(uki))
    return value


#: ostree as far as a machine needs it, over plain files; the real one has tests of its own.
OSTREE = r"""
repo="${1#--repo=}"; shift
mkdir -p "$repo/fake" "$repo/objects/0b"
case "$1" in
  pull|pull-local) test -e "$repo/objects/0b/@rest@.file" || echo content > "$repo/objects/0b/@rest@.file" ;;
  ls) echo "d00755 0 0      0 @object@ @object@ /"; echo "-00644 0 0      8 @object@ /usr/a" ;;
  prune) ls "$repo/fake" > "$repo/pruned" ;;
  refs) case "$2" in
    --force) touch "$repo/fake/${3##*/}" ;;
    --delete=*) rm -f "$repo/fake/${2##*/}" ;;
    *) for ref in "$repo"/fake/*; do test -e "$ref" && echo "freehold/deployment/${ref##*/}"; done; true ;;
  esac ;;
esac
""".replace("@object@", OBJECT).replace("@rest@", OBJECT[2:])


@dataclass
class Lab:
    """A machine that runs ``running``, and the directory its update server carries."""

    root: Path
    running: Manifest = field(init=False)
    sysroot: Sysroot = field(init=False)

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        script = self.root / "ostree.sh"
        script.write_text(OSTREE)
        self.sysroot = Sysroot(
            root=self.root / "sysroot",
            esp=self.root / "esp",
            system=self.root / "system",
            ostree=("sh", str(script)),
            verity=UserVerity(),
            kernel_verity=False,
        )
        for path in ("sysroot/repo", "sysroot/images", "esp/EFI/Linux", "system/run/freehold", "system/proc"):
            (self.root / path).mkdir(parents=True)
        keychain = self.sysroot.keychain
        keychain.mkdir(parents=True)
        (keychain / "release-vendor.der").write_bytes(key("release", "vendor").certificate)
        (keychain / "owner-me.der").write_bytes(key("owner", "me").certificate)
        self.running = self.install("1.0", 1000)
        self.boot("1.0", 1000)

    @property
    def web(self) -> Path:
        """The published directory."""
        return self.root / "web"

    def install(self, version: str, timestamp: int, *, counter: str = "") -> Manifest:
        """A deployment on the machine, as a disk image or an earlier update made it."""
        scratch = self.root / "scratch"
        value = write_release(scratch, version, timestamp)
        directory = self.sysroot.deployments / value.id
        directory.mkdir(parents=True)
        for name in ("manifest.json", "manifest.json.sig"):
            shutil.copyfile(scratch / name, directory / name)
        image = self.sysroot.images / value.image_digest
        shutil.copyfile(scratch / "image", image)
        image.chmod(0o444)
        name = f"freehold-{version}-{value.id}{counter}.efi"
        shutil.copyfile(scratch / "uki.efi", self.sysroot.esp / "EFI/Linux" / name)
        shutil.copyfile(scratch / "rescue.efi", self.rescue(value))
        return value

    def rescue(self, value: Manifest) -> Path:
        """The rescue entry of a deployment."""
        return self.sysroot.esp / f"EFI/Linux/freehold-rescue-{value.version}-{value.id}.efi"

    def boot(self, version: str, timestamp: int) -> None:
        """Run that deployment now."""
        value, _, _ = manifest(version, timestamp)
        (self.sysroot.system / "proc/cmdline").write_text(f"quiet freehold.image={value.image_digest} ro\n")

    def configure(self, url: str, where: str = "usr/lib/freehold/update.toml") -> None:
        """Name the update server."""
        path = self.sysroot.system / where
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'[update]\nurl = "{url}"\nstream = "stable"\n')

    def release(self, version: str, timestamp: int, *, signer: Signs | None = None, commit: str = COMMIT) -> Manifest:
        """Put a release onto the web and let the stream point to it."""
        directory = self.web / "releases" / version
        value = write_release(directory, version, timestamp, signer=signer, commit=commit)
        uki, rescue = ((directory / name).read_bytes() for name in ("uki.efi", "rescue.efi"))
        (directory / "rescue.parts").write_bytes(parts.describe(uki, rescue))
        (directory / "rescue.efi").unlink()
        self.point(version, sha256((directory / "manifest.json").read_bytes()), signer=signer)
        return value

    def point(self, version: str, digest: str, *, signer: Signs | None = None, stream: str = "stable") -> None:
        """Write the stream's pointer."""
        data = serialize_stream(Stream(stream, version, digest, 5000))
        (self.web / "streams").mkdir(parents=True, exist_ok=True)
        (self.web / "streams/stable.json").write_bytes(data)
        (self.web / "streams/stable.json.sig").write_bytes((signer or key("release", "vendor")).sign(data))

    def entries(self) -> list[str]:
        """File names of the boot entries, without those of rescue."""
        names = (path.name for path in (self.sysroot.esp / "EFI/Linux").iterdir())
        return sorted(name for name in names if not name.startswith("freehold-rescue-"))

    def rescues(self) -> list[str]:
        """File names of the rescue entries."""
        names = (path.name for path in (self.sysroot.esp / "EFI/Linux").iterdir())
        return sorted(name for name in names if name.startswith("freehold-rescue-"))


def real_ostree(*binds: Path) -> list[str] | None:
    """How to run the real ostree: the host's, or a cached tools tree's; ``None`` when there is neither."""
    program = shutil.which("ostree")
    if program:
        return [program]
    for root in sorted(cache_directory().glob("tools-*")):
        if (root / "usr/bin/ostree").exists() and shutil.which("bwrap"):
            return [str(part) for part in Tools(root, "").argv(["ostree"], binds=binds, network=True)]
    return None
