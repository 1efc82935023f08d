# SPDX-License-Identifier: Apache-2.0
"""UEFI's forms of keys: signature lists, and the signed updates that put them into Secure Boot's variables. Pure.

Layouts are those of the UEFI specification 2.10: ``EFI_SIGNATURE_LIST`` in section 32.4.1,
``EFI_VARIABLE_AUTHENTICATION_2`` and what its signature covers in section 8.2.2. Numbers are little endian, and
GUIDs have their first three fields in that order too (``uuid.UUID.bytes_le``). ``early/signatures.c`` reads the
same lists in the initrd; ``tests/unit/test_efi.py`` compares the two, and all of it with efitools.
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from uuid import UUID

#: Kinds of entries.
CERT_X509 = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
CERT_SHA256 = UUID("c1c41626-504c-4092-aca9-41f936934328")
CERT_X509_SHA256 = UUID("3bd2a492-96c0-4079-b420-fcf98ef103ed")
#: Whose name space a variable is in.
GLOBAL_VARIABLE = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
IMAGE_SECURITY_DATABASE = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
#: Owner of our entries; the number means nothing beyond "put there by us".
OWNER = UUID("4d1bd6a5-3ef0-46a5-9c0e-6b3f1c2a7e58")
#: Owner of entries that are there for firmware's own programs only; the early step leaves them out of its ring.
FIRMWARE_ONLY = UUID("3c7e0d5b-9f12-486a-92d4-710ea835c6f1")

VARIABLES = {"PK": GLOBAL_VARIABLE, "KEK": GLOBAL_VARIABLE, "db": IMAGE_SECURITY_DATABASE}
#: Non-volatile, boot service and runtime access, time based authenticated write.
ATTRIBUTES = 0x27
MAX_LIST_BYTES = 256 << 10
MAX_CERTIFICATE_BYTES = 16384

_LIST = struct.Struct("<16sIII")
_TIME = struct.Struct("<HBBBBBBIhBB")
#: WIN_CERTIFICATE_UEFI_GUID: length, revision 2.0, type "EFI GUID", GUID of PKCS#7.
_CERTIFICATE = struct.Struct("<IHH16s")
_REVISION, _TYPE_EFI_GUID = 0x0200, 0x0EF1
_PKCS7 = UUID("4aafd29d-68df-49ee-8aa9-347d375665a7")
_GUID_BYTES = 16
_SEQUENCE, _OBJECT_ID, _EXPLICIT_0 = 0x30, 0x06, 0xA0
_SIGNED_DATA = bytes.fromhex("2a864886f70d010702")  # 1.2.840.113549.1.7.2


@dataclass(frozen=True)
class Signature:
    """One entry of a signature list: ``data`` is what ``type`` says, ``owner`` who put it there."""

    type: UUID
    owner: UUID
    data: bytes


def certificate_list(der: bytes, owner: UUID = OWNER) -> bytes:
    """A signature list with one X.509 certificate; lists are concatenated to longer ones.

    Each certificate has its own, because all entries of a list have one size. :class:`ValueError` for what is no certificate.
    """
    signed_part(der)
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise ValueError(f"a certificate has at most {MAX_CERTIFICATE_BYTES} bytes")
    return signature_list(CERT_X509, [(owner, der)])


def signature_list(kind: UUID, entries: Iterable[tuple[UUID, bytes]]) -> bytes:
    """A signature list of ``kind``; :class:`ValueError` unless there are entries and all have one size."""
    packed = [owner.bytes_le + data for owner, data in entries]
    sizes = {len(one) for one in packed}
    if len(sizes) != 1 or sizes == {_GUID_BYTES}:
        raise ValueError("a signature list has entries, all of one size")
    body = b"".join(packed)
    return _LIST.pack(kind.bytes_le, _LIST.size + len(body), 0, len(packed[0])) + body


def parse_lists(data: bytes) -> tuple[Signature, ...]:
    """The entries of concatenated signature lists.

    :class:`ValueError` for more than :data:`MAX_LIST_BYTES`, and where any size does not fit: then nothing of it counts.
    """
    if len(data) > MAX_LIST_BYTES:
        raise ValueError(f"more than {MAX_LIST_BYTES} bytes of signature lists")
    found: list[Signature] = []
    at = 0
    while at < len(data):
        if len(data) - at < _LIST.size:
            raise ValueError("a signature list is cut short")
        kind, size, header, each = _LIST.unpack_from(data, at)
        entries = size - _LIST.size - header
        if size > len(data) - at or each <= _GUID_BYTES or entries <= 0 or entries % each:
            raise ValueError("the sizes of a signature list do not fit")
        for start in range(at + _LIST.size + header, at + size, each):
            entry = data[start : start + each]
            found.append(
                Signature(UUID(bytes_le=kind), UUID(bytes_le=entry[:_GUID_BYTES]), entry[_GUID_BYTES:])
            )  # fmt: skip
        at += size
    return tuple(found)


def variable_update(name: str, lists: bytes, timestamp: int, sign: Callable[[bytes], bytes]) -> bytes:
    """The signed update that sets the variable ``name`` (a key of :data:`VARIABLES`) to ``lists``: a ``.auth`` file.

    ``timestamp`` is seconds since 1970: firmware takes an update of an existing variable only with a later one.
    ``sign`` gives a PKCS#7 signature of bytes, DER: detached, without attributes, SHA-256, the certificate embedded.
    The specification wants its SignedData without the ContentInfo around it. Equal arguments give equal bytes.
    """
    guid, when = VARIABLES[name], efi_time(timestamp)
    covered = name.encode("utf-16-le") + guid.bytes_le + struct.pack("<I", ATTRIBUTES) + when + lists
    signature = bare_signed_data(sign(covered))
    head = _CERTIFICATE.pack(_CERTIFICATE.size + len(signature), _REVISION, _TYPE_EFI_GUID, _PKCS7.bytes_le)
    return when + head + signature + lists


def split_update(data: bytes) -> tuple[bytes, bytes, bytes]:
    """A ``.auth`` file's time, SignedData and signature lists. :class:`ValueError` when it is none."""
    if len(data) < _TIME.size + _CERTIFICATE.size:
        raise ValueError("cut short")
    length, revision, kind, guid = _CERTIFICATE.unpack_from(data, _TIME.size)
    if (revision, kind, guid) != (_REVISION, _TYPE_EFI_GUID, _PKCS7.bytes_le):
        raise ValueError("not a PKCS#7 signature of a variable")
    if not _CERTIFICATE.size <= length <= len(data) - _TIME.size:
        raise ValueError("the signature's length does not fit")
    start, end = _TIME.size + _CERTIFICATE.size, _TIME.size + length
    return data[: _TIME.size], data[start:end], data[end:]


def efi_time(timestamp: int) -> bytes:
    """``EFI_TIME`` in UTC. What the specification wants to be zero in signed updates is zero."""
    at = time.gmtime(timestamp)
    return _TIME.pack(at.tm_year, at.tm_mon, at.tm_mday, at.tm_hour, at.tm_min, min(at.tm_sec, 59), 0, 0, 0, 0, 0)


def bare_signed_data(der: bytes) -> bytes:
    """The SignedData in a PKCS#7 ContentInfo. :class:`ValueError` when it holds something else."""
    start, end = _element(der, 0, len(der), _SEQUENCE)
    kind, kind_end = _element(der, start, end, _OBJECT_ID)
    if end != len(der) or der[kind:kind_end] != _SIGNED_DATA:
        raise ValueError("not a PKCS#7 signature")
    inner, inner_end = _element(der, kind_end, end, _EXPLICIT_0)
    _element(der, inner, inner_end, _SEQUENCE)
    return der[inner:inner_end]


def signed_part(certificate: bytes) -> bytes:
    """The part of an X.509 certificate that its issuer signed (tbsCertificate), with its header.

    :class:`ValueError` when ``certificate`` is not exactly one SEQUENCE that begins with another.
    """
    start, end = _element(certificate, 0, len(certificate), _SEQUENCE)
    if end != len(certificate):
        raise ValueError("bytes behind the certificate")
    _, inner_end = _element(certificate, start, end, _SEQUENCE)
    return certificate[start:inner_end]


def signed_part_sha256(certificate: bytes) -> bytes:
    """What a dbx entry of type :data:`CERT_X509_SHA256` names ``certificate`` by."""
    return hashlib.sha256(signed_part(certificate)).digest()


def _element(data: bytes, at: int, end: int, tag: int) -> tuple[int, int]:
    """Where the content of the DER element of type ``tag`` at ``at`` begins and ends."""
    if end - at < 2 or data[at] != tag:
        raise ValueError("not the expected DER")
    size, start = data[at + 1], at + 2
    if size & 0x80:
        more = size & 0x7F
        # DER has one way to write a length, the shortest; three bytes are more than anything here has.
        if not 1 <= more <= 3 or end - start < more:
            raise ValueError("not a length in DER")
        size = int.from_bytes(data[start : start + more], "big")
        if size < 0x80 or (more > 1 and size >> 8 * (more - 1) == 0):
            raise ValueError("not the shortest length")
        start += more
    if size > end - start:
        raise ValueError("DER is cut short")
    return start, start + size
