# SPDX-License-Identifier: Apache-2.0
"""Sights of two machines that never were, and a sandbox in a machine's place, for the tests of the persistence table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

from attack.persistence import payload, play
from attack.persistence.model import Done, Live, Row, Sight

from freehold import run

ONE, TWO = "1" * 32, "2" * 32
GOOD, DENIED = Done(0), Done(2, "sh: 1: cannot create x: Operation not permitted")


def row(**changes: object) -> Row:
    values: dict[str, object] = {
        "id": "a24-unit", "kind": "E", "title": "a service", "plant": "true", "canaries": ("a24-unit", "a24-unit.native"),
    }  # fmt: skip
    return Row(**{**values, **changes})  # type: ignore[arg-type]


def act(**changes: object) -> Live:
    values: dict[str, object] = {"id": "a17-disk", "kind": "X", "title": "the raw disk", "act": "dd"}
    return Live(**{**values, **changes})  # type: ignore[arg-type]


def opened(one: Row, *, boot: str = TWO, uid: int = 0, **changes: object) -> Sight:
    """An open machine on which ``one`` fired."""
    values: dict[str, object] = {
        "first": ONE, "second": TWO, "planted": {one.id: GOOD}, "lock": "open", "target": "degraded",
        "canaries": dict.fromkeys(one.canaries, ((uid, boot),)), "looks": {one.id: Done(0, "there")} if one.look else {},
        "absence": {one.id: GOOD} if one.absence else {},
    }  # fmt: skip
    return Sight(**{**values, **changes})  # type: ignore[arg-type]


def locked(one: Row, **changes: object) -> Sight:
    """A locked machine on which it did not."""
    values: dict[str, object] = {
        "first": ONE, "second": TWO, "planted": {one.id: GOOD}, "lock": "locked", "target": "running",
        "looks": {one.id: Done(0, "")} if one.look else {}, "absence": {one.id: GOOD} if one.absence else {},
        "triggers": {one.id: GOOD} if one.trigger else {},
    }  # fmt: skip
    return Sight(**{**values, **changes})  # type: ignore[arg-type]


class Box:
    """Shell in a sandbox with this host's /usr, read-only, and directories of its own for /etc, /var and the others."""

    FOLDERS: ClassVar = (
        "etc/pam.d", "etc/security", "etc/ssh", "etc/python3.13", "var/lib/plant", "var/opt", "root", "run", "home/alice",
        "efi/EFI/Linux",
        "sysroot/owner/etc/1/upper", "sysroot/owner/roothome", "sysroot/inbox", "sysroot/state",
    )  # fmt: skip
    FILES: ClassVar = {
        "etc/passwd": "root:x:0:0:root:/root:/bin/bash\ngames:x:5:60::/:/usr/sbin/nologin\nalice:x:0:0::/:/bin/sh\n",
        "etc/shadow": "root:*:1::::::\ngames:*:1::::::\n", "etc/group": "root:x:0:\ndisk:x:6:\nshadow:x:42:\nalice:x:0:\n",
        "etc/bash.bashrc": "# all\n", "etc/nsswitch.conf": "passwd: files\nnetworks: files\n", "etc/hosts": "",
        "sysroot/state/machine.json": '{"accounts": []}', "efi/EFI/Linux/freehold-3-abc.efi": "x",
        "sysroot/owner/intent": "freehold-intent 1\nserial 2\nlock locked\n",
    }  # fmt: skip

    def __init__(self, top: Path) -> None:
        for name in self.FOLDERS:
            (top / name).mkdir(parents=True)
        for name, text in self.FILES.items():
            (top / name).write_text(text)
        self.top = top
        source = top / "payload.c"
        source.write_text(payload.SOURCE)
        for name, options in (("native", ()), ("library.so", ("-shared", "-fPIC", "-DLIBRARY"))):
            run.run(["gcc", "-Wall", "-Werror", "-O1", *options, "-o", top / "var/lib/plant" / name, source])

    def run(self, *command: str, stdin: bytes | None = None) -> run.Completed:
        argv: list[str | Path] = ["bwrap", "--die-with-parent", "--unshare-all", "--uid", "0", "--gid", "0"]
        argv += ["--ro-bind", "/usr", "/usr"]
        for name in ("bin", "lib", "lib64", "sbin"):
            argv += ["--symlink", f"usr/{name}", f"/{name}"]
        argv += ["--symlink", "var/opt", "/opt", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
        for name in ("etc", "var", "root", "run", "home", "efi", "sysroot"):
            argv += ["--bind", self.top / name, f"/{name}"]
        return run.run([*argv, "--", *command], stdin=stdin, check=False)

    def each(self, given: list[tuple[str, str]]) -> dict[str, tuple[int, str]]:
        data = {"scripts": given, "options": ["-e"], "limit": 60, "most": 2000}
        done = self.run("python3", "-IS", "-c", play.EACH, stdin=json.dumps(data).encode())
        assert done.status == 0, done.stderr.decode()
        return {name: (status, text) for name, (status, text) in json.loads(done.text.strip().splitlines()[-1]).items()}
