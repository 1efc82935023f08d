# SPDX-License-Identifier: Apache-2.0
"""Two disks over one, for ``bench/lock.py``: the reference system open, with what the guard is compared with; and locked."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.builds import Bench
from bench.lock_peers import FAPOLICYD, TRUST
from bench.measure import REPOSITORY, freehold, say
from freehold.build.tools import ensure as ensure_tools
from freehold.errors import FreeholdError
from freehold.monitor import NullMonitor
from freehold.vm import Machine, VirtualMachine, start

RECIPE = REPOSITORY / "bench" / "lock.toml"
USER = "bencher"
#: Seconds until everything that a boot starts has started, emulated.
SETTLE_SECONDS = 240.0
#: A root for containers, made of the sealed tree: nothing is downloaded.
CONTAINER = f"""
set -eu
cd /home/{USER}
for name in usr proc dev sys tmp etc run var; do mkdir -p rootfs/$name; done
for name in bin lib lib64 sbin; do ln -s usr/$name rootfs/$name; done
chown -R {USER}: rootfs
"""


@dataclass(frozen=True)
class Disks:
    """Two overlays of one disk; ``maps`` and ``programs`` are the guard's, in bytes."""

    open: Path
    locked: Path
    maps: int
    programs: int


def ignition() -> str:
    """A person whose containers are measured."""
    return json.dumps({"ignition": {"version": "3.3.0"}, "passwd": {"users": [{"name": USER}]}})


def kept_bytes(text: str) -> tuple[int, int]:
    """What `guardctl load` said of the guard's (maps, programs), in bytes. Pure."""
    found = re.search(r"the maps take (\d+) bytes, the programs (\d+)", text)
    if not found:
        raise FreeholdError("guardctl load did not say what the guard takes", details=text)
    return int(found[1]), int(found[2])


@contextlib.contextmanager
def booted(bench: Bench, disk: Path, *, keep: bool = False, first: Path | None = None) -> Iterator[VirtualMachine]:
    """The machine on ``disk``, everything started. Unless ``keep``, nothing of it stays on the disk."""
    name = f"bench-{disk.stem}"
    machine = Machine(name, disk, snapshot=not keep, secure_boot=True, keys=(bench.keys,), ignition=first)
    vm = start(machine, NullMonitor())
    try:
        settled = vm.exec(["systemctl", "is-system-running", "--wait"], check=False, timeout=SETTLE_SECONDS).text.strip()
        if settled != "running":
            say(f"{name} is {settled}: {vm.exec(['systemctl', '--failed', '--no-legend', '--plain'], check=False).text.strip()}")
        yield vm
        if keep:
            vm.stop()
    finally:
        if vm.alive:
            vm.stop(hard=True)


def _base(bench: Bench) -> tuple[Path, int, int]:
    """The disk that both lie over, provisioned and settled; and what the guard takes."""
    report = freehold(["build", RECIPE, "--store", bench.store, "--keys", bench.keys], bench.environment)
    disk, first = bench.work / "lock-base.raw", bench.work / "lock.ign"
    disk.unlink(missing_ok=True)
    argv: list[str | Path] = ["disk", str(report["release"]), "-o", disk, "--store", bench.store, "--keys", bench.keys]
    freehold(argv, bench.environment)
    first.write_text(ignition())
    say("the disk: first boot, which does not count")
    with booted(bench, disk, keep=True, first=first) as vm:
        vm.exec(["sh", "-c", CONTAINER])
        # Loaded and not latched it ends with this boot.
        maps, programs = kept_bytes(vm.exec(["/usr/lib/freehold/guardctl", "load"]).stderr.decode())
    return disk, maps, programs


def _over(bench: Bench, base: Path, name: str) -> Path:
    disk = bench.work / f"lock-{name}.qcow2"
    disk.unlink(missing_ok=True)
    tools = ensure_tools(bench.cache, NullMonitor())
    tools.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", disk], binds=[bench.work])
    return disk


def _open_disk(bench: Bench, base: Path, *, beside: bool) -> Path:
    disk = _over(bench, base, "open")
    say(f"the open disk: {'what fapolicyd trusts' if beside else 'a boot that does not count'}")
    with booted(bench, disk, keep=True) as vm:
        if beside:
            vm.exec(["sh", "-c", FAPOLICYD])
            vm.exec(["python3", "-"], stdin=TRUST.encode(), timeout=900)
    return disk


def _locked_disk(bench: Bench, base: Path) -> Path:
    disk, request = _over(bench, base, "locked"), bench.work / "lock.request"
    say("the locked disk: the owner locks it")
    with booted(bench, disk, keep=True) as vm:
        vm.exec(["freehold", "lock", "--request", "/run/lock.request"], timeout=300)
        request.write_bytes(vm.read_file("/run/lock.request"))
        freehold(["sign", request, "--key", f"file:{bench.keys / 'owner.key'}"], bench.environment)
        vm.write_file("/run/lock.signed", request.with_name("lock.request.signed").read_bytes())
        vm.exec(["freehold", "lock", "--answer", "/run/lock.signed"], timeout=300)
    say("the locked disk: its first locked boot, which does not count")
    with booted(bench, disk, keep=True) as vm:
        mode(vm, "locked")
    return disk


def mode(vm: VirtualMachine, wanted: str) -> None:
    """Fail unless the guard is in mode ``wanted``; ``absent``: not even loaded."""
    status = json.loads(vm.exec(["/usr/lib/freehold/guardctl", "status"]).stdout)
    found = status["mode"] if status["loaded"] else "absent"
    if found != wanted:
        raise FreeholdError(f"the guard is {found}, not {wanted}")


def make(bench: Bench, *, beside: bool) -> Disks:
    """Build and prepare both, each booted until it settled; fapolicyd's rules and trust only where it is ``beside``."""
    bench.work.mkdir(parents=True, exist_ok=True)
    bench.make_keys()
    base, maps, programs = _base(bench)
    return Disks(_open_disk(bench, base, beside=beside), _locked_disk(bench, base), maps, programs)
