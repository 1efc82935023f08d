# SPDX-License-Identifier: Apache-2.0
"""``freehold vm …``: arguments and handlers. Glue, no logic."""

from __future__ import annotations

import argparse
import os
import select
import stat
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from freehold import atomic
from freehold.errors import FreeholdError, InputError
from freehold.monitor import Monitor, step
from freehold.report import Report
from freehold.vm import control, guest, state
from freehold.vm.machine import DEFAULT_CPUS, Machine, parse_forward, parse_memory

LIST_VERSION = 1
#: Seconds that a pipe may stay open and empty before a command runs without it.
IDLE_INPUT = 2.0
#: A path that starts so is the guest's.
GUEST_PREFIX = ":"

Adder = Callable[[argparse.ArgumentParser], None]
Handler = Callable[[argparse.Namespace, Monitor], Report]


def start_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``vm start``."""
    parser.add_argument("disk", type=Path, metavar="DISK", help="raw or qcow2 disk to boot")
    parser.add_argument("--name", required=True, help="name for the other commands")
    parser.add_argument("--secure-boot", action="store_true", help="firmware that enforces Secure Boot")
    parser.add_argument(
        "--keys", type=Path, action="append", default=[], metavar="DIR|FILE",
        help="certificates for the firmware (DER, PEM; repeatable). Default: the directory DISK.keys, else setup mode",
    )  # fmt: skip
    parser.add_argument("--tpm", action="store_true", help="add a TPM 2.0")
    parser.add_argument("--snapshot", action="store_true", help="throw every change away at the end")
    parser.add_argument("--memory", default="2G", metavar="M", help="such as 2048M or 4G (default %(default)s)")
    parser.add_argument("--cpus", type=int, default=DEFAULT_CPUS, metavar="N", help="processors (default %(default)s)")
    parser.add_argument("--ignition", type=Path, metavar="FILE", help="Ignition configuration for the first boot")
    parser.add_argument(
        "--extra-disk", type=Path, action="append", default=[], metavar="FILE",
        help="one more disk, raw or qcow2, which firmware does not start from (repeatable)",
    )  # fmt: skip
    parser.add_argument(
        "--forward", action="append", default=[], metavar="HOST:GUEST", help="lead a TCP port of 127.0.0.1 to the guest"
    )
    parser.add_argument("--accelerator", choices=("kvm", "tcg"), help="default: KVM where it works, else emulation")
    parser.add_argument("--timeout", type=float, metavar="S", help="seconds until the guest must answer")
    parser.add_argument("--no-wait", action="store_true", help="return without waiting for the guest")


def start(arguments: argparse.Namespace, monitor: Monitor) -> Report:
    """Start a machine and wait until its guest answers; its console's end goes to the monitor if it does not."""
    machine = Machine(
        name=arguments.name,
        disk=arguments.disk.absolute(),
        secure_boot=arguments.secure_boot,
        tpm=arguments.tpm,
        snapshot=arguments.snapshot,
        memory_mib=parse_memory(arguments.memory),
        cpus=arguments.cpus,
        ignition=arguments.ignition.absolute() if arguments.ignition else None,
        keys=_keys(arguments),
        forwards=tuple(parse_forward(text) for text in arguments.forward),
        accelerator=arguments.accelerator,
        timeout=arguments.timeout,
        disks=tuple(disk.absolute() for disk in arguments.extra_disk),
    )
    began = time.monotonic()
    try:
        running = control.start(machine, monitor, wait=not arguments.no_wait)
    except control.BootError as error:
        for line in error.console:
            monitor.message(f"| {line}")
        raise
    seconds = time.monotonic() - began
    data = {**_row(running.record), "state": running.status(), "seconds": round(seconds, 1)}
    word = "started" if arguments.no_wait else "answers"
    return Report(data, f"{machine.name} {word} after {seconds:.1f} s ({running.record.accelerator})")


def exec_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``vm exec``."""
    _name(parser)
    parser.add_argument("--user", metavar="U", help="run in a login session of this user (default root)")
    parser.add_argument("--timeout", type=float, metavar="S", help="end the command after so many seconds")
    parser.add_argument("--stdin", action="store_true", help="wait for standard input, however late it comes")
    # The rest as it is: argparse would take a second "--", or an option, out of the command.
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD", help="program and arguments")


def exec_(arguments: argparse.Namespace, monitor: Monitor) -> Report:
    """Run a command in the guest; its output and exit status become ours."""
    options, command = split_command(arguments.command)
    user = options.get("--user", arguments.user)
    timeout = float(options["--timeout"]) if "--timeout" in options else arguments.timeout
    patient = arguments.stdin or "--stdin" in options
    if not command:
        raise InputError("no command to run", hint="freehold vm exec NAME -- CMD…")
    running = control.attach(arguments.name)
    try:
        given = _standard_input(monitor, patient=patient)
        done = running.exec(command, user=user, stdin=given, timeout=timeout, check=False)
    except guest.OutputError as error:
        _pass_on(error.completed.stdout, error.completed.stderr)
        raise
    _pass_on(done.stdout, done.stderr)
    return Report(status=done.status)


def copy_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``vm copy``."""
    _name(parser)
    parser.add_argument("source", metavar="SRC", help="file; with a colon before it, the guest's")
    parser.add_argument("target", metavar="DST", help="file or directory, the guest's unless SRC is")


def copy(arguments: argparse.Namespace, monitor: Monitor) -> Report:
    """Copy a file into the guest (``SRC DST`` or ``SRC :DST``) or out of it (``:SRC DST``)."""
    source, target = arguments.source, arguments.target
    if source.startswith(GUEST_PREFIX) and target.startswith(GUEST_PREFIX):
        raise InputError("both files are the guest's", hint=f"freehold vm exec {arguments.name} -- cp SRC DST")
    running = control.attach(arguments.name)
    with step(monitor, f"copying {source}"):
        if source.startswith(GUEST_PREFIX):
            copied = str(running.guest.copy_out(source.removeprefix(GUEST_PREFIX), Path(target)))
        else:
            copied = running.guest.copy_in(Path(source), target.removeprefix(GUEST_PREFIX))
    return Report({"source": source, "target": copied})


def reboot_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``vm reboot``."""
    _name(parser)
    _ending(parser, "the reset button: nothing is flushed")


def reboot(arguments: argparse.Namespace, monitor: Monitor) -> Report:
    """Restart the guest and wait until it answers again."""
    running = control.attach(arguments.name)
    began = time.monotonic()
    try:
        with step(monitor, f"rebooting {arguments.name}"):
            boot = running.reboot(hard=arguments.hard, timeout=arguments.timeout)
    except control.BootError as error:
        for line in error.console:
            monitor.message(f"| {line}")
        raise
    seconds = time.monotonic() - began
    data: dict[str, object] = {"name": arguments.name, "boot_id": boot, "seconds": round(seconds, 1)}
    return Report(data, f"{arguments.name} answers after {seconds:.1f} s")


def stop_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``vm stop``."""
    _name(parser)
    _ending(parser, "pull the plug: nothing is flushed")


def stop(arguments: argparse.Namespace, monitor: Monitor) -> Report:
    """Switch the machine off."""
    running = control.attach(arguments.name)
    with step(monitor, f"stopping {arguments.name}"):
        running.stop(hard=arguments.hard, timeout=arguments.timeout)
    return Report({"name": arguments.name, "state": "stopped"}, f"{arguments.name} is off")


def list_arguments(parser: argparse.ArgumentParser) -> None:
    """``vm list`` has none of its own."""


def list_(arguments: argparse.Namespace, monitor: Monitor) -> Report:
    """The running machines."""
    rows = [{**_row(record), "state": control.VirtualMachine(record).status()} for record in state.running()]
    return Report({"version": LIST_VERSION, "machines": rows}, table(rows))


def key_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``vm key``."""
    _name(parser)
    parser.add_argument("keys", metavar="KEYS", help="such as ctrl-alt-delete, alt-f2, enter")


def key(arguments: argparse.Namespace, monitor: Monitor) -> Report:
    """Press a combination of keys."""
    control.attach(arguments.name).key(arguments.keys)
    return Report({"name": arguments.name, "keys": arguments.keys})


def type_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``vm type``."""
    _name(parser)
    parser.add_argument("text", metavar="TEXT", help="ASCII text; a newline is Enter, a tab is Tab")
    parser.add_argument("--enter", action="store_true", help="press Enter after it")


def type_(arguments: argparse.Namespace, monitor: Monitor) -> Report:
    """Type a text on the keyboard."""
    text = arguments.text + ("\n" if arguments.enter else "")
    control.attach(arguments.name).type(text)
    return Report({"name": arguments.name, "characters": len(text)})


def screenshot_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``vm screenshot``."""
    _name(parser)
    parser.add_argument("file", type=Path, metavar="FILE.png", help="where to write the picture")


def screenshot(arguments: argparse.Namespace, monitor: Monitor) -> Report:
    """Write what the screen shows to a PNG file."""
    picture = control.attach(arguments.name).screenshot()
    try:
        atomic.write(arguments.file, picture)
    except OSError as error:
        raise InputError(f"{arguments.file}: {error.strerror}") from None
    return Report({"name": arguments.name, "file": str(arguments.file), "bytes": len(picture)}, str(arguments.file))


VERBS: tuple[tuple[str, str, Adder, Handler], ...] = (
    ("start", "start a machine and wait until it answers", start_arguments, start),
    ("exec", "run a command in the guest", exec_arguments, exec_),
    ("copy", "copy a file into the guest or out of it", copy_arguments, copy),
    ("reboot", "restart the guest and wait until it answers", reboot_arguments, reboot),
    ("stop", "switch a machine off", stop_arguments, stop),
    ("list", "show the running machines", list_arguments, list_),
    ("key", "press keys", key_arguments, key),
    ("type", "type a text", type_arguments, type_),
    ("screenshot", "take a picture of the screen", screenshot_arguments, screenshot),
)


def split_command(rest: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Options of ours that stand before ``--``, and the guest's command after it, untouched."""
    options: dict[str, str] = {}
    words = list(rest)
    while words and words[0] != "--":
        name, separator, value = words[0].partition("=")
        if name == "--stdin":
            options[name] = ""
            words = words[1:]
            continue
        if not name.startswith("-"):
            break
        if name not in ("--user", "--timeout"):
            raise InputError(
                f"no option is called {name}",
                hint="our options go before the machine's name, -- before the guest's command",
            )
        if not separator and len(words) < 2:
            raise InputError(f"{name} needs a value")
        options[name] = value if separator else words[1]
        words = words[1 if separator else 2 :]
    try:
        float(options.get("--timeout", "0"))
    except ValueError:
        raise InputError(f"--timeout: {options['--timeout']!r} is no number of seconds") from None
    return options, words[1:] if words[:1] == ["--"] else words


def table(rows: Sequence[dict[str, object]]) -> str:
    """The machines in columns, for people."""
    if not rows:
        return "no machine is running"
    head = ("NAME", "STATE", "PID", "UPTIME", "ACCEL", "DISK")
    names = ("name", "state", "pid", "uptime", "accelerator", "disk")
    lines = [
        head,
        *(tuple(_uptime(row[name]) if name == "uptime" else str(row[name]) for name in names) for row in rows),
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _uptime(seconds: object) -> str:
    minutes, rest = divmod(seconds if isinstance(seconds, int) else 0, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _row(record: state.Record) -> dict[str, object]:
    return {
        "name": record.name, "pid": record.pid, "uptime": max(0, round(time.time() - record.started)),
        "disk": record.disk, "accelerator": record.accelerator, "snapshot": record.snapshot,
        "secure_boot": record.secure_boot, "tpm": record.tpm, "serial": str(state.paths(record.name).serial),
    }  # fmt: skip


def _name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="N", help="the machine's name")


def _ending(parser: argparse.ArgumentParser, hard: str) -> None:
    parser.add_argument("--hard", action="store_true", help=hard)
    parser.add_argument("--timeout", type=float, metavar="S", help="seconds to wait for it")


def _keys(arguments: argparse.Namespace) -> tuple[Path, ...]:
    """The certificates that were named, else those that lie beside the disk."""
    beside = Path(f"{arguments.disk}.keys")
    if not arguments.keys and arguments.secure_boot and beside.is_dir():
        return (beside,)
    if arguments.keys and not arguments.secure_boot:
        raise InputError("--keys without --secure-boot has no effect", hint="add --secure-boot")
    return tuple(arguments.keys)


def _standard_input(monitor: Monitor, *, patient: bool) -> bytes | None:
    """What comes on our standard input, to its end; nothing from a terminal or an idle pipe."""
    try:
        fd = sys.stdin.fileno()
        kind = os.fstat(fd).st_mode
    except (AttributeError, OSError, ValueError):
        return None
    if os.isatty(fd):
        return None
    if not patient and not stat.S_ISREG(kind) and not select.select([fd], [], [], IDLE_INPUT)[0]:
        # A pipe that nobody writes to and nobody closes is inherited more often than meant.
        monitor.message(f"standard input stayed empty for {IDLE_INPUT:g} s: running without it (--stdin waits)")
        return None
    pieces = []
    while piece := os.read(fd, 1 << 20):
        pieces.append(piece)
    return b"".join(pieces) or None


def _pass_on(out: bytes, err: bytes) -> None:
    """Write a guest command's output to ours, byte for byte."""
    try:
        for stream, data in ((sys.stdout, out), (sys.stderr, err)):
            stream.flush()
            stream.buffer.write(data)
            stream.buffer.flush()
    except BrokenPipeError:
        raise FreeholdError("nobody reads the output any more") from None
