# SPDX-License-Identifier: Apache-2.0
"""Release keys come and go on a machine that nobody touches: firmware and files believe the vendor, not the key."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from demo import story
from demo.stage import Stage, end

pytestmark = [pytest.mark.vm, pytest.mark.build, pytest.mark.campaign]

RECIPE = Path(__file__).parents[2] / "recipes/server.toml"


def status_of(stage: Stage) -> dict[str, object]:
    status = json.loads(stage.guest("freehold", "status", "--json").stdout)
    assert isinstance(status, dict)
    return status


def version_of(stage: Stage) -> str:
    """The version that runs, with Secure Boot and by the firmware's own certificates."""
    status = status_of(stage)
    lock, deployments = status["lock"], status["deployments"]
    assert isinstance(lock, dict)
    assert isinstance(deployments, list)
    assert (lock["secure_boot"], lock["keychain_source"], lock["keychain_loaded"]) == (True, "firmware", 2)
    return str(next(one["version"] for one in deployments if one["booted"]))


def release(stage: Stage, version: str, key: str, *, machines: str = "certificates") -> None:
    """Build a release by the issued ``key`` for machines that believe what is in ``machines``."""
    shutil.rmtree(stage.store / f"releases/server-{version}", ignore_errors=True)
    stage.freehold(
        "build", RECIPE, "--store", stage.store, "--version", version, "--keys", stage.path(machines),
        "--key", f"file:{stage.keys / key}.key",
    )  # fmt: skip


def publish(stage: Stage, version: str, key: str) -> None:
    stage.freehold(
        "publish", f"server-{version}", "--to", stage.path("www"), "--store", stage.store, "--key", f"file:{stage.keys / key}.key"
    )


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """A machine whose firmware has the vendor and the owner; its release is by the issued key ``r1``."""
    made = Stage(name="freehold-rotation", port=18652)
    shutil.rmtree(made.root, ignore_errors=True)
    made.root.mkdir(parents=True)
    for role in ("vendor", "owner"):
        made.freehold("key", "new", role, "--role", role, "--no-passphrase", "--out", made.keys)
    for name in ("r1", "r2"):
        ca = ("--ca", f"file:{made.keys / 'vendor.key'}")
        made.freehold("key", "issue", name, "--role", "release", *ca, "--no-passphrase", "--out", made.keys)
    # What machines believe: two certificates, none of them a release key's.
    for directory in ("certificates", "afterwards"):
        made.path(directory).mkdir()
        for role in ("vendor", "owner"):
            shutil.copyfile(made.keys / f"{role}.crt", made.path(directory) / f"{role}.crt")
    made.freehold("key", "revoke", made.keys / "r1.crt", "--reason", "a test", "--keys", made.path("afterwards"))
    try:
        release(made, "1", "r1")
        made.path("first-boot.ign").write_text(story.ignition(made.port))
        keys = ("--key", f"file:{made.keys / 'r1.key'}", "--owner-key", f"file:{made.keys / 'owner.key'}")
        made.freehold(
            "disk", "server-1", "-o", made.path("disk.raw"), "--store", made.store, "--keys", made.path("certificates"),
            *keys, "--enrol", "force",
        )  # fmt: skip
        made.freehold(
            "vm", "start", made.path("disk.raw"), "--name", made.name, "--secure-boot", "--timeout", "400",
            "--ignition", made.path("first-boot.ign"),
        )  # fmt: skip
        publish(made, "1", "r1")
        story.serve(made)
        yield made
    finally:
        end(made)


def test_an_issued_key_starts_a_machine_whose_firmware_knows_the_vendor(stage: Stage) -> None:
    assert version_of(stage) == "1"
    assert stage.guest("freehold", "verify", check=False, timeout=600).status == 0


def test_the_next_key_updates_it_and_the_first_one_is_revoked_with_that(stage: Stage) -> None:
    release(stage, "2", "r2", machines="afterwards")
    publish(stage, "2", "r2")
    stage.guest("freehold", "upgrade", timeout=600)
    stage.reboot()
    assert version_of(stage) == "2"
    stage.guest("systemctl", "is-system-running", "--wait", check=False)
    assert "+" not in stage.shell("ls /efi/EFI/Linux | grep '^freehold-2-'")


def test_what_the_revoked_key_signs_is_no_update_any_more(stage: Stage) -> None:
    # Its thief builds with the old list, or the build would refuse.
    release(stage, "3", "r1")
    publish(stage, "3", "r1")
    refused = stage.guest("freehold", "upgrade", check=False, timeout=600)
    assert refused.status == 1
    assert b"revoked" in refused.stderr
    assert stage.shell("ls /efi/EFI/Linux | grep -c '^freehold-3-'", check=False) == "0"
    release(stage, "4", "r2", machines="afterwards")
    publish(stage, "4", "r2")
    stage.guest("freehold", "upgrade", timeout=600)
    assert stage.shell("ls /efi/EFI/Linux | grep -c '^freehold-4-'") == "1"
