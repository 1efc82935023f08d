# SPDX-License-Identifier: Apache-2.0
"""What may lie on the boot partition, and what that makes of the rest. Pure.

The places are those that systemd-boot 257 and its stub look at (systemd-boot(7), systemd-stub(7), loader.conf(5)): the
boot partition is FAT, root can write it, and firmware checks programs there only with Secure Boot on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from freehold.device.verify_findings import BOOT, Finding, deviation, note

MAX_FILES = 10_000
MAX_DEPTH = 8
LOADER_CONF = "loader/loader.conf"
LOADER_CONF_LIMIT = 64 << 10
LOADERS = ("EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi")
#: Files that belong here, in lower case: FAT does not tell cases apart.
_KNOWN = frozenset(
    name.lower()
    for name in (*LOADERS, LOADER_CONF, "loader/entries.srel", "loader/random-seed")
)  # fmt: skip
_ENROLMENT = re.compile(r"loader/keys/auto/(?:pk|kek|db|dbx)\.auth")
_ENTRY = re.compile(r"efi/linux/[^/]+\.efi")
_SCRATCH = "efi/freehold/"
#: Directory: what a file in it does. The first that fits counts.
_DANGEROUS = (
    (re.compile(r"efi/linux/[^/]+\.extra\.d/"), "add-on", "is read by the kernel image beside it"),
    (re.compile(r"loader/addons/"), "add-on", "is read by every kernel image"),
    (re.compile(r"loader/credentials/"), "credential", "is handed to the system at boot"),
    (re.compile(r"loader/entries/"), "entry", "is a boot entry of its own"),
    (re.compile(r"loader/keys/"), "keys", "is offered to the firmware in setup mode"),
    (re.compile(r"efi/systemd/drivers/"), "driver", "is loaded by the boot loader"),
    (re.compile(r"efi/linux/"), "foreign-file", "lies among the boot entries"),
    (re.compile(r"efi/(?:boot|systemd)/"), "foreign-file", "lies beside the boot loader"),
    (re.compile(r"loader/"), "foreign-file", "lies among the boot loader's files"),
)
_PROGRAM = re.compile(r".*\.(?:efi|nsh)")
#: UAPI "Discoverable Partitions": the second partition on the boot partition's disk where the boot loader looks for entries.
XBOOTLDR = "bc13c2ff-59e6-4262-a352-b275fd6f7172"
_REMOVE = "nobody but Freehold should write here; look at it, then remove it"

#: What ends a line, or the file, for one reader and not for the other: the loader knows NUL, line feed and carriage return.
_ODD = re.compile(rb"[^\t\n\r -~]")
#: loader.conf: key and the values that we believe, the usual one first; ``None``: any.
_CONF: dict[str, tuple[str, ...] | None] = {
    "timeout": None,
    "editor": ("no", "0", "false", "off", "n", "f"),
    "console-mode": None,
    "secure-boot-enroll": ("off", "manual", "if-safe", "force"),
    "beep": None,
    "auto-entries": None,
    "auto-firmware": None,
    "auto-reboot": None,
    "auto-poweroff": None,
}


def judge_files(files: Iterable[str], entries: Iterable[str]) -> list[Finding]:
    """Findings about the boot partition's ``files`` (relative paths); ``entries`` are names of ours in EFI/Linux.

    Entries themselves are the deployments' business.
    """
    ours = {f"efi/linux/{name}".lower() for name in entries}
    found: list[Finding] = []
    for path in sorted(files):
        low = path.lower()
        if low in _KNOWN or low in ours or _ENROLMENT.fullmatch(low):
            continue
        if low.startswith(_SCRATCH):
            found.append(note("leftover", BOOT, path, "", "an update was interrupted", "`freehold cleanup` removes it"))
        elif _ENTRY.fullmatch(low):
            found.append(
                deviation(
                    "foreign-entry", BOOT, path, "entries of Freehold only", "a boot entry of somebody else", _REMOVE
                )
            )
        elif row := next((row for row in _DANGEROUS if row[0].match(low)), None):
            found.append(deviation(row[1], BOOT, path, "no such file", f"a file that {row[2]}", _REMOVE))
        elif _PROGRAM.fullmatch(low):
            found.append(
                deviation("foreign-program", BOOT, path, "no such file", "a program that firmware can start", _REMOVE)
            )
        else:
            found.append(note("foreign-file", BOOT, path, "", "not Freehold's; nothing here reads it"))
    return found


def judge_partitions(records: Mapping[str, str], boot: str) -> list[Finding]:
    """Findings about a second partition that the boot loader reads entries from.

    ``records`` is what udev noted by device number (``/run/udev/data/bMAJOR:MINOR``, lines ``E:KEY=VALUE``), ``boot`` the boot
    partition's number. Nothing is found where udev noted nothing.
    """
    facts = {
        number: dict(line[2:].split("=", 1) for line in text.splitlines() if line.startswith("E:") and "=" in line)
        for number, text in records.items()
    }
    disk = facts.get(boot, {}).get("ID_PART_ENTRY_DISK")
    return [
        deviation(
            "second-boot-partition", BOOT, f"partition {row.get('ID_PART_ENTRY_NUMBER', number)}", "one boot partition",
            "another one (XBOOTLDR): the boot loader takes entries from it, and nothing here looks at them",
            "look at it, then delete it or give it another type",
        )
        for number, row in sorted(facts.items())
        if disk and row.get("ID_PART_ENTRY_DISK") == disk and row.get("ID_PART_ENTRY_TYPE", "").lower() == XBOOTLDR
    ]  # fmt: skip


def judge_loader_conf(content: bytes | None) -> list[Finding]:
    """Findings about ``loader.conf`` (``None``: there is none, and defaults count)."""
    if content is None:
        return [
            deviation(
                "loader-conf", BOOT, LOADER_CONF, "editor no", "missing: the loader's editor is on by default", _RESTORE
            )
        ]
    if len(content) > LOADER_CONF_LIMIT:
        return [
            deviation(
                "loader-conf",
                BOOT,
                LOADER_CONF,
                f"at most {LOADER_CONF_LIMIT} bytes",
                f"{len(content)} bytes",
                _RESTORE,
            )
        ]
    if _ODD.search(content):
        said = "characters that no setting has"
        return [deviation("loader-conf", BOOT, LOADER_CONF, "one setting in each line", said, _RESTORE)]
    found: list[Finding] = []
    seen: set[str] = set()
    for line in content.decode("ascii").splitlines():
        words = line.split(None, 1)
        if not words or words[0].startswith("#"):
            continue
        key, value = words[0], words[1].strip() if len(words) == 2 else ""
        seen.add(key)
        if key not in _CONF:
            found.append(
                deviation("loader-conf", BOOT, LOADER_CONF, "settings of Freehold only", f"{key} {value}", _RESTORE)
            )
        elif (allowed := _CONF[key]) is not None and value not in allowed:
            found.append(deviation("loader-conf", BOOT, LOADER_CONF, f"{key} {allowed[0]}", f"{key} {value}", _RESTORE))
    if "editor" not in seen:
        found.append(
            deviation("loader-conf", BOOT, LOADER_CONF, "editor no", "the line is missing: the editor is on", _RESTORE)
        )
    return found


_RESTORE = "write `timeout 0`, `editor no` and `console-mode keep` into it"


def judge_loaders(copies: Sequence[tuple[str, str]], digest: str, sealed: str) -> list[Finding]:
    """Findings about the boot loader's copies: (path, SHA-256 in hex, "" when missing).

    ``digest`` and ``sealed`` are the Authenticode digests, which leave signatures out, of the first copy and of the sealed tree's
    boot loader; "" where there is none to compare. Updates bring no boot loader, so another one may just be older.
    """
    found = [
        deviation("loader-missing", BOOT, path, "the boot loader", "missing or unreadable", "copy the other one here")
        for path, digest in copies
        if not digest
    ]
    if digest and sealed and digest != sealed:
        said = "another version, or not Debian's at all"
        found.append(
            note("loader-version", BOOT, copies[0][0], "", f"not the boot loader of the running release: {said}")
        )
    if len({content for _, content in copies if content}) > 1:
        names = ", ".join(path for path, _ in copies)
        found.append(
            deviation(
                "loader-copies",
                BOOT,
                names,
                "two equal files",
                "they differ: one was changed",
                "compare with a fresh disk",
            )
        )
    return found
