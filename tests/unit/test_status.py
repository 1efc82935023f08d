# SPDX-License-Identifier: Apache-2.0
"""``freehold status``: the contract's keys, the lock as enforced, and a quick start."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from lab_release import Lab

import freehold
from freehold.device import loader
from freehold.device.status import IN_RESCUE, WITHOUT_FIRMWARE, WITHOUT_SECURE_BOOT, gather, status
from freehold.device.sysroot import Sysroot
from freehold.update.manifest import image_of


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "lab")


def guard(lab: Lab, answer: str) -> None:
    path = lab.sysroot.system / "usr/lib/freehold/guardctl"
    path.write_text(f"#!/bin/sh\ntest \"$1\" = status && echo '{answer}'\n")
    path.chmod(0o755)


def boot_record(lab: Lab, **intent: object) -> None:
    path = lab.sysroot.system / "run/freehold/boot.json"
    path.write_text(json.dumps({"image": lab.running.image_digest, "intent": intent, "messages": ["hello"]}))


def lock_of(lab: Lab) -> dict[str, object]:
    lock = gather(lab.sysroot)["lock"]
    assert isinstance(lock, dict)
    return lock


def test_contract_keys(lab: Lab) -> None:
    data = gather(lab.sysroot)
    assert data["schema"] == "freehold-status-1"
    assert data["booted"] == lab.running.id
    assert set(data) >= {"booted", "deployments", "lock", "update"}
    rows = data["deployments"]
    assert isinstance(rows, list)
    assert set(rows[0]) >= {
        "id",
        "version",
        "commit",
        "image_digest",
        "booted",
        "staged",
        "pinned",
        "health",
        "base_version",
        "packages",
        "overrides",
        "signer",
    }
    assert (rows[0]["booted"], rows[0]["staged"], rows[0]["health"]) == (True, False, "good")
    assert set(lock_of(lab)) >= {"state", "secure_boot", "keychain", "emergency_ssh", "tier", "since"}
    assert isinstance(data["update"], dict)
    assert set(data["update"]) >= {"stream", "state", "last_check", "available"}
    json.dumps(data)


def test_staged_and_next_step(lab: Lab) -> None:
    lab.install("2.0", 2000, counter="+3")
    report = status(lab.sysroot)
    rows = report.data["deployments"]
    assert isinstance(rows, list)
    assert [(row["version"], row["booted"], row["staged"]) for row in rows] == [
        ("2.0", False, True),
        ("1.0", True, False),
    ]
    assert report.text.splitlines()[-1].startswith("Next: reboot into 2.0")
    assert report.data["update"]["state"] == "unconfigured"  # type: ignore[index]


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        ('{"loaded":true,"mode":"locked"}', "locked"),
        ('{"loaded":true,"mode":"audit"}', "audit"),
        ('{"loaded":true,"mode":"open"}', "open"),
        ('{"loaded":false,"mode":"locked"}', "open"),
        ("garbage", "open"),
        ("[]", "open"),
    ],
)
def test_lock_state_is_the_guards_word(lab: Lab, answer: str, state: str) -> None:
    guard(lab, answer)
    boot_record(lab, state="absent")
    assert lock_of(lab)["state"] == state


def test_an_intent_that_nobody_enforces_is_said(lab: Lab) -> None:
    boot_record(lab, state="valid", lock="locked", serial=3, since=1700000000)
    report = status(lab.sysroot)
    assert lock_of(lab)["state"] == "open"
    assert lock_of(lab)["since"] == 1700000000
    assert "! the intent says locked, but no guard enforces it" in report.text.splitlines()
    assert "! hello" in report.text.splitlines()


def test_a_rescue_is_said(lab: Lab) -> None:
    record = {"image": lab.running.image_digest, "rescue": True, "intent": {"state": "absent", "lock": "open"}}
    (lab.sysroot.system / "run/freehold/boot.json").write_text(json.dumps(record))
    assert f"! {IN_RESCUE}" in status(lab.sysroot).text.splitlines()
    (lab.sysroot.system / "run/freehold/boot.json").write_text(json.dumps({**record, "rescue": False}))
    assert IN_RESCUE not in status(lab.sysroot).text
    assert "Secure Boot off: not verified" in status(lab.sysroot).text


def test_keychain_and_secure_boot(lab: Lab) -> None:
    lock = lock_of(lab)
    keychain = lock["keychain"]
    assert isinstance(keychain, list)
    assert [(row["role"], row["name"]) for row in keychain] == [("owner", "me"), ("release", "vendor")]
    assert lock["secure_boot"] is False
    variable = lab.sysroot.system / "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    variable.parent.mkdir(parents=True)
    variable.write_bytes(b"\6\0\0\0\1")
    assert lock_of(lab)["secure_boot"] is True
    for other in (b"\6\0\0\0\0", b"\7\0\0\0\1", b"\1"):
        variable.write_bytes(other)
        assert lock_of(lab)["secure_boot"] is False


@pytest.mark.parametrize(
    ("secure", "source", "said"),
    [(False, "image", WITHOUT_SECURE_BOOT), (True, "image", WITHOUT_FIRMWARE), (True, "firmware", None)],
)
def test_what_the_chain_of_trust_rests_on(lab: Lab, secure: bool, source: str, said: str | None) -> None:
    variable = lab.sysroot.system / "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    variable.parent.mkdir(parents=True)
    variable.write_bytes(b"\6\0\0\0" + bytes([secure]))
    record = {"image": lab.running.image_digest, "keychain_source": source, "keychain_loaded": 2, "keychain_skipped": 1}
    (lab.sysroot.system / "run/freehold/boot.json").write_text(json.dumps(record))
    report = status(lab.sysroot)
    lock = lock_of(lab)
    assert (lock["keychain_source"], lock["keychain_loaded"], lock["keychain_skipped"]) == (source, 2, 1)
    messages = report.data["messages"]
    assert isinstance(messages, list)
    for sentence in (WITHOUT_SECURE_BOOT, WITHOUT_FIRMWARE):
        assert (sentence in messages) == (sentence == said)
        assert (f"! {sentence}" in report.text.splitlines()) == (sentence == said)


def test_a_revoked_certificate_is_shown_as_such(lab: Lab) -> None:
    assert "2 keys" in status(lab.sysroot).text
    digest = hashlib.sha256((lab.sysroot.keychain / "owner-me.der").read_bytes()).hexdigest()
    (lab.sysroot.keychain / "revoked").write_text(f"freehold-revoked 1\n{digest} lost\n")
    keychain = lock_of(lab)["keychain"]
    assert isinstance(keychain, list)
    assert [(row["name"], row["revoked"]) for row in keychain] == [("me", True), ("vendor", False)]
    assert "1 keys" in status(lab.sysroot).text


def test_a_machine_that_is_not_ours(tmp_path: Path) -> None:
    report = status(Sysroot(tmp_path / "none", tmp_path / "esp", tmp_path))
    assert report.data["booted"] is None
    assert "does not run a Freehold deployment" in report.text


def test_broken_files_do_not_break_status(lab: Lab) -> None:
    (lab.sysroot.system / "run/freehold/boot.json").write_text("[1")
    (lab.sysroot.state).mkdir()
    (lab.sysroot.state / "update.json").write_text('{"available": 3, "last_check": "x"}')
    broken = lab.sysroot.deployments / ("f" * 16)
    broken.mkdir()
    (broken / "manifest.json").write_text("{}")
    lab.configure("http://h")
    report = status(lab.sysroot)
    assert len(loader.listing(lab.sysroot.esp)) == 1
    assert report.data["update"]["available"] is None  # type: ignore[index]


def test_the_stream_shown_is_the_stream_used(lab: Lab) -> None:
    assert gather(lab.sysroot)["update"]["stream"] is None  # type: ignore[index]
    path = lab.sysroot.system / "etc/freehold/update.toml"
    path.parent.mkdir(parents=True)
    for text, stream in (
        ('[update]\nurl = "http://h"\nstream = "edge" # why\n', "edge"),
        ("[update]\n  stream='a-b'\nurl = \"http://h\"\n", "a-b"),
        ('[update]\nurl = "http://h"\n', "stable"),
    ):
        path.write_text(text)
        assert gather(lab.sysroot)["update"]["stream"] == stream  # type: ignore[index]
        assert lab.sysroot.update_config("open").stream == stream


def test_image_of() -> None:
    digest = "ab" * 32
    assert image_of(f"a freehold.image={digest}\n") == digest
    assert image_of(f"freehold.image={digest} freehold.image={digest}") == digest
    assert image_of(f"freehold.image={digest} freehold.image={'cd' * 32}") == ""
    assert image_of(f"xfreehold.image={digest}") == ""
    assert image_of(f"freehold.image={digest}0") == ""


def test_status_imports_little(lab: Lab) -> None:
    """Start-up time, by its causes: what status must not import."""
    code = (
        "import sys, pathlib\nsys.path.insert(0, sys.argv[2])\n"
        "from freehold.device import verbs\n"
        "from freehold.device.status import status\n"
        "from freehold.device.sysroot import Sysroot\n"
        "status(Sysroot(*[pathlib.Path(sys.argv[1]) / part for part in ('sysroot', 'esp', 'system')]))\n"
        "print(*sys.modules)\n"
    )
    lab.configure("http://h")
    source = Path(freehold.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, lab.root, source], check=True, capture_output=True, text=True
    )
    loaded = set(done.stdout.split())
    heavy = {
        "cryptography",
        "http.client",
        "ssl",
        "socket",
        "subprocess",
        "asyncio",
        "tomllib",
        "datetime",
        "freehold.run",
    }
    assert not loaded & heavy
