# SPDX-License-Identifier: Apache-2.0
"""The key of emergency ssh: what the owner may give, what the intent names, what the machine keeps and puts into force."""

from __future__ import annotations

import base64
import dataclasses
import json
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from lab_release import Lab

from freehold.cli import main
from freehold.device.status import status
from freehold.errors import InputError, VerificationError
from freehold.lock import actions, boot_record, emergency, emergency_key, intent
from freehold.lock.intent import Intent, Lock
from freehold.lock.verbs import describe

needs_keygen = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen")
MACHINE = "5" * 32


def keygen(path: Path, kind: str, bits: int | None = None) -> Path:
    more = ["-b", str(bits)] if bits else []
    subprocess.run(["ssh-keygen", "-q", "-t", kind, *more, "-N", "", "-C", "me@home", "-f", path], check=True)
    return path.with_name(f"{path.name}.pub")


def strings(*parts: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


def line(kind: str, *parts: bytes) -> str:
    return f"{kind} {base64.b64encode(strings(kind.encode(), *parts)).decode()}"


ED25519 = line("ssh-ed25519", b"k" * 32)


@needs_keygen
@pytest.mark.parametrize(
    ("kind", "bits"), [("ed25519", None), ("ecdsa", 256), ("ecdsa", 384), ("ecdsa", 521), ("rsa", 3072)]
)
def test_the_fingerprint_is_opensshs(tmp_path: Path, kind: str, bits: int | None) -> None:
    public = keygen(tmp_path / "key", kind, bits)
    key = emergency.parse(public.read_text())
    shown = subprocess.run(["ssh-keygen", "-l", "-f", public], check=True, capture_output=True, text=True).stdout
    assert emergency.fingerprint(key.digest) == shown.split()[1]
    assert public.read_text().startswith(key.line.rstrip() + " ")
    # An intent takes it as it is.
    assert intent.parse(intent.serialize(Intent(MACHINE, 1, "locked", 0, emergency_ssh=key.digest))).emergency_ssh == key.digest


@pytest.mark.parametrize(
    "text",
    [
        f"{ED25519}\n", f"# mine\n\n{ED25519} me\n", line("sk-ssh-ed25519@openssh.com", b"k" * 32, b"ssh:"),
        line("sk-ecdsa-sha2-nistp256@openssh.com", b"nistp256", b"\4" + b"k" * 64, b"ssh:"),
        line("ssh-rsa", b"\1\0\1", b"\0" + b"\xff" * 384),
    ],
)  # fmt: skip
def test_keys_that_are_taken(text: str) -> None:
    assert emergency.parse(text).line.strip() in text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "exactly one key"),
        (f"{ED25519}\n{ED25519}\n", "here are 2"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\n", "private key"),
        (f'command="sh" {ED25519}', "no public key"),
        (line("ssh-dss", b"x"), "no public key"),
        (line("ssh-ed25519-cert-v01@openssh.com", b"k" * 32), "no public key"),
        ("ssh-ed25519", "no public key"),
        ("ssh-ed25519 A*A", "not base64"),
        (f"ssh-rsa {ED25519.split()[1]}", "not of the type"),
        (line("ssh-ed25519", b"k" * 31), "32 bytes"),
        (line("ssh-ed25519"), "ends too early"),
        (line("ssh-ed25519", b"k" * 32, b"more"), "do not belong"),
        (line("ecdsa-sha2-nistp256", b"nistp384", b"\4" + b"k" * 64), "no point"),
        (line("ecdsa-sha2-nistp256", b"nistp256", b"\2" + b"k" * 32), "no point"),
        (line("ssh-rsa", b"\1\0\1", b"\0" + b"\x7f" + b"\xff" * 383), "3071 bits"),
        (line("sk-ssh-ed25519@openssh.com", b"k" * 32, b""), "no application"),
        ("x" * 9000, "exactly one key"),
    ],
)  # fmt: skip
def test_keys_that_are_refused(text: str, why: str) -> None:
    with pytest.raises(InputError, match=why) as caught:
        emergency.parse(text)
    assert caught.value.hint


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine's owner directory, with the lock's actions pointed there."""
    lab = Lab(tmp_path / "lab")
    owner = lab.sysroot.root / "owner"
    owner.mkdir()
    (owner / "id").write_text(f"{MACHINE}\n")
    for name, path in {
        "OWNER": owner, "INBOX": lab.sysroot.root / "inbox", "KEYCHAIN": lab.sysroot.keychain,
        "CMDLINE": lab.sysroot.system / "proc/cmdline", "RUN": lab.sysroot.system / "run/freehold",
    }.items():  # fmt: skip
        monkeypatch.setattr(actions, name, path)
    monkeypatch.setattr("freehold.lock.guard.mode", lambda: "open")
    monkeypatch.setattr("freehold.lock.guard.load", lambda: None)
    monkeypatch.setattr(actions, "capture", lambda: actions.Captured((), None, ()))
    monkeypatch.setattr(emergency_key, "SSHD", Path("/usr/bin/ssh-keygen"))
    return owner


@needs_keygen
def test_a_request_names_the_key_and_keeps_it(place: Path, tmp_path: Path) -> None:
    public, path = keygen(tmp_path / "key", "ed25519"), tmp_path / "lock.request"
    assert main(["lock", "--request", str(path), "--emergency-ssh", str(public)]) == 0
    wanted = intent.parse(path.read_bytes())
    key = emergency.parse(public.read_text())
    assert wanted.emergency_ssh == key.digest
    assert (place / "emergency" / key.name).read_text() == key.line
    host = emergency_key.host_key(place)
    shown = subprocess.run(
        ["ssh-keygen", "-l", "-f", place / emergency_key.HOST_KEY], check=True, capture_output=True, text=True
    ).stdout
    assert host == shown.split()[1]
    assert (place / emergency_key.HOST_KEY).stat().st_mode & 0o777 == 0o600
    assert f"but for ssh sessions of the key {emergency.fingerprint(key.digest)}" in describe(wanted)
    # The line itself is as good; the host key stays; without the option there is none.
    path.unlink()
    assert main(["lock", "--request", str(path), "--emergency-ssh", public.read_text()]) == 0
    assert emergency_key.host_key(place) == host
    path.unlink()
    assert main(["lock", "--request", str(path)]) == 0
    assert intent.parse(path.read_bytes()).emergency_ssh is None


def test_a_bad_key_stops_the_lock(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lock.request"
    assert main(["lock", "--request", str(path), "--emergency-ssh", line("ssh-dss", b"x")]) == 2
    assert "no public key that emergency ssh takes" in capsys.readouterr().err
    assert main(["lock", "--request", str(path), "--emergency-ssh", str(tmp_path / "none.pub")]) == 2
    assert not path.exists()
    assert not (place / "emergency").exists()
    assert main(["lock", "--answer", str(path), "--emergency-ssh", ED25519]) == 2
    assert "part of the request" in capsys.readouterr().err
    assert main(["lock", "--audit", "--request", str(path), "--emergency-ssh", ED25519]) == 2
    assert "is for locking" in capsys.readouterr().err


def test_an_image_without_a_server_is_named(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(emergency_key, "SSHD", tmp_path / "sshd")
    assert main(["lock", "--request", str(tmp_path / "lock.request"), "--emergency-ssh", ED25519]) != 0
    assert "no ssh server" in capsys.readouterr().err
    assert not (place / "emergency").exists()


def test_a_dry_run_shows_it(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(actions, "changes", lambda: ())
    monkeypatch.setattr("freehold.lock.guard.preflight", lambda _tier: [])
    assert main(["lock", "-n", "--emergency-ssh", ED25519]) == 0
    assert emergency.sentence(emergency.parse(ED25519).digest) in capsys.readouterr().out
    assert not (place / "emergency").exists()


def stored(owner: Path) -> Intent:
    key = emergency.parse(ED25519)
    (owner / "emergency").mkdir()
    (owner / "emergency" / key.name).write_text(key.line)
    return Intent(MACHINE, 3, "locked", 0, emergency_ssh=key.digest)


def test_in_force_and_not(tmp_path: Path) -> None:
    owner, running = tmp_path / "owner", tmp_path / "run"
    owner.mkdir()
    running.mkdir()
    wanted = stored(owner)
    emergency_key.enforce(owner, running, wanted)
    assert wanted.emergency_ssh is not None
    shown = emergency.fingerprint(wanted.emergency_ssh)
    assert (owner / "emergency/key").read_text() == f"restrict,pty {ED25519} {shown}\n"
    for notice in emergency_key.NOTICES:
        assert (running / notice).read_text() == f"freehold: emergency ssh: {shown} may bypass the lock on port 2222\n"
    others: tuple[Lock, ...] = ("open", "audit")
    for lock in others:
        emergency_key.enforce(owner, running, dataclasses.replace(wanted, lock=lock))
        assert not (owner / "emergency/key").exists()
        emergency_key.enforce(owner, running, wanted)
        assert (owner / "emergency/key").exists()
    emergency_key.enforce(owner, running, wanted)
    emergency_key.enforce(owner, running, dataclasses.replace(wanted, emergency_ssh=None))
    assert not (owner / "emergency/key").exists()
    assert not any((running / notice).exists() for notice in emergency_key.NOTICES)


@pytest.mark.parametrize("forged", [line("ssh-ed25519", b"x" * 32) + "\n", "", None])
def test_a_forged_key_file_is_not_put_into_force(tmp_path: Path, forged: str | None) -> None:
    wanted = stored(tmp_path)
    file = next((tmp_path / "emergency").iterdir())
    file.unlink() if forged is None else file.write_text(forged)
    with pytest.raises(VerificationError, match="does not have"):
        emergency_key.enforce(tmp_path, tmp_path, wanted)
    assert not (tmp_path / "emergency/key").exists()


def test_status_shows_it(place: Path, tmp_path: Path) -> None:
    lab = Lab(tmp_path / "other")
    record = lab.sysroot.system / "run/freehold/boot.json"
    record.write_text(json.dumps({"image": lab.running.image_digest}))

    def shown() -> tuple[object, str]:
        report = status(lab.sysroot)
        lock = report.data["lock"]
        assert isinstance(lock, dict)
        return lock["emergency_ssh"], report.text

    assert shown()[0] is False
    wanted = stored(place)
    boot_record.note(record, wanted)
    key, text = shown()
    assert wanted.emergency_ssh is not None
    assert key == {"key": emergency.fingerprint(wanted.emergency_ssh), "port": 2222, "host_key": None}
    assert f"! {emergency.sentence(wanted.emergency_ssh)}\n" in text
    boot_record.note(record, dataclasses.replace(wanted, lock="open"))
    assert shown()[0] is False
