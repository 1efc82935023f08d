# SPDX-License-Identifier: Apache-2.0
"""Typed machine state between /etc and the disk: read from a running /etc, written into a fresh one."""

from __future__ import annotations

import os

from freehold import atomic
from freehold.errors import InputError
from freehold.lock import machine
from freehold.lock.covered import HOST_KEY_TYPES
from freehold.lock.machine import AccountFiles, MachineState

# Not `typing`'s: every locked boot waits for this module, see freehold.lock.machine.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

STATE_FILE = "machine.json"
#: (file, mode, group) of the account databases; shadow files are readable by group shadow.
ACCOUNT_FILES = (("passwd", 0o644), ("group", 0o644), ("shadow", 0o640), ("gshadow", 0o640), ("subuid", 0o644), ("subgid", 0o644))


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _key(etc: str | Path, kind: str) -> str:
    return f"{etc}/ssh/ssh_host_{kind}_key"


def collect(etc: Path) -> tuple[MachineState, list[str]]:
    """The typed state of the running ``etc``; (state, what cannot be kept)."""
    keys = {}
    for kind in HOST_KEY_TYPES:
        private = _key(etc, kind)
        if os.path.isfile(private):
            keys[kind] = (_text(private), _text(f"{private}.pub"))
    return machine.collect(
        _text(f"{etc}/hostname"), _text(f"{etc}/passwd"), _text(f"{etc}/shadow"), _text(f"{etc}/subuid"), keys
    )


def save(state: MachineState, directory: Path) -> None:
    """Store ``state`` below ``directory`` (``/sysroot/state``)."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    atomic.write(directory / STATE_FILE, machine.serialize(state), mode=0o600)


def load(directory: str | Path) -> tuple[MachineState, list[str]]:
    """The stored state, checked; an unreadable one counts as none, with the reason in the second part."""
    try:
        with open(f"{directory}/{STATE_FILE}", "rb") as file:
            return machine.parse(file.read(machine.MAX_BYTES + 1))
    except FileNotFoundError:
        return MachineState(), []
    except (InputError, OSError) as error:
        return MachineState(), [str(error)]


def apply(state: MachineState, machine_id: str, factory: str | Path, etc: str | Path) -> None:
    """Write ``state`` into ``etc``, accounts on top of ``factory``'s."""
    atomic.write(f"{etc}/machine-id", machine_id + "\n", mode=0o444)
    if state.hostname:
        atomic.write(f"{etc}/hostname", state.hostname + "\n")
    base = AccountFiles(**{name: _text(f"{factory}/{name}") for name, _ in ACCOUNT_FILES})
    rendered = machine.render(base, state.accounts)
    group = next((int(line.split(":")[2]) for line in base.group.splitlines() if line.startswith("shadow:")), 0)
    for name, mode in ACCOUNT_FILES:
        text = getattr(rendered, name)
        if text:
            atomic.write(f"{etc}/{name}", text, mode=mode, group=group if mode == 0o640 else None)
    for key in state.host_keys:
        path = _key(etc, key.type)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        atomic.write(path, key.private, mode=0o600)
        atomic.write(f"{path}.pub", key.public)
