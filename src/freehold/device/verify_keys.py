# SPDX-License-Identifier: Apache-2.0
"""Whose signatures on files count in the running kernel, and whose should. Pure.

The kernel names a certificate's key by its subject and its subject key identifier, else its serial number, in hex
(``crypto/asymmetric_keys/x509_public_key.c``): the hex tells certificates apart.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from freehold.device.verify_findings import MACHINE, Finding, deviation, note
from freehold.keys import efi
from freehold.keys.verify import Keychain

RING = ".fs-verity"
#: Entries of this owner are there for firmware's own programs, as are :data:`freehold.keys.efi.FIRMWARE_ONLY`'s.
MICROSOFT = UUID("77fa9abd-0359-4d32-bd60-28f4e78f784b")
_LINE = re.compile(
    r"(?P<serial>[0-9a-f]{8}) (?P<flags>\S+) +\d+ +\S+ +[0-9a-f]{8} +(?P<uid>\d+) +\d+ +(?P<type>\S+) +(?P<text>.*)"
)
_REBOOT = "a reboot fills the ring anew"


class Ring(NamedTuple):
    """The ring as the kernel has it. ``keys``: names of what is in it; ``sealed``: ``None`` when the kernel did not say."""

    present: bool
    sealed: bool | None
    keys: tuple[str, ...]


class Key(NamedTuple):
    """One line of /proc/keys; ``text`` is the description with its summary."""

    flags: str
    uid: int
    type: str
    text: str


def parse_keys(text: str) -> dict[int, Key]:
    """``/proc/keys`` by serial number. Lines that are none are left out."""
    found = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is not None:
            found[int(match["serial"], 16)] = Key(match["flags"], int(match["uid"]), match["type"], match["text"])
    return found


def find_ring(text: str, name: str = RING) -> int | None:
    """The serial number of the kernel's own ring ``name``: root's, alive. User space makes none that begin with a dot."""
    for serial, one in parse_keys(text).items():
        alive = one.flags.startswith("I") and not set(one.flags) & set("RD")
        if one.type == "keyring" and one.uid == 0 and alive and one.text.startswith(f"{name}:"):
            return serial
    return None


def name_of(der: bytes) -> str:
    """The hex by which the kernel names a certificate's key. :class:`ValueError` for what is no certificate."""
    from cryptography import x509

    certificate = x509.load_der_x509_certificate(der)
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()
    except x509.ExtensionNotFound:
        number = certificate.serial_number
        # As DER writes a positive number: a leading zero byte where the first bit is set.
        return number.to_bytes(number.bit_length() // 8 + 1, "big").hex()


class Firmware(NamedTuple):
    """The firmware's and shim's variables without their attributes, empty where there is none."""

    db: bytes = b""
    mok: bytes = b""
    dbx: bytes = b""
    mokx: bytes = b""


def firmware_certificates(firmware: Firmware, revoked: Collection[str]) -> dict[str, str]:
    """Name in the ring → where it is from, of what the early step takes from the firmware.

    ``revoked``: SHA-256 (hex) of the certificates that the image revokes. :class:`ValueError` for lists whose sizes do not fit.
    """
    whole, signed = set(revoked), set()
    for lists in (firmware.dbx, firmware.mokx):
        for entry in efi.parse_lists(lists):
            if entry.type == efi.CERT_X509:
                whole.add(hashlib.sha256(entry.data).hexdigest())
            elif entry.type == efi.CERT_X509_SHA256:
                signed.add(entry.data[:32])
    found = {}
    for label, lists in (("db", firmware.db), ("MOK", firmware.mok)):
        for entry in efi.parse_lists(lists):
            if entry.type != efi.CERT_X509 or entry.owner in (MICROSOFT, efi.FIRMWARE_ONLY):
                continue
            try:
                out = efi.signed_part_sha256(entry.data) in signed or hashlib.sha256(entry.data).hexdigest() in whole
                if not out:
                    found[name_of(entry.data)] = label
            except ValueError:
                continue
    return found


def keychain_certificates(keychain: Keychain) -> dict[str, str]:
    """Name in the ring → file name, of the image's own certificates that are not revoked."""
    return {
        name_of(one.der): one.file_name for one in keychain.certificates if keychain.why_revoked(one.der) is None
    }  # fmt: skip


def judge_ring(ring: Ring, wanted: Mapping[str, str], source: str) -> list[Finding]:
    """Findings about the ``.fs-verity`` ring: sealed, and with the keys that it should have (name → label), no others."""
    if not ring.present:
        return [deviation("ring", MACHINE, RING, "a ring of the kernel", "there is none", _REBOOT)]
    found: list[Finding] = []
    if ring.sealed is False:
        found.append(deviation("ring-open", MACHINE, RING, "sealed", "keys can still be added", _REBOOT))
    if ring.sealed is None:
        found.append(note("ring-open", MACHINE, RING, "sealed", "the kernel did not say whether it is sealed"))
    here = {_name(one) for one in ring.keys}
    found += [
        deviation(
            "ring-key",
            MACHINE,
            one,
            f"only certificates of the {source}",
            "a key that should not be in the ring",
            _REBOOT,
        )
        for one in ring.keys
        if _name(one) not in wanted
    ]
    for name, label in wanted.items():
        if name in here:
            continue
        # The kernel leaves out kinds of keys that it does not know; the image's own are all of a kind that it knows.
        kind = deviation if source == "image" else note
        found.append(
            kind("ring-missing", MACHINE, RING, f"the certificate of {label} ({name[:16]})", "not in the ring", _REBOOT)
        )
    return found


def _name(description: str) -> str:
    """The hex in a key's description; the last, since the subject before it may look like one."""
    found = re.findall(r"(?:^|: )([0-9a-f]+)(?=: X509\.)", description)
    return str(found[-1]) if found else ""


def ring_keys(text: str, serials: Sequence[int]) -> tuple[str, ...]:
    """Descriptions of the keys ``serials`` out of ``/proc/keys``; what it does not list is named by its number."""
    known = parse_keys(text)
    return tuple(known[one].text if one in known else f"key {one:08x}" for one in serials)
