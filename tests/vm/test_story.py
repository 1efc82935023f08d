# SPDX-License-Identifier: Apache-2.0
"""The demo's story, each step a test: from packages to a locked, updated, rolled back and unlocked machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from demo.stage import Stage, end
from demo.story import STORY

pytestmark = [pytest.mark.vm, pytest.mark.build]


@pytest.fixture(scope="module")
def told() -> Iterator[dict[str, Stage | str]]:
    # Its own disk and server; keys and releases are those of the other tests.
    stage = Stage(name="freehold-story", port=18650, library="freehold-test")
    stage.root.mkdir(parents=True, exist_ok=True)
    state: dict[str, Stage | str] = {"stage": stage, "failed": ""}
    yield state
    end(stage)


@pytest.mark.parametrize("number", range(len(STORY)), ids=[title.replace(" ", "-") for title, _ in STORY])
def test_story(told: dict[str, Stage | str], number: int) -> None:
    title, step = STORY[number]
    if told["failed"]:
        pytest.fail(f"the story ended at: {told['failed']}", pytrace=False)
    stage = told["stage"]
    assert isinstance(stage, Stage)
    told["failed"] = title
    assert step(stage)
    told["failed"] = ""
