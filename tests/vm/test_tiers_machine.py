# SPDX-License-Identifier: Apache-2.0
"""The lock's other tiers on the reference image: what they refuse beyond the default, and that work goes on."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

import pytest
from demo.stage import Stage
from tests.vm.reference import Reference, status

pytestmark = [pytest.mark.vm, pytest.mark.build, pytest.mark.campaign]
KEY = "/var/lib/alices-key"
SSH = (
    "ssh", "-F", "/dev/null", "-i", KEY, "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o",
    "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=60", "alice@127.0.0.1",
)  # fmt: skip
EQUIP = f"""set -e
test -e {KEY} || ssh-keygen -q -t ed25519 -N '' -f {KEY}
mkdir -p /home/alice/.ssh /home/alice/rootfs
cat {KEY}.pub >> /home/alice/.ssh/authorized_keys
cp /var/lib/marker /home/alice/marker
cp /var/lib/marker /home/alice/rootfs/marker
printf '#!/bin/sh\\necho ran\\n' > /home/alice/script
echo 'print("ran")' > /home/alice/text
chmod 755 /home/alice/marker /home/alice/rootfs/marker /home/alice/script
chown -R alice: /home/alice"""
#: A user's own code, in whatever form.
CODE = (
    "~/marker",
    "~/script",
    "sh ~/script",
    "python3 ~/text",
    "/lib64/ld-linux-x86-64.so.2 ~/marker",
    "unshare -Urmpf ~/marker",
    "podman run --rm --network none --rootfs ~/rootfs /marker",
    "systemd-run --user --wait --quiet --pipe ~/marker",
    "python3 -c \"import mmap; mmap.mmap(-1, 4096, prot=7); print('ran')\"",
)
#: What users go on doing: the image's programs, code that is typed, their own manager.
WORK = (
    "id -un",
    "python3 -c 'print(1)'",
    "echo data > ~/data; while read -r x; do echo $x; done < ~/data",
    "systemctl --user daemon-reload && systemd-run --user --wait --quiet --pipe /usr/bin/id -un",
    "unshare -Ur id -u",
    "podman info --format '{{.Host.Security.Rootless}}'",
)
#: A shell asks for them at each login. In a user's home they are a user's text.
STARTUP = {".profile", ".bashrc", ".bash_profile", ".bash_login", ".bash_logout", ".bash_history"}


def denials(stage: Stage) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(stage.guest("freehold", "denials", "--json").stdout)["denials"]
    return [row for row in found if not (row["rule"] == "script" and row["path"].rpartition("/")[2] in STARTUP and row["uid"])]


def login(stage: Stage, text: str) -> tuple[int, str]:
    """Alice's shell runs ``text``, by ssh: status, and what it printed."""
    done = stage.guest(*SSH, text, check=False)
    return done.status, done.text


def settled(stage: Stage) -> None:
    found = stage.guest("systemctl", "is-system-running", "--wait", check=False).text.strip()
    assert found == "running", stage.guest("systemctl", "--failed", "--no-legend", check=False).text


def works(stage: Stage, acts: Sequence[str]) -> None:
    for act in acts:
        state, out = login(stage, act)
        assert (state, bool(out.strip())) == (0, True), (act, out)


def start(reference: Reference, name: str) -> Stage:
    """An open machine with a user who has programs of her own; each runs: the controls."""
    stage = reference.stage
    reference.start(reference.overlay(name))
    stage.guest("sh", "-c", EQUIP)
    for act in CODE:
        state, out = login(stage, act)
        assert (state, "ran" in out) == (0, True), (act, out)
    works(stage, WORK)
    return stage


def test_all_code(reference: Reference) -> None:
    stage = start(reference, "all-code")
    # A user's program that runs already stands in the way, and is named.
    stage.guest("systemd-run", "--quiet", "--uid=alice", "--unit=mine", "/usr/bin/sleep", "600")
    stage.guest("cp", "/usr/bin/sleep", "/home/alice/sleep")
    stage.guest("systemd-run", "--quiet", "--uid=alice", "--unit=theirs", "/home/alice/sleep", "600")
    preview = stage.guest("freehold", "lock", "--all-code", "-n", "--json").stdout
    assert {row["path"].rpartition("/home/")[2] for row in json.loads(preview)["blocking"]} == {"alice/sleep"}
    assert json.loads(stage.guest("freehold", "lock", "-n", "--json").stdout)["blocking"] == []
    stage.guest("systemctl", "stop", "mine", "theirs")
    stage.signed("lock", "--all-code")
    check_all_code(stage)
    reference.cold_reboot()
    settled(stage)
    assert denials(stage) == []
    check_all_code(stage)


def check_all_code(stage: Stage) -> None:
    """Of all users only the image's code runs."""
    before = denials(stage)
    assert (status(stage)["lock"]["state"], status(stage)["lock"]["tier"]) == ("locked", "all-code")
    works(stage, WORK)
    assert denials(stage) == before, "work was refused something"
    for act in CODE:
        state, out = login(stage, act)
        assert state != 0, act
        assert "ran" not in out, act
    users = {row["rule"] for row in denials(stage) if row["uid"]}
    assert {"exec", "map", "anonymous", "script"} <= users
    # And root's, as ever.
    assert stage.guest("/var/lib/marker", check=False).status != 0
    assert stage.guest("sh", "-c", shlex.join(["echo", "data"])).text.strip() == "data"


#: What root has no more in tier S2; each works on the open machine.
LAUNCHES = (
    ("sh", "-c", "echo ran"),
    ("bash", "-ec", "echo ran"),
    ("bash", "+e", "-c", "echo ran"),
    ("python3", "-c", "print('ran')"),
    ("python3", "-m", "platform"),
    ("perl", "-e", "print 'ran'"),
    ("perl", "-Mstrict;BEGIN{print('ran')}", "-v"),
    ("systemd-run", "--wait", "--quiet", "--pipe", "sh", "-c", "echo ran"),
    ("ssh", *SSH[1:-1], "root@127.0.0.1", "echo ran"),
)
#: What root goes on doing: signed programs and scripts, and whatever a user is.
SCRIPTS = (
    ("freehold", "status"),
    ("ldd", "/usr/bin/true"),
    ("which.debianutils", "ls"),
    ("sh", "/usr/bin/which.debianutils", "ls"),
    ("bash", "-e", "-o", "pipefail", "/usr/bin/which.debianutils", "ls"),
    ("systemd-run", "--wait", "--quiet", "--pipe", "--uid=alice", "sh", "-c", "echo ran"),
)


def test_s2(reference: Reference) -> None:
    stage = start(reference, "s2")
    # Root by ssh, where an owner allows it: the key is in the factory's place, so the lock commits it.
    stage.guest("sh", "-c", f"mkdir -p /etc/ssh/authorized_keys.d && cat {KEY}.pub >> /etc/ssh/authorized_keys.d/root")
    works_while_open = [(stage.guest(*act, check=False).status, act) for act in (*LAUNCHES, *SCRIPTS)]
    assert [row for row in works_while_open if row[0] != 0] == []
    preview = stage.guest("freehold", "lock", "--tier", "S2", "-n").text
    assert "root has no shell by ssh" in preview
    stage.signed("lock", "--tier", "S2")
    check_s2(stage)
    reference.cold_reboot()
    settled(stage)
    # The whole boot, and nothing of it was shell text.
    assert denials(stage) == []
    check_s2(stage)


def check_s2(stage: Stage) -> None:
    """Root's interpreters start for signed scripts; users' shells are theirs."""
    lock = status(stage)["lock"]
    assert (lock["state"], lock["tier"], lock["scripts"]) == ("locked", "privileged", "S2")
    before = denials(stage)
    for act in SCRIPTS:
        done = stage.guest(*act, check=False)
        assert done.status == 0, (act, done.stderr)
    # A user's own code as well: S2 is about root.
    for text in (*CODE, *WORK):
        assert login(stage, text)[0] == 0, text
    assert denials(stage) == before, "work was refused something"
    for launch in LAUNCHES:
        done = stage.guest(*launch, check=False)
        assert done.status != 0, launch
        assert "ran" not in done.text, launch
    launched = [row for row in denials(stage) if row["rule"] == "launch"]
    assert {row["uid"] for row in launched} == {0}
    assert {"sh", "bash", "perl"} <= {row["program"] for row in launched}
    assert launched[0]["sentence"].endswith("without a signed script")
