# SPDX-License-Identifier: Apache-2.0
"""The reference machine that the VM tests share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from demo.stage import Stage

from freehold import run


@dataclass(frozen=True)
class Reference:
    """The reference release, published, and a disk of an older one that was provisioned and shut down in order."""

    stage: Stage
    disk: Path

    def overlay(self, name: str) -> Path:
        """A fresh disk over :attr:`disk`; what is written to it does not touch the base."""
        path = self.stage.path(f"{name}.qcow2")
        path.unlink(missing_ok=True)
        run.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", self.disk, "-F", "raw", path])
        return path

    def start(self, disk: Path, *options: str, timeout: int = 200, check: bool = True) -> run.Completed:
        """Boot a disk."""
        self.stage.freehold("vm", "stop", self.stage.name, "--hard", check=False)
        return self.stage.freehold(
            "vm", "start", disk, "--name", self.stage.name, "--timeout", str(timeout), *options, check=check, timeout=timeout + 60
        )
