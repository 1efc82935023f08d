# SPDX-License-Identifier: Apache-2.0
"""Repairing a machine's disk from a stick, both in directories: what is believed, what is written, what a cut leaves."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from lab_release import COMMIT, OBJECT, Lab, UserVerity, key, manifest, real_ostree, write_release

from freehold import atomic
from freehold.device import content, loader, prune
from freehold.device.trust import trusted_boot
from freehold.errors import FreeholdError, InputError, NotHereError, VerificationError
from freehold.keys.verify import Keychain
from freehold.lock import intent as intents
from freehold.lock.intent import Intent
from freehold.monitor import NullMonitor
from freehold.rescue import esp, install, merge, target, verbs
from freehold.rescue.install import Source
from freehold.update.manifest import Manifest

MONITOR = NullMonitor()
MACHINE = "0123456789abcdef0123456789abcdef"
LOCKED = Intent(machine=MACHINE, serial=7, lock="locked", since=5)


class CutError(Exception):
    """The power goes."""


def keychain(lab: Lab) -> Keychain:
    return Keychain.from_directory(lab.sysroot.keychain)


def equip(lab: Lab, value: Manifest) -> None:
    """The copies of the boot images beside the manifest, as a disk has them."""
    found = next((lab.sysroot.esp / "EFI/Linux").glob(f"freehold-{value.version}-{value.id}*.efi"))
    shutil.copyfile(found, lab.sysroot.deployments / value.id / "uki.efi")
    shutil.copyfile(lab.rescue(value), lab.sysroot.deployments / value.id / "rescue.efi")


@pytest.fixture
def machine(tmp_path: Path) -> Lab:
    """Two deployments, whole."""
    lab = Lab(tmp_path / "machine")
    equip(lab, lab.running)
    equip(lab, lab.install("2.0", 2000))
    boot_loader(lab)
    owner = lab.sysroot.root / "owner"
    owner.mkdir()
    (owner / "id").write_text(f"{MACHINE}\n")
    return lab


def boot_loader(lab: Lab) -> Path:
    for name in esp.LOADERS:
        path = lab.sysroot.esp / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"MZ loader")
    return lab.sysroot.esp / esp.LOADERS[0]


@pytest.fixture
def good_loader(tmp_path: Path) -> Path:
    path = tmp_path / "BOOTX64.EFI"
    path.write_bytes(b"MZ the stick's loader")
    return path


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def wipe(lab: Lab) -> None:
    shutil.rmtree(lab.sysroot.esp)
    lab.sysroot.esp.mkdir()


def test_a_wiped_boot_partition_is_made_again(machine: Lab, good_loader: Path) -> None:
    before = {name: data for name, data in files(machine.sysroot.esp).items() if name.startswith("EFI/Linux")}
    wipe(machine)
    wanted = esp.plan(machine.sysroot, keychain(machine), good_loader)
    assert wanted.complaints == ()
    esp.carry_out(machine.sysroot.esp, wanted)
    after = files(machine.sysroot.esp)
    assert {name.split("+")[0].removesuffix(".efi"): data for name, data in after.items() if name.startswith("EFI/Linux")} == {
        name.split("+")[0].removesuffix(".efi"): data for name, data in before.items()
    }
    assert [entry.version for entry in loader.listing(machine.sysroot.esp)] == ["2.0", "1.0"]
    assert all(entry.left == 3 for entry in loader.listing(machine.sysroot.esp))
    assert {after[name] for name in esp.LOADERS} == {good_loader.read_bytes()}
    assert "editor no" in after["loader/loader.conf"].decode()
    # Then there is nothing left to do.
    assert esp.plan(machine.sysroot, keychain(machine), good_loader).steps == ()


@pytest.mark.parametrize("at", range(9))
def test_a_cut_while_repairing_leaves_no_boot_loader_before_its_entries(
    machine: Lab, good_loader: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wipe(machine)
    moves: list[Path] = []
    real = loader.move

    def move(source: Path, goal: Path) -> None:
        if len(moves) == at:
            raise CutError
        moves.append(goal)
        real(source, goal)

    monkeypatch.setattr(loader, "move", move)
    wanted = esp.plan(machine.sysroot, keychain(machine), good_loader)
    if at < len(wanted.steps):
        with pytest.raises(CutError):
            esp.carry_out(machine.sysroot.esp, wanted)
    else:
        esp.carry_out(machine.sysroot.esp, wanted)
    if any((machine.sysroot.esp / name).exists() for name in esp.LOADERS):
        assert len(esp.entries(machine.sysroot.esp)) == len(loader.rescues(machine.sysroot.esp)) == 2
    for entry in esp.entries(machine.sysroot.esp):
        path = machine.sysroot.esp / "EFI/Linux" / entry.name
        known = machine.sysroot.deployment(entry.id)
        assert known is not None
        assert esp.sha256(path, 1 << 30) == known.manifest.uki.sha256
        # Its rescue entry was there before it.
        assert esp.sha256(machine.rescue(known.manifest), 1 << 30) == known.manifest.rescue.sha256
    monkeypatch.setattr(loader, "move", real)
    esp.carry_out(machine.sysroot.esp, esp.plan(machine.sysroot, keychain(machine), good_loader))
    assert esp.plan(machine.sysroot, keychain(machine), good_loader).steps == ()


def test_a_damaged_boot_image_keeps_its_place(machine: Lab) -> None:
    (name,) = [one for one in machine.entries() if one.startswith("freehold-1.0")]
    path = machine.sysroot.esp / "EFI/Linux" / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    wanted = esp.plan(machine.sysroot, keychain(machine), None)
    assert [step.target for step in wanted.steps if step.target.startswith("EFI/Linux")] == [f"EFI/Linux/{name}"]
    esp.carry_out(machine.sysroot.esp, wanted)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_rescue_entry_comes_back(machine: Lab, damage: str) -> None:
    path = machine.rescue(machine.running)
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    wanted = esp.plan(machine.sysroot, keychain(machine), None)
    assert [(step.target, step.why) for step in wanted.steps if step.target.startswith("EFI/Linux")] == [
        (f"EFI/Linux/{path.name}", f"the rescue image of 1.0 is {'missing' if damage == 'missing' else 'damaged'}")
    ]
    esp.carry_out(machine.sysroot.esp, wanted)
    assert path.read_bytes() == whole
    # From its own copy only, never from the boot image's.
    copy = machine.sysroot.deployments / machine.running.id / "rescue.efi"
    shutil.copyfile(copy.with_name("uki.efi"), copy)
    path.unlink()
    wanted = esp.plan(machine.sysroot, keychain(machine), None)
    assert any("no sound copy of its rescue image" in text for text in wanted.complaints)
    assert not any(step.target.startswith("EFI/Linux") for step in wanted.steps)


def test_nothing_unsigned_comes_onto_the_boot_partition(machine: Lab, good_loader: Path) -> None:
    """A copy that was changed, and a manifest that was changed to fit it."""
    wipe(machine)
    directory = machine.sysroot.deployments / machine.running.id
    (directory / "uki.efi").write_bytes(b"MZ evil")
    wanted = esp.plan(machine.sysroot, keychain(machine), good_loader)
    assert any("no sound copy" in text for text in wanted.complaints)
    assert sum(step.target.startswith("EFI/Linux") for step in wanted.steps) == 3
    value = json.loads((directory / "manifest.json").read_text())
    value["uki"].update(sha256=esp.sha256(directory / "uki.efi", 1 << 20), size=7)
    (directory / "manifest.json").write_text(json.dumps(value, sort_keys=True, separators=(",", ":")))
    wanted = esp.plan(machine.sysroot, keychain(machine), good_loader)
    assert any("not genuine" in text for text in wanted.complaints)
    assert sum(step.target.startswith("EFI/Linux") for step in wanted.steps) == 2
    # The control: signed by the release key, the same bytes go there.
    signature = key("release", "vendor").sign((directory / "manifest.json").read_bytes())
    (directory / "manifest.json.sig").write_bytes(signature)
    assert sum(s.target.startswith("EFI/Linux") for s in esp.plan(machine.sysroot, keychain(machine), good_loader).steps) == 4


def test_a_link_is_no_boot_image(machine: Lab, good_loader: Path) -> None:
    wipe(machine)
    copy = machine.sysroot.deployments / machine.running.id / "uki.efi"
    copy.rename(copy.with_name("elsewhere"))
    copy.symlink_to("elsewhere")
    wanted = esp.plan(machine.sysroot, keychain(machine), good_loader)
    assert any("no sound copy" in text for text in wanted.complaints)


def test_no_room_is_said_before_anything_is_written(
    machine: Lab, good_loader: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wipe(machine)
    monkeypatch.setattr(prune, "free_bytes", lambda path: 4096)
    with pytest.raises(FreeholdError, match="MiB are needed"):
        esp.carry_out(machine.sysroot.esp, esp.plan(machine.sysroot, keychain(machine), good_loader))
    assert files(machine.sysroot.esp) == {}


@pytest.fixture
def stick(tmp_path: Path) -> Source:
    """A stick with a release of its own: an older version than the machine's."""
    return made_stick(tmp_path, None)


@pytest.fixture
def real_stick(tmp_path: Path) -> Source:
    """The same with a real repository."""
    prefix = real_ostree(tmp_path)
    if prefix is None:
        pytest.skip("needs ostree: on this host, or in the tools tree that the builder makes")
    return made_stick(tmp_path, prefix)


def made_stick(tmp_path: Path, prefix: list[str] | None) -> Source:
    lab = Lab(tmp_path / "stick")
    if prefix is None:
        commit = COMMIT
        path = content.object_path(lab.sysroot.repo, OBJECT)
        path.parent.mkdir(parents=True)
        path.write_text("content\n")
    else:
        tree = tmp_path / "tree/usr"
        tree.mkdir(parents=True)
        (tree / "file").write_text("content")
        (tree / "empty").write_text("")
        (tree / "link").symlink_to("file")
        shutil.rmtree(lab.sysroot.repo)
        ostree(prefix, lab.sysroot.repo, "init", "--mode=bare")
        commit = ostree(prefix, lab.sysroot.repo, "commit", "--orphan", tmp_path / "tree")
    value = write_release(tmp_path / "scratch", "1.5", 1500, commit=commit)
    directory = lab.sysroot.deployments / value.id
    directory.mkdir(parents=True)
    for name in ("manifest.json", "manifest.json.sig", "uki.efi", "rescue.efi"):
        shutil.copyfile(tmp_path / "scratch" / name, directory / name)
    shutil.copyfile(tmp_path / "scratch/image", lab.sysroot.images / value.image_digest)
    (lab.sysroot.images / value.image_digest).chmod(0o444)
    _, image, _ = manifest("1.5", 1500)
    assert len(image) == value.image_size
    (lab.sysroot.system / "proc/cmdline").write_text(f"freehold.image={value.image_digest}\n")
    boot_loader(lab)
    sysroot = lab.sysroot._replace(ostree=tuple(prefix)) if prefix else lab.sysroot
    for checksum in content.objects(sysroot, commit):
        content.object_path(sysroot.repo, checksum).chmod(0o444)
    return install.source_of(sysroot)


def ostree(prefix: list[str], repo: Path, *arguments: str | Path) -> str:
    argv = [*prefix, f"--repo={repo}", *map(str, arguments)]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def broken(machine: Lab) -> Lab:
    """A machine whose two deployments failed, with a locked intent and data."""
    for name in machine.entries():
        path = machine.sysroot.esp / "EFI/Linux" / name
        path.rename(path.with_name(name.replace(".efi", "+0-3.efi")))
    var = machine.sysroot.root / "var/home/alice"
    var.mkdir(parents=True)
    (var / "letter").write_text("dear")
    sign(machine, LOCKED)
    return machine


def sign(lab: Lab, wanted: Intent, name: str = "me") -> None:
    """Put ``wanted`` into force. The lab's signer of documents makes the raw signature that an intent carries as well."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    private = key("owner", name).private
    signed = intents.sign(wanted, lambda data: private.sign(data, padding.PKCS1v15(), hashes.SHA256()))
    (lab.sysroot.root / "owner").mkdir(exist_ok=True)
    (lab.sysroot.root / "owner/intent").write_bytes(signed)


def test_install_makes_the_sticks_release_boot_next(broken: Lab, real_stick: Source) -> None:
    stick = real_stick
    prefix = list(stick.sysroot.ostree)
    shutil.rmtree(broken.sysroot.repo)
    ostree(prefix, broken.sysroot.repo, "init", "--mode=bare")
    broken.sysroot = broken.sysroot._replace(ostree=tuple(prefix))
    kept = {name: data for name, data in files(broken.sysroot.root).items() if name.startswith(("var", "owner", "deployments"))}
    install.check_install(broken.sysroot, stick)
    entry = install.install(broken.sysroot, stick, MONITOR)
    wanted = stick.deployment.manifest
    assert (entry.id, entry.left) == (wanted.id, 3)
    assert esp.sha256(broken.rescue(wanted), 1 << 30) == wanted.rescue.sha256
    assert loader.listing(broken.sysroot.esp)[0] == entry
    assert broken.sysroot.verity.measure(broken.sysroot.images / wanted.image_digest) == bytes.fromhex(wanted.image_digest)
    assert content.references(broken.sysroot) == {wanted.id}
    for checksum in content.objects(broken.sysroot, wanted.commit):
        assert broken.sysroot.verity.measure(content.object_path(broken.sysroot.repo, checksum)) is not None
    found = broken.sysroot.deployment(wanted.id)
    assert found is not None
    after = files(broken.sysroot.root)
    assert {name: after.get(name) for name in kept} == kept
    # Again: nothing more to do, nothing changed.
    assert install.install(broken.sysroot, stick, MONITOR).id == wanted.id
    # Again, with only the rescue entry lost; another deployment's stays lost.
    broken.rescue(wanted).unlink()
    broken.rescue(broken.running).unlink()
    install.install(broken.sysroot, stick, MONITOR)
    assert esp.sha256(broken.rescue(wanted), 1 << 30) == wanted.rescue.sha256
    assert not broken.rescue(broken.running).exists()


def test_install_wins_over_a_newer_one_that_boots(broken: Lab, stick: Source) -> None:
    """Its version sorts behind the machine's: whoever installs from a stick wants the stick's."""
    for name in broken.entries():
        path = broken.sysroot.esp / "EFI/Linux" / name
        path.rename(path.with_name(name.replace("+0-3", "")))
    entry = install.install(broken.sysroot, stick, MONITOR)
    assert loader.listing(broken.sysroot.esp)[0] == entry
    assert {one.state for one in loader.listing(broken.sysroot.esp)[1:]} <= {"set-aside", "good"}


def test_damaged_objects_are_renewed(broken: Lab, stick: Source) -> None:
    install.install(broken.sysroot, stick, MONITOR)
    commit = stick.deployment.manifest.commit
    victim = next(
        path for path in (content.object_path(broken.sysroot.repo, one) for one in content.objects(broken.sysroot, commit))
        if path.stat().st_size
    )  # fmt: skip
    good = victim.read_bytes()
    victim.unlink()  # both disks are one file system here, and ostree made a link
    victim.write_bytes(b"rotten!")
    victim.chmod(0o444)
    assert install.renew_damaged(broken.sysroot, stick, commit) == 1
    assert victim.read_bytes() == good
    assert install.renew_damaged(broken.sysroot, stick, commit) == 0


def test_an_empty_object_has_no_fs_verity_on_the_stick(broken: Lab, stick: Source) -> None:
    """The builder sets none where there is nothing to hash; the machine's own files have it."""
    install.install(broken.sysroot, stick, MONITOR)
    commit = stick.deployment.manifest.commit
    checksum = next(iter(content.objects(broken.sysroot, commit)))
    mine, theirs = (content.object_path(sysroot.repo, checksum) for sysroot in (stick.sysroot, broken.sysroot))
    for path, mode in ((mine, 0o644), (theirs, 0o444)):
        path.unlink()
        path.touch(mode=mode)
    assert install.renew_damaged(broken.sysroot, stick, commit) == 0
    theirs.unlink()
    theirs.write_bytes(b"a good one")
    theirs.chmod(0o444)
    with pytest.raises(VerificationError, match="on the stick has no fs-verity"):
        install.renew_damaged(broken.sysroot, stick, commit)
    assert theirs.read_bytes() == b"a good one", "what lost its content on the stick replaces nothing"
    mine.write_bytes(b"not empty")
    with pytest.raises(VerificationError, match="on the stick has no fs-verity"):
        install.renew_damaged(broken.sysroot, stick, commit)


def test_a_damaged_image_is_renewed(broken: Lab, stick: Source) -> None:
    """Its name, and what the kernel measures of it, say nothing of its blocks: it is read to its end."""
    install.install(broken.sysroot, stick, MONITOR)
    image = broken.sysroot.images / stick.deployment.manifest.image_digest
    good = image.read_bytes()
    image.unlink()
    image.write_bytes(good[:-1] + b"!")
    image.chmod(0o444)
    install.install(broken.sysroot, stick, MONITOR)
    assert image.read_bytes() == good


def test_a_stick_whose_parts_do_not_fit_installs_nothing(stick: Source, broken: Lab) -> None:
    for name in ("uki.efi", "rescue.efi"):
        path = stick.sysroot.deployments / stick.deployment.id / name
        whole = path.read_bytes()
        path.write_bytes(whole + b"x")
        with pytest.raises(VerificationError, match="not the boot image"):
            install.source_of(stick.sysroot)
        path.write_bytes(whole)
    image = stick.sysroot.images / stick.deployment.manifest.image_digest
    image.chmod(0o644)
    image.write_bytes(b"other")
    before = files(broken.sysroot.esp)
    with pytest.raises(VerificationError):
        install.install(broken.sysroot, stick, MONITOR)
    assert files(broken.sysroot.esp) == before
    assert broken.sysroot.deployment(stick.deployment.id) is None


def test_install_refuses_a_machine_that_it_would_lock_for_ever(broken: Lab, stick: Source) -> None:
    install.check_install(broken.sysroot, stick)
    sign(broken, LOCKED, "somebody-else")
    with pytest.raises(FreeholdError, match="does not know the owner") as caught:
        install.check_install(broken.sysroot, stick)
    assert caught.value.hint is not None
    assert "adopt" in caught.value.hint


def steps_of(monkeypatch: pytest.MonkeyPatch, stop: int) -> list[str]:
    """CutError the power before the ``stop``-th durable step; what was done before."""
    done: list[str] = []

    def guarded(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            if len(done) == stop:
                raise CutError
            done.append(f"{name} {arguments[-1]}")
            return real(*arguments, **named)

        return call

    monkeypatch.setattr(atomic, "write", guarded("write", atomic.write))
    monkeypatch.setattr(atomic, "publish", guarded("publish", atomic.publish))
    monkeypatch.setattr(loader, "move", guarded("move", loader.move))
    monkeypatch.setattr(install, "set_aside", guarded("aside", install.set_aside))
    return done


def bootable(lab: Lab) -> set[str]:
    """Deployments with an entry whose boot image is whole, in front of which nothing broken stands."""
    good = set()
    for entry in esp.entries(lab.sysroot.esp):
        known = lab.sysroot.deployment(entry.id)
        if known and esp.sha256(lab.sysroot.esp / "EFI/Linux" / entry.name, 1 << 30) == known.manifest.uki.sha256:
            good.add(entry.id)
    return good


@pytest.mark.parametrize("stop", [*range(24)])
def test_every_cut_of_an_adoption_leaves_a_machine_that_is_whole_and_not_open(
    broken: Lab, stick: Source, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config(broken)
    before = bootable(broken)
    assert len(before) == 2
    letter = broken.sysroot.root / "var/home/alice/letter"
    with monkeypatch.context() as patch:
        done = steps_of(patch, stop)
        try:
            install.install(broken.sysroot, stick, MONITOR)
            install.adopt(broken.sysroot, MONITOR, with_tree, factory=broken.root / "factory")
            finished = True
        except CutError:
            finished = False
    assert bootable(broken) >= before
    assert letter.read_text() == "dear"
    standing = (broken.sysroot.root / "owner/intent").exists()
    if not standing:
        # The last thing that goes: all else is done.
        assert loader.listing(broken.sysroot.esp)[0].id == stick.deployment.id
        assert (broken.sysroot.root / "owner/etc/0/upper/hostname").read_text() == "attic\n"
    # The parameters go as far as there are steps.
    assert finished if stop == 23 else finished or len(done) == stop
    # The next try goes on from there.
    install.install(broken.sysroot, stick, MONITOR)
    install.adopt(broken.sysroot, MONITOR, with_tree, factory=broken.root / "factory")
    assert not (broken.sysroot.root / "owner/intent").exists()
    assert loader.listing(broken.sysroot.esp)[0].id == stick.deployment.id
    assert (broken.sysroot.root / "owner/etc/0/upper/hostname").read_text() == "attic\n"


CONFIG = "ef" * 32


def config(lab: Lab) -> None:
    """A committed /etc with a file, and a factory file that the owner removed."""
    tree = lab.root / "config-tree"
    (tree / "ssh").mkdir(parents=True)
    (tree / "ssh/banner").write_text("mine")
    os.mknod(tree / "issue", 0o600 | stat.S_IFCHR, os.makedev(0, 0))
    images = lab.sysroot.root / "owner/config"
    images.mkdir(exist_ok=True)
    (images / CONFIG).write_text(str(tree))
    factory = lab.root / "factory"
    factory.mkdir()
    for name, text in (("passwd", "root:x:0:0:root:/root:/bin/bash\n"), ("group", "root:x:0:\nshadow:x:42:\n"),
                       ("shadow", "root:*:1::::::\n"), ("gshadow", "root:*::\nshadow:*::\n")):  # fmt: skip
        (factory / name).write_text(text)
    lab.sysroot.state.mkdir(exist_ok=True)
    machine_state = {"format": "freehold-machine-1", "hostname": "attic", "host_keys": [], "accounts": [
        {"name": "alice", "uid": 1000, "gid": 1000, "gecos": "", "home": "/home/alice", "shell": "/bin/bash", "hash": "*",
         "subid": 100000}]}  # fmt: skip
    (lab.sysroot.state / "machine.json").write_text(json.dumps(machine_state))
    sign(lab, replace(LOCKED, config=CONFIG), "the old owner")


def with_tree(image: Path, use: Callable[[Path], None]) -> None:
    """Instead of a mount: the lab's image is the name of a directory."""
    use(Path(image.read_text()))


def test_adopt_keeps_data_and_etc_and_opens(broken: Lab, stick: Source) -> None:
    config(broken)
    owner = broken.sysroot.root / "owner"
    (owner / "etc/0/upper").mkdir(parents=True)
    (owner / "etc/0/upper/before-the-lock").write_text("old")
    inbox = broken.sysroot.root / "inbox"
    inbox.mkdir(exist_ok=True)
    (inbox / "intent").write_text("waiting")
    assert any("older layers stay" in line for line in install.adopt_steps(stick, broken.sysroot))
    install.install(broken.sysroot, stick, MONITOR)
    assert install.judge_standing(broken.sysroot, keychain(broken)).state == "locked"
    moved = install.adopt(broken.sysroot, MONITOR, with_tree, factory=broken.root / "factory", now=1_800_000_000)
    assert install.judge_standing(broken.sysroot, keychain(broken)).state == "open"
    assert moved == [
        "owner/etc/0.aside-20270115T080000Z", "inbox/intent.aside-20270115T080000Z", "owner/intent.aside-20270115T080000Z",
    ]  # fmt: skip
    assert (owner / "adopted-20270115T080000Z").read_text().splitlines() == moved
    for name in moved:
        assert (broken.sysroot.root / name).exists()
    upper = owner / "etc/0/upper"
    assert (upper / "ssh/banner").read_text() == "mine"
    assert stat.S_ISCHR((upper / "issue").lstat().st_mode)
    assert (upper / "machine-id").read_text() == f"{MACHINE}\n"
    assert "alice:x:1000" in (upper / "passwd").read_text()
    assert (owner / "etc/0.aside-20270115T080000Z/upper/before-the-lock").read_text() == "old"
    assert (broken.sysroot.root / "var/home/alice/letter").read_text() == "dear"
    assert (owner / "id").read_text().strip() == MACHINE


def test_adopt_keeps_what_an_unlocked_machine_changed(broken: Lab, stick: Source) -> None:
    config(broken)
    sign(broken, replace(LOCKED, lock="open", config=CONFIG), "the old owner")
    changed = broken.sysroot.root / "owner/etc/7/upper"
    (changed / "ssh").mkdir(parents=True)
    (changed / "ssh/new").write_text("since")
    os.mknod(changed / "gone", 0o600 | stat.S_IFCHR, os.makedev(0, 0))
    (changed / "issue").write_text("again")
    install.adopt(broken.sysroot, MONITOR, with_tree, factory=broken.root / "factory")
    upper = broken.sysroot.root / "owner/etc/0/upper"
    assert sorted(path.name for path in (upper / "ssh").iterdir()) == ["banner", "new"]
    assert (upper / "issue").read_text() == "again"
    assert stat.S_ISCHR((upper / "gone").lstat().st_mode)


def test_a_machine_that_was_never_locked_keeps_its_etc(broken: Lab) -> None:
    (broken.sysroot.root / "owner/intent").unlink()
    upper = broken.sysroot.root / "owner/etc/0/upper"
    upper.mkdir(parents=True)
    (upper / "mine").write_text("x")
    assert install.adopt(broken.sysroot, MONITOR, with_tree, factory=broken.root) == []
    assert (upper / "mine").read_text() == "x"


def test_layers(tmp_path: Path) -> None:
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    for path in ("a/deep", "b", "c"):
        (lower / path).mkdir(parents=True)
    (lower / "a/deep/file").write_text("old")
    (lower / "b/file").write_text("old")
    (lower / "c/file").write_text("old")
    upper.mkdir()
    os.mknod(upper / "a", 0o600 | stat.S_IFCHR, os.makedev(0, 0))
    (upper / "b").symlink_to("c")
    (upper / "c").mkdir(mode=0o750)
    (upper / "c/new").write_text("new")
    os.mkfifo(upper / "c/pipe")
    merged = tmp_path / "merged"
    merge.lay_over(lower, merged)
    merge.lay_over(upper, merged)
    assert stat.S_ISCHR((merged / "a").lstat().st_mode)
    assert (merged / "b").is_symlink()
    assert sorted(path.name for path in (merged / "c").iterdir()) == ["file", "new"]
    assert stat.S_IMODE((merged / "c").stat().st_mode) == 0o750


def blocks(tmp_path: Path, parts: dict[str, str]) -> Path:
    top = tmp_path / "block"
    (top / "sda").mkdir(parents=True)
    for name, label in parts.items():
        for place in (top / "sda" / name, top / name):
            place.mkdir(parents=True)
            (place / "partition").write_text("1\n")
            (place / "uevent").write_text(f"DEVNAME={name}\nPARTNAME={label}\n")
    return top


def test_finding_a_disks_partitions(tmp_path: Path) -> None:
    top = blocks(tmp_path, {"sda1": "freehold-esp", "sda2": "freehold-root", "sda3": "freehold-root2"})
    found = target.find(Path("/dev/sda"), top)
    assert (found.esp, found.root) == (Path("/dev/sda1"), Path("/dev/sda2"))
    for wrong in ("/dev/sda1", "/dev/sdx", "/dev/../etc", "relative"):
        with pytest.raises(InputError):
            target.find(Path(wrong), top)
    twice = blocks(tmp_path / "2", {"sda1": "freehold-root", "sda2": "freehold-root"})
    with pytest.raises(InputError, match="two partitions"):
        target.find(Path("/dev/sda"), twice)
    empty = target.find(Path("/dev/sda"), blocks(tmp_path / "3", {"sda1": "data"}))
    with pytest.raises(NotHereError):
        empty.needed_root()
    with pytest.raises(NotHereError):
        empty.needed_esp()


def test_ones_own_disk_is_refused(machine: Lab) -> None:
    disk = target.Target(Path("/dev/sda"), Path("/dev/sda2"), Path("/dev/sda1"))
    mounts = machine.sysroot.system / "proc/mounts"
    mounts.write_text("overlay / overlay ro 0 0\n/dev/vda2 /sysroot ext4 rw 0 0\n")
    target.check_foreign(disk, machine.sysroot)
    mounts.write_text("/dev/sda2 /sysroot ext4 rw 0 0\n")
    with pytest.raises(FreeholdError, match="own disk"):
        target.check_foreign(disk, machine.sysroot)
    mounts.write_text("/dev/sda1 /efi vfat rw 0 0\n")
    with pytest.raises(FreeholdError, match="own disk"):
        target.check_foreign(disk, machine.sysroot)


def test_a_locked_system_writes_no_disk(machine: Lab) -> None:
    guard = machine.sysroot.system / "usr/lib/freehold/guardctl"
    guard.write_text('#!/bin/sh\necho \'{"loaded": true, "mode": "locked"}\'\n')
    guard.chmod(0o755)
    (machine.sysroot.system / "proc/mounts").write_text("")
    with pytest.raises(FreeholdError, match="locked"):
        target.check_foreign(target.Target(Path("/dev/sda"), None, None), machine.sysroot)


@pytest.mark.parametrize(("typed", "agreed"), [("sda", True), (" sda ", True), ("yes", False), ("", False), ("SDA", False)])
def test_the_disks_name_is_asked_for(typed: str, agreed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        verbs.confirm(Path("/dev/sda"), ["wipe nothing"], lambda prompt: typed)
        done = True
    except FreeholdError:
        done = False
    assert done == agreed
    assert "wipe nothing" in capsys.readouterr().out


RECORD = {
    "schema": "freehold-boot-1", "image": "ab" * 32, "secure_boot": True, "keychain_source": "firmware", "rescue": False,
}  # fmt: skip


def trusted(record: dict[str, object], *, secure: bool = True, image: str = "ab" * 32, ring: bool = True) -> bool:
    verdict = trusted_boot(record, secure_boot=secure, image=image, ring_from_firmware=ring)
    assert verdict.ok == (not verdict.reason)
    return verdict.ok


def test_the_device_key_is_for_trusted_boots_only() -> None:
    assert trusted(dict(RECORD))
    assert not trusted(dict(RECORD), secure=False)
    assert not trusted(dict(RECORD), image="cd" * 32)
    assert not trusted(dict(RECORD), image="")
    assert not trusted(dict(RECORD), ring=False)
    assert not trusted({})
    for name in RECORD:
        others: list[object] = [None, "true", 1, [], "image", True, False]
        for value in others:
            if value != RECORD[name] or type(value) is not type(RECORD[name]):
                assert not trusted({**RECORD, name: value}), (name, value)
        assert not trusted({k: v for k, v in RECORD.items() if k != name}), name


def test_the_console_and_status_say_the_same_sentence() -> None:
    from freehold.device.status import WITHOUT_SECURE_BOOT

    source = (Path(__file__).parents[2] / "early/notice.c").read_text()
    words = "".join(part for number, part in enumerate(source.partition("#define SENTENCE")[2].split('"')) if number % 2)
    assert words.startswith(WITHOUT_SECURE_BOOT)
    assert WITHOUT_SECURE_BOOT.startswith("not verified: ")


def test_verity_of_users_is_what_the_lab_thinks(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    assert UserVerity().measure(tmp_path / "x") is None
