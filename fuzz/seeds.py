# SPDX-License-Identifier: Apache-2.0
"""Where each target's search begins: inputs that are accepted, written by the project's own writers where it has them."""

from __future__ import annotations

import base64
import json
import stat
import struct
import tempfile
from dataclasses import replace
from pathlib import Path

from freehold.attest import document
from freehold.device import strict
from freehold.keys import device, efi, eventlog, formats, pcr, verity
from freehold.keys.der import EXPLICIT_0, INTEGER, OBJECT_ID, OCTETS, SEQUENCE, SET, wrap
from freehold.lock import etc_request, intent, requests
from freehold.lock import machine as state_machine
from freehold.lock.intent import Intent
from freehold.lock.machine import Account, HostKey, MachineState
from freehold.seal.headerball import Entry, headerball
from freehold.update import manifest, parts
from freehold.update.manifest import canonical
from fuzz import native

MACHINE = "0123456789abcdef0123456789abcdef"
HEX = "ab" * 32
PLAIN = Intent(machine=MACHINE, serial=7, lock="locked", since=1_700_000_000)
INTENTS = (
    PLAIN,
    replace(PLAIN, lock="open", floor=0),
    replace(PLAIN, lock="audit", config=HEX, requests=HEX, strict=True, floor=1 << 53),
    replace(PLAIN, tier="all-code", emergency_ssh=base64.b64encode(bytes(range(32))).decode()),
)
#: The least that passes for a certificate where only its form is looked at.
CERTIFICATE = b"\x30\x0a\x30\x03\x02\x01\x01\x30\x03\x02\x01\x02"


def chosen(which: int, *data: bytes) -> list[bytes]:
    """Inputs for the reader ``which`` of a target with several."""
    return [bytes([which]) + one for one in data]


def policy() -> list[bytes]:
    """Intents, and a line of /proc/keys."""
    line = b"1cb5c0f1 I------     1 perm 1f0b0000     0     0 keyring   .fs-verity: empty"
    return [*map(intent.serialize, INTENTS), line]


def firmware() -> list[bytes]:
    """One or two of everything."""
    listed = efi.certificate_list(CERTIFICATE)
    hashes = efi.signature_list(efi.CERT_X509_SHA256, [(efi.OWNER, bytes(48))])
    head = b"EFI PART" + bytes(64) + struct.pack("<QII", 2, 2, 128)
    table = bytes(512) + head.ljust(512, b"\0") + bytes(16) + bytes.fromhex("33221100554477668899aabbccddeeff") + bytes(96 + 128)
    return [
        *chosen(0, listed, hashes, listed + hashes), *chosen(1, bytes([0]) + listed, bytes([128]) + hashes + listed),
        *chosen(2, CERTIFICATE, b"\x30\x81\x83\x30\x81\x80" + bytes(128)),
        *chosen(3, b"freehold-revoked 1\n", f"freehold-revoked 1\n{HEX} lost\n{'0' * 64} stolen, perhaps\n".encode()),
        *chosen(4, table), *chosen(5, b"\6\0\0\0\1", b"\7\0\0\0\1"),
    ]  # fmt: skip


def records() -> list[bytes]:
    """A signed intent, a record's name, the TPM's memory and answers, a floor, boot entries, two lines."""
    signed = intent.join(intent.serialize(PLAIN), b"\xaa" * 256)
    memory = struct.pack(">BB6xQQQ", 2, 3, 10, 4, 7) + bytes.fromhex(MACHINE) + bytes(16)
    read = struct.pack(">HIIIH", 0x8002, 10 + 4 + 66 + 5, 0, 66, 64) + memory + b"\0\0\1\0\0"
    public = struct.pack(">HIIHIHIHH", 0x8001, 26, 0, 14, 0x01846668, 0x000B, 0x2044004, 0, 64)
    names = "freehold-1.0-0123456789abcdef+3-1.efi\0freehold-rescue-1.0-0123456789abcdef.efi\0auto-windows\0"
    chain = b"freehold-1.1-0123456789abcdef.efi\tits image is damaged\n"
    return [
        *chosen(0, signed), *chosen(1, b"7", HEX.encode()), *chosen(2, memory), *chosen(3, read, public),
        *chosen(4, b"freehold-floor 1\nraised 10\nserial 4\n"), *chosen(5, bytes([190]) + names.encode("utf-16-le") + chain),
        *chosen(6, b"quiet freehold.image=ab\tfreehold.image=ab  quiet", b"9007199254740992"),
    ]  # fmt: skip


def refusals() -> list[bytes]:
    """Two records, and a state file before them."""
    key = struct.pack("<I16s32s32s32s", 0, b"bash", b"evil", b"tmp", b"/")
    denial = struct.pack("<QQIIII", 3, 5_000_000_000, 0, 4711, 2, 0)
    known = key + bytes(4) + struct.pack("<QQI4x", 1, 1, 1)
    state = b"freehold-told-1\0" + known
    service = struct.pack("<I16s32s32s32s", 23, b"(systemd)", b"x\n", b"\xff" * 31, b"var") + denial
    return [bytes([2]) + key + denial + service, bytes([3]) + struct.pack("<H", len(state)) + state + key + denial]


def loader() -> list[bytes]:
    """One of each reader; most are made of the input's bytes by the harness."""
    maps = b"55d0c0000000-55d0c0001000 r-xp 00000000 08:01 42                         /tmp/evil\n"
    status = b"Name:\tsh\nUid:\t0\t0\t0\t0\nCapPrm:\t000001ffffffffff\nKthread:\t0\n"
    names = b"\7python3.13\0\1\0bash\0\1\0x\0\1\0"
    return [
        *chosen(0, bytes(range(64)), b"\1\1\1\1\0\0\0\0Uid:\n\0"), *chosen(1, bytes(64), b"\2\6\1\0\7evil\n\0\4\0\0\0x"),
        *chosen(2, b"8:1\n", b"8:2\n\1\2\3"), *chosen(3, names), *chosen(4, b"\0\2\1\0030\0\1\1\1/sysroot/owner/secret\0"),
        *chosen(5, status), *chosen(6, maps),
    ]  # fmt: skip


def machine() -> list[bytes]:
    """A state with everything, one that root made, and the texts of an /etc."""
    private = "-----BEGIN OPENSSH PRIVATE KEY-----\n" + "QUJD\n" * 3 + "-----END OPENSSH PRIVATE KEY-----\n"
    public = "ssh-ed25519 " + "A" * 40 + " root@here\n"
    anna = Account("anna", 1000, 1000, "Anna", "/home/anna", "/bin/bash", "$y$j9T$abcdefghijk$lmnopqrstuv", 200_000)
    bob = Account("bob", 1001, 1001, "", "/var/home/bob", "/usr/sbin/nologin", "!*", 0)
    evil = Account("root", 0, 27, "", "/root", "/tmp/x", "", 0)  # noqa: S108 (an attack)
    whole = MachineState("freehold", (HostKey("ed25519", private, public),), (anna, bob))
    accounts = "root:x:0:0:root:/root:/bin/bash\nanna:x:1000:1000:Anna:/home/anna:/bin/bash\n"
    texts = ("freehold\n", accounts, f"anna:{anna.hash}:1::::::\n", "anna:200000:65536\n", private, public)
    states = (MachineState(), whole, MachineState("x", (), (anna, evil)))
    return [*(state_machine.serialize(state).encode() for state in states), "\0".join(texts).encode()]


def words() -> list[bytes]:
    """What the owner says, by the writers of each format; the numbers are places in words.READERS."""
    listed = requests.serialize(requests.from_lines(["karg append loglevel=7", "package fish", f"file {HEX} a_1.deb"]))
    arguments = requests.serialize(requests.from_lines(["karg delete quiet", "karg replace panic=5"]))
    answer = dict.fromkeys(("intent", "manifest"), "") | dict.fromkeys(("uki", "rescue"), "qg==")
    answer |= {"format": strict.ANSWER, "digest": HEX, "release": HEX}
    return [
        *chosen(0, *map(intent.serialize, INTENTS)), *chosen(2, intent.join(intent.serialize(PLAIN), b"\xaa" * 256)),
        *chosen(3, b"freehold-requests 1\n", listed, arguments), *chosen(4, b"freehold-floor 1\nraised 10\nserial 4\n"),
        *chosen(5, f"freehold-remembered 1\nlock locked\nserial 7\ntext {'ab' * 16}\n".encode()),
        *chosen(6, canonical(answer), b"freehold-derivation 1 2 1\n{}x"),
        *chosen(7, f"freehold-revoked 1\n{HEX} lost\n".encode()),
        *chosen(8, formats.serialize_signature(formats.DocumentSignature(b"\xaa" * 256, CERTIFICATE))),
    ]  # fmt: skip


def images() -> list[bytes]:
    """A tree's metadata and a committed /etc, by mkfs.erofs of the tools tree; without that, only what is none."""
    tree = native.tools()
    if tree is None:
        return [b"\0" + bytes(4096), b"\xff" + bytes(4096)]
    redirect = {"size": 10, "digest": verity.digest_bytes(b"x"), "redirect": "/ab/cd.file"}
    entries = [
        Entry("/", stat.S_IFDIR | 0o755, 0, 0), Entry("/d", stat.S_IFDIR | 0o755, 0, 0),
        Entry("/d/cap", stat.S_IFREG | 0o644, 0, 0, xattrs=(("security.capability", b"\1" * 20),), **redirect),  # type: ignore[arg-type]
        Entry("/d/empty", stat.S_IFREG | 0o644, 0, 0), Entry("/d/link", stat.S_IFLNK | 0o777, 0, 0, target="cap"),
        Entry("/e", stat.S_IFREG | 0o600, 1, 8, **redirect),  # type: ignore[arg-type]
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="freehold-fuzz-") as name:
        work = Path(name)
        etc = work / "etc"
        (etc / "ssh").mkdir(parents=True)
        (etc / "ssh/key").write_bytes(bytes(range(256)) * 20)
        (etc / "small").write_text("small")
        (etc / "link").symlink_to("ssh/key")
        (work / "ball").write_bytes(headerball(entries))
        no_name = "-U00000000-0000-0000-0000-000000000000"
        commands: tuple[list[str | Path], ...] = (
            ["mkfs.erofs", "-d0", "--tar=headerball", "-T1700000000", no_name, work / "0", work / "ball"],
            ["mkfs.erofs", "-d0", "-T0", no_name, work / "1", etc],
        )
        for command in commands:
            tree.run(command, binds=[work])
        return [b"\0" + (work / "0").read_bytes(), b"\xff" + (work / "1").read_bytes()]


def documents() -> list[bytes]:
    """One of each; the numbers are places in documents.READERS."""
    release = manifest.Manifest(
        "server", "1.0", HEX, HEX, 4096, manifest.Uki("uki.efi", HEX, 9), manifest.Uki("rescue.efi", HEX, 9), 1_700_000_000, 7,
        "amd64", "6.12.1-amd64", "trixie", ("security",), (("bash", "5.2", "amd64"),),
    )  # fmt: skip
    derived = release._replace(derived=manifest.Derived(HEX, HEX, "1.0", HEX, ("karg append quiet",)))
    copies = json.dumps({"format": parts.FORMAT, "parts": [[0, 512], "QUJD", [100, 509]]}).encode()
    signer = wrap(SEQUENCE, b"".join((
        wrap(INTEGER, b"\1"), wrap(SEQUENCE, wrap(SEQUENCE, b"") + wrap(INTEGER, b"\7")), wrap(SEQUENCE, wrap(OBJECT_ID, b"\1")),
        wrap(SEQUENCE, wrap(OBJECT_ID, b"\2")), wrap(OCTETS, b"\xaa" * 8),
    )))  # fmt: skip
    signed = wrap(SEQUENCE, b"".join((
        wrap(INTEGER, b"\1"), wrap(SET, wrap(SEQUENCE, wrap(OBJECT_ID, b"\1"))), wrap(SEQUENCE, wrap(OBJECT_ID, b"\3")),
        wrap(EXPLICIT_0, CERTIFICATE), wrap(SET, signer),
    )))  # fmt: skip
    content = wrap(SEQUENCE, wrap(OBJECT_ID, bytes.fromhex("2a864886f70d010702")) + wrap(EXPLICIT_0, signed))
    listed = efi.certificate_list(CERTIFICATE)
    header = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, 2) + struct.pack("<HHHH", 4, 20, 0xB, 32) + b"\0"
    event = struct.pack("<IIIH20sH32sI", 7, 4, 2, 4, bytes(20), 0xB, bytes(32), 4) + bytes(4)
    log = struct.pack("<II20sI", 0, 3, bytes(20), len(header)) + header + event * 2
    content_of = {"eventType": "phase", "string": "enter-initrd"}
    record = {"pcr": 11, "digests": [{"hashAlg": "sha256", "digest": HEX}], "content": content_of}
    text = f"freehold-measured 1\nimage {HEX}\nrelease 7\nmachine {MACHINE}\nintent valid\nserial 7\nlock locked\nsigned {HEX}\n"
    text += "rescue no\nguard locked\ndevice-key yes\n"
    denial = {"rule": "exec", "comm": "bash", "path": "tmp/x/y", "count": 1, "last": 5.5, "uid": 0, "pid": 1, "mode": "locked"}
    evidence = document.Evidence(1, MACHINE, "quiet", b"", b"", b"", b"{}", b"s", None, {"a": 1}, {}, text.encode())
    attestation = document.Attestation(bytes(32), b"k", b"q", b"s", (bytes(32),) * len(document.PCRS), b"{}")
    identity = document.Identity(
        MACHINE, 1, b"k", (document.Endorsement("rsa", b"p", None),),
        dict.fromkeys(document.FIRMWARE_PCRS, bytes(32)), (bytes(32),),
        dict.fromkeys(document.VARIABLES, bytes(32)), {"owner-me.der": CERTIFICATE}, True,
    )  # fmt: skip
    key = device.KeyFile("tpm2", MACHINE, b"public", b"secret", b"sealed", (HEX,))
    entry = "freehold-1.0-0123456789abcdef+3-1.efi\nfreehold-1.1-fedcba9876543210.efi\nfreehold-rescue-1.0-0123456789abcdef.efi\n"
    listing = b'{"blockdevices": [{"path": "/dev/sdb1", "fstype": "vfat", "partlabel": "x", "label": "", "mountpoints": [null]}]}'
    ignition = b'{"ignition": {"version": "3.4.0"}, "storage": {"disks": [{}]}, "kernelArguments": {}}'
    return [
        *chosen(0, manifest.serialize_manifest(release), manifest.serialize_manifest(derived)),
        *chosen(1, manifest.serialize_stream(manifest.Stream("stable", "1.0", HEX, 7))), *chosen(2, copies),
        *chosen(3, CERTIFICATE, signed), *chosen(4, signed), *chosen(5, CERTIFICATE),
        *chosen(6, _program(b"quiet freehold.image=ab")),
        *chosen(7, listed, listed * 2), *chosen(8, efi.variable_update("dbx", listed, 1_700_000_000, lambda _: content)),
        *chosen(9, log),
        *chosen(10, eventlog.serialize_variable(eventlog.Variable(efi.GLOBAL_VARIABLE, "SecureBoot", b"\1"))),
        *chosen(11, b"\x1e" + json.dumps(record).encode() + b"\n"), *chosen(12, b""), *chosen(13, text.encode()),
        *chosen(14, document.serialize_attestation(attestation)), *chosen(15, document.serialize_evidence(evidence)),
        *chosen(16, document.serialize_identity(identity)), *chosen(17, b"\xffTCG\x80\x18"), *chosen(18, b"\0\x23\0\x0b"),
        *chosen(19, device.write_key(key), device.write_request(device.Request(MACHINE, CERTIFICATE))),
        *chosen(20, device.write_facts(device.Facts("file", HEX, 1, 2))), *chosen(21, b'{"a": [1, {"b": "c"}]}'),
        *chosen(22, entry.encode()), *chosen(23, json.dumps([denial]).encode()),
        *chosen(24, b"/x/y\n25 1 8:1 / / rw - ext4 /dev/sda1 rw\n26 25 8:1 /x /mnt\\040a rw\n"),
        *chosen(25, ignition, b"enable a.service\ndisable b.timer\n"),
        *chosen(26, etc_request.pack(intent.serialize(PLAIN), etc_request.Carried("commit", b"image", b"before", b"standing"))),
        *chosen(27, pcr.serialize([pcr.Policy((7, 11), bytes(32), bytes(32), b"signature")])), *chosen(28, listing),
        *chosen(29, b'[update]\nurl = "https://updates.example.org/x"\nstream = "stable"\n'),
    ]  # fmt: skip


def _program(line: bytes) -> bytes:
    """A small EFI program with a command line."""
    optional = bytearray(240)
    struct.pack_into("<H", optional, 0, 0x20B)
    struct.pack_into("<II", optional, 32, 4096, 512)
    struct.pack_into("<II", optional, 56, 3 * 4096, 1024)
    struct.pack_into("<I", optional, 108, 16)
    rows = struct.pack("<8sIIII16x", b".cmdline", len(line), 4096, 512, 1024)
    rows += struct.pack("<8sIIII16x", b".linux", 100, 8192, 512, 1536)
    coff = struct.pack("<4sHHIIIHH", b"PE\0\0", 0x8664, 2, 0, 0, 0, len(optional), 0x22E)
    head = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 64) + coff + bytes(optional) + rows
    return head.ljust(1024, b"\0") + line.ljust(512, b"\0") + bytes(512)
