# SPDX-License-Identifier: Apache-2.0
"""The one reader of EFI programs: what it reads, what a signature covers, and what it refuses."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab_pe import BODY, OPTIONAL, TABLE, program, whole

from freehold.keys import pe

LINE = f"freehold.image={'a' * 64} ro quiet"
PARTS = (
    (".text", b"code" * 300),
    (".osrel", b"ID=freehold\n"),
    (".cmdline", LINE.encode()),
    (".linux", b"kernel" * 99),
)
GOOD = whole(*PARTS)
#: Places in the optional header.
KIND, MEMORY, HEADERS, DIRECTORIES, CERTIFICATES = (
    OPTIONAL,
    OPTIONAL + 32,
    OPTIONAL + 60,
    OPTIONAL + 108,
    OPTIONAL + 144,
)


def with_line(line: str) -> bytes:
    return whole(*((name, line.encode("latin-1") if name == ".cmdline" else content) for name, content in PARTS))


def poked(at: int, form: str, *values: int | bytes, data: bytes = GOOD) -> bytes:
    """``data`` with numbers put at ``at``."""
    changed = bytearray(data)
    struct.pack_into(f"<{form}", changed, at, *values)
    return bytes(changed)


def line_of(data: bytes) -> str:
    """As `freehold verify` reads it, from the beginning of the file first."""
    section = pe.command_line_section(pe.headers(data[: pe.HEAD_BYTES], len(data)))
    return pe.command_line(data[section.start : section.start + section.stored])


def read(data: bytes) -> str:
    """All of the program, then its command line."""
    pe.parse(data)
    return line_of(data)


def test_the_command_line_of_a_program() -> None:
    for ending in ("", "\n", "\0"):
        assert line_of(with_line(LINE + ending)) == LINE


def test_sections_and_their_contents() -> None:
    found = pe.parse(GOOD)
    assert [(one.name, found.stored(one)) for one in found.sections] == list(PARTS)
    assert [one.header for one in found.sections] == [TABLE + 40 * at for at in range(len(PARTS))]
    assert found.content(".linux") == b"kernel" * 99
    assert found.content(".initrd") is None
    assert pe.headers(GOOD[:BODY], len(GOOD)).sections == found.sections


def test_what_is_in_memory_is_cut_or_filled_up() -> None:
    found = pe.parse(program([(".long", b"content", 600), (".short", b"content", 3), (".bss", b"", 5)]))
    assert [found.loaded(one) for one in found.sections] == [b"content".ljust(600, b"\0"), b"con", bytes(5)]


def test_of_two_sections_the_stub_takes_the_first() -> None:
    assert pe.parse(whole((".text", b"one"), (".text", b"two"))).content(".text") == b"one"


def test_the_first_profile_goes_before_what_is_common() -> None:
    parts = [(".cmdline", b"common"), (".osrel", b"common"), (".profile", b"1"), (".cmdline", b"first")]
    found = pe.parse(whole(*parts, (".profile", b"2"), (".cmdline", b"second"), (".osrel", b"second")))
    assert (found.content(".cmdline"), found.content(".osrel"), found.content(".profile")) == (
        b"first",
        b"common",
        b"1",
    )
    assert found.contents(".cmdline") == [b"common", b"first", b"second"]
    with pytest.raises(ValueError, match="3 command lines"):
        pe.command_line_section(found)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "not an EFI program"),
        (b"MZ" + bytes(100), "no PE header"),
        (b"ELF" + GOOD[3:], "not an EFI program"),
        (poked(0x3C, "I", 0xFFFFFFF0), "header lies outside"),
        (whole(), "0 sections"),
        (whole(*((f".{number}", b"") for number in range(pe.MAX_SECTIONS + 1))), f"{pe.MAX_SECTIONS + 1} sections"),
        (poked(OPTIONAL - 4, "H", 0xFFFF), "section table lies outside"),
        (poked(OPTIONAL - 4, "H", 100), "cut short"),
        (poked(KIND, "H", 0x10B), "64 bit"),
        (poked(DIRECTORIES, "I", 17), "64 bit"),
        (poked(OPTIONAL - 4, "H", 232), "headers do not fit"),
        (poked(HEADERS, "I", TABLE + 40 * len(PARTS) - 1), "headers do not fit"),
        (poked(HEADERS, "I", len(GOOD) + 1), "headers do not fit"),
        (poked(TABLE + 20, "I", BODY - 512), "'.text' lies outside"),
        (poked(TABLE + 20, "I", len(GOOD)), "'.text' lies outside"),
        (poked(TABLE + 16, "I", 1 << 31), "'.text' lies outside"),
        (poked(TABLE + 8, "I", pe.MAX_BYTES), "larger than .* in memory"),
        (poked(TABLE + 16, "I", len(GOOD) - BODY), "parts do not fit"),
        (poked(TABLE, "8s", b".text\0\0x"), "behind the end of its name"),
        (poked(CERTIFICATES, "II", len(GOOD), 8), "signature lies outside"),
        (poked(CERTIFICATES, "II", 0, 8), "signature lies outside"),
        (program([(".linux", b"k", 1)], certificates=b"s" * 8) + b"more", "behind its signature"),
        (whole(*PARTS, (".osrel", b"ID=evil\n")), "two sections .osrel"),
        (whole(*PARTS, (".profile", b"1"), (".cmdline", b"a"), (".cmdline", b"b")), "two sections .cmdline"),
        (whole(*PARTS[:2]), "0 command lines"),
        (with_line("x" * 70_000), "command line is larger"),
        (with_line("caf\xe9"), "ascii"),
        (with_line("a\x1b[2Jb"), "not printable"),
    ],
)
def test_programs_that_are_none(data: bytes, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        read(data)


def test_a_program_larger_than_any_is_not_looked_at() -> None:
    assert pe.headers(GOOD, pe.MAX_BYTES)
    with pytest.raises(ValueError, match="larger"):
        pe.headers(GOOD, pe.MAX_BYTES + 1)


def test_what_a_signature_covers() -> None:
    """Everything but three places; the certificates are not counted, what lies between sections and them is."""
    covered = GOOD[: OPTIONAL + 64] + GOOD[OPTIONAL + 68 : CERTIFICATES] + GOOD[CERTIFICATES + 8 :]
    assert pe.parse(GOOD).authenticode() == hashlib.sha256(covered).digest()
    assert pe.parse(GOOD + b"more").authenticode() == hashlib.sha256(covered + b"more").digest()
    signed = poked(CERTIFICATES, "II", len(GOOD), 8, data=GOOD + b"S" * 8)
    assert pe.parse(signed).authenticode() == hashlib.sha256(covered).digest()
    # Without a place for certificates, that place is covered as well.
    few = poked(DIRECTORIES, "I", 4)
    assert pe.parse(few).authenticode() == hashlib.sha256(few[: OPTIONAL + 64] + few[OPTIONAL + 68 :]).digest()
    # Sections count in the order of the file, not of the table.
    rows = GOOD[TABLE : TABLE + 80]
    turned = GOOD[:TABLE] + rows[40:] + rows[:40] + GOOD[TABLE + 80 :]
    places = turned[: OPTIONAL + 64] + turned[OPTIONAL + 68 : CERTIFICATES] + turned[CERTIFICATES + 8 :]
    assert pe.parse(turned).authenticode() == hashlib.sha256(places).digest()


@given(st.binary(max_size=600), st.integers(0, 1 << 33))
def test_any_bytes_are_read_or_refused(data: bytes, size: int) -> None:
    for candidate in (data, b"MZ" + data, GOOD[:200] + data):
        try:
            found = pe.headers(candidate, size)
        except ValueError:
            continue
        assert 0 < len(found.sections) <= pe.MAX_SECTIONS
        assert all(one.start + one.raw <= size for one in found.sections if one.raw)


@settings(max_examples=400)
@given(st.integers(0, BODY), st.binary(min_size=1, max_size=8))
def test_any_changed_header_is_read_or_refused(at: int, junk: bytes) -> None:
    changed = GOOD[:at] + junk + GOOD[at + len(junk) :]
    try:
        found = pe.parse(changed)
    except ValueError:
        return
    assert len(found.authenticode()) == 32
    assert all(len(found.loaded(one)) == one.size for one in found.first_profile().values())
    try:
        assert line_of(changed).isprintable()
    except ValueError:
        return


@given(st.integers(0, len(GOOD) - 1))
def test_every_cut_is_refused(end: int) -> None:
    with pytest.raises(ValueError, match=r"not an EFI|outside|cut short|do not fit"):
        pe.parse(GOOD[:end])
