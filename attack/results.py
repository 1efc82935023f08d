# SPDX-License-Identifier: Apache-2.0
"""What was seen of each row, kept in a file, so that a run can be stopped and goes on where it was; and the table.

What is kept is what was *seen*; verdicts are given anew each time, so a better judge needs no new boots.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attack.judge import Verdict, judge
from attack.model import Row, Seen, Truth, seen_of
from freehold import atomic

SCHEMA = "freehold-attack-1"
MAX_FILE = 64 << 20
WIDTH = 150


@dataclass(frozen=True)
class Result:
    """A row's sight and verdict; ``skipped`` says why there is none."""

    row: Row
    verdict: Verdict | None
    seen: Seen | None = None
    skipped: str = ""

    def data(self) -> dict[str, object]:
        """As JSON, without the console's text."""
        found = self.verdict
        return {
            "id": self.row.id, "area": self.row.area, "what": self.row.what, "who": self.row.who, "expected": list(self.row.ends),
            "controls": list(self.row.controls), "end": found.end if found else None, "kept": found.kept if found else None,
            "told": found.told if found else self.skipped, "reason": found.reason if found else "",
            "seconds": round(self.seen.seconds, 1) if self.seen else None,
        }  # fmt: skip


def code_id(row: Row) -> str:
    """What a row does and asks: another id, another sight needed. Pure but for reading its function's source."""
    try:
        source = inspect.getsource(row.change)
    except (OSError, TypeError):
        source = row.change.__qualname__
    facts = (row.reason, row.way_back, row.probes, row.base, row.secure_boot, row.together)
    return hashlib.sha256(f"{facts!r}\n{source}".encode()).hexdigest()[:16]


class Memory:
    """The file of what was seen, by (row, base, code)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with path.open("rb") as file:
                data = json.loads(file.read(MAX_FILE))
            self._rows: dict[str, dict[str, object]] = data["rows"] if data.get("schema") == SCHEMA else {}
        except (OSError, ValueError, KeyError, AttributeError):
            self._rows = {}

    def get(self, row: Row, base: str) -> tuple[Seen, bool] | None:
        """(what was seen, whether the row was alone); None when it has to be seen (again)."""
        kept = self._rows.get(row.id)
        if kept is None or kept.get("base") != base or kept.get("code") != code_id(row):
            return None
        seen = kept.get("seen")
        return (seen_of(seen), bool(kept.get("alone"))) if isinstance(seen, dict) else None

    def put(self, row: Row, base: str, seen: Seen, *, alone: bool) -> None:
        """Keep a sight; on the disk when this returns."""
        self._rows[row.id] = {"base": base, "code": code_id(row), "alone": alone, "seen": seen.data()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write(self._path, json.dumps({"schema": SCHEMA, "rows": self._rows}) + "\n")


def result(row: Row, memory: Memory, base: str, truth: Truth) -> Result | None:
    """The verdict on what is kept of ``row``; None when nothing is."""
    kept = memory.get(row, base)
    if kept is None:
        return None
    seen, alone = kept
    return Result(row, judge(row, seen, truth, alone=alone), seen)


def unproven(results: Sequence[Result]) -> list[str]:
    """Rows that were kept although a control of theirs was not: they prove nothing. Pure."""
    good = {one.row.id for one in results if one.verdict is not None and one.verdict.kept}
    return [
        one.row.id
        for one in results
        if one.verdict and one.verdict.kept and any(name not in good for name in one.row.controls)
    ]


def table(results: Sequence[Result]) -> str:
    """The table for people. Pure."""
    lines = [f"{'':2}{'row':27} {'expected':20} {'seen':14} what, and how it ended", "-" * WIDTH]
    area = ""
    for one in results:
        if one.row.area != area:
            area = one.row.area
            lines.append(f"[{area}]")
        found = one.verdict
        mark = "  " if found and found.kept else "- " if found is None else "! "
        end = found.end if found else "skipped"
        lines.append(
            f"{mark}{one.row.id:27} {' or '.join(one.row.ends)[:20]:20} {end:14} {one.row.what} ({one.row.who})"
        )
        told = [found.told if found else one.skipped, *([f"console: {found.reason}"] if found and found.reason else [])]
        for text in told:
            lines += textwrap.wrap(text, WIDTH, initial_indent=" " * 65, subsequent_indent=" " * 65)
    return "\n".join(lines)


def summary(results: Sequence[Result]) -> str:
    """The last line. Pure."""
    kept = sum(1 for one in results if one.verdict and one.verdict.kept)
    skipped = sum(1 for one in results if one.verdict is None)
    missing = unproven(results)
    more = f", {skipped} skipped" if skipped else ""
    more += f", {len(missing)} without a control that worked" if missing else ""
    return f"attack: {kept} of {len(results) - skipped} rows ended as they must{more}"
