# SPDX-License-Identifier: Apache-2.0
"""The early step's part of a rescue: the word on the command line, the log, the disk that was booted; and prepare's."""

from __future__ import annotations

import json
import random
import shutil
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freehold.boot import linger, machine_files, prepare, provision
from freehold.build.disk import derived_uuid, partition_table
from freehold.build.store import cache_directory
from freehold.build.tools import Tools
from freehold.lock.machine import MachineState
from freehold.run import run

EARLY = Path(__file__).parents[2] / "early"
VARIABLE = "LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
DIGEST = "ab" * 32


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C code with the sanitizers on."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    built = tmp_path_factory.mktemp("c") / "rescue"
    sources = [Path(__file__).parent / "c/rescue_main.c", *(EARLY / f"{name}.c" for name in ("rescue", "gpt", "util"))]
    flags = ["-std=gnu17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]
    # Messages go nowhere: the kernel log is the host's.
    quiet = built.with_suffix(".c")
    quiet.write_text(
        '#include "util.h"\nvoid __wrap_say(const char *f, ...);\nvoid __wrap_say(const char *f, ...) { (void)f; }\n'
    )
    run(["cc", *flags, "-fno-sanitize-recover=all", "-Wl,--wrap=say", f"-I{EARLY}", "-o", built, *sources, quiet])
    return built


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("ro freehold.rescue systemd.unit=x", True), ("freehold.rescue", True), ("a freehold.rescue\n", True),
        ("ro", False), ("", False), ("freehold.rescue=1", False), ("xfreehold.rescue", False), ("freehold.rescuer", False),
        ("quiet freehold.rescue.x freehold", False),
    ],
)  # fmt: skip
def test_the_word(program: Path, line: str, asked: bool) -> None:
    assert run([program, "word", line]).text.strip() == str(int(asked))


@pytest.mark.parametrize(
    ("running", "sealed", "same"),
    [
        ("a b=1\n", "a b=1", True), ("a  b=1 ", "a b=1\nfurther", True), ("", "", True), ("a b=1 c", "a b=1", False),
        ("a b=1", "a b=1 c", False), ("a b=12", "a b=1", False), ("b=1 a", "a b=1", False), ("a", "", False),
        ("a\tb", "a b", False),
    ],
)  # fmt: skip
def test_a_command_line_is_compared_word_for_word(program: Path, running: str, sealed: str, same: bool) -> None:
    assert run([program, "line", running, sealed]).text.strip() == str(int(same))


def test_the_log_moves_and_stays_printable(program: Path, tmp_path: Path) -> None:
    inbox, owner = tmp_path / "inbox", tmp_path / "owner"
    inbox.mkdir()
    owner.mkdir()
    run([program, "log", inbox, owner])
    assert list(owner.iterdir()) == []
    for text in (b"first\n", b"second \x1b[2J\xff\n"):
        (inbox / "rescue.log").write_bytes(text)
        run([program, "log", inbox, owner])
        assert not (inbox / "rescue.log").exists()
    assert (owner / "rescue.log").read_bytes() == b"first\nsecond ?[2J?\n"
    assert [path.name for path in owner.iterdir()] == ["rescue.log"]


def test_the_log_is_bounded(program: Path, tmp_path: Path) -> None:
    inbox, owner = tmp_path / "inbox", tmp_path / "owner"
    inbox.mkdir()
    owner.mkdir()
    for number in range(8):
        (inbox / "rescue.log").write_bytes(b"%07d\n" % number * 7000)
        run([program, "log", inbox, owner])
    kept = (owner / "rescue.log").read_bytes()
    assert 120 << 10 <= len(kept) <= 256 << 10
    assert kept.endswith(b"0000007\n")
    assert {len(line) for line in kept.splitlines()} == {7}
    # One that is too long is not kept, and not looked at for ever.
    (inbox / "rescue.log").write_bytes(b"x" * (70 << 10))
    run([program, "log", inbox, owner])
    assert (owner / "rescue.log").read_bytes() == kept
    assert not (inbox / "rescue.log").exists()


def table(tmp_path: Path, digest: str) -> bytes:
    """The begin of a disk with our partitions, by sfdisk."""
    roots = [root for root in sorted(cache_directory().glob("tools-*")) if (root / "usr/sbin/sfdisk").exists()]
    if not roots:
        pytest.skip("no tools tree is cached")
    disk = tmp_path / f"{digest[:4]}.raw"
    with disk.open("wb") as file:
        file.truncate(1 << 30)
    Tools(roots[0], "").run(["sfdisk", "-q", disk], binds=[tmp_path], stdin=partition_table(1 << 30, digest).encode())
    with disk.open("rb") as file:
        return file.read(64 << 10)


def has(program: Path, data: bytes, uuid: str) -> bool:
    return run([program, "gpt", uuid], stdin=data).text.strip() == "1"


def test_the_disk_with_the_boot_partition(program: Path, tmp_path: Path) -> None:
    mine, other = table(tmp_path, DIGEST), table(tmp_path, "cd" * 32)
    uuid = derived_uuid("esp-part", DIGEST)
    assert has(program, mine, uuid)
    assert has(program, mine, uuid.upper())
    assert not has(program, other, uuid)
    assert not has(program, mine, uuid[:-1])
    assert not has(program, mine, "0" * 36)
    assert not has(program, b"", uuid)
    # The same table on a disk with sectors of 4 KiB: header at the second of them, entries at the third.
    large = bytearray(64 << 10)
    large[4096:4608] = mine[512:1024]
    large[8192 : 8192 + 16384] = mine[1024 : 1024 + 16384]
    assert has(program, bytes(large), uuid)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 1 << 32))
def test_hostile_tables_are_survived(program: Path, seed: int) -> None:
    dice = random.Random(seed)  # noqa: S311 - test data
    data = bytearray(dice.randrange(600, 40000))
    data[512:520] = b"EFI PART"
    struct.pack_into("<QII", data, 512 + 72, dice.choice([2, 0, 1 << 63, dice.getrandbits(64), len(data) // 512]),
                     dice.choice([4, 128, 1024, 1 << 31]), dice.choice([0, 127, 128, 256, 1 << 31, 0xFFFFFFFF]))  # fmt: skip
    assert run([program, "gpt", "12345678-1234-1234-1234-1234567890ab"], stdin=bytes(data)).text.strip() == "0"


def test_only_the_boot_loaders_own_word_counts(program: Path, tmp_path: Path) -> None:
    def said(data: bytes) -> str:
        (tmp_path / VARIABLE).write_bytes(data)
        return run([program, "loader", tmp_path]).text.strip()

    uuid = derived_uuid("esp-part", DIGEST)
    text = (uuid.upper() + "\0").encode("utf-16-le")
    assert run([program, "loader", tmp_path]).text.strip() == "none"
    assert said(b"\6\0\0\0" + text) == uuid.upper()
    assert said(b"\7\0\0\0" + text) == "none"  # stored: left by a system that ran before
    assert said(b"\6\0\0\0" + text[:-10]) == "none"
    assert said(b"\6\0\0\0" + text.replace(b"-", b"x")) == "none"
    assert said(b"\6\0\0\0" + text + bytes(4000)) == "none"


@pytest.mark.parametrize("rescue", [False, True])
def test_prepare_in_a_rescue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rescue: bool) -> None:
    """Never provisioned, no account or host name of the machine's."""
    record = {"intent": {"lock": "open", "state": "absent"}, "first_boot": True, "rescue": rescue}
    (tmp_path / "boot.json").write_text(json.dumps(record))
    (tmp_path / "id").write_text("f" * 32 + "\n")
    done: list[object] = []

    def provisioned() -> str:
        done.append("provisioned")
        return "done"

    monkeypatch.setattr(prepare, "BOOT_RECORD", tmp_path / "boot.json")
    monkeypatch.setattr(prepare, "MACHINE_ID", tmp_path / "id")
    monkeypatch.setattr(prepare, "say", lambda text: None)
    monkeypatch.setattr(provision, "provision", provisioned)
    monkeypatch.setattr(prepare, "wait", lambda: None)
    monkeypatch.setattr(prepare, "ETC", tmp_path)
    monkeypatch.setattr(linger, "settle", lambda var, ordinary, say: done.append(("linger", ordinary)))
    monkeypatch.setattr(machine_files, "load", lambda path: (MachineState(hostname="attic"), []))
    monkeypatch.setattr(machine_files, "apply", lambda state, *rest: done.append(state.hostname))
    assert prepare.main() == 0
    assert done == (["", ("linger", None)] if rescue else ["attic", "provisioned"])
