# SPDX-License-Identifier: Apache-2.0
"""What a row of the table is, and what was seen of it. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from attack.target import Target

#: refused: nothing starts by itself, the console says why, and the way back leads to an unchanged system.
#: fallback: the previous good deployment runs, the console says why. harmless: the change is not believed, what runs is
#: unchanged. effective (controls only): the same plant works where it may.
End = Literal["refused", "fallback", "harmless", "effective"]
#: How a refused machine comes back: by another entry of the boot menu, or once its own bytes are put back.
WayBack = Literal["menu", "bytes"]
BaseName = Literal["locked", "open"]

#: Who could do it (THREATS: A3 has the disk for an hour).
DISK = "A3, the disk"
FIRMWARE = "A3, the firmware's variables"
HYPERVISOR = "the hypervisor, or SMBIOS"

_ID = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")


@dataclass(frozen=True)
class Probe:
    """A question to the running machine: ``script`` (shell, root) must print something that ``pattern`` is found in."""

    what: str
    script: str
    pattern: str


@dataclass(frozen=True)
class Row:
    """One change, made with the machine off, and how it has to end."""

    id: str
    area: str
    what: str
    ends: tuple[End, ...]
    change: Callable[[Target], None]
    who: str = DISK
    #: What the console has to say (a regular expression; empty: nothing in particular). Where a row may end as harmless
    #: among others, only for the others.
    reason: str = ""
    way_back: WayBack = "menu"
    probes: tuple[Probe, ...] = ()
    #: Rows of one name share a boot; each is judged by its own canary and its own probes.
    together: str = ""
    #: A feature without which the row makes no sense (``tpm``, ``floor``, ``floor-tpm``).
    needs: str = ""
    #: Ids of the rows that show that the plant works where it may.
    controls: tuple[str, ...] = ("untouched",)
    base: BaseName = "locked"
    secure_boot: bool = True
    #: The committed /etc may be gone (the console says so); everything else may not.
    factory_etc: bool = False
    #: The running release's manifest is not believed, so that ``status`` cannot say which it is; its image is judged.
    unnamed: bool = False
    #: What may run is a rescue entry: with its own signed command line, and factory /etc.
    rescue: bool = False

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise ValueError(f"{self.id!r} is no id for a row")
        if not self.ends:
            raise ValueError(f"{self.id}: no end is allowed")
        if self.together and self.ends != ("harmless",):
            raise ValueError(f"{self.id}: only harmless rows can share a boot")
        if self.reason and re.search(self.reason, ""):
            raise ValueError(f"{self.id}: its reason is found in everything")
        if "refused" in self.ends and not self.reason:
            raise ValueError(f"{self.id}: a refusal gives its reason")

    @property
    def control(self) -> bool:
        """Whether this row shows that something works rather than that it does not."""
        return not self.controls


@dataclass(frozen=True)
class Facts:
    """What a machine that answers says of itself."""

    image: str
    command_line: str
    version: str
    lock: str
    secure_boot: bool
    keychain: str
    certificates: int
    machine: str
    config: str
    canaries: tuple[str, ...] = ()
    probes: Mapping[str, str] = field(default_factory=dict)

    def data(self) -> dict[str, object]:
        """As JSON."""
        return {**asdict(self), "canaries": list(self.canaries), "probes": dict(self.probes)}


@dataclass(frozen=True)
class Truth:
    """What an unchanged machine looks like: taken from the releases and from the base before any change.

    ``command_lines`` and ``images`` by version, ``versions`` newest first.
    """

    versions: tuple[str, ...]
    images: Mapping[str, str]
    command_lines: Mapping[str, str]
    machine: str
    config: str
    certificates: int


@dataclass(frozen=True)
class Seen:
    """One start: its console, what answered, and what came of the way back. ``stopped`` says why watching ended."""

    console: str
    facts: Facts | None
    stopped: str
    seconds: float
    recovered: Facts | None = None
    recovery: str = ""

    def data(self) -> dict[str, object]:
        """As JSON."""
        return {
            "console": self.console, "facts": self.facts.data() if self.facts else None, "stopped": self.stopped,
            "seconds": round(self.seconds, 1), "recovered": self.recovered.data() if self.recovered else None,
            "recovery": self.recovery,
        }  # fmt: skip


def facts_of(data: object) -> Facts | None:
    """The inverse of :meth:`Facts.data`."""
    if not isinstance(data, dict):
        return None
    return Facts(**{**data, "canaries": tuple(data["canaries"])})


def seen_of(data: Mapping[str, object]) -> Seen:
    """The inverse of :meth:`Seen.data`."""
    return Seen(
        console=str(data["console"]), facts=facts_of(data["facts"]), stopped=str(data["stopped"]),
        seconds=float(str(data["seconds"])), recovered=facts_of(data["recovered"]), recovery=str(data["recovery"]),
    )  # fmt: skip
