# SPDX-License-Identifier: Apache-2.0
"""The attack suite's memory and its table; and the formats that it reads by itself."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path

import pytest
from attack import gpt, pe
from attack.model import Probe, Row, seen_of
from attack.results import Memory, Result, code_id, result, summary, table, unproven
from attack.run import main
from attack.table import ROWS
from attack.target import Target, canary, credential, smbios, unit
from attack.variables import first, text
from hypothesis import given
from hypothesis import strategies as st
from lab_attack import IMAGE, LINE, TRUTH, facts, pe_file, row, seen

from freehold.build.tools import Tools
from freehold.keys.pe import parse
from freehold.monitor import NullMonitor
from freehold.vm import Machine, firmware, host, launch, state


def other(target: Target) -> None:
    """Another change."""
    target.extra.append("x")


def test_what_was_seen_comes_back_from_the_file(tmp_path: Path) -> None:
    one = row(probes=(Probe("nothing", "true", "^0"),))
    sight = seen("Linux version 6\n", facts(probes={"some-row/0": "0"}, canaries=()), recovered=facts(), recovery="how")
    assert seen_of(json.loads(json.dumps(sight.data()))) == sight
    Memory(tmp_path / "seen.json").put(one, "base", sight, alone=True)
    memory = Memory(tmp_path / "seen.json")
    assert memory.get(one, "base") == (sight, True)
    assert memory.get(one, "another base") is None
    found = result(one, memory, "base", TRUTH)
    assert found is not None
    assert found.verdict is not None
    assert found.verdict.kept


def test_a_changed_row_has_to_be_seen_again(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "seen.json")
    one = row()
    memory.put(one, "base", seen("", facts()), alone=True)
    assert memory.get(one, "base") is not None
    for change in ({"change": other}, {"reason": "x"}, {"probes": (Probe("a", "b", "c"),)}, {"way_back": "bytes"}):
        changed = dataclasses.replace(one, **change)
        assert code_id(changed) != code_id(one)
        assert memory.get(changed, "base") is None
    # What only the judge needs does not: verdicts are given anew.
    assert memory.get(dataclasses.replace(one, ends=("fallback",)), "base") is not None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema": "other", "rows": {"some-row": 1}}', b"\xff\xfe"])
def test_a_damaged_file_is_an_empty_one(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "seen.json").write_bytes(content)
    assert Memory(tmp_path / "seen.json").get(row(), "base") is None


def _results() -> list[Result]:
    from attack.judge import judge

    control = row(id="untouched", area="control", controls=())
    bad = row(id="bad", what="made it open")
    return [
        Result(control, judge(control, seen("", facts(lock="open")), TRUTH), seen("", facts(lock="open"))),
        Result(row(), judge(row(), seen("", facts()), TRUTH), seen("", facts())),
        Result(bad, judge(bad, seen("", facts(lock="open")), TRUTH), seen("", facts(lock="open"))),
        Result(row(id="later"), None, skipped="there is no floor yet"),
    ]


def test_the_table_names_what_failed_what_was_skipped_and_what_is_unproven() -> None:
    results = _results()
    printed = table(results)
    assert "! bad" in printed
    assert "a changed system runs: the machine is open, not locked" in printed
    assert "- later" in printed
    assert "there is no floor yet" in printed
    assert unproven(results) == ["some-row"]
    assert summary(results) == "attack: 1 of 3 rows ended as they must, 1 skipped, 1 without a control that worked"
    assert json.loads(json.dumps([one.data() for one in results]))[2]["kept"] is False


def test_list_and_unknown_rows_need_no_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(ROWS)
    assert main(["--only", "no-such-row"]) == 2
    assert "no-such-row" in capsys.readouterr().err


def test_every_row_has_a_sentence_that_fits() -> None:
    for one in ROWS:
        assert 10 < len(one.what) < 90, one.id
        assert one.what[0].islower() or one.what.startswith("loader.conf"), one.id


def test_pe_is_read_and_changed_in_one_place() -> None:
    data = pe_file()
    assert pe.content(data, ".cmdline").decode() == LINE.format(IMAGE["2"])
    changed = pe.flipped(data, ".linux", 7)
    assert [at for at, (a, b) in enumerate(zip(data, changed, strict=True)) if a != b] == [
        pe.sections(data)[".linux"].start + 7
    ]
    swapped = pe.substituted(data, ".cmdline", b"mounted=0", b"mounted=1")
    assert pe.content(swapped, ".cmdline") == pe.content(data, ".cmdline").replace(b"mounted=0", b"mounted=1")
    bare = pe.unsigned(data)
    assert parse(bare).certificates == (0, 0)
    assert not bare.endswith(b"S" * 16)
    with pytest.raises(ValueError, match="lengths"):
        pe.substituted(data, ".cmdline", b"ro", b"rw ")
    with pytest.raises(ValueError, match="0 times"):
        pe.substituted(data, ".cmdline", b"nothing", b"NOTHING")


@given(st.binary(max_size=4096))
def test_gpt_of_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="GPT"):
        gpt.parse(data.replace(b"EFI PART", b"ITS PART"))


def test_boot_order_puts_one_in_front_and_keeps_the_others() -> None:
    assert first(struct.pack("<3H", 1, 2, 3), 3) == struct.pack("<3H", 3, 1, 2)
    assert first(b"", 7) == struct.pack("<H", 7)
    assert text("a") == b"a\0\0\0"


def test_strings_for_qemu_and_systemd() -> None:
    assert smbios("a,b") == ["-smbios", "type=11,value=a,,b"]
    assert credential("x", b"y") == "io.systemd.credential.binary:x=eQ=="
    assert canary("me") in unit("me").decode()


def test_rows_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        row().id = "x"  # type: ignore[misc]
    assert isinstance(row(), Row)


def test_a_prepared_machine_starts_with_its_own_variables(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    # A short path: sockets lie below it.
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("s")))
    tools = Tools(tmp_path / "tools", "x")
    folder = host.firmware_folder(tools)
    folder.mkdir(parents=True)
    files = firmware.find(folder, secure=True)
    files.variables.write_bytes(b"empty")
    for name, content in (("disk", b"d"), ("mine.fd", b"enrolled")):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "tpm").mkdir()
    (tmp_path / "tpm/state").write_bytes(b"t")
    machine = Machine("one", tmp_path / "disk", secure_boot=True, tpm=True)
    places = state.paths("one")
    places.run.mkdir(parents=True)

    def started_with() -> tuple[bytes, list[str]]:
        variables, tpm = launch._firmware_state(machine, places, files, NullMonitor(), tools)
        return variables.read_bytes(), [path.name for path in tpm.iterdir()]

    launch.adopt(machine, tmp_path / "mine.fd", tmp_path / "tpm", tools)
    assert started_with() == (b"enrolled", ["state"])
    launch.adopt(machine, tmp_path / "mine.fd", None, tools)
    assert started_with() == (b"enrolled", [])
    # The control: another disk of that name is another machine.
    (tmp_path / "disk").rename(tmp_path / "old")
    (tmp_path / "disk").write_bytes(b"d")
    assert started_with() == (b"empty", [])
