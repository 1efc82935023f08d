# SPDX-License-Identifier: Apache-2.0
"""Commit → metadata image: an EROFS file system of names and attributes that points into the object store."""

from __future__ import annotations

import dataclasses
import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from freehold.build.commit import Commit
from freehold.build.tools import Tools
from freehold.errors import FreeholdError
from freehold.keys import verity
from freehold.seal.headerball import Entry, headerball


@dataclass(frozen=True)
class Image:
    """The image file and its fs-verity digest (hex): the number that stands for the whole tree."""

    path: Path
    digest: str
    size: int


def resolve(entries: Sequence[Entry], commit: Commit) -> list[Entry]:
    """Point each regular file with data at its object. Raises :class:`FreeholdError` when one is missing."""
    resolved = []
    for entry in entries:
        if entry.digest:
            checksum = commit.objects.get(entry.path)
            if checksum is None:
                raise FreeholdError(f"{entry.path} is not in commit {commit.id[:12]}")
            entry = dataclasses.replace(entry, redirect=f"/{checksum[:2]}/{checksum[2:]}.file")
        resolved.append(entry)
    return resolved


def write_image(tools: Tools, entries: Sequence[Entry], commit: Commit, target: Path, epoch: int) -> Image:
    """Write the image of ``entries`` to ``target``. Equal entries give equal bytes."""
    ball = target.with_suffix(".tar")
    ball.write_bytes(headerball(resolve(entries, commit)))
    # The UUID names the content too, so that nothing random gets into the image.
    name = uuid.UUID(hashlib.sha256(commit.id.encode()).hexdigest()[:32])
    tools.run(
        ["mkfs.erofs", "-d0", "--tar=headerball", f"-T{epoch}", f"-U{name}", target, ball], binds=[target.parent]
    )
    ball.unlink()
    return Image(target, verity.digest_file(target).hex(), target.stat().st_size)
