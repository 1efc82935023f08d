# SPDX-License-Identifier: Apache-2.0
"""``freehold etc`` on a machine in a directory: drift, commits by key and by request, going back, history."""

from __future__ import annotations

import os
from pathlib import Path

import lab_etc
import pytest
from lab_etc import EtcLab

from freehold.device import committed, etc_image, status, wanted
from freehold.lock import actions, commits, etc
from freehold.lock import intent as intents

pytestmark = [pytest.mark.build, pytest.mark.skipif(os.geteuid() != 0, reason="makes device nodes")]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lab_etc.make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def lab(tmp_path: Path, keys: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> EtcLab:
    return lab_etc.make(tmp_path, keys, capsys, monkeypatch)


@pytest.fixture
def locked(lab: EtcLab) -> EtcLab:
    """Committed while open, then locked with it."""
    (lab.etc / "motd").write_text("committed\n")
    lab.run("etc", "commit", "-m", "first", *lab.key())
    lab.stand(lab.standing().config, serial=lab.standing().serial + 1)
    return lab


def history(lab: EtcLab) -> list[tuple[int, str, str, str, int | None]]:
    rows = lab.run("etc", "history")["commits"]
    return [(row["number"], row["author"], row["state"], row["message"], row["changes"]) for row in rows]


def test_drift_is_what_differs_from_the_factory_s(lab: EtcLab) -> None:
    assert lab.drift() == {}
    (lab.etc / "motd").write_text("changed")
    (lab.etc / "new").mkdir()
    (lab.etc / "ssh/sshd_config").unlink()
    # The machine's own, and what programs generate.
    (lab.etc / "passwd").write_text("root:x:0:0::/root:/bin/bash\n")
    (lab.etc / "hostname").write_text("box\n")
    (lab.etc / "resolv.conf").write_text("")
    assert lab.drift() == {"motd": "changed", "new": "added", "ssh/sshd_config": "removed"}
    report = lab.text("etc", "status")
    assert "3 paths differ, not committed:" in report
    assert "Not looked at: accounts, host name" in report
    assert "nothing was committed" in report


def test_a_commit_on_the_open_machine_stands_at_once(lab: EtcLab) -> None:
    (lab.etc / "motd").write_text("committed\n")
    (lab.etc / "ssh/sshd_config").unlink()
    report = lab.run("etc", "commit", "-m", "no ssh", *lab.key())
    assert (report["verdict"], report["number"], report["pending"]) == ("committed", 1, False)
    made = lab.standing()
    assert (made.lock, made.serial, made.config, made.floor) == ("open", 1, report["digest"], None)
    assert lab.drift() == {}
    assert history(lab) == [(1, "me", "in force", "no ssh", 2)]
    # What the next boot mounts: the image over the factory's, and the running layer over it.
    tree = etc_image.base_tree(lab.sysroot, made.config)
    assert (tree.read("motd"), tree.look("ssh/sshd_config")) == (b"committed\n", None)
    assert (lab.owner / "etc/1").readlink() == Path("0")
    assert lab.verity.measure(lab.owner / "config" / report["digest"]) == bytes.fromhex(report["digest"])
    # The message is in the image, and not drift of its own.
    assert tree.look(".freehold-commit") is not None
    again = lab.run("etc", "commit", *lab.key())
    assert again["verdict"] == "unchanged"
    (lab.etc / "motd").write_text("edited\n")
    assert lab.drift() == {"motd": "changed"}
    assert "Next: freehold etc diff" in lab.text("etc", "status")


def test_an_older_intent_in_the_inbox_is_done_with(lab: EtcLab) -> None:
    """One that waits (a change of requests) is taken along; else the early step would name it at every boot."""
    wanted.leave(lab.sysroot, *_signed(lab, wanted.propose(lab.sysroot, wanted.EMPTY)))
    (lab.etc / "motd").write_text("committed\n")
    lab.run("etc", "commit", *lab.key())
    assert not (lab.inbox / "intent").exists()
    assert lab.standing().requests is not None
    assert lab.standing().serial == 2


def _signed(lab: EtcLab, made: intents.Intent) -> tuple[intents.Intent, bytes]:
    return made, intents.sign(made, lab.signer("me").sign)


def test_only_the_named_paths_are_committed(lab: EtcLab) -> None:
    (lab.etc / "motd").write_text("one\n")
    (lab.etc / "ssh/sshd_config").write_text("Port 2222\n")
    assert lab.run("etc", "commit", "motd", "-n")["changes"] == [{"path": "/etc/motd", "kind": "changed"}]
    lab.run("etc", "commit", "/etc/motd", *lab.key())
    assert lab.drift() == {"ssh/sshd_config": "changed"}
    lab.run("etc", "commit", "ssh", *lab.key())
    tree = etc_image.base_tree(lab.sysroot, lab.standing().config)
    assert (tree.read("motd"), tree.read("ssh/sshd_config")) == (b"one\n", b"Port 2222\n")
    assert [row[0] for row in history(lab)] == [1, 2]
    lab.run("etc", "commit", "secret", *lab.key(), status=2)
    assert "/etc/secret: as it was committed" in lab.error


def test_a_dry_run_and_a_missing_credential_change_nothing(lab: EtcLab) -> None:
    (lab.etc / "motd").write_text("one\n")
    before = sorted(lab.root.rglob("*"))
    assert lab.run("etc", "commit", "-n")["verdict"] == "dry-run"
    lab.run("etc", "commit", status=2)
    assert "needs the owner's credential" in lab.error
    assert lab.run("etc", "revert", "-n")["verdict"] == "dry-run"
    assert sorted(lab.root.rglob("*")) == before


def test_a_stranger_s_key_commits_nothing(lab: EtcLab) -> None:
    (lab.etc / "motd").write_text("one\n")
    lab.run("etc", "commit", *lab.key("stranger"), status=1)
    assert "the signed intent is refused" in lab.error
    assert not (lab.owner / "intent").exists()
    assert lab.drift() == {"motd": "changed"}


def asked(lab: EtcLab, *words: str, sign: tuple[str, ...] = (), status: int = 0) -> str:
    """Request here, signature elsewhere; the answer's path. What the owner was shown is in ``lab.error``."""
    request = lab.root / "etc.request"
    (lab.root / "etc.request.signed").unlink(missing_ok=True)
    lab.run("etc", *words, "--request", request)
    assert request.stat().st_mode & 0o077 == 0
    lab.run("sign", request, *(sign or lab.key()), status=status)
    return str(request) + ".signed"


def test_under_the_lock_a_commit_goes_through_the_inbox(locked: EtcLab) -> None:
    lab = locked
    assert lab.drift() == {}
    (lab.etc / "motd").write_text("emergency\n")
    (lab.etc / "ssh/sshd_config").unlink()
    (lab.etc / "new").write_text("\x1b[31mnew")
    (lab.etc / "ssh/evil\x1b[2J").write_text("x")
    before = sorted((lab.owner).rglob("*"))
    assert "3 paths differ" not in lab.text("etc", "status")
    assert "4 paths differ, until the next reboot only:" in lab.text("etc", "status")
    answer = asked(lab, "commit", "-m", "emergency")
    shown = lab.error
    for line in ("shall be locked", "message: emergency", "changed  /etc/motd (10 bytes", "removes  /etc/ssh/sshd_config",
                 "added    /etc/new", "/etc/ssh/evil\\x1b[2J", "of the intent number 2, signed by this key"):  # fmt: skip
        assert line in shown, shown
    assert "\x1b" not in shown
    report = lab.run("etc", "commit", "--answer", answer)
    assert report["pending"] is True
    # Root of a locked machine writes nothing of the owner's.
    assert sorted((lab.owner).rglob("*")) == before
    assert lab.run("etc", "status")["waiting"]["message"] == "emergency"
    assert history(lab)[-1][2] == "waiting"
    lab.boot()
    assert lab.standing().config == report["digest"]
    assert lab.drift() == {}
    assert [row[:4] for row in history(lab)] == [(1, "me", "past", "first"), (3, "me", "in force", "emergency")]
    assert lab.standing().lock == "locked"


def test_a_second_commit_takes_the_waiting_one_along(locked: EtcLab) -> None:
    lab = locked
    (lab.etc / "motd").write_text("two\n")
    lab.run("etc", "commit", "motd", *lab.key())
    (lab.etc / "ssh/sshd_config").write_text("Port 2\n")
    lab.run("etc", "commit", "ssh", *lab.key())
    assert len(list((lab.inbox / "config").iterdir())) == 1
    lab.boot()
    tree = etc_image.base_tree(lab.sysroot, lab.standing().config)
    assert (tree.read("motd"), tree.read("ssh/sshd_config")) == (b"two\n", b"Port 2\n")


def test_the_image_must_be_the_one_that_is_signed_for(locked: EtcLab) -> None:
    lab = locked
    (lab.etc / "motd").write_text("two\n")
    answer = asked(lab, "commit")
    [image] = (lab.inbox / "config").iterdir()
    good = image.read_bytes()
    image.unlink()
    lab.run("etc", "commit", "--answer", answer, status=1)
    assert "is not on this machine" in lab.error
    image.write_bytes(b"root's own")
    lab.verity.enable(image)
    lab.run("etc", "commit", "--answer", answer, status=1)
    assert "is not the /etc that the owner signed" in lab.error
    assert not (lab.inbox / "intent").exists()
    image.unlink()
    image.write_bytes(good)
    lab.verity.enable(image)
    lab.run("etc", "commit", "--answer", answer)
    assert (lab.inbox / "intent").exists()


def test_a_request_cannot_hide_what_it_changes(locked: EtcLab) -> None:
    """The list comes out of the image, and what it is compared with counts only with the owner's signature."""
    from freehold.lock import etc_request

    lab = locked
    (lab.etc / "motd").write_text("two\n")
    asked(lab, "commit")
    request = lab.root / "etc.request"
    text, carried = etc_request.split(request.read_bytes())
    assert carried is not None
    # Root says that the machine has this /etc already: nothing would differ.
    request.write_bytes(etc_request.pack(text, carried._replace(before=carried.image)))
    lab.run("sign", request, *lab.key(), status=2)
    assert "compares with an /etc that this key did not sign" in lab.error
    lab.run("sign", request, *lab.key(), "--whole")
    assert "added    /etc/motd (4 bytes" in lab.error
    # Another image than the intent names.
    for other in (carried.before, b""):
        request.write_bytes(etc_request.pack(text, carried._replace(image=other)))
        lab.run("sign", request, *lab.key(), status=2)
        assert "its intent names" in lab.error
    # Signed by another owner's key it is shown whole, or not signed.
    request.write_bytes(etc_request.pack(text, carried))
    lab.run("sign", request, *lab.key("stranger"), status=2)


def test_answers_of_other_commands_are_refused(locked: EtcLab) -> None:
    lab = locked
    current = lab.standing()
    for change, why in (({"lock": "open"}, "the answer says open"), ({}, "changes nothing about /etc")):
        made = intents.Intent(**{**vars(current), "serial": current.serial + 1, **change})
        path = lab.root / "answer"
        path.write_bytes(intents.sign(made, lab.signer("me").sign))
        lab.run("etc", "commit", "--answer", path, status=2)
        assert why in lab.error


def test_diff_shows_text_and_keeps_secrets(lab: EtcLab) -> None:
    (lab.etc / "motd").write_text("hello")
    (lab.etc / "secret").write_text("new password\n")
    (lab.etc / "private").mkdir()
    (lab.etc / "private").chmod(0o744)
    (lab.etc / "private/readable").write_text("hidden by its directory")
    (lab.etc / "binary").write_bytes(b"\0\1")
    (lab.etc / "link").symlink_to("motd")
    (lab.etc / "ssh/sshd_config").chmod(0o640)
    text = lab.text("etc", "diff")
    assert "--- committed/etc/motd\n+++ running/etc/motd\n@@ -1 +1 @@\n-welcome\n+hello\n\\ No newline at end of file" in text
    assert "password" not in text
    assert "hidden by" not in text
    assert "/etc/secret: changed; ordinary users must not read it" in text
    assert "/etc/binary: added, not text, or large (0 -> 2 bytes)" in text
    assert "+-> motd" in text
    assert "/etc/ssh/sshd_config: a file, mode 0644, owner 0:0 -> a file, mode 0640" in text
    secrets = lab.text("etc", "diff", "--secrets")
    assert "-old password\n+new password" in secrets
    assert "+hidden by its directory" in secrets
    assert lab.run("etc", "diff", "motd")["drift"] == [{"path": "/etc/motd", "kind": "changed"}]


def test_revert_puts_running_files_back(locked: EtcLab) -> None:
    lab = locked
    (lab.etc / "motd").write_text("edited\n")
    (lab.etc / "ssh/sshd_config").write_text("Port 1\n")
    lab.run("etc", "revert", "motd")
    assert ((lab.etc / "motd").read_text(), lab.drift()) == ("committed\n", {"ssh/sshd_config": "changed"})
    lab.run("etc", "revert")
    assert lab.drift() == {}
    assert lab.run("etc", "revert")["verdict"] == "unchanged"


def test_back_to_an_earlier_commit_on_the_open_machine(lab: EtcLab) -> None:
    for number in (1, 2):
        (lab.etc / "motd").write_text(f"{number}\n")
        lab.run("etc", "commit", "-m", f"number {number}", *lab.key())
    (lab.etc / "motd").write_text("lost?\n")
    lab.run("etc", "revert", "--to", "1", *lab.key(), status=1)
    assert "would be lost" in lab.error
    lab.run("etc", "revert")
    report = lab.run("etc", "revert", "--to", "1", *lab.key())
    assert (report["number"], report["pending"]) == (3, False)
    assert ((lab.etc / "motd").read_text(), lab.drift()) == ("1\n", {})
    assert [row[:4] for row in history(lab)] == [
        (1, "me", "past", "number 1"), (2, "me", "past", "number 2"), (3, "me", "in force", "number 1"),
    ]  # fmt: skip
    assert (lab.owner / "etc/3").resolve() == lab.owner / "etc/0"
    # Accounts and host name are there for a fresh layer, which is what a cut leaves.
    assert (lab.sysroot.state / "machine.json").exists()
    lab.run("etc", "revert", "--to", "0", *lab.key())
    assert (lab.etc / "motd").read_text() == "welcome\n"
    assert history(lab)[-1][2] == "in force"
    lab.run("etc", "revert", "--to", "9", *lab.key(), status=2)
    assert "there is no commit 9" in lab.error


def test_back_under_the_lock_by_request(locked: EtcLab) -> None:
    lab = locked
    (lab.etc / "motd").write_text("two\n")
    lab.run("etc", "commit", *lab.key())
    lab.boot()
    answer = asked(lab, "revert", "--to", "1")
    assert "changed  /etc/motd" in lab.error
    lab.run("etc", "revert", "--answer", answer)
    assert (lab.etc / "motd").read_text() == "two\n"
    lab.boot()
    assert etc_image.base_tree(lab.sysroot, lab.standing().config).read("motd") == b"committed\n"


def test_a_cut_in_a_revert_leaves_a_fresh_layer(lab: EtcLab, monkeypatch: pytest.MonkeyPatch) -> None:
    from freehold.device import etc_change

    (lab.etc / "motd").write_text("1\n")
    lab.run("etc", "commit", *lab.key())
    # Promised by another commit, which was cut before its intent.
    (lab.owner / "etc/2").symlink_to("0")
    monkeypatch.setattr(etc_change, "put_back", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    lab.run("etc", "revert", "--to", "0", *lab.key(), status=130)
    assert lab.standing().config is None
    # The next boot makes owner/etc/2: nothing of the old layer covers the factory's /etc.
    assert not os.path.lexists(lab.owner / "etc/2")
    assert (lab.owner / "etc/1").is_symlink()


def test_a_cut_in_a_commit_leaves_the_old_or_the_new(lab: EtcLab, monkeypatch: pytest.MonkeyPatch) -> None:
    from freehold import atomic

    writes = 0
    original = atomic.write

    def cut(path: Path, *rest: object, **named: object) -> None:
        nonlocal writes
        writes -= 1
        if writes < 0:
            raise KeyboardInterrupt
        original(path, *rest, **named)  # type: ignore[arg-type]

    (lab.etc / "motd").write_text("1\n")
    seen = set()
    for count in range(6):
        writes = count
        monkeypatch.setattr(atomic, "write", cut)
        status_ = 0
        try:
            lab.run("etc", "commit", *lab.key())
        except AssertionError:
            status_ = 130
        monkeypatch.setattr(atomic, "write", original)
        standing = wanted.standing(lab.sysroot).intent
        seen.add((status_, standing is not None))
        if standing is not None:
            # In force, with its image, and the running layer over it.
            assert etc_image.base_tree(lab.sysroot, standing.config).read("motd") == b"1\n"
            assert (lab.owner / "etc" / str(standing.serial)).is_symlink()
            assert history(lab)[-1][2] == "in force"
            break
    assert (130, False) in seen


def test_history_believes_signatures_only(lab: EtcLab) -> None:
    (lab.etc / "motd").write_text("1\n")
    lab.run("etc", "commit", *lab.key())
    current = lab.standing()
    made = intents.Intent(**{**vars(current), "serial": 7, "config": None})
    (lab.owner / "commits/7").write_bytes(intents.sign(made, lab.signer("stranger").sign))
    (lab.owner / "commits/8").write_bytes(b"nonsense")
    (lab.owner / "commits/9").write_bytes((lab.owner / "commits/1").read_bytes())
    again = intents.Intent(**{**vars(current), "serial": 10})
    (lab.owner / "commits/10").write_bytes(intents.sign(again, lab.signer("me").sign))
    (lab.owner / "commits/notes").write_text("x")
    rows = {row["number"]: row for row in lab.run("etc", "history")["commits"]}
    assert [rows[number]["verified"] for number in (1, 7, 8, 9, 10)] == [True, False, False, False, True]
    # Compared with the last one that was signed.
    assert (rows[1]["changes"], rows[10]["changes"]) == (1, 0)
    assert "NOT VERIFIED (it is the intent number 1)" in lab.text("etc", "history")
    for number in (7, 8, 9):
        lab.run("etc", "revert", "--to", str(number), *lab.key(), status=2)
        assert f"commit {number} is not verified" in lab.error


def test_the_last_commits_are_kept(lab: EtcLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "KEPT", 2)
    digests = []
    for number in range(1, 5):
        (lab.etc / "motd").write_text(f"{number}\n")
        digests.append(lab.run("etc", "commit", *lab.key())["digest"])
    assert [row[0] for row in history(lab)] == [3, 4]
    assert {path.name for path in (lab.owner / "config").iterdir()} == set(digests[2:])


def test_a_rotated_secret_is_every_deployment_s(locked: EtcLab) -> None:
    """The image stands in the intent and in no deployment: going back to an older release brings no old secret back."""
    lab = locked
    deployments = lab.sysroot.deployments
    for name in ("a" * 16, "b" * 16):
        (deployments / name).mkdir(parents=True)
        (deployments / name / "manifest.json").write_text("{}")
    before = {path: path.read_bytes() for path in deployments.rglob("*") if path.is_file()}
    (lab.etc / "secret").write_text("rotated\n")
    lab.run("etc", "commit", "secret", *lab.key())
    lab.boot()
    assert {path: path.read_bytes() for path in deployments.rglob("*") if path.is_file()} == before
    for image in ("a" * 64, "b" * 64):
        (lab.sysroot.system / "proc/cmdline").write_text(f"freehold.image={image}\n")
        assert committed.read(lab.sysroot, "secret") == b"rotated\n"
        assert etc_image.base_tree(lab.sysroot, lab.standing().config).read("secret") == b"rotated\n"


@pytest.fixture
def acting(locked: EtcLab, monkeypatch: pytest.MonkeyPatch) -> EtcLab:
    """The same machine for `freehold lock` and `unlock`."""
    lab = locked
    system = lab.sysroot.system
    for name, path in (
        ("OWNER", lab.owner), ("INBOX", lab.inbox), ("STATE", lab.sysroot.state), ("ETC", lab.etc), ("FACTORY", lab.factory),
        ("KEYCHAIN", lab.sysroot.keychain), ("RUN", system / "run/freehold"), ("CMDLINE", system / "proc/cmdline"),
    ):  # fmt: skip
        monkeypatch.setattr(actions, name, path)
    monkeypatch.setattr(actions, "measure_verity", lab.verity.measure)
    return lab


def test_the_lock_uses_the_commit(acting: EtcLab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = acting
    monkeypatch.setattr(etc, "write_image", lambda *_: "f" * 64)
    committed_ = lab.standing().config
    assert actions.capture().config == committed_
    (lab.etc / "motd").write_text("edited after it\n")
    assert actions.capture().config == "f" * 64
    (lab.etc / "motd").write_text("committed\n")
    lab.verity.enforced.clear()
    assert actions.capture().config == "f" * 64


def test_an_unlock_takes_the_waiting_commit_along(acting: EtcLab) -> None:
    lab = acting
    (lab.etc / "motd").write_text("two\n")
    digest = lab.run("etc", "commit", *lab.key())["digest"]
    lab.run("unlock", *lab.key())
    found, waits = wanted.newest(lab.sysroot)
    assert found is not None
    assert (found.lock, found.config, waits) == ("open", digest, True)
    lab.boot()
    assert lab.standing().config == digest
    assert history(lab)[-1][2] == "in force"


def test_status_has_a_line_while_locked(locked: EtcLab) -> None:
    lab = locked
    upper, mounted = lab.sysroot.system / "run/freehold/etc/upper", lab.sysroot.system / "run/freehold/config"

    def messages() -> list[str]:
        return [line for line in status.lock_of(lab.sysroot)[1] if "/etc" in line]

    assert messages() == []  # nothing can be seen there
    (upper / "ssh").mkdir(parents=True)
    mounted.mkdir()
    (mounted / "motd").write_text("committed\n")
    assert messages() == []
    for path, text in (("motd", "edited\n"), ("ssh/sshd_config", "Port 1\n"), ("passwd", "x"), ("ssh/new", "")):
        (lab.etc / path).write_text(text)
        (upper / path).write_text(text)
    assert messages() == ["3 paths of /etc differ from what was committed, until the next reboot: `freehold etc status`"]
    for path in ("ssh/sshd_config", "ssh/new"):
        (lab.etc / path).unlink()
    (lab.factory / "ssh/sshd_config").unlink()
    assert messages() == ["1 path of /etc differs from what was committed, until the next reboot: `freehold etc status`"]
    # A lock without an image, while that of before is mounted still: the factory's motd is what counts.
    (lab.etc / "motd").write_text("welcome\n")
    assert len(messages()) == 1
    lab.guard("locked")
    assert messages() == []
    (lab.etc / "motd").write_text("edited\n")
    assert len(messages()) == 1
    lab.guard("open")
    assert messages() == []


def test_an_image_is_what_its_name_says(lab: EtcLab) -> None:
    for number in (1, 2):
        (lab.etc / "motd").write_text(f"{number}\n")
        lab.run("etc", "commit", *lab.key())
    first, second = (row["digest"] for row in lab.run("etc", "history")["commits"])
    good = (lab.owner / "config" / first).read_bytes()
    (lab.owner / "config" / first).write_bytes((lab.owner / "config" / second).read_bytes())
    lab.run("etc", "revert", "--to", "1", *lab.key(), status=1)
    assert "is not what was signed" in lab.error
    (lab.owner / "config" / first).write_bytes(good)
    assert lab.run("etc", "revert", "--to", "1", "-n")["changes"] == [{"path": "/etc/motd", "kind": "changed"}]


def test_a_lost_image_is_said(locked: EtcLab) -> None:
    lab = locked
    (lab.owner / "config" / str(lab.standing().config)).unlink()
    assert lab.drift() == {"motd": "changed"}
    assert history(lab)[0][4] is None
    # As a whole it can be committed all the same.
    assert lab.run("etc", "commit", *lab.key())["pending"] is True


def test_names_that_an_image_cannot_have(lab: EtcLab) -> None:
    (lab.etc / os.fsdecode(b"bad\xff")).write_text("x")
    lab.run("etc", "commit", *lab.key(), status=2)
    assert "/etc/bad\\xff: its name is no text" in lab.error


def test_the_rescue_entry_commits_nothing(lab: EtcLab) -> None:
    (lab.sysroot.system / "run/freehold/boot.json").write_text('{"rescue": true}')
    lab.run("etc", "status", status=1)
    assert "rescue entry" in lab.error
