# SPDX-License-Identifier: Apache-2.0
"""Hardware that lets its owner down: what is said, in one line, and that the machine starts all the same.

A kernel that may not ask the firmware, a TPM in lockout, another board, a variable store without room; and a machine that has
no device key because its owner wants none.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from demo.stage import Stage
from tests.vm.reference import TIMEOUT, Reference, answered, booted, status

from freehold.build.store import cache_directory
from freehold.build.tools import Tools, ensure
from freehold.device.status import WITHOUT_SECURE_BOOT
from freehold.monitor import NullMonitor
from freehold.vm import Machine, firmware, host, state
from freehold.vm.launch import adopt

pytestmark = [pytest.mark.vm, pytest.mark.build, pytest.mark.campaign]
STRANGE = "3a1f9c52-7b5e-4f0d-9d0a-6a4b6c1d2e3f"
FULL = "the firmware's store of variables is full"
#: One failed try is the last one; and somebody fails it.
LOCKOUT = """set -e
cd /run
tpm2_createprimary -Q -C o -p right -c tried.ctx
tpm2_dictionarylockout -s -n 1 -t 10000 -l 10000
! tpm2_create -Q -C tried.ctx -P wrong -u tried.pub -r tried.priv 2>/dev/null
tpm2_getcap properties-variable | grep 'inLockout: *1'"""
NO_LOCKOUT = "tpm2_dictionarylockout -c && tpm2_dictionarylockout -s -n 32 -t 1000 -l 1000"


@pytest.fixture(scope="module")
def tools() -> Tools:
    return ensure(cache_directory(), NullMonitor())


@pytest.fixture(scope="module")
def disk(reference: Reference) -> Iterator[Path]:
    """A machine with Secure Boot by its owner's keys, and a TPM, started once."""
    stage = reference.stage
    path = stage.path("hardship.raw")
    path.unlink(missing_ok=True)
    stage.freehold("disk", "server-1", "-o", path, "--store", str(stage.store), "--keys", str(stage.keys), "--enrol", "force")
    reference.start(path, "--secure-boot", "--tpm", "--ignition", str(stage.path("first-boot.ign")), timeout=400)
    stage.guest("systemctl", "is-system-running", "--wait", check=False)
    yield path
    path.unlink(missing_ok=True)


def is_up(stage: Stage) -> None:
    """Everything started, and the boot counts as good."""
    assert stage.guest("systemctl", "is-system-running", "--wait", check=False).text.strip() == "running", stage.shell(
        "systemctl --failed --no-legend", check=False
    )


def refused(stage: Stage, *command: str) -> str:
    """The one line by which a command fails, and its hint's."""
    done = stage.guest("freehold", *command, "-q", check=False, timeout=TIMEOUT)
    said = done.stderr.decode().strip().splitlines()
    assert done.status != 0
    assert 1 <= len(said) <= 2, said
    return said[0]


def put(tools: Tools, store: Path, name: str, size: int) -> bool:
    """Store a variable in the firmware's file; whether there was room."""
    change = store.with_suffix(".json")
    change.write_text(json.dumps({"version": 2, "variables": [{"name": name, "guid": STRANGE, "attr": 7, "data": "5a" * size}]}))
    argv = ["virt-fw-vars", "--inplace", str(store), "--set-json", str(change)]
    return tools.run(argv, binds=[store.parent], check=False).status == 0


def fill(tools: Tools, store: Path, leave: int) -> None:
    """Leave room for a few hundred bytes in the firmware's variables, and ``leave`` times 1,000 more."""
    names = itertools.count()
    for size in (8000, 1000):
        while put(tools, store, f"Filler{next(names)}", size):
            pass
    last = next(names) - 2
    for name in (f"Filler{last - one}" for one in range(leave)):
        tools.run(["virt-fw-vars", "--inplace", str(store), "--delete", name], binds=[store.parent])


def test_a_kernel_that_may_not_ask_the_firmware(reference: Reference, disk: Path) -> None:
    """As the real-time kernel by default: no variables. The image's certificates serve, and that is said."""
    stage = reference.stage
    for name in ("owner.key", "owner.crt", "owner.der"):
        stage.copy(stage.keys / name, f"/root/{name}")
    stage.shell("chmod 600 /root/owner.key")
    key = ("--key", "file:/root/owner.key")
    stage.guest("freehold", "kargs", "--append", "efi=noruntime", *key, timeout=TIMEOUT)
    stage.reboot()
    is_up(stage)
    assert "efi=noruntime" in stage.shell("cat /proc/cmdline").split()
    assert stage.shell("ls /sys/firmware/efi/efivars", check=False) == ""
    found = status(stage)
    assert found["lock"]["keychain_source"] == "image"
    assert any("Secure Boot" in one for one in found["messages"]), found["messages"]
    assert "variables are not to be seen" in refused(stage, "dbx", "show")
    # And back.
    stage.guest("freehold", "kargs", "--delete", "efi=noruntime", "--append", "quiet", *key, timeout=TIMEOUT)
    stage.shell("rm /root/owner.*")
    stage.reboot()
    is_up(stage)
    assert status(stage)["lock"]["keychain_source"] == "firmware"
    assert WITHOUT_SECURE_BOOT not in status(stage)["messages"]


def test_a_tpm_in_lockout(reference: Reference, disk: Path) -> None:
    stage = reference.stage
    stage.signed("lock")
    stage.shell(LOCKOUT)
    stage.reboot()
    is_up(stage)
    assert status(stage)["lock"]["state"] == "locked"
    assert "quiet" in stage.shell("cat /proc/cmdline").split()
    answer = answered(stage, "kargs", "--append", "nosmt")
    assert "the TPM is in lockout" in refused(stage, "apply", "--answer", answer)
    stage.shell(NO_LOCKOUT)
    # Nothing was used up by the refusal.
    stage.guest("freehold", "apply", "--answer", answer, timeout=TIMEOUT)
    stage.reboot()
    is_up(stage)
    assert booted(stage)["kargs"] == ["append quiet", "append nosmt"]


def test_another_board(reference: Reference, disk: Path) -> None:
    """The firmware knows the keys, the TPM is another one: it starts, locked, derives nothing; then the owner locks it anew."""
    stage = reference.stage
    stage.freehold("vm", "stop", stage.name)
    for path in (state.paths(stage.name).keep / "tpm").iterdir():
        path.unlink()
    reference.start(disk, "--secure-boot", "--tpm")
    is_up(stage)
    assert status(stage)["lock"]["state"] == "locked"
    answer = answered(stage, "kargs", "--append", "audit=0")
    assert "not the TPM that the device key was sealed by" in refused(stage, "apply", "--answer", answer)
    stage.signed("unlock")
    stage.reboot()
    stage.signed("lock")
    stage.reboot()
    is_up(stage)
    answer = answered(stage, "kargs", "--append", "audit=0")
    stage.guest("freehold", "apply", "--answer", answer, timeout=TIMEOUT)


def test_a_full_store_and_no_device_key(reference: Reference, disk: Path, tools: Tools) -> None:
    """Nothing that a running machine needs is written to the firmware. What the machine cannot sign its owner does."""
    stage = reference.stage
    if status(stage)["lock"]["state"] == "locked":
        stage.signed("unlock")
        stage.reboot()
    answer = answered(stage, "kargs", "--append", "loglevel=5")
    stage.guest("freehold", "apply", "--answer", answer, timeout=TIMEOUT)
    stage.signed("lock", "--strict")
    stage.freehold("vm", "stop", stage.name)
    # As full as a running system can make it: Linux leaves the firmware its last 5 KiB.
    fill(tools, state.paths(stage.name).keep / "variables.fd", 4)
    reference.start(disk, "--secure-boot", "--tpm")
    is_up(stage)
    found = status(stage)["lock"]
    assert (found["state"], found["secure_boot"], found["keychain_source"]) == ("locked", True, "firmware")
    assert booted(stage)["kargs"][-1] == "append loglevel=5"
    assert "no device key" in stage.guest("freehold", "device-key", "show", check=False).text
    mine, update = stage.path("leaving"), stage.path("full.auth")
    for path in (update, *(mine.iterdir() if mine.exists() else ())):
        path.unlink(missing_ok=True)
    stage.freehold("key", "new", "gone", "--role", "release", "--no-passphrase", "--out", mine)
    stage.freehold("key", "revoke", mine / "gone.crt", "--reason", "test", "--keys", mine)
    stage.freehold(
        "key", "dbx", mine / "gone.crt", "--key", f"file:{stage.keys / 'owner.key'}", "--keys", mine, "-o", update
    )  # fmt: skip
    stage.copy(update, "/run/full.auth")
    assert FULL in refused(stage, "dbx", "apply", "/run/full.auth")
    # An update: held until the owner has signed it.
    assert "is held" in refused(stage, "upgrade")
    assert booted(stage)["base_version"] == "1"
    answer = answered(stage, "apply", "--release", "2")
    stage.guest("freehold", "apply", "--answer", answer, timeout=TIMEOUT)
    stage.reboot()
    is_up(stage)
    row = booted(stage)
    assert (row["base_version"], row["signer"]) == ("2", "owner")
    assert status(stage)["lock"]["state"] == "locked"


def test_no_room_to_enrol(reference: Reference, tools: Tools) -> None:
    """The keys do not fit: they are not enrolled, the machine starts and says what is weaker."""
    stage = reference.stage
    stage.freehold("vm", "stop", stage.name, "--hard", check=False)
    path, variables = stage.path("no-room.raw"), stage.path("no-room.fd")
    path.unlink(missing_ok=True)
    stage.freehold("disk", "server-1", "-o", path, "--store", str(stage.store), "--keys", str(stage.keys), "--enrol", "force")
    found = firmware.find(host.firmware_folder(tools), secure=True)
    variables.write_bytes(found.variables.read_bytes())
    fill(tools, variables, 1)
    adopt(Machine(stage.name, path, secure_boot=True), variables, None, tools)
    reference.start(path, "--secure-boot", "--ignition", str(stage.path("first-boot.ign")), timeout=400)
    is_up(stage)
    lock = status(stage)["lock"]
    assert (lock["secure_boot"], lock["keychain_source"]) == (False, "image")
    assert WITHOUT_SECURE_BOOT in status(stage)["messages"]
    path.unlink()


def test_the_filler_fills(tmp_path: Path, tools: Tools) -> None:
    """The control of the above: what an empty store has room for, a filled one has not."""
    found = firmware.find(host.firmware_folder(tools), secure=True)
    store = tmp_path / "store.fd"
    store.write_bytes(found.variables.read_bytes())
    assert put(tools, store, "x", 2000)
    fill(tools, store, 1)
    assert put(tools, store, "y", 800)
    assert not put(tools, store, "z", 2000)
