# SPDX-License-Identifier: Apache-2.0
"""The root partition of a disk image, changed with debugfs: names, flags, single bytes that no kernel would change."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from freehold.build.tools import Tools
from freehold.errors import FreeholdError

BLOCK = 4096
#: EXT4_EXTENTS_FL alone: a file without EXT4_VERITY_FL.
PLAIN_FLAGS = 0x80000
VERITY_FLAG = 0x100000


def complaint(errors: bytes) -> str:
    """What debugfs complains of: everything but its version on the standard error; its exit status is always 0. Pure."""
    return " ".join(errors.decode(errors="replace").splitlines()[1:]).strip()


class Ext4:
    """The file system at byte ``offset`` of ``disk``."""

    def __init__(self, tools: Tools, disk: Path, offset: int, work: Path) -> None:
        self._tools, self._disk, self._offset, self._work = tools, disk, offset, work

    def ask(self, request: str) -> str:
        """What debugfs answers to one request, reading only."""
        done = self._tools.run(
            ["debugfs", "-R", request, f"{self._disk}?offset={self._offset}"], binds=[*{self._disk.parent, self._work}]
        )
        if said := complaint(done.stderr):
            raise FreeholdError(f"debugfs: {request}: {said[:300]}")
        return done.text

    def do(self, requests: Sequence[str]) -> None:
        """Carry out requests that change something. Raises :class:`FreeholdError` when debugfs complains."""
        script = self._work / "debugfs.script"
        script.write_text("\n".join(requests) + "\n")
        done = self._tools.run(
            ["debugfs", "-w", "-f", script, f"{self._disk}?offset={self._offset}"],
            binds=[*{self._disk.parent, self._work}],
        )
        if said := complaint(done.stderr):
            raise FreeholdError(f"debugfs: {said[:300]}")

    def exists(self, path: str) -> bool:
        """Whether there is something called ``path``."""
        try:
            return "Inode:" in self.ask(f"stat {path}")
        except FreeholdError:
            return False

    def names(self, path: str) -> list[str]:
        """The names in a directory."""
        rows = (line.split("/") for line in self.ask(f"ls -p {path}").splitlines() if line.startswith("/"))
        return sorted(row[5] for row in rows if len(row) > 6 and row[5] not in (".", ".."))

    def read(self, path: str) -> bytes:
        """A file's content."""
        local = self._work / "ext4-read"
        local.unlink(missing_ok=True)
        self.ask(f"dump {path} {local}")
        if not local.exists():
            raise FreeholdError(f"{path} is not on the root partition")
        return local.read_bytes()

    def make_directories(self, path: str) -> None:
        """``path`` and what is missing above it, owned by root, 0755."""
        for folder in [*reversed(PurePosixPath(path).parents), PurePosixPath(path)]:
            if str(folder) != "/" and not self.exists(str(folder)):
                self.do([f"mkdir {folder}"])

    def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Write (or replace) a file that belongs to root."""
        where = PurePosixPath(path)
        self.make_directories(str(where.parent))
        local = self._work / "ext4-write"
        local.write_bytes(data)
        # unlink, not rm: another name of the same file stays what it is.
        self.do([*self._cleared(path), f"write {local} {path}", *self._own(path, 0o100000 | mode)])

    def symlink(self, path: str, target: str) -> None:
        """Make a symbolic link (in place of what is there)."""
        self.make_directories(str(PurePosixPath(path).parent))
        self.do([*self._cleared(path), f"symlink {path} {target}"])

    def unlink(self, path: str) -> None:
        """Remove a name, be it a file's or that of a whole directory; nothing else is tidied."""
        self.do([f"unlink {path}"])

    def link(self, existing: str, path: str) -> None:
        """Give a file another name (in place of what is there)."""
        self.do([*self._cleared(path), f"ln {existing} {path}"])

    def set_flags(self, path: str, flags: int) -> None:
        """Set an inode's flags."""
        self.do([f"set_inode_field {path} flags {flags:#x}"])

    def flags(self, path: str) -> int:
        """An inode's flags."""
        return int(self._told(path, "Flags"), 16)

    def set_size(self, path: str, size: int) -> None:
        """Set a file's size; its blocks stay."""
        self.do([f"set_inode_field {path} size {size}"])

    def size(self, path: str) -> int:
        """A file's size in bytes."""
        return int(self._told(path, "Size"))

    def place(self, path: str, offset: int) -> int:
        """Where byte ``offset`` of a file is in the disk image; beyond the file's end too, where its verity metadata is."""
        answer = self.ask(f"bmap {path} {offset // BLOCK}").strip()
        if not answer.isdigit() or answer == "0":
            raise FreeholdError(f"{path} has no block at {offset}")
        return self._offset + int(answer) * BLOCK + offset % BLOCK

    def flip(self, path: str, offset: int) -> None:
        """Change the lowest bit of byte ``offset`` of a file, on the raw disk."""
        place = self.place(path, offset)
        with self._disk.open("r+b") as disk:
            disk.seek(place)
            byte = disk.read(1)
            disk.seek(place)
            disk.write(bytes([byte[0] ^ 1]))

    def _cleared(self, path: str) -> list[str]:
        """What removes a name that is there."""
        return [f"unlink {path}"] if self.exists(path) else []

    def _told(self, path: str, name: str) -> str:
        """A number of an inode, as debugfs writes it."""
        found = re.search(rf"{name}: (0x[0-9a-f]+|\d+)", self.ask(f"stat {path}"))
        if found is None:
            raise FreeholdError(f"debugfs does not tell the {name.lower()} of {path}")
        return found[1]

    def _own(self, path: str, mode: int) -> list[str]:
        return [
            f"set_inode_field {path} mode 0{mode:o}", f"set_inode_field {path} uid 0", f"set_inode_field {path} gid 0",
        ]  # fmt: skip
