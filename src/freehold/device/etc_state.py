# SPDX-License-Identifier: Apache-2.0
"""How the running /etc differs from what the owner committed, and the commits there were."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

from freehold.device import etc_image, wanted
from freehold.device.sysroot import Sysroot
from freehold.errors import FreeholdError, InputError, NotHereError
from freehold.keys.verify import Keychain
from freehold.lock import commits, intent
from freehold.lock.covered import IGNORED
from freehold.lock.drift import Change
from freehold.lock.drift import drift as differences
from freehold.lock.trees import Directory, Tree


class Commit(NamedTuple):
    """One state of /etc. ``number`` is the intent's, ``time`` what that says, seconds since 1970.

    ``author``: the key whose signature verifies, "" when none does (``fault`` says why; then everything else is a claim).
    ``changes``: paths that differ from the commit before, ``None`` when an image is not here. ``state``: in force, waiting, past.
    """

    number: int
    time: int
    author: str
    fault: str
    config: str | None
    message: str
    changes: int | None
    state: str

    def data(self) -> dict[str, object]:
        """As a row of JSON."""
        fields = self._asdict()
        return {"digest": fields.pop("config"), "verified": bool(self.author), **fields}


class View(NamedTuple):
    """What stands, what comes after the next boot (``None``: nothing else), and whether the machine is locked now."""

    standing: intent.Standing
    waiting: intent.Intent | None
    locked: bool

    @property
    def config(self) -> str | None:
        """The image in force."""
        return self.standing.intent.config if self.standing.intent else None

    @property
    def newest(self) -> intent.Intent | None:
        """The newest believed intent."""
        return self.waiting or self.standing.intent


def view(sysroot: Sysroot) -> View:
    """The machine of ``sysroot``. :class:`NotHereError` in the rescue entry, and when it is none of ours."""
    if sysroot.boot_record().get("rescue") is True:
        raise NotHereError("this is the rescue entry: the factory's /etc is in force", hint="start the machine as usual")
    standing = wanted.standing(sysroot)
    newest, waits = None, False
    with contextlib.suppress(FreeholdError):
        newest, waits = wanted.newest(sysroot)
    return View(standing, newest if waits else None, sysroot.mode() == "locked")


def running(sysroot: Sysroot) -> Directory:
    """The running /etc, as it is now."""
    return Directory(sysroot.system / "etc")


def drift(sysroot: Sysroot, base: Tree) -> list[Change]:
    """How the running /etc differs from ``base``, machine state and generated files apart."""
    return list(differences(base, running(sysroot), ignore=IGNORED))


def commit_of(
    sysroot: Sysroot, serial: int, signed: bytes, before: etc_image.Image | None, state: str
) -> tuple[Commit, etc_image.Image | None]:
    """The commit that the intent ``signed`` made, compared with the image ``before`` it, and its own image."""
    judged = intent.judge(signed, keychain=Keychain.from_directory(sysroot.keychain), machine=wanted.machine(sysroot))
    fault, said = judged.reason if judged.intent is None else "", judged.intent or commits.Record(serial, signed).claimed
    if said is None:
        return Commit(serial, 0, "", "it is no intent", None, "", None, state), None
    if not fault and said.serial != serial:
        fault = f"it is the intent number {said.serial}"
    message, count, image = "", None, None
    with contextlib.suppress(FreeholdError):
        image = etc_image.Image(etc_image.load_bytes(sysroot, said.config)) if said.config else None
        message, count = image.message if image else "", len(etc_image.changes_between(before, image))
    return Commit(serial, said.since, "" if fault else judged.key, fault, said.config, message, count, state), image


def history(sysroot: Sysroot) -> list[Commit]:
    """Every commit that is kept, oldest first, then one that waits for the next boot. Raises as :func:`view`."""
    seen = view(sysroot)
    records = {record.serial: record.signed for record in commits.load(sysroot.root / "owner")}
    standing = seen.standing.intent
    in_force = 0
    if standing is not None:
        in_force, config = commits.config_at(commits.load(sysroot.root / "owner"), standing.serial)
        if config != standing.config:
            # It stands, and the next boot keeps it.
            in_force = standing.serial
            records[in_force] = (sysroot.root / "owner/intent").read_bytes()[: intent.MAX_SIGNED_BYTES + 1]
    waits = 0
    if seen.waiting is not None and seen.waiting.config != seen.config:
        waits = seen.waiting.serial
        records[waits] = (sysroot.root / "inbox/intent").read_bytes()[: intent.MAX_SIGNED_BYTES + 1]
    found: list[Commit] = []
    before = None
    for serial in sorted(records):
        state = "in force" if serial == in_force else "waiting" if serial == waits else "past"
        made, image = commit_of(sysroot, serial, records[serial], before, state)
        # What nobody signed is no commit, and nothing is compared with it.
        before = image if made.author else before
        found.append(made)
    return found


def commit_numbered(sysroot: Sysroot, number: int) -> str | None:
    """The image of the commit ``number`` (0: the factory's /etc). :class:`InputError` unless the owner signed it."""
    if number == 0:
        return None
    found = next((one for one in history(sysroot) if one.number == number), None)
    if found is None:
        raise InputError(f"there is no commit {number}", hint="`freehold etc history` lists them; 0 is the factory's /etc")
    if not found.author:
        raise InputError(f"commit {number} is not verified: {found.fault}")
    if found.config is not None:
        etc_image.load_bytes(sysroot, found.config)
    return found.config
