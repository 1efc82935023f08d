# SPDX-License-Identifier: Apache-2.0
"""The drift of /etc as text: what stands in the files, as far as ordinary users may read them."""

from __future__ import annotations

import difflib
import stat
from collections.abc import Sequence

from freehold.device.etc_paths import Secrecy, shown
from freehold.lock.drift import Change
from freehold.lock.trees import Node, Tree

#: Files with more bytes are named, not compared line by line.
MAX_TEXT = 1 << 20
_KINDS = {stat.S_IFDIR: "a directory", stat.S_IFLNK: "a link", stat.S_IFREG: "a file"}


def _text(data: bytes) -> list[str] | None:
    """The lines of ``data``; ``None`` when it is binary or large."""
    if len(data) > MAX_TEXT or b"\0" in data:
        return None
    try:
        return data.decode().splitlines(keepends=True)
    except UnicodeDecodeError:
        return None


def _attributes(node: Node) -> str:
    return f"{_KINDS.get(node.kind, 'something else')}, mode {stat.S_IMODE(node.mode):04o}, owner {node.uid}:{node.gid}"


def _content(tree: Tree, path: str, node: Node | None) -> bytes:
    if node is None:
        return b""
    if stat.S_ISLNK(node.mode):
        return f"-> {node.target}\n".encode(errors="surrogateescape")
    return tree.read(path) if stat.S_ISREG(node.mode) else b""


def one(base: Tree, running: Tree, change: Change, *, secrets: bool) -> list[str]:
    """The lines about one path."""
    old, new = base.look(change.path), running.look(change.path)
    name = shown(change.path)
    lines = []
    if old is not None and new is not None and (old.kind, old.mode, old.uid, old.gid) != (new.kind, new.mode, new.uid, new.gid):
        lines.append(f"{name}: {_attributes(old)} -> {_attributes(new)}")
    if not secrets and Secrecy((base, running)).hides(change.path):
        return [*lines, f"{name}: {change.kind}; ordinary users must not read it (--secrets shows it)"]
    before, after = _content(base, change.path, old), _content(running, change.path, new)
    if before == after:
        whole = new if new is not None else old
        return lines or [f"{name}: {change.kind}, {_attributes(whole)}" if whole is not None else f"{name}: {change.kind}"]
    texts = _text(before), _text(after)
    if texts[0] is None or texts[1] is None:
        return [*lines, f"{name}: {change.kind}, not text, or large ({len(before)} -> {len(after)} bytes)"]
    names = ("/dev/null" if old is None else f"committed{name}", "/dev/null" if new is None else f"running{name}")
    for line in difflib.unified_diff(texts[0], texts[1], *names):
        lines.append(line.removesuffix("\n"))
        if not line.endswith("\n"):
            lines.append("\\ No newline at end of file")
    return lines


def unified(base: Tree, running: Tree, changes: Sequence[Change], *, secrets: bool) -> str:
    """The whole diff; ``secrets``: also of files that ordinary users must not read."""
    return "\n".join(line for change in changes for line in one(base, running, change, secrets=secrets))
