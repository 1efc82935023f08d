# SPDX-License-Identifier: Apache-2.0
"""Machines of the reference image for tests: releases and disks are cached by content, boots are few."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from demo import story
from demo.stage import Stage, end
from tests.vm.reference import Reference


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
        # Everything that a first boot makes, once and for all boots of the tests: ssh's host keys take seconds.
        stage.guest("systemctl", "is-system-running", "--wait", check=False)
        stage.freehold("vm", "stop", stage.name)
        story.publish(stage)
        yield made
    finally:
        end(stage)


@pytest.fixture(scope="module", autouse=True)
def one_machine_at_a_time() -> Iterator[None]:
    """No module leaves a machine running beside the next one's: there are two cores."""
    yield
    Stage(name="freehold-test").freehold("vm", "stop", "freehold-test", "--hard", check=False)
