# SPDX-License-Identifier: Apache-2.0
"""Trees of files as /etc's layers have them: a directory, one over another, or a choice of paths out of two.

Paths are relative, "" is the top. Links are never followed, in no component of a path.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple, Protocol


class Node(NamedTuple):
    """What lies at a path. ``size`` in bytes (of files); ``target`` of links."""

    mode: int
    uid: int
    gid: int
    size: int = 0
    target: str = ""

    @property
    def kind(self) -> int:
        """The type bits of the mode."""
        return stat.S_IFMT(self.mode)

    @property
    def is_directory(self) -> bool:
        """Whether others lie below it."""
        return stat.S_ISDIR(self.mode)

    @property
    def removes(self) -> bool:
        """Whether it is an overlay's whiteout, a character device: what lies below it is gone."""
        return stat.S_ISCHR(self.mode)


class Tree(Protocol):
    """Files by their paths. Reading raises :class:`OSError`."""

    def look(self, path: str) -> Node | None:
        """What lies at ``path``; ``None`` when nothing does."""

    def names(self, path: str) -> list[str]:
        """The sorted names in the directory ``path``; none when it is no directory."""

    def read(self, path: str) -> bytes:
        """The content of the file ``path``."""


def joined(directory: str, name: str) -> str:
    """The path of ``name`` in ``directory``."""
    return f"{directory}/{name}" if directory else name


def parents(path: str) -> list[str]:
    """The directories above ``path``, the top first; none for the top."""
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(len(parts))] if path else []


def within(path: str, paths: Collection[str]) -> bool:
    """Whether ``path`` is one of ``paths`` or lies below one."""
    return any(path == one or path.startswith(f"{one}/") for one in paths)


class Directory:
    """The tree at a directory of the file system, which does not change meanwhile."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self._real: dict[str, bool] = {}

    def look(self, path: str) -> Node | None:
        """As :meth:`Tree.look`."""
        if not all(map(self._is_real, parents(path))):
            return None
        return self._look(path)

    def _look(self, path: str) -> Node | None:
        try:
            found = (self.top / path).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        target = os.readlink(self.top / path) if stat.S_ISLNK(found.st_mode) else ""
        size = found.st_size if stat.S_ISREG(found.st_mode) else 0
        return Node(found.st_mode, found.st_uid, found.st_gid, size, target)

    def _is_real(self, path: str) -> bool:
        if path not in self._real:
            node = self._look(path)
            self._real[path] = node is not None and node.is_directory
        return self._real[path]

    def names(self, path: str) -> list[str]:
        """As :meth:`Tree.names`."""
        if not all(map(self._is_real, [*parents(path), path])):
            return []
        return sorted(os.listdir(self.top / path))

    def read(self, path: str) -> bytes:
        """As :meth:`Tree.read`; a link put in the file's place is an error."""
        fd = os.open(self.top / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as source:
            return source.read()


class Stack:
    """``upper`` over ``lower`` as overlayfs shows them; only ``upper`` may have whiteouts."""

    def __init__(self, upper: Tree, lower: Tree) -> None:
        self.upper, self.lower = upper, lower

    def _shows_lower(self, path: str) -> bool:
        """Whether nothing of the upper tree, at ``path`` or above it, covers what the lower one has there."""
        for one in [*parents(path), path]:
            over, under = self.upper.look(one), self.lower.look(one)
            if over is not None and (not over.is_directory or under is None or not under.is_directory):
                return False
        return True

    def look(self, path: str) -> Node | None:
        """As :meth:`Tree.look`."""
        node = self.upper.look(path)
        if node is not None:
            return None if node.removes else node
        return self.lower.look(path) if self._shows_lower(path) else None

    def names(self, path: str) -> list[str]:
        """As :meth:`Tree.names`."""
        node = self.look(path)
        if node is None or not node.is_directory:
            return []
        found = {*self.upper.names(path), *(self.lower.names(path) if self._shows_lower(path) else [])}
        return sorted(name for name in found if self.look(joined(path, name)) is not None)

    def read(self, path: str) -> bytes:
        """As :meth:`Tree.read`."""
        return (self.upper if self.upper.look(path) is not None else self.lower).read(path)


class Selected:
    """``base``, but ``paths`` and all below them as in ``other``, with the directories that lead there."""

    def __init__(self, base: Tree, other: Tree, paths: Collection[str]) -> None:
        self.base, self.other, self.paths = base, other, tuple(paths)

    def _leads(self, path: str) -> bool:
        return not path or any(one.startswith(f"{path}/") for one in self.paths)

    def _from(self, path: str) -> Tree:
        if within(path, self.paths):
            return self.other
        node = self.base.look(path)
        if self._leads(path) and (node is None or not node.is_directory):
            other = self.other.look(path)
            if other is not None and other.is_directory:
                return self.other
        return self.base

    def look(self, path: str) -> Node | None:
        """As :meth:`Tree.look`."""
        return self._from(path).look(path)

    def names(self, path: str) -> list[str]:
        """As :meth:`Tree.names`."""
        if within(path, self.paths):
            return self.other.names(path)
        node = self.look(path)
        if node is None or not node.is_directory:
            return []
        found = {*self.base.names(path), *(self.other.names(path) if self._leads(path) else [])}
        chosen = (joined(path, name) for name in sorted(found))
        leading = self._from(path) is self.other
        return [
            one.rpartition("/")[2]
            for one in chosen
            if (not leading or within(one, self.paths) or self._leads(one)) and self._has(one)
        ]

    def _has(self, path: str) -> bool:
        if within(path, self.paths) or self._leads(path):
            return self.look(path) is not None
        return self.base.look(path) is not None

    def read(self, path: str) -> bytes:
        """As :meth:`Tree.read`."""
        return self._from(path).read(path)
