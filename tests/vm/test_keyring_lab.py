# SPDX-License-Identifier: Apache-2.0
"""``early/keyring.c`` and prepared fs-verity files, judged by the stock kernel in a small guest.

Which signatures the early step believes, that nobody gets into the sealed ring after it, and that what
:mod:`freehold.keys.verity` lays out on disk is to the kernel a verity file with the digest we computed.
"""

from __future__ import annotations

import datetime
import errno
import hashlib
import lzma
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from tests.vm.test_guard_lab import REPOSITORY, kernel_tree, tools_tree

from freehold import run
from freehold.keys import efi, verity
from freehold.keys.formats import Revocation, serialize_revoked
from freehold.keys.issue import create
from freehold.keys.x509 import Signer, load_signer
from freehold.seal import cpio
from freehold.vm import host

pytestmark = pytest.mark.vm

# What the kernel says of refused signatures would be written into the middle of our lines.
KERNEL_OPTIONS = "console=ttyS0 quiet loglevel=1 panic=-1"
TIMEOUT = 120.0
TEXT = b"some text\n" * 500
#: A Merkle tree of two levels and a last block that is not full.
BIG = b"".join(hashlib.sha256(struct.pack("<I", number)).digest() for number in range(129 * 128 * 5 + 3))[:-19]
#: A byte in the middle of the damaged file's data.
DAMAGED_AT = 3 * verity.BLOCK + 5


@dataclass(frozen=True)
class File:
    """A verity file of the disk: its data, its built-in signature, what is on the disk instead of the data."""

    data: bytes
    signer: str = ""
    stored: bytes | None = None


FILES = {
    "plain": File(TEXT),
    "signed": File(TEXT, signer="first"),
    "signed-foreign": File(TEXT, signer="foreign"),
    "big": File(BIG),
    "empty": File(b""),
    "damaged": File(BIG, stored=BIG[:DAMAGED_AT] + bytes([BIG[DAMAGED_AT] ^ 1]) + BIG[DAMAGED_AT + 1 :]),
}


def leaf_of(authority: Signer) -> Signer:
    """A signer with a key of its own and a certificate by ``authority``."""
    key = rsa.generate_private_key(65537, 2048)
    issuer = x509.load_der_x509_certificate(authority.certificate_der())
    public = issuer.public_key()
    assert isinstance(public, rsa.RSAPublicKey)
    builder = x509.CertificateBuilder(
        issuer_name=issuer.subject,
        subject_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "leaf")]),
        public_key=key.public_key(),
        serial_number=5,
        not_valid_before=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        not_valid_after=datetime.datetime(2036, 1, 1, tzinfo=datetime.UTC),
        extensions=[
            x509.Extension(one.oid, False, one)
            for one in (
                x509.AuthorityKeyIdentifier.from_issuer_public_key(public),
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()),
            )
        ],
    )
    return Signer(key, builder.sign(authority.private_key, hashes.SHA256()))


def make_signers(directory: Path) -> dict[str, Signer]:
    """Two owners and a release key, all in the keychain, a foreigner who is not, one of the keychain's and one of the
    firmware's who are revoked; the machine's maker, whom the firmware alone knows.
    """
    signers = {}
    roles = {"first": "owner", "second": "owner", "release": "release", "foreign": "owner", "lost": "owner", "barred": "owner"}
    roles["maker"] = "owner"
    for name, role in roles.items():
        create(name, "release" if role == "release" else "owner", directory, None)
        signers[name] = load_signer(f"file:{directory / name}.key", lambda prompt: b"")
    return signers


#: Whom the firmware's db has.
DB = ("first", "second", "release", "barred", "lost", "maker")


def initrd_members(signers: dict[str, Signer], kernel: Path) -> dict[str, bytes]:
    """The guest's files but for /init."""
    first, foreign, lost = signers["first"], signers["foreign"], signers["lost"]
    barred = signers["barred"].certificate_der()
    lists = [efi.certificate_list(signers[name].certificate_der()) for name in DB]
    for_firmware = efi.certificate_list(foreign.certificate_der(), efi.FIRMWARE_ONLY)
    leaf, digest = leaf_of(first), verity.digest_bytes(TEXT)
    module = next(kernel.glob("usr/lib/modules/*/kernel/drivers/block/virtio_blk.ko.xz"))
    return {
        "keychain/owner-first.der": first.certificate_der(),
        "keychain/owner-second.der": signers["second"].certificate_der(),
        "keychain/release-one.der": signers["release"].certificate_der(),
        "keychain/owner-lost.der": lost.certificate_der(),
        "keychain/README": b"not a certificate\n",
        "revoked": serialize_revoked([Revocation(hashlib.sha256(lost.certificate_der()).hexdigest(), "lost in March")]),
        "db": b"".join(lists) + for_firmware,
        "dbx": efi.signature_list(efi.CERT_X509_SHA256, [(efi.OWNER, efi.signed_part_sha256(barred) + bytes(16))]),
        "data": TEXT,
        **{f"data.{name}": signer.sign(TEXT) for name, signer in signers.items()},
        "foreign.der": foreign.certificate_der(),
        "first.p7": first.sign_verity(digest),
        "foreign.p7": foreign.sign_verity(digest, embed_certificate=True),
        "barred.p7": signers["barred"].sign_verity(digest, embed_certificate=True),
        "lost.p7": lost.sign_verity(digest, embed_certificate=True),
        "leaf.p7": leaf.sign_verity(digest, embed_certificate=True),
        "leaf-bare.p7": leaf.sign_verity(digest),
        "virtio_blk.ko": lzma.decompress(module.read_bytes()),
    }


def write_disk_files(work: Path, signers: dict[str, Signer]) -> None:
    """The files with their metadata, and debugfs' commands that make verity files of them."""
    directory = work / "disk-files"
    directory.mkdir()
    commands = []
    for name, file in FILES.items():
        measured = verity.measure(file.data)
        built_in = signers[file.signer].sign_verity(measured.digest) if file.signer else b""
        with (directory / name).open("wb") as target:
            target.write(file.data if file.stored is None else file.stored)
            target.seek(verity.metadata_offset(measured.size))
            target.write(verity.metadata_bytes(measured, built_in))
        commands += [f"set_inode_field /{name} flags 0x180000", f"set_inode_field /{name} size {measured.size}"]
    (work / "debugfs").write_text("\n".join(commands) + "\n")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The guest's answers: name to value."""
    tools = tools_tree()
    kernel = kernel_tree(tools)
    work = tmp_path_factory.mktemp("keyring-lab")
    signers = make_signers(work / "keys")
    write_disk_files(work, signers)
    tools.run(["sh", "tests/vm/keyring_lab/build.sh", work], binds=[work], ro_binds=[REPOSITORY], cwd=REPOSITORY)
    members = {name: cpio.Member(cpio.REGULAR, data) for name, data in initrd_members(signers, kernel).items()}
    members["init"] = cpio.Member(cpio.EXECUTABLE, (work / "init").read_bytes())
    (work / "initrd").write_bytes(cpio.archive(members))
    vmlinuz = next((kernel / "boot").glob("vmlinuz-*"))
    done = run.run(
        [
            *host.qemu(tools), "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-machine", "q35",
            "-m", "512", "-nographic", "-no-reboot", "-net", "none", "-kernel", vmlinuz, "-initrd", work / "initrd",
            "-drive", f"file={work / 'disk'},if=virtio,format=raw", "-append", KERNEL_OPTIONS,
        ],
        timeout=TIMEOUT,
    )  # fmt: skip
    console = done.text.replace("\r", "")
    assert "@end" in console, console[-4000:]
    yield dict(line[2:].split(" ", 1) for line in console.splitlines() if line.startswith("@ "))
    shutil.rmtree(work, ignore_errors=True)


@pytest.mark.parametrize("name", ["good", "second-owner", "release"])
def test_signatures_of_the_role_are_believed(lab: dict[str, str], name: str) -> None:
    assert lab[name] == "1"


@pytest.mark.parametrize(
    "name",
    ["wrong-role", "absent-role", "release-as-owner", "foreign", "flipped-data", "data-cut", "flipped-signature",
     "short-signature", "one-byte-signature", "empty-signature", "long-signature", "endless-signature", "all-ones",
     "all-zeros"],
)  # fmt: skip
def test_everything_else_is_not(lab: dict[str, str], name: str) -> None:
    assert lab[name] == "0"


def test_no_keychain_is_an_error_and_not_a_no(lab: dict[str, str]) -> None:
    assert lab["absent-keychain"] == str(-errno.ENOENT)


def test_length_check_is_ours_because_the_kernel_has_none(lab: dict[str, str]) -> None:
    # When this fails, the kernel learned to look: the check in keyring.c stays, its comment may go.
    assert (lab["raw-good"], lab["raw-short"], lab["short-signature"]) == ("0", "0", "0")


def test_ring_has_the_keychain_and_is_closed(lab: dict[str, str]) -> None:
    # db has three more: revoked by dbx, revoked by the image, for option ROMs.
    assert (lab["load"], lab["from-firmware"], lab["loaded"], lab["skipped"]) == ("0", "1", "4", "3")
    assert lab["ring-keys"] == "4"
    # The maker of the machine does not make the firmware one that knows the keychain.
    assert lab["own"] == "3"
    assert lab["load-again"] == str(-errno.EPERM)
    assert lab["add-after-seal"] == str(errno.EPERM)


def test_a_revoked_owner_is_not_believed(lab: dict[str, str]) -> None:
    assert (lab["not-yet-revoked"], lab["revoked-list"], lab["revoked"]) == ("1", "0", "0")
    assert (lab["dbx"], lab["good-beside-revoked"]) == ("0", "1")


def test_an_emptied_ring_believes_nothing_for_good(lab: dict[str, str]) -> None:
    # The kernel lets root clear even a sealed ring. That takes signatures away and gives none.
    assert lab["clear"] == "0"
    assert lab["enable-after-clear"] == str(errno.ENOKEY)
    assert lab["add-after-clear"] == str(errno.EPERM)


@pytest.mark.parametrize("name", ["plain", "signed", "big", "empty"])
def test_prepared_files_are_verity_files(lab: dict[str, str], name: str) -> None:
    data = FILES[name].data
    assert lab[f"measure/mnt/{name}"] == verity.digest_bytes(data).hex()
    assert lab[f"read/mnt/{name}"] == str(len(data))
    assert lab[f"write/mnt/{name}"] == str(errno.EPERM)


def test_damaged_data_is_not_read(lab: dict[str, str]) -> None:
    assert lab["measure/mnt/damaged"] == verity.digest_bytes(BIG).hex()
    assert lab["read/mnt/damaged"] == str(-errno.EIO)


def test_prepared_file_with_a_foreign_signature_does_not_open(lab: dict[str, str]) -> None:
    assert lab["measure/mnt/signed-foreign"] == f"errno-{errno.ENOKEY}"


def test_built_in_signatures_by_the_ring_and_below_it(lab: dict[str, str]) -> None:
    assert lab["enable-by-ring"] == lab["enable-by-leaf"] == lab["enable-unsigned"] == "0"
    assert lab["enable-by-bare-leaf"] == lab["enable-by-foreign"] == str(errno.ENOKEY)
    assert lab["enable-by-barred"] == lab["enable-by-lost"] == str(errno.ENOKEY)
    assert lab["measure/mnt/by-ring"] == verity.digest_bytes(TEXT).hex()
