# SPDX-License-Identifier: Apache-2.0
"""``freehold status`` against ``python3 -c pass``: on a booted machine, and on the host over a machine's files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from bench.builds import Bench
from bench.measure import REPOSITORY, Ratio, Series, load, say, write
from freehold import run
from freehold.build.disk import uki_name
from freehold.build.tools import Tools
from freehold.build.tools import ensure as ensure_tools
from freehold.monitor import NullMonitor
from freehold.vm import Machine, start

STATUS_LIMIT = 4.0
DRIVER = REPOSITORY / "bench" / "spawn.py"
PYTHON = ["python3", "-c", "pass"]
#: Enough for a median: the emulated machine takes a second for each.
ROUNDS_GUEST, ROUNDS_HOST = 15, 60


def series_of(where: str, output: bytes, before: float) -> tuple[Series, Series]:
    """The driver's answer as two series: ``freehold status``, ``python3 -c pass``."""
    status, python = json.loads(output)
    return Series(f"{where}: freehold status", status, [before]), Series(f"{where}: python3 -c pass", python, [before])


def in_guest(bench: Bench) -> tuple[Series, Series]:
    """On the reference machine, booted from the sealed disk."""
    disk = bench.work / "sealed.raw"
    vm = start(Machine("bench-status", disk if disk.exists() else bench.disk(), snapshot=True), NullMonitor())
    try:
        vm.exec(["systemctl", "is-system-running", "--wait"], check=False, timeout=300)
        before = load()
        argv = ["python3", "-", str(ROUNDS_GUEST), "freehold", "status", "--", *PYTHON]
        done = vm.exec(argv, stdin=DRIVER.read_bytes(), timeout=600)
        return series_of("guest", done.stdout, before)
    finally:
        vm.stop(hard=True)


def host_files(tools: Tools, bench: Bench) -> Path:
    """A machine's files for ``status`` to read: sealed deployment, boot entry, boot record, our modules compiled."""
    top = bench.work / "status"
    shutil.rmtree(top, ignore_errors=True)
    release = bench.release()
    manifest = json.loads((release / "manifest.json").read_text())
    digest = str(manifest["image_digest"])
    deployment = top / "sysroot/deployments" / digest[:16]
    deployment.mkdir(parents=True)
    for name in ("manifest.json", "manifest.json.sig"):
        shutil.copy(release / name, deployment / name)
    entries = top / "efi/EFI/Linux"
    entries.mkdir(parents=True)
    (entries / uki_name(str(manifest["name"]), str(manifest["version"]), digest, tries=None)).write_bytes(b"")
    (top / "cmdline").write_text(f"freehold.image={digest} ro\n")
    (top / "run").mkdir()
    record = {"schema": "freehold-boot-1", "image": digest, "intent": {"state": "absent", "lock": "open"}}
    (top / "run/boot.json").write_text(json.dumps(record))
    shutil.copytree(REPOSITORY / "src/freehold", top / "python/freehold", ignore=shutil.ignore_patterns("__pycache__"))
    program = (REPOSITORY / "debian/bin/freehold").read_text()
    (top / "freehold").write_text(program.replace("/usr/lib/python3/dist-packages", "/python"))
    (top / "freehold").chmod(0o755)
    shutil.copy(DRIVER, top / "spawn.py")
    tools.run(["python3", "-m", "compileall", "-q", top / "python"], binds=[top])
    return top


def on_host(bench: Bench) -> tuple[Series, Series]:
    """On this machine, with Debian 13's Python from the tools tree. There is no guard to ask."""
    tools = ensure_tools(bench.cache, NullMonitor())
    top = host_files(tools, bench)
    before = load()
    done = run.run(
        [
            "bwrap", "--die-with-parent", "--unshare-net", "--ro-bind", tools.root / "usr", "/usr",
            "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64",
            "--dev", "/dev", "--proc", "/proc", "--ro-bind", top / "cmdline", "/proc/cmdline",
            "--ro-bind", top / "run", "/run/freehold", "--ro-bind", top / "sysroot", "/sysroot",
            "--ro-bind", top / "efi", "/efi", "--ro-bind", top / "python", "/python", "--ro-bind", top, "/bench",
            "--", "python3", "/bench/spawn.py", str(ROUNDS_HOST), "/bench/freehold", "status", "--", *PYTHON,
        ]
    )  # fmt: skip
    return series_of("host", done.stdout, before)


def measure_status(bench: Bench) -> list[Ratio]:
    """Both places."""
    bench.work.mkdir(parents=True, exist_ok=True)
    kinds, ratios = [], []
    for where, pair in (("guest", in_guest(bench)), ("host", on_host(bench))):
        kinds += list(pair)
        status, python = (one.median for one in pair)
        ratios.append(Ratio(f"freehold status / python3 -c pass ({where})", status / python, STATUS_LIMIT))
        say(f"{where}: status {status * 1000:.0f} ms, python3 {python * 1000:.0f} ms")
    write("status", kinds, ratios)
    return ratios
