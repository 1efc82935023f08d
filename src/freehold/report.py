# SPDX-License-Identifier: Apache-2.0
"""What a command has to say: data for programs, text for people, an exit status."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Report(NamedTuple):
    """The result of a verb. ``data`` is printed under ``--json``, ``text`` otherwise.

    A named tuple: ``dataclasses`` costs milliseconds to import, and ``status`` is run in loops.
    """

    data: Mapping[str, object] = MappingProxyType({})
    text: str = ""
    status: int = 0
