# SPDX-License-Identifier: Apache-2.0
"""A machine's boot as a TPM and its logs would tell it, made from scratch: for tests of attestation.

Written from the specifications and not with the code under test, so that the two are readers of each other.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass, field
from uuid import UUID

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from lab_pe import OPTIONAL, whole
from lab_release import key, manifest

from freehold.attest.document import Attestation, Evidence, Identity, qualifying, serialize_evidence
from freehold.keys.verify import Keychain
from freehold.lock import intent
from freehold.update.manifest import serialize_manifest

GLOBAL = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
DATABASE = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
X509 = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
SOMEBODY = UUID("11111111-2222-3333-4444-555555555555")
MACHINE = "ab" * 16
NONCE = bytes(range(32))
SEPARATOR, ACTION, IPL = 4, 0x80000007, 0x0D
DRIVER_CONFIG, AUTHORITY, APPLICATION = 0x80000001, 0x800000E0, 0x80000003
RESTRICTED = 0x00050472


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


@dataclass(frozen=True)
class Made:
    """One measurement; ``digest`` is that of ``data`` unless it is given."""

    pcr: int
    kind: int
    data: bytes
    digest: bytes


def event(pcr: int, kind: int, data: bytes, digest: bytes | None = None) -> Made:
    return Made(pcr, kind, data, sha(data) if digest is None else digest)


def log_of(events: list[Made], locality: int | None = None) -> bytes:
    """A crypto-agile log with SHA-1 and SHA-256 digests."""
    head = (
        b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, 2) + struct.pack("<HHHH", 4, 20, 0xB, 32) + b"\0"
    )
    log = struct.pack("<II20sI", 0, 3, bytes(20), len(head)) + head
    rows = list(events)
    if locality is not None:
        rows.insert(0, Made(0, 3, b"StartupLocality\0" + bytes([locality]), bytes(32)))
    for one in rows:
        digests = struct.pack("<H20sH32s", 4, hashlib.sha1(one.data, usedforsecurity=False).digest(), 0xB, one.digest)
        log += struct.pack("<III", one.pcr, one.kind, 2) + digests + struct.pack("<I", len(one.data)) + one.data
    return log


def variable(guid: UUID, name: str, data: bytes) -> bytes:
    return guid.bytes_le + struct.pack("<QQ", len(name), len(data)) + name.encode("utf-16-le") + data


def signature_list(der: bytes) -> bytes:
    body = SOMEBODY.bytes_le + der
    return X509.bytes_le + struct.pack("<III", 28 + len(body), 0, len(body)) + body


def system_record(pcr: int, kind: str, text: str) -> bytes:
    digests = [{"hashAlg": "sha256", "digest": sha(text.encode()).hex()}]
    content = {"eventType": kind, "string": text, "bootId": "0" * 32}
    return (
        b"\x1e"
        + json.dumps({"pcr": pcr, "digests": digests, "content_type": "systemd", "content": content}).encode()
        + b"\n"
    )


def authenticode(program: bytes) -> bytes:
    """Of a program of :mod:`lab_pe`: everything but the checksum and the entry for certificates."""
    return sha(program[: OPTIONAL + 64] + program[OPTIONAL + 68 : OPTIONAL + 144] + program[OPTIONAL + 152 :])


@dataclass
class Boot:
    """One boot of one machine; change a field, then :meth:`attestation`."""

    seed: int = 1
    secure_boot: bytes = b"\1"
    image: str = "1" * 64
    lock: intent.Lock = "locked"
    system_log: bytes = system_record(11, "phase", "sysinit") + system_record(15, "machine-id", f"machine-id:{MACHINE}")
    loader: bytes = sha(b"loader")
    more: list[Made] = field(default_factory=list)
    attributes: int = RESTRICTED
    locality: int | None = None
    #: What its early step measures of the lock; "" for one that measures nothing, as older releases.
    measures: str = "locked"
    strict: bool = False

    def __post_init__(self) -> None:
        self.private = ec.derive_private_key(self.seed, ec.SECP256R1())
        self.cmdline = f"freehold.image={self.image} ro console=ttyS0"
        self.sections = {
            ".text": b"stub", ".osrel": b"ID=freehold\n", ".cmdline": self.cmdline.encode(),
            ".linux": whole((".text", b"kernel")), ".initrd": b"initrd" * 99, ".uname": b"6.12", ".sbat": b"sbat,1\n",
        }  # fmt: skip
        self.uki = whole(*self.sections.items())
        self.vendor, self.owner = key("release", "vendor"), key("owner", "me")
        self.keychain = {"release-vendor.der": self.vendor.certificate, "owner-me.der": self.owner.certificate}
        self.db = signature_list(self.vendor.certificate)
        self.machine_log: list[Made] = self.events()

    def events(self) -> list[Made]:
        db_entry = SOMEBODY.bytes_le + self.vendor.certificate
        found = [
            event(0, 8, b"1.0\0"), event(0, 0x8000000A, b"blob", sha(b"firmware volume")),
            *(
                event(7, DRIVER_CONFIG, variable(guid, name, data))
                for guid, name, data in [
                    (GLOBAL, "SecureBoot", self.secure_boot), (GLOBAL, "PK", signature_list(self.owner.certificate)),
                    (GLOBAL, "KEK", signature_list(self.owner.certificate)), (DATABASE, "db", self.db), (DATABASE, "dbx", b""),
                ]
            ),
            *(event(pcr, SEPARATOR, bytes(4)) for pcr in range(8)),
            event(4, ACTION, b"Calling EFI Application from Boot Option"),
        ]  # fmt: skip
        if self.secure_boot == b"\1":
            found.append(event(7, AUTHORITY, variable(DATABASE, "db", db_entry)))
        found.append(event(4, APPLICATION, b"path of the loader", self.loader))
        found.append(event(4, APPLICATION, b"path of the image", authenticode(self.uki)))
        for name in (".linux", ".osrel", ".cmdline", ".initrd", ".uname", ".sbat"):
            found.append(event(11, IPL, name.encode("utf-16-le") + b"\0\0", sha(name.encode() + b"\0")))
            found.append(event(11, IPL, name.encode("utf-16-le") + b"\0\0", sha(self.sections[name])))
        return [*found, event(5, ACTION, b"Exit Boot Services Invocation")]

    def pcrs(self) -> tuple[bytes, ...]:
        values = [bytes(32)] * 16
        values[0] = bytes(31) + bytes([self.locality or 0])
        for one in [*self.machine_log, *self.more]:
            values[one.pcr] = sha(values[one.pcr] + one.digest)
        if text := self.measured():
            word = b"freehold-locked" if text.endswith(b"device-key yes\n") else b"freehold-not-locked"
            values[11] = sha(values[11] + sha(word))
            values[15] = sha(values[15] + sha(text))
        for part in self.system_log.split(b"\x1e")[1:]:
            value = json.loads(part)
            values[value["pcr"]] = sha(values[value["pcr"]] + bytes.fromhex(value["digests"][0]["digest"]))
        return tuple(values)

    def public(self) -> bytes:
        numbers = self.private.public_key().public_numbers()
        x, y = (one.to_bytes(32, "big") for one in (numbers.x, numbers.y))
        area = struct.pack(">HHIHHHHHH", 0x23, 0xB, self.attributes, 0, 0x10, 0x18, 0xB, 3, 0x10)
        area += struct.pack(">H32sH32s", 32, x, 32, y)
        return struct.pack(">H", len(area)) + area

    def signer(self) -> bytes:
        return b"\0\x0b" + sha(bytes.fromhex("4000000b") + b"\0\x0b" + sha(self.public()[2:]))

    def quote(self, extra: bytes, pcrs: tuple[bytes, ...], *, magic: int = 0xFF544347, kind: int = 0x8018) -> bytes:
        head = struct.pack(">IHH34sH32s", magic, kind, 34, self.signer(), 32, extra)
        tail = struct.pack(">QIIBQIHB3sH32s", 5000, 7, 0, 1, 1, 1, 0xB, 3, b"\xff\xff\0", 32, sha(b"".join(pcrs)))
        return head + tail

    def sign(self, data: bytes) -> bytes:
        r, s = decode_dss_signature(self.private.sign(data, ec.ECDSA(hashes.SHA256())))
        return struct.pack(">HHH32sH32s", 0x18, 0xB, 32, r.to_bytes(32, "big"), 32, s.to_bytes(32, "big"))

    def manifest(self) -> tuple[bytes, bytes]:
        value = manifest("1.0", 1000)[0]
        uki = value.uki._replace(sha256=sha(self.uki).hex(), size=len(self.uki))
        data = serialize_manifest(value._replace(image_digest=self.image, uki=uki))
        return data, self.vendor.sign(data)

    def intent(self, serial: int = 4) -> bytes:
        from cryptography.hazmat.primitives.asymmetric import padding

        wanted = intent.Intent(machine=MACHINE, serial=serial, lock=self.lock, since=5)
        return intent.sign(wanted, lambda text: self.owner.private.sign(text, padding.PKCS1v15(), hashes.SHA256()))

    def measured(self, **changes: object) -> bytes | None:
        """docs/attest.md, "What a boot measures"."""
        if not self.measures:
            return None
        rescue = self.measures == "rescue"
        lock = self.lock if rescue else self.measures
        fields: dict[str, object] = {
            "image": self.image, "release": 5, "machine": MACHINE, "intent": "valid", "serial": 4, "lock": lock,
            "signed": sha(self.intent()).hex(), "rescue": "yes" if rescue else "no",
            "guard": "none" if lock == "open" and not rescue else "locked" if rescue else lock,
            "device-key": "yes" if self.measures == "locked" and not self.strict else "no",
        } | changes  # fmt: skip
        lines = ["freehold-measured 1", *(f"{name} {value}" for name, value in fields.items())]
        return "".join(f"{line}\n" for line in lines).encode()

    def evidence(self) -> Evidence:
        return Evidence(
            1000, MACHINE, self.cmdline, log_of([*self.machine_log, *self.more], self.locality), self.system_log, b"",
            *self.manifest(), self.intent(), {"keychain_source": "firmware"}, {"loaded": True, "mode": "locked"},
            self.measured(),
        )  # fmt: skip

    def attestation(self, nonce: bytes = NONCE, evidence: Evidence | None = None) -> Attestation:
        data = serialize_evidence(evidence or self.evidence())
        quote = self.quote(qualifying(nonce, data), self.pcrs())
        return Attestation(nonce, self.public(), quote, self.sign(quote), self.pcrs(), data)

    def identity(self) -> Identity:
        pcrs = self.pcrs()
        owner = signature_list(self.owner.certificate)
        return Identity(
            MACHINE, 1, self.public(), (), {pcr: pcrs[pcr] for pcr in (0, 2, 3)}, (self.loader, authenticode(self.uki)),
            {"PK": sha(owner), "KEK": sha(owner), "db": sha(self.db)}, self.keychain,
            bool(self.measures),
        )  # fmt: skip

    def trusted(self) -> Keychain:
        return Keychain.from_files(self.keychain, "lab")
