# SPDX-License-Identifier: Apache-2.0
"""Root-owned state that could make signed programs act for whoever wrote it: empty and in memory while locked.

Here for a lock that begins on a running machine; at a locked boot the early step does the same (``early/prepare.c``).
"""

from __future__ import annotations

from pathlib import Path

from freehold import run

#: The list ships in the sealed tree.
UNBELIEVED = Path("/usr/lib/freehold/unbelieved.list")


def own_directory(top: Path, relative: str) -> Path:
    """``top/relative`` as real directories all the way: what else root put there, a link elsewhere, is removed."""
    path = top
    for part in Path(relative).parts:
        path /= part
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            path.unlink()
        path.mkdir(exist_ok=True)
    return path


def cover_unbelieved(var: Path) -> None:
    """Mount an empty file system over each listed directory below /var."""
    for line in UNBELIEVED.read_text().splitlines():
        path = line.strip()
        if path and not path.startswith("#"):
            cover(own_directory(var, path.removeprefix("/var/")))


def cover(target: Path) -> None:
    """Mount an empty file system over the directory."""
    run.run(["mount", "-t", "tmpfs", "-o", "mode=0755,nosuid,nodev,size=5%", "freehold-empty", target])
