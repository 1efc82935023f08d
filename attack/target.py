# SPDX-License-Identifier: Apache-2.0
"""One machine to be changed with the power off: its disk, its firmware's variables, what is plugged into it."""

from __future__ import annotations

import base64
import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from attack import gpt, signer
from attack.esp import Esp
from attack.ext4 import Ext4
from attack.model import Truth
from attack.variables import Variables
from freehold.build.tools import Tools
from freehold.keys.x509 import Signer
from freehold.lock import intent
from freehold.lock.intent import Intent

ESP_NAME, ROOT_NAME = "freehold-esp", "freehold-root"
#: What planted code does: it says in a place that lasts that it ran, and as whom.
CANARY = "mkdir -p /var/canary; id -u > /var/canary/{name}"
UNIT = """[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
ExecStart=/bin/sh -c '{script}'
[Install]
WantedBy=sysinit.target multi-user.target
"""


def canary(name: str) -> str:
    """Shell text that leaves the canary ``name`` behind. Pure."""
    return CANARY.format(name=name)


def unit(name: str) -> bytes:
    """A service that leaves the canary ``name`` behind. Pure."""
    return UNIT.format(script=canary(name)).encode()


def smbios(text: str) -> list[str]:
    """QEMU's arguments for an SMBIOS type 11 string. Pure."""
    return ["-smbios", f"type=11,value={text.replace(',', ',,')}"]


def credential(name: str, content: bytes) -> str:
    """A system credential as an SMBIOS string (systemd.system-credentials(7)). Pure."""
    return f"io.systemd.credential.binary:{name}={base64.b64encode(content).decode()}"


@dataclass
class Target:
    """A copy of the base that a row may do anything to."""

    tools: Tools
    disk: Path
    store: Path
    work: Path
    truth: Truth
    #: The machine's own keys (for controls), and the releases' directory and repository.
    keys: Path
    library: Path
    #: More arguments for QEMU.
    extra: list[str] = field(default_factory=list)

    @cached_property
    def partitions(self) -> dict[str, gpt.Partition]:
        """The disk's partitions by name."""
        return gpt.load(self.disk)

    @property
    def esp(self) -> Esp:
        """Its boot partition."""
        return Esp(self.tools, self.disk, self.partitions[ESP_NAME].start, self.work)

    @property
    def root(self) -> Ext4:
        """Its root partition."""
        return Ext4(self.tools, self.disk, self.partitions[ROOT_NAME].start, self.work)

    @property
    def variables(self) -> Variables:
        """Its firmware's variables."""
        return Variables(self.tools, self.store, self.work)

    @property
    def newest(self) -> str:
        """The release that boots when nothing is changed."""
        return self.truth.versions[0]

    @property
    def previous(self) -> str:
        """The one before it."""
        return self.truth.versions[1]

    @property
    def stranger(self) -> Path:
        """Where the stranger's keys are."""
        return self.work / "stranger"

    def uki(self) -> bytes:
        """The newest release's unified kernel image."""
        return self.esp.read(self.esp.uki(self.newest))

    def replace_uki(self, data: bytes) -> None:
        """Put ``data`` in the place of the newest release's unified kernel image."""
        self.esp.write(self.esp.uki(self.newest), data)

    def by_stranger(self, data: bytes) -> bytes:
        """An EFI program signed by a key that looks like the vendor's."""
        return signer.signed(self.tools, self.work, data, signer.stranger(self.stranger, "release"))

    def by_vendor(self, data: bytes) -> bytes:
        """An EFI program signed by the release key: for controls."""
        return signer.signed(self.tools, self.work, data, signer.signer(self.keys, "release"))

    def addon(self, words: str) -> bytes:
        """An unsigned add-on."""
        return signer.addon(self.tools, self.work, words)

    def image(self, version: str) -> str:
        """The path of a release's metadata image on the root partition."""
        return f"/images/{self.truth.images[version]}"

    def object_of(self, path: str, version: str | None = None) -> str:
        """The path of the object behind a file of a release's tree (the newest's)."""
        from attack.base import commit_of

        commit = commit_of(self.library, version or self.newest)
        repo = self.library / "repo"
        line = self.tools.run(["ostree", f"--repo={repo}", "ls", "-C", commit, path], ro_binds=[repo]).text
        checksum = line.split()[4]
        return f"/repo/objects/{checksum[:2]}/{checksum[2:]}.file"

    def standing(self) -> bytes:
        """The signed intent on the disk."""
        return self.root.read("/owner/intent")

    def intent(self) -> Intent:
        """What it says."""
        return intent.parse(intent.split(self.standing())[0])

    def signed_intent(self, by: Signer, **changes: object) -> bytes:
        """The standing intent with some values changed, signed by ``by``."""
        changed = dataclasses.replace(self.intent(), **changes)  # type: ignore[arg-type]
        return intent.sign(changed, by.sign)

    @property
    def owner(self) -> Signer:
        """The owner's key: for what the owner signed once, and for controls."""
        return signer.signer(self.keys, "owner")

    @property
    def other_owner(self) -> Signer:
        """Another owner's key."""
        return signer.stranger(self.stranger, "owner")
