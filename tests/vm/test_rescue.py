# SPDX-License-Identifier: Apache-2.0
"""Getting back in: each way of docs/getting-back-in.md is walked, and the letter in /var is there at its end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from demo import story
from demo.stage import Stage
from demo.story import root_runs
from tests.vm.reference import Reference

from freehold import run
from freehold.build.disk import ALIGNMENT, ESP_SIZE
from freehold.build.store import cache_directory
from freehold.build.tools import ensure
from freehold.device.status import WITHOUT_SECURE_BOOT
from freehold.monitor import NullMonitor
from freehold.vm.control import attach

pytestmark = [pytest.mark.vm, pytest.mark.build, pytest.mark.campaign]

LETTER = "/var/lib/letter"
ONE_SHOT = "/sys/firmware/efi/efivars/LoaderEntryOneShot-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
#: Written by hand, as `bootctl set-oneshot` would: attributes, then the entry's pattern in UTF-16.
CHOOSE = (
    f"import os; f = os.open('{ONE_SHOT}', os.O_WRONLY | os.O_CREAT, 0o644); "
    "os.write(f, bytes([7, 0, 0, 0]) + '{}\\0'.encode('utf-16-le'))"
)
RECORD = "/run/freehold/boot.json"


def record_of(stage: Stage) -> dict[str, object]:
    record = json.loads(stage.shell(f"cat {RECORD}"))
    assert isinstance(record, dict)
    return record


def lock_of(stage: Stage) -> dict[str, object]:
    lock = json.loads(stage.guest("freehold", "status", "--json").stdout)["lock"]
    assert isinstance(lock, dict)
    return lock


def to_rescue(stage: Stage) -> None:
    """Reboot into the rescue entry and wait for its console."""
    stage.guest("python3", "-c", CHOOSE.format("freehold-rescue-*"))
    stage.reboot()
    assert record_of(stage)["rescue"] is True
    wait_for(stage, "rescue>")


def screen(stage: Stage) -> str:
    """What the first virtual console shows."""
    return stage.shell("cat /dev/vcs1", check=False)


def wait_for(stage: Stage, text: str, *, seconds: float = 40) -> str:
    deadline = time.monotonic() + seconds
    while text not in (seen := screen(stage)):
        assert time.monotonic() < deadline, f"the console never showed {text!r}: {seen}"
        time.sleep(0.5)
    return seen


def type_line(stage: Stage, line: str, expected: str, *, seconds: float = 40) -> str:
    """Clear the screen, type a line at the keyboard, wait for ``expected``."""
    stage.shell("printf '\\033[2J\\033[H' > /dev/tty1")
    stage.freehold("vm", "type", stage.name, line, "--enter")
    return wait_for(stage, expected, seconds=seconds)


def stick_image(stage: Stage, *files: Path) -> Path:
    """A FAT file system with keys, without a partition table: a stick as people have it."""
    path = stage.path("stick.img")
    path.unlink(missing_ok=True)
    with path.open("wb") as image:
        image.truncate(64 << 20)
    tools = ensure(cache_directory(), NullMonitor())
    tools.run(["mkfs.vfat", "-n", "FREEHOLDKEY", path], binds=[path.parent])
    for file in files:
        tools.run(["mcopy", "-i", path, file, f"::/{file.name}"], binds=[path.parent], ro_binds=[file.parent])
    return path


@pytest.fixture(scope="module")
def locked(reference: Reference) -> Iterator[Stage]:
    """A locked machine with Secure Boot, a change in /etc, a letter in /var, and the owner's stick in it."""
    stage = reference.stage
    stage.freehold("key", "new", "stranger", "--role", "owner", "--no-passphrase", "--out", stage.path("."), check=False)
    stick = stick_image(stage, stage.keys / "owner.key", stage.path("stranger.key"))
    reference.start(
        reference.overlay("rescue"), "--secure-boot", "--keys", str(stage.keys), "--extra-disk", str(stick), timeout=300
    )
    stage.shell(f"echo dear > {LETTER}; echo mine > /etc/freehold-mine")
    stage.signed("lock")
    assert lock_of(stage)["state"] == "locked"
    yield stage


def test_the_rescue_entry_is_locked_and_factory(locked: Stage) -> None:
    to_rescue(locked)
    record = record_of(locked)
    assert (record["rescue"], record["config"]) == (True, "")
    assert lock_of(locked)["state"] == "locked"
    assert not root_runs(locked)
    assert locked.shell("ls /etc/freehold-mine 2>/dev/null; find /root/ -type f") == ""
    assert locked.shell(f"cat {LETTER}") == "dear"
    assert "alice" not in locked.shell("cat /etc/passwd")
    assert locked.shell("systemctl is-active ssh.service multi-user.target || true").split() == ["inactive", "inactive"]
    consoles = "freehold-rescue@tty1.service freehold-rescue@ttyS0.service"
    assert locked.shell(f"systemctl is-active {consoles}").split() == ["active", "active"]
    shown = type_line(locked, "state", "boot entry")
    assert "number 1" in shown
    assert "alice" not in shown


def test_without_the_owners_credential_nothing_is_done(locked: Stage) -> None:
    type_line(locked, "unlock", "refused: this needs the owner's credential")
    type_line(locked, "key stranger.key", "waiting 2 s")
    type_line(locked, "verify", "good")
    assert locked.shell("ls /sysroot/inbox/intent 2>/dev/null || true") == ""


def test_a_request_is_answered_elsewhere_and_typed(locked: Stage) -> None:
    """A forgotten passphrase: the key opens on another computer, this one gets a signed answer."""
    type_line(locked, "request access", "written to the stick")
    locked.shell("mkdir -p /run/look && mount -t vfat -o ro /dev/vdb /run/look")
    request = locked.path("rescue.request")
    locked.freehold("vm", "copy", locked.name, ":/run/look/freehold-rescue.request", request)
    locked.shell("umount /run/look")
    locked.freehold("sign", request, "--key", f"file:{locked.keys / 'owner.key'}")
    signed = request.with_name(f"{request.name}.signed").read_text()
    type_line(locked, "answer -", "begins with `signature`")
    for line in signed.splitlines():
        locked.freehold("vm", "type", locked.name, line, "--enter")
    wait_for(locked, "good: machine")
    type_line(locked, "repair-esp", "the boot partition lacks nothing")


def test_the_owners_key_unlocks(locked: Stage) -> None:
    type_line(locked, "key owner.key", "good: this is owner's key")
    type_line(locked, "unlock", "from the next boot on")
    # `reboot` at the console; the agent of the boot that goes away must not be taken for the next one's.
    before = attach(locked.name).guest.boot_id()
    locked.freehold("vm", "type", locked.name, "reboot", "--enter")
    attach(locked.name).wait_answer(300, other_than=before)
    assert record_of(locked)["rescue"] is False
    assert lock_of(locked)["state"] == "open"
    assert root_runs(locked)
    assert locked.shell(f"cat {LETTER} /etc/freehold-mine").split() == ["dear", "mine"]
    log = locked.shell("cat /sysroot/owner/rescue.log")
    for part in ("credential refused (1)", "answer taken", "owner's key opened by owner", "unlock"):
        assert part in log, part
    assert set(locked.shell("ls /sysroot/inbox").split()) <= {"healthy"}


def test_secure_boot_off_boots_and_says_so_everywhere(reference: Reference, locked: Stage) -> None:
    """Physical presence wins: another firmware, with Secure Boot off, starts the same disk."""
    locked.guest("sync")
    locked.freehold("vm", "stop", locked.name)
    reference.start(locked.path("rescue.qcow2"), timeout=300)
    report = json.loads(locked.guest("freehold", "status", "--json").stdout)
    assert WITHOUT_SECURE_BOOT in report["messages"]
    assert "Secure Boot off: not verified" in locked.guest("freehold", "status").text
    assert WITHOUT_SECURE_BOOT in locked.shell("dmesg")
    for place in ("/run/issue.d/freehold.issue", "/run/motd.d/freehold"):
        assert WITHOUT_SECURE_BOOT in locked.shell(f"cat {place}")
    wait_for(locked, "not verified")  # above the login prompt
    verdict = locked.guest(
        "python3", "-c",
        "from freehold.device.sysroot import Sysroot; from freehold.device.trust import trusted_boot; s = Sysroot(); "
        "print(trusted_boot(s.boot_record(), secure_boot=s.secure_boot(), image=s.booted(), ring_from_firmware=True))",
    ).text  # fmt: skip
    assert "ok=False" in verdict
    assert "Secure Boot is off" in verdict
    assert locked.shell(f"cat {LETTER}") == "dear"


def test_the_menu_offers_the_rescue_entry(reference: Reference) -> None:
    """A key held down while the machine starts shows the menu; the rescue entry is the second, behind the only deployment."""
    stage = reference.stage
    stage.freehold("vm", "stop", stage.name, "--hard", check=False)
    stage.freehold("vm", "start", reference.overlay("menu"), "--name", stage.name, "--no-wait")
    vm = attach(stage.name)
    deadline = time.monotonic() + 60
    while "(rescue)" not in vm.serial().decode(errors="replace"):
        assert time.monotonic() < deadline, "the menu never came"
        vm.key("space")
        time.sleep(0.2)
    vm.key("down")
    time.sleep(0.5)
    vm.key("enter")
    vm.wait_answer(300)
    assert record_of(stage)["rescue"] is True


def test_when_every_deployment_is_bad_the_rescue_entry_starts_by_itself(reference: Reference) -> None:
    reference.start(reference.overlay("bad"), timeout=300)
    stage = reference.stage
    assert record_of(stage)["rescue"] is False
    stage.shell(
        'for f in /efi/EFI/Linux/freehold-[0-9]*.efi; do b=${f%.efi}; mv "$f" "${b%%+*}+0-3.efi"; done; '
        "sync -f /efi; ls /efi/EFI/Linux"
    )
    stage.reboot()
    assert record_of(stage)["rescue"] is True
    # It is no deployment of its own, and has no tries: it is there as long as it is needed.
    status = json.loads(stage.guest("freehold", "status", "--json").stdout)
    assert [one["version"] for one in status["deployments"]] == ["1"]
    stage.reboot()
    assert record_of(stage)["rescue"] is True


def raw_copy(reference: Reference, name: str) -> Path:
    path = reference.stage.path(name)
    path.unlink(missing_ok=True)
    run.run(["cp", "--sparse=always", reference.disk, path])
    return path


def wipe_esp(disk: Path) -> None:
    with disk.open("r+b") as file:
        file.seek(ALIGNMENT)
        for _ in range(64):
            file.write(bytes(1 << 20))


def flip(disk: Path, name: str, offset: int) -> None:
    """Flip a bit of the root file system's file ``name``."""
    tools = ensure(cache_directory(), NullMonitor())
    done = tools.run(["debugfs", "-R", f"blocks {name}", f"{disk}?offset={ALIGNMENT + ESP_SIZE}"], binds=[disk.parent])
    position = ALIGNMENT + ESP_SIZE + 4096 * int(done.text.split()[0]) + offset
    with disk.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)
        file.seek(position)
        file.write(bytes([byte[0] ^ 1]))


def boots_whole(reference: Reference, disk: Path, *options: str) -> None:
    reference.start(disk, *options, timeout=300)
    stage = reference.stage
    assert stage.guest("systemctl", "is-system-running", "--wait", check=False).text.strip() == "running"
    assert stage.shell("ls /var/lib/marker") == "/var/lib/marker"


def test_a_stick_repairs_wiped_and_damaged_disks(reference: Reference) -> None:
    """ESP wiped; no deployment starts. One stick, one start, two disks; then each starts by itself."""
    stage = reference.stage
    stick = stage.path("rescue-stick.raw")
    stick.unlink(missing_ok=True)
    stage.freehold(
        "disk", "server-1", "-o", stick, "--stick", "--size", "4G", "--store", stage.store, "--keys", stage.keys
    )
    wiped, damaged = raw_copy(reference, "wiped.raw"), raw_copy(reference, "damaged.raw")
    wipe_esp(wiped)
    digest = json.loads((stage.store / "releases/server-1/manifest.json").read_text())["image_digest"]
    flip(damaged, f"/images/{digest}", 1200)
    reference.refused_boot(damaged, "is refused: Input/output error")
    secure = ("--secure-boot", "--keys", str(stage.keys))
    reference.start(stick, *secure, "--extra-disk", str(wiped), "--extra-disk", str(damaged), timeout=300)
    # The system runs from the stick although three disks have partitions of the same names.
    assert stage.shell("findmnt -no SOURCE /sysroot") == "/dev/vda2"
    assert "/dev/vda1" in stage.shell("ls /efi > /dev/null; findmnt -no SOURCE /efi")
    own = stage.guest("freehold", "rescue", "repair-esp", "--disk", "/dev/vda", "--yes", check=False)
    assert own.status == 1
    assert b"own disk" in own.stderr
    seen = json.loads(stage.guest("freehold", "rescue", "status", "--disk", "/dev/vdb", "--json").stdout)
    assert seen["esp_usable"] is False
    before = stage.shell("head -c 64M /dev/vdb1 | sha256sum")
    dry = json.loads(stage.guest("freehold", "rescue", "repair-esp", "--disk", "/dev/vdb", "--dry-run", "--json").stdout)
    assert dry["done"] is False
    assert stage.shell("head -c 64M /dev/vdb1 | sha256sum") == before
    refused = stage.guest("freehold", "rescue", "repair-esp", "--disk", "/dev/vdb", check=False)
    assert refused.status == 1  # nobody typed the disk's name
    stage.guest("freehold", "rescue", "repair-esp", "--disk", "/dev/vdb", "--yes", timeout=300)
    stage.guest("freehold", "rescue", "install", "--disk", "/dev/vdc", "--yes", timeout=900)
    stage.guest("sync")
    stage.freehold("vm", "stop", stage.name)
    boots_whole(reference, wiped, *secure)
    boots_whole(reference, damaged, *secure)


@pytest.fixture(scope="module")
def heir(reference: Reference) -> Iterator[Stage]:
    """A stage of a new owner: keys and a release of their own."""
    new = replace(reference.stage, library="freehold-heir")
    for name in ("release", "owner"):
        if not (new.keys / f"{name}.key").exists():
            new.freehold("key", "new", name, "--role", name, "--no-passphrase", "--out", new.keys)
    recipe = Path(__file__).parents[2] / "demo/release-1.toml"
    story.build(new, recipe, "1")
    yield new


def test_a_lost_owner_key_costs_no_data(reference: Reference, heir: Stage) -> None:
    """The machine is locked by a key that nobody has any more. Its firmware gets the new owner's keys by hand."""
    stage = reference.stage
    lost = raw_copy(reference, "lost.raw")
    old = ("--secure-boot", "--keys", str(stage.keys))
    reference.start(lost, *old, timeout=300)
    stage.shell(f"echo dear > {LETTER}; echo mine > /etc/freehold-mine; rm /etc/issue.net")
    stage.signed("lock")
    stage.guest("sync")
    stage.freehold("vm", "stop", stage.name)
    stick = stage.path("heir-stick.raw")
    stick.unlink(missing_ok=True)
    stage.freehold(
        "disk", "server-1", "-o", stick, "--stick", "--size", "4G", "--store", heir.store, "--keys", heir.keys
    )
    new = ("--secure-boot", "--keys", str(heir.keys))
    reference.start(stick, *new, "--extra-disk", str(lost), timeout=300)
    refused = stage.guest("freehold", "rescue", "install", "--disk", "/dev/vdb", "--yes", check=False)
    assert refused.status == 1
    assert b"does not know the owner" in refused.stderr
    done = json.loads(stage.guest("freehold", "rescue", "adopt", "--disk", "/dev/vdb", "--yes", "--json", timeout=900).stdout)
    assert any("owner/intent.aside-" in line for line in done["steps"])
    stage.guest("sync")
    stage.freehold("vm", "stop", stage.name)
    reference.start(lost, *new, timeout=300)
    assert lock_of(stage)["state"] == "open"
    assert stage.shell(f"cat {LETTER} /etc/freehold-mine").split() == ["dear", "mine"]
    assert stage.shell("ls /etc/issue.net 2>/dev/null || true") == ""
    assert stage.shell("id -u alice") == "1000"
    # And it is the new owner's to lock.
    stage.guest("freehold", "lock", "--request", "/run/lock.request")
    request = stage.path("heir.request")
    stage.freehold("vm", "copy", stage.name, ":/run/lock.request", request)
    stage.freehold("sign", request, "--key", f"file:{heir.keys / 'owner.key'}")
    stage.copy(request.with_name(f"{request.name}.signed"), "/run/lock.signed")
    stage.guest("freehold", "lock", "--answer", "/run/lock.signed")
    assert lock_of(stage)["state"] == "locked"
    reference.cold_reboot()
    assert lock_of(stage)["state"] == "locked"
    assert stage.shell(f"cat {LETTER} /etc/freehold-mine").split() == ["dear", "mine"]
