# SPDX-License-Identifier: Apache-2.0
"""A machine for ``freehold verify`` in a temporary directory: what its kernel would say, and deployments with objects."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import lab_release
import pytest
from lab_pe import whole
from lab_release import Lab, key

from freehold.device.verify_image import Listing, Pointer
from freehold.device.verify_kernel import Probe, read_through
from freehold.device.verify_keys import Ring, name_of
from freehold.keys.verity import digest_bytes
from freehold.update import rescue_entry
from freehold.update.manifest import Manifest, Uki, sha256

#: As a locked machine has it, after systemd made its own mounts.
MOUNTS = """\
30 1 0:25 / / ro,nodev - overlay freehold ro,lowerdir=/image::/disk/repo/objects,redirect_dir=on,verity=require,metacopy=on
31 30 0:27 / /etc rw,nosuid,nodev - overlay etc rw,lowerdir=/newroot/usr/etc,upperdir=/run/freehold/etc/upper,workdir=w
32 30 254:2 /var /var rw,nosuid,nodev,noatime shared:2 - ext4 /dev/vda2 rw
33 32 0:28 / /var/roothome rw,nosuid,nodev shared:3 - tmpfs roothome rw,mode=700
34 30 0:21 / /proc rw,nosuid,nodev,noexec - proc proc rw
35 30 0:22 / /sys rw,nosuid,nodev,noexec - sysfs sysfs rw
36 30 0:23 / /run rw,nosuid,nodev - tmpfs tmpfs rw,mode=755
37 30 254:2 / /sysroot rw,nosuid,nodev,noatime - ext4 /dev/vda2 rw
38 30 0:40 / /efi rw,relatime shared:9 - autofs systemd-1 rw,fd=50,pgrp=1,timeout=60
39 30 0:41 / /tmp rw,nosuid,nodev shared:10 - tmpfs tmpfs rw
"""


def program(line: str, *, sections: Sequence[str] = (".text", ".osrel", ".cmdline", ".linux")) -> bytes:
    """An EFI program with ``line`` in its sections called ``.cmdline``."""
    return whole(*((name, (line if name == ".cmdline" else name * 50).encode("latin-1")) for name in sections))


def sealed_line(digest: str) -> str:
    """The command line of the lab's releases."""
    return f"quiet freehold.image={digest} ro"


_plain_manifest = lab_release.manifest
_RESCUES: dict[str, bytes] = {}


def rescue_image(uki: bytes) -> bytes:
    """As the release lab's, for the programs of :func:`manifest`."""
    return _RESCUES[sha256(uki)]


def manifest(
    version: str, timestamp: int, *, name: str = "server", commit: str = lab_release.COMMIT
) -> tuple[Manifest, bytes, bytes]:
    """As the release lab's, with a real program as its UKI."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab_release, "rescue_image", lambda uki: uki)
        value, image, _ = _plain_manifest(version, timestamp, name=name, commit=commit)
    line = sealed_line(value.image_digest)
    uki, rescue = (program(one) + version.encode() * 1000 for one in (line, rescue_entry.line(line)))
    _RESCUES[sha256(uki)] = rescue
    normal, other = (Uki(f"{name}.efi", sha256(one), len(one)) for name, one in (("uki", uki), ("rescue", rescue)))
    return value._replace(uki=normal, rescue=other), image, uki


class VerifyLab(Lab):
    """A locked machine with one deployment of three objects; :attr:`probe` answers for its kernel."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(lab_release, "manifest", manifest)
        patch.setattr(lab_release, "rescue_image", rescue_image)
        super().__init__(root)
        self.trees: dict[str, list[Pointer]] = {}
        self.mode = "open"
        self.sealed: bool | None = True
        self.reads: list[str] = []
        self.damaged: set[str] = set()
        self.extra_keys: tuple[str, ...] = ()
        self.fill(self.running, "a", "b", "shared")
        system = self.sysroot.system
        for path, content in {
            "proc/self/mountinfo": MOUNTS.replace("/run/freehold/etc/upper", "/disk/owner/etc/0/upper"),
            "proc/keys": "",
            "proc/modules": "erofs 1 0 - Live 0x0\n",
            "proc/sys/kernel/tainted": "0\n",
            "proc/sys/kernel/osrelease": "6.12.1-amd64\n",
            "usr/lib/modules/6.12.1-amd64/modules.dep": "kernel/fs/erofs/erofs.ko.xz:\n",
            "sys/kernel/security/lockdown": "none [integrity] confidentiality\n",
        }.items():
            self.put(system / path, content)
        for name in ("EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi"):
            self.put(self.sysroot.esp / name, "the boot loader")
        self.put(self.sysroot.esp / "loader/loader.conf", "timeout 0\neditor no\nconsole-mode keep\n")
        self.put(self.sysroot.root / "owner/id", "0123456789abcdef" * 2 + "\n")
        self.guard("open")

    @staticmethod
    def put(path: Path, content: str | bytes) -> Path:
        """Write a file and the directories above it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def guard(self, mode: str, *, loaded: bool = True) -> None:
        """What guardctl says."""
        answer = json.dumps({"abi": 1, "loaded": loaded, "mode": mode, "counters": {}})
        path = self.put(self.sysroot.system / "usr/lib/freehold/guardctl", f"#!/bin/sh\necho '{answer}'\n")
        path.chmod(0o755)

    def object(self, content: str) -> Path:
        """The object that holds ``content``."""
        name = sha256(content.encode())
        return self.sysroot.repo / "objects" / name[:2] / f"{name[2:]}.file"

    def fill(self, value: Manifest, *contents: str) -> None:
        """Give a deployment's tree a file for each content."""
        pointers = []
        for content in contents:
            path = self.object(content)
            if not path.exists():
                self.put(path, content * 5000).chmod(0o444)
            digest = digest_bytes(content.encode() * 5000)
            pointers.append(Pointer(f"/usr/{content}", f"{path.parent.name}/{path.name}", digest, 5000 * len(content)))
        self.trees[value.image_digest] = pointers

    def _measure(self, fd: int, name: str) -> bytes | None:
        """fs-verity of a host that has none: digests are real, immutability is remembered by mode."""
        if stat.S_IMODE(os.fstat(fd).st_mode) & 0o200:
            return None
        with os.fdopen(os.dup(fd), "rb") as source:
            return digest_bytes(source.read())

    def _read(self, fd: int, buffer: bytearray) -> int:
        """The real reader; what is damaged is read from where the kernel says EIO, as fs-verity does."""
        name = Path(os.readlink(f"/proc/self/fd/{fd}")).name
        self.reads.append(name)
        if name in self.damaged:
            with Path("/proc/self/mem").open("rb", buffering=0) as bad:
                os.readv(bad.fileno(), [buffer])
        os.lseek(fd, 0, os.SEEK_SET)
        return read_through(fd, buffer)

    def _list_image(self, fd: int, place: Path) -> Listing:
        with os.fdopen(os.dup(fd), "rb") as source:
            source.seek(0)
            return Listing(tuple(self.trees.get(digest_bytes(source.read()).hex(), ())))

    def _ring(self, keys: str) -> Ring:
        names = [name_of(key("release", "vendor").certificate), name_of(key("owner", "me").certificate), *self.extra_keys]
        return Ring(True, self.sealed, tuple(f"x: {name}: X509.rsa 1 []" for name in names))

    @property
    def probe(self) -> Probe:
        """The kernel's answers."""
        return Probe(self._measure, self._read, self._list_image, self._ring, lambda: None)
