# SPDX-License-Identifier: Apache-2.0
"""``freehold device-key …``, and the device key's part in ``freehold lock`` and ``freehold sign``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from freehold.errors import FreeholdError, InputError, VerificationError
from freehold.files import read_given
from freehold.monitor import Monitor, step
from freehold.report import Report

if TYPE_CHECKING:
    from freehold.device.device_key import Machine
    from freehold.keys.device import Facts
    from freehold.keys.x509 import Signer
    from freehold.lock.intent import Intent

Adder = Callable[[argparse.ArgumentParser], None]
Handler = Callable[[argparse.Namespace, Monitor], Report]

#: Who keeps the key, in words.
KEPT = {"tpm2": "sealed by the TPM", "file": "in a file that the guard lets only the updater read"}


def this_machine() -> Machine:
    """The machine that this runs on; :class:`NotHereError` elsewhere than on a Freehold machine."""
    from freehold.device.device_key import Machine
    from freehold.device.sysroot import Sysroot
    from freehold.lock import actions

    return Machine(actions.machine_id(), Sysroot(), actions.keychain())


def ask_for(wanted: Intent, machine: Machine, monitor: Monitor) -> bytes | None:
    """Make a key for the lock that ``wanted`` describes; the certificate request (DER), ``None`` where there is to be no key.

    That no key can be made does not keep a machine from being locked: it is said, and the owner then signs each change.
    """
    from freehold.device import device_key

    if wanted.lock != "locked" or wanted.strict:
        return None
    try:
        with step(monitor, "make the device key"):
            made = device_key.make(machine)
    except FreeholdError as error:
        monitor.message(f"no device key: {error.message}" + (f" ({error.hint})" if error.hint else ""))
        return None
    for line in made.left_out:
        monitor.message(f"the device key will not be there after a boot of {line}")
    return made.request


def keep(wanted: Intent, certificate: bytes | None, machine: Machine, monitor: Monitor) -> Facts | None:
    """Before a lock goes into force: put the key with its ``certificate`` (DER) into its place, or see that there is none.

    Raises :class:`VerificationError` when the certificate does not count here.
    """
    from freehold.device import device_key

    if wanted.lock == "locked" and not wanted.strict and certificate is not None:
        facts = device_key.install(machine, certificate)
        for version in device_key.without_leave(machine):
            monitor.message(f"the device key will not be there after a boot of {version}, which came after the request")
        return facts
    if wanted.lock == "locked" and device_key.destroy(machine.places):
        monitor.message("the device key is destroyed: the owner signs each change")
    return None


def certify(request: bytes, wanted: Intent, signer: Signer, days: int | None) -> bytes:
    """The owner's certificate (DER) for the device key that a lock request asks for.

    Raises :class:`InputError` when the intent allows none, or the request is not by the key that it names.
    """
    from freehold.keys import issue

    if wanted.lock != "locked" or wanted.strict:
        raise InputError(
            "the request asks for a device key, which its intent does not allow", hint="make a new request"
        )
    public = issue.requested_key_der(request, "the device key's request")
    return issue.device_certificate(public, wanted.machine, signer, issue.DAYS_ISSUED if days is None else days)


def recertify(data: bytes, signer: Signer, days: int | None) -> tuple[str, bytes]:
    """Machine and new certificate (DER) for a request by ``freehold device-key renew``.

    The old certificate is the claim: only a key that this owner certified for this machine gets another.
    Raises :class:`InputError`.
    """
    from cryptography import x509

    from freehold.keys import device, issue
    from freehold.keys.verify import Certificate, Keychain, judge_leaf
    from freehold.keys.x509 import rsa_public

    try:
        asked = device.read_request(data)
        judge_leaf(
            asked.certificate,
            Keychain((Certificate("owner", "owner", signer.certificate_der()),)),
            "device",
            asked.machine,
        )
    except ValueError as error:
        raise InputError(f"this request gets no certificate: {error}") from None
    public = rsa_public(x509.load_der_x509_certificate(asked.certificate).public_key(), "the device key")
    return asked.machine, issue.device_certificate(
        public, asked.machine, signer, issue.DAYS_ISSUED if days is None else days
    )


def show_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""


def show(_options: argparse.Namespace, _monitor: Monitor) -> Report:
    """What this machine's device key is, and whether its certificate counts."""
    from cryptography.hazmat.primitives import hashes

    from freehold.device import device_key
    from freehold.keys.x509 import load_certificate

    machine = this_machine()
    known = device_key.facts(machine.places)
    if known is None:
        data: dict[str, object] = {"schema": "freehold-device-key-1", "present": False}
        return Report(
            data, "This machine has no device key: the owner signs each change.\nNext: `freehold lock` makes one.\n"
        )
    public = device_key.public_key(load_certificate(machine.places.certificate))
    fault = ""
    data = {"schema": "freehold-device-key-1", "present": True, "keeper": known.keeper, "made": known.made}
    try:
        certificate = device_key.certificate_of(machine, public)
    except VerificationError as error:
        fault = error.message
        certificate = load_certificate(machine.places.certificate)
    until = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
    data |= {
        "sha256": certificate.fingerprint(hashes.SHA256()).hex(), "issuer": certificate.issuer.rfc4514_string(),
        "not_after": int(certificate.not_valid_after_utc.timestamp()), "counts": not fault, "fault": fault or None,
    }  # fmt: skip
    text = (
        f"device key    {KEPT[known.keeper]}\n  certificate  sha256 {data['sha256']}\n"
        f"  issued by    {data['issuer']}\n  until        {until}\n"
    )
    text += f"! {fault}\n" if fault else "Next: `freehold device-key renew` before that day.\n"
    return Report(data, text, 1 if fault else 0)


def renew_arguments(parser: argparse.ArgumentParser) -> None:
    """Whose credential."""
    group = parser.add_argument_group("the owner's credential (one of)")
    choice = group.add_mutually_exclusive_group(required=True)
    choice.add_argument("--key", metavar="URI", help="the owner's key: file:PATH; on a builder also pkcs11: and tpm2:")
    choice.add_argument("--request", type=Path, metavar="FILE", help="write a request, to be signed elsewhere")
    choice.add_argument("--answer", type=Path, metavar="FILE", help="the signed answer to a request")
    parser.add_argument("--days", type=int, metavar="N", help="with --key: how long it is valid (default 730)")
    parser.add_argument("-n", "--dry-run", action="store_true", help="say what would be asked for, change nothing")


def renew(options: argparse.Namespace, monitor: Monitor) -> Report:
    """A new certificate for the same key, also while locked. Another key is made by unlocking and locking."""
    from freehold import atomic
    from freehold.device import device_key
    from freehold.keys import device
    from freehold.lock import verbs

    machine = this_machine()
    request = device_key.renewal(machine)
    if options.dry_run:
        data: dict[str, object] = {"schema": "freehold-device-key-renew-1", "changed": False, "machine": machine.id}
        return Report(data, f"A new certificate would be asked for, for the device key of machine {machine.id}.\n")
    if options.request is not None:
        atomic.write(options.request, request)
        text = (
            f"{options.request}: a request, to be signed with the owner's key\n"
            f"Next: freehold sign {options.request.name} --key file:owner.key     (where the key is)\n"
            f"      freehold device-key renew --answer {options.request.name}{verbs.SUFFIX}     (here)\n"
        )
        return Report({"schema": "freehold-request-1", "request": str(options.request), "serial": None}, text)
    if options.answer is not None:
        try:
            certificate = device.read_answer(read_given(options.answer, verbs.MAX_ANSWER))
        except ValueError as error:
            raise InputError(f"{options.answer}: {error}") from None
    else:
        _, certificate = recertify(request, verbs.owner_signer(options.key, monitor), options.days)
    until = device_key.renew(machine, certificate)
    from freehold.device.status import when

    data = {"schema": "freehold-device-key-renew-1", "changed": True, "machine": machine.id, "not_after": until}
    return Report(data, f"The device key has a new certificate, until {when(until)}.\nNext: freehold device-key show\n")


def destroy_arguments(parser: argparse.ArgumentParser) -> None:
    """Whether to only look."""
    parser.add_argument("-n", "--dry-run", action="store_true", help="say what would be destroyed")


def destroy(options: argparse.Namespace, _monitor: Monitor) -> Report:
    """Remove the key for good. While locked the guard refuses: `freehold unlock` does it at the next boot."""
    from freehold.device import device_key

    machine = this_machine()
    data: dict[str, object] = {"schema": "freehold-device-key-destroy-1"}
    if options.dry_run:
        there = machine.places.key.exists() or machine.places.waiting.exists()
        what = "The device key would be destroyed." if there else "This machine has no device key."
        return Report({**data, "destroyed": False, "present": there}, f"{what}\n")
    try:
        gone = device_key.destroy(machine.places)
    except PermissionError:
        raise FreeholdError(
            "this machine is locked: nobody changes the owner's directory",
            hint="`freehold unlock` and a reboot destroy the device key; `freehold lock --strict` makes no other",
        ) from None
    text = "The device key is destroyed.\n" if gone else "This machine has no device key.\n"
    return Report({**data, "destroyed": gone, "present": False}, f"{text}Next: `freehold lock` makes one.\n")


VERBS: tuple[tuple[str, str, Adder, Handler], ...] = (
    ("show", "what the device key is, and until when", show_arguments, show),
    ("renew", "have the owner issue a new certificate", renew_arguments, renew),
    ("destroy", "remove the key for good", destroy_arguments, destroy),
)
