# SPDX-License-Identifier: Apache-2.0
"""``freehold lock``, ``unlock``, ``sign`` and ``denials``."""

from __future__ import annotations

import argparse
import getpass
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freehold import atomic
from freehold.errors import FreeholdError, InputError
from freehold.keys.x509 import Signer, load_signer
from freehold.lock import actions, guard, intent, requests
from freehold.lock.intent import Intent
from freehold.monitor import Monitor, step
from freehold.report import Report

if TYPE_CHECKING:
    from freehold.device.strict import Ask

SUFFIX = ".signed"


def _credential(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the owner's credential (one of)")
    choice = group.add_mutually_exclusive_group()
    choice.add_argument("--key", metavar="URI", help="the owner's key: file:PATH; on a builder also pkcs11: and tpm2:")
    choice.add_argument("--request", type=Path, metavar="FILE", help="write a request, to be signed elsewhere")
    choice.add_argument("--answer", type=Path, metavar="FILE", help="the signed answer to a request")


def owner_signer(uri: str, monitor: Monitor) -> Signer:
    """The owner's key; :class:`InputError` when it has another role."""
    from freehold.build import tokens

    signer = load_signer(uri, lambda prompt: getpass.getpass(prompt).encode(), tokens.schemes(monitor))
    if signer.role != "owner":
        raise InputError("this key has not the role 'owner'", hint="`freehold key show` says what a key may do")
    return signer


def _read(path: Path, limit: int = intent.MAX_SIGNED_BYTES) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    if len(data) > limit:
        raise InputError(f"{path} is too large for a request or an answer")
    return data


def _request(path: Path, wanted: Intent, verb: str) -> Report:
    atomic.write(path, intent.serialize(wanted))
    text = (
        f"{path}: a request, to be signed with the owner's key\n"
        f"Next: freehold sign {path.name} --key file:owner.key     (where the key is)\n"
        f"      freehold {verb} --answer {path.name}{SUFFIX}        (here)"
    )
    return Report({"schema": "freehold-request-1", "request": str(path), "serial": wanted.serial}, text)


def lock_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``freehold lock``."""
    parser.add_argument("--audit", action="store_true", help="refuse nothing, record what the lock would refuse")
    parser.add_argument("-n", "--dry-run", action="store_true", help="show what would be committed and what stands in the way")
    _credential(parser)


def lock(options: argparse.Namespace, monitor: Monitor) -> Report:
    """Lock this machine, now and at every boot."""
    wanted_lock = "audit" if options.audit else "locked"
    current = guard.mode()
    if current == "locked":
        raise FreeholdError("this machine is locked already", hint="`freehold status` shows since when")
    if options.dry_run:
        return _preview()
    if options.answer is not None:
        signed = _read(options.answer)
        wanted = actions.check_answer(signed)
        if wanted.lock == "open":
            raise InputError("the answer says open, not locked", hint="use it with `freehold unlock --answer`")
    else:
        if options.key is None and options.request is None:
            raise InputError(
                "locking needs the owner's credential",
                hint="--key file:PATH where the key is at hand, or --request FILE to have it signed elsewhere",
            )
        signer = owner_signer(options.key, monitor) if options.key else None
        with step(monitor, "commit /etc"):
            captured = actions.capture()
        for line in captured.left_out:
            monitor.message(f"not kept: {line}")
        wanted = actions.propose("audit" if options.audit else "locked", captured.config)
        if signer is None:
            return _request(options.request, wanted, "lock")
        signed = intent.sign(wanted, signer.sign)
        actions.check_answer(signed)
    with step(monitor, "lock" if wanted.lock == "locked" else "audit"):
        actions.enter(wanted, signed)
    text = {
        "locked": "Locked. No further unsigned privileged code runs, now and after every reboot.\n"
        "Next: freehold unlock (with the owner's key) is the way back; freehold denials shows what is refused.",
        "audit": "Auditing. Nothing is refused; freehold denials shows what the lock would refuse.\nNext: freehold lock",
    }[wanted.lock]
    return Report({"schema": "freehold-lock-1", "state": wanted.lock, "serial": wanted.serial, "wanted": wanted_lock}, text)


def _preview() -> Report:
    found = actions.changes()
    blocking = guard.preflight()
    lines = [f"  {change.kind:8} /etc/{change.path}" for change in found]
    lines += [f"  in the way: {row.get('comm', '?')} (process {row.get('pid', '?')})" for row in blocking]
    data: dict[str, object] = {
        "schema": "freehold-lock-preview-1", "changes": [{"path": f"/etc/{one.path}", "kind": one.kind} for one in found],
        "blocking": blocking,
    }  # fmt: skip
    head = f"{len(found)} paths of /etc would be committed; {len(blocking)} findings stand in the way"
    return Report(data, "\n".join([head, *lines]))


def unlock_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``freehold unlock``."""
    _credential(parser)


def unlock(options: argparse.Namespace, monitor: Monitor) -> Report:
    """Open this machine at its next boot. Nothing is lost."""
    current = actions.standing()
    if options.answer is not None:
        signed = _read(options.answer)
        wanted = actions.check_answer(signed)
        if wanted.lock != "open":
            raise InputError(f"the answer says {wanted.lock}, not open", hint="use it with `freehold lock --answer`")
    else:
        if options.key is None and options.request is None:
            raise InputError(
                "unlocking needs the owner's credential",
                hint="--key file:PATH where the key is at hand, or --request FILE to have it signed elsewhere",
            )
        if current.state == "open":
            raise FreeholdError("this machine is not locked")
        wanted = actions.propose("open", current.intent.config if current.intent else None)
        if options.request is not None:
            return _request(options.request, wanted, "unlock")
        signed = intent.sign(wanted, owner_signer(options.key, monitor).sign)
        actions.check_answer(signed)
    actions.leave(signed)
    text = "The owner's word is in the inbox: the next boot is open.\nNext: reboot"
    return Report({"schema": "freehold-lock-1", "state": "open", "serial": wanted.serial, "pending": True}, text)


def sign_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``freehold sign``."""
    parser.add_argument("request", type=Path, help="the request file that a machine wrote")
    parser.add_argument("--key", required=True, metavar="URI", help="the owner's key: file:, pkcs11: or tpm2:")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help=f"the answer (default: REQUEST{SUFFIX})")


def sign(options: argparse.Namespace, monitor: Monitor) -> Report:
    """Sign a machine's request, after showing what it says. What it asks for decides how."""
    from freehold.device import strict

    data = _read(options.request, strict.MAX_BYTES)
    if data.startswith(strict.MAGIC):
        return _sign_deployment(strict.unpack(data), options, monitor)
    text, listed = requests.split(data)
    wanted = intent.parse(text)
    if listed is not None and requests.name_of(listed) != wanted.requests:
        raise InputError(f"{options.request}: its list of requests is not the one that its intent names")
    print("\n".join([describe(wanted), *_listed(listed)]), file=sys.stderr)
    answer = intent.sign(wanted, owner_signer(options.key, monitor).sign)
    output = options.output or options.request.with_name(options.request.name + SUFFIX)
    atomic.write(output, answer)
    verb = "apply" if listed is not None else "unlock" if wanted.lock == "open" else "lock"
    return Report(
        {"schema": "freehold-sign-1", "answer": str(output), "machine": wanted.machine, "serial": wanted.serial},
        f"{output}: signed\nNext, on the machine: freehold {verb} --answer {output.name}",
    )


def _listed(listed: bytes | None) -> list[str]:
    if listed is None:
        return []
    found = requests.parse(listed)
    return [*(f"  {line}" for line in requests.describe(found)), *(f"WARNING: {line}" for line in requests.warnings(found))]


def _sign_deployment(ask: Ask, options: argparse.Namespace, monitor: Monitor) -> Report:
    """A machine without a key of its own asks for a whole deployment."""
    from freehold.device import strict

    said = [describe(ask.intent)] if ask.intent else []
    print("\n".join([*said, *strict.describe(ask)]), file=sys.stderr)
    answer = strict.answer(ask, owner_signer(options.key, monitor))
    output = options.output or options.request.with_name(options.request.name + SUFFIX)
    atomic.write(output, answer)
    manifest = ask.unsigned.manifest
    named = {"version": manifest.version, "image_digest": manifest.image_digest}
    data: dict[str, object] = {"schema": "freehold-sign-1", "answer": str(output), **named}
    return Report(data, f"{output}: signed\nNext, on the machine: freehold apply --answer {output.name}")


def describe(wanted: Intent) -> str:
    """An intent in words. Pure."""
    what = {"open": "be open", "audit": "record what the lock would refuse", "locked": "be locked"}[wanted.lock]
    config = f"with the /etc image {wanted.config[:16]}" if wanted.config else "with the factory /etc"
    asked = f", with the requests {wanted.requests[:16]}" if wanted.requests else ""
    return f"machine {wanted.machine} shall {what}, {config}{asked} (intent number {wanted.serial})"


def denials_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``freehold denials``."""
    del parser


def denials(_options: argparse.Namespace, _monitor: Monitor) -> Report:
    """List what the guard refused, or would have."""
    rows = guard.denials()
    lines = [_row(row) for row in rows]
    head = f"{len(rows)} kinds of refusals" if rows else "nothing was refused"
    return Report({"schema": "freehold-denials-1", "denials": rows}, "\n".join([head, *lines]))


def _row(row: dict[str, Any]) -> str:
    return f"  {row.get('count', 0):>6}  {row.get('rule', '?'):14} {row.get('comm', '?'):16} {row.get('path', '')}"


VERBS = (
    ("lock", "let no further unsigned privileged code run", lock_arguments, lock),
    ("unlock", "with the owner's key: open at the next boot", unlock_arguments, unlock),
    ("sign", "answer a machine's request with the owner's key", sign_arguments, sign),
    ("denials", "what the guard refused, or would refuse", denials_arguments, denials),
)
