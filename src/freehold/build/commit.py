# SPDX-License-Identifier: Apache-2.0
"""Finished tree → OSTree commit. Equal trees, names and epochs give equal commit ids."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from freehold.build.tools import Tools
from freehold.errors import FreeholdError
from freehold.keys import verity
from freehold.seal.headerball import Entry


@dataclass(frozen=True)
class Commit:
    """A commit in the store's repository and every file's object name (path → checksum, hex)."""

    id: str
    objects: dict[str, str]


def walk(tree: Path) -> Iterator[Entry]:
    """Every file of ``tree`` with its metadata and, for regular files, the fs-verity digest of its data.

    Raises :class:`FreeholdError` for what an image cannot hold: devices, sockets, pipes, names with line breaks.
    """
    for directory, subdirectories, names in os.walk(tree):
        subdirectories.sort()
        for name in sorted([*subdirectories, *names]):
            yield _entry(tree, Path(directory) / name)
    yield _entry(tree, tree)


def _entry(tree: Path, path: Path) -> Entry:
    status = path.lstat()
    shown = "/" + str(path.relative_to(tree)) if path != tree else "/"
    kind = stat.S_IFMT(status.st_mode)
    if "\n" in shown or kind not in (stat.S_IFDIR, stat.S_IFLNK, stat.S_IFREG):
        raise FreeholdError(f"{shown!r} cannot be part of an image: only files, directories and links can")
    names = os.listxattr(path, follow_symlinks=False)
    xattrs = tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in sorted(names))
    regular = kind == stat.S_IFREG
    return Entry(
        path=shown,
        mode=status.st_mode,
        uid=status.st_uid,
        gid=status.st_gid,
        size=status.st_size if regular else 0,
        target=os.readlink(path) if kind == stat.S_IFLNK else "",
        digest=verity.digest_file(path) if regular and status.st_size else b"",
        xattrs=xattrs,
    )


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
