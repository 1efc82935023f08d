# SPDX-License-Identifier: Apache-2.0
"""A TPM's structures as they arrive in an attestation: public area, quote, signature. Pure: bytes in, values out.

Layouts and numbers are those of the TPM 2.0 Library Specification, Part 2: ``TPMT_PUBLIC`` (12.2.4), ``TPMS_ATTEST``
(10.12.8), ``TPMS_QUOTE_INFO`` (10.12.1), ``TPMT_SIGNATURE`` (11.3.4), object attributes (8.3), names (Part 1, 16).
Only the one kind of key that ``freehold attest`` makes is accepted: ECC P-256, ECDSA with SHA-256, restricted.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from freehold.keys.wire import Reader

MAX_PUBLIC_BYTES = 1024
MAX_QUOTE_BYTES = 2048
MAX_SIGNATURE_BYTES = 1024

_MAGIC = 0xFF544347  # TPM_GENERATED_VALUE: what a restricted key signs only when its TPM wrote it
_ATTEST_QUOTE = 0x8018
_ALG_ECC, _ALG_SHA256, _ALG_NULL, _ALG_ECDSA, _CURVE_P256 = 0x0023, 0x000B, 0x0010, 0x0018, 0x0003
_ENDORSEMENT = 0x4000000B
_SIZE = 32  # bytes of a SHA-256 digest and of a coordinate on P-256
_MOST = 64

#: Object attributes: bit and the name that the specification gives it.
_ATTRIBUTES = {
    1: "fixedTPM", 2: "stClear", 4: "fixedParent", 5: "sensitiveDataOrigin", 6: "userWithAuth", 7: "adminWithPolicy",
    10: "noDA", 11: "encryptedDuplication", 16: "restricted", 17: "decrypt", 18: "sign",
}  # fmt: skip
#: What makes a key one that its TPM made, that never leaves it, and that signs nothing somebody hands to it.
REQUIRED = ("fixedTPM", "fixedParent", "sensitiveDataOrigin", "restricted", "sign")
REFUSED = ("decrypt",)


@dataclass(frozen=True)
class PublicKey:
    """An attestation key: its public area as the TPM has it, and what follows from it."""

    public: bytes
    attributes: frozenset[str]
    x: bytes
    y: bytes

    @property
    def name(self) -> bytes:
        """The TPM's name of the key: algorithm and hash of the public area."""
        return _ALG_SHA256.to_bytes(2, "big") + hashlib.sha256(self.public).digest()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the public area in hex: how people compare keys."""
        return hashlib.sha256(self.public).hexdigest()

    @property
    def qualified_name(self) -> bytes:
        """Its name as a primary key of the endorsement hierarchy, which quotes carry."""
        over = _ENDORSEMENT.to_bytes(4, "big") + self.name
        return _ALG_SHA256.to_bytes(2, "big") + hashlib.sha256(over).digest()


@dataclass(frozen=True)
class Quote:
    """What the TPM said: over which PCRs of the SHA-256 bank, their digest, and ``extra``, which the asker chose.

    ``clock`` is in milliseconds of the TPM's running; ``resets`` and ``restarts`` count boots and resumes.
    """

    signer: bytes
    extra: bytes
    clock: int
    resets: int
    restarts: int
    firmware: int
    pcrs: tuple[int, ...]
    digest: bytes


def parse_public(data: bytes) -> PublicKey:
    """A ``TPM2B_PUBLIC`` with an attestation key. :class:`ValueError` says what is wrong with it."""
    outer = Reader(data, "big")
    public = outer.sized(2, MAX_PUBLIC_BYTES)
    outer.finish()
    reader = Reader(public, "big")
    kind, name_algorithm, bits = reader.number(2), reader.number(2), reader.number(4)
    if (kind, name_algorithm) != (_ALG_ECC, _ALG_SHA256):
        raise ValueError("not an elliptic curve key named by SHA-256")
    unknown = [bit for bit in range(32) if bits >> bit & 1 and bit not in _ATTRIBUTES]
    if unknown:
        raise ValueError(f"unknown attributes of a key: bits {', '.join(map(str, unknown))}")
    attributes = frozenset(name for bit, name in _ATTRIBUTES.items() if bits >> bit & 1)
    missing = [name for name in REQUIRED if name not in attributes]
    if missing or any(name in attributes for name in REFUSED):
        what = f"it is not {', '.join(missing)}" if missing else "it also decrypts"
        raise ValueError(f"not a key that only its TPM can use, and only for quotes: {what}")
    reader.sized(2, _MOST)  # policy for its use
    scheme = tuple(reader.number(2) for _ in range(3))
    curve = tuple(reader.number(2) for _ in range(2))
    if scheme != (_ALG_NULL, _ALG_ECDSA, _ALG_SHA256) or curve != (_CURVE_P256, _ALG_NULL):
        raise ValueError("not a key for ECDSA with SHA-256 on P-256")
    x, y = reader.sized(2, _SIZE), reader.sized(2, _SIZE)
    reader.finish()
    return PublicKey(public, attributes, x, y)


def parse_quote(data: bytes) -> Quote:
    """A ``TPMS_ATTEST`` that is a quote over PCRs of the SHA-256 bank. :class:`ValueError` says why it is none."""
    if len(data) > MAX_QUOTE_BYTES:
        raise ValueError(f"larger than {MAX_QUOTE_BYTES} bytes")
    reader = Reader(data, "big")
    if reader.number(4) != _MAGIC:
        raise ValueError("it does not begin as what a TPM makes: a key signed bytes that are no TPM's")
    kind = reader.number(2)
    if kind != _ATTEST_QUOTE:
        raise ValueError(f"the TPM attests something else than PCRs (type {kind:#06x})")
    signer, extra = reader.sized(2, _MOST + 4), reader.sized(2, _MOST)
    clock, resets, restarts, _safe, firmware = (reader.number(size) for size in (8, 4, 4, 1, 8))
    banks = reader.number(4)
    if banks != 1 or reader.number(2) != _ALG_SHA256:
        raise ValueError("it is not over the SHA-256 bank alone")
    bitmap = reader.sized(1, 4)
    pcrs = tuple(8 * at + bit for at, byte in enumerate(bitmap) for bit in range(8) if byte >> bit & 1)
    digest = reader.sized(2, _MOST)
    reader.finish()
    if len(digest) != _SIZE:
        raise ValueError("its digest is not SHA-256")
    return Quote(signer, extra, clock, resets, restarts, firmware, pcrs, digest)


def parse_signature(data: bytes) -> tuple[int, int]:
    """The numbers r and s of a ``TPMT_SIGNATURE`` by ECDSA with SHA-256. :class:`ValueError` says why it is none."""
    if len(data) > MAX_SIGNATURE_BYTES:
        raise ValueError(f"larger than {MAX_SIGNATURE_BYTES} bytes")
    reader = Reader(data, "big")
    if (reader.number(2), reader.number(2)) != (_ALG_ECDSA, _ALG_SHA256):
        raise ValueError("not ECDSA with SHA-256")
    r, s = reader.sized(2, _SIZE), reader.sized(2, _SIZE)
    reader.finish()
    return int.from_bytes(r, "big"), int.from_bytes(s, "big")


def signed_by(key: PublicKey, quote: bytes, signature: bytes) -> bool:
    """Whether ``key`` made ``signature`` (a ``TPMT_SIGNATURE``) over the bytes ``quote``. Never raises for bad input."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
    from cryptography.hazmat.primitives.hashes import SHA256

    try:
        point = b"\x04" + key.x.rjust(_SIZE, b"\0") + key.y.rjust(_SIZE, b"\0")
        public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
        public.verify(encode_dss_signature(*parse_signature(signature)), quote, ec.ECDSA(SHA256()))
    except (ValueError, InvalidSignature):
        return False
    return True
