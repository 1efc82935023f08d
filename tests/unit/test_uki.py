# SPDX-License-Identifier: Apache-2.0
"""The boot images: their sections, read back by a reader of our own; equal inputs give equal bytes."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from freehold.build import recipe_schema, uki
from freehold.build.store import cache_directory
from freehold.build.tools import Tools
from freehold.device import loader
from freehold.keys import pe
from freehold.update import rescue_entry

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


def made(tools: Tools, work: Path) -> tuple[bytes, bytes]:
    work.mkdir()
    (work / "vmlinuz").write_bytes(b"MZ" + bytes(4000))
    (work / "initrd").write_bytes(b"initrd" * 900)
    release = uki.os_release("server", "1.2")
    kernel = work / "vmlinuz"
    normal, rescue = uki.write_pair(
        tools, work, kernel=kernel, uname="6.12", initrd=work / "initrd", line=LINE, release=release
    )
    return normal.read_bytes(), rescue.read_bytes()


def test_sections(tools: Tools, tmp_path: Path) -> None:
    data, _ = made(tools, tmp_path / "one")
    found = [name for name, _ in sections(data)]
    assert all(found.count(name) == 1 for name in (".linux", ".initrd", ".osrel", ".cmdline", ".uname"))
    program = pe.parse(data)
    assert program.contents(".cmdline") == [LINE.encode()]
    where = data.rindex(LINE.encode())
    assert pe.parse(data[:where] + b"x" + data[where + 1 :]).authenticode() != program.authenticode()


def test_the_rescue_image_differs_in_command_line_and_name_only(tools: Tools, tmp_path: Path) -> None:
    normal, rescue = (sections(data) for data in made(tools, tmp_path / "one"))
    assert [name for name, _ in normal] == [name for name, _ in rescue]
    assert {a[0] for a, b in zip(normal, rescue, strict=True) if a != b} == {".cmdline", ".osrel"}
    words = dict(rescue)[".cmdline"].decode().split()
    assert words == [*LINE.split(), "freehold.rescue", "systemd.unit=freehold-rescue.target"]
    assert ".profile" not in dict(rescue)


def fields(text: str) -> dict[str, str]:
    return {key: value.strip('"') for key, value in (line.split("=", 1) for line in text.splitlines())}


def test_the_menu_sorts_rescue_entries_last() -> None:
    """As systemd-boot sorts: IMAGE_ID upwards, then IMAGE_VERSION, newest first."""
    names = ["a", "server", "zy-very-late", "z9"]
    normal = [fields(uki.os_release(name, version)) for name in names for version in ("1", "2")]
    rescue = [
        fields(rescue_entry.os_release(uki.os_release(name, version))) for name in names for version in ("1", "2")
    ]
    assert max(one["IMAGE_ID"] for one in normal) < min(one["IMAGE_ID"] for one in rescue)
    assert {one["IMAGE_VERSION"] for one in rescue} == {"1", "2"}
    assert rescue[0]["PRETTY_NAME"] == "Freehold a 1 (rescue)"
    assert all(one["ID"] == "freehold" for one in rescue)
    for name in ("zz-rescue", "zz", "zzz", "zz-top"):
        assert recipe_schema.SYSTEM_NAME.fullmatch(name) is None
    assert all(recipe_schema.SYSTEM_NAME.fullmatch(name) for name in names)


def test_no_version_makes_a_deployment_look_like_a_rescue_entry() -> None:
    name = rescue_entry.name("1.2", "f" * 16)
    assert name == f"freehold-rescue-1.2-{'f' * 16}.efi"
    assert loader.parse_rescue(name) == loader.Rescue("1.2", "f" * 16)
    for other in (f"freehold-1.2-{'f' * 16}.efi", f"freehold-rescue-{'f' * 16}.efi", name.replace(".efi", "+3.efi"),
                  name.upper(), f"freehold-rescue-rescue-1-{'f' * 16}.efi", name + "\n"):  # fmt: skip
        assert loader.parse_rescue(other) is None
    for version in ("rescue", "Rescue"):
        assert recipe_schema.VERSION.fullmatch(version) is None
    assert recipe_schema.VERSION.fullmatch("rescue{serial}")


def test_equal_inputs_give_equal_bytes(tools: Tools, tmp_path: Path) -> None:
    assert made(tools, tmp_path / "one") == made(tools, tmp_path / "two")


def test_the_rescue_target_exists() -> None:
    unit = rescue_entry.WORDS[1].partition("=")[2]
    data = Path(__file__).parents[2] / "data/usr/lib/systemd/system"
    assert (data / unit).is_file()


def test_the_initrd_knows_the_lines_of_both_images() -> None:
    assert uki.sealed_lines(LINE).decode().splitlines() == [LINE, rescue_entry.line(LINE)]
