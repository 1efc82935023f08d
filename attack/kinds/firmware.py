# SPDX-License-Identifier: Apache-2.0
"""Firmware variables, boot counters, and what a hypervisor (or the board's SMBIOS) hands over."""

from __future__ import annotations

from attack.kinds.owner import fw_cfg, provisioning
from attack.model import FIRMWARE, HYPERVISOR, Probe, Row
from attack.target import Target, credential, smbios, unit
from attack.variables import LOADER, SYSTEMD, text
from freehold.build.disk import BOOT_LOADER

MARK = "freehold.evil=1"
NO_MARK = Probe("the planted word is not on the command line", f"grep -c {MARK} /proc/cmdline || true", r"^0\s*$")
NO_CREDENTIALS = Probe(
    "no credential is imported",
    "ls -A /run/credentials/@system /run/credentials/@encrypted 2>/dev/null | wc -l",
    r"^0\s*$",
)
TOGETHER = "handed-over"
#: What turns credentials on again, should it reach the command line.
TURN_ON = f"{MARK} systemd.import_credentials=yes"


RESCUED = Probe("the rescue entry runs", "cat /run/freehold/boot.json", r'"rescue": ?true')


def tmpfiles(name: str) -> bytes:
    """Lines for systemd-tmpfiles that leave the canary ``name``. Pure."""
    return f"d /var/canary 0755 root root -\nf /var/canary/{name} 0644 root root - ran\n".encode()


def credentials(name: str) -> list[str]:
    """SMBIOS strings that would give root away in five ways; the unit leaves the canary ``name``. Pure."""
    return [
        credential("systemd.extra-unit.evil-smbios.service", unit(name)),
        credential("systemd.unit-dropin.multi-user.target", b"[Unit]\nWants=evil-smbios.service\n"),
        credential("tmpfiles.extra", tmpfiles(f"{name}.tmpfiles")),
        credential("passwd.hashed-password.root", b"$6$evil$0123456789"),
        credential("ssh.authorized_keys.root", b"ssh-ed25519 AAAA evil\n"),
        credential("fstab.extra", b"tmpfs /mnt tmpfs defaults 0 0\n"),
    ]


def boot_entry(target: Target) -> None:
    target.esp.write("EFI/evil.efi", (target.tools.root / BOOT_LOADER.lstrip("/")).read_bytes())
    target.variables.add_boot_entry("\\EFI\\evil.efi")


def _entry_name(target: Target, version: str) -> str:
    return target.esp.uki(version).rpartition("/")[2].lower()


def default_entry(target: Target) -> None:
    target.variables.set("LoaderEntryDefault", LOADER, text(_entry_name(target, target.previous)))


def one_shot(target: Target) -> None:
    target.variables.set("LoaderEntryOneShot", LOADER, text(_entry_name(target, target.previous)))


def no_such_entry(target: Target) -> None:
    target.variables.set("LoaderEntryDefault", LOADER, text("evil.conf"))


def menu_timeout(target: Target) -> None:
    target.variables.set("LoaderConfigTimeout", LOADER, text("5"))


def systemd_options(target: Target) -> None:
    """What systemd adds to the command line in its own eyes (kernel-command-line(7)); with Secure Boot it must not."""
    target.variables.set("SystemdOptions", SYSTEMD, text("systemd.debug_shell=1 systemd.import_credentials=yes"))


def _count(target: Target, version: str, counter: str) -> None:
    path = target.esp.uki(version)
    target.esp.rename(path, path.split("+")[0].removesuffix(".efi") + f"{counter}.efi")


def counter_exhausted(target: Target) -> None:
    _count(target, target.newest, "+0-3")


def counter_again(target: Target) -> None:
    _count(target, target.newest, "+3")


def counters_all_exhausted(target: Target) -> None:
    for version in (target.newest, target.previous):
        _count(target, version, "+0-3")


def smbios_credentials(target: Target) -> None:
    for one in credentials("smbios-credentials"):
        target.extra += smbios(one)


def stub_command_line(target: Target) -> None:
    target.extra += smbios(f"io.systemd.stub.kernel-cmdline-extra={TURN_ON}")
    for one in credentials("smbios-stub-line"):
        target.extra += smbios(one)


def stub_other_image(target: Target) -> None:
    """An image of the attacker's own choice, named on an extended command line."""
    target.extra += smbios(
        f"io.systemd.stub.kernel-cmdline-extra=freehold.image={target.truth.images[target.previous]}"
    )


def loader_command_line(target: Target) -> None:
    target.extra += smbios(f"io.systemd.boot.kernel-cmdline-extra={TURN_ON}")


def fw_cfg_credentials(target: Target) -> None:
    # QEMU's names have at most 55 characters: units do not fit.
    fw_cfg(target, "opt/io.systemd.credentials/tmpfiles.extra", tmpfiles("fw-cfg-credentials"))
    fw_cfg(target, "opt/io.systemd.credentials/ssh.authorized_keys.root", b"ssh-ed25519 AAAA evil\n")


def fw_cfg_provisioning(target: Target) -> None:
    fw_cfg(target, "opt/com.coreos/config", provisioning("fw-cfg-provisioning"))


ROWS = (
    Row("boot-entry", "firmware", "the boot order leads to an unsigned program first", ("harmless",), boot_entry, who=FIRMWARE),
    Row("default-entry", "firmware", "the previous deployment chosen by a variable, for good", ("harmless", "fallback"),
        default_entry, who=FIRMWARE),
    Row("one-shot-entry", "firmware", "the previous deployment chosen by a variable, once", ("harmless", "fallback"), one_shot,
        who=FIRMWARE),
    Row("no-such-entry", "firmware", "an entry chosen that does not exist", ("harmless",), no_such_entry, who=FIRMWARE),
    Row("menu-timeout", "firmware", "the boot menu shown, to edit the command line", ("harmless",), menu_timeout, who=FIRMWARE,
        probes=(NO_MARK,)),
    Row("systemd-options", "firmware", "words for systemd in a firmware variable", ("harmless",), systemd_options, who=FIRMWARE,
        probes=(Probe("there is no debug shell", "systemctl is-active debug-shell.service || true", "inactive"),),
        controls=("untouched", "control-systemd-options")),
    Row("counter-exhausted", "firmware", "the newest deployment marked as failed", ("fallback",), counter_exhausted),
    Row("counter-again", "firmware", "the newest deployment marked as untried", ("harmless",), counter_again),
    Row("counters-all-exhausted", "firmware", "every deployment marked as failed: the rescue entry starts",
        ("harmless", "fallback"), counters_all_exhausted, probes=(RESCUED,), rescue=True),
    Row("smbios-credentials", "firmware", "credentials in SMBIOS strings: a unit, a password, keys, mounts", ("harmless",),
        smbios_credentials, who=HYPERVISOR, probes=(NO_CREDENTIALS,), together=TOGETHER,
        controls=("untouched", "control-smbios-credential")),
    Row("smbios-stub-line", "firmware", "the command line extended by an SMBIOS string for the stub, with credentials",
        ("harmless", "refused"), stub_command_line, who=HYPERVISOR, probes=(NO_MARK, NO_CREDENTIALS), way_back="bytes",
        reason="the command line is not the signed one", controls=("untouched", "control-smbios-credential")),
    Row("smbios-stub-image", "firmware", "another image named by an SMBIOS string for the stub", ("harmless", "refused"),
        stub_other_image, who=HYPERVISOR, reason="the command line is not the signed one", way_back="bytes"),
    Row("smbios-loader-line", "firmware", "the command line extended by an SMBIOS string for the boot loader", ("harmless",),
        loader_command_line, who=HYPERVISOR, probes=(NO_MARK,), together=TOGETHER),
    Row("fw-cfg-credentials", "firmware", "credentials from QEMU's firmware configuration", ("harmless",), fw_cfg_credentials,
        who=HYPERVISOR, probes=(NO_CREDENTIALS,), together=TOGETHER, controls=("untouched", "control-smbios-credential")),
    Row("fw-cfg-provisioning", "firmware", "a provisioning file for a machine that was provisioned", ("harmless",),
        fw_cfg_provisioning, who=HYPERVISOR, together=TOGETHER, controls=("untouched", "control-provision")),
)  # fmt: skip
