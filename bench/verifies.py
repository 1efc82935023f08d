# SPDX-License-Identifier: Apache-2.0
"""``freehold verify`` against ``sha256sum`` over the same objects, on the booted reference machine, cold cache both."""

from __future__ import annotations

import json

from bench.builds import Bench
from bench.measure import REPOSITORY, Ratio, Series, say, write
from freehold.monitor import NullMonitor
from freehold.vm import Machine, start

#: At least 60 % of sha256sum's speed: at most so much of its time for each byte.
VERIFY_LIMIT = 1 / 0.6
DRIVER = REPOSITORY / "bench" / "reread.py"
#: Seconds that all rounds may take on an emulated machine.
TIMEOUT = 3600


def measure_verify(bench: Bench, rounds: int) -> list[Ratio]:
    """One reader against one, two against two; then two of ours against one of ours."""
    bench.work.mkdir(parents=True, exist_ok=True)
    disk = bench.work / "sealed.raw"
    vm = start(Machine("bench-verify", disk if disk.exists() else bench.disk(), snapshot=True), NullMonitor())
    try:
        vm.exec(["systemctl", "is-system-running", "--wait"], check=False, timeout=300)
        done = vm.exec(["python3", "-", str(rounds)], stdin=DRIVER.read_bytes(), timeout=TIMEOUT)
    finally:
        vm.stop(hard=True)
    kinds: list[Series] = []
    ratios: list[Ratio] = []
    rows = json.loads(done.stdout)
    speeds: dict[int, float] = {}
    for jobs in (1, 2):
        mine = [row for row in rows if row["jobs"] == jobs]
        loads = [round(row["load"], 2) for row in mine]
        ours = Series(f"freehold verify --jobs {jobs}", [row["verify"] for row in mine], loads)
        theirs = Series(f"sha256sum, {jobs} at a time", [row["sha256sum"] for row in mine], loads)
        kinds += [ours, theirs]
        # Seconds for each byte: the command reads the image and the kernel as well, and starts a Python.
        speeds[jobs] = ours.median / mine[0]["verify_bytes"]
        ratio = speeds[jobs] / (theirs.median / mine[0]["sha256sum_bytes"])
        ratios.append(Ratio(f"freehold verify / sha256sum, time for each byte ({jobs} at a time)", ratio, VERIFY_LIMIT))
        say(f"{jobs} at a time: verify {1e-6 / speeds[jobs]:.0f} MB/s, ratio {ratio:.2f}")
    ratios.append(Ratio("freehold verify with two readers / with one", speeds[2] / speeds[1], 1.0))
    write("verify", kinds, ratios, bytes=rows[0]["verify_bytes"])
    return ratios
