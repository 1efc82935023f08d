# SPDX-License-Identifier: Apache-2.0
"""Unified kernel images put together again: exchanging sections, and the signature. Pure.

A derived deployment starts the *same* stub, kernel and initrd as its base, with another command line. So the base's own
image is taken apart and put together again with the new texts: nothing else can differ, no other version of a
stub gets in, and a machine needs no assembler. The format is that of :mod:`freehold.keys.pe`, which reads.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Mapping, Sequence

from freehold.errors import InputError
from freehold.keys import pe
from freehold.keys.pe import Program, Section

_CERTIFICATE = struct.Struct("<IHH")
#: WIN_CERT_REVISION_2_0 and WIN_CERT_TYPE_PKCS_SIGNED_DATA.
_REVISION, _PKCS7 = 0x0200, 0x0002
#: Data directories up to the one that points to the certificates.
_DIRECTORIES = 5
#: Bytes of a block in the file, as "PE Format" has it: each section is filled up to whole ones.
_LEAST_BLOCK, _LARGEST_BLOCK = 512, 64 << 10
#: What the stub finds by name (UAPI.5), wherever it is.
MOVABLE = frozenset({*pe.MEASURED, ".efifw", ".pcrsig"})


def parse(data: bytes) -> Program:
    """The kernel image ``data``; :class:`InputError` when it is none, or not of a kind that can be put together again."""
    try:
        program = pe.parse(data)
    except ValueError as error:
        raise InputError(f"this is no kernel image: {error}") from None
    powers = all(value and value & (value - 1) == 0 for value in (program.alignment, program.file_alignment))
    fitting = _LEAST_BLOCK <= program.file_alignment <= min(_LARGEST_BLOCK, program.alignment)
    if program.directories < _DIRECTORIES or not powers or not fitting:
        raise InputError("this is no kernel image of a kind that Freehold makes")
    return program


def content(program: Program, name: str) -> bytes:
    """What section ``name`` of the first profile holds. :class:`InputError` when there is none."""
    found = program.content(name)
    if found is None:
        raise InputError(f"the kernel image has no section {name!r}")
    return found


def digest(program: Program) -> bytes:
    """The Authenticode digest, SHA-256, of an image whose sections lie one behind the other; :class:`InputError` otherwise."""
    at = program.size
    for section in sorted(program.sections, key=lambda one: one.start):
        if section.raw:
            if section.start != at:
                raise InputError("the kernel image's sections do not lie one behind the other")
            at += section.raw
    return program.authenticode()


def _align(value: int, to: int) -> int:
    return -(-value // to) * to


def exchange(program: Program, contents: Mapping[str, Sequence[bytes]], *, drop: frozenset[str] = frozenset()) -> bytes:
    """The unsigned image with other ``contents`` of some sections, and without those named in ``drop``.

    ``contents`` has one value for each section of that name, profile by profile. Their order stays, since a profile is what
    lies between two sections ``.profile``. Where a new content does not fit into the addresses up to the next section, what
    follows moves back: only sections that are found by their names may. :class:`InputError` when one is missing, or fixed.
    """
    for name, values in contents.items():
        if len(program.contents(name)) != len(values):
            raise InputError(f"the kernel image has {len(program.contents(name))} sections {name!r}, not {len(values)}")
    if any(one.address + one.size > two.address for one, two in itertools.pairwise(program.sections)):
        raise InputError("the kernel image's sections are not in the order of their addresses")
    left = {name: list(values) for name, values in contents.items()}
    placed: list[tuple[Section, bytes]] = []
    end = 0
    for section in program.sections:
        if section.name in drop:
            continue
        if section.name in left:
            new = left[section.name].pop(0)
            section = section._replace(size=len(new))
        else:
            new = program.data[section.start : section.start + section.raw]
        if section.address < end:
            if section.name not in MOVABLE:
                raise InputError(f"the kernel image's section {section.name} would have to move")
            section = section._replace(address=_align(end, program.alignment))
        placed.append((section, new))
        end = section.address + section.size
    rows, body = bytearray(), bytearray()
    for section, new in placed:
        raw = _align(len(new), program.file_alignment)
        start = program.size + len(body) if raw else 0
        rows += pe.ROW.pack(section.name.encode("latin-1"), section.size, section.address, raw, start, section.rest)
        body += new.ljust(raw, b"\0")
    head = bytearray(program.data[: program.size])
    # Rows that are no longer used are cleared.
    table = rows.ljust(len(program.sections) * pe.ROW.size, b"\0")
    head[program.table : program.table + len(table)] = table
    last = max(section.address + section.size for section, _ in placed)
    if _align(last, program.alignment) >= 1 << 32:
        raise InputError("the kernel image's sections do not fit into 4 GiB")
    struct.pack_into("<H", head, program.optional - 18, len(placed))
    struct.pack_into("<I", head, program.optional + 56, _align(last, program.alignment))
    struct.pack_into("<I", head, program.checksum, 0)
    struct.pack_into("<II", head, program.directory, 0, 0)
    return bytes(head + body)


def attach(unsigned: bytes, pkcs7: bytes) -> bytes:
    """``unsigned`` with the signature ``pkcs7`` (DER) in its certificate table."""
    program = parse(unsigned)
    if program.certificates[1]:
        raise InputError("the kernel image is signed already")
    padded = pkcs7.ljust(_align(len(pkcs7), 8), b"\0")
    table = _CERTIFICATE.pack(_CERTIFICATE.size + len(padded), _REVISION, _PKCS7) + padded
    body = bytearray(unsigned.ljust(_align(len(unsigned), 8), b"\0"))
    struct.pack_into("<II", body, program.directory, len(body), len(table))
    return bytes(body + table)
