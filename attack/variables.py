# SPDX-License-Identifier: Apache-2.0
"""The firmware's variable store, changed from outside with virt-fw-vars.

That is what somebody with a flash programmer can do, or root while the machine was open. Authenticated variables
(PK, KEK, db, dbx) are left alone: whoever can write those owns the firmware.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

from freehold.build.tools import Tools

GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
LOADER = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
SYSTEMD = "8cf2644b-4b0b-428f-9387-6d876050dc67"
#: Non-volatile, for boot services and the running system.
ATTRIBUTES = 7


def text(value: str) -> bytes:
    """A string as the boot loader stores it (UTF-16, terminated). Pure."""
    return value.encode("utf-16-le") + b"\0\0"


def first(order: bytes, entry: int) -> bytes:
    """BootOrder with ``entry`` in front of the others. Pure."""
    others = [one for (one,) in struct.iter_unpack("<H", order) if one != entry]
    return struct.pack(f"<{len(others) + 1}H", entry, *others)


class Variables:
    """The variable store in the file ``store``."""

    def __init__(self, tools: Tools, store: Path, work: Path) -> None:
        self._tools, self._store, self._work = tools, store, work

    def _run(self, *arguments: str | Path) -> None:
        self._tools.run(["virt-fw-vars", *arguments], binds=[*{self._store.parent, self._work}])

    def all(self) -> dict[str, bytes]:
        """Every variable's content by name."""
        dump = self._work / "variables.json"
        self._run("--input", self._store, "--output-json", dump)
        return {one["name"]: bytes.fromhex(one["data"]) for one in json.loads(dump.read_text())["variables"]}

    def set(self, name: str, guid: str, data: bytes) -> None:
        """Store a variable, in place of one of that name."""
        change = self._work / "change.json"
        row = {"name": name, "guid": guid, "attr": ATTRIBUTES, "data": data.hex()}
        change.write_text(json.dumps({"version": 2, "variables": [row]}))
        self._run("--inplace", self._store, "--set-json", change)

    def add_boot_entry(self, path: str) -> None:
        """Make ``path`` (a file of the boot partition, with backslashes) the firmware's first choice."""
        self._run("--inplace", self._store, "--append-boot-filepath", path)
        order = self.all()["BootOrder"]
        self.set("BootOrder", GLOBAL, first(order, int.from_bytes(order[-2:], "little")))
