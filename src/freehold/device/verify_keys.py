# SPDX-License-Identifier: Apache-2.0
"""Whose signatures on files count in the running kernel, and whose should. Pure.

The kernel names a certificate's key by its subject and its subject key identifier, else its serial number, in hex
(``crypto/asymmetric_keys/x509_public_key.c``): the hex tells certificates apart.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from freehold.device.verify_findings import MACHINE, Finding, deviation, note
from freehold.keys import efi

RING = ".fs-verity"
#: Entries of this owner are there for firmware's own programs, as are :data:`freehold.keys.efi.FIRMWARE_ONLY`'s.
MICROSOFT = UUID("77fa9abd-0359-4d32-bd60-28f4e78f784b")
_LINE = re.compile(
    r"(?P<serial>[0-9a-f]{8}) (?P<flags>\S+) +\d+ +\S+ +(?P<perm>[0-9a-f]{8}) +(?P<uid>\d+) +\d+ +(?P<type>\S+) +(?P<rest>.*)"
)
_REBOOT = "a reboot fills the ring anew"


class Ring(NamedTuple):
    """The ring as the kernel has it. ``keys``: names of what is in it; ``sealed``: ``None`` when the kernel did not say."""

    present: bool
    sealed: bool | None
    keys: tuple[str, ...]


def parse_keys(text: str) -> dict[int, tuple[str, str, str]]:
    """``/proc/keys``: serial → (flags, type, description with its summary). Lines that are none are left out."""
    found = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is not None:
            found[int(match["serial"], 16)] = (match["flags"], match["type"], match["rest"])
    return found


def find_ring(text: str, name: str = RING) -> int | None:
    """The serial number of the kernel's own ring ``name``: of root's, alive. User space makes none that begin with a dot."""
    for serial, (flags, kind, rest) in parse_keys(text).items():
        alive = flags.startswith("I") and not set(flags) & set("RD")
        if kind == "keyring" and alive and rest.startswith(f"{name}:"):
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


def firmware_certificates(db: bytes, mok: bytes, refused: Collection[bytes]) -> dict[str, str]:
    """Name in the ring → whose it is, of what the early step takes from the firmware; ``refused``: SHA-256 of revoked ones.

    :class:`ValueError` for lists whose sizes do not fit.
    """
    import hashlib

    found = {}
    for label, lists in (("db", db), ("MOK", mok)):
        for entry in efi.parse_lists(lists):
            if entry.type != efi.CERT_X509 or entry.owner in (MICROSOFT, efi.FIRMWARE_ONLY):
                continue
            if hashlib.sha256(entry.data).digest() in refused:
                continue
            try:
                found[name_of(entry.data)] = label
            except ValueError:
                continue
    return found


def judge_ring(ring: Ring, wanted: Mapping[str, str], source: str) -> list[Finding]:
    """Findings about the ``.fs-verity`` ring: sealed, and with the keys that it should have (name → label), no others."""
    if not ring.present:
        return [deviation("ring", MACHINE, RING, "a ring of the kernel", "there is none", _REBOOT)]
    found: list[Finding] = []
    if ring.sealed is False:
        found.append(deviation("ring-open", MACHINE, RING, "sealed", "keys can still be added", _REBOOT))
    if ring.sealed is None:
        found.append(note("ring-open", MACHINE, RING, "sealed", "the kernel did not say whether it is sealed"))
    here = {one: next((name for name in wanted if f": {name}" in one), None) for one in ring.keys}
    found += [
        deviation("ring-key", MACHINE, one, f"only certificates of the {source}", "a key that should not be in the ring", _REBOOT)
        for one, name in here.items()
        if name is None
    ]
    for name, label in wanted.items():
        if name in here.values():
            continue
        # The kernel leaves out kinds of keys that it does not know; the image's own are all of a kind that it knows.
        kind = deviation if source == "image" else note
        found.append(kind("ring-missing", MACHINE, RING, f"the certificate of {label} ({name[:16]})", "not in the ring", _REBOOT))
    return found


def ring_keys(text: str, serials: Sequence[int]) -> tuple[str, ...]:
    """Descriptions of the keys ``serials`` out of ``/proc/keys``; what it does not list is named by its number."""
    known = parse_keys(text)
    return tuple(known[one][2] if one in known else f"key {one:08x}" for one in serials)
