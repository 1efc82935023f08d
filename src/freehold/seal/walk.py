# SPDX-License-Identifier: Apache-2.0
"""A finished tree on disk → its entries, and what no image may keep. Builders and machines settle trees alike."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Collection, Iterator
from pathlib import Path

from freehold.errors import FreeholdError
from freehold.keys import verity
from freehold.seal.headerball import Entry

#: Made anew on every machine; one in an image would be shared by all of them.
SECRETS = ("etc/ssh/ssh_host_*", "etc/machine-id", "var/lib/dbus/machine-id", "var/lib/systemd/random-seed",
           "var/lib/systemd/credential.secret", "etc/apt/auth.conf")  # fmt: skip
#: Left over by the package manager and by the machine that built.
LEFTOVERS = (
    "etc/*-", "etc/.pwd.lock", "etc/hostname", "etc/resolv.conf", "etc/mtab", "var/log/*", "var/tmp/*", "var/lib/apt/lists",
    # The resolver of the machine that built, as systemd-resolved's package puts it aside.
    "etc/.resolv.conf.systemd-resolved.bak",
    # mmdebstrap's: the build's own flat directory, which no machine has and none may trust.
    "etc/apt/sources.list.d/0000*",
    "var/cache/apt/*", "var/lib/dpkg/*-old", "var/lib/dpkg/lock*", "var/lib/dpkg/triggers/Lock", "var/cache/debconf/*-old",
    "initrd.img*", "vmlinuz*", "run/*", "tmp/*", "root/*", "root/.[!.]*", ".dockerenv",
)  # fmt: skip
SETUID_BITS = stat.S_ISUID | stat.S_ISGID
CAPABILITY = "security.capability"
#: CAP_SETUID and CAP_SETGID instead of set-uid root, see newuidmap(1).
MAPPERS = {"/usr/bin/newuidmap": 7, "/usr/bin/newgidmap": 6}


def file_capability(number: int) -> bytes:
    """The ``security.capability`` value (VFS_CAP_REVISION_2, effective) that permits one capability. Pure."""
    return struct.pack("<IIIII", 0x02000001, 1 << number, 0, 0, 0)


def strip_privileges(tree: Path, keep: Collection[tuple[str, bytes]] = (), keep_all: Collection[str] = ()) -> list[str]:
    """Take set-uid and set-gid bits and file capabilities from every program of ``tree/usr``; returns what lost any.

    The two programs that rootless containers need to map their users get just the one capability for it. ``keep`` are
    capabilities that a signed tree has already, by path and value; the programs in ``keep_all`` keep all they have.
    """
    stripped = []
    for directory, _, names in os.walk(tree / "usr"):
        for name in names:
            path = Path(directory) / name
            status = path.lstat()
            shown = "/" + str(path.relative_to(tree))
            if not stat.S_ISREG(status.st_mode) or shown in keep_all:
                continue
            had = os.getxattr(path, CAPABILITY) if CAPABILITY in os.listxattr(path) else b""
            taken = False
            if had and (shown, had) not in keep and not (shown in MAPPERS and had == file_capability(MAPPERS[shown])):
                os.removexattr(path, CAPABILITY)
                taken = True
            if status.st_mode & SETUID_BITS:
                path.chmod(stat.S_IMODE(status.st_mode) & ~SETUID_BITS)
                taken = True
            if taken:
                stripped.append(shown)
                if shown in MAPPERS:
                    os.setxattr(path, CAPABILITY, file_capability(MAPPERS[shown]))
    return sorted(stripped)


def walk(tree: Path) -> Iterator[Entry]:
    """Every file of ``tree`` with its metadata and, for regular files, the fs-verity digest of its data.

    Raises :class:`FreeholdError` for what an image cannot hold: devices, sockets, pipes, names with line breaks.
    """
    for directory, subdirectories, names in os.walk(tree):
        subdirectories.sort()
        for name in sorted([*subdirectories, *names]):
            yield _entry(tree, Path(directory) / name)
    yield _entry(tree, tree)


def _entry(tree: Path, path: Path) -> Entry:
    status = path.lstat()
    shown = "/" + str(path.relative_to(tree)) if path != tree else "/"
    kind = stat.S_IFMT(status.st_mode)
    if "\n" in shown or kind not in (stat.S_IFDIR, stat.S_IFLNK, stat.S_IFREG):
        raise FreeholdError(f"{shown!r} cannot be part of an image: only files, directories and links can")
    names = os.listxattr(path, follow_symlinks=False)
    xattrs = tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in sorted(names))
    regular = kind == stat.S_IFREG
    return Entry(
        path=shown,
        mode=status.st_mode,
        uid=status.st_uid,
        gid=status.st_gid,
        size=status.st_size if regular else 0,
        target=os.readlink(path) if kind == stat.S_IFLNK else "",
        digest=verity.digest_file(path) if regular and status.st_size else b"",
        xattrs=xattrs,
    )


def stamp_bytecode(tree: Path, epoch: int) -> None:
    """Make compiled Python valid for sources whose time stamp is ``epoch``.

    All times in the image are ``epoch``; a ``.pyc`` records its source's (bytes 8 to 12, PEP 552), and
    one that differs would be compiled again at every start, since nothing can be saved in a read-only tree.
    """
    for path in (tree / "usr").rglob("*.pyc"):
        with path.open("r+b") as file:
            flags = struct.unpack("<I", file.read(8)[4:])[0]
            if flags == 0:
                file.seek(8)
                file.write(struct.pack("<I", epoch & 0xFFFFFFFF))
