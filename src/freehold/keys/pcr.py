# SPDX-License-Identifier: Apache-2.0
"""What a boot leaves in the TPM's registers (PCRs), computed beforehand, and signed policies over it. All pure.

Formats: the sections of a unified kernel image and how systemd-stub 257 measures them (UAPI "Unified Kernel Image", and
``systemd-measure``, which the tests compare with); policy digests of the TPM 2.0 library specification, part 3
(TPM2_PolicyPCR, TPM2_PolicyAuthorize); the signature file of ``systemd-measure sign``, which ``systemd-creds`` reads.
SHA-256 bank only.
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
MAX_UKI_BYTES = 512 << 20
MAX_SECTIONS = 96
MAX_SIGNATURE_FILE = 256 << 10
MAX_POLICIES = 256
#: In the order in which systemd-stub measures them. What it never measures is ".pcrsig".
_MEASURED = (
    ".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey", ".profile",
    ".dtbauto", ".hwids",
)  # fmt: skip
#: Which of these is used depends on the board: nothing that can be known beforehand.
_CHOSEN_BY_HARDWARE = (".dtbauto", ".hwids")
_SHA256_ALGORITHM, _POLICY_PCR = 0x000B, 0x017F
_HEX = re.compile(r"[0-9a-f]{64}")
_SECTION = struct.Struct("<8sIIII16x")


class Policy(NamedTuple):
    """One line of a signature file: registers, fingerprint of the key, policy digest and the key's signature over it."""

    pcrs: tuple[int, ...]
    key: bytes
    digest: bytes
    signature: bytes


def extend(value: bytes, data: bytes) -> bytes:
    """A register after ``data`` was measured into it."""
    return hashlib.sha256(value + hashlib.sha256(data).digest()).digest()


def after(value: bytes, words: Iterable[str]) -> bytes:
    """A register after the ``words`` of a boot's progress, which are measured without an end."""
    for word in words:
        value = extend(value, word.encode())
    return value


def kernel_register(uki: bytes) -> bytes:
    """PCR 11 when systemd-stub hands over to the kernel of ``uki`` (its first profile): before any word.

    :class:`ValueError` says why ``uki`` is not one whose start can be foreseen.
    """
    value = ZERO
    content = _first_profile(_sections(uki))
    for name in _MEASURED:
        if name not in content:
            continue
        if name in _CHOSEN_BY_HARDWARE:
            raise ValueError(f"has a section {name}, whose use depends on the board")
        start, stored, size = content[name]
        value = extend(value, name.encode() + b"\0")
        value = extend(value, uki[start : start + min(stored, size)].ljust(size, b"\0"))
    if ".linux" not in content:
        raise ValueError("has no kernel")
    return value


def _sections(image: bytes) -> list[tuple[str, int, int, int]]:
    """Name, place in the file, stored bytes and size in memory of each section of a PE image."""
    if len(image) > MAX_UKI_BYTES:
        raise ValueError(f"is larger than {MAX_UKI_BYTES} bytes")
    try:
        if image[:2] != b"MZ":
            raise ValueError("is no EFI program")
        (head,) = struct.unpack_from("<I", image, 0x3C)
        magic, count, optional = struct.unpack_from("<4s2xH12xH", image, head)
        if magic != b"PE\0\0" or not 1 <= count <= MAX_SECTIONS:
            raise ValueError("is no EFI program")
        rows = [_SECTION.unpack_from(image, head + 24 + optional + 40 * number) for number in range(count)]
    except struct.error:
        raise ValueError("is cut short") from None
    found = []
    total = 0
    for raw, size, _, stored, start in rows:
        total += size
        if start > len(image) or stored > len(image) - start or total > MAX_UKI_BYTES:
            raise ValueError("has a section that lies outside")
        found.append((raw.rstrip(b"\0").decode("ascii", errors="replace"), start, stored, size))
    return found


def _first_profile(sections: list[tuple[str, int, int, int]]) -> dict[str, tuple[int, int, int]]:
    """What is started unless the menu says otherwise: the common sections, and over them those of the first profile."""
    common: dict[str, tuple[int, int, int]] = {}
    profile: dict[str, tuple[int, int, int]] = {}
    profiles = 0
    for name, start, stored, size in sections:
        profiles += name == ".profile"
        if profiles < 2:
            # Of two sections of one name the stub takes the first.
            (profile if profiles else common).setdefault(name, (start, stored, size))
    return {**common, **profile}


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
