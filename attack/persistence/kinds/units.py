# SPDX-License-Identifier: Apache-2.0
"""What systemd starts: units and what changes them, generators, extensions, and the older ways that it still honours."""

from __future__ import annotations

from attack.persistence.model import READ_ONLY, Row
from attack.persistence.payload import BENCH, both, copy, link, native, no_program, put, script, service, text, unit

SYSTEM = "/etc/systemd/system"


def _root_manager() -> str:
    home = "/root/.config/systemd/user"
    return unit("a31-root-units", home, "default.target") + "mkdir -p /var/lib/systemd/linger\n: >/var/lib/systemd/linger/root\n"


def _timer() -> str:
    timer = "[Timer]\nOnActiveSec=1s\n[Install]\nWantedBy=timers.target\n"
    planted = put(f"{SYSTEM}/a26-timer.service", service("a26-timer")) + put(f"{SYSTEM}/a26-timer.timer", timer)
    return planted + link("../a26-timer.timer", f"{SYSTEM}/timers.target.wants/a26-timer.timer")


def _dropin(path: str, name: str) -> str:
    return put(path, f"[Service]\nExecStartPre=-{text(name)}\nExecStartPre=-{native(name)}\n")


def _transient() -> str:
    run = unit("a28-transient", "/run/systemd/system") + unit("a28-transient", "/run/systemd/transient")
    return f"{run}systemctl daemon-reload\nsystemctl start a28-transient.service\n"


def _extension() -> str:
    top = "/var/lib/extensions/a32/usr/lib"
    release = put(f"{top}/extension-release.d/extension-release.a32", "ID=_any")
    enabled = link("/usr/lib/systemd/system/systemd-sysext.service", f"{SYSTEM}/sysinit.target.wants/systemd-sysext.service")
    return release + put(f"{top}/systemd/system/a32-sysext.service", service("a32-sysext")) + enabled


def _configuration_extension() -> str:
    top = "/var/lib/confexts/a32/etc"
    release = put(f"{top}/extension-release.d/extension-release.a32", "ID=_any")
    enabled = link("/usr/lib/systemd/system/systemd-confext.service", f"{SYSTEM}/sysinit.target.wants/systemd-confext.service")
    return release + unit("a32-confext", f"{top}/systemd/system") + enabled


def _portable() -> str:
    top = "/var/lib/portables/a33"
    planted = put(f"{top}/etc/os-release", "ID=debian\nVERSION_ID=13")
    planted += put(f"{top}/usr/lib/systemd/system/a33-portable.service", service("a33-portable"))
    return planted + put("/var/lib/machines/a33/etc/os-release", "ID=debian\nVERSION_ID=13")


def _attached() -> str:
    return unit("b01-attached", "/etc/systemd/system.attached")


SYSV = """#!/bin/sh
### BEGIN INIT INFO
# Provides: {name}
# Required-Start:
# Required-Stop:
# Default-Start: 2 3 4 5
# Default-Stop:
# Short-Description: planted
### END INIT INFO
{lines}"""


def _sysv() -> str:
    planted = put("/etc/init.d/a35-sysv", SYSV.format(name="a35-sysv", lines=f"{text('a35-sysv')}\n{native('a35-sysv')}"), "755")
    levels = "".join(link("../init.d/a35-sysv", f"/etc/rc{level}.d/S99a35-sysv") for level in (2, 3, 4, 5))
    return planted + levels


def _default_target() -> str:
    target = "[Unit]\nDescription=planted\nRequires=multi-user.target\nAfter=multi-user.target\n"
    target += "Wants=b03-default-target.service\n"
    planted = put(f"{SYSTEM}/b03-default-target.service", service("b03-default-target"))
    return planted + put(f"{SYSTEM}/b03.target", f"{target}AllowIsolate=yes\n") + link("b03.target", f"{SYSTEM}/default.target")


def _path_and_socket() -> str:
    path = "[Path]\nPathExists=/etc/passwd\n"
    planted = put(f"{SYSTEM}/b04-path.service", service("b04-path", "RemainAfterExit=yes\n")) + put(f"{SYSTEM}/b04-path.path",
    path)
    return planted + link("../b04-path.path", f"{SYSTEM}/paths.target.wants/b04-path.path")


def _credentials() -> str:
    return put("/etc/credstore/tmpfiles.extra", "f+ /var/canary/b05-credstore 0644 - - - 0 %b")


def _user_units() -> str:
    return unit("a31-user-units", "/etc/systemd/user", "default.target")


#: Root's own service manager.
ROOT_MANAGER = "systemctl start user@0.service"
MERGE = (
    "systemd-sysext merge\nsystemctl daemon-reload\nsystemctl start a32-sysext.service || true\n"
    "systemd-sysext unmerge\nsystemctl daemon-reload\n"
)

ROWS = (
    Row("a24-unit", "E", "a service that is enabled", unit("a24-unit"), both("a24-unit")),
    Row("a25-dropin", "E", "a drop-in for a service that starts anyway",
        _dropin(f"{SYSTEM}/ssh.service.d/a25.conf", "a25-dropin"),
        both("a25-dropin")),
    Row("a26-timer", "E", "a timer", _timer(), both("a26-timer")),
    Row("a28-transient", "S", "transient units below /run, started", _transient(), both("a28-transient"), control="now"),
    Row("a29-generator", "E", "a generator that is a script",
        put(f"{SYSTEM}-generators/a29-generator", script("a29-generator"), "755"),
        both("a29-generator")),
    Row("a29-native-generator", "E", "a generator that is an unsigned program",
        copy("native", f"{SYSTEM}-generators/a29-native-generator"), ("a29-native-generator.native",)),
    Row("a31-user-units", "E", "a unit for every user's manager, root's among them", _user_units(), both("a31-user-units"),
        trigger=ROOT_MANAGER),
    Row("a31-root-units", "E", "a unit in root's home, and root's manager started at boot (linger)", _root_manager(),
        both("a31-root-units")),
    Row("a32-sysext", "X", "a system extension that root merges", _extension(), both("a32-sysext"), trigger=MERGE,
        covered_by=("extensions",)),
    Row("a32-confext", "X", "a configuration extension", _configuration_extension(), ("a32-confext",), control="elsewhere",
        covered_by=("extensions", "control-extension")),
    Row("a33-portable", "V", "a portable service and a machine", _portable(), both("a33-portable"), control="absent",
        absence=no_program("portablectl", "machinectl", "systemd-nspawn", "systemd-dissect")
                + "test ! -e /usr/lib/systemd/systemd-portabled\n", covered_by=("portable",)),
    Row("a35-sysv", "E", "a script of System V's", _sysv(), both("a35-sysv")),
    Row("a36-rc-local", "E", "rc.local", put("/etc/rc.local", script("a36-rc-local"), "755"), both("a36-rc-local")),
    Row("a75-manager-environment", "E", "a library named in the environment of every service",
        copy("library.so", f"{BENCH}/a75-manager-environment.so")
        + put("/etc/systemd/system.conf.d/a75.conf",
        f"[Manager]\nDefaultEnvironment=LD_PRELOAD={BENCH}/a75-manager-environment.so"),
        ("a75-manager-environment.native",)),
    Row("b01-attached", "E", "a unit where portable services are attached", _attached(), both("b01-attached")),
    Row("b02-control", "E", "a drop-in where `systemctl set-property` keeps its own",
        _dropin("/etc/systemd/system.control/ssh.service.d/b02.conf", "b02-control"), both("b02-control")),
    Row("b03-default-target", "E", "another default target, which wants a service", _default_target(),
        both("b03-default-target")),
    Row("b04-path", "E", "a service that a path starts", _path_and_socket(), both("b04-path")),
    Row("b05-credstore", "E", "a credential that tells tmpfiles to write a file", _credentials(), ("b05-credstore",)),
    Row("b06-environment-generator", "E", "a generator of the manager's environment",
        put("/etc/systemd/system-environment-generators/b06-environment-generator", script("b06-environment-generator"), "755"),
        both("b06-environment-generator")),
    Row("b07-user-environment-generator", "E", "a generator of the environment of root's manager",
        put("/etc/systemd/user-environment-generators/b07-user-environment-generator", script("b07-user-environment-generator"),
            "755"), both("b07-user-environment-generator"), trigger=ROOT_MANAGER),
    Row("b08-user-generator", "E", "a generator of root's manager",
        put("/etc/systemd/user-generators/b08-user-generator", script("b08-user-generator"), "755"), both("b08-user-generator"),
        trigger=ROOT_MANAGER),
    Row("b09-environment-file", "E", "a library named in the file with ssh's environment",
        copy("library.so", f"{BENCH}/b09-environment-file.so")
        + put("/etc/default/ssh", f"LD_PRELOAD={BENCH}/b09-environment-file.so"), ("b09-environment-file.native",)),
    Row("b10-local-unit", "U", "a unit below /usr/local", unit("b10-local-unit", "/usr/local/lib/systemd/system"),
        both("b10-local-unit"), control="closed", reason=READ_ONLY),
    Row("b11-shutdown-hook", "U", "a program that systemd starts when it switches off",
        copy("native", "/usr/lib/systemd/system-shutdown/b11-shutdown-hook"), ("b11-shutdown-hook.native",), control="closed",
        reason=READ_ONLY),
)  # fmt: skip
