# SPDX-License-Identifier: Apache-2.0
"""Typed machine state between /etc and the disk: read from a running /etc, written into a fresh one."""

from __future__ import annotations

from pathlib import Path

from freehold import atomic
from freehold.errors import InputError
from freehold.lock import machine
from freehold.lock.covered import HOST_KEY_TYPES
from freehold.lock.machine import AccountFiles, MachineState

STATE_FILE = "machine.json"
#: (file, mode, group) of the account databases; shadow files are readable by group shadow.
ACCOUNT_FILES = (("passwd", 0o644), ("group", 0o644), ("shadow", 0o640), ("gshadow", 0o640), ("subuid", 0o644), ("subgid", 0o644))


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def collect(etc: Path) -> tuple[MachineState, list[str]]:
    """The typed state of the running ``etc``; (state, what cannot be kept)."""
    keys = {}
    for kind in HOST_KEY_TYPES:
        private = etc / "ssh" / f"ssh_host_{kind}_key"
        if private.is_file():
            keys[kind] = (_text(private), _text(private.with_name(private.name + ".pub")))
    return machine.collect(
        _text(etc / "hostname"), _text(etc / "passwd"), _text(etc / "shadow"), _text(etc / "subuid"), keys
    )


def save(state: MachineState, directory: Path) -> None:
    """Store ``state`` below ``directory`` (``/sysroot/state``)."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    atomic.write(directory / STATE_FILE, machine.serialize(state), mode=0o600)


def load(directory: Path) -> tuple[MachineState, list[str]]:
    """The stored state, checked; an unreadable one counts as none, with the reason in the second part."""
    path = directory / STATE_FILE
    try:
        with path.open("rb") as file:
            return machine.parse(file.read(machine.MAX_BYTES + 1))
    except FileNotFoundError:
        return MachineState(), []
    except (InputError, OSError) as error:
        return MachineState(), [str(error)]


def apply(state: MachineState, machine_id: str, factory: Path, etc: Path) -> None:
    """Write ``state`` into ``etc``, accounts on top of ``factory``'s."""
    atomic.write(etc / "machine-id", machine_id + "\n", mode=0o444)
    if state.hostname:
        atomic.write(etc / "hostname", state.hostname + "\n")
    base = AccountFiles(**{name: _text(factory / name) for name, _ in ACCOUNT_FILES})
    rendered = machine.render(base, state.accounts)
    group = next((int(line.split(":")[2]) for line in base.group.splitlines() if line.startswith("shadow:")), 0)
    for name, mode in ACCOUNT_FILES:
        text = getattr(rendered, name)
        if text:
            atomic.write(etc / name, text, mode=mode, group=group if mode == 0o640 else None)
    for key in state.host_keys:
        path = etc / "ssh" / f"ssh_host_{key.type}_key"
        path.parent.mkdir(exist_ok=True)
        atomic.write(path, key.private, mode=0o600)
        atomic.write(path.with_name(path.name + ".pub"), key.public)
