# SPDX-License-Identifier: Apache-2.0
"""/etc's layers as plain directories: laying a newer one over an older one, overlayfs' own marks kept.

A removed file is a character device 0/0, a directory that hides the one below carries ``trusted.overlay.opaque``
(Documentation/filesystems/overlayfs.rst).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from pathlib import Path

from freehold import files

OPAQUE = "trusted.overlay.opaque"
MAX_FILES = 50_000


def lay_over(layer: Path, target: Path) -> int:
    """Copy the tree ``layer`` over ``target`` (made when missing) with owners, modes and marks; the number of files.

    Sockets, pipes and other devices are left out. Raises :class:`ValueError` for more files than /etc can have.
    """
    count = 0

    def copy(source: Path, place: Path) -> None:
        nonlocal count
        count += 1
        if count > MAX_FILES:
            raise ValueError(f"more than {MAX_FILES} files in {layer}")
        status = source.lstat()
        kind = stat.S_IFMT(status.st_mode)
        whiteout = kind == stat.S_IFCHR and status.st_rdev == 0
        if kind not in (stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK) and not whiteout:
            return
        opaque = kind == stat.S_IFDIR and _opaque(source)
        if os.path.lexists(place) and (kind != stat.S_IFDIR or opaque or place.is_symlink() or not place.is_dir()):
            files.remove(place)
        if whiteout:
            os.mknod(place, 0o600 | stat.S_IFCHR, os.makedev(0, 0))
            return
        if kind == stat.S_IFLNK:
            place.symlink_to(os.readlink(source))
        elif kind == stat.S_IFREG:
            shutil.copyfile(source, place)
        else:
            place.mkdir(exist_ok=True)
            if opaque:
                os.setxattr(place, OPAQUE, b"y")
            for name in sorted(os.listdir(source)):
                copy(source / name, place / name)
        os.chown(place, status.st_uid, status.st_gid, follow_symlinks=False)
        if kind != stat.S_IFLNK:
            place.chmod(stat.S_IMODE(status.st_mode))

    copy(layer, target)
    return count


def _opaque(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.getxattr(path, OPAQUE) in (b"y", b"x")
    return False
