# SPDX-License-Identifier: Apache-2.0
"""The boot loader, its configuration, and what may lie beside it on the boot partition."""

from __future__ import annotations

from attack.judge import DENIED
from attack.model import Probe, Row
from attack.target import Target, unit
from freehold.build.disk import BOOT_LOADER
from freehold.keys import efi

LOADER = "EFI/BOOT/BOOTX64.EFI"
ENTRY = "loader/entries/evil.conf"
SIDE = "beside-the-uki"
MARK = "freehold.evil=1"
NOTHING_FOUND = rf"{DENIED}|No bootable option|BdsDxe: failed to (?:load|start)|BdsDxe: No bootable|Not Found"
NO_MARK = Probe("the planted word is not on the command line", f"grep -c {MARK} /proc/cmdline || true", r"^0\s*$")
EVIL_LINE = f"{MARK} init=/bin/sh systemd.debug_shell systemd.import_credentials=yes"


def _unsigned_loader(target: Target) -> bytes:
    return (target.tools.root / BOOT_LOADER.lstrip("/")).read_bytes()


def loader_unsigned(target: Target) -> None:
    target.esp.write(LOADER, _unsigned_loader(target))


def loader_foreign(target: Target) -> None:
    target.esp.write(LOADER, target.by_stranger(_unsigned_loader(target)))


def loader_flipped(target: Target) -> None:
    data = bytearray(target.esp.read(LOADER))
    data[len(data) // 2] ^= 1
    target.esp.write(LOADER, bytes(data))


def esp_wiped(target: Target) -> None:
    esp = target.partitions["freehold-esp"]
    with target.disk.open("r+b") as disk:
        disk.seek(esp.start)
        for _ in range(esp.size >> 20):
            disk.write(bytes(1 << 20))


def loader_conf(target: Target) -> None:
    target.esp.write("loader/loader.conf", b"timeout 0\neditor yes\nauto-firmware yes\nconsole-mode keep\n")


def _entry(target: Target, lines: str) -> None:
    text = f"title Evil\nsort-key 0\nversion 999999\n{lines}"
    target.esp.write(ENTRY, text.encode())
    target.esp.write("loader/loader.conf", b"timeout 0\ndefault evil.conf\n")


def entry_options(target: Target) -> None:
    path = target.esp.uki(target.newest).replace("EFI/Linux", "/EFI/Linux")
    _entry(target, f"efi {path}\noptions {EVIL_LINE}\n")


def entry_initrd(target: Target) -> None:
    from freehold.seal import cpio

    script = b"#!/bin/sh\necho evil\n"
    target.esp.write("evil.cpio", cpio.archive({"init": cpio.Member(cpio.EXECUTABLE, script)}))
    path = target.esp.uki(target.newest).replace("EFI/Linux", "/EFI/Linux")
    _entry(target, f"linux {path}\ninitrd /evil.cpio\noptions {EVIL_LINE}\n")


def entry_kernel(target: Target) -> None:
    from attack import pe

    uki = target.uki()
    target.esp.write("evil/vmlinuz", pe.content(uki, ".linux"))
    target.esp.write("evil/initrd", pe.content(uki, ".initrd"))
    _entry(target, f"linux /evil/vmlinuz\ninitrd /evil/initrd\noptions {pe.content(uki, '.cmdline').decode()} {MARK}\n")


def entry_devicetree(target: Target) -> None:
    target.esp.write("evil.dtb", b"\xd0\x0d\xfe\xed" + bytes(60))
    path = target.esp.uki(target.newest).replace("EFI/Linux", "/EFI/Linux")
    _entry(target, f"efi {path}\ndevicetree /evil.dtb\n")


def _beside(target: Target, name: str, data: bytes) -> None:
    target.esp.write(f"{target.esp.uki(target.newest)}.extra.d/{name}", data)


def addon_unsigned(target: Target) -> None:
    _beside(target, "unsigned.addon.efi", target.addon(EVIL_LINE))


def addon_foreign(target: Target) -> None:
    _beside(target, "foreign.addon.efi", target.by_stranger(target.addon(EVIL_LINE)))


def addon_global(target: Target) -> None:
    target.esp.write("loader/addons/global.addon.efi", target.by_stranger(target.addon(EVIL_LINE)))


def credential_beside(target: Target) -> None:
    _beside(target, "systemd.extra-unit.evil.service.cred", unit("credential-beside"))


def credential_global(target: Target) -> None:
    target.esp.write("loader/credentials/systemd.extra-unit.evil2.service.cred", unit("credential-global"))


def extension(name: str, kind: str) -> bytes:
    """Something with an extension image's name and an EROFS's magic number; it is not to be looked at anyway."""
    data = bytearray(1 << 20)
    data[1024:1028] = b"\xe2\xe1\xf5\xe0"
    data[2048 : 2048 + len(name)] = f"{name}{kind}".encode()[: len(name)]
    return bytes(data)


def extensions_beside(target: Target) -> None:
    for kind in ("sysext", "confext"):
        _beside(target, f"evil.{kind}.raw", extension("evil", kind))


def drivers(target: Target) -> None:
    target.esp.write("EFI/systemd/drivers/evilx64.efi", _unsigned_loader(target))


def enrolment_keys(target: Target) -> None:
    stranger = target.other_owner
    for name in efi.VARIABLES:
        lists = efi.certificate_list(stranger.certificate_der(), efi.OWNER)
        update = efi.variable_update(name, lists, 1_900_000_000, stranger.sign_pkcs7)
        target.esp.write(f"loader/keys/auto/{name}.auth", update)
    target.esp.write("loader/loader.conf", b"timeout 0\neditor no\nconsole-mode keep\nsecure-boot-enroll force\n")


def random_seed(target: Target) -> None:
    target.esp.write("loader/random-seed", b"\x41" * 512)


ROWS = (
    Row("loader-unsigned", "loader", "the boot loader replaced by an unsigned one", ("refused",), loader_unsigned,
        reason=NOTHING_FOUND, way_back="bytes"),
    Row("loader-foreign", "loader", "the boot loader signed by a stranger's key", ("refused",), loader_foreign,
        reason=NOTHING_FOUND, way_back="bytes"),
    Row("loader-flipped", "loader", "one bit of the signed boot loader", ("refused",), loader_flipped,
        reason=NOTHING_FOUND, way_back="bytes"),
    Row("esp-wiped", "loader", "the boot partition overwritten with zeros", ("refused",), esp_wiped,
        reason=NOTHING_FOUND, way_back="bytes"),
    Row("loader-conf-editor", "loader", "loader.conf with the command line editor on", ("harmless",), loader_conf,
        probes=(NO_MARK,)),
    Row("entry-options", "loader", "a boot entry that starts the signed image with init=/bin/sh", ("harmless",), entry_options,
        probes=(NO_MARK,), controls=("untouched", "control-addon-signed")),
    Row("entry-initrd", "loader", "a boot entry with another initrd for the signed image", ("refused", "harmless"), entry_initrd,
        reason=rf"{DENIED}|Error registering initrd|Already started",
        probes=(NO_MARK,)),
    Row("entry-kernel", "loader", "a boot entry with the bare kernel and a command line of its own", ("refused",), entry_kernel,
        reason=DENIED),
    Row("entry-devicetree", "loader", "a boot entry with a device tree", ("harmless",), entry_devicetree, probes=(NO_MARK,)),
    Row("addon-unsigned", "loader", "an unsigned add-on beside the kernel image", ("harmless",), addon_unsigned,
        probes=(NO_MARK,), together=SIDE, controls=("untouched", "control-addon-signed")),
    Row("addon-foreign", "loader", "an add-on signed by a stranger beside the kernel image", ("harmless",), addon_foreign,
        probes=(NO_MARK,), together=SIDE, controls=("untouched", "control-addon-signed")),
    Row("addon-global", "loader", "an add-on signed by a stranger for every kernel image", ("harmless",), addon_global,
        probes=(NO_MARK,), together=SIDE, controls=("untouched", "control-addon-signed")),
    Row("credential-beside", "loader", "a credential beside the kernel image that brings a unit", ("harmless",),
        credential_beside, together=SIDE, controls=("untouched", "control-smbios-credential")),
    Row("credential-global", "loader", "a credential for every kernel image that brings a unit", ("harmless",),
        credential_global, together=SIDE, controls=("untouched", "control-smbios-credential")),
    Row("extensions-beside", "loader", "extension images beside the kernel image", ("harmless",), extensions_beside,
        probes=(Probe("no extension is merged", "ls -A /run/extensions /run/confexts 2>/dev/null; "
                      "findmnt -rno SOURCE /usr | grep -c sysext || true", r"^0\s*$"),), together=SIDE),
    Row("firmware-driver", "loader", "an unsigned firmware driver where the boot loader looks", ("harmless",), drivers,
        together=SIDE),
    Row("enrolment-keys", "loader", "a stranger's keys where the boot loader enrols from", ("harmless",), enrolment_keys),
    Row("random-seed", "loader", "a random seed that the attacker knows", ("harmless",), random_seed, together=SIDE),
)  # fmt: skip
