# SPDX-License-Identifier: Apache-2.0
"""What a rescue shows before anybody proved anything: the system's state, and nothing of its users."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from freehold import run
from freehold.device import loader, status
from freehold.device.sysroot import Sysroot, read_text
from freehold.errors import FreeholdError
from freehold.keys.verify import Keychain
from freehold.rescue import esp
from freehold.update.manifest import UKI_LIMIT

_VERSION = re.compile(r'^IMAGE_VERSION="?([0-9A-Za-z.~^_-]{1,64})"?$', re.MULTILINE)
_RELEASE = re.compile(r"(?:^|\s)freehold\.release=([0-9]{1,16})(?=\s|\Z)")
MAX_LINES = 12
_OURS = re.compile(r"freehold: (.{1,300})")


def gather(sysroot: Sysroot, *, kernel_log: str = "") -> dict[str, object]:
    """The state as data (schema ``freehold-rescue-state-1``). ``kernel_log``: dmesg's text."""
    record = sysroot.boot_record()
    found = _VERSION.search(read_text(sysroot.system / "usr/lib/os-release", 64 << 10))
    intent = record.get("intent")
    try:
        rows = [f"{entry.version} {entry.id} {entry.state}" for entry in loader.listing(sysroot.esp)]
    except (OSError, FreeholdError):
        rows = None
    return {
        "schema": "freehold-rescue-state-1",
        "rescue": record.get("rescue") is True,
        "version": found[1] if found else "unknown",
        "booted": sysroot.booted()[:16],
        "secure_boot": sysroot.secure_boot(),
        "keychain": [f"{row['role']}-{row['name']}" for row in status.keychain_of(sysroot) if not row["revoked"]],
        "intent": intent if isinstance(intent, dict) else {},
        "floor": floor_of(record),
        "deployments": [f"{one.manifest.version} {one.id}" for one in sysroot.all_deployments()],
        "entries": rows,
        "messages": messages(kernel_log),
        "refused": refused(read_text(sysroot.system / "run/freehold/last-refusal", 4096)),
    }


def floor_of(record: Mapping[str, object]) -> int | None:
    """The rollback floor that was in force at this boot, from the boot record: a number, or where its parts are told
    ``effective``. ``None`` when the record has none. Pure.
    """
    floor = record.get("floor")
    number = floor.get("effective") if isinstance(floor, dict) else floor
    return number if isinstance(number, int) and not isinstance(number, bool) else None


def release_of(cmdline: str) -> int:
    """The number of the running release on the signed command line, the last one there; 0 without one. Pure."""
    found = _RELEASE.findall(cmdline)
    return int(found[-1]) if found else 0


def refused(text: str) -> list[str]:
    """What did not boot before this start: lines of entry, tab, reason, as the early step leaves them. Pure."""
    pairs = [line.partition("\t") for line in text.splitlines()]
    return [f"{entry}: {reason}"[:300] for entry, tab, reason in pairs if tab][-MAX_LINES:]


def messages(kernel_log: str) -> list[str]:
    """What the early step and the kernel's log have of ours, last lines last. Pure."""
    return [match[1] for match in _OURS.finditer(kernel_log)][-MAX_LINES:]


def read_kernel_log() -> str:
    """The kernel's messages of this boot."""
    return run.run(["dmesg", "--notime"], check=False, timeout=20).text[-(1 << 20) :]


def text(data: dict[str, object]) -> str:
    """``data`` of :func:`gather` for a console of eighty columns."""
    intent = data["intent"] if isinstance(data["intent"], dict) else {}
    lines = [
        f"Freehold {data['version']}, deployment {data['booted']}",
        f"  Secure Boot  {'on' if data['secure_boot'] else status.NOT_VERIFIED}",
        f"  keychain     {', '.join(_words(data['keychain'])) or 'empty'}",
        f"  intent       {intent.get('state', 'unknown')}: {intent.get('lock', 'unknown')}, number {intent.get('serial', 0)}",
    ]
    if isinstance(data["floor"], int):
        lines.append(f"  floor        {data['floor']}")
    lines += [f"  deployment   {row}" for row in _words(data["deployments"])]
    rows = data["entries"]
    lines += (
        [f"  boot entry   {row}" for row in _words(rows)] if rows is not None else ["  boot entries cannot be read"]
    )
    lines += [f"  refused      {line}" for line in _words(data["refused"])]
    lines += [f"  said         {line}" for line in _words(data["messages"])]
    return "\n".join(lines)


def _words(value: object) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else []


def verify(sysroot: Sysroot, keychain: Keychain) -> list[str]:
    """Check every deployment: signature, image as the kernel measures it, boot images; one line each."""
    good, complaints = esp.genuine(sysroot, keychain)
    lines = [f"BAD   {text}" for text in complaints]
    found = esp.entries(sysroot.esp)
    for deployment in good:
        manifest = deployment.manifest
        faults = []
        if _measured(sysroot, sysroot.images / manifest.image_digest) != manifest.image_digest:
            faults.append("its image is missing or not the one that was signed")
        for name, wanted in esp.kernel_images(manifest):
            if esp.sha256(sysroot.deployments / deployment.id / name, UKI_LIMIT) != wanted.sha256:
                faults.append(f"no sound copy of its {'boot' if name == 'uki.efi' else 'rescue'} image beside its manifest")
        mine = [entry for entry in found if entry.id == deployment.id]
        if not any(
            esp.sha256(sysroot.esp / loader.LINUX / one.name, UKI_LIMIT) == manifest.uki.sha256 for one in mine
        ):
            faults.append("no sound boot image on the boot partition")
        rescue = sysroot.esp / loader.LINUX / loader.Rescue(manifest.version, manifest.id).name
        if esp.sha256(rescue, UKI_LIMIT) != manifest.rescue.sha256:
            faults.append("no sound rescue image on the boot partition")
        mark = "BAD   " if faults else "good  "
        lines.append(f"{mark}{manifest.version} ({deployment.id}){': ' if faults else ''}{'; '.join(faults)}")
    return lines or ["BAD   there is no deployment"]


def _measured(sysroot: Sysroot, path: Path) -> str:
    """The digest that the kernel enforces for the file, "" when a block of it does not read."""
    try:
        with path.open("rb") as file:
            while file.read(1 << 20):
                pass
        return (sysroot.verity.measure(path) or b"").hex()
    except (OSError, FreeholdError):
        return ""
