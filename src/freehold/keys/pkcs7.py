# SPDX-License-Identifier: Apache-2.0
"""Reading PKCS#7 SignedData (RFC 2315, section 9), as firmware gets it: with variable updates and boot programs. Pure.

Nothing is believed by reading. :func:`verify` is for the kind that the UEFI specification wants in updates of variables (2.10,
section 8.2.2): one signer, SHA-256, the signer's certificate enclosed. Attributes are taken, as firmware takes them: sbvarsign
writes some.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple

from freehold.keys import der
from freehold.keys.verify import MAX_CERTIFICATE_BYTES, issued_by

#: Certificates in one signature; more than any chain has.
MAX_CERTIFICATES = 8
#: How many certificates may stand between the signer's and one that is believed.
MAX_CHAIN = 3
_SHA256 = bytes.fromhex("608648016503040201")
#: 1.2.840.113549.1.9.4
_MESSAGE_DIGEST = bytes.fromhex("2a864886f70d010904")
#: rsaEncryption, sha256WithRSAEncryption: both are written for the same signature.
_RSA = (bytes.fromhex("2a864886f70d010101"), bytes.fromhex("2a864886f70d01010b"))


class SignerInfo(NamedTuple):
    """One signature: whose (``issuer`` as DER, ``serial``), how (object identifiers), and itself.

    ``attributes`` are the signed ones, as they lie one behind the other; ``None``: the content itself is signed.
    """

    issuer: bytes
    serial: int
    digest: bytes
    algorithm: bytes
    attributes: bytes | None
    signature: bytes


class SignedData(NamedTuple):
    """What a SignedData says: the enclosed certificates (DER), and the signatures. ``detached``: it has no content."""

    certificates: tuple[bytes, ...]
    signers: tuple[SignerInfo, ...]
    detached: bool


def parse(data: bytes) -> SignedData:
    """Read a SignedData (without the ContentInfo around it). :class:`ValueError` says what is wrong with it."""
    parts = der.children(der.only(data, der.SEQUENCE))
    if len(parts) < 4 or [one.tag for one in parts[:3]] != [der.INTEGER, der.SET, der.SEQUENCE]:
        raise ValueError("not a SignedData")
    *optional, last = parts[3:]
    tags = [one.tag for one in optional]
    if last.tag != der.SET or tags not in ([], [der.EXPLICIT_0], [der.EXPLICIT_0, der.EXPLICIT_1], [der.EXPLICIT_1]):
        raise ValueError("not a SignedData: its parts are not in their order")
    enclosed = der.children(optional[0].content) if tags[:1] == [der.EXPLICIT_0] else ()
    if len(enclosed) > MAX_CERTIFICATES or any(len(one.whole) > MAX_CERTIFICATE_BYTES for one in enclosed):
        raise ValueError(f"more than {MAX_CERTIFICATES} certificates, or larger ones than {MAX_CERTIFICATE_BYTES} bytes")
    if any(one.tag != der.SEQUENCE for one in enclosed):
        raise ValueError("certificates of a kind that is not known")
    signers = tuple(_signer(one) for one in der.children(last.content))
    return SignedData(tuple(one.whole for one in enclosed), signers, len(der.children(parts[2].content)) == 1)


def _signer(part: der.Element) -> SignerInfo:
    fields = der.children(part.content)
    plain = [der.INTEGER, der.SEQUENCE, der.SEQUENCE, der.SEQUENCE, der.OCTETS]
    tags = [one.tag for one in fields]
    attributes = fields[3].content if tags[3:4] == [der.EXPLICIT_0] else None
    unsigned = tags[-1:] == [der.EXPLICIT_1]
    kept = [one for one in fields if one.tag not in (der.EXPLICIT_0, der.EXPLICIT_1)]
    if part.tag != der.SEQUENCE or [one.tag for one in kept] != plain or len(fields) != 5 + (attributes is not None) + unsigned:
        raise ValueError("a signature by no issuer and serial number")
    _, name, digest, algorithm, signature = kept
    who = der.children(name.content)
    if [one.tag for one in who] != [der.SEQUENCE, der.INTEGER]:
        raise ValueError("a signature by no issuer and serial number")
    return SignerInfo(
        who[0].whole, int.from_bytes(who[1].content, "big", signed=True), _identifier(digest), _identifier(algorithm),
        attributes, signature.content,
    )  # fmt: skip


def _identifier(algorithm: der.Element) -> bytes:
    parts = der.children(algorithm.content)
    if not parts or parts[0].tag != der.OBJECT_ID:
        raise ValueError("an algorithm without a name")
    return parts[0].content


def _names(attributes: bytes, digest: bytes) -> bool:
    """Whether the attributes say, once, that the content has ``digest``."""
    found = []
    for attribute in der.children(attributes):
        name, *values = der.children(attribute.content) or (attribute,)
        if (name.tag, name.content) == (der.OBJECT_ID, _MESSAGE_DIGEST):
            found += [(one.tag, one.content) for value in values for one in der.children(value.content)]
    return found == [(der.OCTETS, digest)]


def verify(signed: SignedData, data: bytes, authorities: Sequence[bytes]) -> bytes:
    """The certificate (DER) that signed ``data``, which one of ``authorities`` (DER) is, or issued.

    :class:`ValueError` says why nobody that counts did. Dates count for nothing: firmware does not look at them.
    """
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    if not signed.detached or len(signed.signers) != 1:
        raise ValueError("it has not exactly one signature")
    signer = signed.signers[0]
    if signer.digest != _SHA256 or signer.algorithm not in _RSA:
        raise ValueError("it is not signed by RSA with SHA-256, which is what every firmware takes")
    if signer.attributes is not None:
        if not _names(signer.attributes, sha256(data).digest()):
            raise ValueError("it was changed, or is signed for something else")
        data = der.wrap(der.SET, signer.attributes)
    found: dict[bytes, x509.Certificate] = {}
    for one in (*signed.certificates, *authorities):
        try:
            found[one] = x509.load_der_x509_certificate(one)
            found[one].issuer.public_bytes()
        except Exception:  # each library version has its own for what it cannot read
            found.pop(one, None)
    by = [
        one for one in signed.certificates
        if one in found and found[one].serial_number == signer.serial and found[one].issuer.public_bytes() == signer.issuer
    ]  # fmt: skip
    if not by:
        raise ValueError("it does not enclose its signer's certificate")
    key = found[by[0]].public_key()
    try:
        if not isinstance(key, RSAPublicKey):
            raise ValueError("its signer's key is not RSA")
        key.verify(signer.signature, data, padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature:
        raise ValueError("it was changed, or is signed for something else") from None
    reached = [by[0]]
    for _ in range(MAX_CHAIN + 1):
        if any(one in authorities for one in reached):
            return by[0]
        reached = [up for up in found if any(up != one and issued_by(found[one], found[up]) for one in reached)]
    raise ValueError("it is signed by nobody whose word counts here")
