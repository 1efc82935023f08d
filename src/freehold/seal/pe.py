# SPDX-License-Identifier: Apache-2.0
"""Unified kernel images (PE32+): reading sections, exchanging some, and what a signature covers. Pure.

A derived deployment starts the *same* stub, kernel and initrd as its base, with another command line. So the base's own
image is taken apart and put together again with the new texts: nothing else can differ, no other version of a
stub gets in, and a machine needs no assembler. Format: Microsoft's "PE Format" and "Windows Authenticode Portable
Executable Signature Format"; sections of a UKI: UAPI.5.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from freehold.errors import InputError

#: Bytes; what `update.manifest` allows for a UKI.
MAX_BYTES = 512 << 20
_SECTION = struct.Struct("<8sIIIIIIHHI")
_CERTIFICATE = struct.Struct("<IHH")
#: WIN_CERT_REVISION_2_0 and WIN_CERT_TYPE_PKCS_SIGNED_DATA.
_REVISION, _PKCS7 = 0x0200, 0x0002
_MAX_SECTIONS = 64
#: What the stub finds by name (UAPI.5), wherever it is.
MOVABLE = frozenset({
    ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".dtbauto", ".efifw", ".hwids", ".uname", ".sbat", ".pcrpkey",
    ".pcrsig", ".profile", ".linux",
})  # fmt: skip


class Section(NamedTuple):
    """One section: ``size`` and ``address`` as the program sees it, ``raw`` and ``start`` as the file has it."""

    name: str
    size: int
    address: int
    raw: int
    start: int
    rest: bytes


class Program(NamedTuple):
    """A parsed PE file: offsets of the fields that signing and moving touch, and its sections as they are listed."""

    data: bytes
    optional: int
    table: int
    headers: int
    file_alignment: int
    alignment: int
    sections: tuple[Section, ...]
    certificates: tuple[int, int]

    @property
    def checksum(self) -> int:
        """Where the check sum is, which no signature covers."""
        return self.optional + 64

    @property
    def directory(self) -> int:
        """Where the directory entry of the certificate table is, which no signature covers."""
        return self.optional + 112 + 4 * 8

    def content(self, name: str) -> bytes:
        """What section ``name`` of the first profile holds, which is what boots unless somebody chooses another.

        :class:`InputError` when there is none.
        """
        found = self.contents(name)
        if not found:
            raise InputError(f"the kernel image has no section {name!r}")
        return found[0]

    def contents(self, name: str) -> list[bytes]:
        """What the sections ``name`` of all profiles hold, in their order."""
        found = [section for section in self.sections if section.name == name]
        return [self.data[one.start : one.start + min(one.size, one.raw)] for one in found]


def parse(data: bytes) -> Program:
    """The PE32+ file ``data``; :class:`InputError` when it is none, or when its parts do not lie one behind the other."""
    try:
        return _parse(data)
    except struct.error:
        raise InputError("this is no kernel image: it ends in the middle of its headers") from None


def _parse(data: bytes) -> Program:
    if len(data) > MAX_BYTES:
        raise InputError("the kernel image is too large")
    (head,) = struct.unpack_from("<I", data, 0x3C)
    if data[:2] != b"MZ" or data[head : head + 4] != b"PE\0\0":
        raise InputError("this is no kernel image (no PE file)")
    count, size = struct.unpack_from("<H12xH", data, head + 6)
    optional = head + 24
    (magic,) = struct.unpack_from("<H", data, optional)
    alignment, file_alignment = struct.unpack_from("<II", data, optional + 32)
    (headers,) = struct.unpack_from("<I", data, optional + 60)
    (directories,) = struct.unpack_from("<I", data, optional + 108)
    powers = all(value and value & (value - 1) == 0 for value in (alignment, file_alignment))
    if magic != 0x20B or directories < 5 or not powers or not 0 < count <= _MAX_SECTIONS or size < 112 + 5 * 8:
        raise InputError("this is no kernel image of a kind that Freehold makes")
    table = optional + size
    sections = []
    for index in range(count):
        name, virtual, address, raw, start, *_ = _SECTION.unpack_from(data, table + index * _SECTION.size)
        rest = data[table + index * _SECTION.size + 24 : table + (index + 1) * _SECTION.size]
        if raw and (start < headers or start + raw > len(data)):
            raise InputError("the kernel image has a section outside of itself")
        sections.append(Section(name.rstrip(b"\0").decode("latin-1"), virtual, address, raw, start, rest))
    if table + count * _SECTION.size > headers or headers > len(data):
        raise InputError("the kernel image's headers are damaged")
    offset, length = struct.unpack_from("<II", data, optional + 112 + 4 * 8)
    if length and (offset + length > len(data) or offset < headers):
        raise InputError("the kernel image's signature lies outside of it")
    return Program(data, optional, table, headers, file_alignment, alignment, tuple(sections), (offset, length))


def digest(program: Program) -> bytes:
    """The Authenticode digest, SHA-256: everything but check sum, certificate table and the entry that points to it."""
    data, end = memoryview(program.data), len(program.data)
    offset, length = program.certificates
    if length:
        if offset + length != end:
            raise InputError("the kernel image goes on behind its signature")
        end = offset
    hashed = hashlib.sha256(data[: program.checksum])
    hashed.update(data[program.checksum + 4 : program.directory])
    hashed.update(data[program.directory + 8 : program.headers])
    at = program.headers
    for section in sorted(program.sections, key=lambda one: one.start):
        if section.raw:
            if section.start != at:
                raise InputError("the kernel image's sections do not lie one behind the other")
            at += section.raw
    hashed.update(data[program.headers : end])
    return hashed.digest()


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
            content = left[section.name].pop(0)
            section = section._replace(size=len(content))
        else:
            content = program.data[section.start : section.start + section.raw]
        if section.address < end:
            if section.name not in MOVABLE:
                raise InputError(f"the kernel image's section {section.name} would have to move")
            section = section._replace(address=_align(end, program.alignment))
        placed.append((section, content))
        end = section.address + section.size
    rows, body = bytearray(), bytearray()
    for section, content in placed:
        raw = _align(len(content), program.file_alignment)
        start = program.headers + len(body) if raw else 0
        rows += (
            struct.pack("<8sIIII", section.name.encode("latin-1"), section.size, section.address, raw, start)
            + section.rest
        )
        body += content.ljust(raw, b"\0")
    table = bytes(rows).ljust(len(program.sections) * _SECTION.size, b"\0")
    head = bytearray(program.data[: program.table] + table + program.data[program.table + len(table) : program.headers])
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
