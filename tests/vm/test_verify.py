# SPDX-License-Identifier: Apache-2.0
"""One byte of one object was changed while the machine was off: it is not read, and ``freehold verify`` names it alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.vm.reference import Reference
from tests.vm.test_tamper import VICTIM, block_of, flip, object_of, raw_copy

pytestmark = [pytest.mark.vm, pytest.mark.build]
#: Reading every object takes an emulated machine a while.
TIMEOUT = 900.0


@pytest.fixture(scope="module")
def damaged(reference: Reference) -> Iterator[Reference]:
    """A running, open machine whose disk has one flipped bit in one object."""
    disk = raw_copy(reference)
    flip(disk, block_of(reference, disk, object_of(reference, VICTIM)) + 100)
    reference.start(disk)
    yield reference
    disk.unlink()


def verify(reference: Reference, *options: str) -> tuple[int, dict[str, Any], set[tuple[str, str]]]:
    """Exit status, report, and (check, object) of each deviation."""
    done = reference.stage.guest("freehold", "verify", "--json", *options, check=False, timeout=TIMEOUT)
    assert done.status in (0, 1), done.stderr
    report = json.loads(done.stdout)
    found = {(one["check"], one["object"]) for one in report["findings"] if one["severity"] == "deviation"}
    return done.status, report, found


def test_the_damaged_object_is_not_read(damaged: Reference) -> None:
    read = damaged.stage.guest("sh", "-c", f"cat {VICTIM} > /dev/null", check=False)
    assert read.status != 0
    assert b"Input/output error" in read.stderr
    # The control: another file of the same tree reads.
    assert damaged.stage.guest("sh", "-c", "cat /usr/bin/bash > /dev/null").status == 0


def test_the_damaged_object_and_nothing_else(damaged: Reference) -> None:
    status, report, found = verify(damaged)
    name = object_of(damaged, VICTIM).removeprefix("/repo/objects/")
    assert (status, found) == (1, {("object-damaged", f"{VICTIM} ({name})")})
    assert report["files"] > 10_000
    assert report["bytes"] > 200 << 20
    # Its digest is right, so that without reading nothing is amiss: everything else is as it was signed.
    status, report, found = verify(damaged, "--quick")
    assert (status, found, report["verdict"]) == (0, set(), "ok")


def test_what_root_does_to_a_running_machine(damaged: Reference) -> None:
    shell = damaged.stage.shell
    entry = shell("ls /efi/EFI/Linux/*.efi").splitlines()[0]
    shell(
        f"mkdir {entry}.extra.d && echo x > {entry}.extra.d/x.addon.efi && mount -t tmpfs evil /usr/share"
        " && ln /sysroot/owner/id /sysroot/linked && cp -a /sysroot/deployments /sysroot/saved"
        " && echo >> $(ls -d /sysroot/deployments/*)/manifest.json.sig"
    )
    _, _, found = verify(damaged, "--quick")
    assert {check for check, _ in found} == {"add-on", "mount-over", "owner-link", "manifest-signature"}
    shell(
        f"rm -r {entry}.extra.d /sysroot/linked && umount /usr/share && rm -r /sysroot/deployments"
        " && mv /sysroot/saved /sysroot/deployments"
    )
    assert verify(damaged, "--quick")[2] == set()


def test_only_root(damaged: Reference) -> None:
    done = damaged.stage.guest("freehold", "verify", user="alice", check=False)
    assert done.status == 1
    assert done.stderr.decode().splitlines()[0] == "freehold: only root can verify a machine"
