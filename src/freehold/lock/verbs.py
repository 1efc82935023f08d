# SPDX-License-Identifier: Apache-2.0
"""``freehold lock``, ``unlock``, ``floor``, ``sign`` and ``denials``."""

from __future__ import annotations

import argparse
import getpass
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from freehold import atomic
from freehold.device import device_key_verbs, request_verbs
from freehold.errors import FreeholdError, InputError
from freehold.files import read_given
from freehold.keys import device
from freehold.keys.x509 import Signer, load_signer
from freehold.lock import actions, emergency, emergency_key, etc_request, guard, intent, kernel_log, requests
from freehold.lock import denials as refusals
from freehold.lock.intent import Intent
from freehold.monitor import Monitor, step
from freehold.report import Report

if TYPE_CHECKING:
    from freehold.device.strict import Ask
    from freehold.lock.etc_request import Carried

SUFFIX = ".signed"
#: Bytes of an answer: a signed intent and a certificate.
MAX_ANSWER = intent.MAX_SIGNED_BYTES + device.MAX_TEXT
#: What a lock request with a device key asks of the owner beyond the intent.
DEVICE_KEY = (
    "it also asks for a certificate for its device key, which signs what follows from your list of requests and new releases, "
    "for this machine alone (--no-device-key: you sign each change yourself)"
)

#: What an owner should know before: a preview says it.
COSTS: dict[str, tuple[str, ...]] = {
    "privileged": (),
    "s1": (),
    "s2": (
        "root has no shell by ssh, and no program of root's starts `sh -c` or `python3 -c`: these are killed; users' are free",
        "units with `sh -c` do not start unless the image was built for it (`[lock] tier = \"S2\"` in its recipe)",
        "the trusted console is not there yet: the way to `freehold unlock` is an emergency ssh session, the rescue entry, or",
        "a hypervisor's agent that starts programs without a shell",
    ),
    "all-code": (
        "users and containers: whatever is not of the image or signed does not start, programs, libraries and scripts alike",
        "users' own start-up files (~/.bashrc, ~/.profile) are not read, and no program of theirs makes code at run time (JIT)",
    ),
}


def _credential(parser: argparse.ArgumentParser) -> None:
    choice = request_verbs.credential(parser)
    choice.add_argument("--answer", type=Path, metavar="FILE", help="the signed answer to a request")


def owner_signer(uri: str, monitor: Monitor) -> Signer:
    """The owner's key that ``uri`` names; :class:`InputError` for a key of another role."""
    from freehold.build import tokens

    signer = load_signer(uri, lambda prompt: getpass.getpass(prompt).encode(), tokens.schemes(monitor))
    if signer.role != "owner":
        raise InputError("this key has not the role 'owner'", hint="`freehold key show` says what a key may do")
    return signer


def _request(path: Path, wanted: Intent, verb: str, device_request: bytes | None = None) -> Report:
    atomic.write(path, device.attach(intent.serialize(wanted), device.REQUEST_LINE, device_request))
    text = (
        f"{path}: a request, to be signed with the owner's key\n"
        f"Next: freehold sign {path.name} --key file:owner.key     (where the key is)\n"
        f"      freehold {verb} --answer {path.name}{SUFFIX}        (here)"
    )
    return Report({"schema": "freehold-request-1", "request": str(path), "serial": wanted.serial}, text)


def lock_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``freehold lock``."""
    parser.add_argument("--audit", action="store_true", help="refuse nothing, record what the lock would refuse")
    parser.add_argument(
        "--tier", choices=("S1", "S2"),
        help="privileged interpreters run: S1 of files only signed ones; S2 nothing else (default: the image's own, mostly S1)",
    )  # fmt: skip
    parser.add_argument("--all-code", action="store_true", help="bind everybody: users and containers, too, run signed code only")
    parser.add_argument("--strict", action="store_true", help="no device key: the owner signs every change of the system")
    parser.add_argument("-n", "--dry-run", action="store_true", help="show what would be committed and what stands in the way")
    parser.add_argument(
        "--floor", type=int, metavar="N",
        help="refuse to boot releases with a lower number while locked; 0: none (default: the running release's number)",
    )  # fmt: skip
    parser.add_argument(
        "--emergency-ssh", metavar="KEY",
        help="a public key file or its line: ssh by this key, on a port of its own, bypasses the lock (default: none)",
    )  # fmt: skip
    _credential(parser)


def lock(options: argparse.Namespace, monitor: Monitor) -> Report:
    """Lock this machine, now and at every boot."""
    wanted_lock = "audit" if options.audit else "locked"
    current = guard.mode()
    if current == "locked":
        raise FreeholdError("this machine is locked already", hint="`freehold status` shows since when")
    tier: intent.Tier = "all-code" if options.all_code else "privileged"
    scripts: intent.Scripts = actions.profile_scripts() if options.tier is None else "s2" if options.tier == "S2" else "s1"
    chosen = None if options.emergency_ssh is None else emergency_key.given(options.emergency_ssh)
    if options.dry_run:
        return _preview(tier, scripts, chosen)
    if chosen is not None and options.audit:
        raise InputError("--emergency-ssh is for locking: an audit refuses nothing that a session could bypass")
    if chosen is not None and options.answer is not None:
        raise InputError("--emergency-ssh is part of the request: the answer says it")
    if options.strict and (options.audit or options.answer is not None):
        raise InputError("--strict is for locking, and part of the request: the answer says it")
    if (options.all_code or options.tier is not None) and options.answer is not None:
        raise InputError("--all-code and --tier are part of the request: the answer says them")
    certificate = None
    if options.floor is not None:
        _check_floor(options)
    if options.answer is None and options.key is None and options.request is None:
        raise InputError(
            "locking needs the owner's credential",
            hint="--key file:PATH where the key is at hand, or --request FILE to have it signed elsewhere",
        )
    # Before anything else: nobody has to sign for a machine that cannot be locked.
    guard.load()
    if options.answer is not None:
        signed, certificate = device.detach(read_given(options.answer, MAX_ANSWER), device.CERTIFICATE_LINE)
        wanted = actions.check_answer(signed)
        if wanted.lock == "open":
            raise InputError("the answer says open, not locked", hint="use it with `freehold unlock --answer`")
    else:
        signer = owner_signer(options.key, monitor) if options.key else None
        with step(monitor, "commit /etc"):
            captured = actions.capture()
        for line in captured.left_out:
            monitor.message(f"not kept: {line}")
        # Auditing refuses nothing, and so has no reason to bind the owner to this release.
        floor = actions.running_release() if options.floor is None and not options.audit else options.floor
        state: Literal["audit", "locked"] = "audit" if options.audit else "locked"
        if chosen is not None:
            emergency_key.store(actions.OWNER, chosen)
        wanted = actions.propose(
            state, captured.config, wanted_floor=floor, strict=options.strict, tier=tier, scripts=scripts,
            emergency_ssh=chosen.digest if chosen else None,
        )  # fmt: skip
        asked = device_key_verbs.ask_for(wanted, device_key_verbs.this_machine(), monitor)
        if signer is None:
            return _request(options.request, wanted, "lock", asked)
        signed = intent.sign(wanted, signer.sign)
        actions.check_answer(signed)
        if asked is not None:
            certificate = _certified(asked, wanted, signer, monitor)
    # Before the latch: after it nobody writes the owner's directory.
    kept = device_key_verbs.keep(wanted, certificate, device_key_verbs.this_machine(), monitor)
    with step(monitor, "lock" if wanted.lock == "locked" else "audit"):
        actions.enter(wanted, signed)
    code = "unsigned code, of whomever," if wanted.tier == "all-code" else "unsigned privileged code"
    text = {
        "locked": f"Locked. No further {code} runs, now and after every reboot.\n"
        "Next: freehold unlock (with the owner's key) is the way back; freehold denials shows what is refused.",
        "audit": "Auditing. Nothing is refused; freehold denials shows what the lock would refuse.\nNext: freehold lock",
    }[wanted.lock]
    if kept is not None and kept.keeper == "tpm2":
        text += "\nThe device key is sealed by the TPM for boots that begin locked: it is there from the next boot on."
    if wanted.lock == "locked" and actions.boot_floor().get("tpm") not in (None, "none"):
        text += "\nReboot when it suits: until the next start the TPM does not know of the lock (docs/memory.md)."
    if wanted.emergency_ssh is not None:
        text += f"\n{emergency.sentence(wanted.emergency_ssh)}; the server's own key is {emergency_key.host_key(actions.OWNER)}"
    shown = {"keeper": kept.keeper, "sha256": kept.sha256, "not_after": kept.not_after} if kept else None
    data: dict[str, object] = {
        "schema": "freehold-lock-1", "state": wanted.lock, "serial": wanted.serial, "wanted": wanted_lock,
        "tier": wanted.tier, "scripts": wanted.scripts.upper(), "strict": wanted.strict, "device_key": shown,
        "emergency_ssh": wanted.emergency_ssh,
    }  # fmt: skip
    return Report(data, text)


def _certified(asked: bytes, wanted: Intent, signer: Signer, monitor: Monitor) -> bytes | None:
    """The device certificate by the owner's key at hand; an owner may lock also when it can no longer issue (its dates)."""
    try:
        return device_key_verbs.certify(asked, wanted, signer, None)
    except InputError as error:
        monitor.message(f"no device key: {error.message}")
        return None


def _check_floor(options: argparse.Namespace) -> None:
    running = actions.running_release()
    if options.answer is not None:
        raise InputError("the answer says the floor already", hint="give --floor where the request is made")
    if not 0 <= options.floor <= running:
        raise InputError(
            f"--floor {options.floor}: this machine would not boot again",
            hint=f"the running release has the number {running}; the floor can be at most that",
        )


def _preview(tier: intent.Tier, scripts: intent.Scripts, chosen: emergency.Key | None) -> Report:
    found = actions.changes()
    blocking = guard.preflight(tier)
    lines = [f"  {change.kind:8} /etc/{change.path}" for change in found]
    lines += [f"  in the way: {row.get('comm', '?')} (process {row.get('pid', '?')})" for row in blocking]
    lines += [f"  {line}" for line in (*COSTS[tier], *COSTS[scripts])]
    lines += [f"  {emergency.sentence(chosen.digest)}"] if chosen else []
    data: dict[str, object] = {
        "schema": "freehold-lock-preview-1", "changes": [{"path": f"/etc/{one.path}", "kind": one.kind} for one in found],
        "blocking": blocking, "tier": tier, "scripts": scripts.upper(),
        "emergency_ssh": chosen.digest if chosen else None,
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
        signed = read_given(options.answer, MAX_ANSWER)
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
        newest, _ = actions.waiting()
        wanted = actions.propose("open", newest.config if newest else None)
        if options.request is not None:
            return _request(options.request, wanted, "unlock")
        signed = intent.sign(wanted, owner_signer(options.key, monitor).sign)
        actions.check_answer(signed)
    actions.leave(signed)
    text = "The owner's word is in the inbox: the next boot is open.\nNext: reboot"
    return Report({"schema": "freehold-lock-1", "state": "open", "serial": wanted.serial, "pending": True}, text)


def floor_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``freehold floor``."""
    parser.add_argument("--lower", type=int, metavar="N", help="with the owner's key: let releases from number N on boot again")
    parser.add_argument("-n", "--dry-run", action="store_true", help="show the intent that would be signed")
    _credential(parser)


def floor(options: argparse.Namespace, monitor: Monitor) -> Report:
    """Show the rollback floor, or lower it at the next boot."""
    if options.answer is not None:
        signed = read_given(options.answer, MAX_ANSWER)
        wanted = actions.check_answer(signed)
        if options.lower is not None or wanted.floor is None:
            raise InputError("the answer names no floor, or two", hint="`freehold floor --lower N --request FILE` asks for one")
    elif options.lower is None:
        if options.key is not None or options.request is not None or options.dry_run:
            raise InputError("what shall the floor be?", hint="--lower N")
        return _floor_report()
    else:
        wanted = actions.lower_floor(options.lower)
        if options.dry_run:
            return Report({"schema": "freehold-floor-1", "dry_run": True, "wanted": wanted.floor}, describe(wanted))
        if options.request is not None:
            return _request(options.request, wanted, "floor")
        if options.key is None:
            raise InputError(
                "lowering the floor needs the owner's credential",
                hint="--key file:PATH where the key is at hand, or --request FILE to have it signed elsewhere",
            )
        signed = intent.sign(wanted, owner_signer(options.key, monitor).sign)
        actions.check_answer(signed)
    actions.leave(signed)
    return Report(
        {"schema": "freehold-floor-1", "wanted": wanted.floor, "serial": wanted.serial, "pending": True},
        f"The owner's word is in the inbox: from the next boot on the rollback floor is {wanted.floor}.\n"
        "Next: reboot; then `freehold rollback` may go back",
    )


def _floor_report() -> Report:
    known, running, seen = actions.known_floor(), actions.running_release(), actions.boot_floor()
    tpm = str(seen.get("tpm", "unknown"))
    places = [word for word, there in (("the TPM", tpm in ("kept", "anew")), ("the owner's directory", known.floor > 0)) if there]
    data: dict[str, object] = {
        "schema": "freehold-floor-1", "release": running, "floor": known.floor, "enforced": known.locked, "named": known.named,
        "raised": known.raised, "tpm": tpm,
    }  # fmt: skip
    state = "in force" if known.locked else "not in force: this machine is not locked"
    text = f"running release  {running}\nrollback floor   {known.floor} ({state})\n"
    text += f"kept in          {' and '.join(places) or 'nothing'}"
    if tpm == "failed":
        text += "\nThe TPM could not keep it at this boot: `journalctl -b -k -g freehold` says why."
    return Report(data, text)


def sign_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``freehold sign``."""
    parser.add_argument("request", type=Path, help="the request file that a machine wrote; or an unsigned release")
    parser.add_argument("--key", required=True, metavar="URI", help="the owner's or the release key: file:, pkcs11: or tpm2:")
    parser.add_argument("--store", type=Path, metavar="DIR", help="where a release that is given by its name is kept")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help=f"the answer (default: REQUEST{SUFFIX})")
    parser.add_argument("--no-device-key", action="store_true", help="sign the intent, certify no device key")
    parser.add_argument("--whole", action="store_true", help="of a commit of /etc: show all of it, not what changes")
    parser.add_argument("--days", type=int, metavar="N", help="how long a device certificate is valid (default 730)")


def sign(options: argparse.Namespace, monitor: Monitor) -> Report:
    """Sign a machine's request, after showing what it says, or a release that was built unsigned."""
    release = _unsigned_release(options.request, options.store)
    if release is not None:
        from freehold.build import verbs as builder

        if options.output is not None:
            raise InputError("a release is signed where it is", hint="leave -o out, or copy the directory first")
        return builder.sign_release(release, options.key, monitor)
    from freehold.device import strict

    request = read_given(options.request, strict.MAX_BYTES)
    if request.startswith(strict.MAGIC):
        return _sign_deployment(strict.unpack(request), options, monitor)
    output = options.output or options.request.with_name(options.request.name + SUFFIX)
    text, carried = etc_request.split(request)
    if carried is not None:
        return _sign_etc(intent.parse(text), carried, output, options, monitor)
    if device.is_request(request):
        return _sign_renewal(request, output, options, monitor)
    request, listed = requests.split(request)
    text, asked = device.detach(request, device.REQUEST_LINE)
    wanted = intent.parse(text)
    if listed is not None and requests.name_of(listed) != wanted.requests:
        raise InputError(f"{options.request}: its list of requests is not the one that its intent names")
    print("\n".join([describe(wanted), *_listed(listed)]), file=sys.stderr)
    if asked is not None and not options.no_device_key:
        print(DEVICE_KEY, file=sys.stderr)
    signer = owner_signer(options.key, monitor)
    certificate = None
    if asked is not None and not options.no_device_key:
        certificate = device_key_verbs.certify(asked, wanted, signer, options.days)
    atomic.write(output, device.attach(intent.sign(wanted, signer.sign), device.CERTIFICATE_LINE, certificate))
    # A request to lower the floor of a locked machine says "locked" as well.
    verb = "apply" if listed is not None else "unlock" if wanted.lock == "open" else "lock"
    plain = wanted.lock == "locked" and listed is None
    other = f"\n      or, if that asked:  freehold floor --answer {output.name}" if plain else ""
    data = {
        "schema": "freehold-sign-1", "answer": str(output), "machine": wanted.machine, "serial": wanted.serial,
        "device_key": certificate is not None,
    }  # fmt: skip
    return Report(data, f"{output}: signed\nNext, on the machine: freehold {verb} --answer {output.name}{other}")


def _sign_renewal(request: bytes, output: Path, options: argparse.Namespace, monitor: Monitor) -> Report:
    machine, certificate = device_key_verbs.recertify(request, owner_signer(options.key, monitor), options.days)
    print(f"machine {machine} shall have a new certificate for its device key", file=sys.stderr)
    atomic.write(output, device.write_answer(certificate))
    data = {"schema": "freehold-sign-1", "answer": str(output), "machine": machine, "serial": None, "device_key": True}
    return Report(data, f"{output}: signed\nNext, on the machine: freehold device-key renew --answer {output.name}")


def _sign_etc(wanted: Intent, carried: Carried, output: Path, options: argparse.Namespace, monitor: Monitor) -> Report:
    """A machine asks to commit /etc: what that is comes out of the image, which is the one that is signed for."""
    from freehold.device import etc_sign

    lines = etc_sign.describe(carried, wanted, whole=options.whole)
    print("\n".join([describe(wanted), *lines]), file=sys.stderr)
    signer = owner_signer(options.key, monitor)
    if carried.before and not options.whole:
        number = etc_sign.prove(carried, wanted, signer.certificate_der())
        print(f"the one before is of the intent number {number}, signed by this key", file=sys.stderr)
    atomic.write(output, intent.sign(wanted, signer.sign))
    data = {"schema": "freehold-sign-1", "answer": str(output), "machine": wanted.machine, "serial": wanted.serial}
    return Report(data, f"{output}: signed\nNext, on the machine: freehold etc {carried.verb} --answer {output.name}")


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


def _unsigned_release(path: Path, store: Path | None) -> Path | None:
    """The unsigned release that ``path`` names, as a directory or in the store; ``None`` for a machine's request."""
    if path.is_file():
        return None
    from freehold.build import signing
    from freehold.build import store as stores

    root = store or stores.default_store()
    for candidate in (path, root.absolute() / "releases" / path):
        if signing.is_unsigned(candidate):
            return candidate
        if (candidate / "manifest.json").is_file():
            raise InputError(f"{candidate} is signed already")
    return None


def describe(wanted: Intent) -> str:
    """An intent in words. Pure."""
    what = {"open": "be open", "audit": "record what the lock would refuse", "locked": "be locked"}[wanted.lock]
    config = f"with the /etc image {wanted.config[:16]}" if wanted.config else "with the factory /etc"
    asked = f", with the requests {wanted.requests[:16]}" if wanted.requests else ""
    floor = "" if wanted.floor is None else f", booting no release below number {wanted.floor} while locked"
    strict = ", without a device key" if wanted.strict else ""
    tier = ", binding all code, users' and containers' as well" if wanted.tier == "all-code" else ""
    tier += ", starting privileged interpreters for signed scripts only" if wanted.scripts == "s2" else ""
    by_ssh = f", but for ssh sessions of the key {emergency.fingerprint(wanted.emergency_ssh)}" if wanted.emergency_ssh else ""
    return f"machine {wanted.machine} shall {what}{by_ssh}{tier}{strict}, {config}{floor}{asked} (intent number {wanted.serial})"


def denials_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``freehold denials``."""
    del parser


def denials(_options: argparse.Namespace, _monitor: Monitor) -> Report:
    """Say what the guard refused, or would have, and what would allow it."""
    mode, records = guard.denials()
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    found = refusals.group(records, booted=booted, find=guard.Finder().find)
    of_kernel = kernel_log.find(guard.kernel_records(), booted=time.time() - time.clock_gettime(time.CLOCK_MONOTONIC))
    data = {**refusals.data(found, mode), "kernel": kernel_log.data(of_kernel)}
    # "Nothing was refused" is the guard's word, and would be wrong below what the kernel refused.
    of_guard = refusals.text(found, mode) if found or not of_kernel else ""
    return Report(data, kernel_log.text(of_kernel) + of_guard)


VERBS = (
    ("lock", "let no further unsigned privileged code run", lock_arguments, lock),
    ("unlock", "with the owner's key: open at the next boot", unlock_arguments, unlock),
    ("floor", "the rollback floor: what no longer boots while locked", floor_arguments, floor),
    ("sign", "answer a machine's request, or sign a release that was built unsigned", sign_arguments, sign),
    ("denials", "what the guard refused, or would refuse, and what would allow it", denials_arguments, denials),
)
