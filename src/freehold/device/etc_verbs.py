# SPDX-License-Identifier: Apache-2.0
"""``freehold etc status``, ``diff``, ``commit``, ``revert`` and ``history``: the verified configuration (docs/etc.md)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from freehold.device import request_verbs
from freehold.errors import FreeholdError, InputError
from freehold.report import Report

if TYPE_CHECKING:
    from freehold.device.etc_state import View
    from freehold.device.sysroot import Sysroot
    from freehold.lock.drift import Change
    from freehold.lock.etc_request import Verb
    from freehold.lock.intent import Intent
    from freehold.lock.trees import Tree
    from freehold.monitor import Monitor

NOT_DRIFT = "Not looked at: accounts, host name and ssh host keys, which the machine keeps by itself, and generated files."
_NEED = "--key URI where the owner's key is at hand, or --request FILE to have it signed elsewhere"
_LOCK = "run/freehold/lock.lock"


def _paths(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("paths", nargs="*", metavar="PATH", help=f"{what} (default: everything that differs)")


def _credential(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", "--dry-run", action="store_true", help="show what would change, and change nothing")
    choice = request_verbs.credential(parser)
    choice.add_argument("--answer", type=Path, metavar="FILE", help="the signed answer to a request")


def _machine() -> tuple[Sysroot, View]:
    from freehold.device import etc_state
    from freehold.device.sysroot import Sysroot

    sysroot = Sysroot()
    sysroot.booted_id()
    return sysroot, etc_state.view(sysroot)


def _base(sysroot: Sysroot, config: str | None, monitor: Monitor) -> Tree:
    """What the running /etc began with; without its image the early step took the factory's."""
    from freehold.device import etc_image
    from freehold.errors import NotHereError

    try:
        return etc_image.base_tree(sysroot, config)
    except NotHereError as error:
        monitor.message(f"{error.message}: compared with the factory's")
        return etc_image.base_tree(sysroot, None)


def _rows(changes: Sequence[Change]) -> list[dict[str, str]]:
    return [{"path": f"/etc/{one.path}", "kind": one.kind} for one in changes]


def _lines(changes: Sequence[Change]) -> list[str]:
    from freehold.device.etc_paths import shown

    return [f"  {one.kind:8} {shown(one.path)}" for one in changes]


def status_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``freehold etc status``."""
    del parser


def status(_options: argparse.Namespace, monitor: Monitor) -> Report:
    """What of /etc differs from what was committed, and which commit is in force."""
    from freehold.device import etc_change, etc_state
    from freehold.device.status import when

    sysroot, seen = _machine()
    found = etc_state.drift(sysroot, _base(sysroot, seen.config, monitor))
    commits = etc_state.history(sysroot)
    now = next((one for one in commits if one.state == "in force"), None)
    then = next((one for one in commits if one.state == "waiting"), None)
    lines = []
    for title, one in (("In force", now), ("Waiting", then)):
        if one is not None:
            image = f"image {one.config[:16]}" if one.config else "the factory's /etc"
            said = f", {one.message!r}" if one.message else ""
            lines.append(f"{title}: commit {one.number} of {when(one.time)} by {one.author}, {image}{said}")
    if now is None:
        lines.append("In force: the factory's /etc; nothing was committed")
    until = "until the next reboot only" if seen.locked else "not committed"
    lines.append(f"{etc_change.counted(found)} {'differs' if len(found) == 1 else 'differ'}{f', {until}:' if found else ''}")
    lines += [*_lines(found), NOT_DRIFT]
    if then is not None:
        lines.append("Next: reboot, which puts the waiting commit into force")
    elif found:
        lines.append("Next: freehold etc diff; then freehold etc commit, or freehold etc revert")
    data: dict[str, object] = {
        "schema": "freehold-etc-status-1", "locked": seen.locked, "commit": now.data() if now else None,
        "waiting": then.data() if then else None, "drift": _rows(found), "until": "reboot" if seen.locked else None,
    }  # fmt: skip
    return Report(data, "\n".join(lines))


def diff_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``freehold etc diff``."""
    _paths(parser, "a file or directory of /etc")
    parser.add_argument("--secrets", action="store_true", help="also of files that ordinary users must not read")


def diff(options: argparse.Namespace, monitor: Monitor) -> Report:
    """The drift as text."""
    from freehold.device import etc_diff, etc_paths, etc_state

    sysroot, seen = _machine()
    base, running = _base(sysroot, seen.config, monitor), etc_state.running(sysroot)
    found = etc_paths.chosen(etc_state.drift(sysroot, base), etc_paths.relative(options.paths))
    text = etc_diff.unified(base, running, found, secrets=options.secrets)
    return Report({"schema": "freehold-etc-diff-1", "drift": _rows(found), "diff": text}, text)


def commit_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``freehold etc commit``."""
    _paths(parser, "commit only this file or directory of /etc")
    parser.add_argument("-m", "--message", default="", metavar="TEXT", help="one line, for the history")
    _credential(parser)


def commit(options: argparse.Namespace, monitor: Monitor) -> Report:
    """Make the running /etc permanent, with the owner's credential."""
    from freehold import atomic
    from freehold.device import etc_change, etc_image, etc_paths, etc_state

    sysroot, seen = _machine()
    if options.answer is not None:
        if options.paths or options.message:
            raise InputError("the answer says what is committed", hint="paths and message belong to the request")
        return _answer(sysroot, seen, options.answer, monitor, reverts=False)
    config = seen.newest.config if seen.newest else None
    paths = etc_paths.relative(options.paths)
    # What is committed as a whole needs nothing of the one before, which may be damaged.
    base = etc_image.base_tree(sysroot, config) if paths else _base(sysroot, config, monitor)
    found = etc_paths.chosen(etc_state.drift(sysroot, base), paths)
    if options.message:
        etc_image.write_message(options.message)
    if not found:
        return _unchanged("Nothing to commit: /etc is as it was committed.")
    if options.dry_run:
        head = f"{etc_change.counted(found)} would be committed"
        return Report(_data("dry-run", found), "\n".join([head, *_lines(found), NOT_DRIFT]))
    _need(options)
    with atomic.exclusive(sysroot.system / _LOCK, "the lock"):
        image = etc_change.compose(sysroot, base, paths, options.message, locked=seen.locked)
        return _ask(sysroot, seen, image, found, options, monitor, "commit")


def revert_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``freehold etc revert``."""
    _paths(parser, "only this file or directory of /etc")
    parser.add_argument("--to", type=int, metavar="N", help="back to the commit N of the history; 0: the factory's /etc")
    _credential(parser)


def revert(options: argparse.Namespace, monitor: Monitor) -> Report:
    """Put running files back to what was committed; or, with the owner's credential, go back to an earlier commit."""
    from freehold import atomic
    from freehold.device import etc_change, etc_paths, etc_state

    sysroot, seen = _machine()
    if options.answer is not None or options.to is not None:
        return _revert_to(sysroot, seen, options, monitor)
    if options.key is not None or options.request is not None:
        raise InputError("running files are put back without a credential", hint="--to N goes back to an earlier commit")
    base, paths = _base(sysroot, seen.config, monitor), etc_paths.relative(options.paths)
    found = etc_paths.chosen(etc_state.drift(sysroot, base), paths)
    if not found:
        return _unchanged("Nothing to put back: /etc is as it was committed.")
    if options.dry_run:
        return Report(_data("dry-run", found), "\n".join([f"{etc_change.counted(found)} would be put back", *_lines(found)]))
    with atomic.exclusive(sysroot.system / _LOCK, "the lock"):
        done = etc_change.inverse(etc_change.put_back(sysroot, base, paths))
    text = "\n".join([f"{etc_change.counted(done)} put back", *_lines(done), "Next: reload or restart what reads them"])
    return Report(_data("reverted", done), text)


def _revert_to(sysroot: Sysroot, seen: View, options: argparse.Namespace, monitor: Monitor) -> Report:
    from freehold import atomic
    from freehold.device import etc_change, etc_image, etc_state
    from freehold.lock.covered import IGNORED
    from freehold.lock.drift import drift

    if options.paths:
        raise InputError("--to goes back as a whole", hint="`freehold etc revert PATH` puts running files back")
    if not seen.locked and etc_state.drift(sysroot, etc_image.base_tree(sysroot, seen.config)):
        raise FreeholdError(
            "what is changed in /etc would be lost", hint="`freehold etc commit` or `freehold etc revert` first"
        )
    if options.answer is not None:
        if options.to is not None:
            raise InputError("the answer says where to go back to")
        return _answer(sysroot, seen, options.answer, monitor, reverts=True)
    config = etc_state.commit_numbered(sysroot, options.to)
    if config == (seen.newest.config if seen.newest else None):
        return _unchanged(f"Nothing to do: that is the /etc of commit {options.to}.")
    before, after = etc_image.base_tree(sysroot, seen.config), etc_image.base_tree(sysroot, config)
    found = list(drift(before, after, ignore=IGNORED))
    if options.dry_run:
        return Report(_data("dry-run", found), "\n".join([f"{etc_change.counted(found)} would change", *_lines(found)]))
    _need(options)
    with atomic.exclusive(sysroot.system / _LOCK, "the lock"):
        return _ask(sysroot, seen, config, found, options, monitor, "revert")


def _need(options: argparse.Namespace) -> None:
    if options.key is None and options.request is None:
        raise InputError("what /etc is at every boot needs the owner's credential", hint=_NEED)


def _ask(
    sysroot: Sysroot, seen: View, config: str | None, found: Sequence[Change], options: argparse.Namespace, monitor: Monitor,
    verb: Verb,
) -> Report:  # fmt: skip
    """With the key at once, else a request."""
    from freehold.device import etc_change
    from freehold.lock import intent as intents

    made = etc_change.propose(sysroot, config)
    if options.request is not None:
        return _request(sysroot, made, found, options.request, verb)
    signed = intents.sign(made, request_verbs.owner_signer(options.key, monitor).sign)
    etc_change.check(sysroot, signed)
    return _done(sysroot, seen, made, signed, found, monitor, reverts=verb == "revert")


def _request(sysroot: Sysroot, made: Intent, found: Sequence[Change], path: Path, verb: Verb) -> Report:
    from freehold import atomic
    from freehold.device import etc_change, etc_image
    from freehold.lock import etc_request
    from freehold.lock import intent as intents

    image = etc_image.load_bytes(sysroot, made.config) if made.config else b""
    before, standing = etc_change.standing_image(sysroot)
    if len(before) > etc_request.MAX_IMAGE:
        before = standing = b""
    data = etc_request.pack(intents.serialize(made), etc_request.Carried(verb, image, before, standing))
    atomic.write(path, data, mode=0o600)
    text = (
        f"{path}: a request, to be signed with the owner's key; it holds the files, secrets too\n"
        f"Next: freehold sign {path.name} --key file:owner.key     (where the key is)\n"
        f"      freehold etc {verb} --answer {path.name}.signed        (here)"
    )
    return Report({**_data("requested", found), "request": str(path), "serial": made.serial}, text)


def _answer(sysroot: Sysroot, seen: View, path: Path, monitor: Monitor, *, reverts: bool) -> Report:
    from freehold import atomic
    from freehold.device import etc_change
    from freehold.files import read_given
    from freehold.lock import intent as intents

    signed = read_given(path, intents.MAX_SIGNED_BYTES)
    with atomic.exclusive(sysroot.system / _LOCK, "the lock"):
        made = etc_change.check(sysroot, signed)
        return _done(sysroot, seen, made, signed, (), monitor, reverts=reverts)


def _done(
    sysroot: Sysroot, seen: View, made: Intent, signed: bytes, found: Sequence[Change], monitor: Monitor, *, reverts: bool
) -> Report:
    """The checked intent is put where it belongs. A revert on an open machine puts the running files back as well.

    Order of that: the intent, which a fresh layer of /etc belongs to after a cut; the files; the running layer becomes its own.
    """
    from freehold.device import etc_change, etc_image

    for line in etc_change.save_state(sysroot):
        monitor.message(f"not kept: {line}")
    stands = etc_change.into_force(sysroot, seen, made, signed, keep_layer=not reverts)
    etc_change.drop_images(sysroot, made.config)
    data = {**_data("committed" if not reverts else "reverted", found), "number": made.serial, "digest": made.config}
    data["pending"] = not stands
    if not stands:
        return Report(data, f"Commit {made.serial} is in the inbox: /etc is that from the next boot on.\nNext: reboot")
    if reverts:
        etc_change.put_back(sysroot, etc_image.base_tree(sysroot, made.config), ())
        old = seen.standing.intent
        etc_change.carry_layer(sysroot.root / "owner/etc", old.serial if old else 0, made.serial)
    return Report(data, f"Commit {made.serial} is in force: the next lock uses it.\nNext: freehold etc history")


def _unchanged(text: str) -> Report:
    return Report(_data("unchanged", ()), text)


def _data(verdict: str, found: Sequence[Change]) -> dict[str, object]:
    return {"schema": "freehold-etc-change-1", "verdict": verdict, "changes": _rows(found)}


def history_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``freehold etc history``."""
    del parser


def history(_options: argparse.Namespace, _monitor: Monitor) -> Report:
    """The commits that are kept, oldest first, by what the owner signed."""
    from freehold.device import etc_state
    from freehold.device.status import when

    sysroot, _ = _machine()
    found = etc_state.history(sysroot)
    lines = []
    for one in found:
        mark = {"in force": "*", "waiting": ">"}.get(one.state, " ")
        who = f"by {one.author}" if one.author else f"NOT VERIFIED ({one.fault})"
        count = "?" if one.changes is None else str(one.changes)
        image = one.config[:16] if one.config else "factory"
        lines.append(f"{mark} {one.number:>6}  {when(one.time)}  {who}  {image:16}  {count:>5} changed  {one.message}".rstrip())
    text = "\n".join(lines) if lines else "nothing was committed: the factory's /etc"
    return Report({"schema": "freehold-etc-history-1", "commits": [one.data() for one in found]}, text)


VERBS = (
    ("status", "what of /etc differs from what was committed", status_arguments, status),
    ("diff", "the differences as text", diff_arguments, diff),
    ("commit", "make the running /etc permanent", commit_arguments, commit),
    ("revert", "put running files back, or go back to an earlier commit", revert_arguments, revert),
    ("history", "the commits, and who signed them", history_arguments, history),
)
