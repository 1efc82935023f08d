# SPDX-License-Identifier: Apache-2.0
"""Authenticode signatures (PKCS#7 over a PE file's digest), written without another program. Pure.

Only the signature itself is made by a key; everything around it is DER of fixed shape, after Microsoft's "Windows
Authenticode Portable Executable Signature Format" and RFC 2315. No signing time: machines have no clock that firmware
would look at, and equal inputs give equal bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

_SEQUENCE, _SET, _OCTETS, _OID, _INTEGER, _NULL, _BITS = 0x30, 0x31, 0x04, 0x06, 0x02, 0x05, 0x03
_SIGNED_DATA = "1.2.840.113549.1.7.2"
_INDIRECT_DATA = "1.3.6.1.4.1.311.2.1.4"
_PE_IMAGE_DATA = "1.3.6.1.4.1.311.2.1.15"
_CONTENT_TYPE, _MESSAGE_DIGEST = "1.2.840.113549.1.9.3", "1.2.840.113549.1.9.4"
_SHA256, _RSA = "2.16.840.1.101.3.4.2.1", "1.2.840.113549.1.1.1"


def tlv(tag: int, *parts: bytes) -> bytes:
    """One DER value."""
    body = b"".join(parts)
    if len(body) < 0x80:
        return bytes((tag, len(body))) + body
    length = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + body


def oid(text: str) -> bytes:
    """An object identifier."""
    first, second, *others = map(int, text.split("."))
    out = b""
    for number in (40 * first + second, *others):
        digits = [number & 0x7F]
        while number := number >> 7:
            digits.append(number & 0x7F | 0x80)
        out += bytes(reversed(digits))
    return tlv(_OID, out)


def integer(value: int) -> bytes:
    """A number that is not negative."""
    return tlv(_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _algorithm(name: str) -> bytes:
    return tlv(_SEQUENCE, oid(name), tlv(_NULL))


def indirect_data(digest: bytes) -> bytes:
    """``SpcIndirectDataContent`` for a PE file whose Authenticode digest is ``digest`` (SHA-256)."""
    obsolete = tlv(0xA0, tlv(0xA2, tlv(0x80, "<<<Obsolete>>>".encode("utf-16-be"))))
    image = tlv(_SEQUENCE, tlv(_BITS, b"\0"), obsolete)
    return tlv(
        _SEQUENCE,
        tlv(_SEQUENCE, oid(_PE_IMAGE_DATA), image),
        tlv(_SEQUENCE, _algorithm(_SHA256), tlv(_OCTETS, digest)),
    )


def _attributes(content: bytes) -> bytes:
    """The signed attributes without their tag. The digest is of the content without its own tag and length."""
    inner = content[2:] if content[1] < 0x80 else content[2 + (content[1] & 0x7F) :]
    rows = [
        tlv(_SEQUENCE, oid(_CONTENT_TYPE), tlv(_SET, oid(_INDIRECT_DATA))),
        tlv(_SEQUENCE, oid(_MESSAGE_DIGEST), tlv(_SET, tlv(_OCTETS, hashlib.sha256(inner).digest()))),
    ]
    return b"".join(sorted(rows))


def sign(digest: bytes, certificate: bytes, sign_bytes: Callable[[bytes], bytes], chain: Sequence[bytes] = ()) -> bytes:
    """The signature of a PE file with Authenticode ``digest``: PKCS#7, DER.

    ``certificate`` (DER) is the signer's, ``sign_bytes`` makes a raw RSA PKCS#1 v1.5 signature with SHA-256
    (:meth:`freehold.keys.x509.Signer.sign`); ``chain`` are more certificates to enclose.
    """
    from cryptography import x509

    parsed = x509.load_der_x509_certificate(certificate)
    content = indirect_data(digest)
    attributes = _attributes(content)
    signer = tlv(
        _SEQUENCE,
        integer(1),
        tlv(_SEQUENCE, parsed.issuer.public_bytes(), integer(parsed.serial_number)),
        _algorithm(_SHA256),
        tlv(0xA0, attributes),
        _algorithm(_RSA),
        # What is signed are the attributes as a SET; in the message they have another tag.
        tlv(_OCTETS, sign_bytes(tlv(_SET, attributes))),
    )
    signed = tlv(
        _SEQUENCE,
        integer(1),
        tlv(_SET, _algorithm(_SHA256)),
        tlv(_SEQUENCE, oid(_INDIRECT_DATA), tlv(0xA0, content)),
        tlv(0xA0, certificate, *chain),
        tlv(_SET, signer),
    )
    return tlv(_SEQUENCE, oid(_SIGNED_DATA), tlv(0xA0, signed))
