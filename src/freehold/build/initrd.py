# SPDX-License-Identifier: Apache-2.0
"""The initrd: the early-boot program, the keychain, and the few kernel modules that reach the disk."""

from __future__ import annotations

import bz2
import fnmatch
import gzip
import lzma
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from freehold.build.tools import Tools
from freehold.errors import FreeholdError
from freehold.seal import cpio

#: Loaded at every boot: the sealed tree's own file systems, and what reads a provisioning file.
ALWAYS = ("erofs", "overlay", "qemu_fw_cfg", "efivarfs")
#: For fs-verity, where the processor has SHA instructions (feature 9*32+29). Without them the module's vector
#: code gains little, and loses where vectors are emulated.
HASH, HASH_FEATURE = "sha256_ssse3", "feature:*013D*"
#: Loaded when a device asks: what disks can hang on. Patterns over module names.
STORAGE = (
    "virtio_blk", "virtio_scsi", "virtio_pci", "virtio_mmio", "nvme", "ahci", "ata_piix", "sd_mod", "uas", "usb_storage",
    "xhci_pci", "ehci_pci", "mmc_block", "sdhci_pci", "sdhci_acpi", "mptspi", "mpt3sas", "megaraid_sas", "vmw_pvscsi",
    "hv_storvsc", "hv_vmbus", "xen_blkfront", "ufshcd_pci", "vmd",
)  # fmt: skip


@dataclass(frozen=True)
class ModuleSet:
    """The modules of an initrd: files to pack (base name → path) and the rules for the early step."""

    files: dict[str, str]
    rules: str


def normal(name: str) -> str:
    """A module's name as aliases spell it. Pure."""
    return name.replace("-", "_")


def module_name(path: str) -> str:
    """``kernel/fs/erofs/erofs.ko.xz`` → ``erofs``. Pure."""
    return normal(Path(path).name.split(".ko")[0])


def parse_dependencies(text: str) -> dict[str, tuple[str, ...]]:
    """``modules.dep``: module path → its dependencies, innermost last. Pure."""
    table = {}
    for line in text.splitlines():
        path, _, rest = line.partition(":")
        table[path.strip()] = tuple(rest.split())
    return table


def select(dependencies: Mapping[str, Sequence[str]], aliases: Iterable[str]) -> ModuleSet:
    """Choose modules and write the early step's rules. Pure; modules built into the kernel are simply absent."""
    by_name = {module_name(path): path for path in dependencies}
    files: dict[str, str] = {}

    def chain(name: str) -> str:
        path = by_name[name]
        ordered = [*reversed(list(dependencies[path])), path]
        for each in ordered:
            files[module_name(each) + ".ko"] = each
        return " ".join(module_name(each) + ".ko" for each in ordered)

    rules = [f"! {chain(name)}" for name in ALWAYS if name in by_name]
    wanted = {name for name in by_name if any(fnmatch.fnmatch(name, pattern) for pattern in STORAGE)}
    for line in aliases:
        words = line.split()
        if len(words) != 3 or words[0] != "alias":
            continue
        if normal(words[2]) in wanted or (normal(words[2]) == HASH and words[1].endswith(HASH_FEATURE)):
            rules.append(f"{words[1]} {chain(normal(words[2]))}")
    return ModuleSet(files, "\n".join(rules) + "\n")


def decompress(name: str, data: bytes) -> bytes:
    """A module's bytes as the kernel wants them (its signature is at the end and stays). Pure."""
    if name.endswith(".xz"):
        return lzma.decompress(data)
    if name.endswith(".gz"):
        return gzip.decompress(data)
    if name.endswith(".bz2"):
        return bz2.decompress(data)
    return data


def members(tree: Path, kernel: str, keychain: Sequence[tuple[str, bytes]]) -> dict[str, cpio.Member]:
    """What the initrd holds; ``keychain`` is file names with contents.

    Raises :class:`FreeholdError` when the tree lacks a part.
    """
    home = tree / "usr/lib/modules" / kernel
    early = tree / "usr/lib/freehold/early"
    if not early.is_file():
        raise FreeholdError("the tree has no early-boot program", hint="the recipe's packages must include freehold")
    modules = select(
        parse_dependencies((home / "modules.dep").read_text()), (home / "modules.alias").read_text().splitlines()
    )
    packed = {"init": cpio.Member(cpio.EXECUTABLE, early.read_bytes())}
    packed.update({f"keychain/{name}": cpio.Member(cpio.REGULAR, content) for name, content in keychain})
    packed["modules/load"] = cpio.Member(cpio.REGULAR, modules.rules.encode())
    for name, path in modules.files.items():
        packed[f"modules/{name}"] = cpio.Member(cpio.REGULAR, decompress(path, (home / path).read_bytes()))
    for directory in ("dev", "proc", "run", "sys"):
        packed[directory] = cpio.Member(cpio.DIRECTORY)
    return packed


def write_initrd(tools: Tools, packed: Mapping[str, cpio.Member], target: Path) -> None:
    """Write the compressed archive. One thread: zstd's output must not depend on the machine."""
    done = tools.run(["zstd", "-q", "-19", "--single-thread", "-c"], stdin=cpio.archive(packed))
    target.write_bytes(done.stdout)
