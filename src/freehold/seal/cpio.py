# SPDX-License-Identifier: Apache-2.0
"""A deterministic "newc" cpio archive (the initrd format). Pure.

Format: kernel ``Documentation/driver-api/early-userspace/buffer-format.rst``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

DIRECTORY = 0o040755
EXECUTABLE = 0o100755
REGULAR = 0o100644
TRAILER = "TRAILER!!!"


@dataclass(frozen=True)
class Member:
    """One entry: full mode (type and permissions) and its bytes."""

    mode: int
    data: bytes = b""


def _entry(inode: int, name: str, member: Member) -> bytes:
    encoded = name.encode() + b"\0"
    links = 2 if member.mode & 0o170000 == 0o040000 else 1
    fields = (inode, member.mode, 0, 0, links, 0, len(member.data), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
    return _padded(header) + _padded(member.data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def archive(members: Mapping[str, Member]) -> bytes:
    """The archive of ``members`` (path without a leading slash → member), parents first, sorted by name.

    Owner is root, times are 0, inode numbers count up: equal members give equal bytes.
    """
    complete = dict(members)
    for name in members:
        parts = name.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            complete.setdefault("/".join(parts[:depth]), Member(DIRECTORY))
    chunks = [_entry(number, name, complete[name]) for number, name in enumerate(sorted(complete), start=1)]
    chunks.append(_entry(0, TRAILER, Member(0)))
    return b"".join(chunks)
