# SPDX-License-Identifier: Apache-2.0
"""What dpkg and apt say, understood: the status database, a planned transaction, why an installation failed. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

#: dpkg's word for a package that is as it should be, or not there.
_SETTLED = ("installed", "config-files", "not-installed")
_PLAN = re.compile(r"^(Inst|Remv) (\S+)(?: \[([^\]]*)\])?(?: \((\S+))?", re.MULTILINE)
_FAULT = re.compile(r"dpkg: error processing (?:package|archive) (\S+)")
_SCRIPT = re.compile(r"(?:installed |new |old )?(\S+) package (\S+) script subprocess")
_TAIL = 12


def _blocks(status: str) -> list[dict[str, str]]:
    return [
        dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(" "))
        for block in status.split("\n\n")
    ]


def installed(status: str) -> tuple[tuple[str, str, str], ...]:
    """(name, version, architecture) of each installed package in dpkg's status text."""
    known = [fields for fields in _blocks(status) if fields.get("Status", "").endswith(" installed")]
    return tuple(sorted((fields["Package"], fields["Version"], fields["Architecture"]) for fields in known))


def unsettled(status: str) -> list[str]:
    """Packages that are half installed, half configured, or wait for triggers."""
    found = []
    for fields in _blocks(status):
        words = fields.get("Status", "").split()
        if words and (words[-1] not in _SETTLED or "reinstreq" in words):
            found.append(f"{fields.get('Package', '?')} is {words[-1]}")
    return sorted(found)


class Plan(NamedTuple):
    """A simulated transaction: rows of (name, version); ``replaced`` has (name, old version, new version)."""

    added: tuple[tuple[str, str], ...]
    removed: tuple[tuple[str, str], ...]
    replaced: tuple[tuple[str, str, str], ...]


def plan(simulation: str) -> Plan:
    """What ``apt-get --simulate`` would do."""
    added, removed, replaced = [], [], []
    for word, name, old, new in _PLAN.findall(simulation):
        if word == "Remv":
            removed.append((name, old))
        elif old:
            replaced.append((name, old, new))
        else:
            added.append((name, new))
    return Plan(tuple(sorted(added)), tuple(sorted(removed)), tuple(sorted(replaced)))


def failure(output: str) -> tuple[str, list[str]]:
    """Why an installation failed, in one line, and the last lines that were printed."""
    lines = [line.rstrip() for line in output.splitlines() if line.strip()]
    script, package = _SCRIPT.search(output), _FAULT.search(output)
    errors = [line for line in lines if line.startswith("E: ")]
    if script is not None:
        why = f"the {script[2]} script of {script[1]} failed"
    elif package is not None:
        why = f"{package[1]} could not be installed"
    else:
        why = errors[0].removeprefix("E: ") if errors else lines[-1] if lines else "no message"
    return why[:300], lines[-_TAIL:]
