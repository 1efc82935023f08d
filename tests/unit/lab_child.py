# SPDX-License-Identifier: Apache-2.0
"""Work in a process of its own: for what a process cannot undo."""

from __future__ import annotations

import os
from collections.abc import Callable

from freehold.errors import FreeholdError


def in_a_child(work: Callable[[], object]) -> str:
    """What ``work`` returned, or what it raised, as one line."""
    source, sink = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            text = repr(work())
        except FreeholdError as error:
            text = f"{type(error).__name__}: {error.message}"
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
        os.write(sink, text.encode())
        os._exit(0)
    os.close(sink)
    with os.fdopen(source) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return text
