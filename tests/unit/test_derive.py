# SPDX-License-Identifier: Apache-2.0
"""A machine derives deployments of its own: real ostree, images, kernel images and signatures."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from lab_derive import EPOCH, DeriveLab, digest_bytes, keys

from freehold.device import apply, content, derive, loader, prune, stage, status, verify_deployments
from freehold.device import base as bases
from freehold.errors import FreeholdError, InputError, NotHereError, VerificationError
from freehold.keys.verify import Keychain
from freehold.keys.verity import digest_file
from freehold.lock import requests
from freehold.lock.requests import Karg, Package, Requests
from freehold.monitor import NullMonitor
from freehold.run import run
from freehold.seal import cpio, erofs, repack
from freehold.seal.headerball import Entry
from freehold.update.manifest import sha256

pytestmark = pytest.mark.build
MONITOR = NullMonitor()
KARGS = requests.serialize(Requests((Karg("append", "loglevel=7"), Karg("delete", "quiet"))))
OTHER = requests.serialize(Requests((Karg("append", "nosmt"),)))


@pytest.fixture
def lab(tmp_path: Path) -> DeriveLab:
    return DeriveLab(tmp_path / "lab")


def go(lab: DeriveLab, text: bytes = KARGS, serial: int = 7, by: str = "machine") -> apply.Outcome:
    return apply.transact(lab.sysroot, text, serial, keys()[by], MONITOR)


def test_kernel_arguments_from_end_to_end(lab: DeriveLab) -> None:
    base_uki = lab.uki(lab.running)
    before = set((lab.sysroot.repo / "objects").rglob("*.file"))
    outcome = go(lab)
    made = outcome.manifest
    assert (outcome.verdict, made.version) == ("staged", "1.0^7")
    assert loader.listing(lab.sysroot.esp)[0] == loader.Entry("1.0^7", made.id, 3)

    # The kernel image: another line and name, the same everything else, and the device's signature for the firmware.
    uki, old = repack.parse(lab.uki(made)), repack.parse(base_uki)
    names = f"freehold.image={made.image_digest} freehold.release=1000"
    lines = [one.decode() for one in uki.contents(".cmdline")]
    assert lines == [f"{names} ro console=ttyS0 panic=5 loglevel=7"]
    # What the early step compares with lies behind the release's initrd, where it replaces the release's lines.
    first = repack.content(old, ".initrd")
    saving = f"{names} ro quiet console=ttyS0 panic=5 freehold.rescue systemd.unit=freehold-rescue.target"
    both = f"{lines[0]}\n{saving}\n".encode()
    sealed = cpio.archive({"cmdline": cpio.Member(cpio.REGULAR, both)})
    assert repack.content(uki, ".initrd") == first + b"\0" * (-len(first) % 4) + sealed
    assert "IMAGE_VERSION=1.0^7\n" in repack.content(uki, ".osrel").decode()
    for section in old.sections:
        if section.name not in (".cmdline", ".osrel", ".initrd"):
            assert uki.contents(section.name) == old.contents(section.name)
    assert [one.name for one in uki.sections] == [one.name for one in old.sections]
    (lab.root / "device.pem").write_bytes(keys()["machine"].certificate_pem())
    (lab.root / "check.efi").write_bytes(lab.uki(made))
    lab.tools.run(["sbverify", "--cert", lab.root / "device.pem", lab.root / "check.efi"], ro_binds=[lab.root])

    # The rescue image: the release's own arguments, the same initrd, sorted last, signed as well.
    data = lab.rescue(made).read_bytes()
    assert sha256(data) == made.rescue.sha256
    assert (lab.sysroot.deployments / made.id / "rescue.efi").read_bytes() == data
    rescue = repack.parse(data)
    assert repack.content(rescue, ".cmdline").decode() == saving
    assert repack.content(rescue, ".initrd") == repack.content(uki, ".initrd")
    shown = repack.content(rescue, ".osrel").decode()
    assert "IMAGE_VERSION=1.0^7\n" in shown
    assert "IMAGE_ID=zz-rescue\n" in shown
    assert 'PRETTY_NAME="Freehold server 1.0^7 (rescue)"\n' in shown
    (lab.root / "check.efi").write_bytes(data)
    lab.tools.run(["sbverify", "--cert", lab.root / "device.pem", lab.root / "check.efi"], ro_binds=[lab.root])

    # The tree: two files of its own, everything else the base's entries, each object measured.
    path = lab.sysroot.images / made.image_digest
    assert digest_file(path).hex() == made.image_digest == (lab.verity.measure(path) or b"").hex()
    tree, below = erofs.read(path.read_bytes()), erofs.read((lab.sysroot.images / lab.running.image_digest).read_bytes())
    assert tree.epoch == below.epoch == EPOCH
    changed = {entry.path: entry for entry in tree.entries if entry not in below.entries}
    assert sorted(changed) == ["/usr/lib/freehold/requests", "/usr/lib/os-release"]
    assert {entry.path for entry in below.entries} <= {entry.path for entry in tree.entries}
    assert lab.content(changed["/usr/lib/freehold/requests"].redirect) == KARGS
    assert b"IMAGE_VERSION=1.0^7\n" in lab.content(changed["/usr/lib/os-release"].redirect)
    for entry in changed.values():
        assert lab.verity.measure(lab.sysroot.repo / "objects" / entry.redirect[1:]) == entry.digest
    after = set((lab.sysroot.repo / "objects").rglob("*.file"))
    assert len(after - before) == 2

    # The commit keeps the objects, and says the same.
    listing = run([*lab.sysroot.ostree, f"--repo={lab.sysroot.repo}", "ls", "-R", "-C", made.commit]).text
    assert len(listing.splitlines()) == len(tree.entries)
    run([*lab.sysroot.ostree, f"--repo={lab.sysroot.repo}", "fsck"])
    assert made.id in content.references(lab.sysroot)

    # The manifest: signed by the device, believed, and what status shows.
    found, _ = bases.read(lab.sysroot, made.id)
    assert found.signer == "machine"
    assert found.manifest.derived is not None
    assert found.manifest.derived.base == lab.running.image_digest
    row = next(row for row in status.gather(lab.sysroot)["deployments"] if row["id"] == made.id)  # type: ignore[attr-defined]
    assert (row["base_version"], row["signer"], row["staged"]) == ("1.0", "machine", True)
    assert row["kargs"] == ["append loglevel=7", "delete quiet"]
    assert not (lab.sysroot.root / "derive").exists()

    # `freehold verify` believes it for the same reason; on another machine it is a stranger's.
    keychain = Keychain.from_directory(lab.sysroot.keychain)
    judged, faults = verify_deployments.deployments(lab.sysroot, verify_deployments.open_esp(lab.sysroot), keychain)
    assert (faults, {one.id: one.signer for one in judged}[made.id]) == ([], "machine")
    (lab.sysroot.root / "owner/id").write_text("0" * 32)
    judged, faults = verify_deployments.deployments(lab.sysroot, verify_deployments.open_esp(lab.sysroot), keychain)
    assert [(one.where, one.check) for one in faults] == [(made.id, "manifest-signature")]
    # Why its own key does not count helps here; that it is no release's key goes without saying.
    assert "is for another machine" in faults[0].found
    assert {one.id: one.signer for one in judged}[made.id] == ""


def test_equal_inputs_give_equal_deployments(lab: DeriveLab, tmp_path: Path) -> None:
    other = DeriveLab(tmp_path / "other")
    one, two = go(lab).manifest, go(other).manifest
    assert one.image_digest == two.image_digest
    assert one.commit == two.commit


def test_the_same_requests_again_change_nothing(lab: DeriveLab) -> None:
    made = go(lab).manifest
    before = lab.entries()
    again = go(lab, serial=9)
    assert (again.verdict, again.manifest.id) == ("unchanged", made.id)
    assert lab.entries() == before


def test_other_requests_stand_on_the_release_not_on_what_runs(lab: DeriveLab) -> None:
    first = go(lab).manifest
    lab.boot(first)
    second = go(lab, OTHER, 8).manifest
    line = repack.content(repack.parse(lab.uki(second)), ".cmdline").decode()
    assert line == f"freehold.image={second.image_digest} freehold.release=1000 ro quiet console=ttyS0 panic=5 nosmt"
    assert [entry.id for entry in loader.listing(lab.sysroot.esp)] == [second.id, first.id, lab.running.id]
    back = go(lab, KARGS, 9)
    assert (back.verdict, back.manifest.id) == ("switched", first.id)
    assert loader.listing(lab.sysroot.esp)[0].id == first.id


def test_the_release_comes_back_with_its_rescue_entry(lab: DeriveLab) -> None:
    """Its own boot entry was cleaned away; the rescue image is taken from beside its manifest, or from the boot partition."""
    go(lab)
    lab.boot(go(lab).manifest)
    (lab.sysroot.esp / f"EFI/Linux/freehold-1.0-{lab.running.id}.efi").unlink()
    kept = lab.sysroot.deployments / lab.running.id / "rescue.efi"
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1])
    lab.rescue(lab.running).unlink()
    before = lab.entries()
    with pytest.raises(NotHereError, match=r"the rescue image of release 1\.0"):
        go(lab, apply.EMPTY, 8)
    assert lab.entries() == before
    lab.rescue(lab.running).write_bytes(whole)
    assert go(lab, apply.EMPTY, 8).verdict == "staged"
    assert kept.read_bytes() == whole
    assert loader.listing(lab.sysroot.esp)[0].id == lab.running.id


def test_no_requests_lead_back_to_the_release(lab: DeriveLab) -> None:
    go(lab)
    back = go(lab, apply.EMPTY, 8)
    assert (back.verdict, back.manifest.id) == ("switched", lab.running.id)
    assert loader.listing(lab.sysroot.esp)[0].id == lab.running.id


def test_cleanup_keeps_the_release_below_and_derives_again_without_its_boot_entry(lab: DeriveLab) -> None:
    for serial, text in ((7, KARGS), (8, OTHER)):
        made = go(lab, text, serial).manifest
        lab.boot(made)
        (lab.sysroot.esp / f"EFI/Linux/freehold-{made.version}-{made.id}+3.efi").rename(
            lab.sysroot.esp / f"EFI/Linux/freehold-{made.version}-{made.id}.efi"
        )
    prune.cleanup(lab.sysroot, MONITOR)
    for entry in loader.listing(lab.sysroot.esp):
        if entry.id == lab.running.id:
            loader.remove(lab.sysroot.esp, entry)
    prune.cleanup(lab.sysroot, MONITOR)
    assert (lab.sysroot.images / lab.running.image_digest).exists()
    third = go(lab, requests.serialize(Requests((Karg("append", "third"),))), 9).manifest
    assert loader.listing(lab.sysroot.esp)[0].id == third.id
    plain = go(lab, apply.EMPTY, 10)
    assert plain.verdict == "staged"
    assert loader.listing(lab.sysroot.esp)[0].id == lab.running.id


def test_a_deployment_that_failed_is_not_tried_again(lab: DeriveLab) -> None:
    made = go(lab).manifest
    name = lab.sysroot.esp / f"EFI/Linux/freehold-{made.version}-{made.id}"
    Path(f"{name}+3.efi").rename(f"{name}+0-3.efi")
    with pytest.raises(VerificationError, match="healthy"):
        go(lab, serial=8)


@pytest.mark.parametrize("by", ["vendor", "foreign", "stranger"])
def test_a_foreign_key_makes_no_deployment(lab: DeriveLab, by: str) -> None:
    before = lab.entries()
    with pytest.raises(VerificationError):
        go(lab, by=by)
    assert lab.entries() == before
    assert len(lab.sysroot.all_deployments()) == 1


def test_the_owner_may_sign_and_a_device_key_signs_no_release(lab: DeriveLab) -> None:
    assert go(lab, by="me").verdict == "staged"
    directory = lab.sysroot.deployments / lab.running.id
    data = (directory / "manifest.json").read_bytes()
    for by in ("machine", "me"):
        (directory / "manifest.json.sig").write_bytes(keys()[by].sign_document(data))
        with pytest.raises(VerificationError, match="signed a release"):
            bases.read(lab.sysroot, lab.running.id)


def test_a_release_key_signs_nothing_derived(lab: DeriveLab) -> None:
    made = go(lab).manifest
    directory = lab.sysroot.deployments / made.id
    data = (directory / "manifest.json").read_bytes()
    (directory / "manifest.json.sig").write_bytes(keys()["vendor"].sign_document(data))
    with pytest.raises(VerificationError, match="only this machine or its owner"):
        bases.read(lab.sysroot, made.id)


def test_without_a_key_nothing_is_derived(lab: DeriveLab) -> None:
    with pytest.raises(apply.UnsignableError):
        apply.transact(lab.sysroot, KARGS, 7, None, MONITOR)
    assert len(lab.entries()) == 1


def corrupt(path: Path, at: int = 2000) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o644)
    path.write_bytes(bytes(data))


def test_changed_inputs_are_refused(lab: DeriveLab) -> None:
    uki = lab.sysroot.esp / "EFI/Linux" / lab.entries()[0]
    good = uki.read_bytes()
    corrupt(uki)
    with pytest.raises(NotHereError, match="kernel image"):
        go(lab)
    uki.write_bytes(good)
    image = lab.sysroot.images / lab.running.image_digest
    good = image.read_bytes()
    corrupt(image)
    with pytest.raises(VerificationError, match="image"):
        go(lab)
    image.write_bytes(good)
    manifest = lab.sysroot.deployments / lab.running.id / "manifest.json"
    good = manifest.read_bytes()
    manifest.write_bytes(good.replace(b'"timestamp":1000', b'"timestamp":1001'))
    with pytest.raises(VerificationError, match="not genuine"):
        go(lab)
    manifest.write_bytes(good)
    entry = next(one for one in erofs.read(image.read_bytes()).entries if one.path == derive.OS_RELEASE)
    target = lab.sysroot.repo / "objects" / entry.redirect[1:]
    corrupt(target, 3)
    with pytest.raises(FreeholdError, match="as it was signed"):
        go(lab)
    assert len(lab.entries()) == 1


def test_a_file_that_changes_while_it_is_written_is_found(lab: DeriveLab, monkeypatch: pytest.MonkeyPatch) -> None:
    real = derive._commit

    def commit(*arguments: object) -> str:
        made = arguments[5]
        assert isinstance(made, list)
        changed = [(entry, b"evil" if entry.path == derive.REQUESTS else data) for entry, data in made]
        return real(*arguments[:5], changed, *arguments[6:])  # type: ignore[arg-type, call-arg]

    monkeypatch.setattr(derive, "_commit", commit)
    with pytest.raises(FreeholdError, match="changed while it was written"):
        go(lab)
    assert len(lab.entries()) == 1


def layer_of(lab: DeriveLab) -> apply.PackageLayer:
    """What installing a package changes: a new program, a removed document, a changed one, a directory in a file's place."""

    def build(sysroot: object, base: object, found: Requests, monitor: object) -> derive.Layer:
        upper = lab.root / "upper"
        (upper / "usr/bin").mkdir(parents=True)
        (upper / "usr/bin/fish").write_text("fish")
        (upper / "usr/bin/fish").chmod(0o755)
        (upper / "usr/bin/tool").symlink_to("fish")
        os.setxattr(upper / "usr/bin/fish", "user.made", b"here")
        entries = [Entry(f"/{name}", stat.S_IFDIR | 0o755, 0, 0) for name in ("", "usr", "usr/bin")]
        entries[0] = Entry("/", stat.S_IFDIR | 0o755, 0, 0)
        xattrs = (("user.made", b"here"),)
        entries.append(Entry("/usr/bin/fish", stat.S_IFREG | 0o755, 0, 0, 4, digest=digest_bytes(b"fish"), xattrs=xattrs))
        entries.append(Entry("/usr/bin/tool", stat.S_IFLNK | 0o777, 0, 0, target="fish"))
        packages = (*lab.running.packages, ("fish", "4.0", "amd64"))
        return derive.Layer(upper, tuple(entries), ("/usr/share/doc/old",), packages)

    return build


def test_a_layer_of_files(lab: DeriveLab) -> None:
    text = requests.serialize(Requests(packages=(Package("fish"),)))
    outcome = apply.transact(lab.sysroot, text, 7, keys()["machine"], MONITOR, packages=layer_of(lab))
    tree = {one.path: one for one in erofs.read((lab.sysroot.images / outcome.manifest.image_digest).read_bytes()).entries}
    assert lab.content(tree["/usr/bin/fish"].redirect) == b"fish"
    assert tree["/usr/bin/fish"].xattrs == (("user.made", b"here"),)
    assert tree["/usr/bin/tool"].target == "fish"
    assert not [path for path in tree if path.startswith("/usr/share/doc/old")]
    assert "/usr/share/doc" in tree
    assert stat.S_IMODE(tree["/usr/etc"].mode) == 0o750
    assert outcome.manifest.packages[-1] == ("fish", "4.0", "amd64")
    listing = run([*lab.sysroot.ostree, f"--repo={lab.sysroot.repo}", "ls", "-R", outcome.manifest.commit]).text
    assert sorted(line.split()[4] for line in listing.splitlines()) == sorted(tree)
    row = next(one for one in status.gather(lab.sysroot)["deployments"] if one["staged"])  # type: ignore[attr-defined]
    assert row["packages"] == ["fish"]


def test_a_power_cut_anywhere_leaves_the_old_system_or_the_new(lab: DeriveLab, monkeypatch: pytest.MonkeyPatch) -> None:
    from freehold import atomic

    class Cut(BaseException):
        pass

    steps = {"left": 0}

    def cutting(real: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*arguments: object, **named: object) -> object:
            if steps["left"] == 0:
                raise Cut
            steps["left"] -= 1
            return real(*arguments, **named)

        return wrapped

    for module, name in ((atomic, "write"), (atomic, "publish"), (loader, "move"), (content, "reference"), (derive, "run")):
        monkeypatch.setattr(module, name, cutting(getattr(module, name)))
    before, cuts = lab.entries(), 0
    while True:
        steps["left"] = cuts
        try:
            go(lab)
            break
        except Cut:
            cuts += 1
            assert lab.entries() == before
    assert cuts >= 9
    run([*lab.sysroot.ostree, f"--repo={lab.sysroot.repo}", "fsck"])


def test_versions_sort_between_the_release_and_the_next() -> None:
    class Named:
        version = "1.2"

    made = derive.version_of(Named, 7)  # type: ignore[arg-type]
    order = loader.compare_versions
    assert order("1.2", made) < 0 < order("1.2.1", made)
    assert order(made, derive.version_of(Named, 12)) < 0 < order("1.3", made)  # type: ignore[arg-type]
    Named.version = "1" * 64
    with pytest.raises(InputError):
        derive.version_of(Named, 1)  # type: ignore[arg-type]


def test_what_is_not_proportional_to_the_release(lab: DeriveLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the two new objects and the image are measured or enabled: nothing of the release's content is touched."""
    touched: list[Path] = []
    real = lab.verity.enable

    def enable(path: Path) -> None:
        touched.append(path)
        real(path)

    monkeypatch.setattr(lab.verity, "enable", enable)
    go(lab)
    assert len(touched) == 3


def test_judging_offers_sees_releases(lab: DeriveLab) -> None:
    made = go(lab).manifest
    [first, second] = bases.as_releases(lab.sysroot, loader.listing(lab.sysroot.esp))
    assert (first.version, first.id, first.left) == ("1.0", lab.running.id, 3)
    assert second.id == lab.running.id
    assert made.timestamp == lab.running.timestamp
    assert stage.judge(lab.running, lab.running, [first, second]).verdict == "current"


