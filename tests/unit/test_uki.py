# SPDX-License-Identifier: Apache-2.0
"""The boot image: its sections and profiles, read back by a reader of our own; equal inputs give equal bytes."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from freehold.attest import pe
from freehold.build import uki
from freehold.build.store import cache_directory
from freehold.build.tools import Tools

LINE = uki.command_line("f" * 64, 1_790_000_000, ["ttyS0"], ["systemd.unit=multi-user.target"])


def sections(data: bytes) -> list[tuple[str, bytes]]:
    """Name and content of each section of a PE file, after the PE/COFF specification."""
    (start,) = struct.unpack_from("<I", data, 0x3C)
    assert data[start : start + 4] == b"PE\0\0"
    count, optional = struct.unpack_from("<2xH12xH", data, start + 4)
    found = []
    for number in range(count):
        at = start + 24 + optional + 40 * number
        name, size, _, _, offset = struct.unpack_from("<8sIIII", data, at)
        found.append((name.rstrip(b"\0").decode(), data[offset : offset + size]))
    return found


@pytest.fixture(scope="module")
def tools() -> Tools:
    for root in sorted(cache_directory().glob("tools-*")):
        if (root / "usr/bin/ukify").exists():
            return Tools(root, "")
    pytest.skip("no tools tree is cached")


def made(tools: Tools, work: Path) -> bytes:
    work.mkdir()
    (work / "vmlinuz").write_bytes(b"MZ" + bytes(4000))
    (work / "initrd").write_bytes(b"initrd" * 900)
    release = uki.os_release("server", "1.2")
    kernel = work / "vmlinuz"
    return uki.write_uki(
        tools, work, kernel=kernel, uname="6.12", initrd=work / "initrd", line=LINE, release=release
    ).read_bytes()


def test_sections(tools: Tools, tmp_path: Path) -> None:
    data = made(tools, tmp_path / "one")
    found = [name for name, _ in sections(data)]
    assert all(found.count(name) == 1 for name in (".linux", ".initrd", ".osrel", ".cmdline", ".uname"))
    program = pe.parse(data)
    assert program.sections[".cmdline"].decode() == LINE
    where = data.rindex(LINE.encode())
    assert pe.parse(data[:where] + b"x" + data[where + 1 :]).authenticode != program.authenticode


def test_equal_inputs_give_equal_bytes(tools: Tools, tmp_path: Path) -> None:
    assert made(tools, tmp_path / "one") == made(tools, tmp_path / "two")


def test_the_rescue_target_exists() -> None:
    unit = uki.RESCUE_WORDS[1].partition("=")[2]
    data = Path(__file__).parents[2] / "data/usr/lib/systemd/system"
    assert (data / unit).is_file()


def test_the_initrd_knows_every_line_that_the_image_is_started_with() -> None:
    assert uki.sealed_lines(LINE).decode().splitlines() == [LINE, uki.rescue_line(LINE)]
