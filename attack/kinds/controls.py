# SPDX-License-Identifier: Apache-2.0
"""The controls: an untouched machine boots, and each plant works where it may. A refusal means nothing without them."""

from __future__ import annotations

from attack.kinds import firmware, owner, uki, var
from attack.model import Probe, Row
from attack.target import Target, smbios
from attack.variables import LOADER, text

WORD = "freehold.control=1"
ON_LINE = Probe("a signed add-on's word is on the command line", f"grep -c {WORD} /proc/cmdline", "^1")


def _fires(what: str, name: str, before: str = "true") -> Probe:
    return Probe(what, f"{before}; cat /var/canary/{name}", "^0")


def untouched(target: Target) -> None:
    """Everything that rows do, to no effect: read and write back, flip and flip again, add and remove."""
    target.replace_uki(target.uki())
    target.esp.write("EFI/scratch/file", b"x")
    target.esp.delete("EFI/scratch/file")
    target.root.write("/var/scratch", b"x")
    target.root.unlink("/var/scratch")
    for _ in range(2):
        target.root.flip(target.image(target.newest), 1200)
    target.variables.set("FreeholdControl", LOADER, text("1"))
    target.root.write("/owner/intent", target.standing(), mode=0o600)
    target.extra += smbios("freehold.control=nobody reads this")


def signed_addon(target: Target) -> None:
    path = f"{target.esp.uki(target.newest)}.extra.d/control.addon.efi"
    target.esp.write(path, target.by_vendor(target.addon(WORD)))


def smbios_credential(target: Target) -> None:
    """Credentials, and the vendor's own word that they are to be imported."""
    path = f"{target.esp.uki(target.newest)}.extra.d/control.addon.efi"
    target.esp.write(path, target.by_vendor(target.addon("systemd.import_credentials=yes")))
    for one in firmware.credentials("control-smbios"):
        target.extra += smbios(one)


def provision(target: Target) -> None:
    target.root.unlink("/owner/provisioned")
    owner.fw_cfg(target, "opt/com.coreos/config", owner.provisioning("control-provision"))


def etc_upper(target: Target) -> None:
    owner.etc_upper(target, 0, "control-etc")


def root_home(target: Target) -> None:
    target.root.write("/owner/roothome/.bashrc", b"mkdir -p /var/canary; id -u > /var/canary/control-home\n")


def user_units(target: Target) -> None:
    var.user_units(target)


def unsigned_line(target: Target) -> None:
    target.replace_uki(uki.other_command_line(target.uki()))


ROWS = (
    Row("untouched", "control", "nothing changed, by every tool that the rows use", ("harmless",), untouched, controls=()),
    Row("control-addon-signed", "control", "an add-on signed by the vendor counts", ("effective",), signed_addon, controls=(),
        probes=(ON_LINE,), base="open"),
    Row("control-smbios-credential", "control", "a credential is a way in once the command line imports them", ("effective",),
        smbios_credential, controls=(), base="open",
        probes=(_fires("the unit from SMBIOS ran as root", "control-smbios"),)),
    Row("control-provision", "control", "a machine without a provisioning record is provisioned", ("effective",), provision,
        controls=(), base="open", probes=(_fires("the provisioned unit ran as root", "control-provision"),)),
    Row("control-etc-upper", "control", "a unit in the writable layer of an open machine's /etc starts", ("effective",),
        etc_upper, controls=(), base="open", probes=(_fires("the planted unit ran as root", "control-etc"),)),
    Row("control-root-home", "control", "an open machine's root reads the start-up file", ("effective",), root_home, controls=(),
        base="open", probes=(_fires("the start-up file ran", "control-home", "bash -ic true 2>/dev/null"),)),
    Row("control-user-units", "control", "on an open machine root's user manager starts the unit", ("effective",), user_units,
        controls=(), base="open", probes=(_fires("the user unit ran as root", "user-units", "sleep 5"),)),
    Row("control-extension", "control", "an open machine merges the extension when it is told to", ("effective",), var.extensions,
        controls=(), base="open",
        probes=(Probe("the extension's file is in /usr", "systemd-sysext merge >/dev/null 2>&1; cat /usr/lib/evil", "evil"),)),
    Row("control-intent", "control", "the owner's own unlock, left in the inbox from outside, opens the machine", ("effective",),
        owner.inbox_newer, controls=(),
        probes=(Probe("the machine is open", "freehold status --json", r'"state":\s*"open"'),)),
    Row("control-no-secure-boot", "control", "without Secure Boot the changed command line boots", ("effective",), unsigned_line,
        controls=(), base="open", secure_boot=False,
        probes=(Probe("the changed word is in force", "cat /proc/cmdline", "bdev_allow_write_mounted=1"),)),
    Row("control-systemd-options", "control", "without Secure Boot systemd obeys the variable", ("effective",),
        firmware.systemd_options, controls=(), secure_boot=False, base="open",
        probes=(Probe("there is a debug shell", "systemctl is-active debug-shell.service || true", r"^active"),)),
)  # fmt: skip
