# SPDX-License-Identifier: Apache-2.0
"""The reporter of refusals (early/refusals.c), built and run: what the journal is told, once, in words."""

from __future__ import annotations

import re
import shutil
import socket
import struct
from collections.abc import Iterable
from pathlib import Path

import lab_rules
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_denials import rule_names

from freehold import run
from freehold.lock import denials, guard, rules

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("gcc") or shutil.which("cc")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler")
FLAGS: list[str | Path] = ["-O1", "-g", "-std=gnu17", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined",
         "-I", ROOT / "early"]  # fmt: skip
LINES = 16
Record = tuple[bytes, bytes]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("refusals") / "refusals"
    run.run([COMPILER or "cc", *FLAGS, ROOT / "tests/unit/c/refusals_main.c", ROOT / "early/refusals.c", "-o", path])
    return path


def record(
    rule: int = 0, comm: bytes = b"bash", names: tuple[bytes, ...] = (b"x", b"/"), *, count: int = 1, mode: int = 2,
    uid: int = 0, detail: int = 0,
) -> Record:  # fmt: skip
    key = struct.pack("<I16s32s32s32s4x", rule, comm[:15], *(name[:31] for name in (*names, b"", b"", b"")[:3]))
    return key, struct.pack("<QQIIII", count, 7 << 30, uid, 77, mode, detail)


Look = tuple[int, list[Record]]


def tell(program: Path, state: Path, looks: Iterable[Look], *more: str, last: bool = False) -> list[list[dict[str, str]]]:
    """What is sent in each look, as the journal reads it: lines of NAME=VALUE."""
    given = b""
    for now, rows in looks:
        given += struct.pack("<QQ", now, len(rows)) + b"".join(key + value for key, value in rows)
    said = run.run([program, state, "last" if last else "now", *more], stdin=given).stdout
    found: list[list[dict[str, str]]] = [[]]
    while said:
        (size,) = struct.unpack("<I", said[:4])
        text, said = said[4 : 4 + size].decode("ascii"), said[4 + size :]
        if not size:
            found.append([])
            continue
        assert text.endswith("\n")
        fields = dict(line.split("=", 1) for line in text.splitlines())
        assert len(fields) == len(text.splitlines())
        found[-1].append(fields)
    return found[:-1]


def test_a_refusal_is_one_line_with_fields(program: Path, tmp_path: Path) -> None:
    ((line,),) = tell(program, tmp_path / "state", [(10, [record(count=3)])])
    assert line == {
        "MESSAGE": "root's bash was not allowed to run .../x: the file is not signed (3 times)", "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "freehold", "MESSAGE_ID": rules.rule("exec").id, "FREEHOLD_RULE": "exec",
        "FREEHOLD_PROGRAM": "bash",
        "FREEHOLD_PATH": "/x", "FREEHOLD_COUNT": "3", "FREEHOLD_MODE": "locked", "FREEHOLD_UID": "0", "FREEHOLD_PID": "77",
    }  # fmt: skip
    ((line,),) = tell(program, tmp_path / "other", [(10, [record(mode=1, uid=1000)])])
    assert line["MESSAGE"] == "user 1000's bash would not be allowed to run .../x: the file is not signed"
    assert line["FREEHOLD_MODE"] == "audit"
    ((line,),) = tell(program, tmp_path / "third", [(10, [record(mode=3)])])
    assert line["MESSAGE"] == denials.sentence("exec", "bash", ".../x", uid=0, mode="exempt", detail=0)
    assert line["MESSAGE"] == "root's bash was, in an emergency session, allowed to run .../x: the file is not signed"
    assert line["FREEHOLD_MODE"] == "exempt"


@pytest.mark.parametrize("number", range(len(rule_names())), ids=rule_names())
@pytest.mark.parametrize("names", [(b"x", b"/"), (b"marker", b"lib", b"var"), (b"memfd:x",), ()], ids=len)
def test_both_commands_have_the_same_words(program: Path, tmp_path: Path, number: int, names: tuple[bytes, ...]) -> None:
    ((line,),) = tell(program, tmp_path / "state", [(10, [record(number, names=names, detail=17)])])
    name = rule_names()[number]
    shown = denials.shown_path(line["FREEHOLD_PATH"]).replace("…", "...")
    assert line["MESSAGE"] == denials.sentence(name, "bash", shown, uid=0, mode="locked", detail=17)
    assert (line["FREEHOLD_RULE"], line["MESSAGE_ID"]) == (name, rules.rule(name).id)


@pytest.mark.parametrize("comm", ["(marker)", "(a-long-name-cu", "(", "()", "(a(b))", "", "a)", "\\"])
def test_programs_are_named_alike(program: Path, tmp_path: Path, comm: str) -> None:
    ((line,),) = tell(program, tmp_path / "state", [(10, [record(comm=comm.encode())])])
    assert line["MESSAGE"].startswith(f"{denials.who(comm, 0)} was not allowed")


def test_a_rule_of_a_newer_guard(program: Path, tmp_path: Path) -> None:
    ((line,),) = tell(program, tmp_path / "state", [(10, [record(4000)])])
    assert (line["FREEHOLD_RULE"], line["MESSAGE_ID"]) == ("other", rules.OTHER.id)


def test_nothing_is_told_twice(program: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert [len(look) for look in tell(program, state, [(10, [record()]), (15, [record()])])] == [1, 0]
    # Restarted: what was told is known.
    assert tell(program, state, [(20, [record()])]) == [[]]
    # More of the same waits a minute, and becomes one line; at the end nothing waits.
    looks = tell(program, state, [(30, [record(count=5)]), (69, [record(count=8)]), (70, [record(count=9)])])
    assert [[line["FREEHOLD_COUNT"] for line in look] for look in looks] == [[], [], ["8"]]
    ((line,),) = tell(program, state, [(71, [record(count=11)])], last=True)
    assert line["FREEHOLD_COUNT"] == "2"
    # The guard forgot it (least recently used), and counts anew.
    assert tell(program, state, [(200, [record(count=1)])])[0][0]["FREEHOLD_COUNT"] == "1"


def test_what_could_not_be_sent_is_told_later(program: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert tell(program, state, [(10, [record(count=2)])], "mute") == [[]]
    assert tell(program, state, [(11, [record(count=2)])])[0][0]["FREEHOLD_COUNT"] == "2"


def test_a_flood_is_a_few_lines(program: Path, tmp_path: Path) -> None:
    rows = [record(names=(b"%d" % number, b"/"), count=2) for number in range(1024)]
    first, second = tell(program, tmp_path / "state", [(10, rows), (15, rows)])
    assert len(first) == LINES + 1
    assert second == []
    assert first[-1]["MESSAGE_ID"] == rules.FLOOD
    assert first[-1]["FREEHOLD_COUNT"] == str(2 * (1024 - LINES))
    assert first[-1]["MESSAGE"].startswith("2016 more refusals of 1008 other kinds")


@pytest.mark.parametrize("data", [b"", b"x", b"freehold-told-1\0" + b"y" * 100, b"freehold-told-0\0" + b"y" * 144])
def test_a_foreign_state_counts_as_none(program: Path, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "state").write_bytes(data)
    state = tmp_path / "state"
    assert len(tell(program, state, [(10, [record()])])[0]) == 1
    # All as it was but for the first line.
    state.write_bytes(b"freehold-told-2\0" + state.read_bytes()[16:])
    assert len(tell(program, state, [(10, [record()])])[0]) == 1


@given(st.binary(min_size=15, max_size=15), st.lists(st.binary(min_size=31, max_size=31), max_size=3), st.integers(0, 30))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_hostile_names_add_no_field(program: Path, tmp_path: Path, comm: bytes, names: list[bytes], rule: int) -> None:
    state = tmp_path / "state"
    state.unlink(missing_ok=True)
    ((line,),) = tell(program, state, [(10, [record(rule, comm, tuple(names))])])
    assert len(line) == 11
    assert all(value.isprintable() for value in line.values())


def test_the_tables_are_written_from_the_rules() -> None:
    """`PYTHONPATH=src python3 tests/unit/lab_rules.py` writes them."""
    assert lab_rules.HEADER.read_text() == lab_rules.header()
    assert lab_rules.CATALOG.read_text() == lab_rules.catalog()


@pytest.mark.skipif(shutil.which("journalctl") is None, reason="no journalctl")
def test_the_journal_takes_the_catalog(tmp_path: Path) -> None:
    place = tmp_path / "usr/lib/systemd/catalog"
    place.mkdir(parents=True)
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    shutil.copy(lab_rules.CATALOG, place)
    done = run.run(["journalctl", f"--root={tmp_path}", "--update-catalog"], check=False)
    assert (done.status, done.stderr) == (0, b"")
    listed = run.run(["journalctl", f"--root={tmp_path}", "--list-catalog"]).text
    assert {line.split()[0] for line in listed.splitlines()} >= {rule.id for rule in rules.RULES}


def test_the_program_is_built_shipped_and_started() -> None:
    unit = (ROOT / "data/usr/lib/systemd/system" / guard.REPORTER).read_text()
    places = "/sys/fs/bpf/freehold /run/systemd/journal/socket /run/freehold/refusals"
    assert f"ExecStart=/usr/lib/freehold/refusals {places}\n" in unit
    shipped = "install -D -m 755 $(OUT)/refusals $(PACKAGE)/usr/lib/freehold/refusals"
    assert shipped in (ROOT / "debian/rules").read_text()
    wanted = ROOT / "data/usr/lib/systemd/system/sysinit.target.wants" / guard.REPORTER
    assert wanted.readlink() == Path("..") / guard.REPORTER
    makefile = (ROOT / "Makefile.c").read_text()
    assert re.search(r"^all: .*\$\(OUT\)/refusals$", makefile, re.MULTILINE)


def test_without_a_guard_the_program_ends(tmp_path: Path) -> None:
    program = tmp_path / "refusals"
    run.run([COMPILER or "cc", *FLAGS, ROOT / "early/watch.c", ROOT / "early/refusals.c", "-o", program])
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(tmp_path / "journal"))
        done = run.run([program, tmp_path, tmp_path / "journal", tmp_path / "state"], check=False)
    assert done.status == 1
    assert b"gd_counters: " in done.stderr
    assert run.run([program], check=False).status == 2
