# SPDX-License-Identifier: Apache-2.0
"""Whom the lock binds: said in the request, passed to the guard with the latch, shown as enforced."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from lab_release import Lab

from freehold.cli import main
from freehold.device.status import gather, status
from freehold.errors import FreeholdError
from freehold.lock import actions, boot_record, guard, intent
from freehold.lock.intent import Intent
from freehold.lock.verbs import describe

MACHINE = "0123456789abcdef" * 2
PLAIN = Intent(MACHINE, 1, "locked", 1_700_000_000)
ALL_CODE = replace(PLAIN, tier="all-code")


class Guard:
    """A guardctl that notes how it was called. ``found``: what its preflight finds, by its arguments."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, **found: str) -> None:
        self.log = directory / "calls"
        cases = "".join(f"*{word}*) echo '{answer}' ;;\n" for word, answer in found.items())
        program = directory / "guardctl"
        program.write_text(
            f'#!/bin/sh\necho "$*" >> {self.log}\ncase "$*" in\n{cases}'
            'status) echo \'{"loaded":true,"mode":"open"}\' ;;\n*) echo \'{"mappings":[],"writers":[],"readers":[]}\' ;;\nesac\n'
        )
        program.chmod(0o755)
        lockdown = directory / "lockdown"
        lockdown.write_text("[none]")
        monkeypatch.setattr(guard, "GUARDCTL", program)
        monkeypatch.setattr(guard, "LOCKDOWN", lockdown)

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()


def asked(path: Path, *words: str) -> Intent | int:
    """The intent of a lock request, or the exit status."""
    path.unlink(missing_ok=True)
    status = main(["lock", "--request", str(path), *words])
    return intent.parse(path.read_bytes()) if status == 0 else status


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Guard:
    for name in ("owner", "inbox", "keychain", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "owner/id").write_text(f"{MACHINE}\n")
    (tmp_path / "cmdline").write_text("freehold.release=5\n")
    for name, path in {
        "OWNER": "owner", "INBOX": "inbox", "KEYCHAIN": "keychain", "CMDLINE": "cmdline", "RUN": "run",
    }.items():  # fmt: skip
        monkeypatch.setattr(actions, name, tmp_path / path)
    monkeypatch.setattr(actions, "capture", lambda: actions.Captured((), None, ()))
    monkeypatch.setattr(actions, "changes", lambda: ())
    return Guard(tmp_path, monkeypatch)


def test_the_request_says_whom_it_binds(place: Guard, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "request"
    made = [asked(path), asked(path, "--all-code"), asked(path, "--all-code", "--audit")]
    assert [one.tier if isinstance(one, Intent) else one for one in made] == ["privileged", "all-code", "all-code"]
    # Who signs is told.
    assert "binding all code" in describe(ALL_CODE)
    assert "binding all code" not in describe(PLAIN)
    capsys.readouterr()
    assert main(["lock", "--all-code", "--answer", str(path)]) == 2
    assert "part of the request" in capsys.readouterr().err


def test_the_request_says_the_tier_of_scripts(
    place: Guard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, profile = tmp_path / "request", tmp_path / "lock-tier"
    monkeypatch.setattr(actions, "PROFILE", profile)

    def scripts(*words: str) -> object:
        made = asked(path, *words)
        return made.scripts if isinstance(made, Intent) else made

    assert [scripts(), scripts("--tier", "S1"), scripts("--tier", "S2"), scripts("--tier", "S3")] == ["s1", "s1", "s2", 2]
    profile.write_text("S2\n")
    assert [scripts(), scripts("--tier", "S1")] == ["s2", "s1"]
    assert "for signed scripts only" in describe(replace(PLAIN, scripts="s2"))
    assert main(["lock", "--tier", "S2", "--answer", str(path)]) == 2
    # Said before: what it costs.
    capsys.readouterr()
    assert main(["lock", "-n"]) == 0
    said = capsys.readouterr().out
    assert "root has no shell by ssh" in said
    assert "the way to `freehold unlock`" in said
    assert main(["lock", "-n", "--tier", "S1"]) == 0
    assert "no shell" not in capsys.readouterr().out


def test_the_latch_is_told(place: Guard) -> None:
    guard.latch(PLAIN)
    guard.latch(ALL_CODE)
    guard.latch(replace(ALL_CODE, lock="audit"))
    guard.latch(replace(PLAIN, scripts="s2"))
    guard.latch(replace(ALL_CODE, scripts="s2"))
    assert [call for call in place.calls() if "latch" in call] == [
        "latch locked", "latch locked all-code", "latch audit all-code", "latch locked S2", "latch locked all-code S2",
    ]  # fmt: skip


def test_users_code_stands_in_the_way_of_all_code(
    place: Guard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = '{"mappings":[{"pid":1,"perms":"r-xp","path":"/home/x"}],"writers":[],"readers":[]}'
    Guard(tmp_path, monkeypatch, **{"all-code": theirs})
    actions.ready("privileged")
    with pytest.raises(FreeholdError, match=r"^unsigned code is running") as raised:
        actions.ready("all-code")
    assert "guardctl preflight all-code" in str(raised.value.hint)
    assert main(["lock", "-n", "--all-code", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["tier"], len(said["blocking"])) == ("all-code", 1)
    assert main(["lock", "-n", "--all-code"]) == 0
    assert "users and containers: whatever is not of the image or signed does not start" in capsys.readouterr().out
    assert main(["lock", "-n"]) == 0
    assert "users and containers" not in capsys.readouterr().out


def test_status_goes_by_the_guard(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "lab")
    program, record = lab.sysroot.system / "usr/lib/freehold/guardctl", lab.sysroot.system / "run/freehold/boot.json"

    def tier(mode: str, *, enforced: str | None, noted: str, scripts: str = "S1") -> object:
        answer = {"loaded": mode != "open", "mode": mode, "scripts": scripts, **({"tier": enforced} if enforced else {})}
        program.write_text(f"#!/bin/sh\necho '{json.dumps(answer)}'\n")
        program.chmod(0o755)
        record.write_text(json.dumps({"intent": {"state": "valid", "lock": mode, "tier": noted}}))
        lock = gather(lab.sysroot)["lock"]
        assert isinstance(lock, dict)
        assert lock["scripts"] == ("S1" if mode == "open" else scripts)
        said = status(lab.sysroot).text
        assert ("all code, everybody's" in said) == (lock["tier"] == "all-code")
        assert ("signed scripts only" in said) == (lock["scripts"] == "S2")
        return lock["tier"]

    assert tier("locked", enforced="all-code", noted="privileged") == "all-code"
    # A file that root can write says nothing.
    assert tier("locked", enforced="privileged", noted="all-code") == "privileged"
    assert tier("open", enforced=None, noted="all-code") == "privileged"
    assert tier("locked", enforced="privileged", noted="privileged", scripts="S2") == "privileged"


def test_the_boot_record_follows(tmp_path: Path) -> None:
    path = tmp_path / "boot.json"
    path.write_text("{}")
    boot_record.note(path, ALL_CODE)
    assert json.loads(path.read_text())["intent"] == {
        "state": "valid", "serial": 1, "lock": "locked", "tier": "all-code", "scripts": "s1", "since": 1_700_000_000,
    }  # fmt: skip
