# SPDX-License-Identifier: Apache-2.0
"""A machine in a directory whose releases are real: ostree, mkfs.erofs, ukify; only fs-verity is not the kernel's."""

from __future__ import annotations

import functools
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from freehold.build import commit as commits
from freehold.build import image as images
from freehold.build import uki as ukis
from freehold.build.store import cache_directory
from freehold.build.tools import Tools
from freehold.device.sysroot import Sysroot
from freehold.keys.issue import create, issue
from freehold.keys.verity import digest_bytes, digest_file
from freehold.keys.x509 import Signer, load_signer
from freehold.lock import intent as intents
from freehold.lock.intent import Intent
from freehold.seal import kernel_inputs
from freehold.seal.walk import walk
from freehold.update.manifest import Inputs, Manifest, Uki, serialize_manifest, sha256

MACHINE = "0123456789abcdef0123456789abcdef"
EPOCH = 1_700_000_000


def tools_or_skip() -> Tools:
    for root in sorted(cache_directory().glob("tools-*")):
        if all((root / "usr/bin" / name).exists() for name in ("ostree", "mkfs.erofs", "ukify", "sbsign")):
            return Tools(root, "")
    pytest.skip("no tools tree in the cache")


class MemoryVerity:
    """fs-verity where the file system has none: the digest at the time of enabling is what stays enforced."""

    def __init__(self) -> None:
        self.enforced: dict[tuple[int, int], bytes] = {}

    def _key(self, path: Path) -> tuple[int, int]:
        status = path.stat()
        return status.st_dev, status.st_ino

    def enable(self, path: Path) -> None:
        self.enforced.setdefault(self._key(path), digest_file(path))

    def measure(self, path: Path) -> bytes | None:
        return self.enforced.get(self._key(path))


@functools.cache
def keys() -> dict[str, Signer]:
    directory = Path(tempfile.mkdtemp(prefix="freehold-lab-"))
    try:
        for name, role in (("vendor", "release"), ("me", "owner"), ("stranger", "owner")):
            create(name, role, directory, None)  # type: ignore[arg-type]
        made = {name: load_signer(f"file:{directory}/{name}.key", lambda _: b"") for name in ("vendor", "me", "stranger")}
        for name, authority in (("machine", "me"), ("foreign", "stranger")):
            issue(name, "device", directory, None, made[authority], machine=MACHINE)
            made[name] = load_signer(f"file:{directory}/{name}.key", lambda _: b"")
        return made
    finally:
        shutil.rmtree(directory)


@dataclass
class DeriveLab:
    """A machine that runs release ``1.0``; ``releases`` are what it has."""

    root: Path
    #: Whether its releases have a policy of kernel inputs, a module and a firmware file.
    inputs: bool = False
    tools: Tools = field(default_factory=tools_or_skip)
    sysroot: Sysroot = field(init=False)
    running: Manifest = field(init=False)

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.verity = MemoryVerity()
        prefix = [str(part) for part in self.tools.argv([], binds=[self.root])]
        self.sysroot = Sysroot(
            root=self.root / "sysroot", esp=self.root / "esp", system=self.root / "system", ostree=(*prefix, "ostree"),
            mkfs=(*prefix, "mkfs.erofs"), verity=self.verity, kernel_verity=False,
        )  # fmt: skip
        for path in ("sysroot/images", "sysroot/owner/etc/0/upper", "esp/EFI/Linux", "system/run/freehold", "system/proc"):
            (self.root / path).mkdir(parents=True)
        (self.sysroot.root / "owner/id").write_text(MACHINE + "\n")
        self.sysroot.keychain.mkdir(parents=True)
        (self.sysroot.keychain / "release-vendor.der").write_bytes(keys()["vendor"].certificate_der())
        (self.sysroot.keychain / "owner-me.der").write_bytes(keys()["me"].certificate_der())
        commits.ensure_repository(self.tools, self.sysroot.repo)
        self.running = self.install("1.0", 1000)
        self.boot(self.running)

    def tree(self, version: str) -> Path:
        """A small tree as a build leaves it."""
        tree = self.root / f"tree-{version}"
        for name in ("usr/bin", "usr/lib/freehold", "usr/etc", "usr/share/doc/old", "etc", "var"):
            (tree / name).mkdir(parents=True, mode=0o755)
        (tree / "usr/lib/os-release").write_text(f"ID=debian\nVERSION_ID=13\nIMAGE_ID=server\nIMAGE_VERSION={version}\n")
        (tree / "usr/bin/tool").write_text(f"#!/bin/sh\necho {version}\n")
        (tree / "usr/bin/tool").chmod(0o755)
        (tree / "usr/bin/link").symlink_to("tool")
        (tree / "usr/share/doc/old/readme").write_text("old\n")
        (tree / "usr/lib/empty").write_text("")
        (tree / "usr/etc").chmod(0o750)
        if self.inputs:
            for name in ("usr/lib/modules/6.12/kernel/card.ko.xz", "usr/lib/firmware/card.bin"):
                (tree / name).parent.mkdir(parents=True)
                (tree / name).write_text(f"{name} of {version}")
        return tree

    def install(self, version: str, timestamp: int, *, entry: bool = True) -> Manifest:
        """Build a release and put it onto the machine as an update does; without ``entry`` it is only downloaded."""
        work = self.root / f"build-{version}"
        work.mkdir()
        tree = self.tree(version)
        entries = list(walk(tree))
        commit = commits.commit_tree(self.tools, self.sysroot.repo, tree, name="server", version=version, epoch=EPOCH)
        image = images.write_image(self.tools, entries, commit, work / "image", EPOCH)
        policy = kernel_inputs.policy(kernel_inputs.rules(entries))
        signed_inputs = Inputs(kernel_inputs.check(policy), kernel_inputs.sign(policy, keys()["vendor"]))
        word = f"{kernel_inputs.word(signed_inputs.name)} " if self.inputs else ""
        (work / "kernel").write_bytes((self.tools.root / ukis.STUB[1:]).read_bytes())
        (work / "initrd").write_bytes(b"initrd of " + version.encode() * 1000)
        unsigned = ukis.write_pair(
            self.tools, work, kernel=work / "kernel", uname="6.12", initrd=work / "initrd",
            line=f"freehold.image={image.digest} freehold.release={timestamp} {word}ro quiet console=ttyS0 panic=5",
            release=ukis.os_release("server", version),
        )  # fmt: skip
        signed = []
        for made, name in zip(unsigned, ("uki.efi", "rescue.efi"), strict=True):
            ukis.sign_efi(self.tools, made, work / name, keys()["vendor"])
            signed.append((work / name).read_bytes())
        uki, rescue = signed
        manifest = Manifest(
            name="server", version=version, commit=commit.id, image_digest=image.digest, image_size=image.size,
            uki=Uki("uki.efi", sha256(uki), len(uki)), rescue=Uki("rescue.efi", sha256(rescue), len(rescue)),
            timestamp=timestamp, number=timestamp, architecture="amd64", kernel="6.12", suite="trixie",
            packages=(("bash", "5.2", "amd64"),), inputs=signed_inputs if self.inputs else None,
        )  # fmt: skip
        data = serialize_manifest(manifest)
        directory = self.sysroot.deployments / manifest.id
        directory.mkdir(parents=True)
        (directory / "manifest.json").write_bytes(data)
        (directory / "manifest.json.sig").write_bytes(keys()["vendor"].sign_document(data))
        target = self.sysroot.images / image.digest
        shutil.copyfile(work / "image", target)
        self.verity.enable(target)
        for checksum in commit.objects.values():
            self.verity.enable(self.sysroot.repo / "objects" / checksum[:2] / f"{checksum[2:]}.file")
        place = self.sysroot.esp / f"EFI/Linux/freehold-{version}-{manifest.id}.efi" if entry else directory / "uki.efi"
        place.write_bytes(uki)
        (directory / "rescue.efi").write_bytes(rescue)
        if entry:
            self.rescue(manifest).write_bytes(rescue)
        return manifest

    def rescue(self, manifest: Manifest) -> Path:
        """The rescue entry of a deployment."""
        return self.sysroot.esp / f"EFI/Linux/freehold-rescue-{manifest.version}-{manifest.id}.efi"

    def boot(self, manifest: Manifest) -> None:
        """Run that deployment now."""
        (self.sysroot.system / "proc/cmdline").write_text(f"quiet freehold.image={manifest.image_digest} ro\n")

    def entries(self) -> list[str]:
        """File names of the boot entries."""
        names = (path.name for path in (self.sysroot.esp / "EFI/Linux").iterdir())
        return sorted(name for name in names if not name.startswith("freehold-rescue-"))

    def uki(self, manifest: Manifest) -> bytes:
        """The kernel image of the deployment's boot entry."""
        [path] = (self.sysroot.esp / "EFI/Linux").glob(f"freehold-{manifest.version}-{manifest.id}*.efi")
        return path.read_bytes()

    def content(self, redirect: str) -> bytes:
        """The object that an image entry points at."""
        return (self.sysroot.repo / "objects" / redirect.lstrip("/")).read_bytes()

    def signed(self, intent: Intent, by: str = "me") -> bytes:
        """The intent with the signature of ``by``."""
        return intents.sign(intent, keys()[by].sign)


__all__ = ["EPOCH", "MACHINE", "DeriveLab", "digest_bytes", "keys"]
