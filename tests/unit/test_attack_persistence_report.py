# SPDX-License-Identifier: Apache-2.0
"""The persistence table as people see it, what is kept of a run, and how a run is made of boots."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import attack.run
import pytest
from attack.persistence import payload, play, report, run, table
from attack.persistence.model import Done, Live, Row, Sight
from lab_persistence import DENIED, GOOD, ONE, TWO, Box, act, locked, opened, row

from freehold import run as host
from freehold.errors import FreeholdError
from freehold.run import Completed


def both(*, fired: bool = False, void: bool = False) -> report.Report:
    one, live, mine = row(), act(), act(id="c01-program", kind="O", title="a user's own program", allowed=True)
    there = opened(one, live={live.id: GOOD}, collateral={mine.id: GOOD})
    if void:
        there = dataclasses.replace(there, canaries={})
    canaries = {one.canaries[0]: ((0, TWO),)} if fired else {}
    here = locked(one, live={live.id: DENIED}, collateral={mine.id: GOOD}, canaries=canaries)
    return report.report([one], [live], [mine], there, here)


def test_a_good_table() -> None:
    found = both()
    assert found.good
    printed = report.text(found)
    assert "  a24-unit                    E     fires      no        1/1        a service" in printed
    assert "  a17-disk                    X     works      refused   1/1        the raw disk" in printed
    assert "  c01-program                 O     works      works" in printed
    assert "!" not in printed
    assert report.summary(found) == "persistence: 3 of 3 as they must; rows by class: K 0  U 0  E 1  V 0  S 0  B 0  X 1  O 0"


def test_what_fired_and_what_is_void_is_marked_and_ends_badly() -> None:
    fired, void = both(fired=True), both(void=True)
    assert not fired.good
    assert not void.good
    assert "! a24-unit                    E     fires      FIRED" in report.text(fired)
    assert "fired: on the locked machine: canary a24-unit (uid 0)" in report.text(fired)
    assert "void: on the open machine nothing of canary a24-unit" in report.text(void)
    assert "2 of 3 as they must (1 void)" in report.summary(void)


def test_a_doubt_about_the_machine_is_a_failure_of_its_own() -> None:
    one = row()
    found = report.report([one], [], [], opened(one), locked(one, target="degraded", failed="x.service"))
    assert all(verdict.kept for verdict in found.verdicts)
    assert not found.good
    assert "! the locked machine did not reach its normal target: degraded (x.service)" in report.text(found)
    assert "1 doubts" in report.summary(found)


def test_a_chosen_row_does_not_make_the_others_canaries_strange() -> None:
    one = row()
    other = next(known for known in table.ROWS if known.canaries and known.id != one.id)
    found = report.report([one], [], [], opened(one), locked(one, canaries={other.canaries[0]: ((0, ONE),)}))
    assert found.faults == ()


def test_json_has_every_verdict() -> None:
    data = json.loads(json.dumps(both(fired=True).data()))
    assert (data["schema"], data["good"]) == ("freehold-persistence-1", False)
    assert [one["id"] for one in data["planted"] + data["live"] + data["collateral"]] == ["a24-unit", "a17-disk", "c01-program"]
    assert data["planted"][0]["end"] == "fired"


def test_what_was_seen_is_kept_by_base_and_rows(tmp_path: Path) -> None:
    one = row()
    code = report.code_id([one], [], [])
    report.Kept(tmp_path / "x.json").put("open", "base", code, opened(one))
    kept = report.Kept(tmp_path / "x.json")
    assert kept.get("open", "base", code) == opened(one)
    assert kept.get("locked", "base", code) is None
    assert kept.get("open", "other", code) is None
    assert kept.get("open", "base", "other") is None
    # Rows that were chosen are kept beside the whole table; another base's go.
    kept.put("open", "base", "chosen", opened(one))
    assert report.Kept(tmp_path / "x.json").get("open", "base", code) == opened(one)
    kept.put("locked", "next", code, locked(one))
    assert report.Kept(tmp_path / "x.json").get("open", "base", code) is None
    for change in ({"plant": "false"}, {"trigger": "x"}, {"look": "x"}):
        assert report.code_id([row(**change)], [], []) != code
    # What only the judge needs has not to be seen again.
    assert report.code_id([row(title="another", trace="x")], [], []) == code


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema": "other", "machines": {"open": 1}}', b"\xff\xfe"])
def test_a_damaged_file_is_an_empty_one(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    assert report.Kept(tmp_path / "x.json").get("open", "base", "code") is None


def test_list_and_unknown_rows_need_no_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert attack.run.main(["persistence", "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(table.ROWS) + len(table.LIVE)
    assert run.main(["--only", "E", "--list"]) == 0
    assert {line.split()[1] for line in capsys.readouterr().out.splitlines()} == {"E"}
    assert run.main(["--only", "no-such-row"]) == 2
    assert "no-such-row" in capsys.readouterr().err


def test_all_is_both_tables_and_the_worse_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[str] = []

    def persistence(argv: list[str]) -> int:
        played.append(f"persistence {argv}")
        return 1

    def tamper(options: object, rows: Sequence[object]) -> list[object]:
        played.append("tamper")
        return []

    monkeypatch.setattr(run, "main", persistence)
    monkeypatch.setattr(attack.run, "_results", tamper)
    assert attack.run.main(["all"]) == 1
    assert played == ["persistence []", "tamper"]


class Machine:
    """What the player asks of a machine, answered by hand."""

    def __init__(self, answers: list[str]) -> None:
        self.answers, self.given = answers, list[dict[str, object]]()

    def exec(self, argv: Sequence[str], *, user: str | None, stdin: bytes, timeout: float) -> Completed:
        assert list(argv[:2]) == ["python3", "-IS"]
        assert timeout >= play.EACH_LIMIT
        self.given.append(json.loads(stdin))
        return Completed(tuple(argv), 0, self.answers.pop(0).encode(), b"")


def test_scripts_go_in_batches_and_a_breakdown_names_them() -> None:
    scripts = [(f"n{number}", "true") for number in range(play.BATCH + 1)]
    answers = ["hello from a start-up file\n" + json.dumps({name: [0, "x"] for name, _ in some})
               for some in (scripts[: play.BATCH], scripts[play.BATCH :])]  # fmt: skip
    machine = Machine([*answers])
    assert play.each(machine, scripts, strict=True) == {name: Done(0, "x") for name, _ in scripts}  # type: ignore[arg-type]
    assert [one["options"] for one in machine.given] == [["-e"], ["-e"]]
    with pytest.raises(FreeholdError, match=r"did not survive one of n12"):
        play.each(Machine([answers[0], ""]), scripts)  # type: ignore[arg-type]


def test_rows_are_frozen() -> None:
    for one in (row(), act(), Sight("", "")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            one.id = "x"  # type: ignore[union-attr, misc]
    assert isinstance(row(), Row)
    assert isinstance(act(), Live)


class Sandbox:
    """A machine's outside with a sandbox inside."""

    def __init__(self, box: Box, lock: str, boot: str) -> None:
        self.box, self.lock, self.boot, self.guest, self.off = box, lock, boot, self, False

    def boot_id(self) -> str:
        return self.boot

    def exec(
        self, argv: Sequence[str], *, user: str | None = None, stdin: bytes | None = None, timeout: float | None = None,
        check: bool = True,
    ) -> Completed:  # fmt: skip
        assert not self.off
        said = {"freehold": json.dumps({"lock": {"state": self.lock}, "check": "add-on"}), "systemctl": "running\n", "sync": ""}
        if argv[0] in said:
            return Completed(tuple(argv), 0, said[argv[0]].encode(), b"")
        if " ".join(argv).endswith("dmesg | grep freehold"):
            return Completed(tuple(argv), 0, b"freehold: ignored\n", b"")
        done = self.box.run(*argv, stdin=stdin)
        assert done.status == 0 or not check, done.stderr
        return done

    def write_file(self, path: str, data: bytes, *, mode: int) -> None:
        file = self.box.top / path.lstrip("/")
        file.write_bytes(data)
        file.chmod(mode)

    def serial_tail(self) -> list[str]:
        return []

    def stop(self, *, hard: bool) -> None:
        assert hard
        self.off = True


class Tools:
    """The host's compiler in the place of the tools tree's."""

    def run(self, command: Sequence[str | Path], *, binds: Sequence[Path]) -> Completed:
        return host.run(command)


class Player:
    """A stage with nothing on it."""

    def __init__(self, top: Path) -> None:
        self.stage, self.tools, self.top = self, Tools(), top

    def path(self, name: str) -> Path:
        return self.top / name

    def off(self) -> None:
        (self.top / "off").touch()


@pytest.mark.parametrize("lock", ["open", "locked"])
def test_a_whole_run_with_a_sandbox_in_the_machines_place(
    lock: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    for program in ("bwrap", "gcc", "ssh-keygen"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    box = Box(tmp_path / "box")
    if box.run("true").status != 0:
        pytest.skip("no sandbox can be made here")
    boots = [Sandbox(box, lock, "1" * 32), Sandbox(box, lock, Path("/proc/sys/kernel/random/boot_id").read_text().strip())]
    started: list[bool] = []

    def machine(player: object, name: str, *, fresh: bool) -> Sandbox:
        started.append(fresh)
        return boots[len(started) - 1]

    monkeypatch.setattr(play, "machine", machine)
    monkeypatch.setattr(play, "LATER", 0)
    monkeypatch.setattr("attack.boot.console_of", lambda vm: "the console")
    rows = [
        row(plant=payload.script("a24-unit"), trigger=payload.lines("a24-unit"), look="echo there", absence="", trace="x"),
        row(id="b45-daemons", control="absent", absence="exit 1", plant="false"),
    ]
    mine = act(id="c01-program", kind="O", act="id -u", allowed=True)
    seen = play.play(Player(tmp_path), lock, rows, [act(act="echo no; false")], [mine], print)  # type: ignore[arg-type]
    assert started == [True, False]
    assert all(one.off for one in boots)
    assert (seen.first, seen.second, seen.lock, seen.target) == ("1" * 32, boots[1].boot.replace("-", ""), lock, "running")
    assert {name: done.status for name, done in seen.planted.items()} == {"a24-unit": 0, "b45-daemons": 1}
    assert seen.live == {"a17-disk": Done(1, "no\n")}
    assert seen.looks == {"a24-unit": Done(0, "there\n")}
    assert seen.absence == {"b45-daemons": Done(1, "")}
    assert seen.triggers == {"a24-unit": Done(0, "")}
    assert seen.collateral == {"c01-program": Done(0, "0\n")}
    # One boot of this host, which is the second of both.
    assert seen.canaries == dict.fromkeys(("a24-unit", "a24-unit.native"), ((0, seen.second),))
    assert ("add-on" in seen.trace) == ("ignored" in seen.trace) == (lock == "locked")
    assert (tmp_path / f"consoles/persistence-{lock}.log").read_text() == "the console"
