# SPDX-License-Identifier: Apache-2.0
"""Bytes flipped on the disk while the machine is off: it does not boot, or does not read. The untouched one does both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.vm.reference import Reference

from freehold import run
from freehold.build.disk import ALIGNMENT, ESP_SIZE
from freehold.build.store import cache_directory
from freehold.build.tools import ensure
from freehold.monitor import NullMonitor
from freehold.vm import state

pytestmark = [pytest.mark.vm, pytest.mark.build]
VICTIM = "/usr/bin/less"


def raw_copy(reference: Reference) -> Path:
    path = reference.stage.path("tampered.raw")
    path.unlink(missing_ok=True)
    run.run(["cp", "--sparse=always", reference.disk, path])
    return path


def block_of(reference: Reference, disk: Path, name: str) -> int:
    """The byte offset on ``disk`` of the first data block of ``name`` in the root file system."""
    tools = ensure(cache_directory(), NullMonitor())
    done = tools.run(["debugfs", "-R", f"blocks {name}", f"{disk}?offset={ALIGNMENT + ESP_SIZE}"], binds=[disk.parent])
    return ALIGNMENT + ESP_SIZE + 4096 * int(done.text.split()[0])


def flip(disk: Path, offset: int) -> None:
    with disk.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def manifest(reference: Reference) -> dict[str, str]:
    loaded: dict[str, str] = json.loads((reference.stage.store / "releases/server-1/manifest.json").read_text())
    return loaded


def object_of(reference: Reference, path: str) -> str:
    tools = ensure(cache_directory(), NullMonitor())
    repo = reference.stage.store / "repo"
    line = tools.run(["ostree", f"--repo={repo}", "ls", "-C", manifest(reference)["commit"], path], binds=[repo]).text
    checksum = line.split()[4]
    return f"/repo/objects/{checksum[:2]}/{checksum[2:]}.file"


def test_flipped_object_is_not_read(reference: Reference) -> None:
    disk = raw_copy(reference)
    flip(disk, block_of(reference, disk, object_of(reference, VICTIM)) + 100)
    reference.start(disk)
    read = reference.stage.guest("sh", "-c", f"cat {VICTIM} > /dev/null", check=False)
    assert read.status != 0
    assert b"Input/output error" in read.stderr
    # The control: another file of the same tree reads.
    assert reference.stage.guest("sh", "-c", "cat /usr/bin/bash > /dev/null").status == 0


def failed_boot(reference: Reference, disk: Path, *options: str) -> str:
    """Everything that the machine said on its console before we gave up on it."""
    console = state.paths(reference.stage.name).serial
    before = console.stat().st_size if console.exists() else 0
    done = reference.start(disk, *options, timeout=45, check=False)
    assert done.status != 0, "the tampered machine answered"
    with console.open("rb") as log:
        log.seek(before)
        return log.read().decode(errors="replace")


def test_flipped_image_does_not_boot(reference: Reference) -> None:
    disk = raw_copy(reference)
    flip(disk, block_of(reference, disk, f"/images/{manifest(reference)['image_digest']}") + 1200)
    assert "is refused: Input/output error" in failed_boot(reference, disk)


def esp_file(reference: Reference, disk: Path) -> tuple[str, Path]:
    tools = ensure(cache_directory(), NullMonitor())
    device = f"{disk}@@{ALIGNMENT}"
    listing = tools.run(["mdir", "-b", "-i", device, "::/EFI/Linux"], binds=[disk.parent]).text
    name = listing.split()[0]
    local = reference.stage.path("uki.tampered")
    tools.run(["mcopy", "-n", "-o", "-i", device, name, local], binds=[disk.parent])
    return name, local


def replace_uki(reference: Reference, disk: Path, *, flip_digest: bool) -> None:
    name, local = esp_file(reference, disk)
    data = local.read_bytes()
    if flip_digest:
        digest = manifest(reference)["image_digest"].encode()
        other = (b"0" if digest[:1] != b"0" else b"1") + digest[1:]
        assert data.count(b"freehold.image=" + digest) == 1
        data = data.replace(b"freehold.image=" + digest, b"freehold.image=" + other)
    local.write_bytes(data)
    tools = ensure(cache_directory(), NullMonitor())
    tools.run(["mcopy", "-o", "-i", f"{disk}@@{ALIGNMENT}", local, name], binds=[disk.parent])


def test_changed_command_line_does_not_boot(reference: Reference) -> None:
    disk = raw_copy(reference)
    replace_uki(reference, disk, flip_digest=True)
    assert "is refused" in failed_boot(reference, disk)


def test_changed_command_line_is_refused_by_firmware(reference: Reference) -> None:
    disk = raw_copy(reference)
    replace_uki(reference, disk, flip_digest=True)
    said = failed_boot(reference, disk, "--secure-boot", "--keys", str(reference.stage.keys))
    assert "access denied" in said.lower()
    assert "Linux version" not in said


def test_untouched_copy_boots(reference: Reference) -> None:
    disk = raw_copy(reference)
    replace_uki(reference, disk, flip_digest=False)
    reference.start(disk, "--secure-boot", "--keys", str(reference.stage.keys))
    stage = reference.stage
    status = json.loads(stage.guest("freehold", "status", "--json").stdout)
    assert status["lock"]["secure_boot"] is True
    assert stage.shell("findmnt -no OPTIONS /").count("verity=require") == 1
    assert stage.guest("sh", "-c", "touch /usr/x", check=False).status != 0
    assert stage.shell("find / -xdev -perm /6000 -type f") == ""
    assert "server" in stage.shell("grep IMAGE_ID /usr/lib/os-release")
    assert stage.shell("dpkg-query -W -f '${Status}' podman") == "install ok installed"
    assert stage.guest("sh", "-c", "keyctl padd asymmetric x %:.fs-verity < /dev/null", check=False).status != 0
    assert stage.shell("ls -A /usr/etc/ssh | grep -c ssh_host_ || true") == "0"
