# SPDX-License-Identifier: Apache-2.0
"""In which order, and by which of two workers, tests run; hypothesis without a stop-watch."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

# Two cores and a virtual machine beside: how long one example takes says nothing about the code.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


def pytest_itemcollected(item: pytest.Item) -> None:
    """All virtual machines are one worker's: one at a time, while another worker runs the rest beside it."""
    if item.get_closest_marker("vm"):
        item.add_marker(pytest.mark.xdist_group("vm"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Virtual machines first: they take longest."""
    items.sort(key=lambda item: item.get_closest_marker("vm") is None)
