# SPDX-License-Identifier: Apache-2.0
"""Machines of the reference image for tests: releases and disks are cached by content, boots are few."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from demo import story
from demo.stage import Stage, end
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


@pytest.fixture(scope="session")
def reference() -> Iterator[Reference]:
    """Keys, two releases, the server, and the provisioned base disk."""
    stage = Stage(name="freehold-test", port=18646)
    stage.root.mkdir(parents=True, exist_ok=True)
    made = Reference(stage, stage.path("demo.raw"))
    try:
        story.keys(stage)
        story.build_first(stage)
        story.disk(stage)
        made.start(made.disk, "--ignition", str(stage.path("first-boot.ign")))
        stage.copy(story.marker(stage), "/var/lib/marker", executable=True)
        stage.freehold("vm", "stop", stage.name)
        story.publish(stage)
        yield made
    finally:
        end(stage)
