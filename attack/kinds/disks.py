# SPDX-License-Identifier: Apache-2.0
"""Partitions and disks: the root file system replaced, a second disk, partitions that systemd would find by their type."""

from __future__ import annotations

from pathlib import Path

from attack import gpt
from attack.judge import DENIED
from attack.kinds.loader import MARK
from attack.model import Probe, Row
from attack.target import ROOT_NAME, Target, unit

MIB = 1 << 20
#: The Discoverable Partitions Specification's types.
HOME, SWAP, USR, XBOOTLDR = (
    "933AC7E1-2EB4-4F13-B844-0E14E2AEF915", "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F",
    "8484680C-9521-48C6-9C11-B0720656F69E", "BC13C2FF-59E6-4262-A352-B275FD6F7172",
)  # fmt: skip
ROOT_X86 = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"
GROWN = 96 * MIB
NOT_MOUNTED = Probe(
    "none of them is used", "cat /proc/swaps | wc -l; findmnt -rno TARGET /home /usr /boot | wc -l", r"^1\s+0"
)
IMAGE_REFUSED = r"freehold: the system image \w+ is refused|is refused: |cannot be mounted"


def _ext4(target: Target, file: Path, size: int, label: str, files: dict[str, bytes]) -> None:
    top = target.work / "evil-tree"
    for name, content in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(content)
    top.mkdir(exist_ok=True)
    with file.open("wb") as sink:
        sink.truncate(size)
    target.tools.run(["mkfs.ext4", "-q", "-F", "-O", "verity", "-b", "4096", "-L", label, "-d", top, file],
                     binds=[target.work])  # fmt: skip


def _put(disk: Path, offset: int, file: Path) -> None:
    with disk.open("r+b") as sink, file.open("rb") as source:
        sink.seek(offset)
        while block := source.read(MIB):
            sink.write(block)


def evil_root(target: Target) -> Path:
    """A root file system of the attacker's: the signed image's name, a tree and an owner of the attacker's own."""
    file = target.work / "evil-root.img"
    image = f"images/{target.truth.images[target.newest]}"
    _ext4(target, file, 64 * MIB, "freehold-root", {
        image: bytes(1024) + b"\xe2\xe1\xf5\xe0" + bytes(8192), "owner/id": target.truth.machine.encode() + b"\n",
        "repo/objects/00/evil.file": b"evil", "var/lib/evil": b"evil",
    })  # fmt: skip
    return file


def root_replaced(target: Target) -> None:
    _put(target.disk, target.partitions[ROOT_NAME].start, evil_root(target))


def root_zeroed(target: Target) -> None:
    with target.disk.open("r+b") as disk:
        disk.seek(target.partitions[ROOT_NAME].start)
        disk.write(bytes(4 * MIB))


def second_disk(target: Target) -> None:
    """Another disk with a partition of the same name, in the slot that comes first."""
    file, disk = evil_root(target), target.work / "second.raw"
    with disk.open("wb") as sink:
        sink.truncate(file.stat().st_size + 2 * MIB)
    table = f"label: gpt\nstart=2048, size={file.stat().st_size // 512}, type={ROOT_X86}, name={ROOT_NAME}\n"
    target.tools.run(["sfdisk", "--quiet", disk], binds=[target.work], stdin=table.encode())
    _put(disk, MIB, file)
    target.extra += [
        "-drive",
        f"if=none,id=disk1,format=raw,file={disk}",
        "-device",
        "virtio-blk-pci,drive=disk1,addr=0x1e",
    ]


def reordered(target: Target) -> None:
    """The same partitions under other numbers."""
    dump = target.tools.run(["sfdisk", "--dump", target.disk], binds=[target.disk.parent]).text
    head = [line for line in dump.splitlines() if not line.startswith(str(target.disk))]
    rows = [line.partition(" : ")[2] for line in dump.splitlines() if line.startswith(str(target.disk))]
    text = (
        "\n".join([*head, *(f"{target.disk}{number} : {row}" for number, row in enumerate(reversed(rows), start=1))])
        + "\n"
    )
    target.tools.run(
        ["sfdisk", "--quiet", "--force", "--no-reread", target.disk], binds=[target.disk.parent], stdin=text.encode()
    )


def grow(target: Target, rows: str) -> dict[str, gpt.Partition]:
    """Make the disk larger and append partitions; returns all of them."""
    with target.disk.open("r+b") as disk:
        disk.truncate(disk.seek(0, 2) + GROWN)
    binds = [target.disk.parent]
    target.tools.run(["sfdisk", "--quiet", "--no-reread", "--relocate", "gpt-bak-std", target.disk], binds=binds)
    target.tools.run(["sfdisk", "--quiet", "--no-reread", "--append", target.disk], binds=binds, stdin=rows.encode())
    return gpt.load(target.disk)


def discoverable(target: Target) -> None:
    """A home, a /usr, a root and a swap that systemd would find by their types."""
    found = grow(target, "".join(
        f"size=20MiB, type={kind}, name={name}\n"
        for kind, name in ((HOME, "evil-home"), (USR, "evil-usr"), (ROOT_X86, "evil-root"), (SWAP, "evil-swap"))
    ))  # fmt: skip
    file = target.work / "evil-part.img"
    _ext4(target, file, 16 * MIB, "evil", {
        "lib/systemd/system/evil.service": unit("discoverable"), "alice/.profile": b"echo evil\n",
        "lib/systemd/system/sysinit.target.d/evil.conf": b"[Unit]\nWants=evil.service\n",
    })  # fmt: skip
    for name in ("evil-home", "evil-usr", "evil-root"):
        _put(target.disk, found[name].start, file)
    swap = bytearray(2 * MIB)
    swap[4086:4096] = b"SWAPSPACE2"
    raw = target.work / "swap.img"
    raw.write_bytes(bytes(swap))
    _put(target.disk, found["evil-swap"].start, raw)


def extended_boot(target: Target) -> None:
    """A second boot partition with an unsigned kernel image that sorts first."""
    from attack import pe

    found = grow(target, f"size=80MiB, type={XBOOTLDR}, name=evil-boot\n")["evil-boot"]
    file = target.work / "boot.img"
    with file.open("wb") as sink:
        sink.truncate(found.size)
    data = pe.unsigned(target.uki())
    version = f"IMAGE_VERSION={target.newest}".encode()
    data = pe.substituted(data, ".osrel", version, version[:-1] + b"9")
    local = target.work / "evil-uki.efi"
    local.write_bytes(data)
    target.tools.run(["mkfs.vfat", "-F", "32", file], binds=[target.work])
    target.tools.run(["mmd", "-i", file, "::/EFI", "::/EFI/Linux"], binds=[target.work])
    target.tools.run(
        ["mcopy", "-i", file, local, "::/EFI/Linux/freehold-999-0000000000000000.efi"], binds=[target.work]
    )
    _put(target.disk, found.start, file)


ROWS = (
    Row("root-replaced", "disk", "the root file system replaced by the attacker's, same names", ("refused",), root_replaced,
        reason=IMAGE_REFUSED, way_back="bytes"),
    Row("root-zeroed", "disk", "the root file system's beginning overwritten", ("refused",), root_zeroed,
        reason=r"the root partition .* cannot be mounted", way_back="bytes"),
    Row("second-disk", "disk", "a second disk whose partition has the root's name", ("refused", "harmless"), second_disk,
        reason=r"is refused|two partitions", way_back="bytes"),
    Row("reordered", "disk", "the partitions under other numbers", ("harmless",), reordered),
    Row("discoverable", "disk", "home, /usr, root and swap partitions that systemd finds by type", ("harmless",), discoverable,
        probes=(NOT_MOUNTED,)),
    Row("extended-boot", "disk", "a second boot partition with an unsigned kernel image that sorts first", ("refused",
        "fallback"), extended_boot, reason=DENIED, probes=(
            Probe("the planted word is not on the command line", f"grep -c {MARK} /proc/cmdline || true", r"^0\s*$"),
        )),
)  # fmt: skip
