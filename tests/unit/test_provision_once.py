# SPDX-License-Identifier: Apache-2.0
"""A machine that has an intent was provisioned: a removed record does not make it believe a new configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from freehold import atomic
from freehold.boot import prepare, provision


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (tmp_path / "id").write_text("c" * 32 + "\n")
    for name in ("etc", "factory", "var"):
        (tmp_path / name).mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/root:/bin/bash\n")
    for name, path in (
        ("ETC", "etc"),
        ("FACTORY", "factory"),
        ("STATE", "state"),
        ("VAR", "var"),
        ("MACHINE_ID", "id"),
        ("BOOT_RECORD", "boot"),
    ):
        monkeypatch.setattr(prepare, name, tmp_path / path)
    monkeypatch.setattr(prepare, "wait", lambda: None)
    monkeypatch.setattr(provision, "STAMP", tmp_path / "provisioned")
    monkeypatch.setattr(provision, "DISK_FILE", tmp_path / "provision.ign")
    monkeypatch.setattr(provision, "FW_CFG", tmp_path / "fw")
    monkeypatch.setattr(provision, "PLATFORM", tmp_path / "no-platform")
    lines: list[str] = []
    monkeypatch.setattr(prepare, "say", lines.append)
    return lines


def boot(directory: Path, state: str, lock: str) -> None:
    (directory / "boot").write_text(json.dumps({"first_boot": True, "intent": {"state": state, "lock": lock}}))


@pytest.mark.parametrize(
    ("state", "lock"), [("valid", "locked"), ("valid", "audit"), ("valid", "open"), ("invalid", "locked")]
)
def test_with_an_intent_nothing_is_provisioned(
    state: str, lock: str, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    boot(tmp_path, state, lock)
    planted = tmp_path / "provision.ign"
    planted.write_text('{"ignition": {"version": "3.3.0"}}')
    monkeypatch.setattr(provision, "provision", lambda: pytest.fail("provisioned a second time"))
    assert prepare.main() == 0
    assert said == ["not provisioned again: the record of the first time is gone, the owner's word stands"]
    assert json.loads((tmp_path / "provisioned").read_text())["refused"] is True
    assert planted.exists()


def test_under_the_lock_the_record_waits(tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard lets nobody write there, ``prepare`` neither; that is no reason not to boot."""
    boot(tmp_path, "valid", "locked")

    write = atomic.write

    def guarded(path: Path, data: bytes | str, *, mode: int = 0o644) -> None:
        if path == provision.STAMP:
            raise PermissionError(1, "Operation not permitted", str(path))
        write(path, data, mode=mode)

    monkeypatch.setattr(atomic, "write", guarded)
    assert prepare.main() == 0
    assert said == ["not provisioned again: the record of the first time is gone, the owner's word stands"]
    assert not (tmp_path / "provisioned").exists()


def test_a_new_machine_is_provisioned(tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    boot(tmp_path, "absent", "open")
    monkeypatch.setattr(provision, "provision", lambda: "provisioned")
    assert prepare.main() == 0
    assert said == ["provisioned"]
