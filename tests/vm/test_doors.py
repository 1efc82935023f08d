# SPDX-License-Identifier: Apache-2.0
"""Back doors that root plants on the locked machine: none fires at the next boot. Many plants, one reboot."""

from __future__ import annotations

import json

import pytest
from demo.stage import Stage
from tests.vm.reference import Reference

pytestmark = [pytest.mark.vm, pytest.mark.build]

#: name → shell text that plants it; each would append its name to a canary as root.
PLANTS = {
    "unit": "printf '[Service]\\nExecStart=/bin/sh -c \"echo unit >> /var/canary/unit\"\\n' > /etc/systemd/system/d1.service; "
            "mkdir -p /etc/systemd/system/multi-user.target.wants; ln -s ../d1.service /etc/systemd/system/multi-user.target.wants/",
    "dropin": "mkdir -p /etc/systemd/system/ssh.service.d; "
              "printf '[Service]\\nExecStartPre=/bin/sh -c \"echo dropin >> /var/canary/dropin\"\\n' > /etc/systemd/system/ssh.service.d/x.conf",
    "udev": "echo 'ACTION==\"add\", RUN+=\"/bin/sh -c \\\"echo udev >> /var/canary/udev\\\"\"' > /etc/udev/rules.d/99-x.rules",
    "tmpfiles": "echo 'f+ /var/canary/tmpfiles - - - - fired' > /etc/tmpfiles.d/x.conf",
    "generator": "mkdir -p /etc/systemd/system-generators; printf '#!/bin/sh\\necho gen >> /var/canary/generator\\n' > "
                 "/etc/systemd/system-generators/g; chmod 755 /etc/systemd/system-generators/g",
    "profile": "echo 'echo profile >> /var/canary/profile' > /etc/profile.d/x.sh",
    "bashrc": "echo 'echo bashrc >> /var/canary/bashrc' >> /root/.bashrc",
    "preload": "echo /var/lib/x.so > /etc/ld.so.preload",
    "uid0": "echo 'toor::0:0::/root:/bin/bash' >> /etc/passwd; echo 'toor::1::::::' >> /etc/shadow",
    "rootkey": "mkdir -p /etc/ssh/authorized_keys.d /root/.ssh; echo planted-key >> /etc/ssh/authorized_keys.d/root; "
               "echo planted-key >> /root/.ssh/authorized_keys",
    "sysctl": "echo 'kernel.kptr_restrict = 0' > /etc/sysctl.d/99-x.conf",
    "quadlet": "mkdir -p /etc/containers/systemd; printf '[Container]\\nImage=x\\nExec=x\\n' > /etc/containers/systemd/x.container",
    "extension": "mkdir -p /var/lib/extensions/x/usr/lib/extension-release.d; touch /var/lib/extensions/x/usr/planted; "
                 "echo 'ID=_any' > /var/lib/extensions/x/usr/lib/extension-release.d/extension-release.x",
    "cron": "mkdir -p /var/spool/cron/crontabs; echo '* * * * * echo cron >> /var/canary/cron' > /var/spool/cron/crontabs/root",
    "unsigned-intent": "mkdir -p /sysroot/inbox; sed 's/lock locked/lock open/; s/serial 1/serial 9/; /^signature/d' "
                       "/sysroot/owner/intent > /sysroot/inbox/intent",
    "machine-state": "printf '{\"format\":\"freehold-machine-1\",\"hostname\":\"homestead\",\"host_keys\":[],\"accounts\":"
                     "[{\"name\":\"zero\",\"uid\":0,\"gid\":0,\"gecos\":\"\",\"home\":\"/home/zero\",\"shell\":\"/bin/bash\",\"hash\":\"*\","
                     "\"subid\":0},{\"name\":\"alice\",\"uid\":1000,\"gid\":1000,\"gecos\":\"\",\"home\":\"/home/alice\","
                     "\"shell\":\"/bin/bash\",\"hash\":\"*\",\"subid\":100000}]}' > /sysroot/state/machine.json",
    "link": "rm -rf /var/spool/cron; ln -s /etc /var/spool/cron",
}  # fmt: skip
#: A module without its signature: the trailer is 28 bytes of magic after 12 that end with the signature's length.
STRIP = (
    "import lzma, sys; d = lzma.open(sys.argv[1]).read(); "
    'sys.stdout.buffer.write(d[: -(40 + int.from_bytes(d[-32:-28], "big"))])'
)
REFUSED = (
    "/run/marker",
    "/lib64/ld-linux-x86-64.so.2 /run/marker",
    "printf '#!/bin/sh\\necho ran\\n' > /run/script; chmod 755 /run/script; /run/script",
    "insmod /run/unsigned.ko",
    "echo x >> /sysroot/owner/intent",
    "ln -s x /sysroot/owner/link",
    "mknod /sysroot/owner/node c 1 3",
    "setfattr -n user.x -v y /sysroot/owner/id || chmod 644 /sysroot/owner/id",
    "mount --bind /run /usr",
    "chroot / /run/marker",
)


@pytest.fixture(scope="module")
def locked(reference: Reference) -> Stage:
    stage = reference.stage
    reference.start(reference.overlay("doors"))
    stage.guest("cp", "/var/lib/marker", "/run/marker")
    # The controls, on the open machine.
    assert stage.shell("/run/marker") == "ran"
    assert stage.shell("/lib64/ld-linux-x86-64.so.2 /usr/bin/echo ran") == "ran"
    assert stage.shell("printf '#!/bin/sh\\necho ran\\n' > /run/script; chmod 755 /run/script; /run/script") == "ran"
    stage.shell(
        "m=$(find /usr/lib/modules -name 'dummy.ko*' | head -1); "
        f"python3 -c '{STRIP}' $m > /run/unsigned.ko; insmod /run/unsigned.ko && rmmod dummy",
        check=True,
    )
    stage.shell("mkdir -p /var/canary")
    stage.signed("lock")
    return stage


def test_refused_while_locked(locked: Stage) -> None:
    for script in REFUSED:
        done = locked.guest("sh", "-c", script, check=False)
        assert done.status != 0, script
        assert done.text.strip() != "ran", script
    assert locked.shell("/usr/bin/true && echo signed programs run") == "signed programs run"


def test_nothing_planted_fires(locked: Stage) -> None:
    for name, plant in PLANTS.items():
        done = locked.guest("sh", "-c", plant, check=False)
        assert done.status == 0, f"{name} could not be planted: {done.stderr.decode()}"
    locked.reboot()
    status = json.loads(locked.guest("freehold", "status", "--json").stdout)
    assert status["lock"]["state"] == "locked"
    assert locked.guest("systemctl", "is-system-running", "--wait", check=False).text.strip() == "running"
    assert locked.shell("bash -lc true; bash -ic true 2>/dev/null; test -d /var/canary && ls -A /var/canary") == ""
    assert locked.shell("id -un toor zero 2>/dev/null || true") == ""
    assert locked.shell("id -u alice") == "1000"
    assert locked.shell("cat /etc/ssh/authorized_keys.d/root /root/.ssh/authorized_keys /etc/ld.so.preload 2>/dev/null || true") == ""
    assert locked.shell("cat /proc/sys/kernel/kptr_restrict") == "1"
    assert locked.shell("ls /usr/planted /run/systemd/generator/x.service 2>/dev/null || true") == ""
    assert locked.shell("ls -A /var/spool/cron /var/lib/extensions | grep -v : | tr -d '\\n'") == ""
    assert "serial 1" in locked.shell("cat /sysroot/owner/intent").splitlines()
    # Collateral: a user's own program still runs.
    locked.shell("cp /var/lib/marker /home/alice/marker && chown alice /home/alice/marker")
    assert locked.shell("~/marker", user="alice") == "ran"
