# SPDX-License-Identifier: Apache-2.0
"""Changing a unified kernel image byte by byte (PE32+). Pure.

Everything here takes an image that is sound: what was changed before may not be read any more.
"""

from __future__ import annotations

from freehold.keys.pe import Section, parse


def sections(data: bytes) -> dict[str, Section]:
    """The sections of the first profile by name. :class:`ValueError` when it is no program."""
    return parse(data).first_profile()


def content(data: bytes, name: str) -> bytes:
    """A section's content. ``KeyError`` when there is none of that name."""
    one = sections(data)[name]
    return data[one.start : one.start + one.stored]


def patched(data: bytes, offset: int, new: bytes) -> bytes:
    """``data`` with ``new`` at ``offset``."""
    if offset + len(new) > len(data):
        raise ValueError("beyond the file's end")
    return data[:offset] + new + data[offset + len(new) :]


def flipped(data: bytes, name: str, within: int) -> bytes:
    """``data`` with the lowest bit of one byte of a section changed."""
    one = sections(data)[name]
    if not within < one.raw:
        raise ValueError(f"{name} has {one.raw} bytes")
    return patched(data, one.start + within, bytes([data[one.start + within] ^ 1]))


def substituted(data: bytes, name: str, old: bytes, new: bytes) -> bytes:
    """``data`` with ``old``, which is in the section once, replaced by ``new`` of the same length."""
    if len(old) != len(new):
        raise ValueError("the lengths differ")
    one = sections(data)[name]
    inside = data[one.start : one.start + one.raw]
    if inside.count(old) != 1:
        raise ValueError(f"{name} has {old!r} {inside.count(old)} times")
    return patched(data, one.start + inside.index(old), new)


def unsigned(data: bytes) -> bytes:
    """``data`` without its signatures."""
    program = parse(data)
    offset, size = program.certificates
    if not size:
        return data
    cleared = patched(data, program.directory, bytes(8))
    return cleared[:offset] + cleared[offset + size :]
