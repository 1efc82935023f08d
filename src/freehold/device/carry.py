# SPDX-License-Identifier: Apache-2.0
"""Known intent, carried out with the device key: what the updater does for ``freehold apply`` and ``freehold upgrade``.

Root starts it, and says which of the owner's intents on which release of this machine. Nothing is believed for that: an
intent counts by the owner's signature, a release by a release key of the sealed keychain, a list of requests and every byte
that goes into a deployment by its digest. It asks no network, no /etc, no environment. The device key is opened when
everything that it is to sign is there, and from then on no program is started.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from freehold import atomic
from freehold.device import apply as work
from freehold.device import base as bases
from freehold.device import derive, handover, request_verbs, stage, wanted
from freehold.device.base import Base
from freehold.device.derive import Layer, Signatures, Unsigned
from freehold.device.sysroot import Sysroot, read_json, record
from freehold.errors import FreeholdError, InputError, VerificationError
from freehold.lock import floor
from freehold.lock.requests import Requests
from freehold.monitor import Monitor, step
from freehold.report import Report
from freehold.update.manifest import Manifest

if TYPE_CHECKING:
    from freehold.device.device_key import Opened
    from freehold.lock.intent import Intent

SCHEMA = "freehold-upgrade-1"


class Key(Protocol):
    """What signs."""

    def refusal(self, intent: Intent | None) -> str:
        """Why it would not sign what ``intent`` asks for; "" when it would. Asked before anything is derived."""

    def signatures(self, unsigned: Unsigned) -> Signatures:
        """Sign; raises :class:`freehold.device.apply.UnsignableError`."""

    def allow(self, identity: str) -> None:
        """Let the signed deployment have the key after its reboot."""


class DeviceKey:
    """The device key of this machine: opened by the first that needs it, never before."""

    def __init__(self, sysroot: Sysroot) -> None:
        self._sysroot = sysroot
        self._opened: Opened | None = None

    def refusal(self, intent: Intent | None) -> str:
        """As :func:`freehold.device.handover.refusal`."""
        return handover.refusal(self._sysroot, intent)

    def signatures(self, unsigned: Unsigned) -> Signatures:
        """Open the key and sign."""
        try:
            key = self._key()
        except FreeholdError as error:
            raise work.UnsignableError(error.message, hint=error.hint) from None
        return derive.sign(unsigned, key.signer)

    def allow(self, identity: str) -> None:
        """As :meth:`freehold.device.device_key.Opened.allow`."""
        self._key().allow(identity)

    def _key(self) -> Opened:
        from freehold.device import device_key
        from freehold.run import end_programs

        if self._opened is None:
            machine = handover.this_machine(self._sysroot)
            if self._sysroot.scratch is not None:
                machine = machine._replace(tpm=machine.tpm._replace(scratch=self._sysroot.scratch))
            self._opened = device_key.open_key(machine, wanted.standing(self._sysroot))
            end_programs("the device key is open")
        return self._opened


def apply(sysroot: Sysroot, key: Key, monitor: Monitor, words: handover.Words) -> Report:
    """Make the deployment that the owner's requests ask for the next to boot.

    With ``words.offered`` those of the intent in ``inbox/offered``, which is kept only when that works. Raises as
    :func:`freehold.device.apply.on_base`.
    """
    with atomic.exclusive(sysroot.lock_file, "the list of deployments"):
        if words.offered:
            signed = wanted.offered(sysroot)
            intent = wanted.check(sysroot, signed)
            if intent.requests is None:
                raise InputError("the offered intent asks for no requests")
            asked = wanted.Wanted(intent, wanted.read_list(sysroot, intent.requests), True)
        else:
            signed, asked = b"", wanted.load(sysroot)

        def accept() -> None:
            if signed and asked.intent is not None:
                wanted.leave(sysroot, asked.intent, signed)

        entries = stage.ensure_esp(sysroot)
        base = _release(sysroot, words.release) if words.release else bases.next_to_boot(sysroot, entries)
        _above_floor(sysroot, base)
        why = key.refusal(asked.intent)
        if why:
            raise work.UnsignableError(why)
        outcome = work.on_base(
            sysroot, base, asked.text, asked.serial, None, monitor, accept=accept, signatures=key.signatures, allow=key.allow,
            packages=no_packages,
        )  # fmt: skip
    return request_verbs.done(outcome, asked.text)


def upgrade(sysroot: Sysroot, key: Key, monitor: Monitor, words: handover.Words) -> Report:
    """The owner's requests on the downloaded release ``words.release``, when that is an update: it boots next.

    Else it is held: :class:`FreeholdError` says why, ``status`` repeats it, the release stays downloaded and what ran before
    goes on.
    """
    with atomic.exclusive(sysroot.lock_file, "the list of deployments"):
        running = stage.running_manifest(sysroot).manifest
        base = _release(sysroot, words.release)
        entries = bases.as_releases(sysroot, stage.ensure_esp(sysroot))
        judgement = stage.judge(base.manifest, bases.of(sysroot, running.id).manifest, entries)
        data = report_data(judgement, running, base.manifest, bases.read(sysroot, base.manifest.id)[0].signer)
        data |= {"stream": read_json(sysroot.state / "update.json").get("stream"), "downloaded": True}
        if judgement.verdict != "new":
            return Report(data, f"Nothing to do: {judgement.reason}.\n")
        _above_floor(sysroot, base)
        asked = wanted.load(sysroot)
        with step(monitor, "staging"):
            try:
                made = reapply(sysroot, base, asked, key, monitor)
            except FreeholdError as error:
                stage.note(sysroot, held=error.message[:500])
                raise
        stage.note(sysroot, available=None, held=None)
    data |= {"staged": True, "requests": list(asked.list.lines)}
    return Report(data, staged_text(made.version))


def report_data(judgement: stage.Judgement, running: Manifest, offered: Manifest, signer: str) -> dict[str, object]:
    """``freehold-upgrade-1`` as far as it can be told before anything is done."""
    return {
        "schema": SCHEMA,
        "verdict": judgement.verdict,
        "running": {"version": running.version, "id": running.id},
        "offered": {"version": offered.version, "id": offered.id, "timestamp": offered.timestamp},
        "signer": signer,
        "staged": judgement.verdict == "staged",
    }


def staged_text(version: str) -> str:
    """What the person is told."""
    return f"{version} is staged and boots next; `systemctl reboot` switches to it.\n"


def reapply(sysroot: Sysroot, base: Base, asked: wanted.Wanted, key: Key, monitor: Monitor) -> Manifest:
    """The owner's requests on a new release: that deployment boots next, never the release alone.

    When it cannot be made, the update is held: :class:`FreeholdError` says why, the release stays downloaded, and what
    ran before goes on.
    """
    version = base.manifest.version
    try:
        why = key.refusal(asked.intent)
        if why:
            raise work.UnsignableError(why)
        return work.on_base(
            sysroot, base, asked.text, asked.serial, None, monitor, signatures=key.signatures, allow=key.allow,
            packages=no_packages,
        ).manifest  # fmt: skip
    except work.UnsignableError as error:
        raise hold_unsigned(sysroot, base, error.why) from None
    except FreeholdError as error:
        record(sysroot, "held", id=base.manifest.id, version=version, reason=error.message)
        raise FreeholdError(
            f"{version} is held: your requests do not go with it: {error.message}",
            hint="change the requests (freehold requests lists them), then freehold upgrade",
            details=error.diagnostics(),
        ) from None


def hold_unsigned(sysroot: Sysroot, base: Base, why: str) -> FreeholdError:
    """Note that the update to ``base`` is held, since no key here signs it; the error to raise."""
    version = base.manifest.version
    record(sysroot, "held", id=base.manifest.id, version=version, reason=why)
    return FreeholdError(
        f"{version} is held: it is downloaded, but no key here can sign it with your requests ({why})",
        hint=f"freehold apply --release {version} --request FILE has the owner sign it",
    )


def no_packages(_sysroot: Sysroot, _base: Base, _wanted: Requests, _monitor: Monitor) -> Layer:
    """Under the lock the guard refuses what packages run; and what lies where root can write is not signed."""
    raise FreeholdError(
        "packages cannot be added while this machine is locked",
        hint="`freehold unlock`, reboot, `freehold apply`, then `freehold lock`",
    )


def _release(sysroot: Sysroot, identity: str) -> Base:
    """The downloaded release ``identity``, by a release key's signature."""
    found = bases.of(sysroot, identity)
    if found.manifest.id != identity:
        raise VerificationError(f"{identity} is no release: this machine made it")
    return found


def _above_floor(sysroot: Sysroot, base: Base) -> None:
    known = floor.known(sysroot.root / "owner", sysroot.keychain)
    floor.require(known, base.manifest.number, base.manifest.version)
