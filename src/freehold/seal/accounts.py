# SPDX-License-Identifier: Apache-2.0
"""A tree's accounts on disk: each keeps the number that it has once been given."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from freehold.errors import InputError
from freehold.seal import ids

SYSUSERS = "usr/lib/sysusers.d/00-freehold-base.conf"
#: The lock, in the tree: it feeds the next build or derivation.
ID_COPY = "usr/share/freehold/ids"


def fix_ids(tree: Path, lock: ids.IdLock, *, etc: str = "etc", more: Sequence[Path] = ()) -> ids.IdLock:
    """Give every account the number that ``lock`` has for it, and its files in ``tree`` and in ``more``.

    ``etc`` is where the tree has its databases. Returns the lock for the next time.
    """
    passwd, group = tree / etc / "passwd", tree / etc / "group"
    plan = ids.plan(lock, ids.parse_passwd(passwd.read_text()), ids.parse_group(group.read_text()))
    if plan.chown or plan.chgrp:
        for top in (tree, *more):
            for path in [top, *paths(top)]:
                _own(path, plan)
    for path, text in (
        (passwd, plan.passwd(passwd.read_text())), (group, plan.group(group.read_text())),
        (tree / SYSUSERS, plan.sysusers()), (tree / ID_COPY, plan.lock.text()),
    ):  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    return plan.lock


def _own(path: Path, plan: ids.Plan) -> None:
    status = path.lstat()
    uid, gid = plan.chown.get(status.st_uid, status.st_uid), plan.chgrp.get(status.st_gid, status.st_gid)
    if (uid, gid) != (status.st_uid, status.st_gid):
        os.chown(path, uid, gid, follow_symlinks=False)
        if not path.is_symlink():
            # Changing the owner takes set-id bits away.
            path.chmod(stat.S_IMODE(status.st_mode))


def joined(base: ids.IdLock, own: ids.IdLock) -> ids.IdLock:
    """The release's lock with this machine's own numbers behind it.

    Raises :class:`InputError` when the release has given one of them to somebody else: files in /var would change hands.
    """
    faults = []
    for kind, taken, mine in (("user", base.users, own.users), ("group", base.groups, own.groups)):
        holders = {number: name for name, number in taken.items()}
        faults += [
            f"{kind} {name} has number {number} here, which the release gave to {holders[number]}"
            for name, number in sorted(mine.items())
            if holders.get(number, name) != name
        ]
    if faults:
        raise InputError("numbers of this machine's own accounts are taken by the release", faults=faults)
    return ids.IdLock({**own.users, **base.users}, {**own.groups, **base.groups})


def paths(top: Path) -> Iterator[Path]:
    """Everything below ``top``, each directory before what it holds."""
    for directory, subdirectories, names in os.walk(top):
        subdirectories.sort()
        for name in sorted([*subdirectories, *names]):
            yield Path(directory) / name
