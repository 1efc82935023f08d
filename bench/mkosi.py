# SPDX-License-Identifier: Apache-2.0
"""mkosi as Debian 13 ships it, in a cached tools tree of its own, building the same packages."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from freehold import atomic, run
from freehold.build.recipe import Recipe
from freehold.build.tools import SUITE, Tools
from freehold.run import Completed

PACKAGES = (
    "apt", "bubblewrap", "btrfs-progs", "ca-certificates", "cpio", "debian-archive-keyring", "dosfstools", "e2fsprogs",
    "fdisk", "file", "gpg", "kmod", "mkosi", "mtools", "openssl", "python3", "python3-cryptography", "python3-pefile",
    "reprepro", "sbsigntool", "sqv", "systemd", "systemd-boot-efi", "systemd-container", "systemd-repart",
    "systemd-ukify", "tar", "udev", "uidmap", "util-linux", "xz-utils", "zstd",
)  # fmt: skip
#: mkosi takes the boot loader and the UKI's stub from the image; Freehold takes them from its tools tree.
LOADER = "systemd-boot-efi"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


@dataclass(frozen=True)
class Mkosi:
    """mkosi in ``tools``; ``work`` holds its package cache, its workspace and what it makes."""

    tools: Tools
    work: Path

    def version(self) -> str:
        """What mkosi says of itself."""
        return self.tools.run(["mkosi", "--version"]).text.strip()

    def build(self, recipe: Recipe, local: Path) -> Completed:
        """Build a disk with a unified kernel image; ``local`` is a directory with our own package."""
        out = self.work / "mkosi-output"
        shutil.rmtree(out, ignore_errors=True)
        folder = self.work / "mkosi"
        workspace = self.work / "mkosi-workspace"
        packages = self.work / "mkosi-packages"
        for each in (out, folder, workspace, packages):
            each.mkdir(parents=True, exist_ok=True)
        # mkosi's own list has more (sources, debugging symbols); both builders get the same repositories.
        lists = folder / "sandbox/etc/apt/sources.list.d"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / "mkosi.sources").write_text(stanzas(self.tools.sources(recipe.pockets)))
        (folder / "mkosi.conf").write_text(configuration(recipe, folder, local, out, workspace, packages))
        return self.tools.run(
            ["mkosi", "--force", "build"],
            binds=[self.work], ro_binds=[local], network=True, cwd=folder, env={"HOME": "/root"},
        )  # fmt: skip


def configuration(recipe: Recipe, folder: Path, local: Path, out: Path, workspace: Path, packages: Path) -> str:
    """mkosi.conf: the recipe's packages, everything else as mkosi does it by itself. Pure."""
    lines = "\n".join(f"    {name}" for name in (recipe.kernel, LOADER, *recipe.packages))
    return (
        f"[Distribution]\nDistribution=debian\nRelease={SUITE}\n\n"
        f"[Output]\nFormat=disk\nOutput=image\nOutputDirectory={out}\n\n"
        f"[Content]\nBootable=yes\nBootloader=systemd-boot\nUnifiedKernelImages=yes\nWithRecommends=no\n"
        f"PackageDirectories={local}\nPackages=\n{lines}\n\n"
        f"[Build]\nSandboxTrees={folder}/sandbox\nPackageCacheDirectory={packages}\nWorkspaceDirectory={workspace}\nIncremental=no\n"
    )


def stanzas(lines: str) -> str:
    """apt's one-line sources as the stanzas that mkosi wants. Pure."""
    found = []
    for line in lines.splitlines():
        kind, uri, suite, *components = line.split()
        found.append(
            f"Types: {kind}\nURIs: {uri}\nSuites: {suite}\nComponents: {' '.join(components)}\nSigned-By: {KEYRING}\n"
        )
    return "\n".join(found)


def ensure(cache: Path, work: Path) -> Mkosi:
    """mkosi's tools tree, made when it is not cached yet (half a minute and the network)."""
    identity = hashlib.sha256("\n".join([SUITE, *PACKAGES]).encode()).hexdigest()[:12]
    root = cache / f"mkosi-{identity}"
    if not root.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        partial = root.with_name(f".{root.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        run.run(
            [
                "mmdebstrap", "--mode=root", "--variant=apt", "--format=directory",
                '--aptopt=APT::Install-Recommends "false"', "--dpkgopt=force-unsafe-io",
                f"--include={','.join(PACKAGES)}", SUITE, partial,
            ]
        )  # fmt: skip
        atomic.publish(partial, root)
    return Mkosi(Tools(root, identity), work)
