# SPDX-License-Identifier: Apache-2.0
"""The verbs of the updater's process, those with the device key among them (docs/guard.md, "Secrets")."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from freehold.device.sysroot import ID
from freehold.errors import EXIT_DONE, InputError
from freehold.lock import updater


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


#: The launcher has the same list, with the number of arguments of each.
VERBS: dict[str, Callable[[Sequence[str]], int]] = {**updater.VERBS, "allow": _allow}


def main(arguments: Sequence[str]) -> int:
    """Run one verb; returns the exit status."""
    return updater.main(arguments, VERBS)
