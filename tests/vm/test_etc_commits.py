# SPDX-License-Identifier: Apache-2.0
"""Committing /etc on a machine: open, then locked by request and signature elsewhere; what root does alone gets nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from demo.stage import Stage
from demo.story import root_runs
from tests.vm.reference import Reference

pytestmark = [pytest.mark.vm, pytest.mark.build, pytest.mark.campaign]
#: An emulated machine reads all of /etc.
TIMEOUT = 600.0


@pytest.fixture(scope="module")
def machine(reference: Reference) -> Iterator[Stage]:
    """An open machine that was never locked."""
    disk = reference.overlay("etc")
    reference.start(disk)
    yield reference.stage
    disk.unlink(missing_ok=True)


def etc(stage: Stage, *words: str, status: int = 0) -> dict[str, Any]:
    """``freehold etc WORDS --json`` on the machine."""
    done = stage.guest("freehold", "etc", *words, "--json", check=False, timeout=TIMEOUT)
    assert done.status == status, done.stderr.decode()
    return dict(json.loads(done.stdout)) if done.stdout.strip() else {"error": done.stderr.decode()}


def drift(stage: Stage) -> dict[str, str]:
    return {row["path"]: row["kind"] for row in etc(stage, "status")["drift"]}


def history(stage: Stage) -> list[tuple[str, str, str]]:
    """Author, message and state of each commit, oldest first."""
    return [(row["author"], row["message"], row["state"]) for row in etc(stage, "history")["commits"]]


def standing(stage: Stage) -> str:
    """Number and lock of the intent, as the early step read it."""
    record = json.loads(stage.shell("cat /run/freehold/boot.json"))["intent"]
    return f"{record['serial']} {record['lock']}"


def asked(stage: Stage, *words: str) -> tuple[str, str]:
    """Request on the machine, signature elsewhere, the answer on the machine: its name, and what the owner was shown."""
    etc(stage, *words, "--request", "/run/etc.request")
    request = stage.path("etc.request")
    request.unlink(missing_ok=True)
    stage.freehold("vm", "copy", stage.name, ":/run/etc.request", request)
    shown = stage.freehold("sign", request, "--key", f"file:{stage.keys / 'owner.key'}").stderr.decode()
    stage.copy(Path(f"{request}.signed"), "/run/etc.signed")
    return "/run/etc.signed", shown


def console(stage: Stage) -> str:
    """What the early step said at this boot."""
    return stage.shell("dmesg | grep freehold")


def test_a_commit_while_open_stands_over_a_reboot(machine: Stage) -> None:
    stage = machine
    stage.shell("echo committed > /etc/motd; echo both > /etc/both.conf")
    assert {"/etc/motd", "/etc/both.conf"} <= set(drift(stage))
    answer, shown = asked(stage, "commit", "-m", "while open")
    assert "message: while open" in shown
    assert "/etc/both.conf" in shown
    assert etc(stage, "commit", "--answer", answer)["pending"] is False
    assert drift(stage) == {}
    stage.shell("echo later > /etc/later.conf")
    stage.reboot()
    # The running layer stays over the image: what came after the commit, too.
    assert stage.shell("cat /etc/motd /etc/both.conf /etc/later.conf") == "committed\nboth\nlater"
    assert drift(stage) == {"/etc/later.conf": "added"}
    etc(stage, "revert")
    assert stage.shell("ls /etc/later.conf 2>&1 || true").endswith("No such file or directory")
    assert [row[1:] for row in history(stage)] == [("while open", "in force")]


def test_the_lock_uses_that_commit(machine: Stage) -> None:
    stage = machine
    before = etc(stage, "status")["commit"]["digest"]
    stage.signed("lock")
    assert etc(stage, "status")["commit"]["digest"] == before
    stage.reboot()
    assert etc(stage, "status")["locked"] is True
    assert stage.shell("cat /etc/motd") == "committed"
    assert not root_runs(stage)


def test_an_emergency_edit_shows_and_goes(machine: Stage) -> None:
    stage = machine
    calm = drift(stage)
    stage.shell("echo emergency > /etc/motd; rm /etc/both.conf; echo x > /etc/emergency.conf")
    found = {path: kind for path, kind in drift(stage).items() if path not in calm}
    assert found == {"/etc/motd": "changed", "/etc/both.conf": "removed", "/etc/emergency.conf": "added"}
    messages = json.loads(stage.guest("freehold", "status", "--json").stdout)["messages"]
    assert any("differ from what was committed, until the next reboot" in line for line in messages), messages
    assert "-committed\n+emergency" in etc(stage, "diff", "motd")["diff"]
    stage.reboot()
    assert stage.shell("cat /etc/motd /etc/both.conf; ls /etc/emergency.conf 2>&1 || true").startswith("committed\nboth\n")
    assert drift(stage) == calm


def test_root_alone_commits_nothing(machine: Stage) -> None:
    stage = machine
    before, numbers = standing(stage), history(stage)
    # Its own image under the digest that stands, and an unsigned intent that names one of its own.
    stage.shell(
        "mkdir -p /run/evil /sysroot/inbox/config; echo evil > /run/evil/motd\n"
        "mkfs.erofs -T0 /sysroot/inbox/config/new /run/evil > /dev/null\n"
        "name=$(printf %064d 7); cp /sysroot/inbox/config/new /sysroot/inbox/config/$name\n"
        "sed -e s/^serial.*/'serial 99'/ -e s/^config.*/\"config $name\"/ /sysroot/owner/intent > /sysroot/inbox/intent"
    )
    owner = "/sysroot/owner"
    for command in (f"cp /sysroot/inbox/config/new {owner}/config/", f"touch {owner}/commits/99", f"rm -r {owner}/commits"):
        assert stage.guest("sh", "-c", command, check=False).status != 0, command
    stage.reboot()
    assert "the intent in the inbox is ignored" in console(stage)
    assert (standing(stage), history(stage), stage.shell("cat /etc/motd")) == (before, numbers, "committed")
    stage.shell("rm -r /sysroot/inbox/intent /sysroot/inbox/config")


def test_another_image_than_the_signed_one_gets_nothing(machine: Stage) -> None:
    stage = machine
    before = standing(stage)
    stage.shell("echo exchanged > /etc/motd")
    answer, _ = asked(stage, "commit", "motd", "-m", "exchanged")
    digest = etc(stage, "commit", "--answer", answer)["digest"]
    image = f"/sysroot/inbox/config/{digest}"
    # The signed intent waits; another image lies under the name of its own.
    stage.shell(f"cp {image} /sysroot/inbox/kept; rm {image}; cp /sysroot/inbox/kept {image}; echo more >> {image}")
    stage.reboot()
    assert "its /etc is not here, or is not what the owner signed" in console(stage)
    assert (standing(stage), stage.shell("cat /etc/motd")) == (before, "committed")
    # The counterpart: the very bytes, measured by the kernel, and the same intent stands.
    enable = "import sys; from freehold.keys.kernel import enable_verity; enable_verity(sys.argv[1])"
    stage.shell(f"rm {image}; cp /sysroot/inbox/kept {image}; rm /sysroot/inbox/kept; sync; python3 -c '{enable}' {image}")
    stage.reboot()
    assert stage.shell("cat /etc/motd") == "exchanged"
    assert standing(stage) != before
    assert history(stage)[-1][1:] == ("exchanged", "in force")


def test_a_commit_under_the_lock_stands_after_the_reboot(machine: Stage) -> None:
    stage = machine
    stage.shell("echo mended > /etc/motd; rm /etc/both.conf; echo only-now > /etc/only-now.conf")
    answer, shown = asked(stage, "commit", "motd", "both.conf", "-m", "mended")
    assert "changed  /etc/motd" in shown
    assert "signed by this key" in shown
    assert "only-now" not in shown
    assert etc(stage, "commit", "--answer", answer)["pending"] is True
    assert etc(stage, "status")["waiting"]["message"] == "mended"
    stage.reboot()
    assert stage.shell("cat /etc/motd") == "mended"
    assert stage.shell("ls /etc/both.conf /etc/only-now.conf 2> /dev/null || true") == ""
    assert etc(stage, "status")["locked"] is True
    assert [row[1:] for row in history(stage)] == [("while open", "past"), ("exchanged", "past"), ("mended", "in force")]
    assert all(author for author, _, _ in history(stage))
    assert stage.shell("ls -A /sysroot/inbox/config") == ""
    assert not root_runs(stage)


def test_back_to_an_earlier_commit(machine: Stage) -> None:
    stage = machine
    first = etc(stage, "history")["commits"][0]
    answer, shown = asked(stage, "revert", "--to", str(first["number"]))
    assert "/etc/both.conf" in shown
    assert etc(stage, "revert", "--answer", answer)["pending"] is True
    stage.reboot()
    assert stage.shell("cat /etc/motd /etc/both.conf") == "committed\nboth"
    assert etc(stage, "status")["commit"]["digest"] == first["digest"]
    assert len(history(stage)) == 4
    # And the unlock keeps it.
    stage.signed("unlock")
    stage.reboot()
    assert standing(stage).endswith(" open")
    assert stage.shell("cat /etc/motd /etc/both.conf") == "committed\nboth"
