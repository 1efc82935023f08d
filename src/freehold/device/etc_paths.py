# SPDX-License-Identifier: Apache-2.0
"""Paths below /etc: as people give and read them, which of them a command is about, and who may read them."""

from __future__ import annotations

import stat
from typing import NamedTuple

from freehold.errors import InputError
from freehold.lock.drift import Change
from freehold.lock.trees import Tree, joined, within


def shown(path: str) -> str:
    """A path below /etc for people: control characters and what is no text are escaped. Pure."""
    text = path.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return "/etc/" + "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


class Secrecy(NamedTuple):
    """Who may read a path of ``trees``: an ordinary user only where every directory and the file itself let them."""

    trees: tuple[Tree, ...]

    def hides(self, path: str) -> bool:
        """Whether ordinary users must not read what is at ``path`` in one of the trees."""
        for tree in self.trees:
            at = ""
            for part in path.split("/"):
                at = joined(at, part)
                node = tree.look(at)
                if node is None or stat.S_ISLNK(node.mode):
                    break
                if not node.mode & (stat.S_IXOTH if node.is_directory else stat.S_IROTH):
                    return True
        return False


def chosen(changes: list[Change], paths: list[str]) -> list[Change]:
    """The ``changes`` at ``paths`` or below; all of them without paths. :class:`InputError` names paths without any."""
    if not paths:
        return changes
    idle = [one for one in paths if not any(within(change.path, [one]) or within(one, [change.path]) for change in changes)]
    if idle:
        raise InputError("nothing differs there", faults=[f"{shown(one)}: as it was committed" for one in idle])
    return [change for change in changes if within(change.path, paths) or any(within(one, [change.path]) for one in paths)]


def relative(words: list[str]) -> list[str]:
    """Paths as they were given (below /etc, or relative to it) as this module has them. :class:`InputError` for others. Pure."""
    found, faults = [], []
    for word in words:
        path = word.removeprefix("/etc/") if word.startswith("/") else word
        parts = [part for part in path.rstrip("/").split("/") if part != "."]
        if path.startswith("/") or not parts or any(part in ("", "..") for part in parts):
            faults.append(f"{word}: not a path below /etc")
        else:
            found.append("/".join(parts))
    if faults:
        raise InputError("these are no files of /etc", faults=faults)
    return found
