# SPDX-License-Identifier: Apache-2.0
"""Whether a row's plant fired on the open machine, and on the locked one: two sights in, a verdict out. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from attack.persistence.model import LOCKED, NATIVE, OPEN, Class, Done, Live, Row, Sight

#: Ends. kept: nothing fired, and it would have. fired: something did. void: nobody knows, since its control did not fire.
#: untold: nothing fired, and what has to tell of it does not. other: refused for another reason than the lock.
#: broken: something that has to go on working does not.
KEPT, FIRED, VOID, UNTOLD, OTHER, BROKEN, SKIPPED = "kept", "fired", "void", "untold", "other", "broken", "skipped"


#: What canaries of a user's own programs are called, which nobody minds.
MINE = "c00-mine"


@dataclass(frozen=True)
class Verdict:
    """``open`` and ``locked`` in a word each, as the table shows them; ``told`` in a sentence."""

    id: str
    kind: Class
    title: str
    end: str
    open: str
    locked: str
    told: str = ""

    @property
    def kept(self) -> bool:
        """Whether the promise was seen kept."""
        return self.end == KEPT


def _short(done: Done) -> str:
    return " ".join(done.text.split())[-160:] or f"exit status {done.status}"


def _own(row: Row, name: str) -> bool:
    return name in row.canaries or name == row.id or name.startswith(f"{row.id}.")


def grown(row: Row, sight: Sight, boot: str) -> dict[str, set[int]]:
    """The row's canaries that grew in ``boot`` (an id), each with the uids that made them grow."""
    found: dict[str, set[int]] = {}
    for name, lines in sight.canaries.items():
        uids = {uid for uid, where in lines if where in (boot, "") and (uid == 0 or not row.root_only)}
        if _own(row, name) and uids:
            found[name] = uids
    return found


def _seen(row: Row, sight: Sight) -> bool:
    look = sight.looks.get(row.id)
    return look is not None and re.search(row.found, look.text) is not None


def _missing(row: Row, sight: Sight, boot: str) -> list[str]:
    there = grown(row, sight, boot)
    missing = [f"canary {name}" for name in row.canaries if name not in there]
    if row.look and not _seen(row, sight):
        missing.append(f"look ({_short(sight.looks.get(row.id, Done(-1, 'not taken')))})")
    return missing


def control(row: Row, opened: Sight, locked: Sight) -> tuple[str, str]:
    """(the word for the open machine, why the row is void or nothing)."""
    plant = opened.planted.get(row.id, Done(-1, "not planted"))
    if row.control == "elsewhere":
        return "elsewhere", ""
    if row.control == "absent":
        for name, sight in ((OPEN, opened), (LOCKED, locked)):
            check = sight.absence.get(row.id, Done(-1, "not checked"))
            if not check.good:
                return "there", f"what it needs is in the image after all ({name}: {_short(check)})"
        if there := {**grown(row, opened, opened.first), **grown(row, opened, opened.second)}:
            return "fires", f"it is called absent and fires: {', '.join(there)}"
        return "absent", ""
    if row.control == "closed":
        if plant.good or not re.search(row.reason, plant.text):
            return "not closed", f"it is called closed, and the open machine says: {_short(plant)}"
        return "closed", ""
    if not plant.good:
        return "silent", f"it could not be planted on the open machine: {_short(plant)}"
    if missing := _missing(row, opened, opened.first if row.control == "now" else opened.second):
        trigger = opened.triggers.get(row.id)
        more = f"; its trigger said: {_short(trigger)}" if trigger and not trigger.good else ""
        return "silent", f"on the open machine nothing of {', '.join(missing)}{more}"
    return "fires", ""


def unfinished(row: Row, locked: Sight) -> str:
    """What of the row was not done on the locked machine, or was stopped: then its silence says nothing. Empty: all was done."""
    runs = (("plant", row.plant, locked.planted), ("look", row.look, locked.looks), ("trigger", row.trigger, locked.triggers))
    for what, script, done in runs:
        if script and done.get(row.id, Done(-1)).status == -1:
            return f"its {what} did not end on the locked machine"
    return ""


def judge(row: Row, opened: Sight, locked: Sight) -> Verdict:
    """The verdict on a planted row."""
    word, void = control(row, opened, locked)
    plant = locked.planted.get(row.id, Done(-1, "not planted"))
    fired = grown(row, locked, locked.second)
    if row.documented:
        return _documented(row, locked, word, void, fired)
    # Native code of root's must not run at all while locked, in the boot of its planting neither.
    early = {name for name, uids in grown(row, locked, locked.first).items() if name.endswith(NATIVE) and 0 in uids}
    what = [f"canary {name} (uid {', '.join(map(str, sorted(uids)))})" for name, uids in sorted(fired.items())]
    what += [f"canary {name} before the reboot" for name in sorted(early - set(fired))]
    if row.look and _seen(row, locked):
        what.append(_short(locked.looks[row.id]))
    how = "no" if plant.good else "refused"
    if what:
        return Verdict(row.id, row.kind, row.title, FIRED, word, "FIRED", f"on the locked machine: {'; '.join(what)}")
    if void or (void := unfinished(row, locked)):
        return Verdict(row.id, row.kind, row.title, VOID, word, how, void)
    if row.control == "closed" and (plant.good or not re.search(row.reason, plant.text)):
        return Verdict(row.id, row.kind, row.title, OTHER, word, how, f"the locked machine says: {_short(plant)}")
    if row.trace and plant.good and not re.search(row.trace, locked.trace):
        return Verdict(row.id, row.kind, row.title, UNTOLD, word, how, "status, verify and log say nothing of it")
    told = "" if plant.good else _short(plant)
    if row.covered_by:
        told = "; ".join(filter(None, [told, f"tamper table: {', '.join(row.covered_by)}"]))
    return Verdict(row.id, row.kind, row.title, KEPT, word, how, told)


def _documented(row: Row, locked: Sight, word: str, void: str, fired: dict[str, set[int]]) -> Verdict:
    """Out of scope: it works for a user, and gives nothing that only root has."""
    if void:
        return Verdict(row.id, row.kind, row.title, VOID, word, "?", void)
    if any(0 in uids for uids in fired.values()):
        return Verdict(row.id, row.kind, row.title, FIRED, word, "FIRED", "it fired as root")
    if row.control != "absent" and (missing := _missing(row, locked, locked.second)):
        told = f"documented to work for a user, and does not: {', '.join(missing)}"
        return Verdict(row.id, row.kind, row.title, BROKEN, word, "no", told)
    return Verdict(row.id, row.kind, row.title, KEPT, word, "as user" if fired else "no")


def judge_live(live: Live, opened: Sight, locked: Sight) -> Verdict:
    """The verdict on an act on the running machines."""
    there, here = opened.live.get(live.id), locked.live.get(live.id)
    if there is None or here is None:
        return Verdict(live.id, live.kind, live.title, VOID, "?", "?", "it was not played")
    word, void = _live_control(live, there)
    if live.allowed:
        end = VOID if void else KEPT if here.good else BROKEN
        told = void or ("" if here.good else _short(here))
        return Verdict(live.id, live.kind, live.title, end, word, "works" if here.good else "REFUSED", told)
    if here.good or (live.past and re.search(live.past, here.text)):
        return Verdict(live.id, live.kind, live.title, FIRED, word, "WORKS", f"the locked machine let it: {_short(here)}")
    if void:
        return Verdict(live.id, live.kind, live.title, VOID, word, "refused", void)
    if not re.search(live.reason, here.text):
        return Verdict(live.id, live.kind, live.title, OTHER, word, "fails", f"for another reason: {_short(here)}")
    return Verdict(live.id, live.kind, live.title, KEPT, word, "refused")


def _live_control(live: Live, there: Done) -> tuple[str, str]:
    if live.control == "works":
        if there.good or (live.past and re.search(live.past, there.text)):
            return "works", ""
        return "fails", f"the open machine did not do it either: {_short(there)}"
    if there.good or not re.search(live.reason, there.text):
        return "not " + live.control, f"it is called {live.control}, and the open machine says: {_short(there)}"
    return live.control, ""


def judge_collateral(live: Live, opened: Sight, locked: Sight) -> Verdict:
    """The verdict on something that has to work on both machines after the reboot."""
    shown = Sight("", "", live=opened.collateral), Sight("", "", live=locked.collateral)
    return judge_live(live, *shown)


def faults(rows: Sequence[Row], opened: Sight, locked: Sight) -> list[str]:
    """What makes all verdicts doubtful: machines that are not what they have to be; an empty list is the only good answer."""
    found = []
    if opened.lock != OPEN:
        found.append(f"the control machine is {opened.lock or 'of no state'}, not open")
    if locked.lock != LOCKED:
        found.append(f"after its reboot the locked machine is {locked.lock or 'of no state'}")
    if locked.target != "running":
        found.append(f"the locked machine did not reach its normal target: {locked.target} ({locked.failed or 'no unit named'})")
    for name, sight in ((OPEN, opened), (LOCKED, locked)):
        if not sight.first or sight.first == sight.second:
            found.append(f"the {name} machine was not rebooted")
    known = (MINE, "library")
    strangers = [name for name in locked.canaries if not name.startswith(known) and not any(_own(row, name) for row in rows)]
    if strangers:
        found.append(f"canaries that no row knows grew on the locked machine: {', '.join(sorted(strangers))}")
    return found
