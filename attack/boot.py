# SPDX-License-Identifier: Apache-2.0
"""Starting a changed machine and watching it: until it answers, stands still, or goes round in circles."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from attack.judge import DEAD_END
from attack.model import Facts, Row
from freehold.errors import CommandError, FreeholdError
from freehold.monitor import NullMonitor
from freehold.vm import Machine, VirtualMachine, start
from freehold.vm.agent import AgentGoneError
from freehold.vm.state import printable

#: Seconds for one start, however often the machine restarts itself.
LIMIT = {"kvm": 180.0, "tcg": 480.0}
#: Seconds of a silent console after which a machine that gave its reason stands still: in the firmware, and once a
#: kernel runs, which may have nothing to say for long under emulation.
QUIET = 25.0
KERNEL_QUIET = 90.0
#: So many restarts for one reason are a circle: a deployment that falls back does so at once, or after its three tries.
CIRCLES = 5
SETTLE = 240.0
#: Printed by the kernel (its banner) at each start.
KERNEL = re.compile(r"Linux version \d")
#: Characters of a console that are kept.
MAX_CONSOLE = 60_000


@dataclass(frozen=True)
class Watched:
    """What a start came to: the console's text, whether the guest answers, why watching ended."""

    console: str
    answers: bool
    stopped: str


def console_of(vm: VirtualMachine) -> str:
    """What this start printed, as text without control sequences."""
    return "\n".join(printable(vm.serial()))


def verdict_of(console: str, reason: str, quiet: float) -> str:
    """Whether watching can end, and why; empty while it has to go on. Pure.

    ``quiet`` is the time in seconds for which the console has been silent.
    """
    if DEAD_END.search(console) and quiet > QUIET / 2:
        return "dead end"
    if reason and re.search(reason, console):
        if len(re.findall(reason, console)) >= CIRCLES and len(KERNEL.findall(console)) >= CIRCLES:
            return "it restarts in a circle"
        if quiet > (KERNEL_QUIET if KERNEL.search(console) else QUIET):
            return "it stands still"
    return ""


def watch(vm: VirtualMachine, reason: str) -> Watched:
    """Wait until the guest answers or will not."""
    began = changed = time.monotonic()
    size = 0
    while True:
        console = console_of(vm)
        if not vm.alive:
            return Watched(console, False, "it switched itself off")
        if answers(vm):
            return Watched(console_of(vm), True, "answers")
        if len(console) != size:
            size, changed = len(console), time.monotonic()
        if stopped := verdict_of(console, reason, time.monotonic() - changed):
            return Watched(console, False, stopped)
        if time.monotonic() - began > LIMIT[vm.record.accelerator]:
            return Watched(console, False, "time is up")
        time.sleep(0.5)


def answers(vm: VirtualMachine) -> bool:
    """Whether the guest's agent answers."""
    try:
        return bool(vm.has_agent() and vm.guest.boot_id(timeout=10.0))
    except (AgentGoneError, FreeholdError):
        return False


def facts(vm: VirtualMachine, rows: Sequence[Row]) -> Facts:
    """Ask a machine that answers, once its units have started, what it is, and each row's own questions."""
    with contextlib.suppress(CommandError):
        # A unit that never settles is no reason not to look.
        vm.exec(["systemctl", "is-system-running", "--wait"], check=False, timeout=SETTLE)
    status = json.loads(vm.exec(["freehold", "status", "--json"], timeout=60).stdout)
    boot = json.loads(vm.exec(["cat", "/run/freehold/boot.json"]).stdout)
    line = vm.exec(["cat", "/proc/cmdline"]).text.strip()
    booted = [one for one in status["deployments"] if one["booted"]]
    lock = status["lock"]
    probes = {
        f"{row.id}/{number}": _ask(vm, probe.script) for row in rows for number, probe in enumerate(row.probes)
    }  # fmt: skip
    # Last: a question may be what makes planted code run.
    canaries = vm.exec(["ls", "-A", "/var/canary"], check=False).text.split()
    return Facts(
        image=str(boot.get("image", "")), command_line=line, version=str(booted[0]["version"]) if booted else "",
        lock=str(lock["state"]), secure_boot=lock["secure_boot"] is True, keychain=str(lock.get("keychain_source", "")),
        certificates=int(lock.get("keychain_loaded", 0)), machine=str(boot.get("machine", "")),
        config=str(boot.get("config", "")), canaries=tuple(sorted(canaries)), probes=probes,
    )  # fmt: skip


def _ask(vm: VirtualMachine, script: str) -> str:
    done = vm.exec(["sh", "-c", script], check=False, timeout=120)
    return (done.text + done.stderr.decode(errors="replace")).strip()[:4000]


def run(machine: Machine) -> VirtualMachine:
    """Start a machine without waiting."""
    return start(machine, NullMonitor(), wait=False)


def choose_other_entry(vm: VirtualMachine, title: str, *, steps: int = 1, timeout: float = 90.0) -> bool:
    """As a person at the keyboard: hold the space bar until the boot menu shows ``title``, go down, and press Enter.

    False when the menu does not come.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if title in console_of(vm):
            break
        vm.key("spc")
        time.sleep(0.15)
    else:
        return False
    # Keys pressed too often are drained by the menu; it repaints within this time.
    time.sleep(2.0)
    for _ in range(steps):
        vm.key("down")
        time.sleep(0.5)
    vm.key("ret")
    return True
