# SPDX-License-Identifier: Apache-2.0
"""Updates against power cuts and hostile servers: the old system or the new one, never neither, never a stranger's."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path

import pytest
from tests.vm.reference import Reference

from freehold.server.serve import Server

pytestmark = [pytest.mark.vm, pytest.mark.build]

#: Where the power goes: a progress line of `freehold upgrade` and seconds after it.
CUTS = (
    ("asking", 0.0), ("fetching content", 0.1), ("fetching content", 1.5), ("verifying content", 0.1),
    ("verifying content", 4.0), ("fetching image", 0.0), ("fetching kernel", 0.0), ("fetching kernel", 0.6),
    ("staging", 0.0), ("staging", 0.4),
)  # fmt: skip
#: What must be the same after a refused update.
STATE = (
    "freehold status --json | python3 -c 'import json, sys; d = json.load(sys.stdin); d.pop(\"update\"); print(d)'; "
    "ls -R /efi/EFI /sysroot/deployments /sysroot/images"
)
UPGRADE = "rm -f /run/progress; setsid freehold upgrade --progress-fd 3 3> /run/progress > /run/upgrade.log 2>&1 &"


def booted(reference: Reference) -> str:
    status = json.loads(reference.stage.guest("freehold", "status", "--json").stdout)
    running = [one["version"] for one in status["deployments"] if one["booted"]]
    assert len(running) == 1
    return str(running[0])


def wait_for(reference: Reference, step: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if step in reference.stage.shell("cat /run/progress /run/upgrade.log 2>/dev/null", check=False):
            return
    raise AssertionError(f"the upgrade did not come to {step!r}: {reference.stage.shell('cat /run/upgrade.log')}")


def test_power_cuts(reference: Reference) -> None:
    stage = reference.stage
    disk = reference.overlay("cuts")
    reference.start(disk)
    seen: set[str] = set()
    for step, delay in CUTS:
        stage.shell(UPGRADE)
        wait_for(reference, step)
        time.sleep(delay)
        stage.freehold("vm", "stop", stage.name, "--hard")
        reference.start(disk)
        version = booted(reference)
        assert version in ("1", "2"), f"after a cut at {step} + {delay} s"
        seen.add(version)
        assert stage.shell("ls /efi/EFI/Linux | grep -vc '^freehold-.*efi$' || true") == "0"
        if version == "2":
            disk = reference.overlay("cuts")
            reference.start(disk)
    # The next command works without repair, and the update arrives.
    stage.guest("freehold", "upgrade", timeout=300)
    assert stage.shell("ostree --repo=/sysroot/repo fsck -q >/dev/null && echo sound") == "sound"
    stage.reboot()
    assert booted(reference) == "2"


def test_hostile_servers(reference: Reference) -> None:
    stage = reference.stage
    reference.start(reference.overlay("hostile"))
    before = stage.shell(STATE)
    port = stage.port + 1

    def offered(name: str, change: object) -> None:
        tree = stage.path("hostile")
        shutil.rmtree(tree, ignore_errors=True)
        shutil.copytree(stage.path("www"), tree, ignore=shutil.ignore_patterns("repo"))
        (tree / "repo").mkdir()
        assert callable(change)
        change(tree)
        server = Server(tree, ("127.0.0.1", port))
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            stage.shell(f"sed -i 's,:[0-9]*\",:{port}\",' /etc/freehold/update.toml")
            done = stage.guest("freehold", "upgrade", check=False)
            assert done.status == 1, name
            text = done.stderr.decode()
            assert "Traceback" not in text, name
            after = stage.shell(STATE)
            assert after == before, name
        finally:
            server.shutdown()
            server.server_close()

    def manifest(tree: Path) -> Path:
        return tree / "releases/2/manifest.json"

    offered("garbage", lambda tree: (tree / "streams/stable.json").write_bytes(b"\x00" * 5000))
    offered("unsigned", lambda tree: (tree / "streams/stable.json.sig").unlink())
    offered("changed manifest", lambda tree: manifest(tree).write_bytes(manifest(tree).read_bytes().replace(b'"2"', b'"3"')))
    offered("wrong signature", lambda tree: (tree / "streams/stable.json.sig").write_bytes(b"\x01" * 256))
    offered("half a manifest", lambda tree: manifest(tree).write_bytes(manifest(tree).read_bytes()[:700]))
    offered("no content", lambda tree: None)
    # The control: the true server.
    stage.shell(f"sed -i 's,:[0-9]*\",:{stage.port}\",' /etc/freehold/update.toml")
    assert stage.guest("freehold", "upgrade", "--check").status == 0
