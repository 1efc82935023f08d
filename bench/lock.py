# SPDX-License-Identifier: Apache-2.0
"""What the lock costs: starting programs, a job in a container, reading, booting; beside it fapolicyd and IPE.

The guard's mode only rises within a boot, so open and locked are two boots of one disk, in turn and in changing order
(open, locked; locked, open; …). fapolicyd and IPE are measured in the open boots, each against the same boot without them.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.boots import machine_settings, property_of
from bench.builds import Bench
from bench.lock_disks import USER, booted, make, mode
from bench.lock_peers import start_fapolicyd, start_ipe
from bench.measure import REPOSITORY, Ratio, Series, load, say, write
from freehold.errors import FreeholdError
from freehold.vm import VirtualMachine

#: Locked against open: starts of /bin/true; seconds that a boot takes longer. A container's job has no number in the promise:
#: no difference that can be measured, and single samples lie this far apart.
SPAWN_LIMIT, BOOT_LIMIT, JOB_LIMIT = 1.02, 1.5, 1.03
#: Starts of each state altogether, at least; of one lot.
SPAWNS, LOT = 10_000, 500
#: Samples of a job in each boot.
JOBS = 5
SPAWN_MANY = (REPOSITORY / "bench" / "spawn_many.py").read_bytes()
SPAWN = (REPOSITORY / "bench" / "spawn.py").read_bytes()
#: Six programs a turn, as a configure script or a compiler driver starts them.
JOB = ("for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do sed -n 1,40p /usr/lib/os-release | sort | tr a-z A-Z | cut -c1-20 | "
       "uniq | wc -l > /dev/null; done")  # fmt: skip
#: A shell takes its input a byte at a time, each a question to the guard; `dd` is no interpreter.
READS = {
    "shell": ["sh", "-c", "while read -r line; do :; done < /usr/etc/services"],
    "dd": ["dd", "if=/usr/bin/python3", "of=/dev/null", "bs=64", "count=40000", "status=none"],
}


@dataclass
class Samples:
    """One state's samples, in the order in which they were taken."""

    name: str
    spawns: list[float] = field(default_factory=list)
    jobs: list[float] = field(default_factory=list)
    reads: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in READS})
    boots: list[float] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)

    def series(self) -> list[Series]:
        """What has samples, for the results."""
        kinds = {
            f"{LOT} starts of /bin/true": self.spawns, "job in a rootless container": self.jobs,
            **{f"reads by {kind}": samples for kind, samples in self.reads.items()}, "kernel to multi-user": self.boots,
        }  # fmt: skip
        return [Series(f"{self.name}: {kind}", samples, self.loads) for kind, samples in kinds.items() if samples]


def paired(these: Sequence[float], those: Sequence[float]) -> float:
    """The median of the ratios, sample by sample. Pure."""
    return statistics.median(one / other for one, other in zip(these, those, strict=True))


def longer(these: Sequence[float], those: Sequence[float]) -> float:
    """The median of the differences, sample by sample. Pure."""
    return statistics.median(one - other for one, other in zip(these, those, strict=True))


def spread(samples: Sequence[float]) -> float:
    """How far a sample lies from the median, half of them at most, as a part of it. Pure."""
    middle = statistics.median(samples)
    return statistics.median(abs(one - middle) for one in samples) / middle


def lots(rounds: int) -> int:
    """Lots for each boot, so that all rounds together start at least :data:`SPAWNS` programs. Pure."""
    return -(-SPAWNS // (rounds * LOT))


def order(turn: int) -> tuple[str, str]:
    """Which of the two boots first: in turn, so that what drifts falls on both. Pure."""
    return ("open", "locked") if turn % 2 == 0 else ("locked", "open")


def spawns(vm: VirtualMachine, count: int) -> list[float]:
    """Lots of starts, by root; seconds each."""
    done = vm.exec(["python3", "-", str(count), str(LOT), "/bin/true"], stdin=SPAWN_MANY, timeout=900)
    return list(json.loads(done.stdout))


def jobs(vm: VirtualMachine) -> list[float]:
    """The job in a user's rootless container, each time from within it; seconds."""
    vm.write_file(f"/home/{USER}/rootfs/spawn.py", SPAWN)
    container = ["podman", "run", "--rm", "--network", "none", "-v", "/usr:/usr:ro", "--rootfs", f"/home/{USER}/rootfs"]
    done = vm.exec([*container, "/usr/bin/python3", "/spawn.py", str(JOBS), "sh", "-c", JOB], user=USER, timeout=600)
    return list(json.loads(done.stdout)[0])


def reads(vm: VirtualMachine) -> dict[str, list[float]]:
    """Many small reads of sealed files, by root; seconds."""
    words = [word for command in READS.values() for word in ("--", *command)][1:]
    done = vm.exec(["python3", "-", str(JOBS), *words], stdin=SPAWN, timeout=600)
    return dict(zip(READS, json.loads(done.stdout), strict=True))


def measure_boot(vm: VirtualMachine, into: Samples) -> None:
    """The kernel's clock when multi-user.target was reached."""
    into.loads.append(load())
    into.boots.append(property_of(vm, "-p", "ActiveEnterTimestampMonotonic", "multi-user.target"))


def measure_state(vm: VirtualMachine, into: Samples, count: int) -> None:
    """What both states are asked."""
    measure_boot(vm, into)
    into.spawns += spawns(vm, count)
    for kind, samples in reads(vm).items():
        into.reads[kind] += samples
    into.jobs += jobs(vm)


def beside(bench: Bench, vm: VirtualMachine, bare: Samples, others: dict[str, Samples], count: int) -> dict[str, str]:
    """fapolicyd, nothing, IPE, in one boot; what could not be measured, and why."""
    faults = {}
    try:
        start_fapolicyd(vm)
        others["fapolicyd"].spawns += spawns(vm, count)
    except FreeholdError as error:
        faults["fapolicyd"] = error.message
    vm.exec(["systemctl", "stop", "fapolicyd.service"], timeout=120)
    bare.spawns += spawns(vm, count)
    try:
        start_ipe(bench, vm)
        others["IPE"].spawns += spawns(vm, count)
    except FreeholdError as error:
        faults["IPE"] = error.message
    for name, fault in faults.items():
        say(f"{name} could not be measured: {fault}")
    return faults


def ratios(states: dict[str, Samples], bare: Samples, others: dict[str, Samples]) -> tuple[list[Ratio], dict[str, float]]:
    """The promises, and what is told beside them. Pure."""
    opened, locked = states["open"], states["locked"]
    promises = [
        Ratio("10,000 starts of /bin/true, locked / open", paired(locked.spawns, opened.spawns), SPAWN_LIMIT),
        Ratio("job in a rootless container, locked / open", paired(locked.jobs, opened.jobs), JOB_LIMIT),
        boot_promise(states),
    ]
    # One that failed in some boot has no pairs.
    whole = {name: one for name, one in others.items() if one.spawns and len(one.spawns) == len(bare.spawns)}
    told = {f"starts, {name} / nothing": paired(one.spawns, bare.spawns) for name, one in whole.items()}
    told |= {f"reads by {kind}, locked / open": paired(locked.reads[kind], opened.reads[kind]) for kind in READS}
    told |= {"spread of starts, open": spread(opened.spawns), "spread of the job, open": spread(opened.jobs)}
    return promises, {name: round(value, 4) for name, value in told.items()}


def boot_promise(states: dict[str, Samples]) -> Ratio:
    """What a locked boot takes longer. Pure."""
    return Ratio("a locked boot takes longer by", longer(states["locked"].boots, states["open"].boots), BOOT_LIMIT, "s")


def measure_lock_boots(bench: Bench, rounds: int) -> list[Ratio]:
    """The boots alone, in pairs."""
    disks = make(bench, beside=False)
    states = {name: Samples(name) for name in ("open", "locked")}
    for turn in range(rounds):
        for name in order(turn):
            with booted(bench, disks.locked if name == "locked" else disks.open) as vm:
                mode(vm, "locked" if name == "locked" else "absent")
                measure_boot(vm, states[name])
            say(f"{name}: multi-user after {states[name].boots[-1]:.2f} s")
    promises = [boot_promise(states)]
    kinds = [series for one in states.values() for series in one.series()]
    write("lock-boot", kinds, promises, settings={**machine_settings(disks.open), "secure_boot": True})
    return promises


def measure_lock(bench: Bench, rounds: int) -> list[Ratio]:
    """Everything, in ``rounds`` pairs of boots."""
    disks = make(bench, beside=True)
    count = lots(rounds)
    states = {name: Samples(name) for name in ("open", "locked")}
    faults: dict[str, str] = {}
    bare, others = Samples("open, between the two"), {name: Samples(f"open, {name}") for name in ("fapolicyd", "IPE")}
    for turn in range(rounds):
        for name in order(turn):
            with booted(bench, disks.locked if name == "locked" else disks.open) as vm:
                mode(vm, "locked" if name == "locked" else "absent")
                measure_state(vm, states[name], count)
                if name == "open":
                    faults |= beside(bench, vm, bare, others, count)
            one = states[name]
            starts, job = statistics.median(one.spawns[-count:]), statistics.median(one.jobs[-JOBS:])
            say(f"{name}: {LOT} starts {starts:.2f} s, job {job:.2f} s, multi-user after {one.boots[-1]:.2f} s")
    promises, told = ratios(states, bare, others)
    for what, value in told.items():
        say(f"{what}: {value}")
    say(f"the guard's maps take {disks.maps:,} bytes of memory, its programs {disks.programs:,}")
    kinds = [series for one in (*states.values(), bare, *others.values()) for series in one.series()]
    settings = {**machine_settings(disks.open), "secure_boot": True}
    more: dict[str, object] = {
        "told": told, "not_measured": faults, "maps_bytes": disks.maps, "programs_bytes": disks.programs,
        "starts": count * rounds * LOT,
    }  # fmt: skip
    write("lock", kinds, promises, settings=settings, **more)
    return promises
