# SPDX-License-Identifier: Apache-2.0
"""The two text formats of the keys: a document's signature, and the list of revoked certificates. All pure.

Both are strict (docs/keys.md). ``early/revoked.c`` reads the list too: whatever one of them refuses, the other does.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import NamedTuple

MAX_DOCUMENT_SIGNATURE_BYTES = 16384
SIGNATURE_HEAD = "freehold-signature 1"
MAX_REVOKED_BYTES = 256 << 10
MAX_REVOKED_ENTRIES = 1024
MAX_REASON = 200  # characters
REVOKED_HEAD = "freehold-revoked 1"
#: The list's name in a keychain directory, and beside keys.
REVOKED_NAME = "revoked"

#: RSA of 2048 to 4096 bits: whole bytes, two digits each.
_SIGNATURE = re.compile(r"(?:[0-9a-f]{2}){256,512}")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_REASON = re.compile(r"[ -~]{1,200}")


class DocumentSignature(NamedTuple):
    """What a ``.sig`` file holds: the raw signature, and the signer's certificate (DER) unless machines have it."""

    signature: bytes
    certificate: bytes | None = None


class Revocation(NamedTuple):
    """One certificate that no longer counts, by the SHA-256 of its DER (hex), and why."""

    fingerprint: str
    reason: str


def serialize_signature(value: DocumentSignature) -> bytes:
    """The text of a ``.sig`` file."""
    text = f"{SIGNATURE_HEAD}\nsignature {value.signature.hex()}\n"
    if value.certificate is not None:
        text += f"certificate {base64.b64encode(value.certificate).decode()}\n"
    return text.encode()


def parse_signature(data: bytes) -> DocumentSignature:
    """Read a ``.sig`` file. :class:`ValueError` says what is wrong with it."""
    if len(data) > MAX_DOCUMENT_SIGNATURE_BYTES:
        raise ValueError(f"the signature file is larger than {MAX_DOCUMENT_SIGNATURE_BYTES} bytes")
    lines = _lines(data, SIGNATURE_HEAD, "the signature file")
    keys = [line.partition(" ")[0] for line in lines]
    if keys not in (["signature"], ["signature", "certificate"]):
        raise ValueError("the signature file must have a line 'signature', then at most one line 'certificate'")
    digits = lines[0].removeprefix("signature ")
    if not _SIGNATURE.fullmatch(digits):
        raise ValueError("the signature must be 512 to 1024 lower-case hex digits")
    certificate = None
    if len(lines) == 2:
        try:
            certificate = base64.b64decode(lines[1].removeprefix("certificate "), validate=True)
        except binascii.Error:
            raise ValueError("the certificate in the signature file is not base64") from None
    value = DocumentSignature(bytes.fromhex(digits), certificate)
    # Base64 has spare bits and empty values: one spelling only.
    if certificate == b"" or serialize_signature(value) != data:
        raise ValueError("the certificate in the signature file is not spelt as base64 is written")
    return value


def serialize_revoked(entries: Sequence[Revocation]) -> bytes:
    """The text of a list of revoked certificates. :class:`ValueError` for what the format does not allow."""
    text = "".join(f"{entry.fingerprint} {entry.reason}\n" for entry in entries)
    data = f"{REVOKED_HEAD}\n{text}".encode()
    parse_revoked(data)
    return data


def parse_revoked(data: bytes) -> tuple[Revocation, ...]:
    """Read a list of revoked certificates. :class:`ValueError` says what is wrong with it, and where."""
    if len(data) > MAX_REVOKED_BYTES:
        raise ValueError(f"the list is larger than {MAX_REVOKED_BYTES} bytes")
    found: list[Revocation] = []
    lines = _lines(data, REVOKED_HEAD, "the list")
    if len(lines) > MAX_REVOKED_ENTRIES:
        raise ValueError(f"the list has more than {MAX_REVOKED_ENTRIES} entries")
    for number, line in enumerate(lines, start=2):
        fingerprint, _, reason = line.partition(" ")
        if not _FINGERPRINT.fullmatch(fingerprint):
            raise ValueError(f"line {number} must begin with the SHA-256 of a certificate, 64 lower-case hex digits")
        if not _REASON.fullmatch(reason):
            raise ValueError(f"line {number} must give a reason: 1 to {MAX_REASON} printable ASCII characters")
        found.append(Revocation(fingerprint, reason))
    return tuple(found)


def merge_revoked(*lists: Sequence[Revocation]) -> tuple[Revocation, ...]:
    """All entries of several lists, each certificate once: the first reason stays."""
    merged: dict[str, Revocation] = {}
    for entries in lists:
        for entry in entries:
            merged.setdefault(entry.fingerprint, entry)
    return tuple(merged.values())


def reason_valid(reason: str) -> bool:
    """Whether ``reason`` may stand in a list of revoked certificates."""
    return _REASON.fullmatch(reason) is not None and reason == reason.strip()


def _lines(data: bytes, head: str, what: str) -> list[str]:
    """The lines after the first, which must be ``head``; each must end."""
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError:
        raise ValueError(f"{what} is not UTF-8 text") from None
    if lines[0] != head:
        raise ValueError(f"{what} must begin with the line {head!r}")
    if len(lines) < 2 or lines[-1] != "":
        raise ValueError(f"the last line of {what} does not end")
    return lines[1:-1]
