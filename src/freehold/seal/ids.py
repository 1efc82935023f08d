# SPDX-License-Identifier: Apache-2.0
"""Stable user and group ids. Pure.

Packages take the next free id when they are installed, so the same account gets another id when the
set of packages changes, and files in /var would change owners with an update. The *id lock* is a text
that remembers every id ever given; a build is renumbered to it, and new names are added to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from freehold.errors import InputError

HEADER = "freehold-ids 1"
MAX_BYTES = 1 << 20
#: From here down accounts that packages make get their ids (as systemd-sysusers and adduser --system do).
SYSTEM_MAX = 999
SYSTEM_MIN = 100
REGULAR_MIN = 1000
REGULAR_MAX = 59999
NOBODY = 65534
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,30}\$?")
_MAX_ID = (1 << 32) - 2


@dataclass(frozen=True)
class Account:
    """One line of passwd(5)."""

    name: str
    uid: int
    gid: int
    gecos: str = ""
    home: str = "/"
    shell: str = "/usr/sbin/nologin"


@dataclass(frozen=True)
class Group:
    """One line of group(5)."""

    name: str
    gid: int
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class IdLock:
    """Every id ever given: names to numbers. Names that are in no build any more stay, so that ids are never reused."""

    users: Mapping[str, int] = field(default_factory=dict)
    groups: Mapping[str, int] = field(default_factory=dict)

    def text(self) -> str:
        """The lock's file: sorted, one line each."""
        lines = [f"user {name} {uid}" for name, uid in sorted(self.users.items())]
        lines += [f"group {name} {gid}" for name, gid in sorted(self.groups.items())]
        return "\n".join([HEADER, *lines]) + "\n"


@dataclass(frozen=True)
class Plan:
    """What to do with a tree: owners to change ({old: new}, all at once) and its accounts afterwards."""

    lock: IdLock
    users: tuple[Account, ...]
    groups: tuple[Group, ...]
    chown: Mapping[int, int]
    chgrp: Mapping[int, int]

    def passwd(self, old: str) -> str:
        """passwd(5) text ``old`` with this plan's numbers; order and passwords stay."""
        by_name = {user.name: user for user in self.users}
        return _rewrite(old, lambda parts: [str(by_name[parts[0]].uid), str(by_name[parts[0]].gid)])

    def group(self, old: str) -> str:
        """group(5) text ``old`` with this plan's numbers."""
        by_name = {group.name: group for group in self.groups}
        return _rewrite(old, lambda parts: [str(by_name[parts[0]].gid)])

    def sysusers(self) -> str:
        """sysusers.d(5) text that makes every account of the tree with its fixed ids, from nothing."""
        lines = ["# Made by the image build: every account of the image, with the ids that the id lock fixes.", "#"]
        lines += [f"g {one.name} {one.gid} - - -" for one in sorted(self.groups, key=lambda one: (one.gid, one.name))]
        for user in sorted(self.users, key=lambda one: (one.uid, one.name)):
            gecos = '"' + user.gecos.replace("\\", "\\\\").replace('"', '\\"') + '"' if user.gecos else "-"
            lines.append(f"u {user.name} {user.uid}:{user.gid} {gecos} {user.home or '-'} {user.shell or '-'}")
        members = sorted((member, group.name) for group in self.groups for member in group.members)
        known = {user.name for user in self.users}
        lines += [f"m {member} {group}" for member, group in members if member in known]
        return "\n".join(lines) + "\n"


def _rewrite(text: str, numbers: Callable[[list[str]], list[str]]) -> str:
    lines = []
    for line in text.splitlines():
        parts = line.split(":")
        if len(parts) >= 4:
            new = numbers(parts)
            parts[2 : 2 + len(new)] = new
        lines.append(":".join(parts))
    return "\n".join(lines) + "\n"


def parse_lock(text: str, *, source: str = "ids.lock") -> IdLock:
    """Parse an id lock; empty text is the empty lock. Raises :class:`InputError` with every fault."""
    if not text:
        return IdLock()
    lines = text.splitlines()
    if len(text) > MAX_BYTES or lines[0] != HEADER:
        raise InputError("the id lock is not usable", faults=[f"{source}:1: must begin with {HEADER!r}"])
    tables: dict[str, dict[str, int]] = {"user": {}, "group": {}}
    faults = []
    for number, line in enumerate(lines[1:], start=2):
        parts = line.split(" ")
        good = len(parts) == 3 and parts[0] in tables and _NAME.fullmatch(parts[1])
        if not good or not re.fullmatch(r"0|[1-9][0-9]{0,9}", parts[2]) or int(parts[2]) > _MAX_ID:
            faults.append(f"{source}:{number}: must be `user NAME ID` or `group NAME ID`")
            continue
        kind, name, value = parts[0], parts[1], int(parts[2])
        table = tables[kind]
        if name in table:
            faults.append(f"{source}:{number}: {kind} {name!r} is given twice")
        if value in table.values():
            faults.append(f"{source}:{number}: {kind} id {value} is given twice")
        table.setdefault(name, value)
    if faults:
        raise InputError("the id lock is not usable", faults=faults, hint="restore it from version control")
    return IdLock(tables["user"], tables["group"])


def parse_passwd(text: str) -> tuple[Account, ...]:
    """Parse passwd(5) text. Raises :class:`InputError` naming broken lines."""
    rows = _rows(text, 7, "passwd")
    return tuple(Account(p[0], int(p[2]), int(p[3]), p[4], p[5], p[6]) for p in rows)


def parse_group(text: str) -> tuple[Group, ...]:
    """Parse group(5) text. Raises :class:`InputError` naming broken lines."""
    return tuple(
        Group(parts[0], int(parts[2]), tuple(name for name in parts[3].split(",") if name))
        for parts in _rows(text, 4, "group")
    )


def _rows(text: str, width: int, source: str) -> list[list[str]]:
    rows, faults = [], []
    seen: set[str] = set()
    for number, line in enumerate(text.splitlines(), start=1):
        parts = line.split(":")
        numbers = parts[2:4] if width == 7 else parts[2:3]  # passwd(5) has two, group(5) one
        numeric = all(number.isascii() and number.isdigit() for number in numbers)
        if len(parts) != width or not _NAME.fullmatch(parts[0]) or not numeric:
            faults.append(f"{source}:{number}: not a line of {source}(5)")
        elif parts[0] in seen:
            faults.append(f"{source}:{number}: {parts[0]!r} is given twice")
        else:
            seen.add(parts[0])
            rows.append(parts)
    if faults:
        raise InputError(f"the tree's {source} is not usable", faults=faults)
    return rows


def plan(lock: IdLock, users: Sequence[Account], groups: Sequence[Group]) -> Plan:
    """Fit a tree's accounts to ``lock``: locked names get their ids back, new names keep theirs or get a free one.

    Raises :class:`InputError` for what cannot be fitted: two names with one id in the tree (their files
    could not be told apart), ids below 100 that differ from the lock, a user whose group does not exist.
    """
    faults = _shared("user", ((one.name, one.uid) for one in users))
    faults += _shared("group", ((one.name, one.gid) for one in groups))
    gids = {group.gid for group in groups}
    faults += [f"user {one.name!r} has group id {one.gid}, which no group has" for one in users if one.gid not in gids]
    # One number space for both: a new user and the group of its name then get the same number.
    taken = {*lock.users.values(), *lock.groups.values()}
    # A number that both of a name's ids have is looked for first, so groups see what users chose.
    new_users = _fit("user", lock.users, {one.name: one.uid for one in users}, taken, {}, faults)
    new_groups = _fit("group", lock.groups, {one.name: one.gid for one in groups}, taken, new_users, faults)
    if faults:
        raise InputError("the tree's users and groups cannot be fitted to the id lock", faults=faults)
    chown = {one.uid: new_users[one.name] for one in users if one.uid != new_users[one.name]}
    chgrp = {one.gid: new_groups[one.name] for one in groups if one.gid != new_groups[one.name]}
    return Plan(
        lock=IdLock({**lock.users, **new_users}, {**lock.groups, **new_groups}),
        users=tuple(
            Account(one.name, new_users[one.name], chgrp.get(one.gid, one.gid), one.gecos, one.home, one.shell)
            for one in users
        ),
        groups=tuple(Group(one.name, new_groups[one.name], one.members) for one in groups),
        chown=chown,
        chgrp=chgrp,
    )  # fmt: skip


def _shared(kind: str, pairs: Iterable[tuple[str, int]]) -> list[str]:
    first: dict[int, str] = {}
    faults = []
    for name, number in pairs:
        if number in first:
            faults.append(f"{kind}s {first[number]!r} and {name!r} share the id {number}")
        first.setdefault(number, name)
    return faults


def _fixed(number: int) -> bool:
    """Whether Debian's policy gives the number out (base-passwd): such ids are in packages' files as numbers."""
    return number < SYSTEM_MIN or number >= 60000


def _fit(
    kind: str, locked: Mapping[str, int], found: Mapping[str, int], taken: set[int], twins: Mapping[str, int],
    faults: list[str],
) -> dict[str, int]:  # fmt: skip
    """Numbers for the names in ``found``; adds what it gives out to ``taken``."""
    result = {name: locked[name] for name in found if name in locked}
    for name, number in result.items():
        if number != found[name] and (_fixed(number) or _fixed(found[name])):
            faults.append(f"{kind} {name!r} is {found[name]} in the tree, {number} in the lock; such ids are Debian's")
    used = {*locked.values(), *result.values()}
    chosen: int | None
    for name in sorted(set(found) - set(locked), key=lambda name: (found[name], name)):
        wanted = found[name]
        if _fixed(wanted):
            if wanted in used:
                faults.append(f"{kind} {name!r} has the id {wanted}, which the lock gives to another name")
            chosen = wanted
        else:
            chosen = _free(wanted, twins.get(name), used, taken, set(found.values()))
            if chosen is None:
                faults.append(f"{kind} {name!r}: no free id is left")
                continue
        result[name] = chosen
        used.add(chosen)
        taken.add(chosen)
    return result


def _free(wanted: int, twin: int | None, used: set[int], taken: set[int], found: set[int]) -> int | None:
    """The number for a new name: its twin's (the user of the same name), the one it has, else the first free one."""
    if twin is not None and twin not in used:
        return twin
    if wanted not in taken and wanted not in used:
        return wanted
    system = wanted <= SYSTEM_MAX
    span = range(SYSTEM_MAX, SYSTEM_MIN - 1, -1) if system else range(REGULAR_MIN, REGULAR_MAX + 1)
    # Not a number that another name of the tree has, so that nothing moves without need.
    return next((number for number in span if number not in taken and number not in used and number not in found), None)
