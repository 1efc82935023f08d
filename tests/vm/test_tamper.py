# SPDX-License-Identifier: Apache-2.0
"""Bytes flipped on the disk while the machine is off: it does not boot; the untouched one does. Objects: test_verify.py."""

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


def test_flipped_image_does_not_boot(reference: Reference) -> None:
    disk = raw_copy(reference)
    flip(disk, block_of(reference, disk, f"/images/{manifest(reference)['image_digest']}") + 1200)
    reference.refused_boot(disk, "is refused: Input/output error")


def test_another_verified_file_under_the_images_name_does_not_boot(reference: Reference) -> None:
    """The name is right, fs-verity is sound, only the digest is another's: the early step must compare."""
    disk = raw_copy(reference)
    image = f"/images/{manifest(reference)['image_digest']}"
    tools = ensure(cache_directory(), NullMonitor())
    script = reference.stage.path("debugfs.script")
    script.write_text(f"unlink {image}\nln {object_of(reference, VICTIM)} {image}\n")
    tools.run(["debugfs", "-w", "-f", script, f"{disk}?offset={ALIGNMENT + ESP_SIZE}"], binds=[disk.parent])
    reference.refused_boot(disk, "it is not the image that was signed")


def esp_file(reference: Reference, disk: Path) -> tuple[str, Path]:
    tools = ensure(cache_directory(), NullMonitor())
    device = f"{disk}@@{ALIGNMENT}"
    listing = tools.run(["mdir", "-b", "-i", device, "::/EFI/Linux"], binds=[disk.parent]).text
    (name,) = (one for one in listing.split() if "freehold-rescue-" not in one)
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
    reference.refused_boot(disk, "is refused: No such file or directory")


def test_changed_command_line_is_refused_by_firmware(reference: Reference) -> None:
    disk = raw_copy(reference)
    replace_uki(reference, disk, flip_digest=True)
    said = reference.refused_boot(disk, "Access Denied", secure_boot=True)
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
    # Every mounted file system but the kernel's own and the object store, which is mounted nosuid.
    search = "find / \\( -path /proc -o -path /sys -o -path /sysroot \\) -prune -o -type f -perm /6000 -print 2>/dev/null || true"
    stage.shell("cp /usr/bin/true /var/lib/found; chmod 4755 /var/lib/found")
    assert stage.shell(search) == "/var/lib/found"  # the search does find one
    assert stage.shell("findmnt -no OPTIONS /sysroot").count("nosuid") == 1
    assert "server" in stage.shell("grep IMAGE_ID /usr/lib/os-release")
    assert stage.shell("dpkg-query -W -f '${Status}' podman") == "install ok installed"
    stage.copy(stage.keys / "owner.der", "/run/owner.der")
    assert stage.guest("sh", "-c", "keyctl padd asymmetric x @u < /run/owner.der").status == 0
    sealed = stage.guest("sh", "-c", "keyctl padd asymmetric x %:.fs-verity < /run/owner.der", check=False)
    assert sealed.status != 0
    assert b"Operation not permitted" in sealed.stderr
    assert stage.shell("ls -A /usr/etc/ssh | grep -c ssh_host_ || true") == "0"
