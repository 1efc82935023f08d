# SPDX-License-Identifier: Apache-2.0
"""DER as far as signatures and certificates need it: where an element begins and ends. Pure.

Strict (X.690, 10.1): a length has one spelling, the shortest, and three bytes are more than anything here has. Everything
else raises :class:`ValueError`. ``early/signatures.c`` reads the same way.
"""

from __future__ import annotations

from typing import NamedTuple

INTEGER, OCTETS, OBJECT_ID, SEQUENCE, SET = 0x02, 0x04, 0x06, 0x30, 0x31
#: Context tags of structures: ``[0]``, ``[1]``.
EXPLICIT_0, EXPLICIT_1 = 0xA0, 0xA1


class Element(NamedTuple):
    """One element: its tag, all of its bytes, and those of its content."""

    tag: int
    whole: bytes
    content: bytes


def element(data: bytes, at: int, end: int, tag: int) -> tuple[int, int]:
    """Where the content of the element of type ``tag`` at ``at`` begins and ends; :class:`ValueError` when it is none."""
    if end - at < 2 or data[at] != tag:
        raise ValueError("not the expected DER")
    size, start = data[at + 1], at + 2
    if size & 0x80:
        more = size & 0x7F
        if not 1 <= more <= 3 or end - start < more:
            raise ValueError("not a length in DER")
        size = int.from_bytes(data[start : start + more], "big")
        if size < 0x80 or (more > 1 and size >> 8 * (more - 1) == 0):
            raise ValueError("not the shortest length")
        start += more
    if size > end - start:
        raise ValueError("DER is cut short")
    return start, start + size


def children(content: bytes) -> tuple[Element, ...]:
    """The elements that ``content`` is made of; :class:`ValueError` when it is not made of elements."""
    found: list[Element] = []
    at = 0
    while at < len(content):
        start, end = element(content, at, len(content), content[at])
        found.append(Element(content[at], content[at:end], content[start:end]))
        at = end
    return tuple(found)


def only(data: bytes, tag: int) -> bytes:
    """The content of ``data``, which has to be one element of type ``tag``; :class:`ValueError`."""
    start, end = element(data, 0, len(data), tag)
    if end != len(data):
        raise ValueError("bytes behind the DER")
    return data[start:end]


def wrap(tag: int, content: bytes) -> bytes:
    """The element of type ``tag`` with ``content``."""
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + content
