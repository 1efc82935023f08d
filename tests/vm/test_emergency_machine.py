# SPDX-License-Identifier: Apache-2.0
"""Emergency ssh on the reference machine, with a real client: one key's session bypasses the lock, and nothing else does."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from demo.stage import Stage
from tests.vm.reference import Reference, answered, status

from freehold import run
from freehold.lock import emergency, rules

pytestmark = [
    pytest.mark.vm, pytest.mark.build, pytest.mark.campaign,
    pytest.mark.skipif(shutil.which("ssh") is None, reason="no ssh client"),
]  # fmt: skip
#: Unsigned, and put there by :func:`tests.vm.conftest.reference`.
MARKER = "/var/lib/marker"
#: Seconds for a login on an emulated machine.
TIMEOUT = 120.0


@dataclass(frozen=True)
class Place:
    """The locked machine, its ssh ports on the host, and two keys: the chosen one and root's ordinary one."""

    reference: Reference
    emergency: int
    ordinary: int
    keys: Path

    @property
    def stage(self) -> Stage:
        return self.reference.stage

    def ssh(self, key: str, *, port: int | None = None) -> list[str]:
        return [
            "ssh", "-F", "none", "-p", str(port or self.emergency), "-i", str(self.keys / key), "-o", "BatchMode=yes",
            "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", f"UserKnownHostsFile={self.keys / 'known'}",
            "-o", "StrictHostKeyChecking=accept-new", "-o", "ConnectTimeout=60", "root@127.0.0.1",
        ]  # fmt: skip

    def run(self, script: str, key: str = "chosen", *, port: int | None = None) -> run.Completed:
        """One session; status 255 is the client's own."""
        return run.run([*self.ssh(key, port=port), script], check=False, timeout=TIMEOUT)

    @contextlib.contextmanager
    def session(self) -> Iterator[subprocess.Popen[bytes]]:
        """A session that stays until its input is closed; it has begun when this returns."""
        with subprocess.Popen([*self.ssh("chosen"), "echo begun; cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as held:
            assert held.stdout is not None
            assert held.stdout.readline() == b"begun\n"
            try:
                yield held
            finally:
                held.kill()

    def said(self, message_id: str) -> list[dict[str, str]]:
        """The journal's entries with this id, of this boot."""
        lines = self.stage.shell(f"journalctl -b -o json MESSAGE_ID={message_id}").splitlines()
        return [json.loads(line) for line in lines if line]

    def gone(self, process: str) -> bool:
        """Whether the process ended, waited for a little."""
        for _ in range(30):
            if self.stage.guest("pgrep", "-f", process, check=False).status != 0:
                return True
            time.sleep(1)
        return False


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def until_it_listens(place: Place) -> None:
    """The server answers a while after the machine does."""
    deadline = time.monotonic() + TIMEOUT
    while place.run("true").status == 255:
        assert time.monotonic() < deadline, place.stage.shell("systemctl status freehold-emergency-ssh.service || true")
        time.sleep(2)


@pytest.fixture(scope="module")
def place(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Locked while it runs, with a key of the owner's choice."""
    keys = tmp_path_factory.mktemp("keys")
    for name in ("chosen", "ordinary"):
        run.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys / name])
    emergency_port, ordinary_port = free_ports(2)
    disk = reference.overlay("emergency-ssh")
    reference.start(disk, "--forward", f"{emergency_port}:{emergency.PORT}", "--forward", f"{ordinary_port}:22")
    made = Place(reference, emergency_port, ordinary_port, keys)
    stage = made.stage
    stage.shell("mkdir -p /etc/ssh/authorized_keys.d")
    stage.copy(keys / "ordinary.pub", "/etc/ssh/authorized_keys.d/root")
    stage.copy(keys / "chosen.pub", "/run/chosen.pub")
    # While open there is no such server, whatever root starts.
    assert stage.guest("/usr/lib/freehold/emergency-sshd", check=False).status == 1
    stage.signed("lock", "--emergency-ssh", "/run/chosen.pub")
    until_it_listens(made)
    yield made
    disk.unlink(missing_ok=True)


def chosen(place: Place) -> str:
    return emergency.fingerprint(emergency.parse((place.keys / "chosen.pub").read_text()).digest)


def exempt(place: Place) -> None:
    """The session runs what is not signed; ordinary ssh as root, and root elsewhere, does not."""
    done = place.run(MARKER)
    assert (done.status, done.stdout) == (0, b"ran\n"), done.stderr
    assert place.run("echo 'echo text' > /tmp/x.sh; . /tmp/x.sh").stdout == b"text\n"
    assert place.run("python3 -c 'import mmap; mmap.mmap(-1, 4096, prot=7)'").status == 0
    ordinary = place.run(MARKER, "ordinary", port=place.ordinary)
    assert ordinary.status == 126, ordinary
    assert place.stage.guest(MARKER, check=False).status != 0


def test_locked_while_running(place: Place) -> None:
    assert status(place.stage)["lock"]["state"] == "locked"
    exempt(place)
    # Not by another key, not by the chosen one at the ordinary server.
    assert place.run("true", "ordinary").status == 255
    assert place.run("true", "chosen", port=place.ordinary).status == 255
    # The lock itself stands in the session as well.
    for act in (
        "echo x > /sysroot/owner/x", "cat /sysroot/owner/secret/emergency-host-key", "echo x > /proc/sys/kernel/core_pattern",
    ):  # fmt: skip
        assert place.run(act).status != 0, act


def test_it_is_told(place: Place) -> None:
    lock = status(place.stage)["lock"]
    assert lock["emergency_ssh"]["key"] == chosen(place)
    assert lock["emergency_ssh"]["port"] == emergency.PORT
    sentence = f"emergency ssh: {chosen(place)} may bypass the lock on port {emergency.PORT}"
    assert sentence in place.stage.shell("freehold status")
    assert sentence in place.stage.shell("cat /run/issue.d/freehold-emergency.issue /run/motd.d/freehold-emergency")
    # The client's record of the server is the key that the machine made among its secrets.
    known = run.run(["ssh-keygen", "-l", "-f", place.keys / "known"]).text
    assert lock["emergency_ssh"]["host_key"] in known
    begins, _, ends = (row[0] for row in rules.SESSIONS)
    place.run("true")
    assert place.said(begins)
    assert place.said(ends)
    assert "bypasses the lock" in place.stage.shell("dmesg | grep 'emergency ssh'")
    assert "Accepted publickey for root" in place.stage.shell("journalctl -b -u freehold-emergency-ssh.service")
    # What was let through is recorded as that.
    rows = json.loads(place.stage.guest("freehold", "denials", "--json").stdout)["denials"]
    modes = {row["mode"] for row in rows if row["file"] == MARKER and row["rule"] == "exec"}
    assert modes <= {"exempt", "locked"}
    assert modes


def test_one_session_at_a_time(place: Place) -> None:
    with place.session():
        second = place.run(MARKER)
        assert second.status == 126, second
        assert b"does NOT bypass the lock" in second.stderr
    deadline = time.monotonic() + TIMEOUT
    while place.run(MARKER).status != 0:
        assert time.monotonic() < deadline, "the place of the session that ended stays taken"
        time.sleep(1)


def test_nothing_outlives_the_session(place: Place) -> None:
    # Unsigned, and it would wait for ever: ended with the session, be that in order or not.
    script = "cp /usr/bin/sleep /tmp/{name}; setsid /tmp/{name} 9999 >/dev/null 2>&1 </dev/null & sleep 1"
    assert place.run(script.format(name="left-1")).status == 0
    assert place.gone("[/]tmp/left-1")
    waits = f"{script.format(name='left-2')}; echo begun; sleep 999"
    with subprocess.Popen([*place.ssh("chosen"), waits], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as held:
        assert held.stdout is not None
        assert held.stdout.readline() == b"begun\n"
        assert place.stage.guest("pgrep", "-f", "[/]tmp/left-2", check=False).status == 0
        held.kill()
    assert place.gone("[/]tmp/left-2")


def test_root_cannot_steer_it(place: Place) -> None:
    stage = place.stage
    # What root changes does not reach the session: start-up files, the loader's list, what a shell is.
    stage.shell(
        "echo 'echo planted' | tee /etc/bash.bashrc /etc/profile.d/x.sh /root/.bashrc /root/.bash_profile >/dev/null; "
        "echo '\"e\": \"planted\"' > /etc/inputrc; echo /var/lib/planted.so > /etc/ld.so.preload; echo planted > /etc/environment"
    )
    done = place.run("echo said; env; ls /etc/ld.so.preload ~/.bashrc")
    assert b"said" in done.stdout
    assert b"planted" not in done.stdout + done.stderr
    assert b"No such file" in done.stderr
    stage.shell("rm /etc/ld.so.preload")
    with place.session():
        pids = stage.shell("pgrep -f '[e]mergency-shell'").split()
        assert pids
        for pid in pids:
            for act in (f"ls -L /proc/{pid}/root/", f"nsenter -t {pid} -m true", f"cat /proc/{pid}/environ"):
                assert stage.guest("sh", "-c", act, check=False).status != 0, act
    # Neither does the server start for who prepares it: then it runs, and no session is exempt.
    stage.shell("systemctl stop freehold-emergency-ssh.service")
    stage.shell("systemd-run --unit prepared --property=PrivateTmp=yes /usr/lib/freehold/emergency-sshd")
    assert place.run(MARKER).status in (126, 255)
    stage.shell("systemctl stop prepared; systemctl start freehold-emergency-ssh.service")
    until_it_listens(place)


def test_after_a_reboot(place: Place) -> None:
    place.reference.cold_reboot()
    until_it_listens(place)
    exempt(place)
    assert status(place.stage)["lock"]["emergency_ssh"]["key"] == chosen(place)
    assert "emergency ssh:" in place.stage.shell("dmesg | grep freehold")


def test_a_lock_without_it_turns_it_off(place: Place) -> None:
    """And without any ssh the machine is managed as before: by its console, here by the guest's agent."""
    stage = place.stage
    stage.signed("unlock")
    place.reference.cold_reboot()
    assert stage.guest("test", "-e", "/sysroot/owner/emergency/key", check=False).status != 0
    stage.signed("lock")
    assert status(stage)["lock"]["emergency_ssh"] is False
    assert place.run("true").status == 255
    place.reference.cold_reboot()
    assert stage.shell("systemctl is-system-running --wait") == "running"
    assert place.run("true").status == 255
    assert status(stage)["lock"]["state"] == "locked"
    assert stage.guest(MARKER, check=False).status != 0


def test_a_forged_key_file(reference: Reference, place: Place) -> None:
    """Who had root while open puts another key in the place of the one that the owner signed for."""
    stage = reference.stage
    stage.signed("unlock")
    reference.cold_reboot()
    stage.copy(place.keys / "chosen.pub", "/run/chosen.pub")
    answer = answered(stage, "lock", "--strict", "--emergency-ssh", "/run/chosen.pub")
    forged = " ".join((place.keys / "ordinary.pub").read_text().split()[:2])
    stage.shell(f"for f in /sysroot/owner/emergency/[0-9a-f]*.pub /sysroot/owner/emergency/key; do echo '{forged}' > $f; done")
    # The next boot takes it up, and locks.
    stage.shell(f"mkdir -p /sysroot/inbox && cp {answer} /sysroot/inbox/intent")
    reference.cold_reboot()
    assert "the stored key is not" in stage.shell("dmesg | grep 'emergency ssh'")
    assert stage.guest("test", "-e", "/sysroot/owner/emergency/key", check=False).status != 0
    lock = status(stage)["lock"]
    assert (lock["state"], lock["emergency_ssh"]) == ("locked", False)
    assert place.run("true", "ordinary").status == 255
