# SPDX-License-Identifier: Apache-2.0
"""Changing what /etc is: a new committed image, its intent put into force or into the inbox, running files put back.

Of a commit on a machine that is not locked, in this order, each step harmless if the power goes after it:

1. the image, under its digest, in the owner's directory; the machine's own state, as typed data;
2. a link by which the new intent's layer of /etc is the running one (what is changed after the commit stays as well);
3. the signed intent: from here on the commit is in force;
4. its record, the boot's record; an older intent in the inbox goes.

Under the lock the image and then the intent go to the inbox. The early step takes both, or neither.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Collection
from pathlib import Path

from freehold import atomic
from freehold.boot import machine_files
from freehold.device import etc_image, etc_state, wanted
from freehold.device.etc_paths import shown
from freehold.device.etc_state import View
from freehold.device.sysroot import Sysroot
from freehold.errors import FreeholdError, InputError, VerificationError
from freehold.files import read_bytes
from freehold.lock import actions, boot_record, commits, etc
from freehold.lock import intent as intents
from freehold.lock.covered import COMMIT_FILE, IGNORED
from freehold.lock.drift import ADDED, REMOVED, Change, drift
from freehold.lock.intent import Intent
from freehold.lock.trees import Directory, Selected, Tree, joined


def images(sysroot: Sysroot, *, locked: bool) -> Path:
    """Where a new image goes."""
    return sysroot.root / ("inbox/config" if locked else "owner/config")


def compose(sysroot: Sysroot, base: Tree, paths: Collection[str], message: str, *, locked: bool) -> str | None:
    """The image of the running /etc, or with ``paths`` of ``base`` with these as they run; its digest.

    ``None`` when that is the factory's /etc.
    Raises :class:`InputError` for names that an image cannot have, :class:`FreeholdError` for more than it may hold.
    """
    running = etc_state.running(sysroot)
    target: Tree = Selected(base, running, paths) if paths else running
    changes = list(drift(Directory(sysroot.system / "usr/etc"), target, ignore=IGNORED))
    faults = [f"{shown(one.path)}: its name is no text" for one in changes if not _is_text(one.path)]
    if faults:
        raise InputError("these cannot be committed", faults=faults)
    said = etc_image.write_message(message) if message else b""
    if not changes and not said:
        return None
    work, directory = sysroot.system / "run/freehold", images(sysroot, locked=locked)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work, prefix="config-") as scratch:
        staging = Path(scratch) / "etc"
        etc.stage(changes, target, staging)
        if said:
            (staging / COMMIT_FILE).write_bytes(said)
            (staging / COMMIT_FILE).chmod(0o644)
        enable, measure = sysroot.verity.enable, sysroot.verity.measure
        return etc.write_image(staging, directory, mkfs=sysroot.mkfs, enable=enable, measure=measure)


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return "\n" not in path


def propose(sysroot: Sysroot, config: str | None) -> Intent:
    """The intent with the image ``config`` that leaves everything else as the newest believed one has it.

    As with requests it does not speak of the rollback floor.
    """
    current, _ = wanted.newest(sysroot)
    now, least = int(time.time()), wanted.standing(sysroot).after + 1
    if current is None:
        return Intent(machine=wanted.machine(sysroot), serial=least, lock="open", since=now, config=config)
    return dataclasses.replace(current, serial=max(least, current.serial + 1), since=now, config=config, floor=None)


def check(sysroot: Sysroot, signed: bytes) -> Intent:
    """The intent of a signed answer about /etc. :class:`VerificationError` unless the next boot, or this one, would take it."""
    made = wanted.check(sysroot, signed)
    newest, _ = wanted.newest(sysroot)
    lock, config = (newest.lock, newest.config) if newest is not None else ("open", None)
    if made.lock != lock:
        raise InputError(f"the answer says {made.lock}", hint="it belongs to `freehold lock` or `freehold unlock`")
    if made.config == config and newest is not None and made.serial != newest.serial:
        raise InputError("the answer changes nothing about /etc", hint="use it with the command that made the request")
    if made.config is not None:
        path = etc_image.place(sysroot, made.config)
        if sysroot.verity.measure(path) != bytes.fromhex(made.config):
            raise VerificationError(f"{path} is not the /etc that the owner signed", hint="make a new request")
    return made


def save_state(sysroot: Sysroot) -> list[str]:
    """Keep accounts, host name and ssh host keys as typed data, as `freehold lock` does; what cannot be kept.

    Whoever begins a fresh layer of /etc finds them there, and nowhere else.
    """
    state, left_out = machine_files.collect(sysroot.system / "etc")
    machine_files.save(state, sysroot.state)
    return left_out


def into_force(sysroot: Sysroot, seen: View, made: Intent, signed: bytes, *, keep_layer: bool) -> bool:
    """Put the checked intent into force, or into the inbox (returns ``False``: it waits for the next boot).

    ``keep_layer``: what is changed in the running /etc stays over the new image (as it was committed, and what comes after);
    else the next boot begins a fresh layer.
    """
    standing = seen.standing
    if seen.locked or made.lock != standing.state:
        inbox = sysroot.root / "inbox"
        inbox.mkdir(mode=0o700, exist_ok=True)
        atomic.write(inbox / "intent", signed, mode=0o600)
        return False
    owner = sysroot.root / "owner"
    if made.config is not None:
        commits.adopt(sysroot.root, made.config)
    # A commit that was cut short may have promised the running layer to this number.
    actions.drop_links(owner / "etc", made.serial - 1)
    if keep_layer:
        carry_layer(owner / "etc", standing.intent.serial if standing.intent else 0, made.serial)
    atomic.write(owner / "intent", signed, mode=0o600)
    commits.keep(owner, signed)
    boot_record.note(sysroot.system / "run/freehold/boot.json", made)
    # Of a lower number by now, and the early step would name it at every boot.
    (sysroot.root / "inbox/intent").unlink(missing_ok=True)
    return True


def carry_layer(layers: Path, old: int, new: int) -> None:
    """Let the writable layer of the intent ``old`` be that of ``new`` as well, unless there is none, or ``new`` has its own."""
    link = layers / str(new)
    if not (layers / str(old) / "upper").is_dir() or (link.exists() and not link.is_symlink()):
        return
    link.unlink(missing_ok=True)
    link.symlink_to(str(old))
    atomic.fsync_directory(layers)


def drop_images(sysroot: Sysroot, kept: str | None) -> None:
    """Remove the images in the inbox but ``kept``: of commits that were asked for, and that a newer one came before."""
    directory = sysroot.root / "inbox/config"
    for path in directory.iterdir() if directory.is_dir() else ():
        if path.name != kept and not path.is_dir():
            path.unlink()


def standing_image(sysroot: Sysroot) -> tuple[bytes, bytes]:
    """The image in force and the signed intent that names it, to be compared with elsewhere; both empty when there is none."""
    standing = wanted.standing(sysroot).intent
    if standing is None or standing.config is None:
        return b"", b""
    with contextlib.suppress(FreeholdError):
        signed = read_bytes(sysroot.root / "owner/intent", intents.MAX_SIGNED_BYTES)
        return etc_image.load_bytes(sysroot, standing.config), signed
    return b"", b""


def put_back(sysroot: Sysroot, base: Tree, paths: Collection[str]) -> list[Change]:
    """Make the running /etc (with ``paths``: only these) what ``base`` has; returns what was done, seen from the running one.

    Each file is replaced by one rename; a cut leaves some of them put back, and the rest as drift.
    """
    top = sysroot.system / "etc"
    running = Directory(top)
    target: Tree = Selected(running, base, paths) if paths else base
    changes = list(drift(running, target, ignore=IGNORED))
    for change in changes:
        path = top / change.path
        if change.kind == REMOVED:
            _remove(running, change.path, top)
            continue
        node, old = target.look(change.path), running.look(change.path)
        if node is None:
            continue
        if old is not None and old.kind != node.kind:
            _remove(running, change.path, top)
        if node.is_directory:
            etc.put(target, change.path, path)
        else:
            _replace(target, change.path, path)
    return changes


def _replace(tree: Tree, path: str, target: Path) -> None:
    temporary = target.with_name(f"{atomic.TEMPORARY_PREFIX}{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        etc.put(tree, path, temporary)
        if not temporary.is_symlink():
            atomic.flush(temporary)
        temporary.rename(target)
    finally:
        temporary.unlink(missing_ok=True)
    atomic.fsync_directory(target.parent)


def _remove(running: Directory, path: str, top: Path) -> None:
    """Remove ``path`` and all below it but machine state and generated files, with whose directories it stays."""
    if path in IGNORED:
        return
    node = running.look(path)
    if node is None:
        return
    if node.is_directory:
        for name in running.names(path):
            _remove(running, joined(path, name), top)
        with contextlib.suppress(OSError):
            (top / path).rmdir()
    else:
        (top / path).unlink()


def counted(changes: Collection[Change]) -> str:
    """How many paths, in words. Pure."""
    return f"{len(changes)} path{'s' * (len(changes) != 1)}"


def inverse(changes: Collection[Change]) -> list[Change]:
    """Changes from ``put_back`` as drift: what was removed had been added. Pure."""
    other = {ADDED: REMOVED, REMOVED: ADDED}
    return [Change(one.path, other.get(one.kind, one.kind)) for one in changes]
