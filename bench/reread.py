# SPDX-License-Identifier: Apache-2.0
"""Runs on the measured system, alone: ``freehold verify`` against ``sha256sum`` over the same objects, as JSON.

``python3 reread.py ROUNDS``: for one reader and for two, in turn, each from an empty page cache. The answer is a list of
``{"jobs", "verify", "verify_bytes", "sha256sum", "sha256sum_bytes", "load"}``; times in seconds. It needs nothing but the
standard library, because the measured system is a sealed one.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

OBJECTS = Path("/sysroot/repo/objects")


def objects() -> tuple[bytes, int]:
    """The names of all files with content, in the order of their inodes, for ``xargs -0``; and their size."""
    found = []
    for path in OBJECTS.glob("??/*.file"):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_size:
            found.append((status.st_ino, status.st_size, path))
    return b"\0".join(os.fsencode(path) for _, _, path in sorted(found)), sum(size for _, size, _ in found)


def forget() -> None:
    """Empty the page cache: both read from the disk."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def timed(argv: list[str], stdin: bytes = b"") -> tuple[float, bytes]:
    """Run ``argv``; seconds and what it printed. Its failure is ours."""
    forget()
    started = time.perf_counter()
    done = subprocess.run(argv, input=stdin, capture_output=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{argv[0]} ended with status {done.returncode}: {(done.stdout + done.stderr).decode()[-2000:]}")
    return seconds, done.stdout


def main(arguments: list[str]) -> None:
    """Measure and print."""
    names, size = objects()
    rows = []
    for _ in range(int(arguments[0])):
        for jobs in (1, 2):
            load = os.getloadavg()[0]
            ours, report = timed(["freehold", "verify", "--json", "--jobs", str(jobs)])
            theirs, _ = timed(["xargs", "-0", "-n", "500", "-P", str(jobs), "sha256sum"], names)
            rows.append(
                {"jobs": jobs, "verify": ours, "verify_bytes": json.loads(report)["bytes"], "sha256sum": theirs,
                 "sha256sum_bytes": size, "load": load}
            )  # fmt: skip
    print(json.dumps(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
