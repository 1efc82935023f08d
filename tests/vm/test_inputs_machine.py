# SPDX-License-Identifier: Apache-2.0
"""Kernel inputs on the reference image, with the owner's keys in the firmware: what is in force, what loads, a lost list."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from pathlib import Path

import pytest
from demo.stage import Stage
from tests.vm.reference import Reference, booted, status

from freehold.keys import module, verity
from freehold.keys.x509 import load_signer
from freehold.seal import kernel_inputs

pytestmark = [pytest.mark.vm, pytest.mark.build, pytest.mark.campaign]

IPE = "/sys/kernel/security/ipe"
MODULES = "/usr/lib/modules/$(uname -r)/kernel/drivers/net"


@pytest.fixture(scope="module")
def machine(reference: Reference) -> Iterator[Stage]:
    """A machine whose firmware has the owner's and the release's certificates, open."""
    stage = reference.stage
    disk = stage.path("inputs.raw")
    disk.unlink(missing_ok=True)
    stage.freehold("disk", "server-1", "-o", disk, "--store", stage.store, "--keys", stage.keys, "--enrol", "force")
    reference.start(disk, "--secure-boot", "--ignition", str(stage.path("first-boot.ign")), timeout=400)
    yield stage
    disk.unlink(missing_ok=True)


def in_force(stage: Stage) -> bool:
    """What the kernel itself says."""
    name = json.loads((stage.store / "releases/server-1/manifest.json").read_text())["kernel_inputs"]["name"]
    active = stage.shell(f"cat {IPE}/policies/freehold-{name}/active {IPE}/enforce 2>/dev/null", check=False)
    return "".join(active.split()) == "11"  # no line ends


def deviations(stage: Stage) -> list[str]:
    """Where `freehold verify` misses the list, or its being in force."""
    done = stage.guest("freehold", "verify", "--quick", "--json", check=False, timeout=600)
    rows = json.loads(done.stdout)["findings"]
    return [row["where"] for row in rows if (row["severity"], row["check"]) == ("deviation", "kernel-inputs")]


def insert(stage: Stage, path: str) -> bool:
    return stage.guest("insmod", path, check=False).status == 0


def sign_file(stage: Stage, path: Path, target: str) -> None:
    """The owner's fs-verity signature, made here, and the file on the machine with it."""
    owner = load_signer(f"file:{stage.keys / 'owner.key'}", lambda _: b"")
    signature = path.with_suffix(".p7")
    signature.write_bytes(owner.sign_verity(verity.digest_bytes(path.read_bytes())))
    stage.copy(path, target)
    stage.copy(signature, f"{target}.p7")
    stage.guest("fsverity", "enable", target, f"--signature={target}.p7")


def test_an_open_machine_is_not_bound(machine: Stage) -> None:
    assert status(machine)["lock"]["kernel_inputs"] == "off"
    assert not in_force(machine)
    assert machine.guest("test", "-s", f"/sysroot/deployments/{booted(machine)['id']}/{kernel_inputs.FILE}").status == 0
    # The control of what is refused below: the machine's own module, out of a file of root's.
    machine.shell(f"cp {MODULES}/ifb.ko.xz /var/lib/ifb.ko.xz")
    assert insert(machine, "/var/lib/ifb.ko.xz")
    machine.guest("rmmod", "ifb")


def test_a_lock_binds_the_running_machine(machine: Stage) -> None:
    machine.signed("lock")
    assert status(machine)["lock"]["kernel_inputs"] == "enforced"
    assert in_force(machine)


def test_a_locked_boot_is_bound_from_its_start(reference: Reference, machine: Stage) -> None:
    reference.cold_reboot()
    lock = status(machine)["lock"]
    assert (lock["state"], lock["secure_boot"], lock["kernel_inputs"]) == ("locked", True, "enforced")
    assert in_force(machine)
    assert deviations(machine) == []
    assert machine.guest("systemctl", "is-system-running", "--wait", check=False).text.strip() == "running"
    # Nothing of a normal boot was refused.
    assert json.loads(machine.guest("freehold", "denials", "--json").stdout)["kernel"] == []


def test_the_tree_s_modules_load_and_others_do_not(machine: Stage) -> None:
    machine.guest("modprobe", "dummy")
    assert not insert(machine, "/var/lib/ifb.ko.xz")
    assert "freehold key sign-module" in machine.guest("freehold", "denials").text
    assert machine.guest("sh", "-c", f"echo 0 > {IPE}/enforce", check=False).status != 0
    assert in_force(machine)


def test_a_module_of_the_owner_s(machine: Stage) -> None:
    path = machine.path("nlmon.ko")
    machine.shell(f"cp {MODULES}/nlmon.ko.xz /run/nlmon.ko.xz")
    machine.freehold("vm", "copy", machine.name, ":/run/nlmon.ko.xz", machine.path("nlmon.ko.xz"))
    bare = module.split(lzma.decompress(machine.path("nlmon.ko.xz").read_bytes())).module

    path.write_bytes(bare)
    sign_file(machine, path, "/var/lib/unsigned.ko")
    assert not insert(machine, "/var/lib/unsigned.ko")
    whole = json.loads(machine.guest("freehold", "denials", "--json").stdout)
    said = whole["kernel"]
    assert [row["kind"] for row in said] == ["module-signature"], (whole, machine.shell("dmesg | tail -n 20"))
    assert said[0]["ways"][0]["command"].startswith("freehold key sign-module")

    machine.freehold("key", "sign-module", path, "--key", f"file:{machine.keys / 'owner.key'}")
    sign_file(machine, path, "/var/lib/signed.ko")
    assert insert(machine, "/var/lib/signed.ko")


def test_a_lost_list_is_found_and_made_again_and_without_it_there_is_no_boot(reference: Reference, machine: Stage) -> None:
    running = booted(machine)["id"]
    lost = f"/sysroot/deployments/{running}/{kernel_inputs.FILE}"
    machine.guest("rm", lost)
    assert deviations(machine) == [running]
    machine.guest("freehold", "cleanup")
    assert deviations(machine) == []
    machine.guest("rm", lost)
    machine.guest("sync")
    reference.refused_boot(
        machine.path("inputs.raw"), "the list of kernel inputs cannot be enforced (it is not there)", secure_boot=True
    )


def test_a_firmware_that_knows_nobody_is_weaker_and_says_so(reference: Reference) -> None:
    stage = reference.stage
    reference.start(reference.overlay("inputs-not-enrolled"))
    stage.signed("lock")
    reference.cold_reboot()
    found = status(stage)
    assert (found["lock"]["state"], found["lock"]["kernel_inputs"]) == ("locked", "guard")
    assert any("judged by the guard alone" in one for one in found["messages"])
    assert not in_force(stage)
    assert "the guard alone judges them" in stage.shell("dmesg")
    assert deviations(stage) == []
