# SPDX-License-Identifier: Apache-2.0
"""/etc as a verified chain: how the running one differs from the factory's, and its committed image.

A committed configuration is an EROFS image that lies between the sealed factory /etc and the running one:
changed and added files as they are, removed ones as overlayfs whiteouts (character device 0/0).
"""

from __future__ import annotations

import filecmp
import os
import shutil
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from freehold import atomic, run
from freehold.errors import FreeholdError
from freehold.keys import verity
from freehold.keys.kernel import enable_verity, measure_verity

#: Made by programs at run time or from the image: no configuration of the owner's.
GENERATED = (".pwd.lock", ".updated", "mtab", "resolv.conf", "ld.so.cache", "adjtime")
MAX_FILES = 20_000
MAX_BYTES = 256 << 20
ADDED, CHANGED, REMOVED = "added", "changed", "removed"


@dataclass(frozen=True)
class Change:
    """One path (relative to /etc) that differs, and how."""

    path: str
    kind: str


def _same(one: Path, other: Path) -> bool:
    a, b = one.lstat(), other.lstat()
    if (stat.S_IFMT(a.st_mode), stat.S_IMODE(a.st_mode), a.st_uid, a.st_gid) != (
        stat.S_IFMT(b.st_mode), stat.S_IMODE(b.st_mode), b.st_uid, b.st_gid,
    ):  # fmt: skip
        return False
    if stat.S_ISLNK(a.st_mode):
        return os.readlink(one) == os.readlink(other)
    if stat.S_ISREG(a.st_mode):
        return a.st_size == b.st_size and filecmp.cmp(one, other, shallow=False)
    return True


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []


def drift(factory: Path, running: Path, *, ignore: Collection[str]) -> Iterator[Change]:
    """Every path that differs between the two trees, parents first. ``ignore`` has paths relative to them.

    Sockets, pipes and devices are not configuration and are passed over.
    """

    def compare(relative: str) -> Iterator[Change]:
        old, new = factory / relative, running / relative
        for name in sorted({*_names(old), *_names(new)}):
            path = f"{relative}/{name}" if relative else name
            if path in ignore:
                continue
            one, other = factory / path, running / path
            if not os.path.lexists(other):
                yield Change(path, REMOVED)
                continue
            if stat.S_IFMT(other.lstat().st_mode) not in (stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK):
                continue
            if not os.path.lexists(one):
                yield Change(path, ADDED)
            elif not _same(one, other):
                yield Change(path, CHANGED)
            if other.is_dir() and not other.is_symlink():
                yield from compare(path)

    return compare("")


def _copy(source: Path, target: Path) -> None:
    status = source.lstat()
    if stat.S_ISLNK(status.st_mode):
        target.symlink_to(os.readlink(source))
    elif stat.S_ISDIR(status.st_mode):
        target.mkdir(exist_ok=True)
    else:
        shutil.copyfile(source, target)
    os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        target.chmod(stat.S_IMODE(status.st_mode))


def stage(changes: Collection[Change], running: Path, staging: Path) -> int:
    """Lay out the committed tree in ``staging``; returns the number of bytes.

    Raises :class:`FreeholdError` when it is larger than a configuration can sensibly be.
    """
    if len(changes) > MAX_FILES:
        raise FreeholdError(f"{len(changes)} changed files in /etc are too many for a configuration")
    total = 0
    _copy(running, staging)
    for change in changes:
        source, target = running / change.path, staging / change.path
        for parent in reversed(Path(change.path).parents[:-1]):
            if not (staging / parent).exists():
                _copy(running / parent, staging / parent)
        if change.kind == REMOVED:
            os.mknod(target, 0o600 | stat.S_IFCHR, os.makedev(0, 0))
            continue
        _copy(source, target)
        total += target.lstat().st_size
        if total > MAX_BYTES:
            raise FreeholdError(f"the changes in /etc are larger than {MAX_BYTES >> 20} MiB")
    return total


def write_image(staging: Path, directory: Path) -> str:
    """Make the EROFS image of ``staging`` in ``directory``, enable fs-verity on it, and name it by its digest (hex).

    The file has its final name only when it is complete and durable; an equal image is made once.
    """
    temporary = directory / f"{atomic.TEMPORARY_PREFIX}{os.getpid()}"
    try:
        run.run(["mkfs.erofs", "-d0", "-T0", "-U00000000-0000-0000-0000-000000000000", temporary, staging])
        digest = verity.digest_file(temporary).hex()
        target = directory / digest
        if target.exists() and measure_verity(target) == bytes.fromhex(digest):
            return digest
        temporary.chmod(0o600)
        enable_verity(temporary)
        measured = measure_verity(temporary)
        if measured is None or measured.hex() != digest:
            raise FreeholdError("the kernel measures the configuration image differently; it is not used")
        atomic.publish(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return digest
