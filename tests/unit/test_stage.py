# SPDX-License-Identifier: Apache-2.0
"""Upgrades on a machine in a directory: judgement, staging, power cuts at every durable step, cleanup."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lab_release import Lab, UserVerity, manifest, real_ostree, rescue_image, write_release

from freehold.device import content, loader, prune, stage, upgrade
from freehold.device.loader import Entry
from freehold.device.sysroot import history, parse_update_config, record
from freehold.errors import BusyError, FreeholdError, InputError, NotHereError, VerificationError
from freehold.monitor import NullMonitor
from freehold.report import Report
from freehold.server.serve import Server
from freehold.update import parts

MONITOR = NullMonitor()


@contextmanager
def serving(directory: Path) -> Iterator[str]:
    directory.mkdir(exist_ok=True)
    with Server(directory, ("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path / "lab")
    with serving(made.web) as url:
        made.configure(url)
        yield made


def go(lab: Lab, until: str = "stage", *, exit_77: bool = False) -> Report:
    return upgrade.upgrade(lab.sysroot, upgrade.Options(until, unchanged_exit_77=exit_77), MONITOR)


def test_upgrade(lab: Lab) -> None:
    new = lab.release("2.0", 2000)
    report = go(lab)
    assert report.data["staged"] is True
    assert [entry.name for entry in loader.listing(lab.sysroot.esp)] == [
        f"freehold-2.0-{new.id}+3.efi",
        f"freehold-1.0-{lab.running.id}.efi",
    ]
    served = (lab.web / "releases/2.0/uki.efi").read_bytes()
    assert (lab.sysroot.esp / f"EFI/Linux/freehold-2.0-{new.id}+3.efi").read_bytes() == served
    assert lab.rescue(new).read_bytes() == rescue_image(served)
    assert (lab.sysroot.deployments / new.id / "rescue.efi").read_bytes() == rescue_image(served)
    assert (lab.sysroot.images / new.image_digest).read_bytes() == (lab.web / "releases/2.0/image").read_bytes()
    assert new.id in content.references(lab.sysroot)
    assert [event["event"] for event in history(lab.sysroot)] == ["staged"]
    assert list((lab.sysroot.esp / prune.ESP_SCRATCH).iterdir()) == []
    again = go(lab, exit_77=True)
    assert (again.status, again.data["verdict"]) == (77, "staged")


def test_check_preview_and_download_only_change_no_boot_entry(lab: Lab) -> None:
    new = lab.release("2.0", 2000)
    before = lab.entries(), lab.rescues()
    assert go(lab, "check").data["verdict"] == "new"
    assert not (lab.sysroot.deployments / new.id).exists()
    preview = go(lab, "preview")
    assert preview.data["packages"] == {"added": [], "removed": [], "changed": [["base-files", "1.0", "2.0"]]}
    assert "base-files 1.0 -> 2.0" in preview.text
    assert go(lab, "download").data["downloaded"] is True
    assert (lab.entries(), lab.rescues()) == before
    assert lab.sysroot.deployment(new.id) is not None
    go(lab)
    assert loader.listing(lab.sysroot.esp)[0].id == new.id


def test_up_to_date(lab: Lab) -> None:
    lab.release("1.0", 1000)
    assert go(lab).status == 0
    report = go(lab, exit_77=True)
    assert (report.status, report.data["verdict"]) == (77, "current")


@pytest.mark.parametrize(
    ("version", "timestamp"), [("0.9", 900), ("0.9", 1000), ("2.0", 999), ("2.0", 1000), ("0.9", 2000)]
)
def test_older_is_refused(lab: Lab, version: str, timestamp: int) -> None:
    """Older by time, the same time, or behind in the boot loader's order."""
    lab.release(version, timestamp)
    before = lab.entries()
    with pytest.raises(VerificationError) as caught:
        go(lab)
    assert "unchanged" in (caught.value.hint or "")
    assert lab.entries() == before


def test_another_product_is_refused(lab: Lab) -> None:
    offered = manifest("2.0", 2000)[0]
    assert stage.judge(offered, lab.running, []).verdict == "new"
    for other in (offered._replace(name="router"), offered._replace(architecture="arm64")):
        with pytest.raises(VerificationError):
            stage.judge(other, lab.running, [])


@pytest.mark.parametrize("counter", ["+0", "+0-3"])
def test_what_failed_here_is_not_tried_again(lab: Lab, counter: str) -> None:
    lab.install("2.0", 2000, counter=counter)
    lab.release("2.0", 2000)
    report = go(lab, exit_77=True)
    assert (report.status, report.data["verdict"]) == (77, "rejected")
    newer = lab.release("3.0", 3000)
    go(lab)
    assert loader.listing(lab.sysroot.esp)[0].id == newer.id


def test_a_rewritten_manifest_of_the_running_deployment(lab: Lab) -> None:
    """Root makes the running release look ancient, to be sent back to a vulnerable one."""
    lab.release("0.9", 900)
    path = lab.sysroot.deployments / lab.running.id / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"timestamp":1000', b'"timestamp":1'))
    with pytest.raises(VerificationError, match="not genuine"):
        go(lab)


def test_another_genuine_manifest_in_its_place(lab: Lab) -> None:
    write_release(lab.sysroot.deployments / lab.running.id, "0.5", 500)
    with pytest.raises(VerificationError, match="another deployment"):
        go(lab)


@pytest.mark.parametrize("file", ["image", "uki.efi", "rescue.parts"])
def test_swapped_files_are_refused(lab: Lab, file: str) -> None:
    new = lab.release("2.0", 2000)
    path = lab.web / "releases/2.0" / file
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    before = lab.entries()
    with pytest.raises(VerificationError, match=r"not (the|usable)"):
        go(lab)
    assert lab.entries() == before
    assert lab.sysroot.deployment(new.id) is None
    assert not (lab.sysroot.images / new.image_digest).exists() or file != "image"
    path.write_bytes(good)
    go(lab)
    assert loader.listing(lab.sysroot.esp)[0].id == new.id


@pytest.mark.parametrize("evil", [b"MZ evil", b"", b"x" * 100_000])
def test_parts_of_another_rescue_image_are_refused(lab: Lab, evil: bytes) -> None:
    """Sound parts that make the right number of bytes, or another, out of the right image."""
    new = lab.release("2.0", 2000)
    path = lab.web / "releases/2.0/rescue.parts"
    good = path.read_bytes()
    uki = (lab.web / "releases/2.0/uki.efi").read_bytes()
    for wanted in (evil, evil.ljust(new.rescue.size, b"x")[: new.rescue.size]):
        path.write_bytes(parts.describe(uki, wanted))
        with pytest.raises(VerificationError):
            go(lab)
        assert lab.sysroot.deployment(new.id) is None
        assert not (lab.sysroot.deployments / new.id / "rescue.efi").exists()
    path.write_bytes(good)
    go(lab)
    assert lab.rescue(new).exists()


def test_one_at_a_time(lab: Lab) -> None:
    lab.release("2.0", 2000)
    holder = subprocess.Popen(["flock", lab.sysroot.lock_file, "sleep", "30"])
    try:
        while subprocess.run(["flock", "-n", lab.sysroot.lock_file, "true"], check=False).returncode == 0:
            pass
        with pytest.raises(BusyError):
            go(lab)
        with pytest.raises(BusyError):
            upgrade.rollback(lab.sysroot, MONITOR)
    finally:
        holder.terminate()
        holder.wait()


def test_no_room(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.release("2.0", 2000)
    before = lab.entries()
    monkeypatch.setattr(prune, "free_bytes", lambda _: 1 << 20)
    with pytest.raises(FreeholdError, match="no room"):
        go(lab)
    assert lab.entries() == before


def test_old_deployments_make_room(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.install("0.8", 800)
    lab.install("0.9", 900)
    new = lab.release("2.0", 2000)
    monkeypatch.setattr(prune, "free_bytes", lambda _: (1 << 30) if len(lab.entries()) < 3 else 0)
    go(lab)
    assert [entry.version for entry in loader.listing(lab.sysroot.esp)] == ["2.0", "1.0", "0.9"]
    assert loader.listing(lab.sysroot.esp)[0].id == new.id


class PowerCut(BaseException):
    """The machine lost power: nothing after this reaches the disk."""


def cut_after(monkeypatch: pytest.MonkeyPatch, steps: int, *, done: bool) -> Callable[[], int]:
    """Make the durable step number ``steps`` the last (carried out or not); how many there were.

    The ESP is FAT: a renamed file that was not flushed under its new name is empty after the cut.
    """
    count = 0
    unflushed: dict[int, Path] = {}

    def cut() -> None:
        for path in unflushed.values():
            path.write_bytes(b"")
        unflushed.clear()
        raise PowerCut

    def follow(name: str, arguments: tuple[object, ...]) -> None:
        if name == "rename" and "esp" in Path(str(arguments[1])).parts:
            target = Path(str(arguments[1]))
            unflushed[target.stat().st_ino] = target
        elif name == "fsync":
            assert isinstance(arguments[0], int)
            unflushed.pop(os.fstat(arguments[0]).st_ino, None)

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def wrapped(*arguments: object, **options: object) -> object:
            nonlocal count
            count += 1
            if count > steps or (count == steps and not done):
                cut()
            result = real(*arguments, **options)
            follow(name, arguments)
            if count == steps:
                cut()
            return result

        monkeypatch.setattr(os, name, wrapped)

    for name in ("rename", "replace", "fsync", "unlink", "mkdir", "rmdir", "ftruncate", "pwrite"):
        wrap(name)
    def counted() -> int:
        assert not unflushed, "not durable when the command said that it was done"
        return count

    return counted


def check_bootable(lab: Lab, new_id: str) -> None:
    """Whatever boots first is whole: the UKI is the published one, image, manifest and ref are there."""
    entries = loader.listing(lab.sysroot.esp)
    assert any(entry.id == lab.running.id for entry in entries)
    for entry in entries:
        assert entry.id in (lab.running.id, new_id)
        deployment = lab.sysroot.deployment(entry.id)
        assert deployment is not None
        uki = (lab.sysroot.esp / "EFI/Linux" / entry.name).read_bytes()
        assert len(uki) == deployment.manifest.uki.size
        assert stage._sha256(lab.sysroot.esp / "EFI/Linux" / entry.name) == deployment.manifest.uki.sha256
        # The rescue entry was there first.
        assert stage._sha256(lab.rescue(deployment.manifest)) == deployment.manifest.rescue.sha256
        image = lab.sysroot.images / deployment.manifest.image_digest
        assert lab.sysroot.verity.measure(image) == bytes.fromhex(deployment.manifest.image_digest)
        if entry.id == new_id:
            assert new_id in content.references(lab.sysroot)
            assert lab.sysroot.verity.measure(content.object_path(lab.sysroot.repo, "0b" + "d" * 62)) is not None


def run_cuts(lab: Lab, monkeypatch: pytest.MonkeyPatch, action: Callable[[], object], check: Callable[[], None]) -> int:
    """Cut ``action`` before and after each durable step; each time from the same disk, checked, and run again."""
    saved = lab.root / "saved"
    parts = ("sysroot", "esp")
    for part in parts:
        shutil.copytree(lab.root / part, saved / part, symlinks=True)
    number = 0
    while True:
        number += 1
        finished = False
        for done in (False, True):
            for part in parts:
                shutil.rmtree(lab.root / part)
                shutil.copytree(saved / part, lab.root / part, symlinks=True)
            with monkeypatch.context() as patch:
                steps = cut_after(patch, number, done=done)
                try:
                    action()
                    finished = steps() < number
                except PowerCut:
                    pass
            check()
            action()
            check()
        if finished:
            return number


def test_a_power_cut_at_every_step_of_an_upgrade(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    new = lab.release("2.0", 2000)
    steps = run_cuts(lab, monkeypatch, lambda: go(lab), lambda: check_bootable(lab, new.id))
    assert steps > 20
    assert loader.listing(lab.sysroot.esp)[0].id == new.id


def test_a_power_cut_while_the_kernel_is_copied(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    new = lab.release("2.0", 2000)

    def half(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:1000])
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(stage, "_copy", half)
        with pytest.raises(PowerCut):
            go(lab)
    check_bootable(lab, new.id)
    assert loader.listing(lab.sysroot.esp)[0].id == lab.running.id
    go(lab)
    check_bootable(lab, new.id)
    assert loader.listing(lab.sysroot.esp)[0].id == new.id


def test_an_esp_that_forgets(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.release("2.0", 2000)
    before = lab.entries()
    monkeypatch.setattr(stage, "_copy", lambda source, target: target.write_bytes(source.read_bytes()[:-1]))
    with pytest.raises(FreeholdError, match="read back"):
        go(lab)
    assert lab.entries() == before


def test_the_kernel_is_flushed_before_it_is_named(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    new = lab.release("2.0", 2000)
    flushed: set[int] = set()
    named: list[tuple[str, bool]] = []
    fsync, rename = os.fsync, os.rename

    def seen_fsync(fd: int) -> None:
        flushed.add(os.fstat(fd).st_ino)
        fsync(fd)

    def seen_rename(source: Path, target: Path) -> None:
        named.append((Path(target).name, Path(source).stat().st_ino in flushed))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "rename", seen_rename)
    go(lab)
    assert (f"freehold-2.0-{new.id}+3.efi", True) in named
    assert (lab.rescue(new).name, True) in named
    assert (new.image_digest, True) in named
    assert all(was for _, was in named)


def test_cleanup_and_cuts(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.install("0.7", 700)
    lab.install("0.8", 800)
    kept = lab.install("0.9", 900)
    (lab.sysroot.images / ".tmp-left").write_text("x")
    left = lab.sysroot.esp / loader.LINUX / f"freehold-3-{'3' * 16}+3.efi"
    left.touch()
    assert left.name not in {entry.name for entry in loader.listing(lab.sysroot.esp)}
    lost = left.with_name(f"freehold-rescue-3-{'3' * 16}.efi")
    lost.touch()
    alone = left.with_name(f"freehold-rescue-0.1-{'1' * 16}.efi")
    alone.write_bytes(b"MZ of a deployment that is gone")
    assert [entry.name for entry in loader.rescues(lab.sysroot.esp)] == [name for name in lab.rescues() if name != lost.name]

    def check() -> None:
        for entry in loader.both(loader.listing(lab.sysroot.esp), loader.rescues(lab.sysroot.esp)):
            if entry.name != alone.name:
                deployment = lab.sysroot.deployment(entry.id)
                assert deployment is not None
                assert (lab.sysroot.images / deployment.manifest.image_digest).exists()

    assert run_cuts(lab, monkeypatch, lambda: upgrade.cleanup(lab.sysroot, MONITOR), check) > 15
    assert not left.exists()
    assert not lost.exists()
    assert lab.rescues() == sorted(lab.rescue(value).name for value in (lab.running, kept))
    assert {entry.id for entry in loader.listing(lab.sysroot.esp)} == {lab.running.id, kept.id}
    assert content.references(lab.sysroot) == {lab.running.id, kept.id}
    assert {path.name for path in lab.sysroot.images.iterdir()} == {lab.running.image_digest, kept.image_digest}
    assert set((lab.sysroot.repo / "pruned").read_text().split()) == {lab.running.id, kept.id}


def test_cleanup_without_an_esp_removes_nothing(lab: Lab) -> None:
    lab.install("0.9", 900)
    before = sorted(lab.sysroot.images.iterdir())
    shutil.rmtree(lab.sysroot.esp / "EFI")
    with pytest.raises(NotHereError, match="not mounted"):
        upgrade.cleanup(lab.sysroot, MONITOR)
    assert sorted(lab.sysroot.images.iterdir()) == before


def test_cleanup_spares_objects_of_an_unreadable_deployment(lab: Lab) -> None:
    lab.install("0.7", 700)
    lab.install("0.9", 900)
    (lab.sysroot.deployments / lab.running.id / "manifest.json").unlink()
    upgrade.cleanup(lab.sysroot, MONITOR)
    assert not (lab.sysroot.repo / "pruned").exists()
    assert lab.running.id in {entry.id for entry in loader.listing(lab.sysroot.esp)}


A, B, C, D, E = (letter * 16 for letter in "abcde")


@pytest.mark.parametrize(
    ("entries", "booted", "pinned", "tight", "kept"),
    [
        ([Entry("3", C), Entry("2", B), Entry("1", A)], C, [], False, {C, B}),
        ([Entry("3", C), Entry("2", B), Entry("1", A)], C, [A], False, {C, B, A}),
        ([Entry("4", D, 3), Entry("3", C), Entry("2", B), Entry("1", A)], C, [], False, {D, C, B}),
        ([Entry("4", D, 0, 3), Entry("3", C), Entry("2", B)], C, [], False, {D, C, B}),
        ([Entry("4", D, 0, 3), Entry("3", C), Entry("2", B)], C, [], True, {C}),
        ([Entry("3", C, 2, 1), Entry("2", B), Entry("1", A)], C, [], True, {C, B}),
        ([Entry("3", C, 0), Entry("2", B), Entry("1", A)], B, [], False, {C, B}),
        ([Entry("3", C), Entry("2", B, 0, 3), Entry("1", A)], C, [], False, {C, A}),
    ],
)
def test_what_stays(entries: list[Entry], booted: str, pinned: list[str], tight: bool, kept: set[str]) -> None:
    assert prune.keep(entries, booted, pinned, tight=tight) == kept


def test_rollback_report(lab: Lab) -> None:
    old = lab.install("0.9", 900)
    report = upgrade.rollback(lab.sysroot, MONITOR)
    assert report.data["next"] == {"version": "0.9", "id": old.id}
    assert loader.listing(lab.sysroot.esp)[0].id == old.id


def test_rollback_leaves_rescue_entries_alone(lab: Lab) -> None:
    lab.install("0.9", 900)
    before = lab.rescues()
    for _ in range(2):
        upgrade.rollback(lab.sysroot, MONITOR)
        assert lab.rescues() == before


def test_room_for_both_kernels(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    new = lab.release("2.0", 2000)
    need = new.uki.size + new.rescue.size + stage.ESP_RESERVE
    free = need - 1
    monkeypatch.setattr(prune, "free_bytes", lambda path: free if path == lab.sysroot.esp else 1 << 40)
    before = lab.entries(), lab.rescues()
    with pytest.raises(FreeholdError, match="no room"):
        go(lab)
    assert (lab.entries(), lab.rescues()) == before
    free = need
    go(lab)
    assert lab.rescue(new).exists()


def test_a_foreign_machine(lab: Lab) -> None:
    (lab.sysroot.system / "proc/cmdline").write_text("quiet\n")
    with pytest.raises(NotHereError, match="does not run"):
        go(lab)
    with pytest.raises(NotHereError, match="does not run"):
        upgrade.rollback(lab.sysroot, MONITOR)


def test_configuration_layers(lab: Lab) -> None:
    lab.configure("http://etc.example", "etc/freehold/update.toml")
    assert lab.sysroot.update_config("open").url == "http://etc.example"
    assert lab.sysroot.update_config("locked").url.startswith("http://127.0.0.1")
    lab.configure("http://factory.example", "usr/etc/freehold/update.toml")
    assert lab.sysroot.update_config("locked").url == "http://factory.example"
    # Root can put files there; what the owner committed is read out of the image (test_committed).
    lab.configure("http://evil.example", "run/freehold/config/freehold/update.toml")
    assert lab.sysroot.update_config("locked").url == "http://factory.example"
    assert lab.sysroot.update_config("open").url == "http://evil.example"


@pytest.mark.parametrize(
    "text", ["", "update = 1", "[update]", '[update]\nurl = "file:///"', '[update]\nurl="http://h"\nstream="../x"', "["]
)
def test_faulty_configuration(text: str) -> None:
    with pytest.raises(InputError):
        parse_update_config(text.encode(), Path("update.toml"))


def test_history_is_bounded_and_survives_half_lines(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    record(lab.sysroot, "staged", version="1")
    with (lab.sysroot.state / "history.jsonl").open("a") as sink:
        sink.write('{"half\n')
    record(lab.sysroot, "staged", version="2")
    assert [event["version"] for event in history(lab.sysroot)] == ["1", "2"]
    monkeypatch.setattr("freehold.device.sysroot.HISTORY_LIMIT", 400)
    for number in range(20):
        record(lab.sysroot, "staged", version=str(number))
    assert history(lab.sysroot)[-1]["version"] == "19"
    assert len(history(lab.sysroot)) < 12


def test_upgrade_with_the_real_ostree(tmp_path: Path) -> None:
    prefix = real_ostree(tmp_path)
    if prefix is None:
        pytest.skip("needs ostree: on this host, or in the tools tree that the builder makes")

    def ostree(repo: Path, *arguments: str | Path) -> str:
        argv = [*prefix, f"--repo={repo}", *map(str, arguments)]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()

    lab = Lab(tmp_path / "lab")
    tree = tmp_path / "tree/usr"
    tree.mkdir(parents=True)
    (tree / "file").write_text("content")
    (tree / "link").symlink_to("file")
    lab.web.mkdir()
    ostree(lab.web / "repo", "init", "--mode=archive")
    commit = ostree(lab.web / "repo", "commit", "--orphan", tmp_path / "tree")
    shutil.rmtree(lab.sysroot.repo)
    ostree(lab.sysroot.repo, "init", "--mode=bare")
    # Root's idea of a repository: must not matter.
    with (lab.sysroot.repo / "config").open("a") as sink:
        sink.write('[remote "freehold"]\nurl=http://127.0.0.1:1/\ngpg-verify=true\n')
    new = lab.release("2.0", 2000, commit=commit)
    sysroot = lab.sysroot._replace(ostree=tuple(prefix), verity=UserVerity())
    lab.sysroot = sysroot
    with serving(lab.web) as url:
        lab.configure(url)
        go(lab)
        assert loader.listing(sysroot.esp)[0].id == new.id
        (checksum,) = content.file_objects(ostree(sysroot.repo, "ls", "-R", "-C", commit))
        path = content.object_path(sysroot.repo, checksum)
        assert path.read_text() == "content"
        assert sysroot.verity.measure(path) is not None
        assert content.references(sysroot) == {new.id}
        # An object that a mirror swapped is refused by its name.
        lab.boot("2.0", 2000)
        (tree / "file").write_text("other")
        commit = ostree(lab.web / "repo", "commit", "--orphan", tmp_path / "tree")
        (served,) = content.file_objects(ostree(lab.web / "repo", "ls", "-R", "-C", commit))
        bad = lab.web / f"repo/objects/{served[:2]}/{served[2:]}.filez"
        bad.write_bytes((lab.web / f"repo/objects/{checksum[:2]}/{checksum[2:]}.filez").read_bytes())
        lab.release("3.0", 3000, commit=commit)
        before = lab.entries()
        with pytest.raises(FreeholdError, match="could not be fetched"):
            go(lab)
        assert lab.entries() == before
