# SPDX-License-Identifier: Apache-2.0
"""The boot partition of a disk image, changed with mtools: no mount, no loop device, no machine."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from freehold.build.tools import Tools
from freehold.errors import FreeholdError
from freehold.update import rescue_entry

LINUX = "EFI/Linux"


class Esp:
    """The FAT file system at byte ``offset`` of ``disk``. Paths are relative to its top, with slashes."""

    def __init__(self, tools: Tools, disk: Path, offset: int, work: Path) -> None:
        self._tools, self._disk, self._offset, self._work = tools, disk, offset, work

    def _mtools(self, program: str, *arguments: str | Path, check: bool = True) -> str:
        done = self._tools.run(
            [program, "-i", f"{self._disk}@@{self._offset}", *arguments],
            binds=[*{self._disk.parent, self._work}], env={"MTOOLS_SKIP_CHECK": "1"}, check=check,
        )  # fmt: skip
        return done.text if done.status == 0 else ""

    def names(self, folder: str) -> list[str]:
        """The names in ``folder``, sorted; none when it does not exist."""
        listing = self._mtools("mdir", "-b", f"::/{folder}", check=False)
        return sorted(PurePosixPath(line.strip().rstrip("/")).name for line in listing.splitlines() if line.strip())

    def read(self, path: str) -> bytes:
        """A file's content."""
        local = self._work / "esp-read"
        local.unlink(missing_ok=True)
        self._mtools("mcopy", "-n", f"::/{path}", local)
        return local.read_bytes()

    def write(self, path: str, data: bytes) -> None:
        """Write a file, and the folders above it where they are missing."""
        missing: list[str] = []
        for folder in PurePosixPath(path).parents:
            if str(folder) == "." or self._mtools("mdir", "-b", f"::/{folder}", check=False):
                break
            # An empty folder lists nothing; making it again fails, and then it is there.
            missing.insert(0, str(folder))
        for name in missing:
            self._mtools("mmd", f"::/{name}", check=False)
        local = self._work / "esp-write"
        local.write_bytes(data)
        self._mtools("mcopy", "-o", local, f"::/{path}")

    def delete(self, path: str) -> None:
        """Delete a file."""
        self._mtools("mdel", f"::/{path}")

    def rename(self, old: str, new: str) -> None:
        """Rename a file."""
        self._mtools("mren", f"::/{old}", f"::/{new}")

    def uki(self, version: str) -> str:
        """The path of the unified kernel image of release ``version``."""
        found = [
            name for name in self.names(LINUX) if name.startswith(f"freehold-{version}-") and name.endswith(".efi")
        ]
        if len(found) != 1:
            raise FreeholdError(f"the boot partition has {len(found)} entries of release {version}")
        return f"{LINUX}/{found[0]}"

    def rescue(self, version: str) -> str:
        """The path of the rescue image of release ``version``."""
        found = [name for name in self.names(LINUX) if name.startswith(f"{rescue_entry.PREFIX}{version}-")]
        if len(found) != 1:
            raise FreeholdError(f"the boot partition has {len(found)} rescue entries of release {version}")
        return f"{LINUX}/{found[0]}"
