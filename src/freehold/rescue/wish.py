# SPDX-License-Identifier: Apache-2.0
"""What an owner can ask for in a rescue, as intents, and whether an answer is to a question that was asked. Pure."""

from __future__ import annotations

from dataclasses import replace

from freehold.errors import InputError, VerificationError
from freehold.keys.verify import Keychain
from freehold.lock import emergency, intent
from freehold.lock.intent import MAX_NUMBER, Intent, Standing


def base(standing: Standing, machine: str, now: int, known: int | None = None) -> Intent:
    """The intent that follows ``standing`` and changes nothing; ``now`` in seconds since 1970.

    ``known`` is the rollback floor in force at this boot: where it is higher than the intent's, it is what the owner
    signs, so that no act lowers it by the way. Not where the running release lies below it (the rescue of an older
    one): the early step would not take an intent with which that release could not boot.

    Where the standing one is not believed, it is one that locks, with factory settings: whoever damaged it may have
    written what it says, and the owner shall not sign that unread. Its number is a new one, so that it brings no
    writable /etc of an older one back.
    """
    current = standing.intent
    if max(standing.after, current.serial if current is not None else 0) >= MAX_NUMBER:
        raise InputError("the intent's number cannot rise any more", hint='docs/getting-back-in.md, "Lost owner key"')
    if current is None:
        return Intent(
            machine=machine, serial=max(standing.after + 1, now if standing.state == "locked" else 1),
            lock=standing.state, since=now,
        )  # fmt: skip
    follows = replace(current, serial=max(current.serial, standing.after) + 1, since=now)
    return replace(follows, floor=known) if known is not None and known > (current.floor or 0) else follows


def access(standing: Standing, machine: str, now: int, known: int | None = None) -> Intent:
    """Nothing but a proof: the state stays, the number rises."""
    return base(standing, machine, now, known)


def uses_up(standing: Standing, answer: Intent) -> bool:
    """Whether ``answer`` shall stand from the next boot on.

    While locked always: then it counts once. A proof on a machine that is not locked is only a proof: a new
    number would put a fresh /etc over the one that the owner changes.
    """
    return standing.state == "locked" or answer.lock != standing.state


def unlock(standing: Standing, machine: str, now: int, known: int | None = None) -> Intent:
    """Open at the next boot, with /etc as it was committed. Raises :class:`InputError` where nothing is locked."""
    if standing.state == "open":
        raise InputError(
            "the owner's intent does not lock this machine: only the rescue itself is locked", hint="reboot"
        )
    return replace(base(standing, machine, now, known), lock="open")


def floor(standing: Standing, machine: str, now: int, number: int, known: int | None = None) -> Intent:
    """A lower rollback floor. Raises :class:`InputError` for one that is not lower, or where none is in force."""
    wanted = base(standing, machine, now)
    if standing.state != "locked":
        raise InputError("the floor counts while locked, and this machine is not")
    current = max(wanted.floor or 0, known or 0)
    if not 0 <= number < current:
        raise InputError(
            f"the rollback floor is {current}; {number} is not below it" if current else "there is no rollback floor to lower"
        )
    return replace(wanted, floor=number)


def describe(wanted: Intent) -> str:
    """An intent in one line."""
    what = {"open": "open", "audit": "audit", "locked": "locked"}[wanted.lock]
    low = f", floor {wanted.floor}" if wanted.floor else ""
    by_ssh = f", emergency ssh by {emergency.fingerprint(wanted.emergency_ssh)}" if wanted.emergency_ssh else ""
    return f"machine {wanted.machine}: {what}{low}{by_ssh} (intent number {wanted.serial})"


def check_answer(
    signed: bytes, asked: frozenset[bytes], standing: Standing, keychain: Keychain, machine: str
) -> Intent:
    """The intent of a signed answer to one of the texts ``asked`` in this boot.

    An answer to an earlier question, also a genuine one, is refused: it may have been copied. Raises
    :class:`VerificationError`.
    """
    offer = intent.judge_offer(standing, signed, keychain=keychain, machine=machine)
    if not offer.accepted or offer.intent is None:
        raise VerificationError(f"the answer is refused: {offer.reason}")
    text, _ = intent.split(signed)
    if text not in asked:
        raise VerificationError("the answer is to another request", hint="`request` writes one; only its answer counts")
    return offer.intent
