# SPDX-License-Identifier: Apache-2.0
"""In which order, and by which of two workers, tests run; hypothesis without a stop-watch."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

# Two cores and a virtual machine beside: how long one example takes says nothing about the code.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Virtual machines first, and all by one worker: one at a time, while another worker runs the rest beside it."""
    for item in items:
        if item.get_closest_marker("vm"):
            item.add_marker(pytest.mark.xdist_group("vm"))
    items.sort(key=lambda item: item.get_closest_marker("vm") is None)
