# SPDX-License-Identifier: Apache-2.0
"""``make bench``: measures what the project promises and prints a table of ratios; see docs/benchmarks.md.

``python -m bench.run [build] [boot] [status] [verify] [lock] [lock-boot]`` from the repository's top, or by its path.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

# By its path, neither the repository nor its sources are on the module path.
sys.path[:0] = [str(Path(__file__).resolve().parents[1] / part) for part in ("", "src")]

from bench.boots import measure_boots  # noqa: E402
from bench.builds import Bench, measure_builds  # noqa: E402
from bench.lock import measure_lock, measure_lock_boots  # noqa: E402
from bench.measure import machine, table  # noqa: E402
from bench.statuses import measure_status  # noqa: E402
from bench.verifies import measure_verify  # noqa: E402
from freehold.build.store import cache_directory  # noqa: E402
from freehold.errors import FreeholdError  # noqa: E402

#: Starting programs is compared to two hundredths: fewer pairs of boots do not show that.
LOCK_ROUNDS = 4
PARTS = ("build", "boot", "status", "verify", "lock")
#: Not part of everything: `lock` has it too.
MORE = ("lock-boot",)


def main(arguments: list[str]) -> int:
    """Measure the chosen parts; the exit status is 0 whether or not every promise was kept."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all these), {', '.join(MORE)}")
    parser.add_argument("--rounds", type=int, default=3, help="samples of each build and boot (default 3)")
    parser.add_argument("--work", type=Path, help="where to work (default: bench in Freehold's cache); about 6 GiB")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a promise was not kept")
    options = parser.parse_args(arguments)
    chosen = options.parts or PARTS
    if unknown := set(chosen) - {*PARTS, *MORE}:
        parser.error(f"no part is called {', '.join(sorted(unknown))}")
    cache = cache_directory()
    bench = Bench(cache, (options.work or cache / "bench").absolute())
    ratios = []
    try:
        if "build" in chosen:
            ratios += measure_builds(bench, options.rounds)
        if "boot" in chosen:
            ratios += measure_boots(bench, options.rounds)
        if "status" in chosen:
            ratios += measure_status(bench)
        if "verify" in chosen:
            ratios += measure_verify(bench, options.rounds)
        if "lock" in chosen:
            ratios += measure_lock(bench, max(options.rounds, LOCK_ROUNDS))
        if "lock-boot" in chosen:
            ratios += measure_lock_boots(bench, options.rounds)
    except FreeholdError as error:
        print(f"bench: {error.message}\n{error.diagnostics()}", file=sys.stderr)
        return error.exit_status
    print(json.dumps(machine(), ensure_ascii=False))
    print(table(ratios))
    return 1 if options.strict and not all(one.kept for one in ratios) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
