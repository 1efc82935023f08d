# SPDX-License-Identifier: Apache-2.0
"""Metadata images, read back: EROFS → the entries that it was made of. Pure.

A derived deployment is its base's entries with some changed. They are taken from the base's *image*, whose digest is
signed, not from the repository's listing, which root can write. The format is ``fs/erofs/erofs_fs.h`` of the
kernel (6.12): a superblock at byte 1024, inodes of 32 or 64 bytes in slots of 32, extended attributes behind the inode or shared,
directories as blocks of (inode, name offset, type). Compression, multiple devices and packed files do not occur
in metadata images and are refused.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import stat
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

from freehold.errors import InputError
from freehold.seal.headerball import METACOPY_PREFIX, Entry

MAGIC = 0xE0F5E1E2
_OFFSET = 1024
_SUPER = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQ")
_COMPACT = struct.Struct("<HHHHIIIIHHI")
_EXTENDED = struct.Struct("<HHHHQIIIIQII16x")
_DIRENT = struct.Struct("<QHBB")
_PREFIXES = {1: "user.", 2: "system.posix_acl_access", 3: "system.posix_acl_default", 4: "trusted.", 6: "security."}
_FLAT_PLAIN, _FLAT_INLINE = 0, 2
#: A tree has tens of thousands of files; more than this is no tree of ours.
MAX_ENTRIES = 2_000_000
MAX_DEPTH = 128
#: What mkfs.erofs writes for us: times in inodes, and a word in each that says which attributes are *not* there.
_COMPATIBLE = 6
_FILTER_SEED = 0x25BBE08F
_TYPES = {stat.S_IFREG: 1, stat.S_IFDIR: 2, stat.S_IFLNK: 7}
REDIRECT, METACOPY = "trusted.overlay.redirect", "trusted.overlay.metacopy"


class Image(NamedTuple):
    """What an image says: ``epoch`` is the time stamp of all its files, seconds since 1970."""

    epoch: int
    entries: list[Entry]


class _Inode(NamedTuple):
    layout: int
    mode: int
    uid: int
    gid: int
    size: int
    start: int
    xattrs: tuple[int, int]
    behind: int


def read(data: bytes) -> Image:
    """The tree in the metadata image ``data``. :class:`InputError` when it is none, or none that we wrote."""
    try:
        return _Reader(data).image()
    except (struct.error, IndexError, OverflowError, UnicodeDecodeError) as error:
        raise InputError(f"the metadata image is damaged: {error}") from None


def below(data: bytes, tops: Sequence[str]) -> list[Entry]:
    """As :func:`read`, but only what lies below the directories ``tops``, and these, and those that lead to them."""

    def wanted(path: str) -> bool:
        return any(path == top or path.startswith(f"{top}/") or top.startswith(f"{path}/") for top in tops)

    try:
        return _Reader(data).image(wanted).entries
    except (struct.error, IndexError, OverflowError, UnicodeDecodeError) as error:
        raise InputError(f"the metadata image is damaged: {error}") from None


def content(data: bytes, path: str) -> bytes | None:
    """The content of the regular file ``path`` in an image that holds data too (a committed /etc); ``None``: no such file.

    :class:`InputError` when ``data`` is no such image.
    """
    try:
        reader = _Reader(data)
        inode = reader._inode(reader.root)
        for part in path.strip("/").split("/"):
            found = dict(reader._names(inode)) if stat.S_ISDIR(inode.mode) else {}
            if part not in found:
                return None
            inode = reader._inode(found[part])
        return reader._content(inode) if stat.S_ISREG(inode.mode) else None
    except (struct.error, IndexError, OverflowError, UnicodeDecodeError) as error:
        raise InputError(f"the image is damaged: {error}") from None


def exactly(data: bytes, entries: Sequence[Entry], epoch: int) -> str:
    """Why ``data`` is not an image of ``entries`` (in the order of their paths) and nothing else; "" when it is.

    For an image that is about to be signed: who wrote it is not believed. What :func:`read` passes over, and a kernel could
    read otherwise, has to be as mkfs.erofs writes it: unknown features and layouts, names out of order (the kernel searches by
    halves), attributes twice, behind the end, or hidden by the filter.
    """
    try:
        found = _Exact(data).image()
    except InputError as error:
        return error.message
    except (struct.error, IndexError, OverflowError, UnicodeDecodeError) as error:
        return f"the metadata image is damaged: {error}"
    if found.epoch != epoch:
        return "the metadata image has another time"
    wanted = [dataclasses.replace(entry, xattrs=tuple(sorted(entry.xattrs))) for entry in entries]
    for one, two in itertools.zip_longest(found.entries, wanted):
        if one != two:
            path = min(entry.path for entry in (one, two) if entry is not None)
            return f"{path!r} in the metadata image is not what was meant"
    return ""


class File(NamedTuple):
    """A path of an image that holds data too: ``content`` of files, ``target`` of links; removed ones are S_IFCHR by ``mode``."""

    mode: int
    uid: int
    gid: int
    content: bytes
    target: str


def files(data: bytes) -> dict[str, File]:
    """All of a committed /etc's image by path, "" for its top: what the kernel shows of it, or :class:`InputError`.

    As strict as :func:`exactly`, since an owner signs what is read here. Extended attributes, which could
    make overlayfs show something else, do not occur; device nodes are whiteouts.
    """
    try:
        return _Config(data).files()
    except (struct.error, IndexError, OverflowError, UnicodeDecodeError) as error:
        raise InputError(f"the image is damaged: {error}") from None


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        if len(data) < _OFFSET + _SUPER.size:
            raise InputError("the metadata image is too short")
        fields = _SUPER.unpack_from(data, _OFFSET)
        if fields[0] != MAGIC:
            raise InputError("this is no EROFS image")
        if not 9 <= fields[3] <= 16:
            raise InputError("the metadata image has an impossible block size")
        self.block = 1 << fields[3]
        self.root: int = fields[5]
        self.epoch: int = fields[7]
        self.meta = fields[10] * self.block
        self.shared = fields[11] * self.block

    def image(self, wanted: Callable[[str], bool] = lambda _: True) -> Image:
        """Walk from the root; each directory once, those whose path is not ``wanted`` never."""
        entries: list[Entry] = []
        seen: set[int] = set()
        waiting = [("/", self.root, 0)]
        while waiting:
            path, nid, depth = waiting.pop()
            inode = self._inode(nid)
            entries.append(self._entry(path, inode))
            if len(entries) > MAX_ENTRIES or depth > MAX_DEPTH:
                raise InputError("the metadata image holds more than a tree can")
            if stat.S_ISDIR(inode.mode):
                if nid in seen:
                    raise InputError(f"the metadata image has a loop at {path!r}")
                seen.add(nid)
                stem = path.rstrip("/")
                found = ((f"{stem}/{name}", child, depth + 1) for name, child in self._names(inode))
                waiting.extend(one for one in found if wanted(one[0]))
        entries.sort(key=lambda entry: entry.path)
        if any(one.path == two.path for one, two in itertools.pairwise(entries)):
            raise InputError("the metadata image has a name twice")
        return Image(self.epoch, entries)

    def _inode(self, nid: int) -> _Inode:
        at = self.meta + nid * 32
        (form,) = struct.unpack_from("<H", self.data, at)
        if form & 1:
            _, icount, mode, _, size, start, _, uid, gid, *_ = _EXTENDED.unpack_from(self.data, at)
            behind = at + _EXTENDED.size
        else:
            _, icount, mode, _, size, _, start, _, uid, gid, _ = _COMPACT.unpack_from(self.data, at)
            behind = at + _COMPACT.size
        length = 12 + (icount - 1) * 4 if icount else 0
        return _Inode((form >> 1) & 7, mode, uid, gid, size, start, (behind, length), behind + length)

    def _bytes(self, start: int, length: int) -> bytes:
        found = self.data[start : start + length]
        if start < 0 or len(found) != length:
            raise InputError("the metadata image points behind its end")
        return found

    def _content(self, inode: _Inode) -> bytes:
        if inode.size > len(self.data):
            raise InputError("the metadata image has a directory or link larger than itself")
        if inode.layout == _FLAT_PLAIN:
            return self._bytes(inode.start * self.block, inode.size)
        if inode.layout == _FLAT_INLINE:
            tail = inode.size % self.block or min(inode.size, self.block)
            whole = inode.size - tail
            front = self._bytes(inode.start * self.block, whole) if whole else b""
            return front + self._bytes(inode.behind, tail)
        raise InputError("the metadata image is of a kind that Freehold does not write (compressed or in chunks)")

    def _names(self, inode: _Inode) -> list[tuple[str, int]]:
        content, found = self._content(inode), []
        for begin in range(0, len(content), self.block):
            block = content[begin : begin + self.block]
            first = _DIRENT.unpack_from(block, 0)[1]
            count, rest = divmod(first, _DIRENT.size)
            if rest or not count or first > len(block):
                raise InputError("the metadata image has a damaged directory")
            rows = [_DIRENT.unpack_from(block, index * _DIRENT.size) for index in range(count)]
            ends = [row[1] for row in rows[1:]] + [len(block)]
            for row, end in zip(rows, ends, strict=True):
                name = block[row[1] : end].split(b"\0", 1)[0].decode()
                if not name or "/" in name or "\n" in name:
                    raise InputError("the metadata image has an impossible file name")
                if name not in (".", ".."):
                    found.append((name, row[0]))
        return found

    def _one_xattr(self, at: int) -> tuple[str, bytes, int]:
        length, index, size = struct.unpack_from("<BBH", self.data, at)
        if index not in _PREFIXES:
            raise InputError("the metadata image has an attribute of an unknown kind")
        name = _PREFIXES[index] + self._bytes(at + 4, length).decode()
        return name, self._bytes(at + 4 + length, size), at + (4 + length + size + 3) // 4 * 4

    def _xattrs(self, inode: _Inode) -> dict[str, bytes]:
        begin, length = inode.xattrs
        if not length:
            return {}
        end, at = begin + length, begin + 12
        found = {}
        for number in struct.unpack_from(f"<{self.data[begin + 4]}I", self.data, at):
            name, value, _ = self._one_xattr(self.shared + number * 4)
            found[name] = value
            at += 4
        while at + 4 <= end and self._bytes(at, 4) != b"\0\0\0\0":
            name, value, at = self._one_xattr(at)
            found[name] = value
        return found

    def _entry(self, path: str, inode: _Inode) -> Entry:
        xattrs = self._xattrs(inode)
        kind = stat.S_IFMT(inode.mode)
        if kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
            raise InputError(f"{path!r} in the metadata image is neither file, directory nor link")
        redirect, digest, size, target = "", b"", 0, ""
        if kind == stat.S_IFREG and inode.size:
            size = inode.size
            redirect = xattrs.pop(REDIRECT, b"").decode()
            copy = xattrs.pop(METACOPY, b"")
            digest = copy[len(METACOPY_PREFIX) :]
            if not redirect or not copy.startswith(METACOPY_PREFIX) or len(digest) != 32:
                raise InputError(f"{path!r} in the metadata image does not say where its data is")
        if kind == stat.S_IFLNK:
            target = self._content(inode).decode()
        kept = tuple(sorted(xattrs.items()))
        return Entry(path, inode.mode, inode.uid, inode.gid, size, target, redirect, digest, kept)


class _Exact(_Reader):
    """Refuses what :class:`_Reader` need not look at."""

    #: Which types there are, and how directories call them.
    types = _TYPES
    compatible: tuple[int, ...] = (_COMPATIBLE,)

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        (_, _, compatible, _, slots, _, _, _, nsec, blocks, _, _, _, label, incompatible, algorithms, devices, _,
         directory_bits, prefixes, _, packed) = _SUPER.unpack_from(data, _OFFSET)  # fmt: skip
        rest = self._bytes(_OFFSET + _SUPER.size, 128 - _SUPER.size)
        odd = (slots, nsec, incompatible, algorithms, devices, directory_bits, prefixes, packed)
        if compatible not in self.compatible or any(odd) or any(label) or any(rest):
            raise InputError("the metadata image has features that Freehold does not write")
        if blocks * self.block != len(data):
            raise InputError("the metadata image has another size than it says")

    def _inode(self, nid: int) -> _Inode:
        inode = super()._inode(nid)
        at = self.meta + nid * 32
        (form,) = struct.unpack_from("<H", self.data, at)
        if form >> 4 or (form & 1 and _EXTENDED.unpack_from(self.data, at)[9:11] != (self.epoch, 0)):
            raise InputError("the metadata image has an inode that Freehold does not write")
        return inode

    def _names(self, inode: _Inode) -> list[tuple[str, int]]:
        content = self._content(inode)
        before = b""
        for begin in range(0, len(content), self.block):
            block = content[begin : begin + self.block]
            count = _DIRENT.unpack_from(block, 0)[1] // _DIRENT.size
            if not count:
                raise InputError("the metadata image has a directory without names")
            rows = [_DIRENT.unpack_from(block, index * _DIRENT.size) for index in range(count)]
            ends = [row[1] for row in rows[1:]] + [len(block)]
            for number, (row, end) in enumerate(zip(rows, ends, strict=True), start=1):
                name = block[row[1] : end]
                if number == count:
                    name = name.rstrip(b"\0")
                kind = stat.S_IFMT(self._inode(row[0]).mode)
                if b"\0" in name or name <= before or row[2] != self.types.get(kind) or row[3]:
                    raise InputError("the metadata image has a directory that Freehold does not write")
                before = name
        return super()._names(inode)

    def _xattrs(self, inode: _Inode) -> dict[str, bytes]:
        begin, length = inode.xattrs
        if not length:
            return {}
        end, at = begin + length, begin + 12
        (hidden,) = struct.unpack_from("<I", self.data, begin)
        places = [self.shared + number * 4 for number in struct.unpack_from(f"<{self.data[begin + 4]}I", self.data, at)]
        at += 4 * len(places)
        while at < end and self._bytes(at, 4) != b"\0\0\0\0":
            places.append(at)
            _, _, at = self._one_xattr(at)
        if at > end or any(self._bytes(at, end - at)) or any(self._bytes(begin + 5, 7)):
            raise InputError("the metadata image has attributes behind their end")
        shown = 0
        for place in places:
            size, index = self.data[place], self.data[place + 1]
            shown |= 1 << (xxh32(self._bytes(place + 4, size), _FILTER_SEED + index) & 31)
        if hidden != shown ^ _MASK:
            raise InputError("the metadata image hides an attribute")
        found = super()._xattrs(inode)
        if len(found) != len(places):
            raise InputError("the metadata image has an attribute twice")
        return found


class _Config(_Exact):
    """A committed /etc: files with their data, and whiteouts."""

    types = {**_TYPES, stat.S_IFCHR: 3}  # noqa: RUF012 (never changed, as its base's)
    #: Times in inodes, with or without a checksum of the superblock; from directories mkfs.erofs writes no filter.
    compatible = (2, 3)

    def files(self) -> dict[str, File]:
        """Walk from the root; each directory once."""
        found: dict[str, File] = {}
        seen: set[int] = set()
        waiting = [("", self.root, 0)]
        size = 0
        while waiting:
            path, nid, depth = waiting.pop()
            inode = self._inode(nid)
            kind = stat.S_IFMT(inode.mode)
            if kind not in self.types or inode.xattrs[1]:
                raise InputError(f"{path!r} in the image is of a kind that no configuration has")
            if kind == stat.S_IFCHR and inode.start:
                raise InputError(f"{path!r} in the image is a device")
            content = self._content(inode) if kind in (stat.S_IFREG, stat.S_IFLNK) else b""
            size += len(content)
            # Files may share their blocks: what they say they hold is no more than there is room for.
            if len(found) > MAX_ENTRIES or depth > MAX_DEPTH or size > len(self.data):
                raise InputError("the image holds more than it has room for")
            is_link = kind == stat.S_IFLNK
            found[path] = File(inode.mode, inode.uid, inode.gid, b"" if is_link else content, content.decode() if is_link else "")
            if kind == stat.S_IFDIR:
                if nid in seen:
                    raise InputError(f"the image has a loop at {path!r}")
                seen.add(nid)
                waiting += [(f"{path}/{name}".lstrip("/"), child, depth + 1) for name, child in self._names(inode)]
        if not stat.S_ISDIR(found[""].mode):
            raise InputError("the top of the image is no directory")
        return found


_PRIMES = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1)
_MASK = 0xFFFFFFFF


def _rotate(value: int, bits: int) -> int:
    value &= _MASK
    return (value << bits | value >> (32 - bits)) & _MASK


@functools.lru_cache(1024)
def xxh32(data: bytes, seed: int) -> int:
    """The 32-bit xxHash of ``data``, by which the kernel asks the filter of attributes."""
    one, two, three, four, five = _PRIMES
    at, value = 0, seed + five
    if len(data) >= 16:
        lanes = [seed + one + two, seed + two, seed, seed - one]
        while at + 16 <= len(data):
            words = struct.unpack_from("<4I", data, at)
            lanes = [_rotate(lane + word * two, 13) * one & _MASK for lane, word in zip(lanes, words, strict=True)]
            at += 16
        value = sum(_rotate(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True))
    value += len(data)
    while at + 4 <= len(data):
        value = _rotate(value + struct.unpack_from("<I", data, at)[0] * three, 17) * four & _MASK
        at += 4
    for byte in data[at:]:
        value = _rotate(value + byte * five, 11) * one & _MASK
    value &= _MASK
    value = (value ^ value >> 15) * two & _MASK
    value = (value ^ value >> 13) * three & _MASK
    return value ^ value >> 16
