# SPDX-License-Identifier: Apache-2.0
"""What a metadata image says about one file: which object holds its data, and that object's fs-verity digest. Pure.

The two attributes are overlayfs' (kernel ``Documentation/filesystems/overlayfs.rst``, ``fs/overlayfs/overlayfs.h``);
:mod:`freehold.seal.headerball` writes them.
"""

from __future__ import annotations

import re
from typing import NamedTuple

REDIRECT = "trusted.overlay.redirect"
METACOPY = "trusted.overlay.metacopy"
#: version, length, flags, digest algorithm; then the digest.
_HEAD_BYTES = 4
_SHA256 = 1
_DIGEST_BYTES = 32
#: More files than this in one image are a mistake or an attack on memory.
MAX_FILES = 2_000_000
_REDIRECT = re.compile(rb"/([0-9a-f]{2}/[0-9a-f]{62}\.file)")


class Pointer(NamedTuple):
    """A file of the tree at ``path`` (absolute) whose ``size`` bytes are in the object ``name``, ``xx/yyyy.file``."""

    path: str
    name: str
    digest: bytes
    size: int


class Listing(NamedTuple):
    """An image's files: those with data elsewhere, and (path, fault) of those whose attributes make no sense."""

    pointers: tuple[Pointer, ...]
    faults: tuple[tuple[str, str], ...] = ()


def parse_redirect(value: bytes) -> str:
    """The object's name below ``objects/``. :class:`ValueError` when it leads anywhere else."""
    match = _REDIRECT.fullmatch(value)
    if match is None:
        raise ValueError("its redirect names no object")
    return match[1].decode()


def parse_metacopy(value: bytes) -> bytes:
    """The digest that overlayfs demands of the object, 32 bytes. :class:`ValueError` when it demands none that we know."""
    if len(value) < _HEAD_BYTES:
        # Empty is what old kernels write: data elsewhere, nothing demanded.
        raise ValueError("it demands no digest of its object")
    version, length, flags, algorithm = value[:_HEAD_BYTES]
    if version != 0 or flags != 0 or length != len(value):
        raise ValueError("its metacopy attribute is malformed")
    if len(value) == _HEAD_BYTES:
        raise ValueError("it demands no digest of its object")
    if algorithm != _SHA256 or len(value) != _HEAD_BYTES + _DIGEST_BYTES:
        raise ValueError(f"it demands a digest by algorithm {algorithm}, not SHA-256")
    return value[_HEAD_BYTES:]


def pointer(path: str, size: int, redirect: bytes | None, metacopy: bytes | None) -> Pointer | None:
    """Where the data of the file ``path`` is; ``None``: in the image itself, which is verified as a whole.

    :class:`ValueError` for attributes that overlayfs would not follow to verified data.
    """
    if redirect is None and metacopy is None:
        return None
    if metacopy is None:
        raise ValueError("it has a redirect but demands no digest")
    if redirect is None:
        raise ValueError("it demands a digest but names no object")
    return Pointer(path, parse_redirect(redirect), parse_metacopy(metacopy), size)
