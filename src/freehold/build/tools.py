# SPDX-License-Identifier: Apache-2.0
"""The tools tree: a cached Debian 13 root with every program whose version matters.

It is made once by the host's mmdebstrap and entered with bubblewrap, so that the host may be any
recent Debian. Nothing in it ships: it only has the programs that build.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from freehold import atomic, run
from freehold.errors import InputError, NotHereError
from freehold.monitor import Monitor, step
from freehold.run import Argument, Completed

SUITE = "trixie"
PACKAGES = (
    "apt binutils bpftool bzip2 ca-certificates clang cpio debhelper dh-python dosfstools dpkg-dev e2fsprogs "
    "erofs-utils fakeroot fdisk file fsverity gcc keyutils kmod libbpf-dev libc6-dev libelf-dev "
    "libtss2-tcti-device0t64 libtss2-tcti-swtpm0t64 libzstd-dev linux-bpf-dev llvm make mmdebstrap mount mtools "
    "opensc-pkcs11 openssl ostree ovmf pkcs11-provider pybuild-plugin-pyproject python3-all python3-cryptography "
    "python3-setuptools python3-virt-firmware qemu-system-x86 qemu-utils sbsigntool softhsm2 swtpm systemd-boot-efi "
    "systemd-ukify tpm2-openssl tpm2-tools util-linux xz-utils zlib1g-dev zstd"
).split()
#: Host programs without which there is no tools tree.
HOST_PROGRAMS = ("mmdebstrap", "bwrap")
#: The tree's own dynamic loader, and where its libraries are.
LOADER = "lib64/ld-linux-x86-64.so.2"
LIBRARIES = ("usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/swtpm")


@dataclass(frozen=True)
class Tools:
    """An entered-on-demand tools tree at ``root``; ``id`` names its package list."""

    root: Path
    id: str

    def argv(
        self,
        command: Sequence[Argument],
        *,
        binds: Sequence[Path] = (),
        ro_binds: Sequence[Path] = (),
        network: bool = False,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> list[Argument]:
        """The bubblewrap command line that runs ``command`` in the tools tree.

        ``binds`` appear inside under their own paths. Without ``network`` the command has none.
        """
        wrapped: list[Argument] = ["bwrap", "--die-with-parent", "--unshare-pid", "--cap-add", "ALL"]
        wrapped += ["--bind", self.root, "/", "--dev-bind", "/dev", "/dev", "--proc", "/proc"]
        wrapped += ["--perms", "1777", "--tmpfs", "/tmp", "--tmpfs", "/run"]  # noqa: S108 (inside the sandbox)
        if network:
            wrapped += ["--ro-bind", "/etc/resolv.conf", "/etc/resolv.conf"]
        else:
            wrapped += ["--unshare-net"]
        for path in ro_binds:
            wrapped += ["--ro-bind", path, path]
        for path in binds:
            wrapped += ["--bind", path, path]
        if cwd is not None:
            wrapped += ["--chdir", cwd]
        for name, value in (env or {}).items():
            wrapped += ["--setenv", name, value]
        return [*wrapped, "--", *command]

    def run(
        self,
        command: Sequence[Argument],
        *,
        binds: Sequence[Path] = (),
        ro_binds: Sequence[Path] = (),
        network: bool = False,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
        check: bool = True,
        stdout: IO[bytes] | None = None,
    ) -> Completed:
        """Run ``command`` in the tools tree; as :func:`freehold.run.run` otherwise."""
        argv = self.argv(command, binds=binds, ro_binds=ro_binds, network=network, cwd=cwd, env=env)
        return run.run(argv, stdin=stdin, check=check, stdout=stdout)

    def beside(self, program: str) -> list[Argument]:
        """The begin of a command line that runs the tree's ``program`` among the host's files, network and processes.

        For what outlives us, a virtual machine: the tree's loader and libraries are used, and the process is the
        program itself, with no sandbox around it.
        """
        libraries = ":".join(os.fspath(self.root / place) for place in LIBRARIES)
        return [self.root / LOADER, "--library-path", libraries, self.root / "usr/bin" / program]

    def sources(self, pockets: Sequence[str]) -> str:
        """apt source lines of the default mirror for the suite and the chosen ``pockets``."""
        return source_lines((self.root / "etc/apt/sources.list").read_text(), pockets)


def source_lines(text: str, pockets: Sequence[str]) -> str:
    """The lines of the apt sources ``text`` for the suite and the chosen ``pockets``. Pure.

    mmdebstrap names no backports by itself; they lie in the archive of the suite. :class:`InputError` for a pocket that
    the sources do not have: an image without its security updates must not look like one that has them.
    """
    lines = [line for line in text.splitlines() if line.startswith("deb ")]
    wanted = [SUITE, *(f"{SUITE}-{pocket}" for pocket in pockets)]
    backports = f"{SUITE}-backports"
    if backports in wanted and not any(backports in line.split() for line in lines):
        lines += [line.replace(f" {SUITE} ", f" {backports} ") for line in lines if f" {SUITE} " in line]
    for one in wanted:
        if not any(one in line.split() for line in lines):
            raise InputError(f"the default mirror has no {one}", hint="name one with --sources FILE")
    return "".join(f"{line}\n" for line in lines if set(wanted) & set(line.split()))


def identity() -> str:
    """The id of the tools tree that this version of Freehold wants."""
    return hashlib.sha256("\n".join([SUITE, *sorted(PACKAGES)]).encode()).hexdigest()[:16]


def ensure(cache: Path, monitor: Monitor, *, sources: Path | None = None) -> Tools:
    """The tools tree, made when it is not cached yet (about a minute and the network).

    ``sources`` is a file of apt source lines to use instead of mmdebstrap's default mirror.
    Raises :class:`NotHereError` when the host lacks a program, :class:`CommandError` when packages
    cannot be had. Half-made trees are never used: the name appears last.
    """
    tools = Tools(cache / f"tools-{identity()}", identity())
    if tools.root.is_dir():
        return tools
    missing = [program for program in HOST_PROGRAMS if shutil.which(program) is None]
    if missing:
        raise NotHereError(f"missing on this host: {', '.join(missing)}", hint="`make prepare` installs them")
    cache.mkdir(parents=True, exist_ok=True)
    # Who comes second wants the same tree.
    with atomic.exclusive(cache / "tools.lock", "the tools tree", wait=True), step(monitor, "tools tree"):
        if tools.root.is_dir():
            return tools
        partial = cache / f".tools-{tools.id}.partial"
        if partial.exists():
            shutil.rmtree(partial)
        run.run(
            [
                "mmdebstrap", "--mode=root", "--variant=apt", "--format=directory",
                "--aptopt=APT::Install-Recommends \"false\"", "--dpkgopt=force-unsafe-io",
                f"--include={','.join(PACKAGES)}", SUITE, partial, *([sources] if sources else []),
            ]
        )  # fmt: skip
        atomic.publish(partial, tools.root)
    return tools
