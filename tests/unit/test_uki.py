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


def test_two_profiles_of_one_image(tools: Tools, tmp_path: Path) -> None:
    found = sections(made(tools, tmp_path / "one"))
    names = [name for name, _ in found]
    at = names.index(".profile")
    base, main, rescue = dict(found[:at]), found[at], dict(found[at + 2 :])
    assert (names.count(".linux"), names.count(".initrd"), names.count(".osrel")) == (1, 1, 1)
    # The last of the base, so that both profiles share all that is before it; then the rescue entry's own.
    assert main[1] == b"ID=main\n"
    assert names[at:] == [".profile", ".profile", ".cmdline"]
    assert found[at + 1][1].splitlines() == [b"ID=rescue", b"TITLE=rescue"]
    assert base[".cmdline"].decode() == LINE
    assert "freehold.rescue" not in LINE.split()
    words = rescue[".cmdline"].decode().split()
    assert words[: len(LINE.split())] == LINE.split()
    assert words[-2:] == ["freehold.rescue", "systemd.unit=freehold-rescue.target"]


def test_what_is_attested_is_the_first_profile(tools: Tools, tmp_path: Path) -> None:
    """Sections as the stub measures them for the entry that starts by itself; the digest covers the whole file."""
    data = made(tools, tmp_path / "one")
    program = pe.parse(data)
    assert program.sections[".cmdline"].decode() == LINE
    assert program.sections[".profile"] == b"ID=main\n"
    where = data.rindex(b"freehold.rescue")
    assert pe.parse(data[:where] + b"x" + data[where + 1 :]).authenticode != program.authenticode


def test_equal_inputs_give_equal_bytes(tools: Tools, tmp_path: Path) -> None:
    assert made(tools, tmp_path / "one") == made(tools, tmp_path / "two")


def test_the_rescue_target_exists() -> None:
    unit = uki.RESCUE_WORDS[1].partition("=")[2]
    data = Path(__file__).parents[2] / "data/usr/lib/systemd/system"
    assert (data / unit).is_file()


def test_the_initrd_knows_every_line_that_the_image_is_started_with() -> None:
    assert uki.sealed_lines(LINE).decode().splitlines() == [LINE, uki.rescue_line(LINE)]
