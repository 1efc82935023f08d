# SPDX-License-Identifier: Apache-2.0
"""A machine in a directory for tests of /etc: real images and signatures; fs-verity and the early step are played."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from lab_derive import MACHINE, MemoryVerity, tools_or_skip

from freehold import cli
from freehold.device import sysroot as sysroots
from freehold.device import wanted
from freehold.device.sysroot import Sysroot
from freehold.keys.issue import create
from freehold.keys.verity import digest_file
from freehold.keys.x509 import Signer, load_signer
from freehold.lock import commits
from freehold.lock import intent as intents
from freehold.lock.intent import Intent


class FreshVerity(MemoryVerity):
    """A file that comes and goes leaves its inode's number to the next one: what is enabled now, counts."""

    def enable(self, path: Path) -> None:
        self.enforced[self._key(path)] = digest_file(path)


@dataclass
class EtcLab:
    """``keys`` has the owner's ``me`` and a ``stranger``; the machine is open and was never locked."""

    root: Path
    keys: Path
    capsys: pytest.CaptureFixture[str]
    sysroot: Sysroot = field(init=False)
    error: str = ""

    def __post_init__(self) -> None:
        self.verity = FreshVerity()
        prefix = [str(part) for part in tools_or_skip().argv([], binds=[self.root])]
        self.sysroot = Sysroot(
            root=self.root / "sysroot", system=self.root / "system", mkfs=(*prefix, "mkfs.erofs"), verity=self.verity
        )
        for path in ("sysroot/owner/config", "sysroot/owner/etc/0/upper", "sysroot/inbox", "system/run/freehold", "system/proc"):
            (self.root / path).mkdir(parents=True)
        for top in (self.factory, self.etc):
            (top / "ssh").mkdir(parents=True)
            (top / "motd").write_text("welcome\n")
            (top / "ssh/sshd_config").write_text("Port 22\n")
            (top / "secret").write_text("old password\n")
            (top / "secret").chmod(0o600)
            (top / "passwd").write_text("root:x:0:0::/root:/bin/sh\n")
        (self.sysroot.root / "owner/id").write_text(MACHINE + "\n")
        (self.sysroot.system / "proc/cmdline").write_text(f"freehold.image={'a' * 64} freehold.release=5\n")
        self.sysroot.keychain.mkdir(parents=True)
        (self.sysroot.keychain / "owner-me.der").write_bytes(self.signer("me").certificate_der())
        self.guard("open")

    @property
    def factory(self) -> Path:
        return self.sysroot.system / "usr/etc"

    @property
    def etc(self) -> Path:
        return self.sysroot.system / "etc"

    @property
    def owner(self) -> Path:
        return self.sysroot.root / "owner"

    @property
    def inbox(self) -> Path:
        return self.sysroot.root / "inbox"

    def signer(self, name: str) -> Signer:
        return load_signer(f"file:{self.keys}/{name}.key", lambda _: b"")

    def guard(self, mode: str, config: str | None = None) -> None:
        path = self.sysroot.system / "usr/lib/freehold/guardctl"
        path.write_text(f'#!/bin/sh\necho \'{{"loaded": true, "mode": "{mode}"}}\'\n')
        path.chmod(0o755)
        stands = {"intent": {"state": "valid", "lock": mode}, "config": config or ""}
        record = {"schema": "freehold-boot-1", "rescue": False, **stands}
        (self.sysroot.system / "run/freehold/boot.json").write_text(json.dumps(record))

    def stand(self, config: str | None, *, lock: Literal["open", "locked"] = "locked", serial: int = 3) -> None:
        """An intent as `freehold lock` leaves it."""
        made = Intent(machine=MACHINE, serial=serial, lock=lock, since=serial, config=config)
        signed = intents.sign(made, self.signer("me").sign)
        (self.owner / "intent").write_bytes(signed)
        commits.keep(self.owner, signed)
        self.guard(lock, config)

    def boot(self) -> None:
        """What the early step makes of the inbox (early/commits.c has tests of its own)."""
        found, waits = wanted.newest(self.sysroot)
        if not waits or found is None:
            return
        source = self.inbox / "config" / (found.config or "none")
        if source.exists():
            assert self.verity.measure(source) == bytes.fromhex(source.name)
            source.rename(self.owner / "config" / source.name)
        signed = (self.inbox / "intent").read_bytes()
        assert found.config is None or (self.owner / "config" / found.config).exists()
        (self.owner / "intent").write_bytes(signed)
        commits.keep(self.owner, signed)
        (self.inbox / "intent").unlink()

    def run(self, *words: str | Path, status: int = 0) -> dict[str, Any]:
        """``freehold WORDS --json``; what it complained about is in ``error``."""
        self.capsys.readouterr()
        done = cli.main([*map(str, words), "--json"])
        out, self.error = self.capsys.readouterr()
        assert done == status, self.error
        return dict(json.loads(out)) if out else {}

    def text(self, *words: str | Path) -> str:
        """What ``freehold WORDS`` prints."""
        self.capsys.readouterr()
        assert cli.main([*map(str, words)]) == 0
        return self.capsys.readouterr().out

    def key(self, name: str = "me") -> tuple[str, str]:
        return "--key", f"file:{self.keys}/{name}.key"

    def drift(self) -> dict[str, str]:
        return {row["path"].removeprefix("/etc/"): row["kind"] for row in self.run("etc", "status")["drift"]}

    def standing(self) -> Intent:
        found = wanted.standing(self.sysroot).intent
        assert found is not None
        return found


def make_keys(directory: Path) -> Path:
    for name in ("me", "stranger"):
        create(name, "owner", directory, None)
    return directory


def make(root: Path, keys: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> EtcLab:
    lab = EtcLab(root, keys, capsys)
    # The class carries its paths as defaults, which a named tuple does not let us change.
    monkeypatch.setattr(sysroots, "Sysroot", lambda: lab.sysroot)
    return lab
