# SPDX-License-Identifier: Apache-2.0
"""What lies in /var and could make signed programs act for whoever wrote it."""

from __future__ import annotations

from attack.model import Probe, Row
from attack.target import Target, canary, unit

TOGETHER = "planted-state"
EVERY_MINUTE = "* * * * * root {script}\n"
EXTENSION = b"ID=_any\n"
NO_DIRECTORY = r"freehold: .*(?:was no directory|cannot be mounted|no /var|failed)"
NOT_MERGED = Probe(
    "no extension is merged",
    "for kind in sysext confext; do systemd-$kind status --no-legend 2>/dev/null | grep -c evil; done; "
    "test -e /usr/lib/evil -o -e /etc/evil && echo there || echo absent",
    r"^0\s+0\s+absent",
)


def cron(target: Target) -> None:
    script = canary("cron")
    target.root.write("/var/spool/cron/crontabs/root", f"* * * * * {script}\n".encode(), mode=0o600)
    target.root.write("/var/spool/cron/atjobs/a0000101800000", f"#!/bin/sh\n{script}\n".encode(), mode=0o700)


def extensions(target: Target) -> None:
    """A system extension and a configuration extension, as plain directories."""
    system = "/var/lib/extensions/evil/usr/lib"
    target.root.write(f"{system}/extension-release.d/extension-release.evil", EXTENSION)
    target.root.write(f"{system}/evil", b"evil\n")
    target.root.write(f"{system}/systemd/system/evil.service", unit("extensions"))
    target.root.write("/var/lib/confexts/evil/etc/extension-release.d/extension-release.evil", EXTENSION)
    units = "/var/lib/confexts/evil/etc/systemd/system"
    target.root.write(f"{units}/evil.service", unit("extensions"))
    target.root.symlink(f"{units}/sysinit.target.wants/evil.service", "../evil.service")
    target.root.write("/var/lib/extensions.mutable/usr/lib/evil", b"evil\n")


def portable(target: Target) -> None:
    top = "/var/lib/portables/evil"
    target.root.write(f"{top}/etc/os-release", b"ID=debian\nVERSION_ID=13\n")
    target.root.write(f"{top}/usr/lib/systemd/system/evil.service", unit("portable"))
    target.root.write("/var/lib/machines/evil/etc/os-release", b"ID=debian\nVERSION_ID=13\n")


def quadlet(target: Target) -> None:
    text = f"[Container]\nImage=localhost/evil\n[Service]\nExecStartPre=/bin/sh -c '{canary('quadlet')}'\n"
    target.root.write(
        "/var/lib/containers/quadlet/evil.container", f"{text}[Install]\nWantedBy=multi-user.target\n".encode()
    )


def user_units(target: Target) -> None:
    """Root's own user manager, started at boot (linger), with a unit in root's home and one on the disk's."""
    target.root.write("/var/lib/systemd/linger/root", b"")
    for home in ("/var/roothome", "/owner/roothome"):
        units = f"{home}/.config/systemd/user"
        target.root.write(f"{units}/evil.service", unit("user-units"))
        target.root.symlink(f"{units}/default.target.wants/evil.service", "../evil.service")


def persistent_units(target: Target) -> None:
    """Where programs keep units or presets outside /etc and /usr."""
    for folder in ("/var/lib/systemd/system", "/var/lib/systemd/system-generators", "/var/usrlocal/lib/systemd/system"):
        target.root.write(f"{folder}/evil.service", unit("persistent-units"))


def profile_of_var_roothome(target: Target) -> None:
    """The directory below the mount of root's home."""
    for name in (".bashrc", ".profile"):
        target.root.write(f"/var/roothome/{name}", f"{canary('covered-home')}\n".encode())
    target.root.write("/var/roothome/.ssh/authorized_keys", b"ssh-ed25519 AAAA evil\n", mode=0o600)


def link_below_var(target: Target) -> None:
    """A link where an empty file system will be mounted: the mount must not follow it to /etc."""
    if target.root.exists("/var/spool/cron"):
        target.root.unlink("/var/spool/cron")
    target.root.symlink("/var/spool/cron", "/etc")


def home_link(target: Target) -> None:
    """Root's home is an empty file system while locked: mounted through a link, it would cover /etc instead."""
    if target.root.exists("/var/roothome"):
        target.root.unlink("/var/roothome")
    target.root.symlink("/var/roothome", "../etc")


def var_link(target: Target) -> None:
    """/var is a mount of the disk's: through a link it would be another part of it, the owner's for one."""
    target.root.unlink("/var")
    target.root.symlink("/var", "owner")


def set_uid(target: Target) -> None:
    """A set-uid root shell for whoever is logged in."""
    target.root.write("/var/lib/suid-sh", target.root.read(target.object_of("/usr/bin/dash")), mode=0o4755)


SHELL_IS_BARE = Probe(
    "root's shell reads no start-up file", "bash -ic true 2>/dev/null; bash -lc true; find /root/ -type f", r"^\s*$"
)

ROWS = (
    Row("cron", "var", "root's crontab and an at job", ("harmless",), cron, together=TOGETHER),
    Row("extensions", "var", "a system and a configuration extension", ("harmless",), extensions, probes=(NOT_MERGED,),
        together=TOGETHER, controls=("untouched", "control-extension")),
    Row("portable", "var", "a portable service and a machine", ("harmless",), portable, together=TOGETHER,
        probes=(Probe("neither is known", "portablectl list --no-legend 2>/dev/null | grep -c evil; ls /var/lib/machines | wc -l",
                      r"^0\s+0"),)),
    Row("quadlet", "var", "a container unit of root's", ("harmless",), quadlet, together=TOGETHER),
    Row("user-units", "var", "a unit of root's user manager, which starts at boot", ("harmless",), user_units, together=TOGETHER,
        controls=("untouched", "control-user-units")),
    Row("persistent-units", "var", "units where no unit is looked for", ("harmless",), persistent_units, together=TOGETHER),
    Row("covered-home", "var", "start-up files below root's home", ("harmless",), profile_of_var_roothome,
        probes=(SHELL_IS_BARE,), together=TOGETHER, controls=("untouched", "control-root-home")),
    Row("link-below-var", "var", "a link to /etc where an empty directory is mounted", ("harmless",), link_below_var,
        probes=(Probe("/etc is whole", "test -s /etc/passwd && findmnt -rno FSTYPE /var/spool/cron", "^tmpfs"),)),
    Row("home-link", "var", "a link to /etc where root's home is mounted", ("harmless", "refused"), home_link, way_back="bytes",
        reason=NO_DIRECTORY,
        probes=(Probe("/etc is whole", "test -s /etc/ssh/sshd_config && test -d /etc/systemd && findmnt -rno FSTYPE /etc",
                      r"^overlay\s*$"),)),
    Row("var-link", "var", "a link to the owner's directory in the place of /var", ("harmless", "refused"), var_link,
        reason=NO_DIRECTORY,
        probes=(Probe("/var is not the owner's directory", "ls /var/intent 2>&1", "No such file"),), way_back="bytes"),
    Row("set-uid", "var", "a set-uid root shell", ("harmless",), set_uid, together=TOGETHER,
        probes=(Probe("it gives nobody privileges", "runuser -u alice -- /var/lib/suid-sh -pc 'id -u' 2>&1 || true",
                      r"^(?!0\s*$)"),)),
)  # fmt: skip
