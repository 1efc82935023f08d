# SPDX-License-Identifier: Apache-2.0
"""Building: Freehold and mkosi side by side, the unchanged rebuild, the share of sealing."""

from __future__ import annotations

import json
import shutil
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from bench.measure import REPOSITORY, Ratio, Series, freehold, interleaved, say, write
from bench.mkosi import Mkosi
from bench.mkosi import ensure as ensure_mkosi
from freehold.build.recipe import Recipe, load
from freehold.build.source import build_package
from freehold.build.tools import ensure as ensure_tools
from freehold.errors import FreeholdError
from freehold.keys.issue import create
from freehold.monitor import NullMonitor

RECIPE = REPOSITORY / "recipes" / "server.toml"
#: Cold build against mkosi's; seconds of an unchanged rebuild; sealing's share of the build.
MKOSI_LIMIT, REBUILD_LIMIT, SEAL_LIMIT = 0.9, 5.0, 0.1


@dataclass
class Bench:
    """Where the benchmark works. ``cache`` is a cache directory of Freehold's, ``work`` is ours alone."""

    cache: Path
    work: Path
    reports: list[dict[str, object]] = field(default_factory=list)
    latest: Path | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What the child needs to find the same cache."""
        return {"XDG_CACHE_HOME": str(self.cache.parent)}

    @property
    def store(self) -> Path:
        """The store of the build that is measured."""
        return self.work / "store"

    @property
    def keys(self) -> Path:
        """Keys made for this run only."""
        return self.work / "keys"

    def make_keys(self) -> None:
        """A release key and an owner's."""
        if not (self.keys / "release.key").is_file():
            create("release", "release", self.keys, None)
            create("owner", "owner", self.keys, None)

    def build(self) -> dict[str, object]:
        """``freehold build`` into :attr:`store`; the report."""
        report = freehold(["build", RECIPE, "--store", self.store, "--keys", self.keys], self.environment)
        self.reports.append(report)
        self.latest = Path(str(report["release"]))
        return report

    def forget(self) -> None:
        """Empty the store; the cache stays."""
        shutil.rmtree(self.store, ignore_errors=True)
        self.latest = None

    def release(self) -> Path:
        """The release that this run built last; what an earlier run left may be of older sources."""
        if self.latest:
            return self.latest
        self.make_keys()
        return Path(str(self.build()["release"]))

    def disk(self) -> Path:
        """``freehold disk`` of the release; the disk."""
        target = self.work / "sealed.raw"
        target.unlink(missing_ok=True)
        argv: list[str | Path] = ["disk", self.release(), "-o", target, "--store", self.store, "--keys", self.keys]
        freehold(argv, self.environment)
        return target


def _local(bench: Bench, recipe: Recipe) -> Path:
    """A directory with just our own package, for mkosi."""
    tools = ensure_tools(bench.cache, NullMonitor())
    deb = build_package(tools, bench.cache, recipe.epoch or 0, NullMonitor()).deb
    folder = bench.work / "local"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(deb, folder)
    return folder


def measure_builds(bench: Bench, rounds: int) -> list[Ratio]:
    """Builds of both, alternating; then disks and unchanged rebuilds. Package files are cached for both."""
    recipe = load(RECIPE)
    bench.work.mkdir(parents=True, exist_ok=True)
    bench.make_keys()
    local = _local(bench, recipe)
    mkosi = ensure_mkosi(bench.cache, bench.work)
    say("filling both package caches; these two builds do not count")
    bench.forget()
    bench.build()
    mkosi.build(recipe, local)
    bench.reports.clear()
    ours, theirs, disk = Series("freehold build, cold"), Series("mkosi build, cold"), Series("freehold disk")

    def cold() -> None:
        if bench.build()["unchanged"]:
            raise FreeholdError("a build into an empty store came back unchanged")

    for _ in range(rounds):
        bench.forget()
        interleaved(1, [(ours, cold), (theirs, lambda: mkosi.build(recipe, local)), (disk, bench.disk)])
    rebuild = Series("freehold build, unchanged")
    interleaved(max(rounds, 3), [(rebuild, bench.build)])
    if not bench.reports[-1]["unchanged"]:
        raise FreeholdError("a rebuild of equal inputs built something", hint="did a source file change meanwhile?")
    return _report(bench, mkosi, ours, theirs, disk, rebuild)


def _report(bench: Bench, mkosi: Mkosi, ours: Series, theirs: Series, disk: Series, rebuild: Series) -> list[Ratio]:
    built = [report for report in bench.reports if not report["unchanged"]]
    steps = [report["seconds"] for report in built if isinstance(report["seconds"], dict)]
    shares = [step["seal"] / total for step, total in zip(steps, ours.samples, strict=True)]
    names = list(steps[0])
    ratios = [
        Ratio("cold build / mkosi's build", ours.median / theirs.median, MKOSI_LIMIT),
        Ratio("unchanged rebuild", rebuild.median, REBUILD_LIMIT, "s"),
        Ratio("sealing / cold build", statistics.median(shares), SEAL_LIMIT),
    ]
    medians = {name: statistics.median(float(step[name]) for step in steps) for name in names}
    manifest = json.loads((bench.release() / "manifest.json").read_text())
    more: dict[str, object] = {
        "packages": len(manifest["packages"]), "mkosi": mkosi.version(),
        "steps": medians,
        "build_and_disk_over_mkosi": round((ours.median + disk.median) / theirs.median, 3),
        "release": manifest["version"],
    }  # fmt: skip
    write("build", [ours, theirs, disk, rebuild], ratios, **more)
    say(f"cold build and disk together / mkosi, which makes a disk too: {more['build_and_disk_over_mkosi']} ×")
    say("steps: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in medians.items()))
    return ratios
