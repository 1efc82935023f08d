# SPDX-License-Identifier: Apache-2.0
"""Updates against power cuts and hostile servers: the old system or the new one, never neither, never a stranger's."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.vm.reference import Reference

from freehold import run
from freehold.keys.x509 import load_signer
from freehold.server.serve import Handler, Server

pytestmark = [pytest.mark.vm, pytest.mark.build]

#: Where the power goes: a progress line of `freehold upgrade` and seconds after it.
CUTS = (
    ("asking", 0.0), ("fetching content", 0.1), ("fetching content", 1.5), ("verifying content", 0.1),
    ("verifying content", 4.0), ("fetching image", 0.0), ("fetching kernel", 0.0), ("fetching kernel", 0.6),
    ("staging", 0.0), ('"end", "step": "staging"', 0.0),
)  # fmt: skip
#: Those that every run of the tests makes: content half there, the commit point, and behind it.
FEW = (CUTS[4], CUTS[7], CUTS[8], CUTS[9])
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


@pytest.mark.parametrize("cuts", [FEW, pytest.param(CUTS, marks=pytest.mark.campaign)], ids=["few", "all"])
def test_power_cuts(reference: Reference, cuts: Sequence[tuple[str, float]]) -> None:
    stage = reference.stage
    disk = reference.overlay("cuts")
    reference.start(disk)
    seen: set[str] = set()
    for step, delay in cuts:
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
    # The points were well chosen only if both were found.
    assert seen == {"1", "2"}
    # The next command works without repair, and the update arrives.
    stage.guest("freehold", "upgrade", timeout=300)
    assert stage.shell("ostree --repo=/sysroot/repo fsck -q >/dev/null && echo sound") == "sound"
    stage.reboot()
    assert booted(reference) == "2"


class Dying(Handler):
    """Serves so many requests, then the network is gone."""

    left = 60

    def do_GET(self) -> None:  # noqa: N802 (the base class's name)
        """Send the file, or nothing and no goodbye."""
        Dying.left -= 1
        if Dying.left < 0:
            raise ConnectionAbortedError
        super().do_GET()


def sign_again(tree: Path, key: Path) -> None:
    """Everything a publisher signs, consistently, by ``key``."""
    signer = load_signer(f"file:{key}", ask=lambda _: b"")
    for document in (tree / "streams/stable.json", tree / "releases/2/manifest.json"):
        document.with_name(document.name + ".sig").write_bytes(signer.sign_document(document.read_bytes()))


def test_hostile_servers(reference: Reference) -> None:
    stage = reference.stage
    reference.start(reference.overlay("hostile"))
    before = stage.shell(STATE)
    port = stage.port + 1
    stranger = stage.path("stranger-release")
    shutil.rmtree(stranger, ignore_errors=True)
    stage.freehold("key", "new", "stranger", "--role", "release", "--no-passphrase", "--out", stranger)

    def refused(name: str, reason: str) -> None:
        done = stage.guest("freehold", "upgrade", check=False, timeout=400)
        text = done.stderr.decode()
        assert done.status == 1, (name, text)
        assert reason in text, (name, text)
        assert "Traceback" not in text, name
        assert stage.shell(STATE) == before, name

    def offered(name: str, reason: str, change: Callable[[Path], object], handler: type[Handler] = Handler) -> None:
        tree = stage.path("hostile")
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir()
        for part in stage.path("www").iterdir():
            # Content is taken away as a whole at most, so it need not be copied.
            run.run(["cp", "-al" if part.name == "repo" else "-a", part, tree])
        change(tree)
        server = Server(tree, ("127.0.0.1", port))
        server.RequestHandlerClass = handler
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            refused(name, reason)
        finally:
            server.shutdown()
            server.server_close()

    stage.shell(f"sed -i 's,:[0-9]*\",:{port}\",' /etc/freehold/update.toml")
    # Damage of every other kind: tests/unit/test_fetch.py.
    not_signed = "no certificate of role release made this signature"
    offered("garbage", not_signed, lambda tree: (tree / "streams/stable.json").write_bytes(b"\x00" * 5000))
    offered("unsigned", "stable.json.sig: the server answered 404", lambda tree: (tree / "streams/stable.json.sig").unlink())
    offered("a stranger's key", not_signed, lambda tree: sign_again(tree, stranger / "stranger.key"))
    offered("no content", "could not be fetched", lambda tree: shutil.rmtree(tree / "repo"))
    offered("network gone half-way", "could not be fetched", lambda tree: None, Dying)
    assert Dying.left < 0, "the network was never cut"
    # A full disk: seen before the download, and in the middle of it.
    stage.shell(f"sed -i 's,:[0-9]*\",:{stage.port}\",' /etc/freehold/update.toml")
    fill = "fallocate -l $(($(df --output=avail -B1 /var | tail -1) - {left} * 1048576)) /var/fill"
    for left, reason in ((20, "no room for 2"), (120, "could not be fetched")):
        stage.shell(fill.format(left=left))
        refused(f"{left} MiB free", reason)
        stage.shell("rm /var/fill")
    # The control: the true server and a disk with room, after all that, without repair.
    assert stage.guest("freehold", "upgrade", timeout=400).status == 0
    assert stage.shell(STATE) != before
