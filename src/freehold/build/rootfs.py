# SPDX-License-Identifier: Apache-2.0
"""The root file system: ext4 whose object store has fs-verity enabled, made without a kernel that has it.

ext4 keeps a file's Merkle tree behind its data; so the files are written with their trees, the file
system is populated by ``mkfs.ext4 -d``, and debugfs then sets each inode's verity flag and its real size.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from freehold.build.tools import Tools
from freehold.keys import verity
from freehold.monitor import Monitor

#: EXT4_VERITY_FL | EXT4_EXTENTS_FL
VERITY_FLAGS = 0x180000
LABEL = "freehold-root"


@dataclass(frozen=True)
class Protected:
    """A file of the root file system that gets fs-verity: its path there and its data's size."""

    path: str
    size: int


def protect(source: Path, target: Path) -> int:
    """Write ``source``'s data and its verity metadata to ``target``, owner, mode and attributes alike; returns the size."""
    status = source.stat()
    measured = verity.measure(source)
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
        writer.seek(verity.metadata_offset(measured.size))
        writer.write(verity.metadata_bytes(measured))
    os.chown(target, status.st_uid, status.st_gid)
    target.chmod(status.st_mode & 0o7777)
    for name in os.listxattr(source):
        os.setxattr(target, name, os.getxattr(source, name))
    return measured.size


def stage_objects(repo: Path, target: Path, objects: Iterable[str], monitor: Monitor) -> list[Protected]:
    """Copy file objects (checksums) of ``repo`` into the staged repository ``target`` with their verity metadata."""
    ordered = sorted(set(objects))

    def stage(checksum: str) -> Protected:
        name = f"{checksum[:2]}/{checksum[2:]}.file"
        destination = target / "objects" / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        destination.unlink(missing_ok=True)
        return Protected(f"/repo/objects/{name}", protect(repo / "objects" / name, destination))

    protected = []
    # Hashing and writing release the interpreter lock: two threads keep two cores busy.
    with ThreadPoolExecutor(os.cpu_count() or 2) as pool:
        for count, item in enumerate(pool.map(stage, ordered, chunksize=64), start=1):
            protected.append(item)
            monitor.progress(count, len(ordered), "objects")
    return protected


def debugfs_script(protected: Sequence[Protected]) -> str:
    """The debugfs commands that turn prepared files into verity files. Pure."""
    lines = []
    for item in protected:
        lines.append(f"set_inode_field {item.path} flags {VERITY_FLAGS:#x}")
        lines.append(f"set_inode_field {item.path} size {item.size}")
    return "\n".join(lines) + "\n"


def make_ext4(tools: Tools, tree: Path, target: Path, protected: Sequence[Protected], *, size: int, seed: str) -> None:
    """Make ``target`` (``size`` bytes) from ``tree`` and enable verity on ``protected``. ``seed`` is a UUID."""
    with target.open("wb") as file:
        file.truncate(size)
    environment = {"SOURCE_DATE_EPOCH": "1", "E2FSPROGS_FAKE_TIME": "1"}
    tools.run(
        [
            "mkfs.ext4", "-q", "-b", "4096", "-O", "verity", "-L", LABEL, "-U", seed, "-m", "1",
            "-E", f"hash_seed={seed},lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0", "-d", tree, target,
        ],
        binds=[target.parent],
        ro_binds=[tree] if target.parent not in tree.parents else [],
        env=environment,
    )  # fmt: skip
    script = target.with_suffix(".debugfs")
    script.write_text(debugfs_script(protected))
    tools.run(["debugfs", "-w", "-f", script, target], binds=[target.parent], env=environment)
    script.unlink()
