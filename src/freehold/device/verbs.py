# SPDX-License-Identifier: Apache-2.0
"""The device's commands: arguments and handlers; the work is imported when a command runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # At run time they would cost every command's start.
    from freehold.monitor import Monitor
    from freehold.report import Report

Handler = Callable[[argparse.Namespace, "Monitor"], "Report"]


def status_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""


def status(arguments: argparse.Namespace, monitor: Monitor) -> Report:
    """Report deployments, lock and updates."""
    from freehold.device.status import status as report
    from freehold.device.sysroot import Sysroot

    return report(Sysroot())


def upgrade_arguments(parser: argparse.ArgumentParser) -> None:
    """How far to go, and what then."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--check", action="store_true", help="only ask whether there is something newer")
    group.add_argument("--preview", action="store_true", help="show which packages would change")
    group.add_argument("--download-only", action="store_true", help="fetch and verify; another `upgrade` stages it")
    group.add_argument("--reboot", action="store_true", help="reboot into it at once")
    parser.add_argument("--unchanged-exit-77", action="store_true", help="exit status 77 when there is nothing to do")


def upgrade(arguments: argparse.Namespace, monitor: Monitor) -> Report:
    """Bring the stream's newest release onto the machine."""
    from freehold.device import handover
    from freehold.device import upgrade as work
    from freehold.device.sysroot import Sysroot

    until = (
        "check" if arguments.check
        else "preview" if arguments.preview
        else "download" if arguments.download_only
        else "stage"
    )  # fmt: skip
    options = work.Options(
        until, reboot=arguments.reboot, unchanged_exit_77=arguments.unchanged_exit_77, how=handover.how(arguments)
    )
    return work.upgrade(Sysroot(), options, monitor)


def rollback_arguments(parser: argparse.ArgumentParser) -> None:
    """Whether to reboot."""
    parser.add_argument("--reboot", action="store_true", help="reboot into it at once")


def rollback(arguments: argparse.Namespace, monitor: Monitor) -> Report:
    """Make the previous deployment boot next."""
    from freehold.device import upgrade as work
    from freehold.device.sysroot import Sysroot

    return work.rollback(Sysroot(), monitor, reboot=arguments.reboot)


def cleanup_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""


def cleanup(arguments: argparse.Namespace, monitor: Monitor) -> Report:
    """Remove deployments that nothing needs."""
    from freehold.device import upgrade as work
    from freehold.device.sysroot import Sysroot

    return work.cleanup(Sysroot(), monitor)


def history_arguments(parser: argparse.ArgumentParser) -> None:
    """How much of it."""
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="the last N events (default: 50)")


def history(arguments: argparse.Namespace, monitor: Monitor) -> Report:
    """List what was staged, rolled back and removed (informational: root can change it)."""
    from freehold.device.status import when
    from freehold.device.sysroot import Sysroot
    from freehold.device.sysroot import history as read
    from freehold.report import Report

    events = read(Sysroot())[-max(1, arguments.limit) :]
    lines = []
    for event in events:
        several = event.get("removed", event.get("entries"))
        what = " ".join(map(str, several)) if isinstance(several, list) else f"{event.get('version')} {event.get('id')}"
        lines.append(f"{when(event.get('time'))}  {event.get('event')}  {what}\n")
    return Report({"schema": "freehold-history-1", "events": events}, "".join(lines) or "No events.\n")


def verify_arguments(parser: argparse.ArgumentParser) -> None:
    """How thoroughly, and how wide."""
    parser.add_argument("--quick", action="store_true", help="ask for each file's digest, but do not read its content")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="reading threads (default: 2)")


def verify(arguments: argparse.Namespace, monitor: Monitor) -> Report:
    """Check the running machine and every deployment against what was signed."""
    import os

    from freehold.device import verify as work
    from freehold.device.sysroot import Sysroot
    from freehold.errors import FreeholdError, InputError

    if not 1 <= arguments.jobs <= work.MAX_JOBS:
        raise InputError(f"--jobs takes a number from 1 to {work.MAX_JOBS}")
    if os.geteuid() != 0:
        raise FreeholdError("only root can verify a machine", hint="use the console, or ssh as root")
    return work.verify(Sysroot(), work.Options(arguments.quick, arguments.jobs), monitor)


VERBS: tuple[tuple[str, str, Callable[[argparse.ArgumentParser], None], Handler], ...] = (
    ("status", "what runs, what boots next, how it is locked", status_arguments, status),
    ("upgrade", "bring the newest release onto this machine", upgrade_arguments, upgrade),
    ("rollback", "boot the previous deployment next", rollback_arguments, rollback),
    ("cleanup", "remove deployments that nothing needs", cleanup_arguments, cleanup),
    ("verify", "check the running machine and every deployment", verify_arguments, verify),
    ("history", "what happened to this machine's deployments", history_arguments, history),
)
