# SPDX-License-Identifier: Apache-2.0
"""Enrolment: an empty machine gets its owner's keys from the disk; from then on firmware and files share one keychain."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator

import pytest
from demo.stage import Stage
from demo.story import root_runs
from tests.vm.reference import Reference

from freehold.device.status import WITHOUT_FIRMWARE, WITHOUT_SECURE_BOOT
from freehold.keys import efi, pe
from freehold.vm.control import attach

pytestmark = [pytest.mark.vm, pytest.mark.build]

DENIED = r"Access [Dd]enied|Security [Vv]iolation"
EFIVARS = "/sys/firmware/efi/efivars"


def status_of(stage: Stage) -> dict[str, object]:
    status = json.loads(stage.guest("freehold", "status", "--json").stdout)
    assert isinstance(status, dict)
    return status


def lock_of(stage: Stage) -> dict[str, object]:
    lock = status_of(stage)["lock"]
    assert isinstance(lock, dict)
    return lock


def variable(stage: Stage, name: str) -> bytes:
    """A firmware variable's content, without its attributes."""
    guid = efi.IMAGE_SECURITY_DATABASE if name in ("db", "dbx") else efi.GLOBAL_VARIABLE
    return base64.b64decode(stage.shell(f"base64 -w0 {EFIVARS}/{name}-{guid}"))[4:]


def ring_size(stage: Stage) -> int:
    """How many certificates the kernel says its .fs-verity ring has."""
    found = re.search(r"\.fs-verity: (\d+|empty)", stage.shell("cat /proc/keys"))
    assert found is not None
    return 0 if found[1] == "empty" else int(found[1])


@pytest.fixture(scope="module")
def enrolled(reference: Reference) -> Iterator[dict[str, object]]:
    """A machine in setup mode that was started once from a disk with keys; what its dry run had announced."""
    stage = reference.stage
    disk, options = stage.path("enrol.raw"), ["--store", str(stage.store), "--keys", str(stage.keys), "--enrol", "force"]
    disk.unlink(missing_ok=True)
    announced = json.loads(stage.freehold("disk", "server-1", *options, "--dry-run", "--json").stdout)
    assert not disk.exists()
    stage.freehold("disk", "server-1", "-o", disk, *options)
    # No keys for the firmware: its variables are empty. The first start enrols and restarts.
    reference.start(disk, "--secure-boot", "--ignition", str(stage.path("first-boot.ign")), timeout=400)
    yield announced
    disk.unlink(missing_ok=True)


def test_secure_boot_is_on_with_exactly_the_announced_keys(reference: Reference, enrolled: dict[str, object]) -> None:
    stage = reference.stage
    assert (variable(stage, "SecureBoot"), variable(stage, "SetupMode")) == (b"\1", b"\0")
    enrolment = enrolled["enrolment"]
    assert isinstance(enrolment, dict)
    for name, rows in enrolment["variables"].items():
        found = [hashlib.sha256(one.data).hexdigest() for one in efi.parse_lists(variable(stage, name))]
        assert found == [row["sha256"] for row in rows], name


def test_files_are_believed_by_the_firmwares_certificates(reference: Reference, enrolled: dict[str, object]) -> None:
    stage = reference.stage
    lock = lock_of(stage)
    assert (lock["secure_boot"], lock["keychain_source"]) == (True, "firmware")
    assert (lock["keychain_loaded"], lock["keychain_skipped"]) == (2, 0)
    assert ring_size(stage) == 2
    messages = status_of(stage)["messages"]
    assert isinstance(messages, list)
    assert not {WITHOUT_SECURE_BOOT, WITHOUT_FIRMWARE} & set(messages)
    assert "Secure Boot is off" not in stage.shell("dmesg")
    # The early step's mount is the one that stays: writable, for boot loader tools.
    assert "rw" in stage.shell(f"findmnt -no OPTIONS {EFIVARS}").split(",")
    assert stage.guest("systemctl", "is-system-running", "--wait", check=False).text.strip() == "running"


def test_the_owner_locks_it(reference: Reference, enrolled: dict[str, object]) -> None:
    stage = reference.stage
    stage.copy(stage.path("marker"), "/var/lib/marker", executable=True)
    assert root_runs(stage)
    stage.signed("lock")
    assert lock_of(stage)["state"] == "locked"
    assert not root_runs(stage)


def test_the_firmware_takes_what_the_owner_revokes(reference: Reference, enrolled: dict[str, object]) -> None:
    """Under the lock as well: the owner's signature is what counts. The machine's own keys stay, so it starts again; of two
    kernel images that one key signed, the one that is listed does not start, although the boot loader prefers it.
    """
    stage = reference.stage
    running = status_of(stage)["booted"]
    newer = json.loads((stage.store / "releases/server-2/manifest.json").read_text())
    listed = stage.store / "releases/server-2/uki.efi"
    digest = pe.parse(listed.read_bytes()).authenticode()
    entry = f"EFI/Linux/freehold-2-{newer['image_digest'][:16]}+1.efi"
    stage.copy(listed, f"/efi/{entry}")
    # And one that is no program: the boot loader skips it without a word, the machine that comes up says so.
    stage.shell(f"printf MZ > /efi/EFI/Linux/freehold-3-{'0' * 16}.efi")
    update, mine = stage.path("dbx.auth"), stage.path("revoking")
    for path in (update, *(mine.iterdir() if mine.exists() else ())):
        path.unlink(missing_ok=True)
    stage.freehold("key", "new", "gone", "--role", "release", "--no-passphrase", "--out", mine)
    stage.freehold("key", "revoke", mine / "gone.crt", "--reason", "test", "--keys", mine)
    owner = ("--key", f"file:{stage.keys / 'owner.key'}", "--keys", mine)
    stage.freehold("key", "dbx", mine / "gone.crt", "--sha256", digest.hex(), *owner, "-o", update)
    stage.copy(update, "/run/dbx.auth")
    for changed in (True, False):
        done = json.loads(stage.guest("freehold", "dbx", "apply", "/run/dbx.auth", "--json").stdout)
        assert (done["changed"], done["vital"]) == (changed, [])
        assert not changed or f"{entry} would not start: it is revoked itself" in done["stops"]
        entries = efi.parse_lists(variable(stage, "dbx"))
        assert [one.data for one in entries] == [(mine / "gone.der").read_bytes(), digest]
    before = len(attach(stage.name).serial())
    stage.reboot()
    # The firmware's own words, for the image that it was asked for.
    assert re.search(DENIED, attach(stage.name).serial()[before:].decode(errors="replace")), "the firmware started what is listed"
    assert status_of(stage)["booted"] == running
    stage.guest("systemctl", "is-system-running", "--wait", check=False)
    messages = status_of(stage)["messages"]
    assert isinstance(messages, list)
    skipped = [one for one in messages if "the boot loader cannot read it" in one]
    assert [one.split()[0] for one in skipped] == [f"freehold-3-{'0' * 16}.efi"]
    lock = lock_of(stage)
    assert (lock["state"], lock["secure_boot"], lock["keychain_source"]) == ("locked", True, "firmware")
    assert not root_runs(stage)
    # What runs cannot be revoked by accident.
    update.unlink()
    stage.freehold("key", "dbx", stage.keys / "release.crt", *owner, "-o", update)
    stage.copy(update, "/run/dbx.auth")
    refused = stage.guest("freehold", "dbx", "apply", "/run/dbx.auth", check=False)
    assert refused.status == 2
    assert b"would not start" in refused.stderr
    assert len(efi.parse_lists(variable(stage, "dbx"))) == 2


def test_without_keys_on_the_disk_nothing_is_enrolled(reference: Reference) -> None:
    stage = reference.stage
    reference.start(reference.overlay("not-enrolled"), "--secure-boot")
    assert variable(stage, "SetupMode") == b"\1"
    lock = lock_of(stage)
    assert (lock["secure_boot"], lock["keychain_source"]) == (False, "image")
    assert ring_size(stage) == lock["keychain_loaded"] == 2
    messages = status_of(stage)["messages"]
    assert isinstance(messages, list)
    assert WITHOUT_SECURE_BOOT in messages
    assert WITHOUT_SECURE_BOOT in stage.shell("dmesg")
