# SPDX-License-Identifier: Apache-2.0
"""Which values PCR 7 has in the boots that the device key is for: read off the firmware's event log. All pure.

PCR 7 says that Secure Boot is on, with which PK, KEK, db and dbx, and then, in the order of first use, which entries of db
vouched for what was started. A release's images are vouched for by its vendor's entry, a derived image by the owner's: the
same machine has one value before and another after its owner's first change. So the values are foreseen: the
log's events without the vouching at their end, and the orders of vouching that can follow.

Format: TCG PC Client Platform Firmware Profile, sections 10.2 (crypto agile log) and 3.3.4.8 (what is measured when an
entry of db vouches: a UEFI_VARIABLE_DATA with the entry). SHA-256 bank only.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from uuid import UUID

from freehold.keys.efi import CERT_X509, IMAGE_SECURITY_DATABASE, Signature

MAX_LOG_BYTES = 1 << 20
MAX_EVENTS = 4096
_MAX_BANKS = 8
_SHA256 = 0x000B
_NO_ACTION = 3
_MARK = b"Spec ID Event03\0"


def register_events(log: bytes, register: int) -> tuple[bytes, ...]:
    """The SHA-256 digests that the firmware measured into ``register``, in order.

    :class:`ValueError` when ``log`` is no crypto agile log with a SHA-256 bank, or is cut short.
    """
    if len(log) > MAX_LOG_BYTES:
        raise ValueError(f"the event log is larger than {MAX_LOG_BYTES} bytes")
    try:
        return tuple(_events(log, register))
    except struct.error:
        raise ValueError("the event log is cut short") from None


def _events(log: bytes, register: int) -> list[bytes]:
    # The first event has the old form, 20 bytes of digest, and says which banks follow.
    _, kind, size = struct.unpack_from("<II20xI", log, 0)
    head = log[32 : 32 + size]
    if kind != _NO_ACTION or not head.startswith(_MARK) or len(head) != size:
        raise ValueError("the event log is not crypto agile (a TPM 1.2's?)")
    (count,) = struct.unpack_from("<I", head, 24)
    if not 1 <= count <= _MAX_BANKS:
        raise ValueError("the event log has too many banks")
    sizes = dict(struct.unpack_from("<HH", head, 28 + 4 * number) for number in range(count))
    if sizes.get(_SHA256) != hashlib.sha256().digest_size:
        raise ValueError("the event log has no SHA-256 bank")
    found: list[bytes] = []
    at = 32 + size
    for _ in range(MAX_EVENTS):
        if at == len(log):
            return found
        number, kind, digests = struct.unpack_from("<III", log, at)
        at += 12
        if digests > _MAX_BANKS:
            raise ValueError("an event has too many digests")
        for _ in range(digests):
            (algorithm,) = struct.unpack_from("<H", log, at)
            if algorithm not in sizes:
                raise ValueError("an event has a digest of an unknown bank")
            digest = log[at + 2 : at + 2 + sizes[algorithm]]
            at += 2 + sizes[algorithm]
            if algorithm == _SHA256 and number == register and kind != _NO_ACTION:
                found.append(digest)
        (length,) = struct.unpack_from("<I", log, at)
        at += 4 + length
        if at > len(log):
            raise ValueError("the event log is cut short")
    raise ValueError(f"the event log has more than {MAX_EVENTS} events")


def replay(digests: Sequence[bytes]) -> bytes:
    """The register's value after these events."""
    value = bytes(32)
    for digest in digests:
        value = hashlib.sha256(value + digest).digest()
    return value


def vouching(entry: Signature) -> bytes:
    """The digest that is measured when this entry of db vouches for what is started."""
    data = entry.owner.bytes_le + entry.data
    return hashlib.sha256(_variable("db", IMAGE_SECURITY_DATABASE, data)).digest()


def _variable(name: str, guid: UUID, data: bytes) -> bytes:
    return guid.bytes_le + struct.pack("<QQ", len(name), len(data)) + name.encode("utf-16-le") + data


def foresee(events: Sequence[bytes], db: Sequence[Signature], owner: bytes) -> tuple[bytes, ...]:
    """The values of PCR 7 in this boot and in those that a change of deployment leads to; this boot's first.

    ``events`` are PCR 7's of this boot, ``db`` the firmware's entries, ``owner`` the owner's certificate (DER), which
    vouches for derived images, where db has it.
    """
    known = {vouching(entry) for entry in db if entry.type == CERT_X509}
    owners = [vouching(entry) for entry in db if entry.type == CERT_X509 and entry.data == owner]
    end = len(events)
    while end and events[end - 1] in known:
        end -= 1
    head, vouched = list(events[:end]), list(events[end:])
    orders = [vouched]
    for mine in owners[:1]:
        others = [one for one in vouched if one != mine]
        # The loader's entry comes first and stays; the image's follows unless it is the same.
        orders += [[*others, mine], others or [mine]]
    values: list[bytes] = []
    for order in orders:
        value = replay(head + order)
        if value not in values:
            values.append(value)
    return tuple(values)
