# SPDX-License-Identifier: Apache-2.0
"""The guard's records for people: who was refused what, how often, when, and what would allow it. Pure."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass

from freehold.lock.rules import Way, rule

SCHEMA = "freehold-denials-2"
#: The guard keeps this many names of a path.
NAMES = 3
_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Denial:
    """All records of one rule, program and path. Times are seconds since 1970; ``first`` is known for single refusals."""

    rule: str
    program: str
    path: str
    file: str | None
    count: int
    first: int | None
    last: int | None
    uid: int
    pid: int
    mode: str
    detail: int
    message_id: str
    sentence: str
    ways: tuple[Way, ...]


def plain(text: str) -> str:
    """``text`` as one line without control characters; what was one, is ``\\xNN``."""
    # Not printable are also the characters that turn a terminal's direction, and lone surrogates.
    kept = (char if char.isprintable() and char != "\\" else f"\\x{ord(char):02x}" for char in text)
    return "".join(kept)


def shown_path(path: str) -> str:
    """A record's path: "…" is what the guard did not keep, the directories above and the place of its file system."""
    shown = plain(path)
    if shown.startswith("/") and len(shown) > 1:
        return f"…{shown}"
    return f"…/{shown}" if path.count("/") == NAMES - 1 else shown


def who(program: str, uid: int) -> str:
    """The process in words. Before it starts a service's program systemd calls itself by that one's name in brackets."""
    if program.startswith("("):
        return f"systemd, which was to start {plain(program[1:].removesuffix(')'))},"
    return f"{'root' if uid == 0 else f'user {uid}'}'s {plain(program) or 'process'}"


def sentence(name: str, program: str, path: str, *, uid: int, mode: str, detail: int) -> str:
    """One refusal for people, as in "root's bash was not allowed to run /var/x: the file is not signed"."""
    verb = {"audit": "would not be", "exempt": "was, in an emergency session,"}.get(mode, "was not")
    act = rule(name).act.format(path=path or "something without a name", detail=detail)
    return f"{who(program, uid)} {verb} allowed to {act}"


def places(path: str, mountinfo: str) -> list[str]:
    """Where a record's file may be, by proc_pid_mountinfo(5): the record has its place in its own file system.

    Paths of which the guard kept only the end are taken as if they were whole; the caller looks which ones exist.
    """
    if not path.startswith("/"):
        if path.count("/") != NAMES - 1:
            return []
        path = f"/{path}"
    found = []
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        if len(fields) < 5:
            continue
        top, point = (_ESCAPED.sub(lambda code: chr(int(code[1], 8)), field).rstrip("/") for field in fields[3:5])
        if path.startswith(f"{top}/"):
            found.append(point + path[len(top) :])
    return sorted(set(found), key=lambda place: (len(place), place))


def ways(name: str, file: str | None) -> tuple[Way, ...]:
    """What would allow it, with the file's name in the commands where it is known."""
    if file is None:
        return rule(name).ways
    quoted = shlex.quote(file)
    signature = shlex.quote(f"{file}.sig")
    return tuple(
        Way(way.text, re.sub(r"\bFILE(\.sig)?\b", lambda found: signature if found[1] else quoted, way.command))
        for way in rule(name).ways
    )


def group(records: Iterable[Mapping[str, object]], *, booted: float, find: Callable[[str], str | None]) -> list[Denial]:
    """``guardctl``'s records, one :class:`Denial` per rule, program and path, newest first.

    ``guardctl`` writes the bytes of names as characters. ``booted`` is when the boot began, in seconds since 1970;
    ``find`` gives a path's file where there is just one.
    """
    groups: dict[tuple[str, str, str], list[Mapping[str, object]]] = {}
    for record in records:
        key = (str(record.get("rule", "?")), str(record.get("comm", "?")), str(record.get("path", "")))
        groups.setdefault(key, []).append(record)
    found = []
    for (name, program, path), rows in groups.items():
        newest = max(rows, key=lambda row: _number(row, "last"))
        count = sum(int(_number(row, "count")) for row in rows)
        last = int(booted + _number(newest, "last")) if _number(newest, "last") else None
        uid, detail, mode = int(_number(newest, "uid")), int(_number(newest, "detail")), str(newest.get("mode", "?"))
        name_bytes = path.encode("latin-1", "replace")
        file = find(name_bytes.decode(errors="surrogateescape"))
        path = name_bytes.decode(errors="replace")
        shown = plain(file) if file else shown_path(path)
        found.append((_number(newest, "last"), Denial(
            rule=name, program=program, path=path, file=file, count=count, first=last if count == 1 else None, last=last,
            uid=uid, pid=int(_number(newest, "pid")), mode=mode, detail=detail, message_id=rule(name).id,
            sentence=sentence(name, program, shown, uid=uid, mode=mode, detail=detail), ways=ways(name, file),
        )))  # fmt: skip
    return [denial for _, denial in sorted(found, key=lambda pair: -pair[0])]


def _number(record: Mapping[str, object], key: str) -> float:
    value = record.get(key)
    return value if isinstance(value, int | float) else 0


def data(denials: Iterable[Denial], mode: str) -> dict[str, object]:
    """``freehold-denials-2``."""
    rows = []
    for denial in denials:
        told = [{"text": way.text, "command": way.command or None} for way in denial.ways]
        rows.append({**asdict(denial), "ways": told})
    return {"schema": SCHEMA, "mode": mode, "denials": rows}


def text(denials: Iterable[Denial], mode: str) -> str:
    """The same for people."""
    lines: list[str] = []
    for denial in denials:
        times = "once" if denial.count == 1 else f"{denial.count} times, last"
        at = time.strftime(" at %Y-%m-%d %H:%M:%S UTC", time.gmtime(denial.last)) if denial.last else ""
        lines += [denial.sentence, f"    {times}{at} (rule {denial.rule}, process {denial.pid})"]
        for way in denial.ways:
            lines.append(f"    {way.text}{':' if way.command else ''}")
            lines += [f"        {plain(way.command)}"] if way.command else []
    if not lines:
        kept = {"audit": "nothing would have been refused", "locked": "nothing was refused"}
        return kept.get(mode, "nothing was refused: the machine is open") + ", since this boot began"
    if mode == "audit":
        lines.append("Next: freehold lock refuses all of this; until then nothing is refused.")
    else:
        lines.append("Next: to look without refusing, unlock and use `freehold lock --audit`; docs/guard.md has the rules.")
    return "\n".join(lines)
