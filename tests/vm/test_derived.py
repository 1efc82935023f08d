# SPDX-License-Identifier: Apache-2.0
"""A machine's own deployments, from the open machine to the locked one with a device key in its TPM, and back by rollback."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
from demo.stage import Stage
from demo.story import root_runs
from tests.vm.reference import TIMEOUT, Reference, answered, booted, status

pytestmark = [pytest.mark.vm, pytest.mark.build, pytest.mark.campaign]
NONCES = ("5a" * 32, "a5" * 32)
EVIL = "freehold-requests 1\nkarg append init=/bin/sh\n"


@pytest.fixture(scope="module")
def enrolled(reference: Reference) -> Iterator[Stage]:
    """A machine with Secure Boot by its owner's keys, and a TPM."""
    stage = reference.stage
    disk = stage.path("derived.raw")
    disk.unlink(missing_ok=True)
    stage.freehold("disk", "server-1", "-o", disk, "--store", str(stage.store), "--keys", str(stage.keys), "--enrol", "force")
    # The firmware's variables are empty: the first start enrols and restarts.
    reference.start(disk, "--secure-boot", "--tpm", "--ignition", str(stage.path("first-boot.ign")), timeout=400)
    stage.copy(stage.path("marker"), "/var/lib/marker", executable=True)
    yield stage
    disk.unlink(missing_ok=True)


def arguments(stage: Stage) -> list[str]:
    """The kernel's arguments."""
    return stage.shell("cat /proc/cmdline").split()


def verified(stage: Stage) -> None:
    """`freehold verify` finds nothing that is not as it was signed."""
    done = stage.guest("freehold", "verify", "--quick", "--json", check=False, timeout=TIMEOUT)
    found = [one for one in json.loads(done.stdout)["findings"] if one["severity"] == "deviation"]
    assert (done.status, found) == (0, []), found


def machine_id(stage: Stage) -> str:
    return stage.shell("cat /sysroot/owner/id")


def attested(stage: Stage, asked: str, checked: str) -> tuple[int, dict[str, Any]]:
    """Answer the nonce ``asked`` on the machine, check it elsewhere by the identity and the nonce ``checked``."""
    stage.guest("freehold", "attest", "--nonce", asked, "-o", "/run/attestation", timeout=TIMEOUT)
    file = stage.path("attestation")
    file.unlink(missing_ok=True)
    stage.freehold("vm", "copy", stage.name, ":/run/attestation", file)
    identity = str(stage.path("identity"))
    done = stage.freehold("attest", "--check", file, "--nonce", checked, "--identity", identity, "--json", check=False)
    return done.status, dict(json.loads(done.stdout))


def test_on_the_open_machine_the_owner_signs(reference: Reference, enrolled: Stage) -> None:
    stage = enrolled
    assert "quiet" not in arguments(stage)
    stage.guest("freehold", "attest", "--identity", "-o", "/run/identity", timeout=TIMEOUT)
    stage.path("identity").unlink(missing_ok=True)
    stage.freehold("vm", "copy", stage.name, ":/run/identity", stage.path("identity"))
    assert json.loads(stage.path("identity").read_bytes())["measures"] is True
    for name in ("owner.key", "owner.crt", "owner.der"):
        stage.copy(stage.keys / name, f"/run/{name}")
    stage.shell("chmod 600 /run/owner.key")
    stage.guest("freehold", "kargs", "--append", "quiet", "--key", "file:/run/owner.key", timeout=TIMEOUT)
    stage.shell("rm /run/owner.*")
    stage.reboot()
    assert "quiet" in arguments(stage)
    row = booted(stage)
    assert (row["version"], row["signer"], row["kargs"], row["base_version"]) == ("1^1", "owner", ["append quiet"], "1")
    assert status(stage)["lock"]["secure_boot"] is True
    verified(stage)


def test_on_the_locked_machine_the_device_key_signs(reference: Reference, enrolled: Stage) -> None:
    stage = enrolled
    stage.signed("lock")
    assert json.loads(stage.guest("freehold", "device-key", "show", "--json").stdout)["keeper"] == "tpm2"
    # The boot that locked cannot use it.
    stage.reboot()
    assert status(stage)["lock"]["state"] == "locked"
    answer = answered(stage, "kargs", "--append", "nosmt")
    done = stage.guest("freehold", "apply", "--answer", answer, "--json", timeout=TIMEOUT, check=False)
    assert done.status == 0, done.stderr.decode()
    assert json.loads(done.stdout)["verdict"] == "staged"
    stage.reboot()
    assert {"quiet", "nosmt"} <= set(arguments(stage))
    row, lock = booted(stage), status(stage)["lock"]
    assert row["signer"] == machine_id(stage)
    assert (lock["state"], lock["secure_boot"], lock["keychain_source"]) == ("locked", True, "firmware")
    assert not root_runs(stage)
    verified(stage)
    # From elsewhere: this machine, locked, with what it derived itself. Another nonce is not answered by it.
    exit_status, verdict = attested(stage, NONCES[0], NONCES[0])
    assert (exit_status, verdict["lock"]) == (0, "locked"), verdict
    exit_status, verdict = attested(stage, NONCES[0], NONCES[1])
    assert (exit_status, verdict["lock"]) == (1, None), verdict


def test_root_alone_asks_for_nothing(reference: Reference, enrolled: Stage) -> None:
    stage = enrolled
    before = stage.shell("ls /efi/EFI/Linux; ls /sysroot/deployments")
    # Its own text under the name of the list that the owner signed, and an unsigned intent that asks for another.
    stage.shell(
        f"for list in /sysroot/inbox/requests/*; do printf %s {shlex.quote(EVIL)} > $list; done\n"
        "sed s/^serial.*/'serial 99'/ /sysroot/owner/intent > /sysroot/inbox/offered"
    )
    done = stage.guest("freehold", "apply", check=False, timeout=TIMEOUT)
    assert "init=" not in stage.shell("cat /sysroot/deployments/*/manifest.json")
    assert done.status == 0, done.stderr.decode()
    updater = "/usr/lib/freehold/updater"
    done = stage.guest(updater, "apply", "offered", check=False, timeout=TIMEOUT)
    assert (done.status, b"the signed intent is refused" in done.stderr) == (1, True), done.stderr.decode()
    # Started by somebody who could change what it sees, it reads no key.
    done = stage.guest("unshare", "-m", updater, "self-check", check=False)
    assert (done.status, json.loads(done.stdout)["reads"]) == (1, False)
    assert stage.shell("ls /efi/EFI/Linux; ls /sysroot/deployments") == before
    assert stage.shell("ls /sysroot/derive /tmp/scratch 2>/dev/null", check=False) == ""


def test_an_update_takes_the_requests_along_and_rolls_back(reference: Reference, enrolled: Stage) -> None:
    stage = enrolled
    old = booted(stage)["version"]
    # Where updates come from is read out of the configuration that the owner committed, wherever root mounts another.
    stage.shell("echo '[update]\nurl = \"http://10.0.2.2:1\"' > /etc/freehold/update.toml")
    stage.shell("mkdir -p /run/evil && mount --bind /run/evil /run/freehold/config", check=False)
    done = stage.guest("freehold", "upgrade", "--json", timeout=TIMEOUT, check=False)
    assert done.status == 0, done.stderr.decode()
    report = json.loads(done.stdout)
    assert (report["staged"], report["offered"]["version"]) == (True, "2")
    assert report["requests"] == ["karg append quiet", "karg append nosmt"]
    stage.reboot()
    row = booted(stage)
    assert (row["version"].partition("^")[0], row["signer"]) == ("2", machine_id(stage))
    assert {"quiet", "nosmt"} <= set(arguments(stage))
    assert status(stage)["lock"]["state"] == "locked"
    stage.guest("freehold", "rollback")
    stage.reboot()
    assert booted(stage)["version"] == old
    assert {"quiet", "nosmt"} <= set(arguments(stage))
    verified(stage)
