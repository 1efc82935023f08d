# SPDX-License-Identifier: Apache-2.0
"""What the kernel itself refused to read, by its log: unsigned modules, and what the list of kernel inputs lacks. Pure.

The guard has no record of these: it let the file pass, and lockdown or IPE said no after it. Only lines of the kernel's own
facility count, which user space cannot write (/dev/kmsg, ``Documentation/ABI/testing/dev-kmsg``).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from freehold.lock.denials import plain
from freehold.lock.rules import SIGN_MODULE, Way

_RECORD = re.compile(r"(\d+),\d+,(\d+),[^;]*;(.*)")
_LOCKDOWN = re.compile(r"Lockdown: (.{1,16}): unsigned module loading is restricted")
#: With Secure Boot the kernel does not leave it to lockdown (kernel/module/signing.c), and names no program.
_REJECTED = re.compile(
    r"(?:module: )?Loading of (?:unsigned module|module with un(?:supported crypto|available key)) is rejected\Z"
)
#: AUDIT_IPE_ACCESS. Names are in quotes, or in hex where they have characters that could mislead.
_IPE = re.compile(r"audit: type=1420 audit\([\d.:]+\): +ipe_op=(KMODULE|FIRMWARE|[A-Z_0-9]+) ipe_hook=KERNEL_\w+ (.*)")
_FIELD = re.compile(r'\b(comm|path)=(?:"([^"]*)"|((?:[0-9A-F]{2})+)(?= |\Z))')
_NOT_ENFORCED = re.compile(r"\benforcing=0\b")
_WHAT = {"KMODULE": "the module", "FIRMWARE": "the firmware"}
_LISTED = (
    Way("have it in the next release: `packages`, [modules] or [[files]] of the recipe"),
    Way("or sign the file; where the owner's key is", "fsverity sign FILE FILE.sig --key=owner.key --cert=owner.crt"),
    Way("then here, with FILE on a file system that keeps it (/var does, /tmp and /run do not)",
        "fsverity enable FILE --signature=FILE.sig"),
)  # fmt: skip


@dataclass(frozen=True)
class Refusal:
    """All lines about one program and file.

    ``kind``: ``module-signature`` or ``kernel-inputs``; ``last`` in seconds since 1970.
    """

    kind: str
    program: str
    path: str | None
    count: int
    last: int
    sentence: str
    ways: tuple[Way, ...]


def find(records: Iterable[str], *, booted: float) -> list[Refusal]:
    """The refusals in records of /dev/kmsg, newest first; ``booted``: when the kernel's clock was 0, in seconds since 1970."""
    found: dict[tuple[str, str, str | None, str], tuple[int, int]] = {}
    for record in records:
        parts = _RECORD.match(record)
        # The priority's upper bits are the facility; 0 is the kernel's.
        if parts is None or int(parts[1]) >> 3:
            continue
        key = _read(parts[3])
        if key is not None:
            count, _ = found.get(key, (0, 0))
            found[key] = count + 1, int(booted + int(parts[2]) / 1e6)
    rows = [_told(key, count, last) for key, (count, last) in found.items()]
    return sorted(rows, key=lambda row: (-row.last, row.sentence))


def _read(message: str) -> tuple[str, str, str | None, str] | None:
    """Kind, program, path and operation of one line; ``None`` for every other line."""
    lockdown = _LOCKDOWN.match(message)
    if lockdown is not None:
        return "module-signature", lockdown[1], None, "KMODULE"
    if _REJECTED.match(message):
        return "module-signature", "", None, "KMODULE"
    ipe = _IPE.match(message)
    if ipe is None or _NOT_ENFORCED.search(ipe[2]):
        return None
    names: dict[str, str] = {}
    for name, quoted, code in _FIELD.findall(ipe[2]):
        names.setdefault(name, bytes.fromhex(code).decode(errors="replace") if code else quoted)
    return "kernel-inputs", names.get("comm", "?"), names.get("path"), ipe[1]


def _told(key: tuple[str, str, str | None, str], count: int, last: int) -> Refusal:
    kind, program, path, operation = key
    name = plain(program)
    if kind == "module-signature":
        did = f"let {name} load" if name else "load"
        said = f"the kernel did not {did} a module: nobody signed it whom the kernel or the firmware knows"
        return Refusal(kind, program, path, count, last, said, (SIGN_MODULE,))
    what = f"{_WHAT.get(operation, 'a file')} {plain(path) if path else 'from memory'}"
    said = f"the kernel did not let {name} read {what}: it is not on this release's list of kernel inputs"
    ways = (SIGN_MODULE, *_LISTED) if operation == "KMODULE" else _LISTED
    return Refusal(kind, program, path, count, last, said, ways if operation in _WHAT else ())


def data(refusals: Iterable[Refusal]) -> list[dict[str, object]]:
    """The rows for ``freehold-denials-2``."""
    return [
        {**asdict(one), "ways": [{"text": way.text, "command": way.command or None} for way in one.ways]} for one in refusals
    ]


def text(refusals: Iterable[Refusal]) -> str:
    """The same for people; "" without any."""
    lines: list[str] = []
    for one in refusals:
        times = "once" if one.count == 1 else f"{one.count} times, last"
        at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(one.last))
        lines += [one.sentence, f"    {times} at {at} (the kernel's own log)"]
        for way in one.ways:
            lines.append(f"    {way.text}{':' if way.command else ''}")
            lines += [f"        {way.command}"] if way.command else []
    return "".join(f"{line}\n" for line in lines)
