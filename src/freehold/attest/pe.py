# SPDX-License-Identifier: Apache-2.0
"""What a TPM will see of a boot image: its Authenticode digest, and what systemd-stub measures of its sections. Pure.

Formats: Microsoft's PE format and "Windows Authenticode Portable Executable Signature Format" (the digest, which
leaves out the checksum, the entry that points to the certificates, and the certificates); systemd's
``src/boot/stub.c`` (each section: first its name with a NUL, then its content, both into PCR 11).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from freehold.attest.eventlog import extend

MAX_SECTIONS = 96
#: The sections that systemd-stub 257 measures, in its order.
MEASURED = (
    ".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey", ".profile", ".dtbauto",
    ".hwids",
)  # fmt: skip
_PE_POINTER, _HEADER_BYTES, _SECTION = 0x3C, 24, struct.Struct("<8sIIII16x")
#: The optional header's magic (PE32, PE32+): where the data directories begin in it.
_DIRECTORIES = {0x10B: 96, 0x20B: 112}
_CHECKSUM, _CERTIFICATES = 64, 4


@dataclass(frozen=True)
class Program:
    """An EFI program: SHA-256 as Authenticode counts it, and the content of its sections by name.

    Of an image of several profiles they are those of the first, which is what starts by itself: what comes before the
    second ``.profile``. A release's have none: the rescue entry is an image of its own.
    """

    authenticode: bytes
    sections: dict[str, bytes]


def parse(data: bytes) -> Program:
    """Read an EFI program. :class:`ValueError` says why it is none."""
    try:
        return _parse(data)
    except struct.error:
        raise ValueError("the program is cut short") from None


def _parse(data: bytes) -> Program:
    (start,) = struct.unpack_from("<I", data, _PE_POINTER)
    if data[:2] != b"MZ" or data[start : start + 4] != b"PE\0\0":
        raise ValueError("not an EFI program")
    count, optional_size = struct.unpack_from("<H12xH", data, start + 6)
    optional = start + _HEADER_BYTES
    (magic,) = struct.unpack_from("<H", data, optional)
    if count > MAX_SECTIONS or magic not in _DIRECTORIES:
        raise ValueError("not an EFI program of a known kind, or of too many sections")
    (headers_size,) = struct.unpack_from("<I", data, optional + 60)
    directories = optional + _DIRECTORIES[magic]
    (entries,) = struct.unpack_from("<I", data, directories - 4)
    entry = directories + 8 * _CERTIFICATES
    signed = entries > _CERTIFICATES
    certificates = struct.unpack_from("<II", data, entry)[1] if signed else 0
    table = optional + optional_size
    listed = [_SECTION.unpack_from(data, table + at * _SECTION.size) for at in range(count)]
    profiles = [at for at, row in enumerate(listed) if row[0].rstrip(b"\0") == b".profile"]
    first = listed[: profiles[1]] if len(profiles) > 1 else listed
    rows = sorted(listed, key=lambda row: row[4])
    if headers_size > len(data) or table + count * _SECTION.size > headers_size or entry + 8 > headers_size:
        raise ValueError("the headers of the program do not fit")
    digest = hashlib.sha256(data[: optional + _CHECKSUM])
    if signed:
        digest.update(data[optional + _CHECKSUM + 4 : entry])
        digest.update(data[entry + 8 : headers_size])
    else:
        digest.update(data[optional + _CHECKSUM + 4 : headers_size])
    counted = headers_size
    sections: dict[str, bytes] = {}
    for _name, _virtual, _address, raw, pointer in rows:
        if raw and pointer + raw > len(data):
            raise ValueError("a section lies outside of the program")
        if raw:
            digest.update(data[pointer : pointer + raw])
            counted += raw
    for name, virtual, _address, raw, pointer in first:
        label = name.rstrip(b"\0").decode("latin-1")
        if label in MEASURED and label in sections:
            raise ValueError(f"two sections {label}")
        # What is in memory, which is what is measured: cut to its size there, or filled up with zeros.
        sections[label] = data[pointer : pointer + min(raw, virtual)]
    end = len(data) - certificates
    if not counted <= end:
        raise ValueError("the sizes of the program's parts do not fit")
    digest.update(data[counted:end])
    return Program(digest.digest(), sections)


def stub_digests(program: Program) -> list[tuple[str, bytes]]:
    """What systemd-stub extends into PCR 11 for the image: (section, digest) in order, name then content of each."""
    found: list[tuple[str, bytes]] = []
    for name in MEASURED:
        content = program.sections.get(name)
        if content is not None:
            found.append((name, name_digest(name)))
            found.append((name, hashlib.sha256(content).digest()))
    return found


def name_digest(name: str) -> bytes:
    """What systemd-stub measures before the content of the section ``name``."""
    return hashlib.sha256(name.encode() + b"\0").digest()


def predicted_pcr11(program: Program) -> bytes:
    """PCR 11 when systemd-stub has started the image's kernel, before the running system adds its phases."""
    value = bytes(32)
    for _, digest in stub_digests(program):
        value = extend(value, digest)
    return value
