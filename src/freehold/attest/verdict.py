# SPDX-License-Identifier: Apache-2.0
"""A verdict in words: one line for each thing that was looked at, and one at the end. All pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

SCHEMA = "freehold-attest-check-1"
State = Literal["ok", "refused", "unknown"]


@dataclass(frozen=True)
class Line:
    """One judgement. ``decides``: without an ``ok`` here there is none at the end."""

    check: str
    state: State
    text: str
    decides: bool


@dataclass
class Verdict:
    """Lines in the order in which they were judged. ``lock``: open, audit, locked or rescue, where that is proved."""

    lines: list[Line] = field(default_factory=list)
    lock: str | None = None

    def ok(self, check: str, text: str) -> None:
        """Looked at, and as it has to be."""
        self.lines.append(Line(check, "ok", text, True))

    def refused(self, check: str, text: str) -> None:
        """Looked at, and not as it has to be."""
        self.lines.append(Line(check, "refused", text, True))

    def unknown(self, check: str, text: str, *, decides: bool) -> None:
        """Not shown by this attestation. ``decides``: it would have to be."""
        self.lines.append(Line(check, "unknown", text, decides))

    def judged(self, check: str, text: str, *, good: bool) -> None:
        """``ok`` or ``refused``."""
        (self.ok if good else self.refused)(check, text)

    @property
    def good(self) -> bool:
        """Whether everything that decides is ``ok``; nothing judged is nothing good."""
        fine = [line.state == "ok" or (line.state == "unknown" and not line.decides) for line in self.lines]
        return bool(fine) and all(fine)

    def conclusion(self) -> str:
        """The verdict in one sentence."""
        if self.good:
            proved = f" Proved: {self.lock}." if self.lock else ""
            return f"This is the machine that you know, in the state described above.{proved}"
        refused = [line.check for line in self.lines if line.state == "refused"]
        if refused:
            return f"Refused ({', '.join(dict.fromkeys(refused))}): do not trust this machine by this attestation."
        missing = [line.check for line in self.lines if line.state == "unknown" and line.decides]
        return f"Not shown ({', '.join(dict.fromkeys(missing))}): this attestation is not enough to trust the machine."

    def data(self) -> dict[str, object]:
        """``freehold-attest-check-1``."""
        return {
            "schema": SCHEMA, "verdict": "ok" if self.good else "refused", "conclusion": self.conclusion(),
            "lock": self.lock if self.good else None,
            "lines": [
                {"check": one.check, "state": one.state, "text": one.text, "decides": one.decides} for one in self.lines
            ],
        }  # fmt: skip

    def text(self) -> str:
        """For people."""
        width = max((len(line.check) for line in self.lines), default=0)
        rows = [f"{line.state:7}  {line.check:{width}}  {line.text}" for line in self.lines]
        return "\n".join([*rows, "", self.conclusion()])
