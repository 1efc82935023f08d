# SPDX-License-Identifier: Apache-2.0
"""The firmware's log of measurements: parsing, and which events' contents their digests vouch for. All pure.

The log is what Linux shows as ``binary_bios_measurements``: the crypto-agile form of the TCG PC Client Platform
Firmware Profile 1.06 (``TCG_PCR_EVENT2``, sections 10.2 to 10.4). Its first entry is in the old form and holds the
"Spec ID Event03" header with the sizes of the digests. Numbers are little endian. ``UEFI_VARIABLE_DATA`` is in 10.2.5.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from freehold.keys.wire import Reader

MAX_LOG_BYTES = 1 << 20
MAX_EVENTS = 4096
MAX_BANKS = 8
_SIGNATURE = b"Spec ID Event03\0"
_SHA256 = 0x000B
_SHA1_BYTES = 20
_PCRS = 24
_MAX_NAME = 512  # UTF-16 units of a variable's name

NO_ACTION = 0x03
SEPARATOR = 0x04
ACTION = 0x05
EVENT_TAG = 0x06
IPL = 0x0D
VARIABLE_DRIVER_CONFIG = 0x80000001
VARIABLE_AUTHORITY = 0x800000E0

NAMES = {
    0x00: "PREBOOT_CERT", 0x01: "POST_CODE", NO_ACTION: "NO_ACTION", SEPARATOR: "SEPARATOR", ACTION: "ACTION",
    EVENT_TAG: "EVENT_TAG", 0x07: "S_CRTM_CONTENTS", 0x08: "S_CRTM_VERSION", 0x09: "CPU_MICROCODE",
    0x0A: "PLATFORM_CONFIG_FLAGS", 0x0B: "TABLE_OF_DEVICES", 0x0C: "COMPACT_HASH", IPL: "IPL",
    0x0E: "IPL_PARTITION_DATA", 0x0F: "NONHOST_CODE", 0x10: "NONHOST_CONFIG", 0x11: "NONHOST_INFO",
    0x12: "OMIT_BOOT_DEVICE_EVENTS", 0x13: "POST_CODE2", VARIABLE_DRIVER_CONFIG: "EFI_VARIABLE_DRIVER_CONFIG",
    0x80000002: "EFI_VARIABLE_BOOT", 0x80000003: "EFI_BOOT_SERVICES_APPLICATION",
    0x80000004: "EFI_BOOT_SERVICES_DRIVER", 0x80000005: "EFI_RUNTIME_SERVICES_DRIVER",
    0x80000006: "EFI_GPT_EVENT", 0x80000007: "EFI_ACTION", 0x80000008: "EFI_PLATFORM_FIRMWARE_BLOB",
    0x80000009: "EFI_HANDOFF_TABLES", 0x8000000A: "EFI_PLATFORM_FIRMWARE_BLOB2", 0x8000000B: "EFI_HANDOFF_TABLES2",
    0x8000000C: "EFI_VARIABLE_BOOT2", 0x8000000D: "EFI_GPT_EVENT2", 0x80000010: "EFI_HCRTM_EVENT",
    VARIABLE_AUTHORITY: "EFI_VARIABLE_AUTHORITY", 0x800000E1: "EFI_SPDM_FIRMWARE_BLOB", 0x800000E2: "EFI_SPDM_FIRMWARE_CONFIG",
    0x800000E3: "EFI_SPDM_DEVICE_POLICY", 0x800000E4: "EFI_SPDM_DEVICE_AUTHORITY",
}  # fmt: skip
#: The profile says that the digest of these is that of the event's own bytes: what they say was measured.
SELF_DESCRIBING = frozenset({
    SEPARATOR, ACTION, EVENT_TAG, 0x08, 0x80000007, 0x80000006, VARIABLE_DRIVER_CONFIG, VARIABLE_AUTHORITY, 0x8000000C,
})  # fmt: skip


@dataclass(frozen=True)
class Event:
    """One measurement: ``digest`` (SHA-256) was extended into ``pcr``. Only ``digest`` is sure; see :attr:`proven`."""

    pcr: int
    kind: int
    digest: bytes
    data: bytes

    @property
    def kind_name(self) -> str:
        """The profile's name of the kind of event; its number when the profile has none."""
        return NAMES.get(self.kind, f"type {self.kind:#x}")

    @property
    def proven(self) -> bool:
        """Whether the digest is that of ``data``, so that replaying the log vouches for what it says."""
        return hashlib.sha256(self.data).digest() == self.digest


@dataclass(frozen=True)
class Variable:
    """An EFI variable as it was measured."""

    guid: UUID
    name: str
    data: bytes


def parse(log: bytes) -> tuple[tuple[Event, ...], int]:
    """The log's measurements in order, and the locality in which the TPM was started (0 unless the log says more).

    :class:`ValueError` for anything that is not such a log to its last byte: what cannot be read cannot be judged.
    """
    if len(log) > MAX_LOG_BYTES:
        raise ValueError(f"larger than {MAX_LOG_BYTES} bytes")
    reader = Reader(log, "little")
    sizes = _header(reader)
    events: list[Event] = []
    locality = seen = 0
    while reader.left:
        pcr, kind, count = reader.number(4), reader.number(4), reader.number(4)
        seen += 1
        if not 1 <= count <= len(sizes) or seen > MAX_EVENTS:
            raise ValueError(f"{count} digests in one event, or too many events")
        digests: dict[int, bytes] = {}
        for _ in range(count):
            algorithm = reader.number(2)
            if algorithm not in sizes or algorithm in digests:
                raise ValueError(f"the digest algorithm {algorithm:#06x} is not in the header, or is there twice")
            digests[algorithm] = reader.take(sizes[algorithm])
        data = reader.sized(4, MAX_LOG_BYTES)
        if kind == NO_ACTION:
            if data.startswith(b"StartupLocality\0") and len(data) == 17 and pcr == 0:
                locality = data[16]
            continue
        if pcr >= _PCRS:
            raise ValueError(f"there is no PCR {pcr}")
        if _SHA256 not in digests:
            raise ValueError("an event without a SHA-256 digest")
        events.append(Event(pcr, kind, digests[_SHA256], data))
    return tuple(events), locality


def _header(reader: Reader) -> dict[int, int]:
    """The sizes of digests by algorithm, from the first entry."""
    pcr, kind, digest = reader.number(4), reader.number(4), reader.take(_SHA1_BYTES)
    if (pcr, kind, digest) != (0, NO_ACTION, bytes(_SHA1_BYTES)):
        raise ValueError("not a crypto-agile log of a TPM 2.0")
    head = Reader(reader.sized(4, 1024), "little")
    if head.take(len(_SIGNATURE)) != _SIGNATURE:
        raise ValueError("not a crypto-agile log of a TPM 2.0")
    head.take(8)  # platform class, version, size of native words
    count = head.number(4)
    if not 1 <= count <= MAX_BANKS:
        raise ValueError(f"{count} digest algorithms")
    pairs = [(head.number(2), head.number(2)) for _ in range(count)]
    head.sized(1, 255)  # the vendor's own
    head.finish()
    sizes = dict(pairs)
    if len(sizes) != count or sizes.get(_SHA256) != 32 or not all(1 <= size <= 64 for size in sizes.values()):
        raise ValueError("digest algorithms without SHA-256, twice, or of impossible sizes")
    return sizes


def start_values(locality: int) -> list[bytes]:
    """PCR 0 to 23 after power-on: zero; PCR 17 to 22 ones; PCR 0 with the locality of the start in its last byte."""
    values = [b"\xff" * 32 if 17 <= pcr <= 22 else bytes(32) for pcr in range(_PCRS)]
    values[0] = bytes(31) + bytes([locality])
    return values


def register(events: Iterable[Event], pcr: int) -> tuple[bytes, ...]:
    """The digests that were measured into one register, in order."""
    return tuple(one.digest for one in events if one.pcr == pcr)


def serialize_variable(value: Variable) -> bytes:
    """The ``UEFI_VARIABLE_DATA`` that firmware measures of a variable."""
    name = value.name.encode("utf-16-le")
    return value.guid.bytes_le + struct.pack("<QQ", len(name) // 2, len(value.data)) + name + value.data


def parse_variable(data: bytes) -> Variable:
    """A ``UEFI_VARIABLE_DATA``. :class:`ValueError` says what is wrong with it."""
    reader = Reader(data, "little")
    guid = UUID(bytes_le=reader.take(16))
    units, size = reader.number(8), reader.number(8)
    if units > _MAX_NAME:
        raise ValueError(f"a variable's name of {units} characters")
    name = reader.take(2 * units).decode("utf-16-le")
    value = reader.take(size)
    reader.finish()
    return Variable(guid, name, value)
