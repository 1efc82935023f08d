# SPDX-License-Identifier: Apache-2.0
"""Committed images of /etc, verified by their digest and read without mounting: as trees, and compared with each other."""

from __future__ import annotations

import re
import stat
from pathlib import Path

from freehold.device.committed import MAX_IMAGE
from freehold.device.sysroot import Sysroot
from freehold.errors import FreeholdError, InputError, NotHereError
from freehold.files import read_bytes
from freehold.keys import verity
from freehold.lock.covered import COMMIT_FILE
from freehold.lock.drift import ADDED, CHANGED, Change
from freehold.lock.trees import Directory, Node, Stack, Tree, parents
from freehold.seal import erofs

#: Characters of a message.
MAX_MESSAGE = 200
#: What an image does to a path that the one before did otherwise.
RETURNED, REMOVES = "returned", "removes"
_HEAD = "freehold-commit 1"
_MESSAGE = re.compile(rf"{_HEAD}\nmessage ([^\x00-\x1f\x7f-\x9f]{{1,{MAX_MESSAGE}}})\n")
#: Where images lie: what stands, and what was made while that was closed.
PLACES = ("owner/config", "inbox/config")


class Image:
    """The tree in a committed image, whiteouts as :attr:`freehold.lock.trees.Node.removes`."""

    def __init__(self, data: bytes) -> None:
        """``data``: a verified image. :class:`InputError` when it is none."""
        self.files = erofs.files(data)
        self._names: dict[str, list[str]] = {}
        for path in sorted(self.files):
            if path:
                self._names.setdefault(path.rpartition("/")[0], []).append(path.rpartition("/")[2])

    def look(self, path: str) -> Node | None:
        """As :meth:`freehold.lock.trees.Tree.look`."""
        found = self.files.get(path)
        return None if found is None else Node(found.mode, found.uid, found.gid, len(found.content), found.target)

    def names(self, path: str) -> list[str]:
        """As :meth:`freehold.lock.trees.Tree.names`."""
        return self._names.get(path, [])

    def read(self, path: str) -> bytes:
        """As :meth:`freehold.lock.trees.Tree.read`."""
        return self.files[path].content

    @property
    def message(self) -> str:
        """What its author said about it, "" for nothing."""
        found = self.files.get(COMMIT_FILE)
        return read_message(found.content) if found is not None else ""


def read_message(data: bytes) -> str:
    """The message in a commit file, "" when it is none. Pure."""
    try:
        match = _MESSAGE.fullmatch(data.decode())
    except UnicodeDecodeError:
        return ""
    # Nothing that turns a terminal's line around, either.
    return match[1] if match and match[1].isprintable() else ""


def write_message(message: str) -> bytes:
    """The commit file for ``message``. :class:`InputError` for one that is empty, too long, or more than a line. Pure."""
    try:
        data = f"{_HEAD}\nmessage {message}\n".encode()
    except UnicodeEncodeError:
        data = b""
    if read_message(data) != message or not message:
        raise InputError(f"a message is one line of 1 to {MAX_MESSAGE} printable characters")
    return data


def place(sysroot: Sysroot, digest: str) -> Path:
    """The file of the image ``digest``, not verified. :class:`NotHereError` when there is none."""
    for where in PLACES:
        path = sysroot.root / where / digest
        if path.is_file() and not path.is_symlink():
            return path
    raise NotHereError(f"the committed /etc {digest[:16]} is not on this machine", hint="`freehold etc history` lists what is")


def load_bytes(sysroot: Sysroot, digest: str) -> bytes:
    """The image ``digest``, from where its bytes are just that. :class:`NotHereError` when they are nowhere."""
    for where in PLACES:
        try:
            data = read_bytes(sysroot.root / where / digest, MAX_IMAGE)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, FreeholdError):
            continue
        if verity.digest_bytes(data).hex() == digest:
            return data
    raise NotHereError(
        f"the committed /etc {digest[:16]} is not on this machine, or is not what was signed",
        hint="`freehold etc history` lists what is",
    )


def base_tree(sysroot: Sysroot, digest: str | None) -> Tree:
    """What /etc is with the image ``digest`` (``None``: without one) before anything is changed. Raises as :func:`load_bytes`."""
    factory = Directory(sysroot.system / "usr/etc")
    return factory if digest is None else Stack(Image(load_bytes(sysroot, digest)), factory)


def _is_plain(directory: erofs.File) -> bool:
    return (stat.S_IMODE(directory.mode), directory.uid, directory.gid) == (0o755, 0, 0)


def changes_between(before: Image | None, after: Image | None) -> list[Change]:
    """How the image ``after`` differs from the one ``before`` (``None``: the factory's /etc alone), by path. Pure.

    Kinds: added, changed, removes (the factory's file), returned (to what the factory has).
    """
    old, new = before.files if before else {}, after.files if after else {}
    ways = [{parent for path in files for parent in parents(path)} for files in (old, new)]
    found = []
    for path in sorted({*old, *new} - {COMMIT_FILE}):
        one, other = old.get(path), new.get(path)
        if one == other:
            continue
        # A directory that is only on the way to what differs is no difference of its own, unless others could write to it.
        on_the_way = not path or path in ways[other is not None]
        if (one is None or other is None) and on_the_way and (other is None or _is_plain(other)):
            continue
        kind = RETURNED if other is None else REMOVES if stat.S_ISCHR(other.mode) else ADDED if one is None else CHANGED
        found.append(Change(path, kind))
    return found
