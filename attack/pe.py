# SPDX-License-Identifier: Apache-2.0
"""Just enough of PE/COFF to change a unified kernel image byte by byte (Microsoft's PE format, PE32+). Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass

_PE32_PLUS = 0x20B
#: Offset of the certificate table's directory entry from the optional header's start.
_CERTIFICATES = 112 + 4 * 8


@dataclass(frozen=True)
class Section:
    """A section: its name, where its header and its data are in the file, its size in the file and in memory."""

    name: str
    header: int
    offset: int
    size: int
    virtual_size: int


def _optional_header(data: bytes) -> tuple[int, int, int]:
    """(start of the optional header, number of sections, start of their headers); ``ValueError`` when it is no PE32+."""
    if data[:2] != b"MZ" or len(data) < 64:
        raise ValueError("no PE file")
    start = struct.unpack_from("<I", data, 60)[0]
    if data[start : start + 4] != b"PE\0\0":
        raise ValueError("no PE file")
    count, length = struct.unpack_from("<H12xH", data, start + 6)
    if struct.unpack_from("<H", data, start + 24)[0] != _PE32_PLUS:
        raise ValueError("no PE32+ file")
    return start + 24, count, start + 24 + length


def sections(data: bytes) -> dict[str, Section]:
    """The sections by name; of two with one name the first."""
    _, count, table = _optional_header(data)
    found: dict[str, Section] = {}
    for at in range(table, table + 40 * count, 40):
        name = data[at : at + 8].rstrip(b"\0").decode("ascii", "replace")
        virtual, _, size, offset = struct.unpack_from("<IIII", data, at + 8)
        found.setdefault(name, Section(name, at, offset, size, virtual))
    return found


def content(data: bytes, name: str) -> bytes:
    """A section's content. ``KeyError`` when there is none of that name."""
    one = sections(data)[name]
    return data[one.offset : one.offset + min(one.size, one.virtual_size)]


def patched(data: bytes, offset: int, new: bytes) -> bytes:
    """``data`` with ``new`` at ``offset``."""
    if offset + len(new) > len(data):
        raise ValueError("beyond the file's end")
    return data[:offset] + new + data[offset + len(new) :]


def flipped(data: bytes, name: str, within: int) -> bytes:
    """``data`` with the lowest bit of one byte of a section changed."""
    one = sections(data)[name]
    if not within < one.size:
        raise ValueError(f"{name} has {one.size} bytes")
    return patched(data, one.offset + within, bytes([data[one.offset + within] ^ 1]))


def substituted(data: bytes, name: str, old: bytes, new: bytes) -> bytes:
    """``data`` with ``old``, which is in the section once, replaced by ``new`` of the same length."""
    if len(old) != len(new):
        raise ValueError("the lengths differ")
    one = sections(data)[name]
    inside = data[one.offset : one.offset + one.size]
    if inside.count(old) != 1:
        raise ValueError(f"{name} has {old!r} {inside.count(old)} times")
    return patched(data, one.offset + inside.index(old), new)


def certificate_table(data: bytes) -> tuple[int, int]:
    """(offset, size) of the signatures; (0, 0) without any."""
    start, _, _ = _optional_header(data)
    offset, size = struct.unpack_from("<II", data, start + _CERTIFICATES)
    return int(offset), int(size)


def unsigned(data: bytes) -> bytes:
    """``data`` without its signatures."""
    start, _, _ = _optional_header(data)
    offset, size = certificate_table(data)
    cleared = patched(data, start + _CERTIFICATES, bytes(8))
    return cleared[:offset] + cleared[offset + size :] if offset else cleared
