# SPDX-License-Identifier: Apache-2.0
"""``freehold kargs``, ``install``, ``uninstall``, ``requests`` and ``apply``: the owner's requests, asked for and carried out."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from freehold.device import handover
from freehold.errors import InputError
from freehold.report import Report

if TYPE_CHECKING:
    from freehold.device.apply import Accept, Outcome
    from freehold.device.handover import Words
    from freehold.device.strict import Answer
    from freehold.device.sysroot import Sysroot
    from freehold.device.wanted import Wanted
    from freehold.keys.x509 import Signer
    from freehold.lock.requests import Edit
    from freehold.monitor import Monitor

SCHEMA = "freehold-requests-1"
_NEED = "--key URI where the owner's key is at hand, or --request FILE to have it signed elsewhere"


def credential(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """Whose word it is: the owner's key, or a request to be signed elsewhere; the group, for more of the kind."""
    choice = parser.add_argument_group("the owner's credential (one of)").add_mutually_exclusive_group()
    choice.add_argument("--key", metavar="URI", help="the owner's key: file:PATH; on a builder also pkcs11: and tpm2:")
    choice.add_argument("--request", type=Path, metavar="FILE", help="write a request, to be signed elsewhere")
    return choice


def _credential(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", "--dry-run", action="store_true", help="show what would change, and change nothing")
    credential(parser)


def kargs_arguments(parser: argparse.ArgumentParser) -> None:
    """Which kernel arguments."""
    parser.add_argument("--append", action="append", default=[], metavar="KEY[=VALUE]", help="add an argument")
    parser.add_argument(
        "--delete", action="append", default=[], metavar="KEY[=VALUE]", help="take one out, or all of KEY"
    )
    parser.add_argument("--replace", action="append", default=[], metavar="KEY=VALUE", help="set KEY, whatever it was")
    _credential(parser)


def kargs(options: argparse.Namespace, monitor: Monitor) -> Report:
    """Show or change the kernel's arguments."""
    from freehold.device import wanted
    from freehold.device.sysroot import Sysroot, read_text
    from freehold.lock.requests import Edit, Karg

    sysroot = Sysroot()
    sysroot.booted_id()
    changes = [Karg("delete", value) for value in options.delete]
    changes += [Karg("replace", value) for value in options.replace]
    changes += [Karg("append", value) for value in options.append]
    if changes:
        return _change(sysroot, Edit(tuple(changes)), options, monitor)
    line = read_text(sysroot.system / "proc/cmdline", 1 << 16).strip()
    asked = [one.line for one in wanted.load(sysroot).list.kargs]
    data: dict[str, object] = {"schema": "freehold-kargs-1", "running": line, "requests": asked}
    text = "\n".join([line, *(f"  {one}" for one in asked), "Next: freehold kargs --append KEY=VALUE --key URI"])
    return Report(data, text)


def install_arguments(parser: argparse.ArgumentParser) -> None:
    """Which packages."""
    parser.add_argument("packages", nargs="+", metavar="PKG", help="NAME, NAME=VERSION or a file ./NAME.deb")
    _credential(parser)


def install(options: argparse.Namespace, monitor: Monitor) -> Report:
    """Add packages to this and every later release."""
    from freehold.device import wanted
    from freehold.device.sysroot import Sysroot
    from freehold.lock.requests import Edit, Package

    sysroot = Sysroot()
    sysroot.booted_id()
    names, files = [], []
    for word in options.packages:
        if word.endswith(".deb"):
            files.append(wanted.store_file(sysroot, Path(word)))
        else:
            name, _, version = word.partition("=")
            names.append(Package(name, version))
    return _change(sysroot, Edit(add=tuple(names), add_files=tuple(files)), options, monitor)


def uninstall_arguments(parser: argparse.ArgumentParser) -> None:
    """Which packages."""
    parser.add_argument("packages", nargs="+", metavar="PKG", help="a package that was requested")
    _credential(parser)


def uninstall(options: argparse.Namespace, monitor: Monitor) -> Report:
    """Take requested packages out again."""
    from freehold.device.sysroot import Sysroot
    from freehold.lock.requests import Edit

    sysroot = Sysroot()
    sysroot.booted_id()
    return _change(sysroot, Edit(remove=tuple(options.packages)), options, monitor)


def _change(sysroot: Sysroot, edit: Edit, options: argparse.Namespace, monitor: Monitor) -> Report:
    """List plus edit → a proposal, and with ``--key`` at once a deployment."""
    from freehold.device import wanted
    from freehold.lock import requests

    current = wanted.load(sysroot)
    new = requests.edit(current.list, edit)
    text = requests.serialize(new)
    for warning in requests.warnings(new):
        monitor.message(f"WARNING: {warning}")
    if options.dry_run:
        return _transaction(current, text)
    if text == current.text:
        return Report(
            _data(current.text, "unchanged"), "Nothing to change: that is requested already.\nNext: freehold apply"
        )
    if options.key is None and options.request is None:
        raise InputError("a change of requests needs the owner's credential", hint=_NEED)
    intent = wanted.propose(sysroot, text)
    wanted.store_list(sysroot, text)
    if options.request is not None:
        return _write_request(sysroot, text, intent.serial, options.request, monitor, propose=True)
    from freehold.lock import intent as intents

    owner = owner_signer(options.key, monitor)
    return _accept(sysroot, intents.sign(intent, owner.sign), text, owner, monitor, handover.how(options))


def owner_signer(uri: str, monitor: Monitor) -> Signer:
    """The owner's key."""
    from freehold.lock import verbs

    return verbs.owner_signer(uri, monitor)


def _accept(
    sysroot: Sysroot, signed: bytes, text: bytes, owner: Signer | None, monitor: Monitor, how: Words, release: str | None = None
) -> Report:
    """A signed intent with its list: derive, then leave the intent for the next boot, then stage."""
    from freehold.device import wanted

    intent = wanted.check(sysroot, signed)
    why = handover.refusal(sysroot, intent)
    if not why:
        wanted.offer(sysroot, signed)
        return handover.start("apply", how._replace(offered=True, release=_id_of(sysroot, release)))
    leave = functools.partial(wanted.leave, sysroot, intent, signed)
    return done(_transact(sysroot, text, intent.serial, owner, release, monitor, why, leave), text)


def _write_request(
    sysroot: Sysroot,
    text: bytes,
    serial: int,
    path: Path,
    monitor: Monitor,
    *,
    propose: bool,
    release: str | None = None,
) -> Report:
    """With a device key the owner signs the intent alone; without one, the whole deployment."""
    from freehold import atomic
    from freehold.device import apply, stage, strict, wanted
    from freehold.device import base as bases
    from freehold.lock import intent as intents

    intent = wanted.propose(sysroot, text) if propose else None
    why = handover.refusal(sysroot, intent or wanted.newest(sysroot)[0])
    if not why and intent is not None:
        atomic.write(path, intents.serialize(intent) + text)
    else:
        monitor.message(f"the owner signs the whole deployment{f': {why}' if why else ''}")
        with atomic.exclusive(sysroot.lock_file, "the list of deployments"):
            entries = stage.ensure_esp(sysroot)
            base = bases.downloaded(sysroot, release) if release else bases.next_to_boot(sysroot, entries)
            unsigned = apply.prepare(sysroot, base, text, serial, monitor)
        atomic.write(path, strict.pack(strict.Ask(intent, text, unsigned)))
    words = (
        f"{path}: a request, to be signed with the owner's key\n"
        f"Next: freehold sign {path.name} --key file:owner.key     (where the key is)\n"
        f"      freehold apply --answer {path.name}.signed        (here)"
    )
    return Report({**_data(text, "requested"), "request": str(path)}, words)


def apply_arguments(parser: argparse.ArgumentParser) -> None:
    """What to carry out."""
    parser.add_argument("--answer", type=Path, metavar="FILE", help="the signed answer to a request")
    parser.add_argument("--release", metavar="VERSION", help="onto this downloaded release (an update that was held)")
    _credential(parser)


def apply(options: argparse.Namespace, monitor: Monitor) -> Report:
    """Make the deployment that the owner's requests ask for the next to boot."""
    from freehold.device import wanted
    from freehold.device.sysroot import Sysroot

    sysroot = Sysroot()
    sysroot.booted_id()
    if options.answer is not None:
        return _answer(sysroot, options, monitor)
    current = wanted.load(sysroot)
    if options.dry_run:
        return _transaction(current, current.text)
    if options.request is not None:
        return _write_request(
            sysroot, current.text, current.serial, options.request, monitor, propose=False, release=options.release
        )
    why = handover.refusal(sysroot, current.intent)
    if not why:
        words = handover.how(options)._replace(release=_id_of(sysroot, options.release))
        return handover.start("apply", words)
    monitor.message(f"the device key is not used: {why}")
    owner = owner_signer(options.key, monitor) if options.key is not None else None
    outcome = _transact(sysroot, current.text, current.serial, owner, options.release, monitor, why)
    return done(outcome, current.text)


def _id_of(sysroot: Sysroot, release: str | None) -> str:
    """The id of the downloaded release called ``release``; "" for none."""
    from freehold.device import base as bases

    return bases.downloaded(sysroot, release).manifest.id if release else ""


def _transact(
    sysroot: Sysroot, text: bytes, serial: int, signer: Signer | None, release: str | None, monitor: Monitor, why: str,
    accept: Accept | None = None,
) -> Outcome:  # fmt: skip
    """In this process, with the owner's key or none; ``why`` the device key is not used."""
    from freehold import atomic
    from freehold.device import apply, stage
    from freehold.device import base as bases

    with atomic.exclusive(sysroot.lock_file, "the list of deployments"):
        entries = stage.ensure_esp(sysroot)
        base = bases.downloaded(sysroot, release) if release else bases.next_to_boot(sysroot, entries)
        try:
            return apply.on_base(sysroot, base, text, serial, signer, monitor, accept=accept)
        except apply.UnsignableError as error:
            raise apply.UnsignableError(why, hint=error.hint) from None


def _answer(sysroot: Sysroot, options: argparse.Namespace, monitor: Monitor) -> Report:
    from freehold.device import strict, wanted
    from freehold.files import read_bytes

    path, release = options.answer, options.release
    try:
        data = read_bytes(path, strict.MAX_ANSWER_BYTES)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    if not data.startswith(b"{"):
        intent = wanted.check(sysroot, data)
        if intent.requests is None:
            raise InputError("the answer asks for no requests", hint="an answer to lock or unlock belongs there")
        text = wanted.read_list(sysroot, intent.requests)
        return _accept(sysroot, data, text, None, monitor, handover.how(options), release)
    return attach(sysroot, strict.parse_answer(data), release, monitor)


def attach(sysroot: Sysroot, answer: Answer, release: str | None, monitor: Monitor) -> Report:
    """Derive again, byte for byte what was signed, and attach the owner's signatures.

    :class:`InputError` for an answer that is about no deployment which this machine would make now.
    """
    from freehold import atomic
    from freehold.device import apply, derive, stage, wanted
    from freehold.device import base as bases

    signed = answer.intent
    intent = wanted.check(sysroot, signed) if signed is not None else wanted.load(sysroot).intent
    if intent is None or intent.requests is None:
        raise InputError("nothing is requested that this answer could be about")
    text = wanted.read_list(sysroot, intent.requests)

    other = InputError("the answer is for another deployment than this machine makes now", hint="make a new request")

    def signatures(unsigned: derive.Unsigned) -> derive.Signatures:
        if unsigned.signature_digest != answer.digest:
            raise other
        return answer.signatures

    def accept() -> None:
        if signed is not None:
            wanted.leave(sysroot, intent, signed)

    with atomic.exclusive(sysroot.lock_file, "the list of deployments"):
        entries = stage.ensure_esp(sysroot)
        base = bases.downloaded(sysroot, release) if release else bases.answered(sysroot, entries, answer.release)
        if base.manifest.image_digest != answer.release:
            raise other
        outcome = apply.on_base(sysroot, base, text, intent.serial, None, monitor, accept=accept, signatures=signatures)
    return done(outcome, text)


def _data(text: bytes, verdict: str) -> dict[str, object]:
    from freehold.lock import requests

    found = requests.parse(text)
    return {"schema": SCHEMA, "verdict": verdict, "requests": list(found.lines), "sha256": requests.name_of(text)}


def done(outcome: Outcome, text: bytes) -> Report:
    """What became of the list ``text``."""
    manifest = outcome.manifest
    words = {
        "staged": f"{manifest.version} is staged and boots next.\nNext: systemctl reboot",
        "switched": f"{manifest.version}, made before, boots next.\nNext: systemctl reboot",
        "unchanged": f"Nothing to do: {manifest.version} has these requests, and runs or boots next.",
    }[outcome.verdict]
    data = {**_data(text, outcome.verdict), "version": manifest.version, "id": manifest.id}
    return Report(data, words)


def _transaction(current: Wanted, text: bytes) -> Report:
    from freehold.lock import requests

    old, new = current.list.lines, requests.parse(text).lines
    added, removed = [line for line in new if line not in old], [line for line in old if line not in new]
    lines = [f"  + {line}" for line in added] + [f"  - {line}" for line in removed]
    lines += [f"  WARNING: {line}" for line in requests.warnings(requests.parse(text))]
    data: dict[str, object] = {**_data(text, "dry-run"), "added": added, "removed": removed}
    return Report(
        data, "\n".join([f"{len(added)} requests would be added, {len(removed)} removed", *lines, f"Next: {_NEED}"])
    )


def requests_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""
    del parser


def show_requests(options: argparse.Namespace, monitor: Monitor) -> Report:
    """List what the owner asked this machine to add."""
    from freehold.device import wanted
    from freehold.device.sysroot import Sysroot
    from freehold.lock import requests

    sysroot = Sysroot()
    current = wanted.load(sysroot)
    name = requests.name_of(current.text)
    deployment = sysroot.deployment(sysroot.booted_id())
    derived = deployment.manifest.derived if deployment else None
    running = derived.requests if derived else requests.name_of(wanted.EMPTY)
    state = "waiting" if current.waiting else "standing"
    data = {**_data(current.text, state), "running": running == name, "serial": current.serial}
    lines: Sequence[str] = requests.describe(current.list)
    tail = "they run" if running == name else "they do not run yet; freehold apply, then reboot"
    return Report(data, "\n".join([*lines, f"{state} (intent {current.serial}); {tail}"]))


VERBS = (
    ("kargs", "show or change the kernel's arguments", kargs_arguments, kargs),
    ("install", "add packages to this and every later release", install_arguments, install),
    ("uninstall", "take requested packages out again", uninstall_arguments, uninstall),
    ("requests", "what the owner asked this machine to add", requests_arguments, show_requests),
    ("apply", "make the deployment that the requests ask for", apply_arguments, apply),
)
