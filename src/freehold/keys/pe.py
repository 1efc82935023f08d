# SPDX-License-Identifier: Apache-2.0
"""EFI programs (PE32+): the project's one reader of their headers, sections and of what a signature covers. Pure.

:func:`headers` needs a file's beginning only, so that a kernel image need not fit into memory; :func:`parse` takes all of
it. Both refuse what does not fit together, so that everything here reads what firmware and systemd-stub would.

Formats: Microsoft's "PE Format" (offset of the PE header at 0x3c, COFF file header, optional header, section table) and
"Windows Authenticode Portable Executable Signature Format" (the digest leaves out the check sum, the entry that points to
the certificates, and the certificates); names of sections and profiles: the UAPI group's "Unified Kernel Image".
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

#: Bytes, in the file and in memory; what `update.manifest` allows for a UKI.
MAX_BYTES = 512 << 20
#: So many bytes of a file hold all headers; a program whose headers lie elsewhere is refused.
HEAD_BYTES = 64 << 10
MAX_SECTIONS = 64
MAX_CMDLINE_BYTES = 64 << 10
#: What systemd-stub 257 measures of an image, in its order. What it never measures is ".pcrsig".
MEASURED = (
    ".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey", ".profile", ".dtbauto",
    ".hwids",
)  # fmt: skip
_POINTER, _PE32_PLUS = 0x3C, 0x20B
_COFF = struct.Struct("<4sHHIIIHH")
#: Magic, alignments, size of headers, number of data directories: where they are in the optional header.
_OPTIONAL = struct.Struct("<H30xII20xI44xI")
#: A row of the section table: name, size and address in memory, size and start in the file, and the rest.
ROW = struct.Struct("<8sIIII16s")
_CHECKSUM, _CERTIFICATES, _MAX_DIRECTORIES = 64, 4, 16


class Section(NamedTuple):
    """One section: ``size`` and ``address`` as the program sees it, ``raw`` and ``start`` as the file has it.

    ``header`` is where its row of the table is in the file, ``rest`` what that has behind these numbers.
    """

    name: str
    size: int
    address: int
    raw: int
    start: int
    header: int
    rest: bytes

    @property
    def stored(self) -> int:
        """How many bytes of the file are content: the rest of the last block is padding."""
        return min(self.size, self.raw)


@dataclass(frozen=True)
class Headers:
    """Where things are in a program: offsets and sizes in bytes. ``certificates``: (offset, size), (0, 0) when unsigned."""

    optional: int
    table: int
    size: int
    alignment: int
    file_alignment: int
    directories: int
    sections: tuple[Section, ...]
    certificates: tuple[int, int]

    @property
    def checksum(self) -> int:
        """Where the check sum is, which no signature covers."""
        return self.optional + _CHECKSUM

    @property
    def directory(self) -> int:
        """Where the directory entry of the certificates is, which no signature covers."""
        return self.optional + _OPTIONAL.size + 8 * _CERTIFICATES

    def named(self, name: str) -> list[Section]:
        """The sections ``name`` of all profiles, in their order."""
        return [one for one in self.sections if one.name == name]

    def first_profile(self) -> dict[str, Section]:
        """What starts unless somebody chooses: the common sections, and over them those of the first profile, by name."""
        found: dict[str, Section] = {}
        for part in _profiles(self.sections)[:2]:
            # Of two of one name, which only sections that are not measured may have, the first.
            found |= {one.name: one for one in reversed(part)}
        return found


@dataclass(frozen=True)
class Program(Headers):
    """A whole program: :class:`Headers` and the bytes of the file."""

    data: bytes = field(repr=False)

    def stored(self, section: Section) -> bytes:
        """What the file holds of ``section``, without padding."""
        return self.data[section.start : section.start + section.stored]

    def loaded(self, section: Section) -> bytes:
        """What is in memory, which is what is measured: filled up with zeros where that is longer than what is stored."""
        return self.stored(section).ljust(section.size, b"\0")

    def content(self, name: str) -> bytes | None:
        """What section ``name`` of the first profile holds; ``None`` when there is none."""
        section = self.first_profile().get(name)
        return None if section is None else self.stored(section)

    def contents(self, name: str) -> list[bytes]:
        """What the sections ``name`` of all profiles hold, in their order."""
        return [self.stored(one) for one in self.named(name)]

    def authenticode(self) -> bytes:
        """The SHA-256 that a signature covers and firmware measures."""
        data = memoryview(self.data)
        digest = hashlib.sha256(data[: self.checksum])
        at = self.checksum + 4
        if self.directories > _CERTIFICATES:
            digest.update(data[at : self.directory])
            at = self.directory + 8
        digest.update(data[at : self.size])
        counted = self.size
        for one in sorted(self.sections, key=lambda section: section.start):
            if one.raw:
                digest.update(data[one.start : one.start + one.raw])
                counted += one.raw
        digest.update(data[counted : len(data) - self.certificates[1]])
        return digest.digest()


def headers(head: bytes, file_size: int) -> Headers:
    """The headers of a program of ``file_size`` bytes that begins with ``head``: its first :data:`HEAD_BYTES`, or all.

    :class:`ValueError` says what does not fit.
    """
    head = head[:HEAD_BYTES]
    if file_size > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES} bytes")
    if len(head) < _POINTER + 4 or head[:2] != b"MZ":
        raise ValueError("not an EFI program")
    (start,) = struct.unpack_from("<I", head, _POINTER)
    if start > len(head) - _COFF.size:
        raise ValueError("its PE header lies outside")
    magic, _, count, _, _, _, length, _ = _COFF.unpack_from(head, start)
    if magic != b"PE\0\0":
        raise ValueError("it has no PE header")
    optional = start + _COFF.size
    table = optional + length
    if not 0 < count <= MAX_SECTIONS:
        raise ValueError(f"it has {count} sections")
    if length < _OPTIONAL.size or table + count * ROW.size > len(head):
        raise ValueError("its section table lies outside, or its headers are cut short")
    kind, alignment, file_alignment, size, directories = _OPTIONAL.unpack_from(head, optional)
    if kind != _PE32_PLUS or directories > _MAX_DIRECTORIES:
        raise ValueError("not an EFI program for a 64 bit machine")
    if length < _OPTIONAL.size + 8 * directories or not table + count * ROW.size <= size <= file_size:
        raise ValueError("its headers do not fit")
    rows = range(table, table + count * ROW.size, ROW.size)
    sections = tuple(_section(row, ROW.unpack_from(head, row), size, file_size) for row in rows)
    if sum(one.size for one in sections) > MAX_BYTES:
        raise ValueError(f"its sections are larger than {MAX_BYTES} bytes in memory")
    for part in _profiles(sections):
        names = [one.name for one in part if one.name in MEASURED]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"it has two sections {twice} in one profile")
    certificates = (0, 0)
    if directories > _CERTIFICATES:
        offset, signed = struct.unpack_from("<II", head, optional + _OPTIONAL.size + 8 * _CERTIFICATES)
        if signed and (offset < size or offset + signed > file_size):
            raise ValueError("its signature lies outside of it")
        certificates = (offset, signed) if signed else (0, 0)
    return Headers(optional, table, size, alignment, file_alignment, directories, sections, certificates)


def _section(at: int, row: tuple[bytes, int, int, int, int, bytes], headers_size: int, file_size: int) -> Section:
    label, size, address, raw, start, rest = row
    name = label.rstrip(b"\0").decode("latin-1")
    if "\0" in name:
        # The stub looks at what comes before it only, and would find a section that nobody else sees.
        raise ValueError("it has a section with something behind the end of its name")
    if raw and (start < headers_size or start + raw > file_size):
        raise ValueError(f"its section {name!r} lies outside")
    return Section(name, size, address, raw, start, at, rest)


def _profiles(sections: Iterable[Section]) -> list[list[Section]]:
    """The common sections, then those of each profile: what follows a ``.profile`` up to the next."""
    parts: list[list[Section]] = [[]]
    for one in sections:
        if one.name == ".profile":
            parts.append([])
        parts[-1].append(one)
    return parts


def parse(data: bytes) -> Program:
    """Read a program. :class:`ValueError` says why it is none, or which of its parts do not fit together."""
    found = headers(data[:HEAD_BYTES], len(data))
    offset, length = found.certificates
    if length and offset + length != len(data):
        raise ValueError("it goes on behind its signature")
    if found.size + sum(one.raw for one in found.sections) > len(data) - length:
        raise ValueError("the sizes of its parts do not fit")
    return Program(**vars(found), data=data)


def command_line_section(program: Headers) -> Section:
    """The one ``.cmdline``. :class:`ValueError` when there is none, more than one, or it is too large."""
    lines = program.named(".cmdline")
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
