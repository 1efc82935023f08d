# SPDX-License-Identifier: Apache-2.0
"""What a boot leaves in the TPM's registers (PCRs), computed beforehand, and signed policies over it. All pure.

Formats: how systemd-stub 257 measures the sections of a unified kernel image (each: first its name with a NUL, then what is
in memory; ``src/boot/stub.c``, and ``systemd-measure``, which the tests compare with); what firmware measures when an entry
of db vouches (TCG PC Client Platform Firmware Profile, 3.3.4.8: a UEFI_VARIABLE_DATA with the entry); policy digests of the
TPM 2.0 library specification, part 3 (TPM2_PolicyPCR, TPM2_PolicyAuthorize); the signature file of ``systemd-measure sign``,
which ``systemd-creds`` reads. SHA-256 bank only.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from freehold.keys import efi, pe
from freehold.keys.eventlog import Variable, serialize_variable

#: Secure Boot's variables, and which of its certificates vouched for what was started.
SECURE_BOOT_PCR = 7
#: What systemd-stub started, then words of how far the boot came.
KERNEL_PCR = 11
#: Words that the early step (``early/measure.c``) puts into PCR 11, about the owner's intent.
LOCKED, NOT_LOCKED = "freehold-locked", "freehold-not-locked"
#: The boots in which the device key may be had: a valid, locked and not strict intent, before, while and after systemd's
#: own words (systemd-pcrphase-sysinit.service, systemd-pcrphase.service). Not after its words of shutting down.
PHASES: tuple[tuple[str, ...], ...] = ((LOCKED,), (LOCKED, "sysinit"), (LOCKED, "sysinit", "ready"))

ZERO = bytes(32)
MAX_SIGNATURE_FILE = 256 << 10
MAX_POLICIES = 256
#: Which of these sections is used depends on the board: nothing that can be known beforehand.
_CHOSEN_BY_HARDWARE = (".dtbauto", ".hwids")
_SHA256_ALGORITHM, _POLICY_PCR = 0x000B, 0x017F
_HEX = re.compile(r"[0-9a-f]{64}")


class Policy(NamedTuple):
    """One line of a signature file: registers, fingerprint of the key, policy digest and the key's signature over it."""

    pcrs: tuple[int, ...]
    key: bytes
    digest: bytes
    signature: bytes


def extend(value: bytes, digest: bytes) -> bytes:
    """A register after ``digest`` was extended into it."""
    return hashlib.sha256(value + digest).digest()


def replay(digests: Iterable[bytes], value: bytes = ZERO) -> bytes:
    """A register after ``digests`` were extended into ``value``, in order."""
    for digest in digests:
        value = extend(value, digest)
    return value


def after(value: bytes, words: Iterable[str]) -> bytes:
    """A register after the ``words`` of a boot's progress, which are measured without an end."""
    return replay((hashlib.sha256(word.encode()).digest() for word in words), value)


def name_digest(name: str) -> bytes:
    """What systemd-stub measures before the content of the section ``name``."""
    return hashlib.sha256(name.encode() + b"\0").digest()


def section_digests(program: pe.Program) -> dict[str, bytes]:
    """What systemd-stub measures of the contents of the first profile's sections, by name and in its order."""
    first = program.first_profile()
    return {name: hashlib.sha256(program.loaded(first[name])).digest() for name in pe.MEASURED if name in first}


def kernel_register(uki: bytes) -> bytes:
    """PCR 11 when systemd-stub hands over to the kernel of ``uki`` (its first profile): before any word.

    :class:`ValueError` says why ``uki`` is not one whose start can be foreseen.
    """
    digests = section_digests(pe.parse(uki))
    for name in _CHOSEN_BY_HARDWARE:
        if name in digests:
            raise ValueError(f"it has a section {name}, whose use depends on the board")
    if ".linux" not in digests:
        raise ValueError("it has no kernel")
    return replay(one for name, digest in digests.items() for one in (name_digest(name), digest))


def vouching(entry: efi.Signature) -> bytes:
    """The digest that is measured into PCR 7 when this entry of db vouches for what is started."""
    data = entry.owner.bytes_le + entry.data
    return hashlib.sha256(serialize_variable(Variable(efi.IMAGE_SECURITY_DATABASE, "db", data))).digest()


def foresee(events: Sequence[bytes], db: Sequence[efi.Signature], owner: bytes) -> tuple[bytes, ...]:
    """The values of PCR 7 in this boot and in those that a change of deployment leads to; this boot's first.

    PCR 7 says that Secure Boot is on, with which PK, KEK, db and dbx, and then, in the order of first use, which entries of
    db vouched for what was started. A release's images are vouched for by its vendor's entry, a derived image by the
    owner's: the same machine has one value before and another after its owner's first change. So the values are foreseen: the
    log's events without the vouching at their end, and the orders of vouching that can follow.

    ``events`` are PCR 7's of this boot, ``db`` the firmware's entries, ``owner`` the owner's certificate (DER), which
    vouches for derived images, where db has it.
    """
    known = {vouching(entry) for entry in db if entry.type == efi.CERT_X509}
    owners = [vouching(entry) for entry in db if entry.type == efi.CERT_X509 and entry.data == owner]
    end = len(events)
    while end and events[end - 1] in known:
        end -= 1
    head, vouched = list(events[:end]), list(events[end:])
    orders = [vouched]
    for mine in owners[:1]:
        others = [one for one in vouched if one != mine]
        # The loader's entry comes first and stays; the image's follows unless it is the same.
        orders += [[*others, mine], others or [mine]]
    values: list[bytes] = []
    for order in orders:
        value = replay(head + order)
        if value not in values:
            values.append(value)
    return tuple(values)


def policy_digest(registers: Mapping[int, bytes]) -> bytes:
    """The digest of a policy session after TPM2_PolicyPCR over these registers of the SHA-256 bank."""
    selected = bytearray(3)
    for number in registers:
        selected[number // 8] |= 1 << number % 8
    values = hashlib.sha256(b"".join(registers[number] for number in sorted(registers))).digest()
    selection = struct.pack(">IHB3s", 1, _SHA256_ALGORITHM, 3, bytes(selected))
    return hashlib.sha256(ZERO + struct.pack(">I", _POLICY_PCR) + selection + values).digest()


def allow(
    kernel: bytes, secure_boot: Sequence[bytes], key: bytes, sign: Callable[[bytes], bytes]
) -> tuple[Policy, ...]:
    """The policies that allow one kernel image (``kernel``: :func:`kernel_register`) in each phase of :data:`PHASES`.

    ``secure_boot`` are the values of PCR 7 to believe, ``key`` the fingerprint of the policy key (:func:`fingerprint`),
    ``sign`` its RSA PKCS#1 v1.5 signature with SHA-256.
    """
    policies = []
    for state in secure_boot:
        for phase in PHASES:
            digest = policy_digest({SECURE_BOOT_PCR: state, KERNEL_PCR: after(kernel, phase)})
            policies.append(Policy((SECURE_BOOT_PCR, KERNEL_PCR), key, digest, sign(digest)))
    return tuple(policies)


def fingerprint(public_pkcs1: bytes) -> bytes:
    """How systemd names a policy key: the SHA-256 of its bare RSA public key (PKCS#1, DER), 32 bytes."""
    return hashlib.sha256(public_pkcs1).digest()


def serialize(policies: Iterable[Policy]) -> bytes:
    """A signature file as systemd reads it. :class:`ValueError` for more than :data:`MAX_POLICIES`."""
    rows = [
        {
            "pcrs": list(policy.pcrs), "pkfp": policy.key.hex(), "pol": policy.digest.hex(),
            "sig": base64.b64encode(policy.signature).decode(),
        }
        for policy in policies
    ]  # fmt: skip
    data = json.dumps({"sha256": rows}, separators=(",", ":")).encode() + b"\n"
    if len(rows) > MAX_POLICIES or len(data) > MAX_SIGNATURE_FILE:
        raise ValueError(f"more than {MAX_POLICIES} policies")
    return data


def parse(data: bytes) -> tuple[Policy, ...]:
    """Read a signature file. :class:`ValueError` says what is wrong with it."""
    if len(data) > MAX_SIGNATURE_FILE:
        raise ValueError(f"the signature file is larger than {MAX_SIGNATURE_FILE} bytes")
    try:
        rows = json.loads(data)["sha256"]
        if not isinstance(rows, list) or len(rows) > MAX_POLICIES:
            raise ValueError(f"the signature file has more than {MAX_POLICIES} policies")
        return tuple(_policy(row) for row in rows)
    except (KeyError, TypeError, RecursionError, UnicodeError, json.JSONDecodeError, binascii.Error, AttributeError):
        raise ValueError("this is no signature file of PCR policies") from None


def _policy(row: Mapping[str, object]) -> Policy:
    pcrs, key, digest, signature = row["pcrs"], row["pkfp"], row["pol"], row["sig"]
    if not isinstance(pcrs, list) or not all(type(one) is int and 0 <= one < 24 for one in pcrs):
        raise TypeError
    if not isinstance(key, str) or not isinstance(digest, str) or not isinstance(signature, str) or len(signature) > 1024:
        raise TypeError
    if not _HEX.fullmatch(key) or not _HEX.fullmatch(digest):
        raise TypeError
    return Policy(tuple(pcrs), bytes.fromhex(key), bytes.fromhex(digest), base64.b64decode(signature, validate=True))
