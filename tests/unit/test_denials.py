# SPDX-License-Identifier: Apache-2.0
"""``freehold denials``: every rule has words, every record becomes a sentence and, where there is one, a command."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.cli import main
from freehold.cli.table import VERBS
from freehold.lock import denials, guard, rules

ROOT = Path(__file__).parents[2]
RECORD = {
    "rule": "exec", "comm": "bash", "path": "/x", "count": 3, "last": 100.5, "uid": 0, "pid": 77, "mode": "locked", "detail": 0,
}  # fmt: skip
MOUNTS = """\
22 1 0:20 / / ro - overlay overlay ro
30 22 0:30 / /tmp rw - tmpfs tmpfs rw
31 22 254:2 / /sysroot rw - ext4 /dev/vda2 rw
32 22 254:2 /var /sv rw - ext4 /dev/vda2 rw
33 22 0:33 / /media/two\\040words rw - tmpfs tmpfs rw
"""


def rule_names() -> list[str]:
    """The rules of the guard, in its order."""
    text = (ROOT / "bpf/guard.h").read_text()
    found = re.search(r"#define GUARD_RULE_NAMES(.*?)\}", text, re.DOTALL)
    assert found
    return re.findall(r'"([a-z-]+)"', found[1])


def nowhere(_path: str) -> None:
    return None


def one(**changes: object) -> denials.Denial:
    (found,) = denials.group([{**RECORD, **changes}], booted=1000.0, find=nowhere)
    return found


def test_every_rule_has_words() -> None:
    """A rule that is appended to bpf/guard.h gets a row at the end of RULES."""
    named = rule_names()
    assert [rule.name for rule in rules.RULES][: len(named)] == named
    assert rules.rule("exec").name == "exec"


def test_message_ids_are_fixed_and_differ() -> None:
    ids = [*(rule.id for rule in rules.RULES), rules.OTHER.id, rules.FLOOD, *(id_ for id_, _, _ in rules.SESSIONS)]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[0-9a-f]{32}", one) for one in ids)
    assert rules.rule("exec").id == "f95542191300422797bfe99c3d214d79"
    assert rules.rule("script").id == "75b07fa44234422484fa5e0580e6c533"
    shell = (ROOT / "early/emergency_shell.c").read_text()
    assert [id_ for id_, _, _ in rules.SESSIONS] == re.findall(r'#define \w+ "([0-9a-f]{32})"', shell)


def test_commands_are_real() -> None:
    """`freehold` verbs in the table exist. "etc" is on its way."""
    verbs = {verb.name for verb in VERBS} | {"etc"}
    commands = [way.command for rule in rules.RULES for way in rule.ways if way.command]
    named = {words[1] for words in map(str.split, commands) if words[0] == "freehold"}
    assert named <= verbs
    assert {words.split()[0] for words in commands} == {"freehold", "fsverity", "systemd-run", "chmod", "systemctl"}
    recipe = (ROOT / "recipes/server.toml").read_text()
    assert '"fsverity"' in recipe


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.name)
def test_words_can_be_a_sentence(rule: rules.Rule) -> None:
    said = denials.sentence(rule.name, "bash", "…/x", uid=0, mode="locked", detail=17)
    assert said.startswith("root's bash was not allowed to ")
    assert not set("{}") & set(said)
    assert rule.why.endswith(".")
    assert rule.ways
    # The reporter in C puts in these two, and no other.
    assert set(re.findall(r"\{(\w*)\}", rule.act)) <= {"path", "detail"}
    assert "%" not in rule.act + rule.why


def test_a_refusal_in_words() -> None:
    found = one()
    assert found.sentence == "root's bash was not allowed to run …/x: the file is not signed"
    assert one(mode="audit").sentence.startswith("root's bash would not be allowed to run")
    assert one(uid=1000, rule="gain").sentence.startswith("user 1000's bash ")
    assert one(comm="(marker)").sentence.startswith("systemd, which was to start marker, was not")
    assert one(path="var/lib/marker").sentence.endswith("run …/var/lib/marker: the file is not signed")
    assert one(path="memfd:x").sentence.endswith("run memfd:x: the file is not signed")
    assert one(path="").sentence.endswith("run something without a name: the file is not signed")
    assert one(rule="capability", detail=17).sentence.endswith("use capability 17, which leads past the lock (it is …/x)")
    assert (found.first, found.last) == (None, 1100)
    assert (one(count=1).first, one(count=1).last) == (1100, 1100)
    assert one(last=0).last is None


def test_a_rule_of_a_newer_guard_is_told_all_the_same() -> None:
    found = one(rule="newest")
    assert found.sentence == "root's bash was not allowed to do what the guard refuses (…/x)"
    assert found.rule == "newest"
    assert found.message_id == rules.OTHER.id


def test_records_of_one_kind_are_one() -> None:
    rows = [{**RECORD, "last": 5.0, "uid": 1000}, {**RECORD, "count": 4, "last": 9.0}, {**RECORD, "rule": "map", "last": 7.0}]
    found = denials.group(rows, booted=0.0, find=nowhere)
    assert [(each.rule, each.count, each.last, each.uid) for each in found] == [("exec", 7, 9, 0), ("map", 3, 7, 0)]


def test_the_command_names_the_file() -> None:
    (found,) = denials.group([RECORD], booted=0.0, find={"/x": "/var/a b/x"}.get)
    commands = [way.command for way in found.ways]
    assert "fsverity sign '/var/a b/x' '/var/a b/x.sig' --key=owner.key --cert=owner.crt" in commands
    assert "fsverity enable '/var/a b/x' --signature='/var/a b/x.sig'" in commands
    assert found.sentence.endswith("run /var/a b/x: the file is not signed")
    assert "fsverity enable FILE --signature=FILE.sig" in [way.command for way in one().ways]


@pytest.mark.parametrize(("path", "places"), [
    ("/x", ["/x", "/tmp/x", "/sysroot/x", "/media/two words/x"]),
    ("/var/marker", ["/sv/marker", "/var/marker", "/tmp/var/marker", "/sysroot/var/marker", "/media/two words/var/marker"]),
    ("var/lib/x", ["/sv/lib/x", "/var/lib/x", "/tmp/var/lib/x", "/sysroot/var/lib/x", "/media/two words/var/lib/x"]),
    ("/varx", ["/varx", "/tmp/varx", "/sysroot/varx", "/media/two words/varx"]),
    ("memfd:x", []), ("", []), ("a/b", []),
])  # fmt: skip
def test_places_of_a_record(path: str, places: list[str]) -> None:
    assert denials.places(path, MOUNTS + "garbage\n") == sorted(places, key=lambda place: (len(place), place))


def test_a_file_is_found_where_it_is_just_one(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    table = tmp_path / "mountinfo"
    table.write_text(f"1 1 0:1 / {tmp_path}/one rw\n2 1 0:2 / {tmp_path}/two rw\n3 1 0:2 /sub {tmp_path}/one rw\n")
    finder = guard.Finder(table)
    assert finder.find("/file") is None
    (tmp_path / "one/file").touch()
    assert finder.find("/file") == f"{tmp_path}/one/file"
    assert finder.find("/sub/file") == f"{tmp_path}/one/file"
    (tmp_path / "two/file").hardlink_to(tmp_path / "one/file")
    assert finder.find("/file") == f"{tmp_path}/one/file"
    (tmp_path / "two/file").unlink()
    (tmp_path / "two/file").touch()
    assert finder.find("/file") is None, "two files that it may be: the command must not name the wrong one"
    (tmp_path / "one/od\nd").touch()
    assert finder.find("/od\nd") is None


def test_names_are_bytes() -> None:
    # guardctl's JSON has each byte of a name as a character.
    assert one(path="/größe".encode().decode("latin-1")).path == "/größe"
    assert one(path="/\xff").path == "/\ufffd"
    asked: list[str] = []
    denials.group([{**RECORD, "path": "/\xff"}], booted=0.0, find=lambda path: asked.append(path))
    assert asked == ["/\udcff"]


@given(st.text(max_size=20), st.text(max_size=20), st.sampled_from(["exec", "map-fd", "x"]))
def test_hostile_names_stay_on_their_line(program: str, path: str, rule: str) -> None:
    found = one(comm=program, path=path, rule=rule)
    said = found.sentence
    assert said.isprintable()
    assert not set(said) & set("\u202e\u2066\x1b\n\u2028\x85")
    shown = denials.text([found], "locked").splitlines()
    assert shown[0] == said
    assert len(shown) == 2 + sum(1 + bool(way.command) for way in found.ways) + 1
    json.dumps(denials.data([found], "locked"))


def fake_guard(tmp_path: Path, answers: dict[str, object]) -> Path:
    path = tmp_path / "guardctl"
    cases = "\n".join(f"{name}) echo '{json.dumps(value)}' ;;" for name, value in answers.items())
    path.write_text(f"#!/bin/sh\ncase $1 in\n{cases}\nesac\n")
    path.chmod(0o755)
    return path


def test_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answers: dict[str, object] = {
        "status": {"loaded": True, "mode": "audit"}, "denials": {"denials": [{**RECORD, "path": "/no/no"}]},
    }  # fmt: skip
    monkeypatch.setattr(guard, "GUARDCTL", fake_guard(tmp_path, answers))
    assert main(["denials", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["schema"], said["mode"]) == ("freehold-denials-2", "audit")
    (row,) = said["denials"]
    assert set(row) == {
        "rule", "program", "path", "file", "count", "first", "last", "uid", "pid", "mode", "detail", "message_id", "sentence",
        "ways",
    }  # fmt: skip
    assert row["ways"][0] == {
        "text": "sign the file; where the owner's key is",
        "command": "fsverity sign FILE FILE.sig --key=owner.key --cert=owner.crt",
    }
    assert main(["denials"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("root's bash was not allowed to run …/no/no: the file is not signed\n    3 times, last at ")
    assert out.endswith("Next: freehold lock refuses all of this; until then nothing is refused.\n")


@pytest.mark.parametrize(("mode", "loaded", "said"), [
    ("open", False, "the machine is open"), ("locked", True, "nothing was refused, since"), ("audit", True, "would have been"),
])  # fmt: skip
def test_no_refusals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mode: str, loaded: bool, said: str
) -> None:
    answers: dict[str, object] = {"status": {"loaded": loaded, "mode": mode}, "denials": {"denials": []}}
    monkeypatch.setattr(guard, "GUARDCTL", fake_guard(tmp_path, answers))
    assert main(["denials"]) == 0
    assert said in capsys.readouterr().out
