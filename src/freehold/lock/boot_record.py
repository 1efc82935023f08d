# SPDX-License-Identifier: Apache-2.0
"""What the early step wrote about this boot, brought up to date when the intent changes under way."""

from __future__ import annotations

import json
from pathlib import Path

from freehold import atomic
from freehold.lock.intent import Intent


def note(path: Path, wanted: Intent, inputs: str | None = None) -> None:
    """Let ``status`` know that ``wanted`` stands (informational; the guard and the intent are the truth).

    ``inputs``: what became of the kernel inputs, in the early step's words, when that was tried.
    """
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return
    record["intent"] = {
        "state": "valid", "serial": wanted.serial, "lock": wanted.lock, "tier": wanted.tier,
        "scripts": wanted.scripts, "since": wanted.since,
    }  # fmt: skip
    record["config"] = wanted.config or ""
    if inputs is not None:
        record["kernel_inputs"] = inputs
    record["emergency_ssh"] = wanted.emergency_ssh or "" if wanted.lock == "locked" else ""
    atomic.write(path, json.dumps(record) + "\n")
