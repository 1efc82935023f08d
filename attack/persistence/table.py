# SPDX-License-Identifier: Apache-2.0
"""All rows of the persistence table, in the order in which they are planted."""

from __future__ import annotations

from attack.persistence.kinds import accounts, boot, collateral, hooks, live, shells, state, units
from attack.persistence.model import CLASSES, Live, Row

_PLACES: tuple[Row, ...] = (*units.ROWS, *hooks.ROWS, *accounts.ROWS, *shells.ROWS, *state.ROWS, *boot.ROWS)
#: Last what every program heeds from then on: while locked each one complains about it.
ROWS: tuple[Row, ...] = tuple(sorted(_PLACES, key=lambda row: "/etc/ld.so.preload" in row.plant))
LIVE: tuple[Live, ...] = live.ROWS
COLLATERAL: tuple[Live, ...] = collateral.ROWS


def chosen(only: list[str]) -> tuple[list[Row], list[Live]]:
    """Planted and live rows that are called so, or whose id's first part (``a24``) or class (``E``) is so; all when it is empty.

    ``KeyError`` names what is unknown.
    """
    everything: tuple[Row | Live, ...] = (*ROWS, *LIVE)
    known = {one.id for one in everything} | {one.id.partition("-")[0] for one in everything} | set(CLASSES)
    if unknown := set(only) - known:
        raise KeyError(", ".join(sorted(unknown)))

    def wanted(one: Row | Live) -> bool:
        return not only or bool({one.id, one.id.partition("-")[0], one.kind} & set(only))

    return [one for one in ROWS if wanted(one)], [one for one in LIVE if wanted(one)]
