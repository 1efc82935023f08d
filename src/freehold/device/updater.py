# SPDX-License-Identifier: Apache-2.0
"""The verbs of the updater's process, those with the device key among them (docs/guard.md, "Secrets")."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from freehold.device.sysroot import ID, Sysroot
from freehold.errors import EXIT_DONE, InputError
from freehold.lock import updater

if TYPE_CHECKING:
    from freehold.device.carry import Key
    from freehold.device.handover import Words
    from freehold.monitor import Monitor
    from freehold.report import Report

    Work = Callable[[Sysroot, Key, Monitor, Words], Report]


def _allow(arguments: Sequence[str]) -> int:
    """Let a staged deployment have the device key after its reboot."""
    if len(arguments) != 1 or not ID.match(arguments[0]):
        raise InputError("which deployment? Its id has 16 hex digits")
    updater.shield()
    from freehold.device import device_key, device_key_verbs
    from freehold.lock import actions

    device_key.allow(device_key_verbs.this_machine(), actions.standing(), arguments[0])
    print(json.dumps({"schema": updater.SCHEMA, "allowed": arguments[0]}), flush=True)
    return EXIT_DONE


def _apply(arguments: Sequence[str]) -> int:
    """Carry out the owner's requests on what boots next, or on a downloaded release."""
    from freehold.device import handover

    words = handover.read(arguments)
    place = _prepare()
    from freehold.device import carry

    return _told(carry.apply, place, words)


def _upgrade(arguments: Sequence[str]) -> int:
    """Carry them out on a newer release that was downloaded."""
    from freehold.device import handover

    words = handover.read(arguments)
    if not words.release:
        raise InputError("which release? release=ID")
    place = _prepare()
    from freehold.device import carry

    return _told(carry.upgrade, place, words)


def _prepare() -> Sysroot:
    """The shield, then a place of our own; the boot partition is mounted before, for everybody."""
    from freehold.device import private, stage

    updater.shield()
    # The launcher's 077 is for secrets; of deployments everybody may know.
    os.umask(0o022)
    stage.ensure_esp(Sysroot())
    return private.enter()


def _told(work: Work, sysroot: Sysroot, words: Words) -> int:
    """Do ``work``, tell as the command would have told, and where it was asked for, reboot into what was staged."""
    from freehold import run
    from freehold.device.carry import DeviceKey
    from freehold.monitor import JsonMonitor, NullMonitor, TextMonitor

    monitor: Monitor = TextMonitor(sys.stderr, terminal=words.terminal)
    if words.progress:
        monitor = JsonMonitor(words.progress)
    elif words.quiet or words.json:
        monitor = NullMonitor()
    report = work(sysroot, DeviceKey(sysroot), monitor, words)
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(dict(report.data), indent=2, sort_keys=True) if words.json else report.text, flush=True)
    if words.reboot and report.data.get("staged") is True:
        # In the place of this process: a child would carry its memory.
        run.replace(["systemctl", "reboot"])
    return report.status


#: The launcher has the same list, with the number of arguments of each.
VERBS: dict[str, Callable[[Sequence[str]], int]] = {**updater.VERBS, "allow": _allow, "apply": _apply, "upgrade": _upgrade}


def main(arguments: Sequence[str]) -> int:
    """Run one verb; returns the exit status."""
    return updater.main(arguments, VERBS)
