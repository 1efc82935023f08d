# SPDX-License-Identifier: Apache-2.0
"""The reference machine that the VM tests share."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.stage import Stage

from freehold import run
from freehold.build.store import cache_directory
from freehold.build.tools import ensure
from freehold.monitor import NullMonitor
from freehold.vm import Machine, start

#: Deriving and signing take an emulated machine a while, in seconds.
TIMEOUT = 900.0


def status(stage: Stage) -> dict[str, Any]:
    """`freehold status --json`."""
    found: dict[str, Any] = json.loads(stage.guest("freehold", "status", "--json").stdout)
    return found


def booted(stage: Stage) -> dict[str, Any]:
    """The row of what runs."""
    [row] = [row for row in status(stage)["deployments"] if row["booted"]]
    return dict(row)


def answered(stage: Stage, *command: str) -> str:
    """Request on the machine, signature elsewhere; where the answer is on the machine."""
    stage.guest("freehold", *command, "--request", "/run/asked", timeout=TIMEOUT)
    request = stage.path("asked")
    stage.freehold("vm", "copy", stage.name, ":/run/asked", request)
    stage.freehold("sign", request, "--key", f"file:{stage.keys / 'owner.key'}")
    stage.copy(request.with_name("asked.signed"), "/run/asked.signed")
    return "/run/asked.signed"


@dataclass(frozen=True)
class Reference:
    """The reference release, published, and a disk of an older one that was provisioned and shut down in order."""

    stage: Stage
    disk: Path

    def overlay(self, name: str) -> Path:
        """A fresh disk over :attr:`disk`; what is written to it does not touch the base."""
        path = self.stage.path(f"{name}.qcow2")
        path.unlink(missing_ok=True)
        tools = ensure(cache_directory(), NullMonitor())
        tools.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", self.disk, "-F", "raw", path], binds=[path.parent])
        return path

    def start(self, disk: Path, *options: str, timeout: int = 200, check: bool = True) -> run.Completed:
        """Boot a disk."""
        self.stage.freehold("vm", "stop", self.stage.name, "--hard", check=False)
        return self.stage.freehold(
            "vm", "start", disk, "--name", self.stage.name, "--timeout", str(timeout), *options, check=check, timeout=timeout + 60
        )

    def cold_reboot(self) -> None:
        """The reset button, once what was written is on the disk."""
        self.stage.guest("sync")
        self.stage.freehold("vm", "reboot", self.stage.name, "--hard", "--timeout", "240", timeout=300)

    def refused_boot(self, disk: Path, why: str, *, secure_boot: bool = False, timeout: float = 90, grace: float = 4) -> str:
        """Boot a disk that must not come up: what its console said, ``why`` in it.

        Fails when the guest answers (also ``grace`` seconds after the refusal), or never says why.
        """
        self.stage.freehold("vm", "stop", self.stage.name, "--hard", check=False)
        keys = (self.stage.keys,) if secure_boot else ()
        machine = Machine(self.stage.name, disk, secure_boot=secure_boot, keys=keys)
        vm = start(machine, NullMonitor(), wait=False)
        try:
            deadline = time.monotonic() + timeout
            while why not in (said := vm.serial().decode(errors="replace")):
                assert not vm.has_agent(), "the machine came up"
                assert time.monotonic() < deadline, f"the console never said {why!r}: {said[-1500:]}"
                time.sleep(0.3)
            time.sleep(grace)
            assert not vm.has_agent(), f"the machine came up after it said {why!r}"
            return vm.serial().decode(errors="replace")
        finally:
            vm.stop(hard=True)
