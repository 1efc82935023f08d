# SPDX-License-Identifier: Apache-2.0
"""Runs on the measured system, alone: starts one program again and again, and prints how long each lot of starts took.

``python3 spawn_many.py LOTS COUNT PROGRAM``: a JSON list of ``LOTS`` times in seconds (CLOCK_MONOTONIC), each for ``COUNT``
starts one after the other; a lot before them is not told. It needs nothing but the standard library.
"""

from __future__ import annotations

import json
import os
import sys
import time


def lot(count: int, program: str) -> float:
    """Start ``program`` ``count`` times, each to its end; seconds."""
    arguments, environment = [program], {"PATH": "/usr/bin"}
    started = time.monotonic()
    for _ in range(count):
        _, status = os.waitpid(os.posix_spawn(program, arguments, environment), 0)
        if status:
            raise SystemExit(f"{program} ended with status {os.waitstatus_to_exitcode(status)}")
    return time.monotonic() - started


def main(lots: int, count: int, program: str) -> None:
    """The lots."""
    lot(count, program)
    print(json.dumps([lot(count, program) for _ in range(lots)]))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
