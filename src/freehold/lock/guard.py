# SPDX-License-Identifier: Apache-2.0
"""The guard as the device's commands see it: state, refusals, and the one-way latch, through ``guardctl``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freehold import run
from freehold.errors import FreeholdError, NotHereError
from freehold.lock import denials as refusals

if TYPE_CHECKING:
    from freehold.lock.intent import Intent, Tier

GUARDCTL = Path("/usr/lib/freehold/guardctl")
LOCKDOWN = Path("/sys/kernel/security/lockdown")
KMSG = Path("/dev/kmsg")
#: More records than any kernel's buffer holds.
MAX_RECORDS = 100_000
#: Tells the journal about refusals.
REPORTER = "freehold-refusals.service"


def _ask(*arguments: str, check: bool = True) -> dict[str, Any]:
    if not GUARDCTL.is_file():
        raise NotHereError("this is not a Freehold machine: it has no guard")
    done = run.run([GUARDCTL, *arguments], check=False)
    if check and done.status != 0:
        text = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise FreeholdError(f"the guard did not answer: {text.splitlines()[-1] if text else 'no message'}")
    answer: dict[str, Any] = json.loads(done.stdout or b"{}")
    return answer


def mode() -> str:
    """``open``, ``audit`` or ``locked``. An open machine has not loaded the guard."""
    return str(_ask("status")["mode"])


def load() -> None:
    """Load the guard, which refuses nothing yet; done already is as good. :class:`FreeholdError` where it cannot be."""
    _ask("load")


def denials() -> tuple[str, list[dict[str, Any]]]:
    """The mode, and the records of what was refused, or in audit mode would have been."""
    state = _ask("status")
    return str(state["mode"]), list(_ask("denials")["denials"]) if state["loaded"] else []


def kernel_records() -> list[str]:
    """The kernel's log as far as it is kept, a record an element; empty where this process may not read it."""
    try:
        fd = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    records: list[str] = []
    try:
        while len(records) < MAX_RECORDS:
            try:
                record = os.read(fd, 8192)
            except BrokenPipeError:
                continue  # this one was overwritten meanwhile; the next read goes on behind it
            if not record:
                break
            records.append(record.decode(errors="replace"))
    except OSError:
        pass  # EAGAIN: that was the last one
    finally:
        os.close(fd)
    return records


class Finder:
    """Finds the files of records by the mounts of this process. A record has only the end of its path."""

    def __init__(self, mountinfo: Path = Path("/proc/self/mountinfo")) -> None:
        self.mounts = mountinfo.read_text(errors="surrogateescape")

    def find(self, path: str) -> str | None:
        """The path of the record's file, if there is one file that it can be."""
        found = [place for place in refusals.places(path, self.mounts) if os.path.lexists(place)]
        if not found or any(not os.path.samestat(os.lstat(found[0]), os.lstat(other)) for other in found):
            return None
        # JSON and terminals take text only.
        return found[0] if found[0].isprintable() else None


def preflight(tier: Tier = "privileged") -> list[dict[str, Any]]:
    """Processes that hold already what the lock would not let them get: code (users' too, by ``tier``), files of the owner."""
    answer = _ask("preflight", *([] if tier == "privileged" else [tier]), check=False)
    if not {"mappings", "writers", "readers"} <= answer.keys():
        raise FreeholdError("the guard could not look through the running processes")
    return [{"comm": _name(row.get("pid")), **row} for row in [*answer["mappings"], *answer["writers"], *answer["readers"]]]


def _name(pid: object) -> str:
    """What the process calls itself; it may have ended since."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return "?"


def latch(wanted: Intent) -> None:
    """Switch enforcement (``locked``) or recording (``audit``) on, in the intent's tiers; there is no way back in this boot."""
    if wanted.lock == "locked":
        try:
            LOCKDOWN.write_text("integrity")
        except PermissionError:
            # It is at this level already, as with Secure Boot.
            if "[integrity]" not in LOCKDOWN.read_text() and "[confidentiality]" not in LOCKDOWN.read_text():
                raise
    words = [word for word, said in (("all-code", wanted.tier == "all-code"), ("S2", wanted.scripts == "s2")) if said]
    run.run([GUARDCTL, "latch", wanted.lock, *words])
    # A boot that begins with the guard starts it by itself. It only tells: whether it runs changes nothing else.
    run.run(["systemctl", "start", "--no-block", REPORTER], check=False)
