# SPDX-License-Identifier: Apache-2.0
"""The sections of an EFI program (PE/COFF), as far as checking a unified kernel image needs them. Pure.

Layout: Microsoft's "PE Format": offset of the PE header at 0x3c, COFF file header (20 bytes), optional header, section
table of 40 byte rows. The name of each section of a UKI and the meaning of ``.cmdline`` are the UAPI group's
"Unified Kernel Image" specification. :mod:`freehold.attest.pe` reads whole programs, for what a TPM sees of them; here the
headers are enough, and a kernel image need not fit into memory.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

#: So many bytes of a file hold all headers; a program whose headers lie elsewhere is refused.
HEAD_BYTES = 64 << 10
MAX_SECTIONS = 96
MAX_CMDLINE_BYTES = 64 << 10

_COFF = struct.Struct("<4sHHIIIHH")
_ROW = struct.Struct("<8sIIIIIIHHI")
_LFANEW = 0x3C


class Section(NamedTuple):
    """A section's name and where its content lies in the file (bytes)."""

    name: str
    offset: int
    size: int


def sections(head: bytes, file_size: int) -> tuple[Section, ...]:
    """The sections of a program of ``file_size`` bytes that begins with ``head``.

    ``head`` is the first :data:`HEAD_BYTES` (or all, when there are fewer). :class:`ValueError` says what does not fit.
    """
    head = head[:HEAD_BYTES]
    if len(head) < _LFANEW + 4 or head[:2] != b"MZ":
        raise ValueError("not an EFI program")
    (at,) = struct.unpack_from("<I", head, _LFANEW)
    if at > len(head) - _COFF.size:
        raise ValueError("its PE header lies outside")
    magic, _, count, _, _, _, optional, _ = _COFF.unpack_from(head, at)
    if magic != b"PE\0\0":
        raise ValueError("it has no PE header")
    if not 0 < count <= MAX_SECTIONS:
        raise ValueError(f"it has {count} sections")
    table = at + _COFF.size + optional
    if table + count * _ROW.size > len(head):
        raise ValueError("its section table lies outside")
    found = []
    for number in range(count):
        name, virtual, _, raw, offset, *_ = _ROW.unpack_from(head, table + number * _ROW.size)
        # What the loader maps: the rest of the last block in the file is padding.
        size = min(virtual, raw)
        if offset + size > file_size:
            raise ValueError(f"section {number} lies outside")
        found.append(Section(name.rstrip(b"\0").decode("ascii", "replace"), offset, size))
    return tuple(found)


def command_line_section(found: tuple[Section, ...]) -> Section:
    """The one ``.cmdline``. :class:`ValueError` when there is none, more than one, or it is too large."""
    lines = [one for one in found if one.name == ".cmdline"]
    if len(lines) != 1:
        raise ValueError(f"it has {len(lines)} command lines")
    if lines[0].size > MAX_CMDLINE_BYTES:
        raise ValueError(f"its command line is larger than {MAX_CMDLINE_BYTES} bytes")
    return lines[0]


def command_line(content: bytes) -> str:
    """The text of a ``.cmdline`` section. :class:`ValueError` when it is not one line of ASCII."""
    text = content.rstrip(b"\0").decode("ascii", "strict").strip()
    if not text.isprintable():
        raise ValueError("its command line is not printable")
    return text
