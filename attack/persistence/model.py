# SPDX-License-Identifier: Apache-2.0
"""What a row of the persistence table is, and what was seen of the two machines. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

#: What closes the way. K: the guard refuses the code; U: /usr is sealed; E: /etc is; V: state in /var and /root is not
#: believed; S: text for signed interpreters; B: the sealed boot chain; X: a measure of its own; O: out of scope.
Class = Literal["K", "U", "E", "V", "S", "B", "X", "O"]
CLASSES: tuple[Class, ...] = ("K", "U", "E", "V", "S", "B", "X", "O")
#: Why a row means something. fires: the same plant fires on the open machine after its cold reboot. now: on the open machine it
#: fires in the boot in which it is planted, and nowhere survives one. absent: the program that would do it is not in the image.
#: closed: closed on the open machine as well, and the refusal says why. elsewhere: rows of the tamper table show it.
Control = Literal["fires", "now", "absent", "closed", "elsewhere"]

OPEN, LOCKED = "open", "locked"
MAX_TEXT = 2000
#: What programs of an unsigned kind leave behind: this and their canary's name.
NATIVE = ".native"
#: How programs say that they were not allowed to.
DENIED = r"peration not permitted|ermission denied|failed to map segment|203/EXEC|must be superuser to unmount"
READ_ONLY = r"[Rr]ead-only file system"

_ID = re.compile(r"[a-c]\d\d\d?-[a-z0-9]+(?:-[a-z0-9]+)*")


@dataclass(frozen=True)
class Row:
    """One way in, planted by root on the running machine."""

    id: str
    kind: Class
    title: str
    #: Shell text (sh -e) that plants it, on both machines alike.
    plant: str
    #: Names below /var/canary; each of them has to grow on the open machine (``fires``, ``now``).
    canaries: tuple[str, ...] = ()
    control: Control = "fires"
    #: Shell text after the reboot, on both machines: what somebody or something does that the plant waits for.
    trigger: str = ""
    #: Shell text after the reboot, before all triggers; the plant works when ``found`` is found in what it prints.
    look: str = ""
    found: str = r"\S"
    #: Exits with 0 where the program is not there (``absent``).
    absence: str = ""
    #: What the plant has to say where it is refused in every state (``closed``).
    reason: str = ""
    #: Only what root ran counts: the same as a user is nothing.
    root_only: bool = False
    #: Rows of the tamper table that show the same from outside.
    covered_by: tuple[str, ...] = ()
    #: What `status`, `verify` or the kernel's log of the locked machine have to show afterwards.
    trace: str = ""

    def __post_init__(self) -> None:
        _check_id(self.id)
        if not self.plant:
            raise ValueError(f"{self.id}: nothing is planted")
        if self.control in ("fires", "now") and not self.canaries and not self.look:
            raise ValueError(f"{self.id}: nobody could see it fire")
        if self.control == "now" and not self.canaries:
            raise ValueError(f"{self.id}: only a canary tells in which boot it fired")
        if (self.control == "absent") != bool(self.absence):
            raise ValueError(f"{self.id}: an absence and its check go together")
        if self.control == "closed" and not self.reason:
            raise ValueError(f"{self.id}: a refusal in every state gives its reason")
        if self.control == "elsewhere" and not self.covered_by:
            raise ValueError(f"{self.id}: no row of the other table is named")
        for pattern in (self.reason, self.trace, self.found):
            if pattern and re.search(pattern, ""):
                raise ValueError(f"{self.id}: a pattern is found in everything")

    @property
    def documented(self) -> bool:
        """Whether this is out of scope, and has to behave as the documents say: it works, for a user."""
        return self.kind == "O"


@dataclass(frozen=True)
class Live:
    """One thing that somebody does on the running machine (root, where nothing else is said): its exit status tells."""

    id: str
    kind: Class
    title: str
    #: Shell text. Exit status 0: it was done.
    act: str
    #: What the open machine has to say where the act cannot end well even there: proof that it got past the guard.
    past: str = ""
    #: closed: refused on the open machine as well, for the same ``reason``.
    control: Literal["works", "closed"] = "works"
    #: Found in what the locked machine says.
    reason: str = DENIED
    #: Documented: it works on the locked machine, too.
    allowed: bool = False

    def __post_init__(self) -> None:
        _check_id(self.id)
        if not self.act:
            raise ValueError(f"{self.id}: nothing is done")
        if not self.reason:
            raise ValueError(f"{self.id}: a refusal gives its reason, or everything would do")
        if self.allowed and self.control != "works":
            raise ValueError(f"{self.id}: what is allowed works on the open machine")
        for pattern in (self.reason, self.past):
            if pattern and re.search(pattern, ""):
                raise ValueError(f"{self.id}: a pattern is found in everything")


def _check_id(text: str) -> None:
    if not _ID.fullmatch(text):
        raise ValueError(f"{text!r} is no id for a row")


@dataclass(frozen=True)
class Done:
    """How a script ended: exit status (-1: it was stopped), and what it printed."""

    status: int
    text: str = ""

    @property
    def good(self) -> bool:
        """Whether it ended well."""
        return self.status == 0


#: Canary → (uid, boot) of each time it fired.
Canaries = Mapping[str, tuple[tuple[int, str], ...]]
Runs = Mapping[str, Done]


@dataclass(frozen=True)
class Sight:
    """What was seen of one machine: before its cold reboot, and after."""

    #: The ids of the two boots, 32 hex digits.
    first: str
    second: str
    planted: Runs = field(default_factory=dict)
    live: Runs = field(default_factory=dict)
    absence: Runs = field(default_factory=dict)
    looks: Runs = field(default_factory=dict)
    triggers: Runs = field(default_factory=dict)
    collateral: Runs = field(default_factory=dict)
    canaries: Canaries = field(default_factory=dict)
    #: What `systemctl is-system-running` said after the reboot, and the failed units.
    target: str = ""
    failed: str = ""
    lock: str = ""
    #: `freehold status`, `freehold verify` and the kernel's log after the reboot, one after the other.
    trace: str = ""
    seconds: float = 0.0

    def data(self) -> dict[str, object]:
        """As JSON."""
        return asdict(self)


_RUNS = ("planted", "live", "absence", "looks", "triggers", "collateral")


def sight_of(data: Mapping[str, object]) -> Sight:
    """The inverse of :meth:`Sight.data`; raises ``KeyError``, ``TypeError`` or ``ValueError`` for anything else."""
    values = dict(data)
    for name in _RUNS:
        values[name] = {key: Done(int(one["status"]), str(one["text"])) for key, one in _table(values[name]).items()}
    values["canaries"] = {
        key: tuple((int(uid), str(boot)) for uid, boot in one) for key, one in _table(values["canaries"]).items()
    }
    return Sight(**values)  # type: ignore[arg-type]


def _table(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("no table")
    return value


def canaries_of(files: Mapping[str, str]) -> Canaries:
    """What canary files say, line by line ``UID BOOT``; other lines that say something count as root's in no known boot."""
    found: dict[str, tuple[tuple[int, str], ...]] = {}
    for name, text in files.items():
        rows = []
        for line in filter(str.strip, text.splitlines()):
            uid, _, boot = line.strip().partition(" ")
            rows.append((int(uid), boot.replace("-", "")) if uid.isdecimal() and boot else (0, ""))
        found[name] = tuple(dict.fromkeys(rows))
    return found
