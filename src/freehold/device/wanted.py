# SPDX-License-Identifier: Apache-2.0
"""What the owner has asked this machine to add: the list that the newest believed intent names.

The newest is the one in the inbox when it may follow the standing one, else the standing one. A list needs no protected
place: it is named by its SHA-256 in what the owner signed. It lies in ``owner/requests`` or, when it
came while the guard closed that directory, in ``inbox/requests``; a copy of its lines is in every derived manifest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from freehold import atomic
from freehold.device.sysroot import Sysroot
from freehold.errors import FreeholdError, InputError, NotHereError, VerificationError
from freehold.files import read_bytes
from freehold.keys.verify import Keychain
from freehold.lock import intent as intents
from freehold.lock import memory, requests
from freehold.lock.intent import Intent

_CLOSED = (errno.EPERM, errno.EACCES, errno.EROFS)
#: A package file larger than this is refused unread.
MAX_FILE_BYTES = 2 << 30


class Wanted(NamedTuple):
    """The list in force for the next deployment. ``waiting``: its intent is in the inbox, and stands after a boot."""

    intent: Intent | None
    text: bytes
    waiting: bool

    @property
    def list(self) -> requests.Requests:
        """The requests themselves."""
        return requests.parse(self.text)

    @property
    def serial(self) -> int:
        """The number of the intent that asks for them; 0 when there is none."""
        return self.intent.serial if self.intent else 0


EMPTY = requests.serialize(requests.Requests())
#: In the inbox: a signed intent on its way to the updater.
OFFERED = "offered"


def machine(sysroot: Sysroot) -> str:
    """This machine's name in intents."""
    try:
        return (sysroot.root / "owner/id").read_text().strip()
    except FileNotFoundError:
        raise NotHereError("this is not a Freehold machine") from None
    except PermissionError:
        raise FreeholdError(
            "only root may look at what the owner asked for", hint="use the console, or ssh as root"
        ) from None


def _signed(path: Path) -> bytes | None:
    try:
        with path.open("rb") as source:
            return source.read(intents.MAX_SIGNED_BYTES + 1)
    except FileNotFoundError:
        return None


def standing(sysroot: Sysroot) -> intents.Standing:
    """The intent in force, verified."""
    keychain = Keychain.from_directory(sysroot.keychain)
    signed = _signed(sysroot.root / "owner/intent")
    judged = intents.judge(signed, keychain=keychain, machine=machine(sysroot))
    return memory.judge(judged, signed, memory.load(sysroot.root / "owner"))


def newest(sysroot: Sysroot) -> tuple[Intent | None, bool]:
    """The newest believed intent, and whether it still waits in the inbox.

    Raises :class:`VerificationError` when the standing one is not believed and no better one waits.
    """
    now = standing(sysroot)
    keychain = Keychain.from_directory(sysroot.keychain)
    found, waits = intents.newest(
        now, _signed(sysroot.root / "inbox/intent"), keychain=keychain, machine=machine(sysroot)
    )
    if found is not None:
        return found, waits
    if now.state != "open":
        raise VerificationError(now.reason, hint="an intent with the owner's signature repairs it: `freehold unlock`")
    return None, False


def load(sysroot: Sysroot) -> Wanted:
    """The list that the owner asked for, empty when none. Raises as :func:`newest` and :func:`read_list`."""
    intent, waiting = newest(sysroot)
    name = intent.requests if intent else None
    return Wanted(intent, read_list(sysroot, name) if name else EMPTY, waiting)


def read_list(sysroot: Sysroot, name: str) -> bytes:
    """The list that is called ``name``. :class:`NotHereError` when no copy with that SHA-256 is left."""
    for place in ("owner/requests", "inbox/requests"):
        with contextlib.suppress(OSError, FreeholdError):
            data = read_bytes(sysroot.root / place / name, requests.MAX_BYTES)
            if requests.name_of(data) == name:
                return data
    for deployment in sysroot.all_deployments():
        derived = deployment.manifest.derived
        if derived is not None and derived.requests == name:
            with contextlib.suppress(InputError):
                data = requests.serialize(requests.from_lines(derived.lines))
                if requests.name_of(data) == name:
                    return data
    raise NotHereError(
        f"the list of requests {name[:16]} that the owner signed is not on this machine",
        hint="make the request again: what is asked for is only known by its name",
    )


def _store(sysroot: Sysroot, kind: str, name: str, write: Callable[[Path], None]) -> Path:
    for place in ("owner", "inbox"):
        directory = sysroot.root / place / kind
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            write(directory / name)
        except OSError as error:
            if place == "owner" and error.errno in _CLOSED:
                continue
            raise
        return directory / name
    raise AssertionError


def store_list(sysroot: Sysroot, text: bytes) -> str:
    """Keep the list durably under its name; returns the name."""
    name = requests.name_of(text)
    _store(sysroot, "requests", name, lambda path: atomic.write(path, text, mode=0o600))
    return name


def store_file(sysroot: Sysroot, source: Path) -> requests.File:
    """Keep a package file under its SHA-256. :class:`InputError` when it is none."""
    import hashlib
    import shutil

    try:
        with source.open("rb") as reader:
            if os.fstat(reader.fileno()).st_size > MAX_FILE_BYTES or reader.read(8) != b"!<arch>\n":
                raise InputError(f"{source} is not a Debian package file")
            reader.seek(0)
            name = hashlib.file_digest(reader, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{source}: {error.strerror}") from None
    found = requests.parse(requests.serialize(requests.Requests(files=(requests.File(name, source.name),)))).files[0]

    def write(path: Path) -> None:
        temporary = path.with_name(f"{atomic.TEMPORARY_PREFIX}{path.name}")
        shutil.copyfile(source, temporary)
        atomic.publish(temporary, path)

    _store(sysroot, "files", name, write)
    return found


def file_path(sysroot: Sysroot, file: requests.File) -> Path:
    """Where the requested package file is. Its content is *not* checked here: the caller copies, then compares.

    :class:`NotHereError` when it is nowhere.
    """
    for place in ("owner/files", "inbox/files"):
        path = sysroot.root / place / file.sha256
        if path.is_file():
            return path
    raise NotHereError(
        f"the package file {file.name} ({file.sha256[:16]}) is not on this machine", hint="install it again"
    )


def propose(sysroot: Sysroot, text: bytes) -> Intent:
    """The intent that asks for the list ``text`` and leaves everything else as the newest believed one has it.

    Also the rollback floor: an intent that does not speak of it leaves what the machine has raised, one that names it sets it.
    """
    current, _ = newest(sysroot)
    name, now = requests.name_of(text), int(time.time())
    # Above what the TPM remembers: a number that was used is not used again.
    least = standing(sysroot).after + 1
    if current is None:
        return Intent(machine=machine(sysroot), serial=least, lock="open", since=now, requests=name)
    return dataclasses.replace(current, serial=max(least, current.serial + 1), since=now, requests=name, floor=None)


def check(sysroot: Sysroot, signed: bytes) -> Intent:
    """The intent of a signed answer. :class:`VerificationError` unless it may follow the standing one."""
    keychain = Keychain.from_directory(sysroot.keychain)
    offer = intents.judge_offer(standing(sysroot), signed, keychain=keychain, machine=machine(sysroot))
    if not offer.accepted or offer.intent is None:
        raise VerificationError(
            f"the signed intent is refused: {offer.reason}", hint="make a new request on this machine"
        )
    waiting, is_waiting = newest(sysroot)
    if is_waiting and waiting is not None and offer.intent.serial < waiting.serial:
        raise VerificationError("the signed intent is refused: a newer one waits for the next boot")
    return offer.intent


def offer(sysroot: Sysroot, signed: bytes) -> None:
    """Put a signed intent where the updater finds it. It asks for nothing there: only ``inbox/intent`` is ever believed."""
    inbox = sysroot.root / "inbox"
    inbox.mkdir(mode=0o700, exist_ok=True)
    atomic.write(inbox / OFFERED, signed, mode=0o600)


def offered(sysroot: Sysroot) -> bytes:
    """The signed intent that :func:`offer` left, unverified; once: it is gone then. :class:`NotHereError` when there is none."""
    path = sysroot.root / "inbox" / OFFERED
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as source:
            data = source.read(intents.MAX_SIGNED_BYTES + 1)
        path.unlink(missing_ok=True)
    except OSError as error:
        raise NotHereError(f"no intent is offered: {error.strerror}") from None
    return data


def leave(sysroot: Sysroot, intent: Intent, signed: bytes) -> None:
    """Put a checked intent where the next boot takes it up.

    /etc's writable layer is named by the intent's serial. While the machine is not locked a change of
    requests is no change of /etc, so the new serial gets the same layer, by a link made before the
    intent is there.
    """
    old = standing(sysroot)
    _carry_etc(sysroot.root / "owner/etc", old, intent)
    inbox = sysroot.root / "inbox"
    inbox.mkdir(mode=0o700, exist_ok=True)
    atomic.write(inbox / "intent", signed, mode=0o600)


def _carry_etc(layers: Path, old: intents.Standing, new: Intent) -> None:
    before = old.intent
    config, serial = (before.config, before.serial) if before else (None, 0)
    if old.state == "locked" or new.lock != old.state or new.config != config:
        return
    link = layers / str(new.serial)
    if not (layers / str(serial) / "upper").is_dir() or (link.exists() and not link.is_symlink()):
        return
    link.unlink(missing_ok=True)
    link.symlink_to(str(serial))
    atomic.fsync_directory(layers)
