# SPDX-License-Identifier: Apache-2.0
"""The two files of an attestation: the attestation itself and a machine's identity (docs/attest.md). All pure.

Both are JSON. Binary parts are base64; the evidence is one such part, so that what was hashed is a row of bytes
and not a question of how JSON is spelt. Parsing refuses what is missing, of the wrong type, or too large.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from freehold.attest import measured, tpm, userlog
from freehold.errors import InputError
from freehold.keys import eventlog
from freehold.keys.formats import MAX_REVOKED_BYTES
from freehold.keys.verify import MAX_CERTIFICATE_BYTES, MAX_CERTIFICATES
from freehold.keys.wire import json_object
from freehold.lock.intent import MAX_SIGNED_BYTES
from freehold.update.manifest import MANIFEST_LIMIT, SIGNATURE_LIMIT

ATTESTATION_FORMAT = "freehold-attestation 1"
EVIDENCE_FORMAT = "freehold-evidence 1"
IDENTITY_FORMAT = "freehold-identity 1"
MAX_ATTESTATION_BYTES = 32 << 20
MAX_EVIDENCE_BYTES = 20 << 20
MAX_IDENTITY_BYTES = 2 << 20
MAX_COMMAND_LINE = 4096
MAX_ACCOUNT_BYTES = 64 << 10
MAX_PROGRAMS = 64
#: The PCRs that are quoted, and those of the firmware itself, which an identity remembers.
PCRS = tuple(range(16))
FIRMWARE_PCRS = (0, 2, 3)
VARIABLES = ("PK", "KEK", "db")
MIN_NONCE, MAX_NONCE = 16, 64

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MACHINE = re.compile(r"[0-9a-f]{32}|")
_NONCE = re.compile(r"(?:[0-9a-fA-F]{2}){16,64}")


@dataclass(frozen=True)
class Attestation:
    """A quote and what it is about. ``key`` is a ``TPM2B_PUBLIC``; ``pcrs`` are the values of :data:`PCRS`."""

    nonce: bytes
    key: bytes
    quote: bytes
    signature: bytes
    pcrs: tuple[bytes, ...]
    evidence: bytes


@dataclass(frozen=True)
class Evidence:
    """What the machine says beside the quote. ``boot`` and ``guard`` are its own account, nothing measures them.

    ``measured`` is the text that the early step measured; ``None`` where it did not.
    """

    time: int
    machine: str
    command_line: str
    firmware_log: bytes
    system_log: bytes
    ima_log: bytes
    manifest: bytes
    manifest_signature: bytes
    intent: bytes | None
    boot: Mapping[str, object]
    guard: Mapping[str, object]
    measured: bytes | None = None


@dataclass(frozen=True)
class Endorsement:
    """An endorsement key of the TPM: ``TPM2B_PUBLIC``, and the maker's certificate (DER) where there is one."""

    kind: str
    public: bytes
    certificate: bytes | None


@dataclass(frozen=True)
class Identity:
    """A machine as its owner trusted it. ``variables``: SHA-256 of PK, KEK and db; ``programs``: as in PCR 4.

    ``measures``: its early step reaches the TPM, so that PCR 15 begins with its text. On a machine where it does not,
    root of the running system is the first, and could measure any text.
    """

    machine: str
    time: int
    key: bytes
    endorsements: tuple[Endorsement, ...]
    firmware: Mapping[int, bytes]
    programs: tuple[bytes, ...]
    variables: Mapping[str, bytes]
    keychain: Mapping[str, bytes]
    measures: bool = False


def qualifying(nonce: bytes, evidence: bytes) -> bytes:
    """What the TPM is asked to sign with the PCRs: it ties nonce, evidence and quote together."""
    return hashlib.sha256(nonce + hashlib.sha256(evidence).digest()).digest()


def parse_nonce(text: str) -> bytes:
    """A nonce as people give it: hex of 16 to 64 bytes. :class:`InputError` otherwise."""
    if not _NONCE.fullmatch(text):
        raise InputError(
            f"the nonce must be hex digits, {MIN_NONCE} to {MAX_NONCE} bytes",
            hint="make a fresh one: openssl rand -hex 32",
        )
    return bytes.fromhex(text)


def serialize_attestation(value: Attestation) -> bytes:
    """The attestation's file."""
    return _dump({
        "format": ATTESTATION_FORMAT, "nonce": value.nonce.hex(), "key": _b64(value.key), "quote": _b64(value.quote),
        "signature": _b64(value.signature), "pcrs": {str(pcr): one.hex() for pcr, one in zip(PCRS, value.pcrs, strict=True)},
        "evidence": _b64(value.evidence),
    })  # fmt: skip


def parse_attestation(data: bytes) -> Attestation:
    """Read an attestation's file; :class:`InputError` lists every fault."""
    reader = _Reader(data, "the attestation", MAX_ATTESTATION_BYTES, ATTESTATION_FORMAT)
    nonce = reader.text("nonce", _NONCE)
    pcrs = reader.digests("pcrs", tuple(map(str, PCRS)))
    result = Attestation(
        bytes.fromhex(nonce), reader.binary("key", tpm.MAX_PUBLIC_BYTES), reader.binary("quote", tpm.MAX_QUOTE_BYTES),
        reader.binary("signature", tpm.MAX_SIGNATURE_BYTES), tuple(pcrs.values()),
        reader.binary("evidence", MAX_EVIDENCE_BYTES),
    )  # fmt: skip
    reader.finish()
    return result


def serialize_evidence(value: Evidence) -> bytes:
    """The evidence's bytes, which the quote covers."""
    return _dump({
        "format": EVIDENCE_FORMAT, "time": value.time, "machine": value.machine, "command_line": value.command_line,
        "firmware_log": _b64(value.firmware_log), "system_log": _b64(value.system_log), "ima_log": _b64(value.ima_log),
        "manifest": _b64(value.manifest), "manifest_signature": _b64(value.manifest_signature),
        "intent": None if value.intent is None else _b64(value.intent), "boot": value.boot, "guard": value.guard,
        "measured": None if value.measured is None else _b64(value.measured),
    })  # fmt: skip


def parse_evidence(data: bytes) -> Evidence:
    """Read the evidence; :class:`InputError` lists every fault."""
    reader = _Reader(data, "the evidence", MAX_EVIDENCE_BYTES, EVIDENCE_FORMAT)
    has_intent = reader.fields.get("intent") is not None
    has_measured = reader.fields.get("measured") is not None
    result = Evidence(
        reader.number("time"), reader.text("machine", _MACHINE), reader.line("command_line", MAX_COMMAND_LINE),
        reader.binary("firmware_log", eventlog.MAX_LOG_BYTES), reader.binary("system_log", userlog.MAX_LOG_BYTES),
        reader.binary("ima_log", userlog.MAX_LOG_BYTES), reader.binary("manifest", MANIFEST_LIMIT),
        reader.binary("manifest_signature", SIGNATURE_LIMIT),
        reader.binary("intent", MAX_SIGNED_BYTES) if has_intent else None, reader.account("boot"), reader.account("guard"),
        reader.binary("measured", measured.MAX_BYTES) if has_measured else None,
    )  # fmt: skip
    reader.finish()
    return result


def serialize_identity(value: Identity) -> bytes:
    """The identity's file."""
    ends = [
        {"kind": one.kind, "public": _b64(one.public), "certificate": None if one.certificate is None else _b64(one.certificate)}
        for one in value.endorsements
    ]
    return _dump({
        "format": IDENTITY_FORMAT, "machine": value.machine, "time": value.time, "key": _b64(value.key), "endorsements": ends,
        "firmware": {str(pcr): one.hex() for pcr, one in value.firmware.items()},
        "programs": [one.hex() for one in value.programs],
        "variables": {name: one.hex() for name, one in value.variables.items()},
        "keychain": {name: _b64(one) for name, one in value.keychain.items()}, "measures": value.measures,
    }, indent=1)  # fmt: skip


def parse_identity(data: bytes) -> Identity:
    """Read an identity's file; :class:`InputError` lists every fault."""
    reader = _Reader(data, "the identity", MAX_IDENTITY_BYTES, IDENTITY_FORMAT)
    programs = reader.fields.get("programs")
    found: list[bytes] = []
    if isinstance(programs, list) and len(programs) <= MAX_PROGRAMS:
        found = [bytes.fromhex(one) for one in programs if isinstance(one, str) and _DIGEST.fullmatch(one)]
    if not isinstance(programs, list) or len(found) != len(programs):
        reader.faults.append(f"programs: at most {MAX_PROGRAMS} SHA-256 digests expected")
    firmware = reader.digests("firmware", tuple(map(str, FIRMWARE_PCRS)))
    result = Identity(
        reader.text("machine", _MACHINE), reader.number("time"), reader.binary("key", tpm.MAX_PUBLIC_BYTES),
        tuple(reader.endorsements()), {int(pcr): one for pcr, one in firmware.items()}, tuple(found),
        reader.digests("variables", VARIABLES), reader.files("keychain"),
        reader.fields.get("measures") is True,
    )  # fmt: skip
    reader.finish()
    return result


def _dump(value: object, indent: int | None = None) -> bytes:
    return json.dumps(value, sort_keys=True, indent=indent, allow_nan=False).encode() + b"\n"


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class _Reader:
    """Takes typed values out of a JSON object and collects every fault."""

    def __init__(self, data: bytes, what: str, limit: int, wanted: str) -> None:
        if len(data) > limit:
            raise InputError(f"{what} is larger than {limit} bytes")
        try:
            value = json_object(data)
        except ValueError:
            raise InputError(f"{what} is not JSON, or cut short") from None
        if value.get("format") != wanted:
            raise InputError(f"{what} has not the format {wanted!r}")
        self.what = what
        self.fields = value
        self.faults: list[str] = []

    def text(self, key: str, pattern: re.Pattern[str]) -> str:
        value = self.fields.get(key)
        if isinstance(value, str) and pattern.fullmatch(value):
            return value
        self.faults.append(f"{key}: is missing or not as it should be")
        return ""

    def line(self, key: str, most: int) -> str:
        value = self.fields.get(key)
        if isinstance(value, str) and len(value) <= most and value.isprintable():
            return value
        self.faults.append(f"{key}: one printable line of at most {most} characters expected")
        return ""

    def number(self, key: str) -> int:
        value = self.fields.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40:
            return value
        self.faults.append(f"{key}: a number expected")
        return 0

    def decoded(self, key: str, value: object, most: int) -> bytes:
        if isinstance(value, str) and len(value) <= (most + 2) // 3 * 4:
            try:
                return base64.b64decode(value, validate=True)
            except (binascii.Error, ValueError):
                pass
        self.faults.append(f"{key}: base64 of at most {most} bytes expected")
        return b""

    def binary(self, key: str, most: int) -> bytes:
        return self.decoded(key, self.fields.get(key), most)

    def digests(self, key: str, names: tuple[str, ...]) -> dict[str, bytes]:
        value = self.fields.get(key)
        if isinstance(value, dict) and set(value) == set(names):
            pairs = [(name, value[name]) for name in names]
            if all(isinstance(one, str) and _DIGEST.fullmatch(one) for _, one in pairs):
                return {name: bytes.fromhex(str(one)) for name, one in pairs}
        self.faults.append(f"{key}: SHA-256 digests of {', '.join(names)} expected")
        return dict.fromkeys(names, bytes(32))

    def account(self, key: str) -> dict[str, object]:
        value = self.fields.get(key)
        try:
            if isinstance(value, dict) and len(json.dumps(value)) <= MAX_ACCOUNT_BYTES:
                return value
        except (ValueError, RecursionError):
            pass
        self.faults.append(f"{key}: an object of at most {MAX_ACCOUNT_BYTES} bytes expected")
        return {}

    def files(self, key: str) -> dict[str, bytes]:
        value = self.fields.get(key)
        if not isinstance(value, dict) or len(value) > MAX_CERTIFICATES + 1:
            self.faults.append(f"{key}: at most {MAX_CERTIFICATES + 1} files expected")
            return {}
        most = max(MAX_CERTIFICATE_BYTES, MAX_REVOKED_BYTES)
        return {name: self.decoded(f"{key}.{name[:80]}", one, most) for name, one in value.items()}

    def endorsements(self) -> list[Endorsement]:
        value = self.fields.get("endorsements")
        if not isinstance(value, list) or len(value) > 4 or not all(isinstance(one, dict) for one in value):
            self.faults.append("endorsements: at most 4 objects expected")
            return []
        found = []
        for one in value:
            certificate = one.get("certificate")
            found.append(
                Endorsement(
                    "ecc" if one.get("kind") == "ecc" else "rsa",
                    self.decoded("endorsements.public", one.get("public"), tpm.MAX_PUBLIC_BYTES),
                    None if certificate is None
                    else self.decoded("endorsements.certificate", certificate, MAX_CERTIFICATE_BYTES),
                )
            )  # fmt: skip
        return found

    def finish(self) -> None:
        if self.faults:
            raise InputError(f"{self.what} cannot be used", faults=self.faults)
