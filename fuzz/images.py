# SPDX-License-Identifier: Apache-2.0
"""Target: images from a disk: a tree's metadata (read for a derivation, and strictly before it is signed) and a committed /etc.

What the strict readers accept reads the same by the other ways into the same module; at the end fsck.erofs, somebody else's
reader, takes some of the accepted configurations apart, and has to find the same files.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from freehold.errors import InputError
from freehold.seal import erofs
from fuzz import native
from fuzz.engine import Found, must

WORDS = (b"\xe2\xe1\xf5\xe0", b"trusted.overlay.redirect", b"trusted.overlay.metacopy", b"..", b".", b"/", b"a\0", b"\0\0\0\0")
#: So many accepted images are handed to fsck.erofs.
MOST_COMPARED = 24
#: Where the flags are that older readers may ignore.
_COMPATIBLE = 1024 + 8
#: Whiteouts are left out: making a device takes more than being root.
_COMPARED_KINDS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)

_accepted: dict[bytes, None] = {}


def _whole(data: bytes) -> object:
    image = erofs.read(data)
    paths = [entry.path for entry in image.entries]
    must(len(paths) == len(set(paths)) and "/" in paths, "a path is there once, and the top is there")
    for path in paths:
        must(path == "/" or (path[0] == "/" and not {"", ".", ".."} & set(path.split("/")[1:])), "a path is a plain one")
    said = erofs.exactly(data, image.entries, image.epoch)
    if said:
        return "read"
    must(erofs.read(data) == image, "read again it is the same")
    must(erofs.exactly(data, image.entries[:-1], image.epoch) != "", "one entry less is another tree")
    return "exact", len(paths) > 10


def _configuration(data: bytes) -> object:
    found = erofs.files(data)
    for path, file in found.items():
        parts = path.split("/")
        must(path == "" or not {"", ".", ".."} & set(parts), "a path is a plain one")
        must(path == "" or stat.S_ISDIR(found["/".join(parts[:-1])].mode), "what is above a path is a directory")
        if stat.S_ISREG(file.mode):
            must(erofs.content(data, path) == file.content, "a file reads the same by its path")
    if len(_accepted) < MOST_COMPARED:
        _accepted[data] = None
    return "files", len(found) > 3


def one(data: bytes) -> object:
    """The first byte says which reader."""
    reader = _whole if data[:1] < b"\x80" else _configuration
    try:
        return reader(data[1:])
    except InputError:
        return reader.__name__


def _compare(data: bytes, top: Path) -> None:
    for path, file in erofs.files(data).items():
        there = top / path
        if stat.S_IFMT(file.mode) not in _COMPARED_KINDS:
            continue
        try:
            status = there.lstat()
        except FileNotFoundError:
            raise Found(f"fsck.erofs finds nothing at {path!r}", b"\xff" + data) from None
        if (status.st_mode, status.st_uid, status.st_gid) != (file.mode, file.uid, file.gid):
            raise Found(f"fsck.erofs finds another kind of file at {path!r}", b"\xff" + data)
        if stat.S_ISREG(file.mode) and there.read_bytes() != file.content:
            raise Found(f"fsck.erofs finds another content at {path!r}", b"\xff" + data)
        if stat.S_ISLNK(file.mode) and os.readlink(there) != file.target:
            raise Found(f"fsck.erofs finds another link at {path!r}", b"\xff" + data)


def end() -> None:
    """Ask fsck.erofs about the accepted configurations; without the tools tree, or as a user, nothing is asked."""
    tree = native.tools()
    if tree is None or os.geteuid() != 0:
        return
    with tempfile.TemporaryDirectory(prefix="freehold-fuzz-") as name:
        work = Path(name)
        for number, data in enumerate(_accepted):
            # Without the flag that says that there is a check sum: most of what is changed would end there.
            (work / f"{number}").write_bytes(data[:_COMPATIBLE] + bytes([data[_COMPATIBLE] & ~1]) + data[_COMPATIBLE + 1 :])
            extract = ["fsck.erofs", f"--extract={work}/tree-{number}", "--preserve", f"{work}/{number}"]
            done = tree.run(["timeout", "10", *extract], binds=[work], check=False)
            # It may refuse more than we do (its exit status does not always say so); what it reads has to be the same.
            if done.status == 0 and (work / f"tree-{number}").exists():
                _compare(data, work / f"tree-{number}")
    _accepted.clear()
