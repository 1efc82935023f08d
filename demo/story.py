# SPDX-License-Identifier: Apache-2.0
"""The story: from Debian packages to a machine that its owner locks, updates, and unlocks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from demo.stage import HOST_IN_GUEST, Stage, end, tell, want
from freehold import run
from freehold.build.store import cache_directory
from freehold.build.tools import ensure
from freehold.errors import FreeholdError
from freehold.monitor import NullMonitor

HERE = Path(__file__).parent
PROGRAM = """
#include <unistd.h>
int main(void) { return write(1, "ran\\n", 4) == 4 ? 0 : 1; }
"""
ALICE_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGFsaWNlIGFsaWNlIGFsaWNlIGFsaWNlIGFsaWNlIGFs alice@example"
BACK_DOOR = """[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo {name} >> /var/canary/{name}'
[Install]
WantedBy=multi-user.target
"""
HELLO = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/echo hello\n[Install]\nWantedBy=multi-user.target\n"


def counted(number: int, noun: str) -> str:
    """``1 package``, ``2 packages``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def data_url(text: str) -> str:
    """A ``data:`` URL (RFC 2397)."""
    return "data:," + "".join(f"%{byte:02x}" for byte in text.encode())


def ignition(port: int) -> str:
    """The provisioning file: host name, a user with an ssh key, a file, a unit."""
    files = {
        "/etc/hostname": "homestead\n",
        "/etc/freehold/update.toml": f'[update]\nurl = "http://{HOST_IN_GUEST}:{port}"\nstream = "stable"\n',
    }
    return json.dumps({
        "ignition": {"version": "3.3.0"},
        "passwd": {"users": [{"name": "alice", "sshAuthorizedKeys": [ALICE_KEY]}]},
        "storage": {"files": [
            {"path": path, "overwrite": True, "mode": 0o644, "contents": {"source": data_url(text)}}
            for path, text in files.items()
        ]},
        "systemd": {"units": [{"name": "hello.service", "enabled": True, "contents": HELLO}]},
    })  # fmt: skip


def keys(stage: Stage) -> str:
    """One key signs releases, the other is the owner's word."""
    for name in ("release", "owner"):
        if not (stage.keys / f"{name}.key").exists():
            stage.freehold("key", "new", name, "--role", name, "--no-passphrase", "--out", stage.keys)
    mode = (stage.keys / "owner.key").stat().st_mode & 0o777
    want(mode == 0o600, f"owner.key has mode {mode:o}")
    return "release.key signs what is built, owner.key says what is locked; both 0600"


def build(stage: Stage, recipe: Path, version: str) -> str:
    """Build one release (a second run finds it in the store)."""
    done = stage.freehold(
        "build", recipe, "--store", stage.store, "--keys", stage.keys, "--version", version, "--json", check=False
    )
    if b"exists and is something else" in done.stderr:
        # The archive or the sources moved on since the last run.
        shutil.rmtree(stage.store / "releases" / f"server-{version}")
        done = stage.freehold(
            "build", recipe, "--store", stage.store, "--keys", stage.keys, "--version", version, "--json"
        )
    want(done.status == 0, done.stderr.decode(errors="replace").strip()[-800:])
    report = json.loads(done.stdout)
    how = "unchanged" if report["unchanged"] else f"{report['bytes'] >> 20} MiB in {report['files']:,} files"
    return f"release {version}: {how}, image {report['image_digest'][:16]}"


def build_first(stage: Stage) -> str:
    """Release 1: the suite as it was released."""
    return build(stage, HERE / "release-1.toml", "1")


def disk(stage: Stage) -> str:
    """A bootable disk, made without a virtual machine or a loop device."""
    stage.path("first-boot.ign").write_text(ignition(stage.port))
    stage.freehold("disk", "server-1", "-o", stage.path("demo.raw"), "--store", stage.store, "--keys", stage.keys)
    return "GPT: boot partition with one signed kernel image, root with fs-verity on every object"


def boot(stage: Stage) -> str:
    """Firmware with our keys, Secure Boot on."""
    stage.freehold(
        "vm", "start", stage.path("demo.raw"), "--name", stage.name, "--secure-boot", "--keys", stage.keys,
        "--ignition", stage.path("first-boot.ign"), "--timeout", "300",
    )  # fmt: skip
    status = json.loads(stage.guest("freehold", "status", "--json").stdout)
    want(status["lock"]["state"] == "open", "the machine is not open")
    want(status["lock"]["secure_boot"] is True, "Secure Boot is off")
    want(status["lock"]["keychain_source"] == "firmware", "files are not believed by the firmware's certificates")
    kernel = stage.shell("uname -r")
    want(stage.guest("systemctl", "is-system-running", "--wait", check=False).text.strip() == "running", "units failed")
    return f"Debian's {kernel}, Secure Boot on, state open, no failed unit"


def provisioned(stage: Stage) -> str:
    """Ignition did what the file says."""
    want(stage.shell("hostname") == "homestead", "host name")
    want("alice@example" in stage.shell("cat /home/alice/.ssh/authorized_keys.d/ignition"), "ssh key")
    want(HOST_IN_GUEST in stage.shell("cat /etc/freehold/update.toml"), "file")
    want(stage.shell("systemctl is-active hello.service") == "active", "unit")
    return "host name, alice with her ssh key, a file, an enabled unit: all there"


def marker(stage: Stage) -> Path:
    """An unsigned program: prints ``ran``."""
    path = stage.path("marker")
    stage.path("marker.c").write_text(PROGRAM)
    tools = ensure(cache_directory(), NullMonitor())
    tools.run(["gcc", "-static", "-O1", "-o", path, stage.path("marker.c")], binds=[stage.root])
    return path


def root_runs(stage: Stage) -> bool:
    """Whether root can run the unsigned program."""
    return stage.shell("cp /var/lib/marker /run/marker && chmod 755 /run/marker; /run/marker 2>&1", check=False) == "ran"


def users_run(stage: Stage) -> None:
    """Alice's own program and one in her container must run, locked or not."""
    want(stage.shell("~/marker", user="alice") == "ran", "alice's program did not run")
    # --network none: there is nothing to fetch, the container is made of alice's own files.
    contained = stage.guest(
        "podman", "run", "--rm", "--network", "none", "--rootfs", "/home/alice/rootfs", "/marker", user="alice", check=False
    )
    want(contained.text.strip() == "ran", f"the container's program did not run: {contained.stderr.decode()[-300:]}")


def open_controls(stage: Stage) -> str:
    """The controls: on the open machine all of it works."""
    stage.copy(marker(stage), "/var/lib/marker", executable=True)
    stage.shell("mkdir -p /home/alice/rootfs && cp /var/lib/marker /home/alice/rootfs/marker && "
                "cp /var/lib/marker /home/alice/marker && chown -R alice: /home/alice/rootfs /home/alice/marker")  # fmt: skip
    want(root_runs(stage), "root's unsigned program did not run on the open machine")
    users_run(stage)
    return "unsigned programs run: root's, alice's, one in alice's container"


def open_back_door(stage: Stage) -> str:
    """The control for persistence: a planted unit fires on the open machine."""
    plant_unit(stage, "control")
    # An open machine loads the guard when it is asked for; root may then do away with it.
    stage.guest("/usr/lib/freehold/guardctl", "load")
    controls = [(what, script) for what, script, closed_anyway in WAYS_OUT if not closed_anyway]
    for what, script in controls:
        done = stage.guest("sh", "-c", script, check=False)
        want(done.status == 0, f"control: root could not {what} on the open machine: {done.stderr.decode()[-200:]}")
    stage.reboot()
    want(stage.shell("cat /var/canary/control 2>/dev/null", check=False) == "control", "the planted unit did not fire")
    stage.shell("systemctl disable control.service; rm -f /etc/systemd/system/control.service /var/canary/control")
    return f"a unit that root plants in /etc fires, as on any Debian; {len(controls)} other things root may do, it does"


def plant_unit(stage: Stage, name: str) -> None:
    """Plant a harmless back door: it appends a line to a canary."""
    unit = stage.path(f"{name}.service")
    unit.write_text(BACK_DOOR.format(name=name))
    stage.shell("mkdir -p /var/canary")
    stage.copy(unit, f"/etc/systemd/system/{name}.service")
    stage.guest("systemctl", "enable", f"{name}.service")


def publish(stage: Stage) -> str:
    """Release 2, a real update, on a static web server."""
    said = build(stage, HERE.parent / "recipes/server.toml", "2")
    for old in ("releases", "streams"):
        # An earlier run's release of that version may be another one; published ones never change.
        shutil.rmtree(stage.path("www") / old, ignore_errors=True)
    stage.freehold(
        "publish", "server-2", "--to", stage.path("www"), "--store", stage.store, "--key", f"file:{stage.keys / 'release.key'}"
    )
    changes = json.loads(stage.freehold("diff", "server-1", "server-2", "--store", stage.store, "--json").stdout)
    serve(stage)
    return f"{said}; {counted(len(changes['packages']), 'package')} changed; served over HTTP"


def serve(stage: Stage) -> None:
    """Carry what is published over HTTP."""
    server = run.start(
        [sys.executable, "-m", "freehold", "serve", stage.path("www"), "--port", str(stage.port)],
        log=stage.path("serve.log"), env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    stage.server = server.pid


def lock(stage: Stage) -> str:
    """The owner locks; the key never touches the machine."""
    stage.signed("lock")
    status = json.loads(stage.guest("freehold", "status", "--json").stdout)
    want(status["lock"]["state"] == "locked", "the machine is not locked")
    return "request on the machine, signature elsewhere, answer on the machine: locked, no reboot"


def refused(stage: Stage) -> str:
    """What ran a minute ago."""
    want(not root_runs(stage), "root's unsigned program ran")
    users_run(stage)
    rows = json.loads(stage.guest("freehold", "denials", "--json").stdout)["denials"]
    want(any(row["rule"] == "exec" for row in rows), "no refusal was recorded")
    return "root's unsigned program is refused by the kernel; alice's and her container's still run"


#: What root tries on the locked machine. The same act works on the open one (the control), or else it is closed in every
#: state and the refusal has to give the reason: the tree is read-only, the key ring is sealed, lockdown and guard only rise.
WAYS_OUT = (
    ("write into the owner's directory", "touch /sysroot/owner/config/x && rm /sysroot/owner/config/x", ""),
    ("move the owner's directory", "mv /sysroot/owner /sysroot/gone && mv /sysroot/gone /sysroot/owner", ""),
    ("read the raw disk", "dd if=/dev/vda of=/dev/null bs=512 count=1", ""),
    # Between the partition table and the first partition, where nothing lies.
    ("write to the raw disk", "dd if=/dev/zero of=/dev/vda bs=512 count=1 seek=34 conv=notrunc", ""),
    ("have the kernel start a helper", "echo core > /proc/sys/kernel/core_pattern", ""),
    ("remove the guard's pins", "rm /sys/fs/bpf/freehold/link_guard_exec", ""),
    ("unmount its file system", "umount -l /sys/fs/bpf", ""),
    ("delete the owner's intent", "rm /sysroot/owner/intent", "Operation not permitted"),
    ("add a key to .fs-verity", "keyctl padd asymmetric x %:.fs-verity < /run/der", "Operation not permitted"),
    ("lower kernel lockdown", "echo none | tee /sys/kernel/security/lockdown", "not permitted"),
    ("remount the tree writable", "mount -o remount,rw /", "No changes allowed in reconfigure"),
    ("set the guard back to audit", "/usr/lib/freehold/guardctl latch audit", "the latch refused: Operation not permitted"),
)  # fmt: skip


def ways_out(stage: Stage) -> str:
    """Root tries to get out."""
    stage.copy(stage.keys / "owner.der", "/run/der")
    for what, script, reason in WAYS_OUT:
        done = stage.guest("sh", "-c", script, check=False)
        want(done.status != 0, f"root could {what}")
        said = done.stderr.decode(errors="replace")
        want(reason in said, f"root could not {what}, for another reason than the lock's: {said.strip()[-200:]}")
    want(stage.shell("cat /sysroot/owner/intent | head -1") == "freehold-intent 1", "the intent is gone")
    want(not root_runs(stage), "root's unsigned program runs")
    named = ", ".join(what for what, _, _ in WAYS_OUT[:3])
    return f"{len(WAYS_OUT)} tried by root, {len(WAYS_OUT)} refused: {named}, ..."


def upgrade(stage: Stage) -> str:
    """Back doors planted, then the update staged, on the locked machine."""
    plant_unit(stage, "planted")
    stage.shell("echo 'echo bashrc >> /var/canary/bashrc' >> /root/.bashrc")
    stage.shell("echo alice-data > ~/data", user="alice")
    want(stage.guest("freehold", "upgrade", timeout=600).status == 0, "upgrade")
    deployments = json.loads(stage.guest("freehold", "status", "--json").stdout)["deployments"]
    want(any(one["staged"] and one["version"] == "2" for one in deployments), "release 2 is not staged")
    return "two back doors planted; release 2 verified and staged beside the running system"


def updated(stage: Stage) -> str:
    """Into release 2, still locked, without the back doors."""
    stage.reboot()
    status = json.loads(stage.guest("freehold", "status", "--json").stdout)
    version = next(one["version"] for one in status["deployments"] if one["booted"])
    want(version == "2", f"release {version} is booted")
    want(status["lock"]["state"] == "locked", "the machine came up open")
    settled = stage.guest("systemctl", "is-system-running", "--wait", check=False).text.strip()
    failed = stage.shell("systemctl --failed --no-legend --plain")
    want(settled == "running", f"the locked machine is {settled}: {failed}")
    # Counted as good, or after three boots the loader would go back.
    entry = stage.shell("ls /efi/EFI/Linux | grep '^freehold-2-'")
    want("+" not in entry, f"the update was not noted as healthy: {entry}")
    # An interactive shell of root's would read its .bashrc.
    want(stage.shell("bash -ic true 2>/dev/null; test -d /var/canary && ls -A /var/canary") == "", "a back door fired")
    want(stage.shell("ls -A /root | grep bashrc", check=False) == "", "root's .bashrc is believed")
    want(not root_runs(stage), "root's unsigned program runs")
    want(stage.shell("hostname; id -un alice; systemctl is-active hello") == "homestead\nalice\nactive", "configuration lost")
    return "release 2 runs, locked from the start; neither back door fired; the owner's configuration is there"


def rollback(stage: Stage) -> str:
    """One command and a reboot."""
    stage.guest("freehold", "rollback")
    stage.reboot()
    status = json.loads(stage.guest("freehold", "status", "--json").stdout)
    version = next(one["version"] for one in status["deployments"] if one["booted"])
    want(version == "1", f"release {version} is booted")
    want(status["lock"]["state"] == "locked", "the machine came up open")
    return "release 1 again, still locked"


def unlock(stage: Stage) -> str:
    """The owner's key opens the machine; nothing is lost."""
    stage.signed("unlock")
    stage.reboot()
    status = json.loads(stage.guest("freehold", "status", "--json").stdout)
    want(status["lock"]["state"] == "open", "the machine is not open")
    want(stage.shell("cat /home/alice/data; hostname; systemctl is-active hello") == "alice-data\nhomestead\nactive", "data lost")
    want(root_runs(stage), "root's program does not run on the unlocked machine")
    users_run(stage)
    return "open again; alice's data, her container, the configuration: all there"


STORY = (
    ("make the keys", keys),
    ("build release 1 from Debian packages", build_first),
    ("make a disk", disk),
    ("boot it", boot),
    ("look at what Ignition did", provisioned),
    ("open: run unsigned programs", open_controls),
    ("open: plant a back door, reboot", open_back_door),
    ("build and publish release 2", publish),
    ("the owner locks the machine", lock),
    ("locked: run them again", refused),
    ("locked: root tries ways out", ways_out),
    ("locked: plant back doors, stage the update", upgrade),
    ("reboot into release 2", updated),
    ("roll back", rollback),
    ("the owner unlocks", unlock),
)


def main() -> int:
    """Play the story; 0 when every step passed. The machine and the server end in any case."""
    # Ended from outside, the demo still switches its machine off.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    stage = Stage()
    stage.root.mkdir(parents=True, exist_ok=True)
    stage.path("commands.log").write_text("")
    stage.freehold("vm", "stop", stage.name, "--hard", check=False)
    print(f"Freehold, the whole path, in {stage.root} (every command: {stage.path('commands.log')})\n", flush=True)
    begun = time.monotonic()
    try:
        ensure(cache_directory(), NullMonitor())
        if time.monotonic() - begun > 1:
            print(f"    made the tools tree ({time.monotonic() - begun:.0f} s, once)", flush=True)
        return 0 if tell(stage, STORY) else 1
    except FreeholdError as error:
        print(f"demo: {error.message}")
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted")
        return 130
    finally:
        end(stage)
