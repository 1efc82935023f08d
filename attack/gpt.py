# SPDX-License-Identifier: Apache-2.0
"""The partitions of a disk image (GPT, UEFI specification 2.10, chapter 5). Pure but for :func:`load`."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

SECTOR = 512
#: The header, and the 128 entries that every tool makes.
HEAD_BYTES = SECTOR * 2 + 128 * 128


@dataclass(frozen=True)
class Partition:
    """A partition; ``start`` and ``size`` in bytes."""

    number: int
    name: str
    start: int
    size: int


def parse(head: bytes) -> tuple[Partition, ...]:
    """The partitions in use, from a disk's first :data:`HEAD_BYTES`. ``ValueError`` when there is no GPT."""
    header = head[SECTOR : 2 * SECTOR]
    if header[:8] != b"EFI PART":
        raise ValueError("no GPT")
    table, count, length = struct.unpack_from("<QII", header, 72)
    if table != 2 or length < 128 or count * length > HEAD_BYTES - 2 * SECTOR:
        raise ValueError("a GPT of an unusual form")
    found = []
    for index in range(count):
        entry = head[2 * SECTOR + index * length : 2 * SECTOR + (index + 1) * length]
        if entry[:16] == bytes(16) or len(entry) < 128:
            continue
        first, last = struct.unpack_from("<QQ", entry, 32)
        name = entry[56:128].decode("utf-16-le", "replace").split("\0")[0]
        found.append(Partition(index + 1, name, first * SECTOR, (last - first + 1) * SECTOR))
    return tuple(found)


def load(disk: Path) -> dict[str, Partition]:
    """The partitions of the image ``disk`` by name."""
    with disk.open("rb") as source:
        return {one.name: one for one in parse(source.read(HEAD_BYTES))}
