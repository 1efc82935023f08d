# SPDX-License-Identifier: Apache-2.0
"""In which order, and by which of two workers, tests run; hypothesis without a stop-watch."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

#: Where the tests lie that boot machines.
MACHINES = "tests/vm/"

# Two cores and a virtual machine beside: how long one example takes says nothing about the code.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


class OneMachine(LoadScopeScheduling):  # type: ignore[misc]
    """All virtual machines are one worker's, one at a time; of everything else a file is handed out as a whole."""

    def _split_scope(self, nodeid: str) -> str:
        return MACHINES if nodeid.startswith(MACHINES) else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> OneMachine:
    """Who gets which test."""
    return OneMachine(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Virtual machines first: they take longest."""
    items.sort(key=lambda item: item.get_closest_marker("vm") is None)
