# SPDX-License-Identifier: Apache-2.0
"""From a command to the updater: whether a change is to be signed by the device key, and the way to the process that may.

A command runs as whoever started it set it up, with that one's environment and Python path, and the guard keeps the device
key from it. So it asks, fetches, checks, and then becomes the updater (``early/updater.c``), which is told in a few plain
words what to carry out, and believes nothing but what is signed (:mod:`freehold.device.carry`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from freehold.device.sysroot import ID, Sysroot
from freehold.errors import FreeholdError, InputError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from freehold.device.device_key import Machine
    from freehold.lock.intent import Intent
    from freehold.report import Report

#: The one way to a process that may read the device key.
UPDATER = Path("/usr/lib/freehold/updater")
#: Standard output and error, the descriptors that go along.
_OUTPUTS = (1, 2)


class Words(NamedTuple):
    """What the updater is told beside its verb. Every field has one spelling, its name, with a value behind ``=``.

    ``offered``: carry out the intent that waits in ``inbox/offered``, else the newest that is believed. ``release``: a
    deployment's id. ``json``, ``quiet``, ``terminal`` and ``progress`` (a descriptor, 1 or 2) say how to tell; ``reboot``: then.
    """

    offered: bool = False
    reboot: bool = False
    json: bool = False
    quiet: bool = False
    terminal: bool = False
    progress: int = 0
    release: str = ""

    def spelt(self) -> list[str]:
        """As arguments."""
        flags = [name for name in _FLAGS if getattr(self, name)]
        values = [f"progress={self.progress}"] if self.progress else []
        return [*flags, *values, *([f"release={self.release}"] if self.release else [])]


PLAIN = Words()
_FLAGS = ("offered", "reboot", "json", "quiet", "terminal")


def read(arguments: Sequence[str]) -> Words:
    """The words that :meth:`Words.spelt` wrote; :class:`InputError` for anything else."""
    found = Words()
    for argument in arguments:
        name, _, value = argument.partition("=")
        if argument in _FLAGS:
            found = Words(**{**found._asdict(), argument: True})
        elif name == "progress" and value in ("1", "2"):
            found = found._replace(progress=int(value))
        elif name == "release" and ID.match(value):
            found = found._replace(release=value)
        else:
            raise InputError(f"the updater knows no word {argument!r}")
    if found.spelt() != list(arguments):
        raise InputError("the updater is told each word once, in one order")
    return found


def how(options: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Words:
    """The words for how the command ``options`` wants to be told."""
    descriptor = getattr(options, "progress_fd", None)
    plain = environment.get("TERM", "dumb") == "dumb"
    return Words(
        json=bool(getattr(options, "json", False)),
        quiet=bool(getattr(options, "quiet", False)),
        terminal=not plain and sys.stderr.isatty(),
        progress=descriptor if descriptor in _OUTPUTS else 0,
    )


def this_machine(sysroot: Sysroot) -> Machine:
    """The machine of ``sysroot``."""
    from freehold.device import wanted
    from freehold.device.device_key import Machine, Places
    from freehold.keys.verify import Keychain

    keychain = Keychain.from_directory(sysroot.keychain)
    return Machine(wanted.machine(sysroot), sysroot, keychain, Places(sysroot.root / "owner", sysroot.state))


def refusal(sysroot: Sysroot, intent: Intent | None) -> str:
    """Why the device key does not sign what ``intent`` asks for; "" when it should. The key is not opened for that."""
    from freehold.device import device_key, wanted

    if intent is not None and intent.strict:
        return "the intent is strict: the owner signs every deployment"
    machine = this_machine(sysroot)
    try:
        device_key.check_boot(sysroot, wanted.standing(sysroot))
    except FreeholdError as error:
        return error.message
    return "" if device_key.facts(machine.places) is not None else "this machine has no device key"


def start(verb: str, words: Words) -> Report:
    """Become the updater; does not return. Its messages, result and exit status are those of the command."""
    from freehold.run import replace

    sys.stdout.flush()
    sys.stderr.flush()
    replace([UPDATER, verb, *words.spelt()])
    raise AssertionError
