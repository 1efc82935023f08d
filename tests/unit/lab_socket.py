# SPDX-License-Identifier: Apache-2.0
"""Waiting for a server of the tests: its socket is a file before anybody listens."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path


def wait_for(path: Path, seconds: float = 30) -> None:
    """Return when somebody accepts connections at the Unix socket ``path``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(OSError):
            connection.connect(str(path))
            return
        time.sleep(0.02)
    raise AssertionError(f"nobody listens at {path}")
