# SPDX-License-Identifier: Apache-2.0
"""Small EFI programs (PE32+), made by hand after Microsoft's "PE Format"."""

from __future__ import annotations

import struct
from collections.abc import Sequence

#: Where the optional header, the row of the first section, and the first section's content begin in these programs.
OPTIONAL, TABLE, BODY = 88, 328, 1024
_BLOCK, _PAGE = 512, 4096


def program(sections: Sequence[tuple[str, bytes, int]], *, certificates: bytes = b"") -> bytes:
    """A program with these sections (name, stored bytes, size in memory), one behind the other, and ``certificates``."""
    rows, body, address = b"", b"", _PAGE
    for name, content, size in sections:
        raw = -(-len(content) // _BLOCK) * _BLOCK
        start = BODY + len(body) if raw else 0
        rows += struct.pack("<8sIIII16x", name.encode("latin-1"), size, address, raw, start)
        body += content.ljust(raw, b"\0")
        address += -(-max(size, 1) // _PAGE) * _PAGE
    optional = bytearray(240)
    struct.pack_into("<H", optional, 0, 0x20B)
    # Alignment in memory and in the file, size in memory, size of headers, number of data directories.
    struct.pack_into("<II", optional, 32, _PAGE, _BLOCK)
    struct.pack_into("<II", optional, 56, address, BODY)
    struct.pack_into("<I", optional, 108, 16)
    if certificates:
        struct.pack_into("<II", optional, 112 + 4 * 8, BODY + len(body), len(certificates))
    coff = struct.pack("<4sHHIIIHH", b"PE\0\0", 0x8664, len(sections), 0, 0, 0, len(optional), 0x22E)
    head = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 64) + coff + bytes(optional) + rows
    return head.ljust(BODY, b"\0") + body + certificates


def whole(*sections: tuple[str, bytes]) -> bytes:
    """A program whose sections (name, content) are as large in memory as their contents."""
    return program([(name, content, len(content)) for name, content in sections])
