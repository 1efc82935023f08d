# SPDX-License-Identifier: Apache-2.0
"""Finished tree → OSTree commit. Equal trees, names and epochs give equal commit ids."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from freehold.build.tools import Tools


@dataclass(frozen=True)
class Commit:
    """A commit in the store's repository and every file's object name (path → checksum, hex)."""

    id: str
    objects: dict[str, str]


def ensure_repository(tools: Tools, repo: Path) -> None:
    """Create the store's repository (mode bare, as on the device)."""
    if not (repo / "config").is_file():
        repo.mkdir(parents=True, exist_ok=True)
        tools.run(["ostree", f"--repo={repo}", "init", "--mode=bare"], binds=[repo])
        # The store is a cache of packages: what a power cut takes is built again.
        tools.run(["ostree", f"--repo={repo}", "config", "set", "core.fsync", "false"], binds=[repo])


def commit_tree(tools: Tools, repo: Path, tree: Path, *, name: str, version: str, epoch: int) -> Commit:
    """Commit ``tree`` to branch ``freehold/NAME``; the tree is consumed (its files become the objects)."""
    ensure_repository(tools, repo)
    done = tools.run(
        [
            "ostree", f"--repo={repo}", "commit", f"--branch=freehold/{name}", f"--subject={name} {version}",
            f"--timestamp=@{epoch}", f"--add-metadata-string=version={version}", "--no-bindings", "--consume",
            f"--tree=dir={tree}",
        ],
        # One mount for both: files are moved from the tree into the repository.
        binds=[Path(os.path.commonpath([repo, tree]))],
    )  # fmt: skip
    identity = done.text.strip().splitlines()[-1]
    listing = tools.run(["ostree", f"--repo={repo}", "ls", "-R", "-C", identity], binds=[repo])
    return Commit(identity, parse_listing(listing.text))


def parse_listing(text: str) -> dict[str, str]:
    """Regular files of ``ostree ls -R -C``: path → object checksum. Pure.

    A line is ``-MODE UID GID SIZE CHECKSUM PATH``; other types start with another letter.
    """
    objects = {}
    for line in text.splitlines():
        if line.startswith("-"):
            _, _, _, _, checksum, path = line.split(maxsplit=5)
            objects[path] = checksum
    return objects
