# SPDX-License-Identifier: Apache-2.0
"""Runs on the measured system, alone: starts commands in turn and prints how long each took, as JSON.

``python3 spawn.py ROUNDS COMMAND -- COMMAND …``: the answer is a list of lists of seconds. It needs nothing but
the standard library, because the measured system is a sealed one.
"""

from __future__ import annotations

import json
import os
import sys
import time


def once(command: list[str]) -> float:
    """Start ``command``, output thrown away, wait for its end; seconds."""
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    started = time.perf_counter()
    pid = os.posix_spawnp(command[0], command, os.environ, file_actions=quiet)
    _, status = os.waitpid(pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {os.waitstatus_to_exitcode(status)}")
    return seconds


def main(arguments: list[str]) -> None:
    """Run every command once unmeasured, then ``ROUNDS`` times in turn."""
    commands: list[list[str]] = [[]]
    for word in arguments[1:]:
        if word == "--":
            commands.append([])
        else:
            commands[-1].append(word)
    for command in commands:
        once(command)
    taken: list[list[float]] = [[] for _ in commands]
    for _ in range(int(arguments[0])):
        for command, samples in zip(commands, taken, strict=True):
            samples.append(once(command))
    print(json.dumps(taken))


if __name__ == "__main__":
    main(sys.argv[1:])
