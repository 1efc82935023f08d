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

from freehold.keys.der import EXPLICIT_0, OBJECT_ID, SEQUENCE, element, only

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

#: What an enrolment sets.
VARIABLES = {"PK": GLOBAL_VARIABLE, "KEK": GLOBAL_VARIABLE, "db": IMAGE_SECURITY_DATABASE}
#: What the firmware refuses to start; never set anew, only added to (:mod:`freehold.keys.dbx`).
REFUSED = "dbx"
_NAME_SPACE = {**VARIABLES, REFUSED: IMAGE_SECURITY_DATABASE}
#: Non-volatile, boot service and runtime access, time based authenticated write.
ATTRIBUTES = 0x27
#: The write adds to what the variable holds.
APPEND = 0x40
MAX_LIST_BYTES = 256 << 10
MAX_CERTIFICATE_BYTES = 16384

#: EFI_TIME: year, month, day, hour, minute, second, and what signed updates have as zero.
TIME = struct.Struct("<HBBBBBBIhBB")

_LIST = struct.Struct("<16sIII")
#: WIN_CERTIFICATE_UEFI_GUID: length, revision 2.0, type "EFI GUID", GUID of PKCS#7.
_CERTIFICATE = struct.Struct("<IHH16s")
_REVISION, _TYPE_EFI_GUID = 0x0200, 0x0EF1
_PKCS7 = UUID("4aafd29d-68df-49ee-8aa9-347d375665a7")
_GUID_BYTES = 16
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


def variable_update(
    name: str, lists: bytes, timestamp: int, sign: Callable[[bytes], bytes], attributes: int = ATTRIBUTES
) -> bytes:
    """The signed update that sets the variable ``name`` (or adds to it) to ``lists``: a ``.auth`` file.

    ``name`` is one of :data:`VARIABLES` or :data:`REFUSED`. ``timestamp`` is seconds since 1970: firmware takes an update of an
    existing variable only with a later one, unless it adds. ``attributes`` are those that the write will have.
    ``sign`` gives a PKCS#7 signature of bytes, DER: detached, without attributes, SHA-256, the certificate embedded.
    The specification wants its SignedData without the ContentInfo around it. Equal arguments give equal bytes.
    """
    when = efi_time(timestamp)
    signature = bare_signed_data(sign(covered(name, when, lists, attributes)))
    head = _CERTIFICATE.pack(_CERTIFICATE.size + len(signature), _REVISION, _TYPE_EFI_GUID, _PKCS7.bytes_le)
    return when + head + signature + lists


def covered(name: str, when: bytes, lists: bytes, attributes: int) -> bytes:
    """What the signature of an update covers; ``when`` is an ``EFI_TIME``."""
    return name.encode("utf-16-le") + _NAME_SPACE[name].bytes_le + struct.pack("<I", attributes) + when + lists


def split_update(data: bytes) -> tuple[bytes, bytes, bytes]:
    """A ``.auth`` file's time, SignedData and signature lists. :class:`ValueError` when it is none."""
    if len(data) < TIME.size + _CERTIFICATE.size:
        raise ValueError("cut short")
    length, revision, kind, guid = _CERTIFICATE.unpack_from(data, TIME.size)
    if (revision, kind, guid) != (_REVISION, _TYPE_EFI_GUID, _PKCS7.bytes_le):
        raise ValueError("not a PKCS#7 signature of a variable")
    if not _CERTIFICATE.size <= length <= len(data) - TIME.size:
        raise ValueError("the signature's length does not fit")
    start, end = TIME.size + _CERTIFICATE.size, TIME.size + length
    return data[: TIME.size], data[start:end], data[end:]


def efi_time(timestamp: int) -> bytes:
    """``EFI_TIME`` in UTC. What the specification wants to be zero in signed updates is zero."""
    at = time.gmtime(timestamp)
    return TIME.pack(at.tm_year, at.tm_mon, at.tm_mday, at.tm_hour, at.tm_min, min(at.tm_sec, 59), 0, 0, 0, 0, 0)


def bare_signed_data(der: bytes) -> bytes:
    """The SignedData in a PKCS#7 ContentInfo. :class:`ValueError` when it holds something else."""
    start, end = element(der, 0, len(der), SEQUENCE)
    kind, kind_end = element(der, start, end, OBJECT_ID)
    if end != len(der) or der[kind:kind_end] != _SIGNED_DATA:
        raise ValueError("not a PKCS#7 signature")
    inner, inner_end = element(der, kind_end, end, EXPLICIT_0)
    element(der, inner, inner_end, SEQUENCE)
    return der[inner:inner_end]


def signed_part(certificate: bytes) -> bytes:
    """The part of an X.509 certificate that its issuer signed (tbsCertificate), with its header.

    :class:`ValueError` when ``certificate`` is not exactly one SEQUENCE that begins with another.
    """
    content = only(certificate, SEQUENCE)
    _, end = element(content, 0, len(content), SEQUENCE)
    return content[:end]


def signed_part_sha256(certificate: bytes) -> bytes:
    """What a dbx entry of type :data:`CERT_X509_SHA256` names ``certificate`` by."""
    return hashlib.sha256(signed_part(certificate)).digest()
