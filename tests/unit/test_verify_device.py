# SPDX-License-Identifier: Apache-2.0
"""``freehold verify`` over a machine in a directory: each fault is named, and the whole machine passes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from lab_release import Key, key, write_release
from lab_verify import MOUNTS, VerifyLab, program, sealed_line

from freehold import atomic
from freehold.cli import main
from freehold.device import verify, verify_content
from freehold.device.verify_findings import Finding
from freehold.device.verify_image import Pointer
from freehold.errors import BusyError, FreeholdError, NotHereError
from freehold.keys import efi
from freehold.keys.formats import Revocation, serialize_revoked
from freehold.keys.verity import digest_bytes
from freehold.lock import intent
from freehold.monitor import NullMonitor
from freehold.report import Report
from freehold.update import rescue_entry

MACHINE_ID = "0123456789abcdef" * 2


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VerifyLab:
    return VerifyLab(tmp_path / "lab", monkeypatch)


def check(lab: VerifyLab, **options: object) -> Report:
    return verify.verify(lab.sysroot, verify.Options(**options), NullMonitor(), lab.probe)  # type: ignore[arg-type]


def rows(report: Report, severity: str = "deviation") -> list[dict[str, str]]:
    findings = report.data["findings"]
    assert isinstance(findings, list)
    return [one for one in findings if one["severity"] == severity]


def deviations(lab: VerifyLab, **options: object) -> list[tuple[str, str]]:
    """(where, check) of each deviation; the verdicts agree with them."""
    report = check(lab, **options)
    found = [(one["where"], one["check"]) for one in rows(report)]
    assert report.status == (1 if found else 0)
    assert report.data["verdict"] == ("deviation" if found else "ok")
    assert report.text.rstrip().endswith("no deviation") == (not found)
    return found


def lock(lab: VerifyLab, wanted: intent.Lock = "locked", *, signer: Key | None = None, config: str | None = None) -> None:
    """The owner's signed word, and a machine that obeys it."""
    private = (signer or key("owner", "me")).private
    said = intent.Intent(machine=MACHINE_ID, serial=3, lock=wanted, since=1, config=config)
    signed = intent.sign(said, lambda data: private.sign(data, padding.PKCS1v15(), hashes.SHA256()))
    lab.put(lab.sysroot.root / "owner/intent", signed)
    lab.guard(wanted)
    lab.put(lab.sysroot.system / "proc/self/mountinfo", MOUNTS)


def uki(lab: VerifyLab) -> Path:
    (name,) = (name for name in lab.entries() if lab.running.id in name)
    return lab.sysroot.esp / "EFI/Linux" / name


def test_a_whole_machine(lab: VerifyLab) -> None:
    report = check(lab)
    assert rows(report) == []
    assert report.status == 0
    # Three objects, the image, the kernel, the rescue kernel.
    assert report.data["files"] == 6
    sizes = 5000 * len("abshared") + lab.running.image_size + lab.running.uki.size + lab.running.rescue.size
    assert report.data["bytes"] == sizes
    assert sorted(one["check"] for one in rows(report, "note")) == ["etc-open", "secure-boot"]
    deployments = report.data["deployments"]
    assert isinstance(deployments, list)
    assert deployments[0] == {
        "id": lab.running.id, "version": "1.0", "booted": True, "state": "good", "signer": "vendor", "files": 3,
        "bytes": 5000 * len("abshared"),
    }  # fmt: skip
    json.dumps(dict(report.data))


def test_a_whole_locked_machine(lab: VerifyLab) -> None:
    lock(lab)
    assert deviations(lab) == []
    lock(lab, "audit")
    lab.put(lab.sysroot.system / "proc/self/mountinfo", MOUNTS.replace("/run/freehold/etc/upper", "/disk/owner/etc/3/upper"))
    assert deviations(lab) == []


def test_shared_objects_are_read_once_and_blamed_on_each(lab: VerifyLab) -> None:
    old = lab.install("0.9", 900)
    lab.fill(old, "shared", "old")
    assert deviations(lab) == []
    assert len(lab.reads) == len(set(lab.reads)) == 4 + 2
    lab.object("shared").unlink()
    assert deviations(lab) == [(where, "object-missing") for where in sorted([lab.running.id, old.id])]


def test_an_object_is_missing(lab: VerifyLab) -> None:
    lab.object("a").unlink()
    (found,) = rows(check(lab))
    assert found["check"] == "object-missing"
    assert found["object"].startswith("/usr/a (")
    assert found["where"] == lab.running.id


def test_an_object_is_a_link_or_a_pipe(lab: VerifyLab) -> None:
    path = lab.object("a")
    path.rename(path.with_suffix(".real"))
    path.symlink_to(path.with_suffix(".real"))
    assert deviations(lab) == [(lab.running.id, "object-missing")]
    path.unlink()
    os.mkfifo(path)
    path.chmod(0o444)
    assert deviations(lab)[0][1].startswith("object-")


def test_an_object_has_another_digest(lab: VerifyLab) -> None:
    path = lab.object("a")
    path.chmod(0o644)
    path.write_text("evil" * 1250)
    path.chmod(0o444)
    (found,) = rows(check(lab))
    assert found["check"] == "object-digest"
    assert len(found["expected"]) == len(found["found"]) == 64
    assert found["expected"] != found["found"]
    # What is not the right file is not read.
    assert path.name not in lab.reads


def test_an_object_without_verity(lab: VerifyLab) -> None:
    lab.object("a").chmod(0o644)
    assert deviations(lab) == [(lab.running.id, "object-unmeasured")]
    assert deviations(lab, quick=True) == [(lab.running.id, "object-unmeasured")]


def test_an_object_does_not_read_back(lab: VerifyLab) -> None:
    lab.damaged.add(lab.object("b").name)
    (found,) = rows(check(lab))
    assert (found["check"], found["found"]) == ("object-damaged", "Input/output error")
    # That is what --quick does not look for.
    lab.reads.clear()
    assert deviations(lab, quick=True) == []
    assert lab.reads == []


def test_an_unknown_digest_algorithm_is_named(lab: VerifyLab) -> None:
    def measure(fd: int, name: str) -> bytes | None:
        if "images/" in name:
            return lab._measure(fd, name)
        raise FreeholdError(f"{name} has an fs-verity digest by algorithm 2, not by SHA-256")

    report = verify.verify(lab.sysroot, verify.Options(), NullMonitor(), lab.probe._replace(measure=measure))
    assert {one["check"] for one in rows(report)} == {"object-digest"}


def test_the_image_is_missing(lab: VerifyLab) -> None:
    (lab.sysroot.images / lab.running.image_digest).unlink()
    assert deviations(lab) == [(lab.running.id, "image-missing")]


def test_the_image_is_another(lab: VerifyLab) -> None:
    path = lab.sysroot.images / lab.running.image_digest
    path.chmod(0o644)
    assert deviations(lab) == [(lab.running.id, "image-unmeasured")]
    path.write_bytes(b"x" + path.read_bytes()[1:])
    path.chmod(0o444)
    assert deviations(lab) == [(lab.running.id, "image-digest")]
    # Nothing that it says is believed, so nothing was read for it.
    assert lab.reads == []


def test_the_image_does_not_read_back(lab: VerifyLab) -> None:
    lab.damaged.add(lab.running.image_digest)
    assert deviations(lab) == [(lab.running.id, "image-damaged")]


def test_an_image_that_the_kernel_does_not_mount(lab: VerifyLab) -> None:
    def refuse(fd: int, place: Path) -> object:
        raise OSError(22, "Invalid argument", str(place))

    report = verify.verify(lab.sysroot, verify.Options(), NullMonitor(), lab.probe._replace(list_image=refuse))  # type: ignore[arg-type]
    assert [one["check"] for one in rows(report)] == ["image-unreadable"]


def test_the_kernel_was_changed(lab: VerifyLab) -> None:
    path = uki(lab)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"x")
    assert deviations(lab) == [(lab.running.id, "uki-bytes")]
    path.write_bytes(whole + b"appended initrd")
    assert deviations(lab) == [(lab.running.id, "uki-bytes")]
    path.write_bytes(program(sealed_line("e" * 64)))
    found = deviations(lab)
    assert (lab.running.id, "uki-bytes") in found
    assert (lab.running.id, "uki-image") in found
    # What runs is then not what would start next.
    assert ("machine", "command-line") in found
    path.write_bytes(b"garbage")
    assert (lab.running.id, "uki-format") in deviations(lab)


def test_the_kernel_is_missing(lab: VerifyLab) -> None:
    uki(lab).unlink()
    assert deviations(lab) == [(lab.running.id, "uki-missing")]


def test_a_kernel_under_a_higher_version(lab: VerifyLab) -> None:
    """The name is not signed, and the boot loader goes by it."""
    path = uki(lab)
    path.rename(path.with_name(path.name.replace("1.0", "9.0")))
    assert deviations(lab) == [(lab.running.id, "entry-version")]


def test_a_kernel_of_a_deployment_that_is_gone(lab: VerifyLab) -> None:
    old = lab.install("0.9", 900)
    for path in (lab.sysroot.deployments / old.id).iterdir():
        path.unlink()
    (lab.sysroot.deployments / old.id).rmdir()
    assert deviations(lab) == [("boot", "entry-without-deployment")] * 2


def test_the_rescue_kernel_was_changed(lab: VerifyLab) -> None:
    path = lab.rescue(lab.running)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"x")
    assert deviations(lab) == [(lab.running.id, "uki-bytes")]
    path.write_bytes(uki(lab).read_bytes())  # the normal image under the rescue's name
    assert deviations(lab) == [(lab.running.id, "uki-bytes")]
    path.write_bytes(program(sealed_line("e" * 64)))
    assert deviations(lab) == [(lab.running.id, "uki-bytes"), (lab.running.id, "uki-image")]
    path.write_bytes(b"")
    assert deviations(lab) == [(lab.running.id, "rescue-missing")]
    assert ("boot", "leftover") in [(one["where"], one["check"]) for one in rows(check(lab), "note")]
    path.unlink()
    assert deviations(lab) == [(lab.running.id, "rescue-missing")]
    path.with_name(path.name.replace("1.0", "9.0")).write_bytes(whole)
    assert deviations(lab) == [(lab.running.id, "entry-version")]


def test_a_rescue_kernel_alone(lab: VerifyLab) -> None:
    """What a cut between the two copies leaves: a deployment that waits, and its rescue entry."""
    waiting = lab.install("2.0", 2000)
    lab.fill(waiting, "shared")
    (lab.sysroot.esp / f"EFI/Linux/freehold-2.0-{waiting.id}.efi").unlink()
    lab.put(lab.sysroot.deployments / waiting.id / "uki.efi", "downloaded")
    assert deviations(lab) == []
    lab.rescue(waiting).write_bytes(b"garbage")
    assert deviations(lab) == [(waiting.id, "uki-format")]


def test_a_machine_that_was_started_by_the_rescue_entry(lab: VerifyLab) -> None:
    line = sealed_line(lab.running.image_digest)
    (lab.sysroot.system / "proc/cmdline").write_text(f"{rescue_entry.line(line)}\n")
    assert deviations(lab) == []
    (lab.sysroot.system / "proc/cmdline").write_text(f"{rescue_entry.line(line)} init=/bin/sh\n")
    assert deviations(lab) == [("machine", "command-line")]
    (lab.sysroot.system / "proc/cmdline").write_text(f"{line} freehold.rescue\n")
    assert deviations(lab) == [("machine", "command-line")]


@pytest.mark.parametrize(
    ("path", "checked"),
    [
        ("EFI/Linux/linux.efi", "foreign-entry"),
        ("loader/addons/evil.addon.efi", "add-on"),
        ("loader/credentials/evil.cred", "credential"),
        ("loader/entries/evil.conf", "entry"),
    ],
)
def test_something_else_on_the_boot_partition(lab: VerifyLab, path: str, checked: str) -> None:
    lab.put(lab.sysroot.esp / path, "evil")
    assert deviations(lab) == [("boot", checked)]


def test_an_add_on_beside_the_kernel(lab: VerifyLab) -> None:
    lab.put(uki(lab).with_name(f"{uki(lab).name}.extra.d") / "evil.addon.efi", program("init=/bin/sh"))
    (found,) = rows(check(lab))
    assert (found["check"], found["where"]) == ("add-on", "boot")
    assert found["object"].endswith(".extra.d/evil.addon.efi")


def test_the_loaders_settings(lab: VerifyLab) -> None:
    lab.put(lab.sysroot.esp / "loader/loader.conf", "editor yes\ndefault old*\n")
    assert deviations(lab) == [("boot", "loader-conf")] * 2
    (lab.sysroot.esp / "loader/loader.conf").unlink()
    assert deviations(lab) == [("boot", "loader-conf")]


def test_a_changed_boot_loader(lab: VerifyLab) -> None:
    lab.put(lab.sysroot.esp / "EFI/BOOT/BOOTX64.EFI", "another one")
    assert deviations(lab) == [("boot", "loader-copies")]


def test_a_boot_loader_of_another_release(lab: VerifyLab) -> None:
    """Signatures apart; an update does not replace it, so it is worth a note and no more."""
    ours = program("the boot loader")
    lab.put(lab.sysroot.system / "usr/lib/systemd/boot/efi/systemd-bootx64.efi", ours)
    notes = []
    for content in (ours, ours + b"more of it"):
        for name in ("EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi"):
            lab.put(lab.sysroot.esp / name, content)
        assert deviations(lab) == []
        notes.append([one["object"] for one in rows(check(lab), "note") if one["check"] == "loader-version"])
    assert notes == [[], ["EFI/BOOT/BOOTX64.EFI"]]


def test_a_second_boot_partition(lab: VerifyLab) -> None:
    """Whoever has the disk could add one, with entries that the boot loader takes and that are on no list here."""
    dev = lab.sysroot.esp.stat().st_dev
    kind = "E:ID_PART_ENTRY_TYPE=bc13c2ff-59e6-4262-a352-b275fd6f7172\n"
    own = "E:ID_PART_ENTRY_DISK=254:0\nE:ID_PART_ENTRY_TYPE=c12a7328-f81f-11d2-ba4b-00a0c93ec93b\n"
    data = lab.sysroot.system / "run/udev/data"
    lab.put(data / f"b{os.major(dev)}:{os.minor(dev)}", own)
    lab.put(data / "b254:9", f"E:ID_PART_ENTRY_DISK=254:0\nE:ID_PART_ENTRY_NUMBER=9\n{kind}")
    # Of another disk the loader reads nothing.
    lab.put(data / "b8:1", f"E:ID_PART_ENTRY_DISK=8:0\n{kind}")
    lab.put(data / "b8:2", b"\xff" * (65 << 10))
    assert deviations(lab) == [("boot", "second-boot-partition")]
    assert [one["object"] for one in rows(check(lab)) if one["check"] == "second-boot-partition"] == ["partition 9"]
    (data / "b254:9").unlink()
    assert deviations(lab) == []


def test_names_cannot_steer_the_terminal(lab: VerifyLab) -> None:
    lab.put(lab.sysroot.esp / "loader/entries/\x1b[2Jno deviation.conf", "evil")
    report = check(lab)
    assert report.status == 1
    assert "\x1b" not in report.text
    assert "\\x1b[2J" in report.text


def test_no_boot_partition(lab: VerifyLab) -> None:
    lab.sysroot = lab.sysroot._replace(esp=lab.root / "nothing")
    found = deviations(lab)
    assert ("boot", "boot-partition") in found
    assert (lab.running.id, "uki-missing") in found


def test_states_of_entries_are_notes(lab: VerifyLab) -> None:
    bad, aside, waiting = lab.install("0.7", 700, counter="+0-3"), lab.install("0.8", 800, counter="+0"), lab.install("2.0", 2000)
    for value in (bad, aside, waiting):
        lab.fill(value, "shared")
    (lab.sysroot.esp / f"EFI/Linux/freehold-2.0-{waiting.id}.efi").unlink()
    lab.put(lab.sysroot.deployments / waiting.id / "uki.efi", "downloaded")
    lab.put(lab.sysroot.esp / f"EFI/Linux/freehold-3.0-{'3' * 16}+3.efi", "")
    assert deviations(lab) == []
    notes = [(one["where"], one["check"]) for one in rows(check(lab), "note")]
    for expected in [(bad.id, "entry-state"), (aside.id, "entry-state"), (waiting.id, "not-staged"), ("boot", "leftover")]:
        assert expected in notes
    deployments = check(lab).data["deployments"]
    assert isinstance(deployments, list)
    assert {one["id"]: one["state"] for one in deployments} == {
        lab.running.id: "good", bad.id: "bad", aside.id: "set-aside", waiting.id: "no boot entry",
    }  # fmt: skip


def resign(lab: VerifyLab, signer: Key) -> None:
    directory = lab.sysroot.deployments / lab.running.id
    lab.put(directory / "manifest.json.sig", signer.sign((directory / "manifest.json").read_bytes()))


def test_a_manifest_signed_by_somebody_else(lab: VerifyLab) -> None:
    resign(lab, key("release", "stranger"))
    assert deviations(lab) == [(lab.running.id, "manifest-signature")]
    # An owner signs intents, not releases.
    resign(lab, key("owner", "me"))
    assert deviations(lab) == [(lab.running.id, "manifest-signature")]
    (lab.sysroot.deployments / lab.running.id / "manifest.json.sig").unlink()
    assert deviations(lab) == [(lab.running.id, "manifest-signature")]
    resign(lab, key("release", "vendor"))
    assert deviations(lab) == []


def test_a_manifest_signed_by_a_revoked_key(lab: VerifyLab) -> None:
    fingerprint = hashlib.sha256(key("release", "vendor").certificate).hexdigest()
    lab.put(lab.sysroot.keychain / "revoked", serialize_revoked([Revocation(fingerprint, "laptop stolen")]))
    found = rows(check(lab))
    assert [one["check"] for one in found] == ["manifest-signature", "ring-key"]
    assert "revoked: laptop stolen" in found[0]["found"]


def test_a_manifest_of_another_deployment(lab: VerifyLab) -> None:
    write_release(lab.root / "other", "0.9", 900)
    for name in ("manifest.json", "manifest.json.sig"):
        lab.put(lab.sysroot.deployments / lab.running.id / name, (lab.root / "other" / name).read_bytes())
    assert deviations(lab) == [(lab.running.id, "manifest-id")]


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 100, b"[" * 5000])
def test_a_manifest_that_is_none(lab: VerifyLab, content: bytes) -> None:
    lab.put(lab.sysroot.deployments / lab.running.id / "manifest.json", content)
    assert (lab.running.id, "manifest") in deviations(lab)
    (lab.sysroot.deployments / lab.running.id / "manifest.json").unlink()
    assert (lab.running.id, "manifest") in deviations(lab)


@pytest.mark.parametrize("kind", ["pipe", "link", "directory"])
def test_a_manifest_that_is_no_file(lab: VerifyLab, kind: str) -> None:
    """Nothing waits for a pipe that nobody writes to."""
    path = lab.sysroot.deployments / lab.running.id / "manifest.json"
    path.rename(path.with_suffix(".real"))
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(path.with_suffix(".real"))
    else:
        path.mkdir()
    assert (lab.running.id, "manifest") in deviations(lab)


def test_two_images_that_want_different_content(lab: VerifyLab) -> None:
    old = lab.install("0.9", 900)
    (mine,) = [one for one in lab.trees[lab.running.image_digest] if one.path == "/usr/a"]
    lab.trees[old.image_digest] = [mine._replace(digest=bytes(32))]
    assert deviations(lab) == [(old.id, "object-digest")]


def test_what_nobody_needs_is_a_note(lab: VerifyLab) -> None:
    lab.put(lab.object("left"), "x" * 3000)
    lab.put(lab.object("empty"), "")
    lab.object("empty").with_name(f"{'0' * 62}.file").symlink_to("a link is an object too")
    lab.put(lab.sysroot.images / ".tmp-x", "y")
    report = check(lab)
    assert report.status == 0
    said = {one["object"]: one["found"] for one in rows(report, "note") if one["check"] == "unreferenced"}
    assert said["repo/objects"] == "1 objects, 0.0 MiB, that no deployment points to"
    assert said["images/.tmp-x"] == "an image of no deployment"
    assert len(said) == 2


@pytest.mark.parametrize(
    ("path", "content", "checked"),
    [
        ("proc/self/mountinfo", MOUNTS + "99 30 0:60 / /usr rw - tmpfs evil rw\n", "mount-over"),
        ("proc/self/mountinfo", MOUNTS.replace("verity=require", "verity=off"), "root"),
        ("proc/self/mountinfo", "garbage\n", "mounts"),
        ("proc/sys/kernel/tainted", "4096\n", "kernel-taint"),
        ("proc/sys/kernel/osrelease", "7.0-evil\n", "kernel"),
        ("proc/modules", "rootkit 1 0 - Live 0x0 (OE)\n", "module"),
        ("sys/kernel/security/lockdown", "[none] integrity confidentiality\n", "lockdown"),
        ("run/freehold/boot.json", '{"secure_boot": true}', "secure-boot-record"),
    ],
)
def test_the_running_machine(lab: VerifyLab, path: str, content: str, checked: str) -> None:
    lock(lab)
    lab.put(lab.sysroot.system / path, content)
    assert deviations(lab) == [("machine", checked)]


def test_a_word_more_on_the_command_line(lab: VerifyLab) -> None:
    path = lab.sysroot.system / "proc/cmdline"
    path.write_text(path.read_text().strip() + " init=/bin/sh\n")
    (found,) = rows(check(lab))
    assert (found["check"], found["found"]) == ("command-line", "added: init=/bin/sh")


def test_the_guard_in_another_mode(lab: VerifyLab) -> None:
    lock(lab)
    lab.guard("audit")
    assert deviations(lab) == [("machine", "guard-mode")]
    lab.guard("locked", loaded=False)
    (found,) = rows(check(lab))
    assert (found["check"], found["found"]) == ("guard-mode", "not loaded")


def test_an_intent_that_nobody_believes(lab: VerifyLab) -> None:
    lock(lab, signer=key("owner", "stranger"))
    assert deviations(lab) == [("machine", "intent")]
    lock(lab)
    lab.put(lab.sysroot.root / "owner/id", "f" * 32 + "\n")
    assert deviations(lab) == [("machine", "intent")]


def test_the_owners_configuration(lab: VerifyLab) -> None:
    digest = digest_bytes(b"config").hex()
    lock(lab, config=digest)
    layered = MOUNTS.replace("lowerdir=/newroot/usr/etc", "lowerdir=/config:/newroot/usr/etc")
    lab.put(lab.sysroot.system / "proc/self/mountinfo", layered)
    assert deviations(lab) == [("machine", "config-image")]
    image = lab.put(lab.sysroot.root / "owner/config" / digest, "config")
    assert deviations(lab) == [("machine", "config-image")]
    image.write_text("another")
    image.chmod(0o444)
    assert deviations(lab) == [("machine", "config-image")]
    image.chmod(0o644)
    image.write_text("config")
    image.chmod(0o444)
    assert deviations(lab) == []
    lab.put(lab.sysroot.system / "proc/self/mountinfo", MOUNTS)
    assert deviations(lab) == [("machine", "etc-layers")]


def test_an_owners_file_with_a_second_name(lab: VerifyLab) -> None:
    path = lab.put(lab.sysroot.root / "owner/etc/0/upper/passwd", "x")
    os.link(path, lab.root / "elsewhere")
    (found,) = rows(check(lab))
    assert (found["check"], found["object"]) == ("owner-link", "owner/etc/0/upper/passwd")


def test_a_locked_machines_secrets_are_not_looked_for(lab: VerifyLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard would refuse it, and record a refusal that nobody has to know of."""
    lock(lab)
    secret = lab.put(lab.sysroot.root / "owner/secret/device.key", "x")
    listed, scandir = [], os.scandir

    def watch(path: str) -> object:
        listed.append(Path(os.fsdecode(path)).name)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", watch)
    assert deviations(lab) == []
    assert "owner" in listed
    assert "secret" not in listed
    # Where they may be looked at they are.
    lock(lab, "open")
    os.link(secret, lab.root / "elsewhere")
    assert ("machine", "owner-link") in deviations(lab)


def test_names_within_the_owners_directory_are_no_way_in(lab: VerifyLab) -> None:
    """An open machine's root may link files in its home; a directory's name is no excuse."""
    path = lab.put(lab.sysroot.root / "owner/roothome/work/a", "x")
    os.link(path, path.with_name("b"))
    assert deviations(lab) == []
    os.link(path, lab.root / "elsewhere")
    assert deviations(lab) == [("machine", "owner-link")] * 2


def test_the_owners_directory_may_change_meanwhile(lab: VerifyLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """An open machine writes /etc while it is looked at."""
    path = lab.put(lab.sysroot.root / "owner/etc/0/upper/passwd.lock", "x")
    real = os.walk

    def walk(top: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        for row in real(top):
            if path.name in row[2]:
                path.unlink()
            yield row

    monkeypatch.setattr(os, "walk", lambda top, **options: walk(top) if Path(top).name == "owner" else real(top, **options))
    assert deviations(lab) == []
    assert not path.exists()


def test_a_boot_partition_that_cannot_be_read_is_not_taken_for_an_empty_one(
    lab: VerifyLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.scandir

    def scandir(path: str | Path) -> object:
        if str(path).endswith("/loader"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert ("boot", "boot-partition") in deviations(lab)


def test_the_ring(lab: VerifyLab) -> None:
    lab.sealed = False
    assert deviations(lab) == [("machine", "ring-open")]
    lab.sealed, lab.extra_keys = True, ("abcd",)
    assert deviations(lab) == [("machine", "ring-key")]


def variable(lab: VerifyLab, name: str, value: bytes, *, attributes: int = 6) -> None:
    """A firmware variable: 6 is not stored, 7 and 0x27 are."""
    path = lab.sysroot.system / "sys/firmware/efi/efivars" / name
    lab.put(path, attributes.to_bytes(4, "little") + value)


def test_the_ring_of_a_machine_with_secure_boot(lab: VerifyLab) -> None:
    """The firmware's certificates count then, not the keychain's; a stored variable is not the firmware's word."""
    variable(lab, f"SecureBoot-{efi.GLOBAL_VARIABLE}", b"\1")
    variable(lab, f"SetupMode-{efi.GLOBAL_VARIABLE}", b"\0")
    both = [efi.certificate_list(key(*whose).certificate) for whose in (("release", "vendor"), ("owner", "me"))]
    variable(lab, f"db-{efi.IMAGE_SECURITY_DATABASE}", b"".join(both), attributes=0x27)
    report = check(lab)
    assert (rows(report), report.status) == ([], 0)
    assert "secure-boot" not in {one["check"] for one in rows(report, "note")}
    variable(lab, f"db-{efi.IMAGE_SECURITY_DATABASE}", both[0], attributes=0x27)
    assert deviations(lab) == [("machine", "ring-key")]
    variable(lab, "MokListRT-605dab50-e046-4300-abb6-3dd810dd8b23", both[1], attributes=7)
    assert deviations(lab) == [("machine", "ring-key")]
    variable(lab, "MokListRT-605dab50-e046-4300-abb6-3dd810dd8b23", both[1])
    assert deviations(lab) == []
    # In setup mode the image's own keychain counts.
    variable(lab, "MokListRT-605dab50-e046-4300-abb6-3dd810dd8b23", both[1], attributes=7)
    variable(lab, f"SetupMode-{efi.GLOBAL_VARIABLE}", b"\1")
    assert deviations(lab) == []


def test_a_choice_that_the_boot_loader_was_told(lab: VerifyLab) -> None:
    variable(lab, "LoaderEntryDefault-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f", "old.efi\0".encode("utf-16-le"), attributes=7)
    (found,) = [one for one in rows(check(lab), "note") if one["check"] == "loader-choice"]
    assert found["found"] == "the boot loader is told to start old.efi"


def test_a_keychain_that_cannot_be_read_trusts_nobody(lab: VerifyLab) -> None:
    lab.put(lab.sysroot.keychain / "evil.der", "x")
    found = deviations(lab)
    assert ("machine", "keychain") in found
    assert (lab.running.id, "manifest-signature") in found


def test_another_machine_or_another_command(lab: VerifyLab) -> None:
    with atomic.exclusive(lab.sysroot.lock_file, "it"), pytest.raises(BusyError):
        check(lab)
    (lab.sysroot.system / "proc/cmdline").write_text("quiet\n")
    with pytest.raises(NotHereError, match="does not run"):
        check(lab)


def test_a_booted_deployment_that_is_not_there(lab: VerifyLab) -> None:
    (lab.sysroot.system / "proc/cmdline").write_text(f"freehold.image={'9' * 64}\n")
    assert ("9" * 16, "booted") in deviations(lab)


@pytest.mark.parametrize("jobs", [1, 2, 7])
def test_any_number_of_threads_gives_the_same_report(lab: VerifyLab, jobs: int) -> None:
    contents = [f"file{number}" for number in range(60)]
    lab.fill(lab.running, *contents)
    for number in range(0, 60, 7):
        lab.object(f"file{number}").unlink()
    report = check(lab, jobs=jobs)
    assert [one["object"].split()[0] for one in rows(report)] == sorted(f"/usr/file{number}" for number in range(0, 60, 7))
    assert report.data["files"] == 63


def test_a_fault_of_ours_is_not_swallowed() -> None:
    def broken(buffer: bytearray) -> tuple[list[object], int]:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        verify_content.run_jobs([(1, broken)] * 9, 2, NullMonitor())  # type: ignore[list-item]


def test_an_interrupted_run_ends_its_threads() -> None:
    started, before = threading.Event(), threading.active_count()

    class Impatient(NullMonitor):
        def progress(self, done: int, total: int, unit: str) -> None:
            started.wait(5)
            raise KeyboardInterrupt

    def slow(buffer: bytearray) -> tuple[list[Finding], int]:
        started.set()
        threading.Event().wait(0.3)
        return [], 1

    ran: list[tuple[int, Callable[[bytearray], tuple[list[Finding], int]]]] = [(1, slow)] * 1000
    with pytest.raises(KeyboardInterrupt):
        verify_content.run_jobs(ran, 2, Impatient())
    assert threading.active_count() == before


def test_objects_of_several_trees() -> None:
    one = Pointer("/a", "00/x.file", b"1", 3)
    two = one._replace(path="/b")
    merged = verify_content.objects_of([("d1", [one, two]), ("d2", [two])])
    assert merged == [verify_content.Object("00/x.file", b"1", 3, (("d1", "/a"), ("d2", "/b")))]


def test_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["verify"]) == 1
    assert capsys.readouterr().err.splitlines()[0] == "freehold: only root can verify a machine"
    assert main(["verify", "--jobs", "0"]) == 2
    assert main(["verify", "--jobs", "many"]) == 2
