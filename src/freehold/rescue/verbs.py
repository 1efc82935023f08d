# SPDX-License-Identifier: Apache-2.0
"""``freehold rescue …``: repairing a machine's disk from a Freehold system on a stick."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from freehold.device.sysroot import Sysroot
from freehold.errors import FreeholdError, InputError
from freehold.monitor import Monitor, step
from freehold.report import Report
from freehold.rescue import target as targets
from freehold.rescue.target import Target


def _disk_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--disk", type=Path, required=True, metavar="DEV", help="the machine's whole disk, such as /dev/sda")


def _change_arguments(parser: argparse.ArgumentParser) -> None:
    _disk_argument(parser)
    parser.add_argument("-n", "--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument("--yes", action="store_true", help="do not ask for the disk's name")


def confirm(disk: Path, steps: Sequence[str], ask: Callable[[str], str]) -> None:
    """Show the steps and have the disk's name typed. Raises :class:`FreeholdError` for anything else."""
    for line in steps:
        print(f"  {line}")
    try:
        answer = ask(f"type {disk.name} to do this to {disk}: ").strip()
    except EOFError:
        answer = ""
    if answer != disk.name:
        raise FreeholdError("nothing was done", hint=f"--yes, or the name {disk.name}")


def _report(verb: str, disk: Path, steps: Sequence[str], *, done: bool, next_step: str) -> Report:
    data = {"schema": f"freehold-rescue-{verb}-1", "disk": str(disk), "steps": list(steps), "done": done}
    head = f"{disk}: {verb} done" if done else f"{disk}: {verb} would do this; nothing was written"
    return Report(data, "\n".join([head, *(f"  {line}" for line in steps), f"Next: {next_step}"]))


def _open(options: argparse.Namespace, running: Sysroot) -> Target:
    found = targets.find(options.disk)
    targets.check_foreign(found, running)
    return found


def _with_stick_esp(running: Sysroot) -> None:
    from freehold.device import stage

    stage.ensure_esp(running)


def _boot_partition(found: targets.Target) -> tuple[Path, bool, list[str]]:
    """The boot partition, whether it has to be made anew, and that as the first of the steps to be shown."""
    device = found.needed_esp()
    fresh = not targets.usable_fat(device)
    return device, fresh, [f"make a new FAT file system on {device}: what is there cannot be read"] if fresh else []


def status_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``rescue status``."""
    _disk_argument(parser)


def status(options: argparse.Namespace, monitor: Monitor) -> Report:
    """Show what is on a machine's disk, as this stick's keychain sees it. Writes nothing."""
    from freehold.keys.verify import Keychain
    from freehold.rescue import esp, install, view

    running = Sysroot()
    found = _open(options, running)
    whole = found.esp is not None and targets.usable_fat(found.esp)
    keychain = Keychain.from_directory(running.keychain)
    with step(monitor, "reading the disk"), targets.sysroot_of(found, running, write=False, with_esp=whole) as machine:
        lines = view.verify(machine, keychain)
        standing = install.judge_standing(machine, keychain)
        rows = [f"{entry.version} {entry.id} {entry.state}" for entry in esp.entries(machine.esp)]
    text = [f"{options.disk}: root {found.root}, boot partition {found.esp}{'' if whole else ' (not usable)'}"]
    text += [f"  {line}" for line in lines]
    text += [f"  boot entry  {row}" for row in rows] or ["  no boot entry"]
    text.append(f"  intent      {standing.state}: {standing.reason}")
    bad = any(line.startswith("BAD") for line in lines) or not whole
    text.append(f"Next: freehold rescue {'repair-esp' if bad else 'install'} --disk {options.disk} --dry-run")
    data = {
        "schema": "freehold-rescue-status-1", "disk": str(found.disk), "root": str(found.root or ""), "esp": str(found.esp or ""),
        "esp_usable": whole, "deployments": lines, "entries": rows,
        "intent": {"state": standing.state, "reason": standing.reason},
    }  # fmt: skip
    return Report(data, "\n".join(text))


def repair_esp_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``rescue repair-esp``."""
    _change_arguments(parser)


def repair_esp(options: argparse.Namespace, monitor: Monitor) -> Report:
    """Make a wiped or damaged boot partition again: FAT if it needs one, boot loader, the disk's own boot images."""
    from freehold.keys.verify import Keychain
    from freehold.rescue import esp

    running = Sysroot()
    found = _open(options, running)
    _with_stick_esp(running)
    boot_loader, keychain = running.esp / esp.LOADERS[0], Keychain.from_directory(running.keychain)
    device, fresh, steps = _boot_partition(found)
    with targets.sysroot_of(found, running, write=False, with_esp=not fresh) as machine:
        wanted = esp.plan(machine, keychain, boot_loader)
    steps += wanted.lines()
    if not wanted.steps:
        return _report("repair-esp", found.disk, steps, done=False, next_step="nothing; the boot partition lacks nothing")
    if not any(one.target.startswith("EFI/Linux") for one in wanted.steps) and fresh:
        # An empty FAT would take away what a better tool may still read.
        raise FreeholdError(
            "no deployment of this disk can be believed or has a sound boot image: nothing was done",
            hint="`freehold rescue install` brings the stick's own release",
        )
    if options.dry_run:
        return _report("repair-esp", found.disk, steps, done=False, next_step="the same without --dry-run")
    if not options.yes:
        confirm(found.disk, steps, input)
    with step(monitor, "boot partition"):
        if fresh:
            targets.make_fat(device)
        with targets.sysroot_of(found, running, write=True) as machine:
            esp.carry_out(machine.esp, esp.plan(machine, keychain, boot_loader))
    return _report("repair-esp", found.disk, steps, done=True, next_step="power off, take the stick out, start the machine")


def install_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``rescue install``."""
    _change_arguments(parser)


def install(options: argparse.Namespace, monitor: Monitor) -> Report:
    """Put this stick's release onto the machine's disk; /var and the owner's directory stay as they are."""
    return _install(options, monitor, adopt=False)


def adopt(options: argparse.Namespace, monitor: Monitor) -> Report:
    """Lost owner key: install this stick's release and make the machine its owner's; /var and /etc stay."""
    return _install(options, monitor, adopt=True)


def _install(options: argparse.Namespace, monitor: Monitor, *, adopt: bool) -> Report:
    from freehold.rescue import install as work

    running = Sysroot()
    found = _open(options, running)
    _with_stick_esp(running)
    source = work.source_of(running)
    verb = "adopt" if adopt else "install"
    device, fresh, steps = _boot_partition(found)
    with targets.sysroot_of(found, running, write=False, with_esp=not fresh) as machine:
        if adopt:
            steps += work.adopt_steps(source, machine)
        else:
            work.check_install(machine if not fresh else machine._replace(esp=running.esp), source)
            steps += work.install_steps(source)
    if options.dry_run:
        return _report(verb, found.disk, steps, done=False, next_step="the same without --dry-run")
    if not options.yes:
        confirm(found.disk, steps, input)
    if fresh:
        targets.make_fat(device)
    with targets.sysroot_of(found, running, write=True) as machine:
        work.check_room(machine, source.deployment.manifest)
        entry = work.install(machine, source, monitor)
        if adopt:
            moved = work.adopt(machine, monitor, _with_image, factory=Path("/usr/etc"))
            steps += [f"set aside: {name}" for name in moved]
            steps += [work.CLEAR_TPM] if work.remembers_lock(machine) else []
    after = "start it and lock it with your own key: freehold lock" if adopt else "start the machine"
    return _report(verb, found.disk, steps, done=True, next_step=f"power off, take the stick out, {after} ({entry.version})")


def _with_image(image: Path, use: Callable[[Path], None]) -> None:
    with _image(image) as tree:
        use(tree)


@contextlib.contextmanager
def _image(image: Path) -> Iterator[Path]:
    """An /etc image of the other disk. What it marks as removed are devices, which are seen and never opened."""
    from freehold import run

    place = targets.MOUNTS / "config"
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    if image.is_symlink() or not image.is_file():
        raise InputError(f"{image} is no image")
    run.run(["mount", "-t", "erofs", "-o", "ro,loop,nosuid,nodev,noexec", image, place], timeout=60)
    try:
        yield place
    finally:
        run.run(["umount", place], check=False, timeout=60)


VERBS = (
    ("status", "what is on a machine's disk", status_arguments, status),
    ("repair-esp", "make a wiped boot partition again", repair_esp_arguments, repair_esp),
    ("install", "put this stick's release onto the disk", install_arguments, install),
    ("adopt", "lost owner key: make the machine a new owner's", install_arguments, adopt),
)
