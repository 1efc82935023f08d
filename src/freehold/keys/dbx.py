# SPDX-License-Identifier: Apache-2.0
"""dbx, the firmware's list of what it does not start: signed additions to it, and what an addition does. Pure.

**Certificates are listed whole** (``EFI_CERT_X509``), not by hash. Firmware (edk2's ``IsForbiddenByDbx``) takes a whole one as
an anchor: a program is refused when a chain leads from its signature to that certificate, so a CA's entry also reaches what
the CA issued, whether or not the program encloses the CA. A hash (``EFI_CERT_X509_SHA256``) is compared with the signer's own
certificate and with db's only, and Linux does not look at it. The early step reads both. The UEFI Forum's own
lists revoke certificates whole, so firmware is used to it. The price is room: some 900 bytes for a certificate, 76 for a hash.

**Programs are listed by Authenticode digest** (``EFI_CERT_SHA256``), the one kind that there is.

Layouts are :mod:`freehold.keys.efi`'s. What is written carries ``EFI_VARIABLE_APPEND_WRITE``: firmware adds what is new and keeps
the rest, so that the same file may be given twice, and several in any order (UEFI specification 2.10, 8.2.2; edk2's
``FilterSignatureList``).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import NamedTuple

from freehold.errors import VerificationError
from freehold.keys import efi, pe, pkcs7
from freehold.keys.der import SEQUENCE, element
from freehold.keys.efi import CERT_SHA256, CERT_X509, CERT_X509_SHA256, Signature
from freehold.keys.verify import issued_by, role_of

#: Bytes of an update. OVMF's variables hold 33 KiB, and firmware for real boards not much more.
MAX_UPDATE_BYTES = 64 << 10
#: What ``early/revoked.c`` holds of each kind; with more it could not read dbx, and would not believe db.
MAX_CERTIFICATES = 1024
#: Added to, not set.
ATTRIBUTES = efi.ATTRIBUTES | efi.APPEND

_TABLE_ENTRY = struct.Struct("<IHH")
_PKCS_SIGNED_DATA = 2
_DIGEST = 32
#: Bytes of an entry by kind, where the kind says: a hash of a certificate has the time of its revocation behind it.
_SIZES = {CERT_SHA256: _DIGEST, CERT_X509_SHA256: _DIGEST + 16}
_HASH_NAMES = {CERT_SHA256: "program", CERT_X509_SHA256: "certificate-by-hash"}


class Update(NamedTuple):
    """A signed update, read: its time (``EFI_TIME``), its signature and its content, as bytes and as entries."""

    when: bytes
    signed: pkcs7.SignedData
    lists: bytes
    entries: tuple[Signature, ...]


class Program(NamedTuple):
    """An EFI program: what people call it, its Authenticode digest, the certificates in its signatures (DER)."""

    name: str
    digest: bytes
    certificates: tuple[bytes, ...]


def certificate_entry(der: bytes) -> Signature:
    """The entry that refuses a certificate. :class:`ValueError` for one that firmware would not take."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    efi.certificate_list(der)
    try:
        key = x509.load_der_x509_certificate(der).public_key()
    except Exception as error:  # each library version has its own for what it cannot read
        raise ValueError("is not an X.509 certificate that can be read") from error
    # edk2 checks that before it writes (CheckSignatureListFormat).
    if not isinstance(key, RSAPublicKey):
        raise ValueError("has no RSA key: firmware takes no other certificates into dbx. Refuse its programs instead")
    return Signature(CERT_X509, efi.OWNER, der)


def program_entry(digest: bytes) -> Signature:
    """The entry that refuses one program. :class:`ValueError` unless ``digest`` has 32 bytes."""
    if len(digest) != _DIGEST:
        raise ValueError("an Authenticode digest has 32 bytes")
    return Signature(CERT_SHA256, efi.OWNER, digest)


def to_lists(entries: Iterable[Signature]) -> bytes:
    """Signature lists with ``entries``, each once: certificates have one size each, so each is a list; hashes share one."""
    once = list(dict.fromkeys(entries))
    lists = [efi.signature_list(one.type, [(one.owner, one.data)]) for one in once if one.type == CERT_X509]
    for kind in _SIZES:
        same = [(one.owner, one.data) for one in once if one.type == kind]
        lists += [efi.signature_list(kind, same)] if same else []
    return b"".join(lists)


def make(entries: Iterable[Signature], timestamp: int, sign: Callable[[bytes], bytes]) -> bytes:
    """The ``.auth`` file that adds ``entries`` to dbx; ``timestamp`` and ``sign`` as :func:`freehold.keys.efi.variable_update`.

    :class:`ValueError` when it is larger than firmware would take, or adds nothing.
    """
    made = efi.variable_update(efi.REFUSED, to_lists(entries), timestamp, sign, ATTRIBUTES)
    read(made)
    return made


def read(data: bytes) -> Update:
    """Read a ``.auth`` file for dbx. :class:`ValueError` says what is wrong with it. Who signed it is another question."""
    if len(data) > MAX_UPDATE_BYTES:
        raise ValueError(f"larger than {MAX_UPDATE_BYTES} bytes")
    when, signature, lists = efi.split_update(data)
    _year, month, day, hour, minute, second, *zeros = efi.TIME.unpack(when)
    if not (1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second < 60) or any(zeros):
        raise ValueError("its time is none")
    entries = efi.parse_lists(lists)
    if not entries:
        raise ValueError("it adds nothing")
    for one in entries:
        if one.type == CERT_X509:
            efi.certificate_list(one.data)
        elif one.type not in _SIZES:
            raise ValueError(f"it has entries of a kind that is not known here ({one.type})")
        elif len(one.data) != _SIZES[one.type]:
            raise ValueError(f"it has a hash of {len(one.data)} bytes")
    return Update(when, pkcs7.parse(signature), lists, entries)


def verify(data: bytes, authorities: Sequence[bytes]) -> Update:
    """The update in ``data``, signed for being added to dbx by somebody in ``authorities`` (certificates of KEK, DER).

    What firmware checks is checked before it is asked, so that what is wrong can be said: it has one word for everything.
    Raises :class:`VerificationError`.
    """
    try:
        update = read(data)
    except ValueError as error:
        raise VerificationError(
            f"this is no signed update of dbx: {error}", hint="`freehold key dbx` makes one, with the owner's key"
        ) from None
    try:
        pkcs7.verify(update.signed, efi.covered(efi.REFUSED, update.when, update.lists, ATTRIBUTES), authorities)
    except ValueError as error:
        if _made_to_replace(update, authorities):
            raise VerificationError(
                "this update would replace dbx: what is refused today would start again",
                hint="`freehold key dbx` makes one that adds",
            ) from None
        raise VerificationError(
            f"the update of dbx is refused: {error}",
            hint="it has to be signed by an owner whose certificate is in this machine's KEK",
        ) from None
    return update


def _made_to_replace(update: Update, authorities: Sequence[bytes]) -> bool:
    try:
        pkcs7.verify(update.signed, efi.covered(efi.REFUSED, update.when, update.lists, efi.ATTRIBUTES), authorities)
    except ValueError:
        return False
    return True


def missing(entries: Iterable[Signature], standing: Iterable[Signature]) -> tuple[Signature, ...]:
    """The ``entries`` that ``standing`` has not, whoever put them there."""
    here = {(one.type, one.data) for one in standing}
    return tuple(one for one in entries if (one.type, one.data) not in here)


def check_room(standing: Sequence[Signature], size: int, new: Sequence[Signature], listed: int) -> None:
    """That the early step can still read dbx when ``new`` is added to ``standing``, which has ``size`` bytes.

    ``listed``: how many certificates the image's own list has; they share a table. Raises :class:`ValueError`.
    """
    if size + len(to_lists(new)) > efi.MAX_LIST_BYTES:
        raise ValueError(f"dbx would have more than {efi.MAX_LIST_BYTES >> 10} KiB")
    for kind, already in ((CERT_X509, listed), (CERT_X509_SHA256, 0)):
        if already + sum(one.type == kind for one in (*standing, *new)) > MAX_CERTIFICATES:
            raise ValueError(f"more than {MAX_CERTIFICATES} certificates would be revoked")


def program(name: str, data: bytes) -> Program:
    """The EFI program ``data``. :class:`ValueError` when it, or a signature in it, cannot be read."""
    parsed = pe.parse(data)
    offset, length = parsed.certificates
    return Program(name, parsed.authenticode(), enclosed(data[offset : offset + length]))


def enclosed(table: bytes) -> tuple[bytes, ...]:
    """The certificates (DER) in a program's ``table`` of signatures. :class:`ValueError` when it cannot be read."""
    found: list[bytes] = []
    at = 0
    while at < len(table):
        if len(table) - at < _TABLE_ENTRY.size:
            raise ValueError("its table of signatures is cut short")
        length, _, kind = _TABLE_ENTRY.unpack_from(table, at)
        if not _TABLE_ENTRY.size <= length <= len(table) - at:
            raise ValueError("the sizes in its table of signatures do not fit")
        blob = table[at + _TABLE_ENTRY.size : at + length]
        if kind == _PKCS_SIGNED_DATA:
            # Filled up with zeros to a multiple of eight.
            _, end = element(blob, 0, len(blob), SEQUENCE)
            found += pkcs7.parse(efi.bare_signed_data(blob[:end])).certificates
        at += -(-length // 8) * 8
    return tuple(found)


def refusing(entries: Iterable[Signature], asked: Program, known: Sequence[bytes] = ()) -> Signature | None:
    """The entry because of which firmware would not start ``asked``; ``None`` when it would, as far as ``entries`` go.

    ``known`` are certificates of db: an entry by hash reaches what one of those issued.
    """
    for entry in entries:
        if entry.type == CERT_SHA256 and entry.data == asked.digest:
            return entry
        if any(reaches(entry, one, known) for one in asked.certificates):
            return entry
    return None


def reaches(entry: Signature, certificate: bytes, known: Sequence[bytes] = ()) -> bool:
    """Whether what ``certificate`` (DER) signed is refused because of ``entry``: it is the one, or was issued by it."""
    from cryptography import x509

    try:
        if entry.type == CERT_X509:
            listed = [entry.data]
        elif entry.type == CERT_X509_SHA256:
            listed = [one for one in (certificate, *known) if efi.signed_part_sha256(one) == entry.data[:_DIGEST]]
        else:
            return False
        if certificate in listed:
            return True
        asked = x509.load_der_x509_certificate(certificate)
        return any(issued_by(asked, x509.load_der_x509_certificate(one)) for one in listed)
    except Exception:  # what cannot be read issued nothing here, and each library version has its own word for it
        return False


def describe(entry: Signature) -> dict[str, object]:
    """An entry for programs: ``kind``, ``sha256`` (of a certificate: of all of it), and what its certificate says."""
    from cryptography import x509

    if entry.type != CERT_X509:
        kind = _HASH_NAMES.get(entry.type, str(entry.type))
        return {"kind": kind, "sha256": entry.data[:_DIGEST].hex(), "subject": None, "role": None}
    fingerprint = sha256(entry.data).hexdigest()
    try:
        subject = x509.load_der_x509_certificate(entry.data).subject.rfc4514_string()
        role = role_of(entry.data)
    except Exception:  # firmware may have some that this library cannot read
        subject, role = "a certificate that cannot be read here", None
    return {"kind": "certificate", "sha256": fingerprint, "subject": subject, "role": role}

