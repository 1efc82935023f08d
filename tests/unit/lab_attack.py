# SPDX-License-Identifier: Apache-2.0
"""A small disk of the reference disk's shape for the tests of the attack suite: GPT, FAT, ext4 with a verity file."""

from __future__ import annotations

from pathlib import Path

from attack.model import Facts, Row, Seen, Truth
from attack.target import ESP_NAME, ROOT_NAME, Target
from lab_pe import program

from freehold.build import rootfs
from freehold.build.disk import ESP_TYPE, LINUX_TYPE
from freehold.build.tools import Tools
from freehold.lock import intent
from freehold.lock.intent import Intent

MIB = 1 << 20
IMAGE = {"2": "a" * 64, "1": "b" * 64}
LINE = "freehold.image={} ro bdev_allow_write_mounted=0 console=ttyS0"
TRUTH = Truth(
    ("2", "1"), IMAGE, {version: LINE.format(digest) for version, digest in IMAGE.items()}, "c" * 32, "d" * 64, 2
)
OBJECTS = ("less", "nano", "vmstat", "slabtop", "pmap", "watch", "podman", "systemd", "dash")
VERITY = bytes(range(256)) * 512  # 128 KiB: its Merkle tree has two levels


def facts(**changes: object) -> Facts:
    values: dict[str, object] = {
        "image": IMAGE["2"], "command_line": LINE.format(IMAGE["2"]), "version": "2", "lock": "locked", "secure_boot": True,
        "keychain": "firmware", "certificates": 2, "machine": "c" * 32, "config": "d" * 64,
    }  # fmt: skip
    return Facts(**{**values, **changes})  # type: ignore[arg-type]


def seen(console: str = "", found: Facts | None = None, stopped: str = "answers", **more: object) -> Seen:
    return Seen(console, found, stopped, 12.0, **more)  # type: ignore[arg-type]


def row(**changes: object) -> Row:
    values: dict[str, object] = {
        "id": "some-row", "area": "uki", "what": "something", "ends": ("harmless",), "change": lambda target: None,
    }  # fmt: skip
    return Row(**{**values, **changes})  # type: ignore[arg-type]


def pe_file() -> bytes:
    """A kernel image and a signature of 16 bytes."""
    contents = {
        ".linux": b"L" * (MIB + 1024), ".osrel": b"ID=freehold\nIMAGE_VERSION=2\n", ".cmdline": LINE.format(IMAGE["2"]).encode(),
        ".initrd": b"I" * 5120,
    }  # fmt: skip
    return program([(name, content, len(content)) for name, content in contents.items()], certificates=b"S" * 16)


def signed_intent(machine: str, owner: object, **changes: object) -> bytes:
    values: dict[str, object] = {
        "machine": machine,
        "serial": 3,
        "lock": "locked",
        "since": 1_800_000_000,
        "config": "d" * 64,
    }
    return intent.sign(Intent(**{**values, **changes}), owner.sign)  # type: ignore[arg-type, attr-defined]


def small_disk(tools: Tools, work: Path, intent_file: bytes) -> Path:
    """96 MiB: what the rows touch, at the paths where they look for it."""
    disk, esp, root = work / "disk.raw", work / "esp.img", work / "root.img"
    esp_size, root_size = 40 * MIB, 48 * MIB
    with disk.open("wb") as file:
        file.truncate(96 * MIB)
    table = (
        f"label: gpt\nstart=2048, size={esp_size // 512}, type={ESP_TYPE}, name={ESP_NAME}\n"
        f"size={root_size // 512}, type={LINUX_TYPE}, name={ROOT_NAME}\n"
    )
    tools.run(["sfdisk", "--quiet", disk], binds=[work], stdin=table.encode())
    with esp.open("wb") as file:
        file.truncate(esp_size)
    tools.run(["mkfs.vfat", "-F", "32", esp], binds=[work])
    tree = work / "esp"
    for folder in ("EFI/Linux", "EFI/BOOT", "loader"):
        (tree / folder).mkdir(parents=True)
    for version, digest in IMAGE.items():
        (tree / f"EFI/Linux/freehold-{version}-{digest[:16]}.efi").write_bytes(pe_file())
        (tree / f"EFI/Linux/freehold-rescue-{version}-{digest[:16]}.efi").write_bytes(pe_file())
    (tree / "EFI/BOOT/BOOTX64.EFI").write_bytes(pe_file())
    tools.run(["mcopy", "-s", "-i", esp, *sorted(tree.iterdir()), "::/"], binds=[work])
    staging, protected = work / "root", []
    for folder in (
        "images",
        "owner/config",
        "owner/etc/3/upper",
        "owner/roothome",
        "inbox",
        "state",
        "var/lib",
        "repo/objects/ee",
    ):
        (staging / folder).mkdir(parents=True)
    for digest in IMAGE.values():
        (work / "plain").write_bytes(VERITY)
        protected.append(
            rootfs.Protected(f"/images/{digest}", rootfs.protect(work / "plain", staging / "images" / digest))
        )
    others = (f"owner/config/{'d' * 64}", *(f"repo/objects/ee/{one}.file" for one in OBJECTS))
    protected += [rootfs.Protected(f"/{name}", rootfs.protect(work / "plain", staging / name)) for name in others]
    for digest in IMAGE.values():
        (staging / "deployments" / digest[:16]).mkdir(parents=True)
        (staging / "deployments" / digest[:16] / "manifest.json").write_text('{"version": "2"}')
    (staging / "owner/intent").write_bytes(intent_file)
    (staging / "owner/id").write_text("c" * 32 + "\n")
    (staging / "owner/provisioned").write_text("{}\n")
    (staging / "state/machine.json").write_text('{"accounts": []}')
    rootfs.make_ext4(tools, staging, root, protected, size=root_size, seed="3" * 8 + "-3333-4333-8333-" + "3" * 12)
    for start, part in ((MIB, esp), (MIB + esp_size, root)):
        with disk.open("r+b") as file, part.open("rb") as source:
            file.seek(start)
            file.write(source.read())
    return disk


def target_of(tools: Tools, work: Path, disk: Path, keys: Path) -> Target:
    return Target(tools, disk, work / "variables.fd", work, TRUTH, keys, work / "library")
