# SPDX-License-Identifier: Apache-2.0
"""Booting: the sealed disk against the same tree as a plain, writable ext4 file system."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from bench.builds import RECIPE, Bench
from bench.measure import REPOSITORY, Ratio, Series, load, say, write
from freehold import run
from freehold.build import initrd, rootfs, uki
from freehold.build.disk import ALIGNMENT, DEFAULT_SIZE, ESP_SIZE, MIB, derived_uuid, partition_table, uki_name
from freehold.build.recipe import load as load_recipe
from freehold.build.store import cache_directory
from freehold.build.tools import Tools
from freehold.build.tools import ensure as ensure_tools
from freehold.errors import FreeholdError
from freehold.monitor import NullMonitor
from freehold.seal import cpio
from freehold.vm import Machine, VirtualMachine, start

BOOT_LIMIT = 1.05
#: Seconds from the guest agent's first answer to multi-user.target.
SETTLE_SECONDS = 180.0
#: What the early step needs of the kernel command line, and a plain root does not.
SEALED_ONLY = ("freehold.image=", "freehold.release=", "rootfstype=")


@dataclass(frozen=True)
class Boot:
    """One boot: seconds on the kernel's clock, and from QEMU's start to the guest agent's answer."""

    userspace: float
    multi_user: float
    answer: float


def plain_tree(tools: Tools, bench: Bench, target: Path, commit: str) -> None:
    """The commit's files as a plain tree, its /etc from the sealed /usr/etc."""
    store = bench.store
    tools.run(["ostree", f"--repo={store / 'repo'}", "checkout", commit, target], binds=[store, target.parent])
    shutil.rmtree(target / "etc", ignore_errors=True)
    tools.run(["cp", "-a", target / "usr/etc", target / "etc"], binds=[target.parent])
    # What the early step and boot preparation see to on a sealed disk.
    (target / "var/roothome").mkdir(parents=True, mode=0o700, exist_ok=True)
    (target / "etc/machine-id").write_text(f"{derived_uuid('bench', commit).replace('-', '')}\n")


def plain_init(tools: Tools, target: Path) -> None:
    """Compile ``bench/plain_init.c``."""
    sources = [REPOSITORY / "early" / f"{name}.c" for name in ("disk", "gpt", "modules", "util", "verity")]
    tools.run(
        ["gcc", "-O2", "-std=gnu17", "-static", f"-I{REPOSITORY / 'early'}", "-o", target,
         REPOSITORY / "bench/plain_init.c", *sources],
        binds=[target.parent], ro_binds=[REPOSITORY],
    )  # fmt: skip


def plain_uki(tools: Tools, bench: Bench, tree: Path, kernel: str) -> Path:
    """The same kernel and modules, with an /init that verifies nothing."""
    recipe = load_recipe(RECIPE)
    work = bench.work / "plain-uki"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    plain_init(tools, work / "init")
    packed = initrd.members(tree, kernel, ())
    packed["init"] = cpio.Member(cpio.EXECUTABLE, (work / "init").read_bytes())
    initrd.write_initrd(tools, packed, work / "initrd")
    shutil.copy(tree / "usr/lib/modules" / kernel / "vmlinuz", work / "vmlinuz")
    line = uki.command_line("", 0, recipe.console, recipe.cmdline)
    words = [word for word in line.split() if not word.startswith(SEALED_ONLY)]
    return uki.write_uki(
        tools, work, kernel=work / "vmlinuz", uname=kernel, initrd=work / "initrd", line=" ".join(words),
        release=uki.os_release("plain", "1"),
    )  # fmt: skip


def plain_disk(bench: Bench, sealed: Path) -> Path:
    """The sealed disk's twin: the same boot partition but for the UKI, the same size, a plain root."""
    tools = ensure_tools(bench.cache, NullMonitor())
    release = bench.release()
    manifest = json.loads((release / "manifest.json").read_text())
    digest = str(manifest["image_digest"])
    tree, root, target = bench.work / "plain-tree", bench.work / "plain-root.img", bench.work / "plain.raw"
    shutil.rmtree(tree, ignore_errors=True)
    plain_tree(tools, bench, tree, str(manifest["commit"]))
    image = plain_uki(tools, bench, tree, str(manifest["kernel"]))
    room = DEFAULT_SIZE - ESP_SIZE - 2 * ALIGNMENT
    rootfs.make_ext4(tools, tree, root, [], size=room, seed=derived_uuid("plain", digest))
    shutil.rmtree(tree)
    target.unlink(missing_ok=True)
    target.touch()
    os.truncate(target, DEFAULT_SIZE)
    tools.run(["sfdisk", "--quiet", target], binds=[bench.work], stdin=partition_table(DEFAULT_SIZE, digest).encode())
    offset, length = ALIGNMENT // MIB, ESP_SIZE // MIB
    copy = ["dd", f"of={target}", "bs=1M", "conv=notrunc,sparse", "status=none"]
    run.run([*copy, f"if={sealed}", f"skip={offset}", f"seek={offset}", f"count={length}"])
    run.run([*copy, f"if={root}", f"seek={offset + length}"])
    root.unlink()
    name = uki_name(str(manifest["name"]), str(manifest["version"]), digest)
    # Overwritten in place: the name, and with it the loader's boot counting, stays the same.
    tools.run(
        ["mcopy", "-o", "-i", f"{target}@@{ALIGNMENT}", image, f"::/EFI/Linux/{name}"],
        binds=[bench.work], env={"MTOOLS_SKIP_CHECK": "1"},
    )  # fmt: skip
    return target


def property_of(vm: VirtualMachine, *argv: str) -> float:
    """A monotonic timestamp of systemd's, in seconds; 0 when it is not there yet."""
    text = vm.exec(["systemctl", "show", "--value", *argv]).text.strip()
    return int(text or 0) / 1e6


def boot(disk: Path, name: str, *, keep: bool) -> Boot:
    """Boot ``disk`` to multi-user and measure it. Unless ``keep``, nothing of this boot stays on the disk."""
    started = time.perf_counter()
    vm = start(Machine(name, disk, snapshot=not keep), NullMonitor())
    answer = time.perf_counter() - started
    try:
        deadline = time.monotonic() + SETTLE_SECONDS
        while not (reached := property_of(vm, "-p", "ActiveEnterTimestampMonotonic", "multi-user.target")):
            if time.monotonic() > deadline:
                raise FreeholdError(f"{name} did not reach multi-user", details="\n".join(vm.serial_tail()))
            time.sleep(1)
        if keep:
            vm.exec(["systemctl", "is-system-running", "--wait"], check=False, timeout=SETTLE_SECONDS)
            failed = vm.exec(["systemctl", "--failed", "--no-legend", "--plain"]).text.split("\n")
            say(f"{name}: failed units: {', '.join(line.split()[0] for line in failed if line.strip()) or 'none'}")
            vm.stop()
        return Boot(property_of(vm, "-p", "UserspaceTimestampMonotonic") if not keep else 0.0, reached, answer)
    finally:
        if vm.alive:
            vm.stop(hard=True)


def measure_boots(bench: Bench, rounds: int) -> list[Ratio]:
    """Both disks boot once to settle, then alternate; every measured boot starts from the same disk."""
    bench.work.mkdir(parents=True, exist_ok=True)
    sealed = bench.disk()
    disks = {"sealed": sealed, "unsealed": plain_disk(bench, sealed)}
    multi = {name: Series(f"{name}: kernel to multi-user") for name in disks}
    early = {name: Series(f"{name}: kernel to systemd") for name in disks}
    answers = {name: Series(f"{name}: QEMU to the agent's answer") for name in disks}
    for name, disk in disks.items():
        say(f"{name}: first boot, does not count: {boot(disk, f'bench-{name}', keep=True).multi_user:.1f} s")
    for _ in range(rounds):
        for name, disk in disks.items():
            before = load()
            one = boot(disk, f"bench-{name}", keep=False)
            for series, seconds in ((multi, one.multi_user), (early, one.userspace), (answers, one.answer)):
                series[name].samples.append(seconds)
                series[name].loads.append(before)
            say(f"{name}: multi-user after {one.multi_user:.2f} s, systemd after {one.userspace:.2f} s")
    ratio = Ratio("sealed boot to multi-user / unsealed", multi["sealed"].median / multi["unsealed"].median, BOOT_LIMIT)
    kinds = [*multi.values(), *early.values(), *answers.values()]
    write("boot", kinds, [ratio], settings=machine_settings(sealed))
    return [ratio]


def machine_settings(disk: Path) -> dict[str, object]:
    """The virtual machine that both disks boot in."""
    from freehold.vm import accel

    machine = Machine("bench", disk)
    usable = accel.usable(ensure_tools(cache_directory(), NullMonitor()))
    return {
        "accelerator": "kvm" if usable else "tcg", "cpus": machine.cpus, "memory_mib": machine.memory_mib,
        "secure_boot": machine.secure_boot, "firmware": "OVMF", "snapshot": True,
    }  # fmt: skip
