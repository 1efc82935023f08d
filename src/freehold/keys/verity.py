# SPDX-License-Identifier: Apache-2.0
"""fs-verity in user space: digest, Merkle tree, descriptor, and ext4's layout of both on disk.

One parameter set only, the one that every kernel and file system we use agrees on: SHA-256,
4096-byte blocks, no salt. The functions on bytes are pure; those that take a path read the file once.

The Merkle tree: every 4096-byte data block (the last one padded with zeros) is hashed; 128 hashes
fill a block of the level above, and so on until one block is left, whose hash is the root. A file
of one block has no tree: its root is the hash of that block; an empty file's root is all zeros.
The file's digest is the hash of a 256-byte descriptor that holds the root and the file's size.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from freehold.errors import FreeholdError, InputError

BLOCK = 4096  # bytes, of data and of tree alike
DIGEST_BYTES = 32
DESCRIPTOR_BYTES = 256
#: The kernel takes built-in signatures up to this many bytes (FS_VERITY_MAX_SIGNATURE_SIZE).
MAX_SIGNATURE_BYTES = 16128
#: ext4 and f2fs keep the tree behind the data, from the next multiple of this on.
EXT4_METADATA_ALIGN = 65536
#: Unit of reading of large files: fits the second-level cache, costs few system calls.
CHUNK = 1 << 20

_DESCRIPTOR = struct.Struct("<BBBBIQ64s32s144s")
_VERSION, _SHA256, _LOG_BLOCK = 1, 1, 12


@dataclass(frozen=True)
class Verity:
    """What fs-verity knows of one file: ``size`` is the data's, in bytes; ``tree`` has the top level first."""

    digest: bytes
    tree: bytes
    descriptor: bytes
    size: int


def descriptor(root: bytes, size: int, *, signature_size: int = 0) -> bytes:
    """The 256-byte descriptor of a file of ``size`` bytes; ``signature_size`` is 0 where it is hashed."""
    return _DESCRIPTOR.pack(_VERSION, _SHA256, _LOG_BLOCK, 0, signature_size, size, root, b"", b"")


def formatted_digest(digest: bytes) -> bytes:
    """The bytes that a built-in signature covers: magic, algorithm, length, digest."""
    if len(digest) != DIGEST_BYTES:
        raise InputError(f"an fs-verity digest has {DIGEST_BYTES} bytes, not {len(digest)}")
    return b"FSVerity" + struct.pack("<HH", _SHA256, DIGEST_BYTES) + digest


def digest_bytes(data: bytes) -> bytes:
    """The fs-verity digest of ``data``, 32 bytes."""
    return _digest(_root(_leaves(memoryview(data))), len(data))


def digest_file(path: str | os.PathLike[str]) -> bytes:
    """The fs-verity digest of the regular file ``path``, 32 bytes.

    Raises :class:`FreeholdError` when it is no regular file or changes its size meanwhile, and
    :class:`OSError` when it cannot be read.
    """
    leaves, size = _file_leaves(path)
    return _digest(_root(leaves), size)


def measure(source: bytes | Path) -> Verity:
    """Digest, tree and descriptor of bytes or of a file; raises like :func:`digest_file`."""
    if isinstance(source, Path):
        leaves, size = _file_leaves(source)
    else:
        leaves, size = _leaves(memoryview(source)), len(source)
    levels = list(_levels(leaves))
    root = _root(leaves)
    return Verity(_digest(root, size), b"".join(reversed(levels)), descriptor(root, size), size)


def metadata_offset(size: int) -> int:
    """Where ext4 puts the metadata of a file with ``size`` bytes of data; a hole lies between."""
    return -(-size // EXT4_METADATA_ALIGN) * EXT4_METADATA_ALIGN


def metadata_bytes(verity: Verity, signature: bytes = b"") -> bytes:
    """What ext4 (4096-byte blocks) stores from :func:`metadata_offset` on: whole blocks.

    Tree, descriptor (with the built-in ``signature``, if any, right behind), zeros, and the
    descriptor's length with the signature as le32 in the last four bytes of the last block.
    """
    if len(signature) > MAX_SIGNATURE_BYTES:
        raise InputError(f"a built-in signature has at most {MAX_SIGNATURE_BYTES} bytes, not {len(signature)}")
    head = verity.descriptor[:4] + struct.pack("<I", len(signature)) + verity.descriptor[8:] + signature
    blocks = -(-(len(head) + 4) // BLOCK)
    return verity.tree + head.ljust(blocks * BLOCK - 4, b"\0") + struct.pack("<I", len(head))


def _digest(root: bytes, size: int) -> bytes:
    return hashlib.sha256(descriptor(root, size)).digest()


def _leaves(data: memoryview) -> bytes:
    """Hashes of all blocks of ``data``, joined."""
    sha256 = hashlib.sha256
    whole = len(data) - len(data) % BLOCK
    hashes = [sha256(data[start : start + BLOCK]).digest() for start in range(0, whole, BLOCK)]
    if whole < len(data):
        hashes.append(sha256(bytes(data[whole:]).ljust(BLOCK, b"\0")).digest())
    return b"".join(hashes)


def _levels(leaves: bytes) -> Iterator[bytes]:
    """The tree's levels, bottom first, each padded to whole blocks; none for a file of one block or less."""
    level = leaves
    while len(level) > DIGEST_BYTES:
        level = level.ljust(-(-len(level) // BLOCK) * BLOCK, b"\0")
        yield level
        level = _leaves(memoryview(level))


def _root(leaves: bytes) -> bytes:
    while len(leaves) > DIGEST_BYTES:
        leaves = _leaves(memoryview(leaves))
    return leaves


def _file_leaves(path: str | os.PathLike[str]) -> tuple[bytes, int]:
    """Leaf hashes and size of a regular file; small ones with a single read."""
    # O_NONBLOCK: opening a fifo by mistake must not hang; O_NOFOLLOW: a link has no digest of its own.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise FreeholdError(f"{os.fspath(path)} is no regular file: it has no fs-verity digest")
        size = info.st_size
        if size <= CHUNK:
            data = os.read(fd, size + 1)
            if len(data) != size:
                raise _changed(path)
            return _leaves(memoryview(data)), size
        return b"".join(_chunks(fd, size, path)), size
    finally:
        os.close(fd)


def _chunks(fd: int, size: int, path: str | os.PathLike[str]) -> Iterator[bytes]:
    buffer = bytearray(CHUNK)
    view = memoryview(buffer)
    left = size
    while left:
        want = min(CHUNK, left)
        filled = 0
        while filled < want:
            got = os.readv(fd, [view[filled:want]])
            if not got:
                raise _changed(path)
            filled += got
        yield _leaves(view[:want])
        left -= want
    if os.read(fd, 1):
        raise _changed(path)


def _changed(path: str | os.PathLike[str]) -> FreeholdError:
    return FreeholdError(f"{os.fspath(path)} changed while it was read", hint="let its writer finish, then try again")
