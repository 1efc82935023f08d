# SPDX-License-Identifier: Apache-2.0
"""No privilege from below: signposts in the place of programs that give more rights, and proof that no file gives any."""

from __future__ import annotations

import stat
from collections.abc import Collection, Iterable
from pathlib import Path

from freehold.seal.headerball import Entry
from freehold.seal.walk import CAPABILITY, MAPPERS, SETUID_BITS, file_capability

#: Where people look for a way to root. A package that brings one of these brings it in vain.
NAMES = ("/usr/bin/doas", "/usr/bin/pkexec", "/usr/bin/su", "/usr/bin/sudo")
#: The program that the names lead to; it ships with us. It goes by the name that it was called by.
PROGRAM = "/usr/lib/freehold/no-privilege"
LINK = "../lib/freehold/no-privilege"
#: Root's own su, which gives rights away: the signpost starts it for root. Scripts of packages need it.
ROOTS_SU = "/usr/lib/freehold/su"


def put_stubs(tree: Path, names: Iterable[str] = NAMES) -> list[str]:
    """Put a link to the signpost in the place of each name below ``tree``; returns those that were another program's.

    That of su moves to :data:`ROOTS_SU`, for root only.
    """
    taken = []
    for name in names:
        path = tree / name.lstrip("/")
        if path.is_symlink() or path.exists():
            if not path.is_symlink() or path.readlink() != Path(LINK):
                taken.append(name)
            if name == "/usr/bin/su" and stat.S_ISREG(path.lstat().st_mode):
                home = tree / ROOTS_SU.lstrip("/")
                home.parent.mkdir(parents=True, exist_ok=True)
                path.rename(home)
                home.chmod(0o700)
            else:
                path.unlink()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(LINK)
    return taken


def is_stub(entry: Entry) -> bool:
    """Whether this is one of the signposts."""
    return entry.path in NAMES and stat.S_ISLNK(entry.mode) and entry.target == LINK


def privileged(
    entries: Iterable[Entry], keep: Collection[tuple[str, bytes]] = (), keep_all: Collection[str] = ()
) -> list[str]:
    """The files that give whoever starts them more rights, one line each. Pure.

    Not counted: capabilities in ``keep`` (path and value), the files in ``keep_all``, and the two programs that map users.
    """
    found = []
    for entry in entries:
        if not stat.S_ISREG(entry.mode) or entry.path in keep_all:
            continue
        if entry.mode & SETUID_BITS:
            found.append(f"{entry.path}: mode {stat.S_IMODE(entry.mode):04o}")
        for name, value in entry.xattrs:
            mapper = entry.path in MAPPERS and value == file_capability(MAPPERS[entry.path])
            if name == CAPABILITY and not mapper and (entry.path, value) not in keep:
                found.append(f"{entry.path}: {CAPABILITY}")
    return found
