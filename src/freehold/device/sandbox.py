# SPDX-License-Identifier: Apache-2.0
"""The box in which packages are installed: a writable layer over a verified tree, and nothing of the running machine.

The tree is mounted from the release's image as the early step does it (``verity=require``); over it lies an empty layer
that takes every change. Inside, ``/etc`` is the tree's factory ``/usr/etc``, so apt's sources and keys are the
sealed ones; ``/var``, ``/run`` and ``/tmp`` are fresh; the environment is rebuilt. Maintainer scripts have no network, few
capabilities and a time limit. What mounts, runs in the caller's mount namespace; every mount is gone when the block ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from freehold import run
from freehold.device.base import Base
from freehold.device.sysroot import Sysroot
from freehold.run import Completed

#: Seconds for all maintainer scripts together, and for downloads.
TIMEOUT = 3600
#: What dpkg and honest maintainer scripts need of root's powers: owners, modes, set-ids, file capabilities, chroot.
CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETFCAP", "SETGID", "SETUID", "SYS_CHROOT")
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root",
    "DEBIAN_FRONTEND": "noninteractive", "DEBCONF_NONINTERACTIVE_SEEN": "true", "SYSTEMD_OFFLINE": "1", "TERM": "dumb",
}  # fmt: skip
#: Says no to every service start (policy-rc.d(8)).
_POLICY = "#!/bin/sh\nexit 101\n"


@dataclass(frozen=True)
class Box:
    """The mounted tree with its layer: ``upper`` takes the changes, ``var`` is the box's /var."""

    tree: Path
    upper: Path
    var: Path
    files: Path

    def run(self, command: Sequence[str], *, network: bool = False, check: bool = True) -> Completed:
        """Run ``command`` inside. Raises as :func:`freehold.run.run`."""
        argv: list[str | Path] = [
            "bwrap",
            "--die-with-parent",
            "--new-session",
            "--unshare-pid",
            "--unshare-ipc",
            "--unshare-uts",
        ]
        argv += ["--unshare-uts", "--hostname", "freehold", "--clearenv", "--cap-drop", "ALL"]
        for name in CAPABILITIES:
            argv += ["--cap-add", f"CAP_{name}"]
        environment = dict(_ENVIRONMENT)
        argv += ["--bind", self.tree, "/", "--bind", self.tree / "usr/etc", "/etc", "--bind", self.var, "/var"]
        argv += ["--dev", "/dev", "--proc", "/proc", "--tmpfs", "/run", "--perms", "1777", "--tmpfs", "/tmp"]  # noqa: S108
        argv += [
            "--ro-bind",
            self.files,
            "/run/files",
            "--ro-bind",
            self.files / "policy-rc.d",
            "/usr/sbin/policy-rc.d",
        ]
        if network:
            environment |= {name: value for name, value in run.environment().items() if name.endswith("_proxy")}
            # Where the factory's /etc/resolv.conf points to.
            resolver = Path("/etc/resolv.conf").resolve()
            for name in ("stub-resolv.conf", "resolv.conf"):
                argv += ["--ro-bind-try", resolver, f"/run/systemd/resolve/{name}"]
        else:
            argv.append("--unshare-net")
        for name, value in environment.items():
            argv += ["--setenv", name, value]
        return run.run([*argv, "--", *command], check=check, timeout=TIMEOUT)


@contextlib.contextmanager
def _mounted(arguments: Sequence[str | Path], target: Path) -> Iterator[None]:
    target.mkdir(exist_ok=True)
    run.run(["mount", *arguments, target], timeout=60)
    try:
        yield
    finally:
        # A script may have left something running for a moment; the mount goes when it does.
        run.run(["umount", "--lazy", target], timeout=60, check=False)


@contextlib.contextmanager
def opened(sysroot: Sysroot, base: Base, work: Path) -> Iterator[Box]:
    """The box over ``base``'s tree while the block runs; ``work`` is an empty directory on the root file system."""
    verity = "require" if sysroot.kernel_verity else "off"
    image = sysroot.images / base.manifest.image_digest
    sealed = f"ro,metacopy=on,redirect_dir=on,verity={verity},lowerdir={work}/image::{sysroot.repo}/objects"
    for name in ("upper", "work", "var", "files"):
        (work / name).mkdir(mode=0o755)
    (work / "files/policy-rc.d").write_text(_POLICY)
    (work / "files/policy-rc.d").chmod(0o755)
    layered = f"metacopy=off,redirect_dir=off,index=off,lowerdir={work}/tree,upperdir={work}/upper,workdir={work}/work"
    with (
        _mounted(["-t", "erofs", "-o", "ro", image], work / "image"),
        _mounted(["-t", "overlay", "-o", sealed, "sealed"], work / "tree"),
        _mounted(["-t", "overlay", "-o", layered, "layer"], work / "root"),
    ):
        yield Box(work / "root", work / "upper", work / "var", work / "files")
