# SPDX-License-Identifier: Apache-2.0
"""``freehold rescue …`` from its arguments to its report: what is asked, what a dry run writes, what is refused."""

from __future__ import annotations

import argparse
import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_release import OBJECT, Lab, key, write_release

from freehold.build.disk import identity_of, partition_table
from freehold.device import content, loader
from freehold.device.sysroot import Sysroot
from freehold.errors import FreeholdError
from freehold.lock import intent as intents
from freehold.lock.intent import Intent
from freehold.monitor import NullMonitor
from freehold.report import Report
from freehold.rescue import esp, target, verbs
from freehold.rescue.target import Target

MONITOR = NullMonitor()
MACHINE = "0123456789abcdef0123456789abcdef"


class Bench:
    """A machine's disk and the stick that it is repaired from, both directories."""

    def __init__(self, tmp_path: Path) -> None:
        self.machine, self.stick = Lab(tmp_path / "machine"), Lab(tmp_path / "stick")
        self.fat = True
        self.made_fat = 0
        for lab, version in ((self.machine, "1.0"), (self.stick, "1.0")):
            (uki,) = (lab.sysroot.esp / "EFI/Linux" / name for name in lab.entries() if version in name)
            shutil.copyfile(uki, lab.sysroot.deployments / lab.running.id / "uki.efi")
            shutil.copyfile(lab.rescue(lab.running), lab.sysroot.deployments / lab.running.id / "rescue.efi")
            for loader_name in esp.LOADERS:
                path = lab.sysroot.esp / loader_name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"MZ loader")
            for file, text in esp.CONFIGURATION.items():
                (lab.sysroot.esp / file).parent.mkdir(exist_ok=True)
                (lab.sysroot.esp / file).write_text(text)
        owner = self.machine.sysroot.root / "owner"
        owner.mkdir()
        (owner / "id").write_text(f"{MACHINE}\n")
        (self.stick.sysroot.system / "usr/etc").mkdir(parents=True)
        # The stick runs a release of its own.
        value = write_release(tmp_path / "new", "1.5", 1500)
        directory = self.stick.sysroot.deployments / value.id
        directory.mkdir()
        for name in ("manifest.json", "manifest.json.sig", "uki.efi", "rescue.efi"):
            shutil.copyfile(tmp_path / "new" / name, directory / name)
        shutil.copyfile(tmp_path / "new/image", self.stick.sysroot.images / value.image_digest)
        (self.stick.sysroot.images / value.image_digest).chmod(0o444)
        (self.stick.sysroot.system / "proc/cmdline").write_text(f"freehold.image={value.image_digest}\n")
        (self.stick.sysroot.system / "proc/mounts").write_text("/dev/vda2 /sysroot ext4 rw 0 0\n")
        thing = content.object_path(self.stick.sysroot.repo, OBJECT)
        thing.parent.mkdir(parents=True)
        thing.write_text("content\n")
        thing.chmod(0o444)
        self.new = value

    def wipe(self) -> None:
        """Nothing on the boot partition can be read."""
        self.fat = False

    @contextlib.contextmanager
    def sysroot_of(self, found: Target, running: Sysroot, *, write: bool, with_esp: bool = True) -> Iterator[Sysroot]:
        place = self.machine.sysroot.esp if with_esp else self.machine.root / "no-esp"
        place.mkdir(exist_ok=True)
        assert not with_esp or self.fat, "a boot partition that cannot be read was mounted"
        yield running._replace(root=self.machine.sysroot.root, esp=place, ostree=self.machine.sysroot.ostree)

    def make_fat(self, device: Path) -> None:
        assert device == Path("/dev/vdb1")
        shutil.rmtree(self.machine.sysroot.esp)
        self.machine.sysroot.esp.mkdir()
        self.fat, self.made_fat = True, self.made_fat + 1

    def files(self) -> dict[str, bytes]:
        """All of the machine's disk."""
        tops = (self.machine.sysroot.root, self.machine.sysroot.esp)
        return {str(path): path.read_bytes() for top in tops for path in top.rglob("*") if path.is_file()}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench(tmp_path)
    monkeypatch.setattr(verbs, "Sysroot", lambda: made.stick.sysroot)
    monkeypatch.setattr(target, "find", lambda disk: Target(disk, Path("/dev/vdb2"), Path("/dev/vdb1")))
    monkeypatch.setattr(target, "usable_fat", lambda device: made.fat)
    monkeypatch.setattr(target, "make_fat", made.make_fat)
    monkeypatch.setattr(target, "sysroot_of", made.sysroot_of)
    return made


def go(verb: str, *words: str) -> Report:
    row = next(row for row in verbs.VERBS if row[0] == verb)
    parser = argparse.ArgumentParser()
    row[2](parser)
    return row[3](parser.parse_args(["--disk", "/dev/vdb", *words]), MONITOR)


def test_status_writes_nothing(bench: Bench) -> None:
    before = bench.files()
    report = go("status")
    assert bench.files() == before
    assert report.data["esp_usable"] is True
    assert f"good  1.0 ({bench.machine.running.id})" in report.text
    bench.wipe()
    report = go("status")
    assert report.data["esp_usable"] is False
    assert "repair-esp" in report.text.splitlines()[-1]


def test_repair_of_a_wiped_boot_partition(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert go("repair-esp", "--yes").data["steps"] == []
    bench.wipe()
    before = bench.files()
    dry = go("repair-esp", "--dry-run")
    assert dry.data["done"] is False
    assert "new FAT" in dry.text
    monkeypatch.setattr("builtins.input", lambda prompt: "vda")
    with pytest.raises(FreeholdError, match="nothing was done"):
        go("repair-esp")
    assert (bench.files(), bench.made_fat) == (before, 0)
    monkeypatch.setattr("builtins.input", lambda prompt: "vdb")
    done = go("repair-esp")
    assert done.data["done"] is True
    assert bench.made_fat == 1
    assert [entry.id for entry in loader.listing(bench.machine.sysroot.esp)] == [bench.machine.running.id]


def test_no_empty_file_system_is_made_for_nothing(bench: Bench) -> None:
    """A wiped boot partition and no boot image that could be believed: what a better tool may read stays."""
    bench.wipe()
    for name in ("uki.efi", "rescue.efi"):
        (bench.machine.sysroot.deployments / bench.machine.running.id / name).write_bytes(b"MZ other")
    with pytest.raises(FreeholdError, match="nothing was done"):
        go("repair-esp", "--yes")
    assert bench.made_fat == 0


@pytest.mark.parametrize("wiped", [False, True])
def test_install(bench: Bench, wiped: bool) -> None:
    if wiped:
        bench.wipe()
    before = bench.files()
    assert go("install", "--dry-run").data["done"] is False
    assert bench.files() == before
    assert go("install", "--yes").data["done"] is True
    assert loader.listing(bench.machine.sysroot.esp)[0].id == bench.new.id
    assert bench.made_fat == int(wiped)


def test_adopt(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    monkeypatch.setattr(verbs, "Path", lambda name: bench.stick.sysroot.system / "usr/etc" if name == "/usr/etc" else Path(name))
    private = key("owner", "the old owner").private
    wanted = Intent(machine=MACHINE, serial=3, lock="locked", since=1)
    path = bench.machine.sysroot.root / "owner/intent"
    path.write_bytes(intents.sign(wanted, lambda data: private.sign(data, padding.PKCS1v15(), hashes.SHA256())))
    with pytest.raises(FreeholdError, match="does not know the owner"):
        go("install", "--yes")
    before = bench.files()
    dry = go("adopt", "--dry-run")
    assert "set owner/intent aside" in dry.text
    assert bench.files() == before
    done = go("adopt", "--yes")
    assert any("set aside: owner/intent.aside-" in line for line in done.text.splitlines())
    assert not path.exists()
    assert loader.listing(bench.machine.sysroot.esp)[0].id == bench.new.id


def test_ones_own_disk_is_refused_by_every_verb(bench: Bench) -> None:
    (bench.stick.sysroot.system / "proc/mounts").write_text("/dev/vdb2 /sysroot ext4 rw 0 0\n")
    before = bench.files()
    for verb in ("status", "repair-esp", "install", "adopt"):
        with pytest.raises(FreeholdError, match="own disk"):
            go(verb, *(["--yes"] if verb != "status" else []))
    assert bench.files() == before


def test_a_stick_has_ids_of_its_own() -> None:
    """Or a machine with the same release would not know which of two disks it was started from."""
    digest = "ab" * 32
    tables = [partition_table(8 << 30, identity_of(digest, stick=stick)) for stick in (False, True)]
    ids = [{word for word in table.replace(",", " ").split() if word.startswith("uuid=")} for table in tables]
    assert len(ids[0]) == len(ids[1]) == 2
    assert not ids[0] & ids[1]
    assert tables[0].count("name=freehold-root") == tables[1].count("name=freehold-root") == 1
