# SPDX-License-Identifier: Apache-2.0
"""The boot partition, firmware variables, deployments and the owner's word, as root of the running machine can write them."""

from __future__ import annotations

import json

from attack.persistence.model import DENIED, Row
from attack.persistence.payload import both, link, no_program, put, script, service

#: The kernel image of the release that runs.
IMAGE = "u=$(ls /efi/EFI/Linux/freehold-*.efi | grep -v rescue | sort -V | tail -1)\n"
WORD = "freehold.planted=1"
LINE = f"{WORD} systemd.debug_shell systemd.import_credentials=yes"
LOOK = "cat /proc/cmdline"
FOUND = r"freehold\.planted"
#: systemd.hibernate's own form.
PLACE = {
    "uuid": "01234567-89ab-cdef-0123-456789abcdef", "offset": 0, "kernelVersion": "6.12", "osReleaseId": "debian",
    "osReleaseImageId": "server", "osReleaseVersionId": "13", "osReleaseImageVersion": "1",
}  # fmt: skip
VARIABLE = "8cf2644b-4b0b-428f-9387-6d876050dc67"


def _variable(name: str, value: str) -> str:
    """A firmware variable of systemd's: attributes, then UTF-16."""
    code = (
        f"data = b'\\x07\\0\\0\\0' + {value!r}.encode('utf-16-le') + b'\\0\\0'\n"
        f"open('/sys/firmware/efi/efivars/{name}-{VARIABLE}', 'wb', buffering=0).write(data)\n"
    )
    return f"python3 -IS - <<'PLANTED'\n{code}PLANTED\n"


def _entry() -> str:
    entry = f"title Planted\nversion 0\nefi $u\noptions {LINE}\n"
    return (
        f"{IMAGE}mkdir -p /efi/loader/entries\nu=${{u#/efi}}\ncat >/efi/loader/entries/a10.conf <<PLANTED\n{entry}PLANTED\n"
        "printf 'timeout 0\\neditor yes\\nconsole-mode keep\\n' >/efi/loader/loader.conf\n"
    )


def _addon() -> str:
    beside = 'mkdir -p "$u.extra.d" /efi/loader/addons\n'
    return f"{IMAGE}{beside}for f in \"$u.extra.d\" /efi/loader/addons; do printf 'MZ{LINE}' >\"$f/a12.addon.efi\"; done\n"


def _credential() -> str:
    contents = {
        "tmpfiles.extra": "f+ /var/canary/a14-credential 0644 - - - 0 %b",
        "systemd.extra-unit.a14.service": service("a14-credential"),
        "systemd.unit-dropin.multi-user.target": "[Unit]\nWants=a14.service\n",
    }
    return "".join(put(f"/efi/loader/credentials/{name}.cred", content) for name, content in contents.items())


def _inbox() -> str:
    return (
        "sed -e 's/^lock .*/lock open/' -e 's/^serial .*/serial 999/' /sysroot/owner/intent >/run/a113\n"
        "cp /run/a113 /sysroot/inbox/intent\n"
    )


def _deployment() -> str:
    top = "/sysroot/deployments/0123456789abcdef"
    return put(f"{top}/manifest.json", '{"format": "freehold-release-1", "version": "999"}') + put(f"{top}/manifest.json.sig",
        "none")


ROWS = (
    Row("a09-hibernation", "K", "a place that the machine wakes up from",
        _variable("HibernateLocation", json.dumps(PLACE)), control="absent",
        absence="case $(cat /sys/power/disk 2>/dev/null) in ''|*'[disabled]'*) ;; *) exit 1 ;; esac\n"
                "if [ -s /proc/swaps ] && [ \"$(wc -l </proc/swaps)\" -gt 1 ]; then exit 1; fi\n"),
    Row("a10-entry", "B", "another boot entry, and the boot menu's editor", _entry(), look=LOOK, found=FOUND, control="elsewhere",
        covered_by=("entry-options", "loader-conf-editor"), trace='"(entry|loader-conf)"'),
    Row("a11-initramfs", "B", "hooks of initramfs-tools, and an initrd on the boot partition",
        put("/etc/initramfs-tools/hooks/a11-initramfs", script("a11-initramfs"), "755")
        + put("/efi/initrd.img", script("a11-initramfs")), both("a11-initramfs"), control="elsewhere",
        covered_by=("uki-initrd", "entry-initrd"), trace=r"initrd\.img"),
    Row("a12-addon", "B", "add-ons beside the kernel image", _addon(), look=LOOK, found=FOUND, control="elsewhere",
        covered_by=("addon-unsigned", "addon-foreign", "addon-global", "control-addon-signed"), trace='"add-on"'),
    Row("a14-credential", "X", "credentials on the boot partition", _credential(), both("a14-credential"), control="elsewhere",
        covered_by=("credential-global", "smbios-credentials", "control-smbios-credential"), trace='"credential"'),
    Row("a15-floor", "X", "the machine's record of the oldest release that may boot",
        "printf 'raised 0\\n' >/sysroot/owner/floor\n: >/sysroot/owner/a15\n", look="ls /sysroot/owner", found="a15",
        control="elsewhere", covered_by=("floor-file-lowered", "floor-older-release")),
    Row("a23-firmware", "O", "an update of the firmware: below the system", put("/efi/EFI/UpdateCapsule/a23.cap", "planted"),
        control="absent", absence=no_program("flashrom", "fwupdmgr", "fwupdtool", "efibootmgr", "setpci")),
    Row("a110-updates", "X", "services masked and names led elsewhere, so that updates do not come",
        "ln -sfn /dev/null /etc/systemd/system/systemd-timesyncd.service\necho '192.0.2.110 updates.example' >>/etc/hosts\n",
        look="systemctl is-enabled systemd-timesyncd.service || true\ncat /etc/hosts", found=r"masked|192\.0\.2\.110"),
    Row("a111-debug-shell", "B", "systemd's debug shell", link("/usr/lib/systemd/system/debug-shell.service",
        "/etc/systemd/system/sysinit.target.wants/debug-shell.service"), look="systemctl is-active debug-shell.service || true",
        found="^active"),
    Row("a111-emergency", "B", "an emergency shell that asks for no password",
        put("/etc/systemd/system/emergency.service.d/a111.conf", "[Service]\nEnvironment=SYSTEMD_SULOGIN_FORCE=1"),
        look="systemctl show -p Environment emergency.service", found="SULOGIN_FORCE"),
    Row("a111-options", "B", "words for systemd in a firmware variable",
        _variable("SystemdOptions", "systemd.setenv=A111=planted"),
        look="systemctl show-environment", found="A111=planted", control="elsewhere",
        covered_by=("systemd-options", "control-systemd-options")),
    Row("a112-object", "X", "a file of the object store changed",
        "f=$(find /sysroot/repo/objects -name '*.file' -size +8 | head -n 1)\nprintf x | dd of=\"$f\" conv=notrunc\n",
        control="closed", reason=DENIED, covered_by=("object-data", "object-of-pid1", "image-flipped")),
    Row("a113-intent", "X", "another word of the owner's, which the owner did not sign", _inbox(), look="freehold status --json",
        found=r'"state":\s*"open"', control="elsewhere", covered_by=("inbox-other-owner", "inbox-older", "control-intent"),
        trace="ignored: "),
    Row("a113-keychain", "X", "a certificate among those that are believed",
        "cp /usr/lib/freehold/keychain/*.der /run/ && printf x >/usr/lib/freehold/keychain/owner-planted.der\n", control="closed",
        reason="[Rr]ead-only file system"),
    Row("b33-deployment", "B", "a deployment that nobody signed", _deployment(), look=LOOK, found=FOUND, control="elsewhere",
        covered_by=("manifest",), trace="0123456789abcdef"),
    Row("b34-kernel-image", "B", "a kernel image that is no program",
        "printf 'MZplanted' >/efi/EFI/Linux/freehold-0-0123456789abcdee.efi\n",
        look=LOOK, found=FOUND, control="elsewhere", covered_by=("uki-truncated", "uki-unsigned"), trace="0123456789abcdee"),
)  # fmt: skip
