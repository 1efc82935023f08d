# SPDX-License-Identifier: Apache-2.0
"""Signatures that the kernel verifies, written as CMS SignedData (RFC 5652): modules, and policies of IPE. Pure.

The kernel wants plain data (id-data) and no attributes, and finds the way to a key that it believes through the enclosed
certificates (kernel ``crypto/asymmetric_keys/pkcs7_verify.c``). No signing time either: equal inputs give equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from freehold.keys.der import EXPLICIT_0, INTEGER, OBJECT_ID, OCTETS, SEQUENCE, SET, wrap

_SIGNED_DATA = bytes.fromhex("2a864886f70d010702")
_DATA = bytes.fromhex("2a864886f70d010701")
_NULL = b"\x05\x00"
_SHA256 = wrap(SEQUENCE, wrap(OBJECT_ID, bytes.fromhex("608648016503040201")) + _NULL)
_RSA = wrap(SEQUENCE, wrap(OBJECT_ID, bytes.fromhex("2a864886f70d010101")) + _NULL)


class Signs(Protocol):
    """A key with its certificate: :class:`freehold.keys.x509.Signer`."""

    def certificate_der(self) -> bytes:
        """The certificate, DER."""

    def sign(self, data: bytes, /) -> bytes:
        """Raw RSA PKCS#1 v1.5 signature with SHA-256."""

    def check_dates(self) -> None:
        """Raise :class:`freehold.errors.InputError` unless the certificate is valid now."""


def sign(
    data: bytes, certificate: bytes, sign_bytes: Callable[[bytes], bytes], *, attached: bool, chain: Sequence[bytes] = ()
) -> bytes:
    """SignedData over ``data``, DER, with ``data`` in it when ``attached``.

    ``certificate`` (DER) is the signer's, ``sign_bytes`` makes a raw RSA PKCS#1 v1.5 signature with SHA-256
    (:meth:`freehold.keys.x509.Signer.sign`), ``chain`` are more certificates (DER) to enclose. Raises what ``sign_bytes`` does.
    """
    return wrapped(data if attached else None, certificate, sign_bytes(data), chain)


def wrapped(content: bytes | None, certificate: bytes, signature: bytes, chain: Sequence[bytes] = ()) -> bytes:
    """SignedData around a raw ``signature`` that is there already; ``content`` goes into it unless ``None``."""
    from cryptography import x509

    parsed = x509.load_der_x509_certificate(certificate)
    serial = parsed.serial_number
    who = parsed.issuer.public_bytes() + wrap(INTEGER, serial.to_bytes(serial.bit_length() // 8 + 1, "big"))
    one = wrap(INTEGER, b"\x01")
    signer = wrap(SEQUENCE, one + wrap(SEQUENCE, who) + _SHA256 + _RSA + wrap(OCTETS, signature))
    inner = b"" if content is None else wrap(EXPLICIT_0, wrap(OCTETS, content))
    enclosed = wrap(EXPLICIT_0, b"".join(dict.fromkeys((certificate, *chain))))
    signed = one + wrap(SET, _SHA256) + wrap(SEQUENCE, wrap(OBJECT_ID, _DATA) + inner) + enclosed + wrap(SET, signer)
    return wrap(SEQUENCE, wrap(OBJECT_ID, _SIGNED_DATA) + wrap(EXPLICIT_0, wrap(SEQUENCE, signed)))
