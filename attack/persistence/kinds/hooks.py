# SPDX-License-Identifier: Apache-2.0
"""Configuration of programs that start other programs: kernel settings, udev, tmpfiles, the bus, package and network tools."""

from __future__ import annotations

from attack.persistence.model import READ_ONLY, Row
from attack.persistence.payload import (
    BENCH,
    both,
    copy,
    lines,
    link,
    native,
    no_program,
    no_way_up,
    put,
    script,
    service,
    text,
    unit,
)

UDEV = (
    'ACTION=="add", KERNEL=="null", RUN+="{text}"\n'
    'ACTION=="add", KERNEL=="null", RUN+="{native}"'
)
CRON = no_program("cron", "crond", "anacron", "fcron", "atd", "at", "supervisord", "monit", "runsvdir")
BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "busconfig.dtd">
<busconfig>
<servicedir>/etc/planted-bus</servicedir>
<policy user="root"><allow own="org.planted.A40"/><allow send_destination="org.planted.A40"/></policy>
</busconfig>"""
ACTIVATED = "[D-BUS Service]\nName=org.planted.A40\nExec=/bin/false\nUser=root\nSystemdService=a40-bus.service"
POLKIT = 'polkit.addRule(function(action, subject) { polkit.spawn(["/bin/sh", "%s/fire", "a41-polkit"]); return "yes"; });'


def _polkit() -> str:
    rule = POLKIT % BENCH
    places = ("/etc/polkit-1/rules.d", "/run/polkit-1/rules.d", "/var/lib/polkit-1/rules.d")
    authority = "[all]\nIdentity=unix-user:alice\nAction=*\nResultAny=yes"
    rules = "".join(put(f"{place}/10-a41.rules", rule) for place in places)
    return rules + put("/var/lib/polkit-1/localauthority/50-local.d/a41.pkla", authority)


def _cron() -> str:
    table = f"* * * * * root {text('a42-cron')}\n* * * * * root {native('a42-cron')}"
    hooks = "".join(put(f"/etc/cron.{often}/a42-cron", script("a42-cron"), "755") for often in ("hourly", "daily", "weekly"))
    return put("/etc/crontab", table) + put("/etc/cron.d/a42-cron", table) + hooks


def _spool() -> str:
    table = f"* * * * * {text('a43-crontab')}\n* * * * * {native('a43-crontab')}"
    job = put("/var/spool/cron/atjobs/a0000101800000", script("a43-crontab"), "700")
    return put("/var/spool/cron/crontabs/root", table, "600") + job + put("/var/spool/at/a0000101800000",
        script("a43-crontab"), "700")


def _others() -> str:
    planted = put("/etc/anacrontab", f"1 0 a45-anacron {text('a45-anacron')}")
    program = f"[program:a45]\ncommand={text('a45-anacron')}\nautostart=true"
    planted += put("/etc/supervisor/conf.d/a45.conf", program) + put("/etc/sv/a45/run", script("a45-anacron"), "755")
    return planted + put("/etc/monit/conf.d/a45", f'check program a45 with path "{text("a45-anacron")}"')


APT = (
    'APT::Update::Pre-Invoke {{"{text}"; "{native}";}};\n'
    'DPkg::Pre-Invoke {{"{text}";}};'
)


def _apt() -> str:
    return put("/etc/apt/apt.conf.d/99a68", APT.format(text=text("a68-apt"), native=native("a68-apt")))


def _package() -> str:
    control = "Package: a69-package\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: planted"
    top = "/run/a69-package"
    made = put(f"{top}/DEBIAN/control", control) + put(f"{top}/DEBIAN/postinst", script("a69-package"), "755")
    return f"{made}dpkg-deb --build --root-owner-group {top} /run/a69.deb >/dev/null\nLC_ALL=C dpkg -i /run/a69.deb\n"


def _network() -> str:
    places = (
        "NetworkManager/dispatcher.d", "network/if-up.d", "networkd-dispatcher/routable.d", "dhcp/dhclient-exit-hooks.d",
        "ppp/ip-up.d", "wpa_supplicant/functions.d", "resolvconf/update.d",
    )  # fmt: skip
    return "".join(put(f"/etc/{place}/a72-network", script("a72-network"), "755") for place in places)


def _hardware() -> str:
    return put("/etc/udev/hwdb.d/99-b14.hwdb", "planted:b14*\n B14_PLANTED=yes") + "systemd-hwdb update\n"


def _binfmt() -> str:
    return (
        "rm -f /etc/systemd/system/systemd-binfmt.service\n"
        + put("/etc/binfmt.d/b16.conf", ":b16-planted:M::PLANTED::/bin/sh:")
        + link("/usr/lib/systemd/system/systemd-binfmt.service",
        "/etc/systemd/system/multi-user.target.wants/systemd-binfmt.service")
    )


DAEMONS = (
    "acpi/events/b45", "smartmontools/run.d/b45", "mdadm/b45", "auto.master.d/b45.autofs", "xinetd.d/b45", "pm/sleep.d/b45",
)  # fmt: skip
DPKG = f'pre-invoke="{text("b46-dpkg")}"\npost-invoke="{native("b46-dpkg")}"'
OWN_DATABASE = (
    "mkdir -p /run/b46/info /run/b46/updates /run/b46/triggers\n: >/run/b46/status\n"
    "dpkg --admindir=/run/b46 --log=/dev/null --configure -a"
)
POD = (
    "kind: Pod\nmetadata: {name: a103}\nspec:\n  hostPID: true\n  containers:\n"
    f"  - {{name: a103, image: planted, command: [/bin/sh, {BENCH}/fire, a103-kubelet]}}"
)
CORE = f"kernel.core_pattern = |{text('a04-core-pattern')}"
CRASH = "ulimit -c unlimited\nsh -c 'kill -SEGV $$' || true\nsleep 2"
NO_SOURCES = "-o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts=/dev/null -o Dir::State=/run/a68"
NO_UPDATE = f"mkdir -p /run/a68/lists/partial\napt-get {NO_SOURCES} update"

ROWS = (
    Row("a02-modules", "E", "a module of Debian's that is loaded at boot", put("/etc/modules-load.d/a02.conf", "dummy"),
        look="lsmod | grep ^dummy || true"),
    Row("a04-core-pattern", "X", "a setting by which the kernel starts a program when another crashes",
        put("/etc/sysctl.d/99-a04.conf", CORE), ("a04-core-pattern",), trigger=CRASH),
    Row("a38-sysctl", "E", "a kernel setting", put("/etc/sysctl.d/99-a38.conf", "vm.laptop_mode = 7"),
        look="cat /proc/sys/vm/laptop_mode", found="^7"),
    Row("a39-udev", "E", "a udev rule that starts programs",
        put("/etc/udev/rules.d/99-a39.rules", UDEV.format(text=text("a39-udev"), native=native("a39-udev"))), both("a39-udev")),
    Row("a40-bus", "E", "a service that the system bus starts",
        put("/etc/dbus-1/system.d/a40.conf", BUS) + put("/etc/planted-bus/org.planted.A40.service", ACTIVATED)
        + put("/etc/systemd/system/a40-bus.service", service("a40-bus")), both("a40-bus"),
        trigger="timeout 20 busctl call org.planted.A40 / org.freedesktop.DBus.Peer Ping || true"),
    Row("a41-polkit", "E", "polkit rules that allow everything, and start a program", _polkit(), ("a41-polkit",),
        control="absent", absence=no_way_up("pkexec") + no_program("pkcheck") + "test ! -e /usr/lib/polkit-1/polkitd\n"),
    Row("a42-cron", "E", "system crontabs", _cron(), both("a42-cron"), control="absent", absence=CRON),
    Row("a43-crontab", "V", "root's crontab and at jobs", _spool(), both("a43-crontab"), control="absent", absence=CRON,
        covered_by=("cron",)),
    Row("a45-anacron", "E", "other programs that start programs: anacron, supervisor, runit, monit", _others(), ("a45-anacron",),
        control="absent", absence=CRON),
    Row("a65-display", "E", "hooks of a display manager and of X sessions",
        put("/etc/X11/Xsession.d/00a65-display", lines("a65-display"))
        + put("/etc/gdm3/Init/Default", script("a65-display"), "755"),
        both("a65-display"), control="absent", absence=no_program("Xorg", "X", "gdm3", "lightdm", "sddm", "greetd", "startx")),
    Row("a68-apt", "E", "hooks of apt", _apt(), both("a68-apt"), trigger=NO_UPDATE),
    Row("a69-package", "U", "a package with a script of its own", _package(), both("a69-package"), control="closed",
        reason=READ_ONLY),
    Row("a70-kernel-hook", "E", "a hook of kernel packages",
        put("/etc/kernel/postinst.d/a70-kernel-hook", script("a70-kernel-hook"), "755"),
        both("a70-kernel-hook"), trigger="run-parts --regex '^a70' /etc/kernel/postinst.d"),
    Row("a71-logrotate", "E", "a script that logrotate runs",
        put("/etc/logrotate.d/a71", f"/var/log/a71.log {{\n\tdaily\n\tprerotate\n\t\t{text('a71-logrotate')}\n\tendscript\n}}"),
        ("a71-logrotate",), control="absent", absence=no_program("logrotate")),
    Row("a72-network", "E", "hooks of network programs", _network(), both("a72-network"), control="absent",
        absence=no_program("NetworkManager", "ifup", "dhclient", "dhcpcd", "pppd", "networkd-dispatcher", "wpa_supplicant")
        + "if [ \"$(readlink -f /usr/sbin/resolvconf)\" != /usr/bin/resolvectl ]; then exit 1; fi\n"),
    Row("a103-kubelet", "E", "pods that a kubelet would start", put("/etc/kubernetes/manifests/a103.yaml", POD),
        ("a103-kubelet",), control="absent", absence=no_program("kubelet", "k3s", "dockerd", "containerd", "crio")),
    Row("b12-tmpfiles", "E", "a file that is written at boot",
        put("/etc/tmpfiles.d/b12.conf", "f+ /var/canary/b12-tmpfiles 0644 - - - 0 %b"), ("b12-tmpfiles",)),
    Row("b13-sysusers", "E", "a user who is put into a group of the system's", put("/etc/sysusers.d/b13.conf", "m alice video"),
        ("b13-sysusers",), trigger=f"systemd-sysusers\nif id -nG alice | grep -qw video; then {text('b13-sysusers')}; fi"),
    Row("b14-hardware", "E", "facts about hardware", _hardware(), look="systemd-hwdb query planted:b14", found="B14_PLANTED=yes"),
    Row("b15-modprobe", "E", "a command that modprobe runs instead of loading",
        put("/etc/modprobe.d/b15.conf", f"install b15planted {text('b15-modprobe')}; {native('b15-modprobe')}"),
        both("b15-modprobe"), trigger="modprobe b15planted"),
    Row("b16-binfmt", "E", "a format of programs that the kernel starts by an interpreter", _binfmt(),
        look="ls /proc/sys/fs/binfmt_misc 2>&1 | grep b16-planted || true"),
    Row("b17-request-key", "E", "a program that the kernel starts for a key",
        put("/etc/request-key.d/b17.conf", f"create user debug:b17 * {text('b17-request-key')}"), ("b17-request-key",),
        trigger="keyctl request2 user debug:b17 x || true"),
    Row("b18-resolved", "E", "another name server", put("/etc/systemd/resolved.conf.d/b18.conf", "[Resolve]\nDNS=192.0.2.18"),
        look="resolvectl dns 2>&1", found=r"192\.0\.2\.18"),
    Row("b19-homes", "E", "other daemons that keep state with code: homed, tuned, udisks",
        put("/etc/tuned/b19/script.sh", script("b19-homes"), "755") + put("/var/lib/systemd/home/b19.identity", "{}"),
        ("b19-homes",), control="absent", absence=no_program("homectl", "tuned", "udisksctl", "snap", "flatpak")
        + "test ! -e /usr/lib/systemd/systemd-homed\n"),
    Row("b20-fsfreeze", "E", "a hook of the hypervisor's agent",
        put("/etc/qemu/fsfreeze-hook.d/b20-fsfreeze", script("b20-fsfreeze"), "755"), both("b20-fsfreeze"),
        trigger="run-parts --regex '^b20' /etc/qemu/fsfreeze-hook.d"),
    Row("b21-alternatives", "E", "a link by which a program of /usr is chosen",
        copy("native", f"{BENCH}/b21-alternatives") + link(f"{BENCH}/b21-alternatives", "/etc/alternatives/pager"),
        ("b21-alternatives.native",), trigger="pager b21-alternatives </dev/null"),
    Row("b22-updates", "E", "where updates come from",
        put("/etc/freehold/update.toml", '[update]\nurl = "http://192.0.2.22"\nstream = "stable"'),
        look="cat /etc/freehold/update.toml 2>/dev/null || true", found=r"192\.0\.2\.22"),
    Row("b23-preset", "E", "a preset, applied", put("/etc/systemd/system-preset/00-b23.preset", "enable b23-preset.service")
        + put("/etc/systemd/system/b23-preset.service", service("b23-preset")) + "systemctl preset b23-preset.service\n",
        both("b23-preset")),
    Row("b45-daemons", "E", "hooks of other daemons: power, disks, automatic mounts, old super-servers",
        "".join(put(f"/etc/{place}", script("b45-daemons"), "755") for place in DAEMONS), both("b45-daemons"), control="absent",
        absence=no_program("acpid", "smartd", "mdadm", "automount", "xinetd", "inetd", "udisksd", "pm-suspend", "lvm", "zed")),
    Row("b46-dpkg", "E", "hooks of dpkg", put("/etc/dpkg/dpkg.cfg.d/b46", DPKG), both("b46-dpkg"), trigger=OWN_DATABASE),
    Row("b48-authority", "E", "a certificate authority that programs trust", put("/etc/ssl/certs/b48-planted.pem", "planted"),
        look="ls /etc/ssl/certs", found="b48-planted"),
    Row("b24-state-unit", "V", "units where programs keep state", unit("b24-state-unit", "/var/lib/systemd/system"),
        ("b24-state-unit",), control="elsewhere", covered_by=("persistent-units",)),
)  # fmt: skip
