# SPDX-License-Identifier: Apache-2.0
"""How one tree of /etc differs from another. For ``freehold status`` too: imports little."""

from __future__ import annotations

import stat
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from freehold.lock.trees import Node, Tree, joined

ADDED, CHANGED, REMOVED = "added", "changed", "removed"


class Change(NamedTuple):
    """One path (relative to /etc) that differs, and how."""

    path: str
    kind: str


def same(one: Node, other: Node, read_one: Callable[[], bytes], read_other: Callable[[], bytes]) -> bool:
    """Whether the two are alike in everything that a committed /etc keeps; contents are read only when they could be."""
    if one != other:
        return False
    return not stat.S_ISREG(one.mode) or read_one() == read_other()


def drift(
    base: Tree, running: Tree, *, ignore: Collection[str], touched: Callable[[str], bool] = lambda _: True
) -> Iterator[Change]:
    """Every path that differs between the two trees, parents first. ``ignore`` has paths relative to them.

    Sockets, pipes and devices are not configuration and are passed over. What is in both and not ``touched`` is taken as
    equal unseen, with all below it.
    """
    usual = (stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK)

    def compare(relative: str, old_names: list[str]) -> Iterator[Change]:
        for name in sorted({*old_names, *running.names(relative)}):
            path = joined(relative, name)
            if path in ignore:
                continue
            one, other = base.look(path) if name in old_names else None, running.look(path)
            if other is None:
                if one is not None and one.kind in usual:
                    yield Change(path, REMOVED)
                continue
            if other.kind not in usual or (one is not None and not touched(path)):
                continue
            if one is None:
                yield Change(path, ADDED)
            elif not same(one, other, lambda at=path: base.read(at), lambda at=path: running.read(at)):  # type: ignore[misc]
                yield Change(path, CHANGED)
            if other.is_directory:
                yield from compare(path, base.names(path))

    return compare("", base.names(""))
