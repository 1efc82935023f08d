# SPDX-License-Identifier: Apache-2.0
"""/etc as a verified chain: its committed image.

A committed configuration is an EROFS image that lies between the sealed factory /etc and the running one:
changed and added files as they are, removed ones as overlayfs whiteouts (character device 0/0).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from freehold import atomic, run
from freehold.errors import FreeholdError
from freehold.keys import verity
from freehold.keys.kernel import enable_verity, measure_verity
from freehold.lock.drift import REMOVED, Change
from freehold.lock.trees import Tree, parents

MAX_FILES = 20_000
MAX_BYTES = 256 << 20


def put(tree: Tree, path: str, target: Path) -> None:
    """Make ``target`` what ``path`` is in ``tree``: one file, link or (without its content) directory."""
    node = tree.look(path)
    if node is None:
        raise FreeholdError(f"/etc/{path} went away while it was read", hint="let its writer finish, then try again")
    if stat.S_ISLNK(node.mode):
        target.symlink_to(node.target)
    elif node.is_directory:
        target.mkdir(exist_ok=True)
    else:
        target.write_bytes(tree.read(path))
    os.chown(target, node.uid, node.gid, follow_symlinks=False)
    if not stat.S_ISLNK(node.mode):
        target.chmod(stat.S_IMODE(node.mode))


def stage(changes: Collection[Change], running: Tree, staging: Path) -> int:
    """Lay out the committed tree in ``staging``; returns the number of bytes.

    Raises :class:`FreeholdError` when it is larger than a configuration can sensibly be.
    """
    if len(changes) > MAX_FILES:
        raise FreeholdError(f"{len(changes)} changed files in /etc are too many for a configuration")
    total = 0
    put(running, "", staging)
    for change in changes:
        target = staging / change.path
        for parent in parents(change.path):
            if not (staging / parent).exists():
                put(running, parent, staging / parent)
        if change.kind == REMOVED:
            os.mknod(target, 0o600 | stat.S_IFCHR, os.makedev(0, 0))
            continue
        node = running.look(change.path)
        total += node.size if node is not None else 0
        if total > MAX_BYTES:
            raise FreeholdError(f"the changes in /etc are larger than {MAX_BYTES >> 20} MiB")
        put(running, change.path, target)
    return total


def write_image(
    staging: Path, directory: Path, *, mkfs: Sequence[str] = ("mkfs.erofs",),
    enable: Callable[[Path], None] = enable_verity, measure: Callable[[Path], bytes | None] = measure_verity,
) -> str:  # fmt: skip
    """Make the EROFS image of ``staging`` in ``directory``, enable fs-verity on it, and name it by its digest (hex).

    The file has its final name only when it is complete and durable; an equal image is made once. ``mkfs`` is how its command
    line begins, ``enable`` and ``measure`` are the kernel's fs-verity.
    """
    temporary = directory / f"{atomic.TEMPORARY_PREFIX}{os.getpid()}"
    try:
        run.run([*mkfs, "-d0", "-T0", "-U00000000-0000-0000-0000-000000000000", temporary, staging])
        digest = verity.digest_file(temporary).hex()
        target = directory / digest
        if target.exists() and measure(target) == bytes.fromhex(digest):
            return digest
        temporary.chmod(0o600)
        enable(temporary)
        measured = measure(temporary)
        if measured is None or measured.hex() != digest:
            raise FreeholdError("the kernel measures the configuration image differently; it is not used")
        atomic.publish(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return digest
