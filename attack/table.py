# SPDX-License-Identifier: Apache-2.0
"""All rows, in the order of the table."""

from __future__ import annotations

from attack.kinds import controls, disks, firmware, loader, owner, tree, uki, var
from attack.model import Row

ROWS: tuple[Row, ...] = (
    *controls.ROWS, *loader.ROWS, *uki.ROWS, *tree.ROWS, *owner.ROWS, *var.ROWS, *firmware.ROWS, *disks.ROWS,
)  # fmt: skip


def chosen(only: list[str]) -> list[Row]:
    """The rows that are called or belong to an area of ``only``, all when it is empty. ``KeyError`` for an unknown name."""
    known = {row.id for row in ROWS} | {row.area for row in ROWS}
    if unknown := set(only) - known:
        raise KeyError(", ".join(sorted(unknown)))
    return [row for row in ROWS if not only or row.id in only or row.area in only]


def batches(rows: list[Row]) -> list[list[Row]]:
    """Rows by boot: those of one ``together`` share one, in the place of the first of them. Pure."""
    found: list[list[Row]] = []
    shared: dict[str, list[Row]] = {}
    for row in rows:
        if row.together in shared:
            shared[row.together].append(row)
            continue
        found.append([row])
        if row.together:
            shared[row.together] = found[-1]
    return found
