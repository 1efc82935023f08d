# SPDX-License-Identifier: Apache-2.0
"""The fuzzers themselves: every target runs, one that could find nothing is noticed, and what was found stays mended."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from fuzz import engine, images, native, seeds, words
from fuzz import machine as machine_target
from fuzz.engine import Found, Session, change, must
from fuzz.run import RESULTS, SCHEMA, State, finding, fuzz, main
from fuzz.targets import BY_NAME, EARLY, FOUND, TARGETS, Target

from freehold import run
from freehold.errors import InputError
from freehold.lock import machine as state_machine
from freehold.seal import erofs

needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")


def possible(target: Target) -> Target:
    if target.engine == "c" and shutil.which("gcc") is None:
        pytest.skip("no C compiler")
    if "guard" in target.included and native.tools() is None:
        pytest.skip("no tools tree yet")
    return target


@pytest.mark.parametrize("name", BY_NAME)
def test_each_target_runs_and_finds_nothing(name: str, tmp_path: Path) -> None:
    result = fuzz(possible(BY_NAME[name]), tmp_path, 1.0)
    assert result["findings"] == []
    runs, corpus, reached = result["runs"], result["corpus"], result["reached"]
    assert isinstance(runs, int) and isinstance(corpus, int) and isinstance(reached, int)
    assert runs > 100
    assert corpus >= len(BY_NAME[name].seeds())
    assert reached > 20


def test_what_was_found_belongs_to_a_target() -> None:
    inputs = [path for path in FOUND.rglob("*") if path.is_file()]
    assert inputs
    assert {path.parent.name for path in inputs} <= set(BY_NAME)
    for path in inputs:
        assert path.read_bytes() in BY_NAME[path.parent.name].seeds()


def planted(source: str, before: str, after: str, tmp_path: Path) -> dict[Path, Path]:
    text = (EARLY / source).read_text()
    assert text.count(before) == 1
    (tmp_path / source).write_text(text.replace(before, after))
    return {EARLY / source: tmp_path / source}


@needs_compiler
@pytest.mark.parametrize(
    ("name", "source", "before", "after", "said"),
    [
        ("policy", "intent.c", "key < 0 || *seen & 1u << key ||", "key < 0 ||", "no key has two"),
        ("refusals", "refusals.c", "byte < 0x20 || byte > 0x7e", "byte < 0x0b || byte > 0x7e", "printable"),
    ],
)  # fmt: skip
def test_a_bug_in_a_parser_in_c_is_found(name: str, source: str, before: str, after: str, said: str, tmp_path: Path) -> None:
    target = BY_NAME[name]
    command = native.build(target, tmp_path / "built", instead=planted(source, before, after, tmp_path))
    result = fuzz(target, tmp_path / "work", 120.0, command)
    findings = result["findings"]
    assert isinstance(findings, list)
    assert len(findings) == 1
    assert said in findings[0]["said"]
    # The input that is kept does it again.
    held = tmp_path / "again"
    held.mkdir()
    shutil.copy(tmp_path / "work/findings" / findings[0]["input"], held)
    assert run.run([*command, held, tmp_path / "current"], check=False).status != 0


def session(module: object, target: str, tmp_path: Path) -> Session:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(getattr(seeds, target)()):
        (corpus / f"{number}").write_bytes(seed)
    return Session(module, corpus, tmp_path / "current")


def search(one: Session) -> None:
    one.load()
    try:
        one.search(600.0, random.Random(1))  # noqa: S311 (test data)
    finally:
        one.end()


def test_a_system_account_that_is_believed_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_machine, "FIRST_UID", 0)
    with pytest.raises(Found, match="nobody is the system"):
        search(session(machine_target, "machine", tmp_path))


def test_a_second_line_in_an_account_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_machine, "is_gecos", lambda text: len(text) <= 200)
    with pytest.raises(Found):
        search(session(machine_target, "machine", tmp_path))


@needs_compiler
def test_two_readers_that_disagree_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    text = seeds.policy()[0]
    words._waiting[:] = [text]
    words.compare()
    monkeypatch.setattr(words, "_expected", lambda data: "refused")
    words._waiting[:] = [text]
    with pytest.raises(Found, match="C says"):
        words.compare()
    words.end()


def test_a_reader_that_refuses_by_another_error_is_found() -> None:
    data = (FOUND / "images/directory-without-names").read_bytes()
    assert images.one(data) == "_configuration"
    with pytest.raises(InputError, match="without names"):
        erofs.files(data[1:])


def test_rules_that_do_not_hold_are_findings() -> None:
    must(1, "it holds")
    with pytest.raises(Found, match="it does not"):
        must("", "it does not")


def test_changes_change_and_end() -> None:
    dice = random.Random(7)  # noqa: S311 (test data)
    for data in (b"", b"a", b'{"a": [1, "b", {"c": null}]}', b"one two\nthree\n", bytes(200)):
        made = {change(data, dice, [b"word"], [b"other", b""]) for _ in range(300)}
        assert len(made) > 20
        assert all(len(one) <= engine.MOST_BYTES for one in made)
    assert any(b"word" in change(b'{"a": "b"}', dice, [b"word"], [b""]) for _ in range(200))


def test_time_is_kept_until_the_code_changes(tmp_path: Path) -> None:
    state = State(tmp_path, "one")
    state.add({"seconds": 2.0, "runs": 10, "corpus": 3, "blocks": 4})
    state.add({"seconds": 1.5, "runs": 10, "corpus": 5, "blocks": 6})
    assert State(tmp_path, "one").fields == {"seconds": 3.5, "runs": 20, "corpus": 5, "reached": 6}
    assert State(tmp_path, "another").fields["seconds"] == 0
    (tmp_path / "state.json").write_text("{")
    assert State(tmp_path, "one").fields["seconds"] == 0


def test_a_finding_is_kept_with_what_was_said(tmp_path: Path) -> None:
    (tmp_path / "current").write_bytes(b"\3\0\0\0abcrest")
    done = run.Completed(("x",), 1, b"", b"noise\n==12==ERROR: AddressSanitizer: overflow /some/where/early/x.c:3\nmore\n")
    row = finding(done, tmp_path / "current", tmp_path / "findings")
    assert (tmp_path / "findings" / row["input"]).read_bytes() == b"abc"
    assert row["said"] == "ERROR: AddressSanitizer: overflow x.c:3"


def test_a_run_writes_its_result_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["machine", "--work", str(tmp_path / "work"), "--results", str(tmp_path / "results"), "--seconds"]
    assert main([*arguments, "1"]) == 0
    first = json.loads((tmp_path / "results/machine.json").read_text())
    assert main([*arguments, "2"]) == 0
    second = json.loads((tmp_path / "results/machine.json").read_text())
    assert first["schema"] == second["schema"] == SCHEMA
    assert first["runs"] < second["runs"]
    assert 2 <= second["seconds"] < 10
    assert "0 findings" in capsys.readouterr().out


def test_results_are_of_known_targets_and_name_no_machine() -> None:
    results = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}
    assert set(results) >= {target.name for target in TARGETS}
    for name in BY_NAME:
        assert results[name]["seconds"] >= 600
        assert results[name]["findings"] == []
        assert set(results[name]["machine"]) == {"cores", "processor", "kernel", "python"}
