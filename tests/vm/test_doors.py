# SPDX-License-Identifier: Apache-2.0
"""Back doors that root plants: each fires at the next boot of the open machine (its control), none of the locked one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pytest
from cryptography.hazmat.primitives import serialization
from demo.stage import Stage
from tests.vm.reference import Reference

from freehold.build.store import cache_directory
from freehold.build.tools import ensure
from freehold.monitor import NullMonitor

pytestmark = [pytest.mark.vm, pytest.mark.build]


@dataclass(frozen=True)
class Door:
    """Shell text that plants a back door; ``fired`` prints something when it did its work at a boot."""

    plant: str
    fired: str = ""


UNIT = '[Service]\\nExecStart=/bin/sh -c "echo {name} >> /var/canary/{name}"\\n'
#: By name; without ``fired`` a file of that name below /var/canary says so.
DOORS = {
    "unit": Door(f"printf '{UNIT.format(name='unit')}' > /etc/systemd/system/d1.service; "
                 "mkdir -p /etc/systemd/system/multi-user.target.wants; ln -s ../d1.service /etc/systemd/system/multi-user.target.wants/"),
    "dropin": Door("mkdir -p /etc/systemd/system/ssh.service.d; printf '[Service]\\nExecStartPre=/bin/sh -c "
                   "\"echo dropin >> /var/canary/dropin\"\\n' > /etc/systemd/system/ssh.service.d/x.conf"),
    "udev": Door("echo 'ACTION==\"add\", RUN+=\"/bin/sh -c \\\"echo udev >> /var/canary/udev\\\"\"' > /etc/udev/rules.d/99-x.rules"),
    "tmpfiles": Door("echo 'f+ /var/canary/tmpfiles - - - - fired' > /etc/tmpfiles.d/x.conf"),
    "generator": Door(
        "mkdir -p /etc/systemd/system-generators; printf '#!/bin/sh\\n"
        "printf \"[Service]\\\\nExecStart=/bin/sh -c \\\\\"echo g >> /var/canary/generator\\\\\"\\\\n\" > $1/g.service\\n"
        "mkdir -p $1/multi-user.target.wants; ln -s ../g.service $1/multi-user.target.wants/\\n' > /etc/systemd/system-generators/g; "
        "chmod 755 /etc/systemd/system-generators/g"),
    "profile": Door("echo 'echo profile >> /var/canary/profile' > /etc/profile.d/x.sh", "bash -lc true; cat /var/canary/profile"),
    "bashrc": Door("echo 'echo bashrc >> /var/canary/bashrc' >> /root/.bashrc", "bash -ic true; cat /var/canary/bashrc"),
    "preload": Door("echo /var/lib/x.so > /etc/ld.so.preload", "cat /etc/ld.so.preload"),
    "uid0": Door("echo 'toor::0:0::/root:/bin/bash' >> /etc/passwd; echo 'toor::1::::::' >> /etc/shadow", "getent passwd toor"),
    "rootkey": Door("mkdir -p /etc/ssh/authorized_keys.d /root/.ssh; echo planted-key | tee -a /etc/ssh/authorized_keys.d/root "
                    ">> /root/.ssh/authorized_keys", "cat /etc/ssh/authorized_keys.d/root /root/.ssh/authorized_keys"),
    "sysctl": Door("echo 'vm.laptop_mode = 7' > /etc/sysctl.d/99-x.conf", "grep -x 7 /proc/sys/vm/laptop_mode"),
    "quadlet": Door("mkdir -p /etc/containers/systemd; printf '[Container]\\nImage=x\\nExec=x\\n' > /etc/containers/systemd/x.container",
                    "ls /run/systemd/generator/x.service"),
    "extension": Door("systemctl enable systemd-sysext.service; mkdir -p /var/lib/extensions/x/usr/lib/extension-release.d; "
                      "touch /var/lib/extensions/x/usr/planted; "
                      "echo 'ID=_any' > /var/lib/extensions/x/usr/lib/extension-release.d/extension-release.x", "ls /usr/planted"),
    "queue": Door("mkdir -p /var/spool/cron/crontabs; echo '* * * * * true' > /var/spool/cron/crontabs/root",
                  "cat /var/spool/cron/crontabs/root"),
    "link": Door("rm -rf /var/spool/at; ln -s /etc /var/spool/at", "readlink /var/spool/at"),
}  # fmt: skip
#: Root's state that is typed: an account of uid 0 in it is not believed.
STATE = (
    "printf '{\"format\":\"freehold-machine-1\",\"hostname\":\"homestead\",\"host_keys\":[],\"accounts\":"
    "[{\"name\":\"zero\",\"uid\":0,\"gid\":0,\"gecos\":\"\",\"home\":\"/home/zero\",\"shell\":\"/bin/bash\",\"hash\":\"*\","
    "\"subid\":0},{\"name\":\"alice\",\"uid\":1000,\"gid\":1000,\"gecos\":\"\",\"home\":\"/home/alice\","
    "\"shell\":\"/bin/bash\",\"hash\":\"*\",\"subid\":100000}]}' > /sysroot/state/machine.json"
)  # fmt: skip
#: A module without its signature: the trailer is 28 bytes of magic after 12 that end with the signature's length.
STRIP = (
    "import lzma, sys; d = lzma.open(sys.argv[1]).read(); "
    'sys.stdout.buffer.write(d[: -(40 + int.from_bytes(d[-32:-28], "big"))])'
)
MEMFD = (
    "import os; fd = os.memfd_create(\\\"x\\\"); os.write(fd, open(\\\"/run/marker\\\", \\\"rb\\\").read()); "
    "os.execve(fd, [\\\"x\\\"], {})"
)
LIBRARY = '#include <unistd.h>\n__attribute__((constructor)) static void loaded(void) { write(1, "ran\\n", 4); }\n'
#: What root does: works on the open machine, and is refused under the lock.
ACTS = (
    "/run/marker",
    "/lib64/ld-linux-x86-64.so.2 /run/marker",
    "printf '#!/bin/sh\\necho ran\\n' > /run/script; chmod 755 /run/script; /run/script",
    f'python3 -c "{MEMFD}"',
    "echo 'echo ran' > /run/text; sh /run/text",
    "echo 'echo ran' > /run/text; bash /run/text",
    "echo 'echo ran' > /run/text; bash -ec '. /run/text'",
    "echo 'print(\"ran\")' > /run/text; python3 /run/text",
    "echo 'print(\"ran\")' > /run/imported.py; cd /run; python3 -c 'import imported'",
    "echo 'print qq(ran\\n)' > /run/text; perl /run/text",
    "chroot / /run/marker",
    "systemd-run --wait --pipe /run/marker",
    "echo x > /sysroot/owner/x && rm /sysroot/owner/x",
    "ln -s x /sysroot/owner/link && rm /sysroot/owner/link",
    "mknod /sysroot/owner/node c 1 3 && rm /sysroot/owner/node",
    "chmod 640 /sysroot/owner/id && chmod 644 /sysroot/owner/id",
    "mkdir -p /run/over && mount --bind /run/over /usr/local && umount /usr/local",
    "insmod /run/unsigned.ko && rmmod dummy",
)
#: What root does under the lock as well: scripts read data, and text that nobody stored is typed.
WORK = (
    "echo data > /run/data; while read line; do echo $line; done < /run/data",
    "echo data > /run/data; bash -c 'read -r line < /run/data; echo $line'",
    "echo data > /run/data; python3 -c 'print(open(\"/run/data\").read())'",
    "echo 'echo data' | sh",
    ". /etc/os-release; echo data",
    "echo data > /etc/text; cat /etc/text",
)
#: How programs say EPERM: most, mount(8), the dynamic loader, systemd.
REASONS = ("peration not permitted", "ermission denied", "failed to map segment", "203/EXEC")
PRELOAD = "LD_PRELOAD=/run/library.so /usr/bin/true"


#: Runs many scripts for one way through the guest's agent; each has its status, output and errors.
EACH = (
    "import json, subprocess, sys; done = [subprocess.run(['sh', '-c', one], capture_output=True, text=True) for one in sys.argv[1:]]; "
    "print(json.dumps([[one.returncode, one.stdout, one.stderr] for one in done]))"
)


def each(stage: Stage, scripts: Iterable[str]) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of each script, run in order."""
    return [(status, out, err) for status, out, err in json.loads(stage.guest("python3", "-c", EACH, *scripts).stdout)]


def refused(stage: Stage, acts: Sequence[str]) -> None:
    for act, (status, out, said) in zip(acts, each(stage, acts), strict=True):
        assert status != 0, act
        assert "ran" not in out, act
        assert any(reason in said for reason in REASONS), (act, said)


def equip(stage: Stage) -> None:
    """Unsigned programs for root to run."""
    source = stage.path("library.c")
    source.write_text(LIBRARY)
    tools = ensure(cache_directory(), NullMonitor())
    tools.run(["gcc", "-shared", "-fPIC", "-o", stage.path("library.so"), source], binds=[stage.root])
    stage.copy(stage.path("library.so"), "/run/library.so")
    stage.shell(
        "cp /var/lib/marker /run/marker; mkdir -p /var/canary; "
        f"m=$(find /usr/lib/modules -name 'dummy.ko*' | head -1); python3 -c '{STRIP}' $m > /run/unsigned.ko"
    )


def plant(stage: Stage) -> None:
    for name, (status, _, said) in zip(DOORS, each(stage, (door.plant for door in DOORS.values())), strict=True):
        assert status == 0, f"{name} could not be planted: {said}"


def fired(stage: Stage) -> list[str]:
    """The names of the doors that did their work."""
    looks = [door.fired or f"cat /var/canary/{name}" for name, door in DOORS.items()]
    return [name for name, (_, out, _) in zip(DOORS, each(stage, looks), strict=True) if out.strip()]


def lock_state(stage: Stage) -> str:
    return str(json.loads(stage.guest("freehold", "status", "--json").stdout)["lock"]["state"])


def settle(stage: Stage) -> str:
    return stage.guest("systemctl", "is-system-running", "--wait", check=False).text.strip()


def audit_with_a_key(stage: Stage) -> None:
    """The owner stands at the machine: ``--key`` with a passphrase, the wrong one first."""
    keys = stage.path("protected")
    shutil.rmtree(keys, ignore_errors=True)
    keys.mkdir()
    key = serialization.load_pem_private_key((stage.keys / "owner.key").read_bytes(), None)
    sealed = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"the right one")
    )
    shutil.copy(stage.keys / "owner.crt", keys)
    for name, data in (("owner.key", sealed), ("right", b"the right one\n"), ("wrong", b"another one\n")):
        (keys / name).write_bytes(data)
        (keys / name).chmod(0o600)
    stage.shell("mkdir -p /run/keys")
    for path in sorted(keys.iterdir()):
        stage.copy(path, f"/run/keys/{path.name}")
    uri = "file:/run/keys/owner.key?passphrase-file=/run/keys/"
    wrong = stage.guest("freehold", "lock", "--audit", "--key", f"{uri}wrong", check=False)
    assert wrong.status == 2
    assert b"passphrase" in wrong.stderr
    assert lock_state(stage) == "open"
    stage.guest("freehold", "lock", "--audit", "--key", f"{uri}right")


def test_controls_on_the_open_machine(reference: Reference) -> None:
    stage = reference.stage
    reference.start(reference.overlay("open-doors"))
    equip(stage)
    for act, (status, _, said) in zip(ACTS, each(stage, ACTS), strict=True):
        assert status == 0, (act, said)
    assert stage.shell(PRELOAD) == "ran"
    plant(stage)
    reference.cold_reboot()
    settle(stage)
    assert fired(stage) == list(DOORS)


@pytest.fixture(scope="module")
def locked(reference: Reference) -> Iterator[Stage]:
    """A machine that went from open to audit to locked without a reboot."""
    stage = reference.stage
    reference.start(reference.overlay("doors"))
    equip(stage)
    audit_with_a_key(stage)
    assert lock_state(stage) == "audit"
    # Audit refuses nothing, and says what the lock would.
    assert stage.shell("/run/marker") == "ran"
    assert stage.shell(PRELOAD) == "ran"
    rules = {row["rule"] for row in json.loads(stage.guest("freehold", "denials", "--json").stdout)["denials"]}
    assert {"exec", "map"} <= rules
    stage.path("older.signed").unlink(missing_ok=True)
    stage.freehold("vm", "copy", stage.name, ":/sysroot/owner/intent", stage.path("older.signed"))
    stage.signed("lock")
    yield stage


def test_refused_while_locked(locked: Stage) -> None:
    assert lock_state(locked) == "locked"
    refused(locked, ACTS)
    # The loader goes on without a library that it may not map; the program itself is signed.
    assert "ran" not in locked.shell(PRELOAD)
    assert locked.shell("/usr/bin/true && echo signed programs run") == "signed programs run"


def test_work_goes_on_while_locked(locked: Stage) -> None:
    for work, (status, out, said) in zip(WORK, each(locked, WORK), strict=True):
        assert (status, out.split()) == (0, ["data"]), (work, said)


def test_refusals_are_told(locked: Stage) -> None:
    """In words, with the command that helps; and in the journal, by a reporter that the lock itself lets live."""
    locked.shell("/run/marker || true")
    rows = json.loads(locked.guest("freehold", "denials", "--json").stdout)["denials"]
    row = next(row for row in rows if row["rule"] == "exec" and row["file"] == "/run/marker")
    assert row["sentence"].endswith("allowed to run /run/marker: the file is not signed")
    assert "fsverity enable /run/marker --signature=/run/marker.sig" in [way["command"] for way in row["ways"]]
    assert locked.shell("systemctl is-active freehold-refusals.service") == "active"
    said = locked.shell(f"sleep 7; journalctl -o json MESSAGE_ID={row['message_id']}").splitlines()
    assert any(json.loads(line)["FREEHOLD_PATH"].endswith("/marker") for line in said)
    explained = locked.shell(f"journalctl -x MESSAGE_ID={row['message_id']}")
    assert "A privileged process starts only files of the sealed tree" in explained


def test_only_the_owner_and_only_forward(locked: Stage) -> None:
    """A stranger's signature, and an older word of the owner's own, are refused."""
    stranger = locked.path("stranger")
    shutil.rmtree(stranger, ignore_errors=True)
    locked.freehold("key", "new", "stranger", "--role", "owner", "--no-passphrase", "--out", stranger)
    locked.guest("freehold", "unlock", "--request", "/run/unlock.request")
    request = locked.path("unlock.request")
    locked.freehold("vm", "copy", locked.name, ":/run/unlock.request", request)
    locked.freehold("sign", request, "--key", f"file:{stranger / 'stranger.key'}")
    locked.copy(request.with_name("unlock.request.signed"), "/run/stranger.signed")
    done = locked.guest("freehold", "unlock", "--answer", "/run/stranger.signed", check=False)
    assert done.status == 1
    assert b"signature" in done.stderr or b"signed" in done.stderr
    locked.copy(locked.path("older.signed"), "/run/older.signed")
    older = locked.guest("freehold", "lock", "--answer", "/run/older.signed", check=False)
    assert older.status == 1
    # What root drops past the command is for the early step to judge, in the next test.
    locked.shell("mkdir -p /sysroot/inbox && cp /run/stranger.signed /sysroot/inbox/intent")


def test_nothing_planted_fires(locked: Stage, reference: Reference) -> None:
    plant(locked)
    locked.shell(STATE)
    reference.cold_reboot()
    assert settle(locked) == "running"
    assert lock_state(locked) == "locked"
    refusals = json.loads(locked.guest("freehold", "denials", "--json").stdout)["denials"]
    assert fired(locked) == []
    assert locked.shell("ls -A /var/canary") == ""
    # In all of the boot nothing was refused anything.
    assert refusals == []
    assert locked.shell("id -un zero 2>/dev/null || true; id -u alice") == "1000"
    console = locked.shell("dmesg | grep freehold")
    assert "ignored: no owner's key of this keychain signed it" in console
    # The next boot gets an older, genuine word of the owner's: audit, by number 1.
    locked.copy(locked.path("older.signed"), "/run/older.signed")
    locked.shell("cp /run/older.signed /sysroot/inbox/intent")
    # Collateral: a user's own program still runs.
    locked.shell("cp /var/lib/marker /home/alice/marker && chown alice /home/alice/marker")
    assert locked.shell("~/marker", user="alice") == "ran"
    reference.cold_reboot()
    assert "ignored: its serial is not newer" in locked.shell("dmesg | grep freehold")
    assert lock_state(locked) == "locked"
    assert "serial 2" in locked.shell("cat /sysroot/owner/intent").splitlines()
