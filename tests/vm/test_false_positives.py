# SPDX-License-Identifier: Apache-2.0
"""A locked machine at its ordinary work, a day in minutes: nothing is refused. The last test shows that refusals are seen."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from demo.stage import Stage
from tests.vm.reference import TIMEOUT, Reference, booted
from tests.vm.test_doors import EACH, lock_state, settle

pytestmark = [pytest.mark.vm, pytest.mark.build, pytest.mark.campaign]

Key = tuple[str, str, str]
SSH = "-i ~/.ssh/{key} -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
#: While the machine is open: keys for ssh, a journal that outlives the boot, services of alice's at boot, and a mark for an
#: account of the system's, which the lock does not believe.
EQUIP_ALICE = (
    "mkdir -p -m 700 ~/.ssh && ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/own && ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/admin",
    "cat ~/.ssh/own.pub >> ~/.ssh/authorized_keys && chmod 600 ~/.ssh/authorized_keys",
    "mkdir -p ~/.config/systemd/user/default.target.wants && cd ~/.config/systemd/user && "
    "printf '[Service]\\nType=oneshot\\nRemainAfterExit=yes\\nExecStart=%%h/marker\\n' > own.service && "
    "ln -s ../own.service default.target.wants/own.service",
)
EQUIP = (
    "cp /var/lib/marker /home/alice/marker && chown alice: /home/alice/marker",
    "mkdir -p /etc/ssh/authorized_keys.d && cat /home/alice/.ssh/admin.pub >> /etc/ssh/authorized_keys.d/root",
    "mkdir -p /var/log/journal && systemctl restart systemd-journald && journalctl --flush",
    "loginctl enable-linger alice && : > /var/lib/systemd/linger/tss",
)
#: A user, with programs of their own and with the system's.
USER = (
    "test \"$(~/marker)\" = ran",
    "printf '#!/bin/sh\\necho ran\\n' > ~/script && chmod 755 ~/script && ~/script && bash ~/script && . ~/script",
    "rm -rf ~/venv && python3 -m venv --without-pip ~/venv && ~/venv/bin/python -c 'import json, ssl, sqlite3, ctypes'",
    "echo 'print(1)' > ~/one.py && ~/venv/bin/python ~/one.py && cd ~ && python3 -c 'import one'",
    "unshare -Urmpf ~/marker",
    "bwrap --ro-bind / / --proc /proc --dev /dev --unshare-all ~/marker",
    "systemctl --user daemon-reload && systemd-run --user --wait --quiet ~/marker",
    "systemctl --user restart own.service && systemctl --user is-active own.service",
    "ping -c 1 -W 5 127.0.0.1 && ping -c 1 -W 5 ::1",
    "for name in sudo su pkexec doas; do said=$($name -n true 2>&1); test $? = 1 || exit 1; "
    "test \"$(echo \"$said\" | wc -l)\" = 2 || exit 1; "
    "case $said in $name:*) ;; *) echo \"$said\" >&2; exit 1 ;; esac; done",
    "cd /tmp && ulimit -c unlimited && { sh -c 'kill -SEGV $$'; test $? = 139; } && rm -f core core.*",
    "find ~ -xdev > ~/found && tar -C ~ -czf ~/found.tar.gz found && gzip -t ~/found.tar.gz",
)
#: Containers without a network to fetch from: the image is made of the sealed tree's files, which are alice's copies then.
CONTAINERS = (
    "set -e; r=~/quiet/root; mkdir -p $r/usr/bin $r/usr/lib/x86_64-linux-gnu $r/usr/lib64 $r/tmp $r/etc; "
    "for l in bin lib lib64; do ln -sfn usr/$l $r/$l; done; "
    "for p in dash cat id ls sleep touch true; do cp /usr/bin/$p $r/usr/bin/; done; ln -sf dash $r/usr/bin/sh; "
    "cp -L /lib64/ld-linux-x86-64.so.2 $r/usr/lib64/; "
    "cp -L $(ldd /usr/bin/dash /usr/bin/id /usr/bin/ls | sed -n 's,.*=> \\(/[^ ]*\\).*,\\1,p' | sort -u) "
    "$r/usr/lib/x86_64-linux-gnu/; cp ~/marker $r/usr/bin/",
    "podman info >/dev/null",
    "tar --owner=0 --group=0 -C ~/quiet/root -c . | podman import -q - localhost/quiet:base",
    "mkdir -p ~/quiet/context && printf 'FROM localhost/quiet:base\\nRUN echo built > /tmp/built && marker\\n"
    "CMD [\"cat\", \"/tmp/built\"]\\n' > ~/quiet/context/Containerfile && "
    "podman build -q --pull=never --network none -t localhost/quiet:made ~/quiet/context",
    "test \"$(podman run --rm --network none localhost/quiet:made)\" = built",
    "test \"$(podman run --rm --init --network none localhost/quiet:made marker)\" = ran",
    "podman volume create kept >/dev/null && podman run --rm --network none -v kept:/kept localhost/quiet:made touch /kept/it && "
    "test \"$(podman run --rm --network none -v kept:/kept localhost/quiet:made ls /kept)\" = it",
    "podman run -d --name worker --network none localhost/quiet:made sleep 600",
    "test \"$(podman exec worker id -u)\" = 0 && test \"$(podman exec worker marker)\" = ran && "
    "podman inspect worker >/dev/null && podman stop -t 1 worker && podman start worker && podman rm -f -t 1 worker",
    "podman run --rm --network pasta localhost/quiet:made cat /proc/net/dev",
    "test \"$(podman run --rm --network none --rootfs ~/quiet/root marker)\" = ran",
    "podman system prune -af --volumes",
)
#: Logins by ssh, twice each: the second shell would read what the first one left.
LOGINS = tuple(
    command.format(who=who, ssh=SSH.format(key=key), uid=uid)
    for who, key, uid in (("alice", "own", "$(id -u)"), ("root", "admin", "0"))
    for command in (
        "test \"$(ssh {ssh} {who}@127.0.0.1 id -u </dev/null)\" = {uid}",
        "printf 'id -un\\nexit\\n' | ssh -tt {ssh} {who}@127.0.0.1",
        "printf 'id -un\\nexit\\n' | ssh -tt {ssh} {who}@127.0.0.1",
        "echo sent > ~/sent && scp -q {ssh} ~/sent {who}@127.0.0.1:/run/user/$(id -u)/sent-{who}",
        "printf 'ls /etc\\nget /etc/hostname /tmp/got-{who}\\n' | sftp -q {ssh} -b - {who}@127.0.0.1",
        "tar -C ~ -c sent | ssh {ssh} {who}@127.0.0.1 'tar -C /tmp -xO' | grep -x sent",
    )
)
#: What root looks at. Not there, because they read the raw disk, which the lock refuses (docs/guard.md): lsblk, blkid, bootctl.
LOOKS = (
    "hostnamectl", "timedatectl", "localectl", "loginctl list-sessions", "loginctl user-status alice", "networkctl",
    "networkctl status --all", "resolvectl status", "busctl list", "systemctl --no-pager status", "systemctl list-timers --all",
    "systemctl list-units --all", "systemd-analyze", "systemd-analyze blame", "systemd-cgls --no-pager", "journalctl -b -n 200",
    "journalctl --disk-usage", "dmesg", "ps aux", "top -bn1", "free", "df", "findmnt", "ip addr", "ss -tulpn", "nft list ruleset",
    "sysctl -a 2>&1 | tail -n 1", "lsmod", "getent passwd alice",
    "udevadm info --export-db",
    "find /etc /usr/bin -xdev", "cat /etc/passwd", "python3 -c 'import json, ssl, sqlite3, hashlib'",
    "perl -e 'print 1'", "bash -c 'for i in 1 2 3; do read -r line; done < /etc/passwd'", "ping -c 1 -W 5 127.0.0.1",
    "su alice -c 'test $(id -un) = alice'", "runuser -u alice -- true", "{ sudo true; test $? = 1; }",
)  # fmt: skip
#: What root does.
DOES = (
    "journalctl --rotate && journalctl --vacuum-size=16M && journalctl --sync",
    "systemctl daemon-reload",
    *(f"systemctl restart {unit}" for unit in (
        "systemd-timesyncd.service", "systemd-networkd.service", "systemd-resolved.service", "systemd-logind.service",
        "systemd-journald.service", "systemd-udevd.service", "ssh.service",
    )),
    "udevadm control --reload && udevadm trigger && udevadm settle --timeout=120",
    "systemd-tmpfiles --create; case $? in 0 | 65 | 73) ;; *) exit 1 ;; esac",
    "systemd-run --wait --pipe --quiet true",
    "systemd-run --wait --quiet -p DynamicUser=yes /usr/bin/true",
    "systemd-run --wait --quiet -p User=alice /home/alice/marker",
    "hostnamectl set-hostname other && hostnamectl set-hostname homestead",
    "nft add table inet quiet && nft delete table inet quiet",
    "mkdir -p /run/mounted && mount -t tmpfs quiet /run/mounted && umount /run/mounted",
    "useradd -m -s /bin/bash carol && echo carol:a-long-password | chpasswd && passwd -S carol && usermod -c Carol carol && "
    "userdel -r carol 2>/dev/null && ! getent passwd carol",
    "echo data > /etc/quiet && cat /etc/quiet && rm /etc/quiet",
    "cd /tmp && ulimit -c unlimited && { sh -c 'kill -SEGV $$'; test $? = 139; } && rm -f core core.*",
    "tar -C /etc -czf /run/etc.tar.gz . && rm /run/etc.tar.gz",
)  # fmt: skip
VERBS = (
    "freehold status", "freehold status --json", "freehold denials", "freehold etc status", "freehold etc diff",
    "freehold etc history", "freehold history", "freehold requests --json", "freehold kargs", "freehold floor --json",
    "freehold upgrade --check", "freehold upgrade --preview",
    # Without Secure Boot it finds that there is none, and says so by its status.
    "freehold verify --quick --json >/dev/null; test $? -le 1", "freehold verify >/dev/null; test $? -le 1",
)  # fmt: skip
#: Timers that are on in the reference image; there may be more.
TIMERS = {"systemd-tmpfiles-clean.timer", "fstrim.timer"}
SEALED = (
    "mkdir -p /run/sealed/usr /run/sealed/tmp /run/sealed/etc && "
    "for l in bin sbin lib lib64; do ln -sfn usr/$l /run/sealed/$l; done; "
    "test \"$(podman run --rm --network none -v /usr:/usr:ro --rootfs /run/sealed /usr/bin/id -u)\" = 0"
)


def rows(stage: Stage) -> list[dict[str, Any]]:
    return [dict(row) for row in json.loads(stage.guest("freehold", "denials", "--json").stdout)["denials"]]


def told(stage: Stage, boot: str) -> dict[Key, str]:
    """The refusals that the journal of a boot has, in words."""
    assert stage.shell(f"journalctl -b {boot} -n 1 -o cat --no-pager"), f"the journal has no boot {boot}"
    text = stage.guest("journalctl", "-b", boot, "-t", "freehold", "-o", "json", "--no-pager", check=False).text
    found = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return {
        (row["FREEHOLD_RULE"], row["FREEHOLD_PROGRAM"], row["FREEHOLD_PATH"]): row["MESSAGE"]
        for row in found if "FREEHOLD_RULE" in row
    }  # fmt: skip


@dataclass
class Watch:
    """What this boot's guard refused so far: a test is told of what is new to it only, so that one fault fails one test."""

    stage: Stage
    boot: str = ""
    seen: dict[Key, int] = field(default_factory=dict)
    #: Of the boot before this one.
    before: frozenset[Key] = frozenset()

    def refusals(self) -> list[str]:
        """Those since the last call, or since the boot began, for people."""
        boot = self.stage.shell("cat /proc/sys/kernel/random/boot_id")
        if boot != self.boot:
            self.boot, self.seen, self.before = boot, {}, frozenset(self.seen)
        found = []
        for row in rows(self.stage):
            key = (str(row["rule"]), str(row["program"]), str(row["path"]))
            if (more := int(row["count"]) - self.seen.get(key, 0)) > 0:
                found.append(f"{more} x {row['rule']}: {row['sentence']} (program {key[1]}, path {key[2]}, uid {row['uid']})")
            self.seen[key] = int(row["count"])
        return found

    def quiet(self, scripts: Sequence[str] = (), user: str | None = None) -> None:
        """Every script works, and nobody was refused anything meanwhile; fails with all that did not, and all refusals."""
        failed = []
        if scripts:
            done = self.stage.guest("python3", "-c", EACH, *scripts, user=user, timeout=2 * TIMEOUT)
            for script, (status, out, said) in zip(scripts, json.loads(done.stdout), strict=True):
                if status:
                    failed.append(f"status {status}: {script}\n{out[-300:]}{said[-900:]}")
        refused = self.refusals()
        assert not failed and not refused, "\n".join(["", *(f"REFUSED {line}" for line in refused), *failed])


@pytest.fixture(scope="module")
def watch(reference: Reference) -> Iterator[Watch]:
    """The reference image, equipped while open, locked, and started again: locked from the first moment on."""
    stage = reference.stage
    disk = reference.overlay("quiet")
    reference.start(disk)
    for scripts, user in ((EQUIP_ALICE, "alice"), (EQUIP, None)):
        done = stage.guest("python3", "-c", EACH, *scripts, user=user)
        assert [one for one in json.loads(done.stdout) if one[0]] == []
    stage.signed("lock")
    stage.reboot()
    yield Watch(stage)
    disk.unlink(missing_ok=True)


def up(watch: Watch, version: str) -> None:
    """A locked boot of ``version``, complete, and refused nothing."""
    assert settle(watch.stage) == "running", watch.stage.shell("systemctl --failed --no-legend --plain")
    assert lock_state(watch.stage) == "locked"
    assert booted(watch.stage)["version"] == version
    watch.quiet()


def ended(watch: Watch) -> None:
    """The boot before this one was refused nothing to its end, its shutdown, that was not seen while it ran."""
    assert [text for key, text in told(watch.stage, "-1").items() if key not in watch.before] == []


def test_a_boot(watch: Watch) -> None:
    up(watch, "1")


def test_services_at_boot_are_users_only(watch: Watch) -> None:
    stage = watch.stage
    assert stage.shell("ls /var/lib/systemd/linger") == "alice"
    assert "services of 'tss' at boot (linger): no ordinary user" in stage.shell("dmesg")
    assert stage.shell("systemctl --user is-active own.service", user="alice") == "active"
    assert stage.shell("systemctl is-active user@$(id -u tss).service", check=False) == "inactive"


def test_a_user(watch: Watch) -> None:
    watch.quiet(USER, "alice")


def test_a_users_containers(watch: Watch) -> None:
    watch.quiet(CONTAINERS, "alice")


def test_logins(watch: Watch) -> None:
    watch.quiet(LOGINS, "alice")


def test_a_days_timers(watch: Watch) -> None:
    listed = "systemctl list-units --type=timer --all --plain --no-legend --state=active | cut -d' ' -f1"
    timers = watch.stage.shell(listed).split()
    assert set(timers) >= TIMERS
    watch.quiet([f"systemctl start $(systemctl show -P Unit {timer})" for timer in timers])


def test_administration(watch: Watch) -> None:
    watch.quiet([f"{look} >/dev/null" if not look.startswith("{") else look for look in LOOKS])
    watch.quiet(DOES)


def test_our_own_commands(watch: Watch) -> None:
    watch.quiet(VERBS)


def test_an_update(watch: Watch) -> None:
    watch.stage.guest("freehold", "upgrade", timeout=TIMEOUT)
    watch.quiet()
    watch.stage.reboot()
    up(watch, "2")
    ended(watch)
    watch.quiet([*USER[:4], *LOGINS[:3]], "alice")


def test_a_rollback(watch: Watch) -> None:
    watch.stage.guest("freehold", "rollback")
    watch.quiet()
    watch.stage.reboot()
    up(watch, "1")
    ended(watch)


def test_roots_containers_of_sealed_programs(watch: Watch) -> None:
    watch.quiet([SEALED])


def test_a_refusal_is_seen(watch: Watch) -> None:
    """The control of all the above: one unsigned program of root's is one refusal, and the journal of that boot has it."""
    stage = watch.stage
    watch.refusals()
    assert stage.shell("cp /var/lib/marker /run/marker; /run/marker 2>&1 || true").endswith("not permitted")
    [line] = watch.refusals()
    assert line.startswith("1 x exec: ")
    assert "marker" in line
    deadline = time.monotonic() + 60
    while not (lines := {text for (rule, *_), text in told(stage, "0").items() if rule == "exec"}):
        assert time.monotonic() < deadline, "the journal was not told"
        time.sleep(2)
    stage.reboot()
    assert {text for (rule, *_), text in told(stage, "-1").items() if rule == "exec"} == lines
    assert watch.refusals() == []
