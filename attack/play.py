# SPDX-License-Identifier: Apache-2.0
"""Playing rows: a fresh copy of the base, the changes, a start, a look, and the way back."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from demo.stage import Stage

from attack import base as bases
from attack import boot
from attack.base import Base
from attack.model import Facts, Row, Seen
from attack.target import Target
from freehold.build.tools import Tools
from freehold.errors import FreeholdError
from freehold.vm import Machine, VirtualMachine
from freehold.vm.launch import adopt

#: Seconds to wait for the machine after its way back.
RECOVERY = 480.0
TITLE = "Freehold server {version}"


class Player:
    """Plays rows on one machine, one after the other."""

    def __init__(self, stage: Stage, tools: Tools, base: Base) -> None:
        self.stage, self.tools, self.base = stage, tools, base
        self.work = stage.path("attack-work")
        self.disk = bases.working_disk(stage)

    def target(self, row: Row) -> Target:
        """A fresh copy of the base that ``row`` starts from, with an empty bench."""
        keys = self.work / "stranger"
        kept = self.stage.path("stranger")
        if keys.exists() and not kept.exists():
            shutil.copytree(keys, kept)
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        if kept.exists():
            shutil.copytree(kept, keys)
        bases.copy(self.base.disk(row.base), self.disk)
        store = self.work / "variables.fd"
        shutil.copyfile(self.base.variables(row.base), store)
        return Target(self.tools, self.disk, store, self.work, self.base.truth, self.stage.keys, self.stage.store)

    def machine(self, row: Row, extra: Sequence[str] = ()) -> Machine:
        """The machine that ``row`` starts."""
        return Machine(
            self.stage.name,
            self.disk,
            secure_boot=row.secure_boot,
            tpm=self.base.tpm,
            extra=tuple(extra),
            timeout=RECOVERY,
        )

    def play(self, rows: Sequence[Row]) -> Seen:
        """Change a copy by every row of one boot, start it, and say what was seen.

        Raises what the changes raise: a row that cannot make its change has not been played.
        """
        self.off()
        began = time.monotonic()
        row = rows[0]
        target = self.target(row)
        for one in rows:
            one.change(target)
        machine = self.machine(row, target.extra)
        adopt(machine, target.store, self.base.tpm_state(row.base) if self.base.tpm else None, self.tools)
        vm = boot.run(machine)
        try:
            watched = boot.watch(vm, row.reason)
            facts = boot.facts(vm, rows) if watched.answers else None
            console = boot.console_of(vm)[-boot.MAX_CONSOLE :]
        finally:
            vm.stop(hard=True)
        recovered, how = (None, "")
        if facts is None and "refused" in row.ends:
            recovered, how = self.recover(row, machine)
        return Seen(console, facts, watched.stopped, time.monotonic() - began, recovered, how)

    def recover(self, row: Row, machine: Machine) -> tuple[Facts | None, str]:
        """Walk the row's way back on the very machine that refused; (what runs then, the way in words)."""
        if row.way_back == "bytes":
            # The disk's own bytes; variables and TPM stay as the refused start left them.
            bases.copy(self.base.disk(row.base), self.disk)
            vm, how = boot.run(self.machine(row)), "its own bytes put back"
        else:
            vm, how = boot.run(machine), "the previous deployment chosen in the boot menu"
        try:
            if row.way_back == "menu" and not boot.choose_other_entry(
                vm, TITLE.format(version=self.base.truth.versions[1])
            ):
                return None, "the boot menu does not come"
            return self._answer(vm), how
        except FreeholdError as error:
            return None, f"{how}: {error.message}"
        finally:
            vm.stop(hard=True)

    def _answer(self, vm: VirtualMachine) -> Facts:
        vm.wait_answer(RECOVERY)
        return boot.facts(vm, ())

    def off(self) -> None:
        """Switch the machine off, whoever left it on."""
        self.stage.freehold("vm", "stop", self.stage.name, "--hard", check=False)


def features(base: Base, tpm: bool) -> dict[str, str]:
    """What a row may need, with the reason when it is not there; empty: it is."""
    newest = base.truth.command_lines[base.truth.versions[0]]
    no_tpm = "" if tpm else "the machine has no TPM"
    no_floor = (
        "" if "freehold.release=" in newest else "the kernel image has no freehold.release=: there is no floor yet"
    )
    return {"": "", "tpm": no_tpm, "floor": no_floor, "floor-tpm": no_floor or no_tpm}


def log(directory: Path, row: Row, seen: Seen) -> None:
    """Leave a row's console where a person looks for it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{row.id}.log").write_text(f"{seen.console}\n--- {seen.stopped} after {seen.seconds:.0f} s\n")
