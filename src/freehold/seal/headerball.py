# SPDX-License-Identifier: Apache-2.0
"""The metadata of a tree as a PAX "headerball": tar headers without data. Pure.

``mkfs.erofs --tar=headerball`` turns it into a metadata-only EROFS image. Regular files carry two
overlayfs attributes instead of data: ``trusted.overlay.redirect`` (the object's path in the object
store) and ``trusted.overlay.metacopy`` (version 0, length 36, no flags, digest algorithm SHA-256, then
the fs-verity digest), which overlayfs demands of the object when mounted with ``verity=require``
(kernel ``Documentation/filesystems/overlayfs.rst``, ``fs/overlayfs/overlayfs.h``).
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from freehold.errors import InputError

BLOCK = 512
METACOPY_PREFIX = bytes((0, 36, 0, 1))


@dataclass(frozen=True)
class Entry:
    """One file of a tree as the running system will show it.

    ``path`` is absolute; ``mode`` has type and permissions; ``target`` belongs to symbolic links;
    ``redirect`` and ``digest`` (32 bytes) to regular files with data.
    """

    path: str
    mode: int
    uid: int
    gid: int
    size: int = 0
    target: str = ""
    redirect: str = ""
    digest: bytes = b""
    xattrs: tuple[tuple[str, bytes], ...] = ()


def _record(key: str, value: bytes) -> bytes:
    body = b" " + key.encode() + b"=" + value + b"\n"
    length = len(body)
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def _octal(value: int, width: int) -> bytes:
    field = b"%0*o\0" % (width - 1, value)
    if len(field) != width:
        # Cut off or spilling over, it would be another file's header.
        raise InputError(f"{value} is too large for an image (sizes below 8 GiB, ids below 2097152)")
    return field


def _header(name: bytes, mode: int, uid: int, gid: int, size: int, kind: bytes, link: bytes = b"") -> bytes:
    block = bytearray(BLOCK)
    block[0:100] = name[:100].ljust(100, b"\0")
    block[100:108] = _octal(mode & 0o7777, 8)
    block[108:116] = _octal(uid, 8)
    block[116:124] = _octal(gid, 8)
    block[124:136] = _octal(size, 12)
    block[136:148] = _octal(0, 12)
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[157:257] = link[:100].ljust(100, b"\0")
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def encode(entry: Entry) -> bytes:
    """The header blocks of one entry. Raises :class:`InputError` for a size or id that the format cannot hold."""
    name = entry.path.lstrip("/").encode() or b"."
    xattrs = dict(entry.xattrs)
    kinds = {stat.S_IFDIR: b"5", stat.S_IFLNK: b"2", stat.S_IFREG: b"0"}
    kind = kinds[stat.S_IFMT(entry.mode)]
    size = 0
    if kind == b"0" and entry.size:
        size = entry.size
        xattrs["trusted.overlay.redirect"] = entry.redirect.encode()
        xattrs["trusted.overlay.metacopy"] = METACOPY_PREFIX + entry.digest
    records = b"".join(_record(f"SCHILY.xattr.{key}", xattrs[key]) for key in sorted(xattrs))
    if len(name) > 100:
        records += _record("path", name)
    link = entry.target.encode()
    if len(link) > 100:
        records += _record("linkpath", link)
    out = b""
    if records:
        out = _header(b"pax", 0o644, 0, 0, len(records), b"x") + records + b"\0" * (-len(records) % BLOCK)
    return out + _header(name, entry.mode, entry.uid, entry.gid, size, kind, link)


def headerball(entries: Iterable[Entry]) -> bytes:
    """All entries sorted by path, then the two closing zero blocks."""
    ordered: Mapping[str, Entry] = {entry.path: entry for entry in entries}
    return b"".join(encode(ordered[path]) for path in sorted(ordered)) + b"\0" * (2 * BLOCK)
