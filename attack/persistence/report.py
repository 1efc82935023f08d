# SPDX-License-Identifier: Apache-2.0
"""The persistence table for people and as JSON, and the file that keeps what was seen. Printing is pure."""

from __future__ import annotations

import hashlib
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from attack.persistence import payload, table
from attack.persistence.judge import Verdict, faults, judge, judge_collateral, judge_live
from attack.persistence.model import CLASSES, Live, Row, Sight, sight_of
from freehold import atomic

SCHEMA = "freehold-persistence-1"
MAX_FILE = 32 << 20
WIDTH = 150


@dataclass(frozen=True)
class Report:
    """All verdicts: of what was planted, of what was tried at once, of what has to go on working; and what casts doubt on all."""

    planted: tuple[Verdict, ...]
    live: tuple[Verdict, ...]
    collateral: tuple[Verdict, ...]
    faults: tuple[str, ...]

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Every row's."""
        return self.planted + self.live + self.collateral

    @property
    def good(self) -> bool:
        """Whether every row was seen kept, on machines that were what they have to be."""
        return not self.faults and all(one.kept for one in self.verdicts)

    def data(self) -> dict[str, object]:
        """As JSON."""
        return {
            "schema": SCHEMA, "good": self.good, "faults": list(self.faults), "summary": summary(self),
            "planted": [asdict(one) for one in self.planted], "live": [asdict(one) for one in self.live],
            "collateral": [asdict(one) for one in self.collateral],
        }  # fmt: skip


def report(rows: Sequence[Row], live: Sequence[Live], collateral: Sequence[Live], opened: Sight, locked: Sight) -> Report:
    """Judge what was seen. Pure."""
    return Report(
        tuple(judge(row, opened, locked) for row in rows),
        tuple(judge_live(one, opened, locked) for one in live),
        tuple(judge_collateral(one, opened, locked) for one in collateral),
        tuple(faults(table.ROWS, opened, locked)),
    )


def _lines(verdicts: Sequence[Verdict], working: str) -> list[str]:
    lines = []
    for one in verdicts:
        mark = "  " if one.kept else "! "
        lines.append(f"{mark}{one.id:27} {one.kind:5} {one.open:10} {one.locked:9} {working:10} {one.title}")
        if one.told:
            end = "" if one.kept else f"{one.end}: "
            lines += textwrap.wrap(end + one.told, WIDTH, initial_indent=" " * 67, subsequent_indent=" " * 67)
    return lines


def text(found: Report) -> str:
    """The table. Pure.

    What has to go on working is seen once for the boot of all rows; its column says how much of it did.
    """
    good = sum(one.kept for one in found.collateral)
    working = f"{good}/{len(found.collateral)}"
    head = f"{'':2}{'row':27} {'class':5} {'open':10} {'locked':9} {'collateral':10} what root did"
    lines = [head, "-" * WIDTH]
    sections = (("planted, then a cold reboot", found.planted), ("at once, while it runs", found.live),
                ("collateral: must work on both", found.collateral))  # fmt: skip
    for title, verdicts in sections:
        if verdicts:
            lines += [f"[{title}]", *_lines(verdicts, working)]
    return "\n".join([*lines, *(f"! {one}" for one in found.faults)])


def summary(found: Report) -> str:
    """The last line. Pure."""
    ends = [one.end for one in found.verdicts if not one.kept]
    counts = ", ".join(f"{ends.count(end)} {end}" for end in dict.fromkeys(ends))
    kinds = "  ".join(f"{kind} {sum(one.kind == kind for one in found.planted + found.live)}" for kind in CLASSES)
    good = len(found.verdicts) - len(ends)
    doubt = f"; {len(found.faults)} doubts about the machines" if found.faults else ""
    others = f" ({counts})" if counts else ""
    return f"persistence: {good} of {len(found.verdicts)} as they must{others}{doubt}; rows by class: {kinds}"


def listing(rows: Sequence[Row], live: Sequence[Live]) -> str:
    """The rows without results. Pure."""
    planted = [f"{one.id:27} {one.kind} {one.control:10} {one.title}" for one in rows]
    return "\n".join([*planted, *(f"{one.id:27} {one.kind} {'at once':10} {one.title}" for one in live)])


def code_id(rows: Sequence[Row], live: Sequence[Live], collateral: Sequence[Live]) -> str:
    """What was planted and tried, in a word: other rows have to be seen again. Pure."""
    acts = [
        *((one.id, one.plant, one.trigger, one.look, one.absence) for one in rows),
        *((one.id, one.act) for one in (*live, *collateral)),
    ]
    made = (payload.SOURCE, payload.FIRE, payload.EQUIP)
    return hashlib.sha256(repr((acts, made)).encode()).hexdigest()[:16]


class Kept:
    """What was last seen of each machine, by rows; of one base only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with path.open("rb") as file:
                data = json.loads(file.read(MAX_FILE))
            self._machines: dict[str, dict[str, object]] = data["machines"] if data.get("schema") == SCHEMA else {}
        except (OSError, ValueError, KeyError, AttributeError):
            self._machines = {}

    def get(self, name: str, base: str, code: str) -> Sight | None:
        """The sight of the machine ``name``; None when there is none of this base and these rows."""
        kept = self._machines.get(f"{name} {code}")
        if kept is None or kept.get("base") != base:
            return None
        sight = kept.get("sight")
        try:
            return sight_of(sight) if isinstance(sight, Mapping) else None
        except (KeyError, TypeError, ValueError):
            return None

    def put(self, name: str, base: str, code: str, sight: Sight) -> None:
        """Keep a sight; on the disk when this returns."""
        self._machines = {key: kept for key, kept in self._machines.items() if kept.get("base") == base}
        self._machines[f"{name} {code}"] = {"base": base, "sight": sight.data()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write(self._path, json.dumps({"schema": SCHEMA, "machines": self._machines}) + "\n")
