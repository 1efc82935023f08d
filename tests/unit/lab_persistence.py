# SPDX-License-Identifier: Apache-2.0
"""Sights of two machines that never were, for the tests of the persistence table."""

from __future__ import annotations

from attack.persistence.model import Done, Live, Row, Sight

ONE, TWO = "1" * 32, "2" * 32
GOOD, DENIED = Done(0), Done(2, "sh: 1: cannot create x: Operation not permitted")


def row(**changes: object) -> Row:
    values: dict[str, object] = {
        "id": "a24-unit", "kind": "E", "title": "a service", "plant": "true", "canaries": ("a24-unit", "a24-unit.native"),
    }  # fmt: skip
    return Row(**{**values, **changes})  # type: ignore[arg-type]


def act(**changes: object) -> Live:
    values: dict[str, object] = {"id": "a17-disk", "kind": "X", "title": "the raw disk", "act": "dd"}
    return Live(**{**values, **changes})  # type: ignore[arg-type]


def opened(one: Row, *, boot: str = TWO, uid: int = 0, **changes: object) -> Sight:
    """An open machine on which ``one`` fired."""
    values: dict[str, object] = {
        "first": ONE, "second": TWO, "planted": {one.id: GOOD}, "lock": "open", "target": "degraded",
        "canaries": dict.fromkeys(one.canaries, ((uid, boot),)), "looks": {one.id: Done(0, "there")} if one.look else {},
        "absence": {one.id: GOOD} if one.absence else {},
    }  # fmt: skip
    return Sight(**{**values, **changes})  # type: ignore[arg-type]


def locked(one: Row, **changes: object) -> Sight:
    """A locked machine on which it did not."""
    values: dict[str, object] = {
        "first": ONE, "second": TWO, "planted": {one.id: GOOD}, "lock": "locked", "target": "running",
        "looks": {one.id: Done(0, "")} if one.look else {}, "absence": {one.id: GOOD} if one.absence else {},
    }  # fmt: skip
    return Sight(**{**values, **changes})  # type: ignore[arg-type]
