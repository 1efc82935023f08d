# SPDX-License-Identifier: Apache-2.0
"""The unified kernel image: its bytes, its sections, its signature, and whose it is."""

from __future__ import annotations

import dataclasses
import re

from attack import pe
from attack.judge import DENIED
from attack.model import Probe, Row
from attack.target import Target

#: Of the sealed command line, and of the same length.
OLD, NEW = b"bdev_allow_write_mounted=0", b"bdev_allow_write_mounted=1"
FLOOR_STANDS = Probe("the floor is where it was", "cat /run/freehold/boot.json", r'"effective":(?![01]\b)\d')
RELEASE = re.compile(rb"freehold\.release=(\d+)")


#: What firmware says of a program that is none, and what the system that came up says of one that was skipped.
BROKEN = rf"{DENIED}|Load Error|Unsupported|Error loading|Invalid Parameter|cannot read it as a program"


def _flip_middle(target: Target, section: str) -> None:
    data = target.uki()
    target.replace_uki(pe.flipped(data, section, pe.sections(data)[section].raw // 2))


def flip_kernel(target: Target) -> None:
    _flip_middle(target, ".linux")


def flip_initrd(target: Target) -> None:
    _flip_middle(target, ".initrd")


def other_command_line(data: bytes) -> bytes:
    """The image with raw writes below mounted file systems allowed. Pure."""
    return pe.substituted(data, ".cmdline", OLD, NEW)


def command_line(target: Target) -> None:
    target.replace_uki(other_command_line(target.uki()))


def os_release(target: Target) -> None:
    data = target.uki()
    version = f"IMAGE_VERSION={target.newest}".encode()
    target.replace_uki(pe.substituted(data, ".osrel", version, version[:-1] + b"9"))


def header(target: Target) -> None:
    data = target.uki()
    at = pe.sections(data)[".cmdline"].header + 8
    target.replace_uki(pe.patched(data, at, (16).to_bytes(4, "little")))


def appended(target: Target) -> None:
    from freehold.seal import cpio

    data = target.uki()
    more = cpio.archive({"init": cpio.Member(cpio.EXECUTABLE, b"#!/bin/sh\n")})
    target.replace_uki(data + bytes(-len(data) % 512) + more)


def unsigned(target: Target) -> None:
    target.replace_uki(pe.unsigned(target.uki()))


def other_machine(target: Target) -> None:
    target.replace_uki(target.by_stranger(pe.unsigned(target.uki())))


def changed_and_signed(target: Target) -> None:
    target.replace_uki(target.by_stranger(other_command_line(pe.unsigned(target.uki()))))


def empty(target: Target) -> None:
    target.replace_uki(target.uki()[:4096])


def swapped(target: Target) -> None:
    newest, previous = (target.esp.uki(version) for version in (target.newest, target.previous))
    first, second = target.esp.read(newest), target.esp.read(previous)
    target.esp.write(newest, second)
    target.esp.write(previous, first)


def rescue_renamed(target: Target) -> None:
    """The menu sorts by what is in the image and signed, not by its name."""
    identity = target.truth.images[target.newest][:16]
    target.esp.rename(target.esp.rescue(target.newest), f"EFI/Linux/freehold-999-{identity}.efi")


def below_floor(target: Target) -> None:
    found = RELEASE.search(pe.content(target.uki(), ".cmdline"))
    if found is None:
        raise ValueError("the command line has no freehold.release=")
    # To the machine it is all the same whether its releases are too old or the owner's floor is above them.
    raised = target.signed_intent(target.owner, serial=target.intent().serial + 1, floor=int(found[1]) + 1)
    target.root.write("/owner/intent", raised, mode=0o600)


def floor_file_removed(target: Target) -> None:
    """The TPM's copy is left: it counts."""
    if target.root.exists("/owner/floor"):
        target.root.unlink("/owner/floor")
    target.root.write("/owner/floor.gone", b"")


def floor_file_lowered(target: Target) -> None:
    old = target.root.read("/owner/floor") if target.root.exists("/owner/floor") else b"raised 2\n"
    target.root.write("/owner/floor", re.sub(rb"raised \d+", b"raised 1", old), mode=0o600)


def floor_lowered(target: Target) -> None:
    """The floor is part of the signed text: lowering it breaks the signature."""
    standing = target.intent()
    raised = target.signed_intent(target.owner, serial=standing.serial + 1, floor=1)
    target.root.write("/owner/intent", raised.replace(b"floor 1\n", b"floor 0\n"), mode=0o600)


ROWS = (
    Row("uki-kernel", "uki", "one bit of the kernel", ("refused", "fallback"), flip_kernel, reason=DENIED,
        controls=("untouched", "control-no-secure-boot")),
    Row("uki-initrd", "uki", "one bit of the initrd", ("refused", "fallback"), flip_initrd, reason=DENIED),
    Row("uki-command-line", "uki", "a word of the command line", ("refused", "fallback"), command_line, reason=DENIED,
        controls=("untouched", "control-no-secure-boot")),
    Row("uki-os-release", "uki", "the version that the boot loader sorts by", ("refused", "fallback"), os_release,
        reason=DENIED),
    Row("uki-header", "uki", "a section's header: most of the command line cut off", ("refused", "fallback"), header,
        reason=DENIED),
    Row("uki-appended", "uki", "an initrd appended to the file", ("refused", "fallback", "harmless"), appended,
        reason=BROKEN),
    Row("uki-unsigned", "uki", "the signature taken off", ("refused", "fallback"), unsigned, reason=DENIED),
    Row("uki-other-machine", "uki", "another machine's: the same content, signed by another owner's key",
        ("refused", "fallback"), other_machine, reason=DENIED),
    Row("uki-changed-and-signed", "uki", "another command line, signed by another owner's key", ("refused", "fallback"),
        changed_and_signed, reason=DENIED),
    Row("uki-truncated", "uki", "cut off after one page", ("refused", "fallback"), empty, reason=BROKEN),
    Row("uki-swapped", "uki", "the kernel images of two deployments swapped by name", ("harmless", "fallback"), swapped),
    Row("rescue-renamed", "uki", "the rescue image under the name of a newer deployment", ("harmless",), rescue_renamed),
    Row("floor-older-release", "uki", "releases that are older than the floor that the owner signed", ("refused",), below_floor,
        reason="below the rollback floor", way_back="bytes", needs="floor", rescue=True),
    Row("floor-file-removed", "uki", "the machine's own record of the floor removed", ("harmless",), floor_file_removed,
        probes=(FLOOR_STANDS,), needs="floor-tpm"),
    Row("floor-file-lowered", "uki", "the machine's own record of the floor lowered", ("harmless",), floor_file_lowered,
        probes=(FLOOR_STANDS,), needs="floor-tpm"),
    Row("floor-lowered", "uki", "the floor in the owner's intent lowered", ("harmless",), floor_lowered,
        reason="is not believed", factory_etc=True),
)  # fmt: skip


def no_secure_boot(row: Row) -> Row:
    """The same row where no firmware checks signatures."""
    return dataclasses.replace(row, secure_boot=False)
