# SPDX-License-Identifier: Apache-2.0
"""Samples, ratios and the machine they were taken on."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from freehold import __version__, atomic, run
from freehold.errors import FreeholdError
from freehold.monitor import NullMonitor
from freehold.vm import host

SCHEMA = "freehold-bench-1"
REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
#: Above this many runnable processes at the start of a sample, somebody else uses the machine too.
NOISY_LOAD = 1.5


@dataclass
class Series:
    """Samples of one thing, in seconds, with the load average before each."""

    name: str
    samples: list[float] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median sample, in seconds."""
        return statistics.median(self.samples)

    def data(self) -> dict[str, object]:
        """The series as JSON."""
        return {
            "name": self.name, "median": round(self.median, 4), "samples": [round(one, 4) for one in self.samples],
            "load_before": self.loads, "noisy": any(load > NOISY_LOAD for load in self.loads),
        }  # fmt: skip


@dataclass(frozen=True)
class Ratio:
    """A promise of the project: ``value`` (a ratio, or seconds) is at most ``limit``."""

    what: str
    value: float
    limit: float
    unit: str = "×"

    @property
    def kept(self) -> bool:
        """Whether the promise is kept."""
        return self.value <= self.limit

    def data(self) -> dict[str, object]:
        """The ratio as JSON."""
        return {
            "what": self.what, "value": round(self.value, 3), "limit": self.limit, "unit": self.unit, "kept": self.kept,
        }  # fmt: skip


def load() -> float:
    """The load average of the last minute."""
    return round(os.getloadavg()[0], 2)


def sample(series: Series, action: Callable[[], object]) -> float:
    """Run ``action`` once, add its wall time to ``series`` and return it (seconds)."""
    series.loads.append(load())
    started = time.perf_counter()
    action()
    seconds = time.perf_counter() - started
    series.samples.append(seconds)
    return seconds


def interleaved(rounds: int, pairs: Sequence[tuple[Series, Callable[[], object]]]) -> None:
    """A B A B …: what the machine does meanwhile falls on all of them alike."""
    for _ in range(rounds):
        for series, action in pairs:
            seconds = sample(series, action)
            say(f"{series.name}: {seconds:.2f} s")


def say(text: str) -> None:
    """One line for the person who waits."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def machine() -> dict[str, object]:
    """The host, as far as it decides the numbers."""
    memory = re.search(r"^MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    model = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    system = re.search(r'^PRETTY_NAME="?([^"\n]+)', Path("/etc/os-release").read_text(), re.MULTILINE)
    return {
        "cores": os.cpu_count(), "processor": model[1] if model else platform.machine(),
        "memory_mib": int(memory[1]) >> 10 if memory else None, "kernel": platform.release(),
        "system": system[1] if system else "unknown", "python": platform.python_version(), "freehold": __version__,
        "qemu": version([*host.qemu(host.tools_tree(NullMonitor())), "--version"]),
        "mmdebstrap": version(["mmdebstrap", "--version"]),
        "load": load(),
    }  # fmt: skip


def version(argv: Sequence[run.Argument]) -> str:
    """The first line that a program says about its version."""
    if shutil.which(argv[0]) is None:
        return "not installed"
    lines = run.run(argv, check=False).text.splitlines()
    return lines[0].strip() if lines else "unknown"


def freehold(argv: Sequence[str | Path], environment: dict[str, str]) -> dict[str, object]:
    """``freehold VERB … --json`` of this checkout, in a process of its own; its report."""
    done = run.run(
        [sys.executable, "-m", "freehold", *argv, "--json"], env={"PYTHONPATH": str(REPOSITORY / "src"), **environment}
    )
    report = json.loads(done.stdout)
    if not isinstance(report, dict):
        raise FreeholdError(f"freehold {argv[0]} gave no report")
    return report


def table(ratios: Sequence[Ratio]) -> str:
    """The promises and what became of them, for people. Pure."""
    rows = [("promise", "measured", "at most", "")]
    for one in ratios:
        verdict = "kept" if one.kept else "MISSED"
        rows.append((one.what, f"{one.value:.3g} {one.unit}", f"{one.limit:g} {one.unit}", verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def write(part: str, series: Sequence[Series], ratios: Sequence[Ratio], **more: object) -> None:
    """Write ``bench/results/PART.json``."""
    taken = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    data = {
        "schema": SCHEMA, "part": part, "taken": taken, "machine": machine(),
        "series": [one.data() for one in series], "ratios": [one.data() for one in ratios], **more,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    atomic.write(RESULTS / f"{part}.json", json.dumps(data, indent=1, ensure_ascii=False) + "\n")
