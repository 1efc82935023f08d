# SPDX-License-Identifier: Apache-2.0
"""/etc's drift and its committed form, and first boot's pure parts."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from freehold import run
from freehold.boot import covers, linger, prepare, provision
from freehold.errors import FreeholdError
from freehold.lock import etc
from freehold.lock.drift import ADDED, CHANGED, REMOVED, Change, drift
from freehold.lock.trees import Directory

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes device nodes")


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    factory, running = tmp_path / "factory", tmp_path / "running"
    for top in (factory, running):
        (top / "d/sub").mkdir(parents=True)
        (top / "same").write_text("same")
        (top / "d/edit").write_text("old")
        (top / "link").symlink_to("same")
    return factory, running


def kinds(trees: tuple[Path, Path], *ignore: str) -> dict[str, str]:
    return {change.path: change.kind for change in drift(*map(Directory, trees), ignore=ignore)}


def test_equal_trees_do_not_drift(trees: tuple[Path, Path]) -> None:
    assert kinds(trees) == {}


def test_every_kind_of_drift_is_seen(trees: tuple[Path, Path]) -> None:
    factory, running = trees
    (running / "d/edit").write_text("new")  # equal size
    (running / "new/deep").mkdir(parents=True)
    (running / "new/deep/file").touch()
    (running / "link").unlink()
    (running / "link").symlink_to("other")
    (running / "same").chmod(0o600)
    (factory / "lost").mkdir()
    (factory / "lost/file").touch()
    os.mkfifo(running / "pipe")
    assert kinds(trees) == {
        "d/edit": CHANGED, "new": ADDED, "new/deep": ADDED, "new/deep/file": ADDED, "link": CHANGED, "same": CHANGED,
        "lost": REMOVED,
    }  # fmt: skip
    assert "d/edit" not in kinds(trees, "d/edit")
    assert "new/deep/file" not in kinds(trees, "new")


def test_a_file_in_place_of_a_directory(trees: tuple[Path, Path]) -> None:
    (trees[1] / "d/sub").rmdir()
    (trees[1] / "d/sub").write_text("x")
    assert kinds(trees) == {"d/sub": CHANGED}


def test_links_are_never_followed(trees: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").touch()
    (trees[1] / "out").symlink_to(tmp_path / "outside")
    assert kinds(trees) == {"out": ADDED}


@needs_root
def test_the_committed_tree_is_the_drift(trees: tuple[Path, Path], tmp_path: Path) -> None:
    factory, running = trees
    (running / "d").chmod(0o750)
    (running / "d/edit").write_text("new")
    (running / "d/edit").chmod(0o640)
    os.chown(running / "d/edit", 7, 8)
    (running / "same").unlink()
    (running / "l2").symlink_to("/nowhere")
    changes = list(drift(Directory(factory), Directory(running), ignore=()))
    staging = tmp_path / "staging"
    size = etc.stage(changes, Directory(running), staging)
    assert size >= 3
    status = (staging / "d/edit").stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o640, 7, 8)
    assert (staging / "d").stat().st_mode & 0o7777 == 0o750
    whiteout = (staging / "same").lstat()
    assert stat.S_ISCHR(whiteout.st_mode)
    assert whiteout.st_rdev == 0
    assert (staging / "l2").readlink() == Path("/nowhere")
    assert not (staging / "d/sub").exists()


@needs_root
def test_parents_are_made_with_their_modes(trees: tuple[Path, Path], tmp_path: Path) -> None:
    (trees[1] / "d").chmod(0o700)
    (trees[0] / "d").chmod(0o700)
    (trees[1] / "d/sub/new").write_text("1")
    etc.stage([Change("d/sub/new", ADDED)], Directory(trees[1]), tmp_path / "staging")
    assert (tmp_path / "staging/d").stat().st_mode & 0o777 == 0o700


def test_a_configuration_has_limits(trees: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etc, "MAX_BYTES", 3)
    with pytest.raises(FreeholdError, match="larger than"):
        etc.stage([Change("same", ADDED)], Directory(trees[1]), tmp_path / "one")
    monkeypatch.setattr(etc, "MAX_FILES", 0)
    with pytest.raises(FreeholdError, match="too many"):
        etc.stage([Change("same", ADDED)], Directory(trees[1]), tmp_path / "two")


@pytest.mark.parametrize(("text", "found"), [
    (b"{}", []), (b"not json", []), (b"[]", []), (b'{"storage": {"files": [{}]}}', []), (b'{"storage": []}', []),
    (b'{"storage": {"disks": [{}], "luks": [{}]}}', ["storage.disks", "storage.luks"]),
    (b'{"kernelArguments": {"shouldExist": ["x"]}}', ["kernelArguments"]), (b"[" * 100_000, []), (b'{"storage": null}', []),
])  # fmt: skip
def test_provisioning_refuses_what_it_cannot_honour(text: bytes, found: list[str]) -> None:
    assert provision.unsupported(text) == found


def test_the_disk_s_file_is_found_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provision, "DISK_FILE", tmp_path / "ign")
    monkeypatch.setattr(provision, "FW_CFG", tmp_path / "fw")
    assert provision.source("qemu") is None
    (tmp_path / "ign").write_bytes(b"{}")
    assert provision.source("qemu") == provision.source("none") == ("file", b"{}")
    (tmp_path / "fw").write_bytes(b"{ }")
    assert provision.source("qemu") == ("qemu", b"{ }")
    assert provision.source("none") == ("file", b"{}")
    monkeypatch.setattr(provision, "MAX_CONFIG", 2)
    with pytest.raises(FreeholdError, match="larger"):
        provision.source("qemu")


def test_prepare_fails_closed_without_a_boot_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(prepare, "wait", lambda: None)
    monkeypatch.setattr(prepare, "say", said.append)
    monkeypatch.setattr(prepare, "BOOT_RECORD", tmp_path / "none.json")
    assert prepare.main() == 1
    assert said == [f"No such file or directory ({tmp_path / 'none.json'})"]


def test_links_of_root_do_not_aim_the_mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts: list[str] = []
    monkeypatch.setattr(run, "run", lambda argv: mounts.append(str(argv[-1])))
    listing, var = tmp_path / "list", tmp_path / "var"
    listing.write_text("# comment\n\n/var/spool/cron\n/var/lib/at\n/var/lib/none\n")
    monkeypatch.setattr(covers, "UNBELIEVED", listing)
    for name in ("spool/cron", "lib", "elsewhere"):
        (var / name).mkdir(parents=True)
    (var / "lib/at").symlink_to(var / "elsewhere")
    covers.cover_unbelieved(var)
    assert mounts == [str(var / name) for name in ("spool/cron", "lib/at", "lib/none")]
    assert not (var / "lib/at").is_symlink()
    assert (var / "elsewhere").is_dir()


@pytest.fixture
def covered(monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """What is mounted over, and what is said."""
    mounts: list[str] = []
    said: list[str] = []
    monkeypatch.setattr(run, "run", lambda argv: mounts.append(str(argv[-1])))
    return mounts, said


def test_services_at_boot_are_ordinary_users_only(tmp_path: Path, covered: tuple[list[str], list[str]]) -> None:
    """The login manager takes a name, a number and an escaped name for the same account."""
    marks = tmp_path / "lib/systemd/linger"
    marks.mkdir(parents=True)
    for name in ("alice", "root", "tss", "107", "\\x74ss", "alice ", "1000", "ghost", "n\nl", "\udcff"):
        (marks / name).touch()
    (marks / "bob").symlink_to("/etc/passwd")
    (marks / "directory").mkdir()
    linger.settle(tmp_path, {"alice", "bob"}, covered[1].append)
    assert sorted(path.name for path in marks.iterdir()) == ["alice", "bob", "directory"]
    assert covered[0] == []
    assert len(covered[1]) == 4
    assert all(line.isascii() and line.isprintable() for line in covered[1])


def test_no_services_at_boot_in_a_rescue(tmp_path: Path, covered: tuple[list[str], list[str]]) -> None:
    """It knows no account of the machine's, and forgets none: the marks are there again at the next start."""
    marks = tmp_path / "lib/systemd/linger"
    marks.mkdir(parents=True)
    (marks / "alice").touch()
    linger.settle(tmp_path, None, covered[1].append)
    assert covered == ([str(marks)], [])
    assert (marks / "alice").exists()


def test_a_mark_that_cannot_be_removed_stops_no_boot(
    tmp_path: Path, covered: tuple[list[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = tmp_path / "lib/systemd/linger"
    marks.mkdir(parents=True)
    (marks / "root").touch()

    def immutable(_path: str) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "unlink", immutable)
    linger.settle(tmp_path, {"alice"}, covered[1].append)
    assert covered[0] == [str(marks)]


def test_a_link_of_roots_in_the_place_of_the_marks(tmp_path: Path, covered: tuple[list[str], list[str]]) -> None:
    (tmp_path / "lib/systemd").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/root").touch()
    (tmp_path / "lib/systemd/linger").symlink_to(tmp_path / "elsewhere")
    linger.settle(tmp_path, {"alice"}, covered[1].append)
    assert list((tmp_path / "lib/systemd/linger").iterdir()) == []
    assert not (tmp_path / "lib/systemd/linger").is_symlink()
    assert (tmp_path / "elsewhere/root").exists()
    assert covered == ([], [])
