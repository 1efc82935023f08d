# SPDX-License-Identifier: Apache-2.0
"""The firmware's list of what it does not start (dbx) on this machine: what it has, and adding what an owner signed.

Everything is looked at before the firmware is asked: it has one word for many faults, and what it took it keeps. What was
written is read back.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from freehold import atomic
from freehold.device import efivars, loader, stage, verify_esp
from freehold.device.sysroot import Sysroot, record
from freehold.device.verify_kernel import read_regular
from freehold.errors import FreeholdError, InputError, NotHereError
from freehold.keys import dbx, pe
from freehold.keys.efi import CERT_X509, GLOBAL_VARIABLE, IMAGE_SECURITY_DATABASE, REFUSED, Signature, parse_lists
from freehold.keys.verify import Keychain

_BOOT_HINT = (
    "`freehold rescue repair-esp`, from a stick that another key signed, puts its boot loader there; upgrade and reboot into a "
    "release by another key; --force does it all the same"
)


class Firmware(NamedTuple):
    """What the firmware says: modes, and the content of its lists. ``size`` is dbx's, in bytes."""

    secure_boot: bool
    setup_mode: bool
    refused: tuple[Signature, ...]
    size: int
    kek: tuple[bytes, ...]
    db: tuple[bytes, ...]


class Plan(NamedTuple):
    """What an update would do here. ``new``: entries that the firmware has not; ``vital`` and ``stops``: programs of the boot
    partition that would not start any more, with and without which the machine comes up."""

    update: dbx.Update
    new: tuple[Signature, ...]
    vital: tuple[str, ...]
    stops: tuple[str, ...]


def look(sysroot: Sysroot) -> Firmware:
    """Ask the firmware. Raises :class:`NotHereError` where it is no UEFI, or has no Secure Boot."""
    setup = efivars.read(sysroot, "SetupMode", GLOBAL_VARIABLE, own=True)
    if setup is None:
        raise NotHereError(
            "this machine's firmware has no Secure Boot, or its variables are not to be seen", hint="ls /sys/firmware/efi/efivars"
        )
    lists = efivars.read(sysroot, REFUSED, IMAGE_SECURITY_DATABASE) or b""
    return Firmware(
        sysroot.secure_boot(), setup != b"\0", _entries(REFUSED, lists), len(lists),
        _certificates(sysroot, "KEK", str(GLOBAL_VARIABLE)), _certificates(sysroot, "db", str(IMAGE_SECURITY_DATABASE)),
    )  # fmt: skip


def _certificates(sysroot: Sysroot, name: str, guid: str) -> tuple[bytes, ...]:
    entries = _entries(name, efivars.read(sysroot, name, guid) or b"")
    return tuple(one.data for one in entries if one.type == CERT_X509)


def _entries(name: str, lists: bytes) -> tuple[Signature, ...]:
    try:
        return parse_lists(lists)
    except ValueError as error:
        raise FreeholdError(f"the firmware's {name} cannot be read: {error}") from None


def plan(sysroot: Sysroot, data: bytes, keychain: Keychain) -> Plan:
    """What the update ``data`` would do here.

    Raises :class:`VerificationError` for one that nobody in KEK signed for dbx, :class:`FreeholdError` in setup mode and when the
    early step could no longer read the list, :class:`NotHereError` as :func:`look`, and when the boot partition is not there.
    """
    here = look(sysroot)
    if here.setup_mode:
        raise FreeholdError(
            "Secure Boot is in setup mode: the firmware has no owner whose signature it would check",
            hint="enrol first; a disk made by `freehold disk --enrol force --dbx FILE` brings the update along",
        )
    update = dbx.verify(data, here.kek)
    new = dbx.missing(update.entries, here.refused)
    try:
        dbx.check_room(here.refused, here.size, new, len(keychain.revoked))
    except ValueError as error:
        raise FreeholdError(
            f"{error}: the early step could not read the list", hint="the firmware's setup can put dbx back to what it was"
        ) from None
    vital, stops = _stopped(sysroot, new, here.db)
    for one in keychain.of_role("owner"):
        # The early step looks dbx up for intents, too.
        if any(dbx.reaches(entry, one.der) for entry in new):
            vital.append(f"the owner {one.name}: intents that it signed, the standing one among them, would not count")
    return Plan(update, new, tuple(vital), tuple(stops))


def _stopped(sysroot: Sysroot, new: tuple[Signature, ...], db: tuple[bytes, ...]) -> tuple[list[str], list[str]]:
    vital: list[str] = []
    stops: list[str] = []
    booted = sysroot.booted_id()
    for name, needed in _programs(sysroot, booted):
        try:
            program = _read(sysroot, name)
        except FileNotFoundError:
            continue
        except (OSError, FreeholdError, ValueError) as error:
            # The firmware may start what we cannot read; whether it goes on doing so nobody can tell.
            said = str(error.strerror) if isinstance(error, OSError) else str(error)
            (vital if needed else stops).append(f"{name} cannot be judged: {said}")
            continue
        entry = dbx.refusing(new, program, db)
        if entry is not None:
            (vital if needed else stops).append(f"{name} would not start: {_why(entry, program)}")
    return vital, stops


def _why(entry: Signature, program: dbx.Program) -> str:
    return "it is revoked itself" if entry.data == program.digest else f"signed under {dbx.describe(entry)['subject']}"


def refusal(sysroot: Sysroot, path: Path) -> str:
    """Why this machine's firmware will not start the program ``path``, by its dbx; empty when it will, or nobody can tell."""
    try:
        here = look(sysroot)
        program = dbx.program(path.name, read_regular(path, pe.MAX_BYTES))
    except (OSError, FreeholdError, ValueError):
        return ""
    entry = dbx.refusing(here.refused, program, here.db) if here.secure_boot else None
    return "" if entry is None else f"the firmware refuses it: {_why(entry, program)}"


def _programs(sysroot: Sysroot, booted: str) -> Iterator[tuple[str, bool]]:
    """Programs of the boot partition that firmware is asked to start, and whether this machine cannot do without."""
    entries = stage.ensure_esp(sysroot)
    yield from ((name, True) for name in verify_esp.LOADERS)
    yield from ((f"{loader.LINUX}/{one.name}", one.id == booted) for one in loader.both(entries, loader.rescues(sysroot.esp)))


def _read(sysroot: Sysroot, name: str) -> dbx.Program:
    return dbx.program(name, read_regular(sysroot.esp / name, pe.MAX_BYTES))


def apply(
    sysroot: Sysroot, data: bytes, keychain: Keychain, *, force: bool = False, append: efivars.Append = efivars.append
) -> tuple[Plan, bool]:
    """Hand ``data`` to the firmware; with the plan, whether there was anything to do.

    Planned and done under the lock on deployments: none can be staged in between that would not start any more.
    Raises as :func:`plan`, :class:`InputError` when the machine would not come up, unless ``force``;
    :class:`FreeholdError` with the firmware's word when it refuses, and when it does not keep what it took.
    """
    with atomic.exclusive(sysroot.lock_file, "the list of deployments"):
        wanted = plan(sysroot, data, keychain)
        if not wanted.new:
            return wanted, False
        if wanted.vital and not force:
            raise InputError("this update would keep the machine from starting as it does", faults=wanted.vital, hint=_BOOT_HINT)
        append(sysroot, REFUSED, IMAGE_SECURITY_DATABASE, dbx.ATTRIBUTES, data)
        lost = dbx.missing(wanted.new, look(sysroot).refused)
    if lost:
        raise FreeholdError(
            f"the firmware took the update, but its list lacks {len(lost)} of {len(wanted.new)} entries",
            hint="its setup may be able to take the file; look for an update of the firmware",
        )
    record(sysroot, "dbx", entries=[str(dbx.describe(one)["sha256"]) for one in wanted.new])
    return wanted, True
