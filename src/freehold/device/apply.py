# SPDX-License-Identifier: Apache-2.0
"""The owner's requests into the next deployment: the transaction of ``kargs``, ``install``, ``apply`` and of upgrades.

Order, each step harmless if the power goes after it:

1. the list of requests is stored under its SHA-256 (nothing names it yet);
2. the owner's signature over the new intent is checked: it is valid from here on, being newer than the standing one;
3. the deployment is derived and lies there, unbootable (:mod:`freehold.device.derive`);
4. the intent goes into the inbox: the next boot puts it into force. A cut here gives the new intent with the old
   deployment, and ``freehold apply`` goes on from there;
5. the boot entry appears: the next boot runs the new deployment under the new intent.

When 3 fails, the intent is not kept: the owner's will and what runs never part without a word.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from freehold import atomic
from freehold.device import base as bases
from freehold.device import derive, loader, prune, stage
from freehold.device.base import Base
from freehold.device.derive import Layer, Signatures, Unsigned
from freehold.device.sysroot import Sysroot, record
from freehold.errors import FreeholdError, VerificationError
from freehold.keys.x509 import Signer
from freehold.lock import requests
from freehold.lock.requests import Requests
from freehold.monitor import Monitor, step
from freehold.update.manifest import Manifest

#: Makes the tree's changes for requested packages: sysroot, base, the list, monitor → layer.
PackageLayer = Callable[[Sysroot, Base, Requests, Monitor], Layer]
Accept = Callable[[], None]
#: Lets a deployment, named by its id, have the device key after its reboot.
Allow = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What became of the requests: ``staged`` (new), ``switched`` (made before, boots next) or ``unchanged``."""

    verdict: str
    manifest: Manifest


class UnsignableError(FreeholdError):
    """There is no key on this machine that could sign what was derived (``why``); the owner's side has to."""

    def __init__(self, why: str = "", *, hint: str | None = None) -> None:
        super().__init__(
            f"no key on this machine can sign a deployment{f': {why}' if why else ''}",
            hint=hint or "--request FILE has it signed by the owner elsewhere, --key URI by the owner's key here",
        )
        self.why = why


def existing(sysroot: Sysroot, entries: Sequence[loader.Entry], base: Base, name: str) -> loader.Entry | None:
    """The boot entry of the deployment that has the requests ``name`` on ``base``; its manifest is verified."""
    for entry in loader.order(entries):
        if name == requests.name_of(EMPTY) and entry.id == base.manifest.id:
            return entry
        deployment = sysroot.deployment(entry.id)
        derived = deployment.manifest.derived if deployment else None
        if derived is not None and derived.base == base.manifest.image_digest and derived.requests == name:
            bases.read(sysroot, entry.id)
            return entry
    return None


EMPTY = requests.serialize(Requests())


def prepare(
    sysroot: Sysroot, base: Base, text: bytes, serial: int, monitor: Monitor, packages: PackageLayer | None = None
) -> Unsigned:
    """Derive ``base`` with the list ``text``: everything but the signatures. The caller holds the deployments' lock."""
    stage.make_room(sysroot, base.manifest, monitor)
    found = requests.parse(text)
    layer = None
    if found.packages or found.files:
        layer = (packages or _packages)(sysroot, base, found, monitor)
    try:
        return derive.assemble(sysroot, base, text, serial, monitor, layer)
    finally:
        shutil.rmtree(sysroot.root / prune.LAYER_SCRATCH, ignore_errors=True)


def _packages(sysroot: Sysroot, base: Base, wanted: Requests, monitor: Monitor) -> Layer:
    from freehold.device import layer

    return layer.build(sysroot, base, wanted, monitor)


def transact(
    sysroot: Sysroot, text: bytes, serial: int, signer: Signer | None, monitor: Monitor, *, accept: Accept | None = None,
    signatures: Callable[[Unsigned], Signatures] | None = None, packages: PackageLayer | None = None, allow: Allow | None = None,
) -> Outcome:  # fmt: skip
    """Make the deployment that the list ``text`` asks for the next to boot.

    ``accept`` is step 4, ``allow`` comes before it. ``signatures`` gives those that come from elsewhere, else ``signer``
    makes them; once either was asked, no program is started any more. With neither, :class:`UnsignableError` is raised before
    anything is derived. Other errors are those of :mod:`freehold.device.derive`.
    """
    with atomic.exclusive(sysroot.lock_file, "the list of deployments"):
        entries = stage.ensure_esp(sysroot)
        base = bases.next_to_boot(sysroot, entries)
        return on_base(
            sysroot, base, text, serial, signer, monitor, accept=accept, signatures=signatures, packages=packages, allow=allow
        )


def on_base(
    sysroot: Sysroot, base: Base, text: bytes, serial: int, signer: Signer | None, monitor: Monitor, *,
    accept: Accept | None = None, signatures: Callable[[Unsigned], Signatures] | None = None,
    packages: PackageLayer | None = None, allow: Allow | None = None,
) -> Outcome:  # fmt: skip
    """As :func:`transact`, on a release that was chosen; the caller holds the deployments' lock."""
    entries = stage.ensure_esp(sysroot)
    done = accept or (lambda: None)
    found = existing(sysroot, entries, base, requests.name_of(text))
    if found is not None:
        if found.state == "bad":
            raise VerificationError(
                f"these requests on {base.manifest.version} did not come up healthy before ({found.version})",
                hint="change the requests, or wait for another release",
            )
        done()
        return _choose(sysroot, entries, found, monitor)
    if text == EMPTY:
        return _plain(sysroot, base, entries, done, monitor, allow)
    if signer is None and signatures is None:
        raise UnsignableError
    unsigned = prepare(sysroot, base, text, serial, monitor, packages)
    _check_order(entries, unsigned.manifest)
    derive.keep(sysroot, unsigned)
    with step(monitor, "signing"):
        made = signatures(unsigned) if signatures is not None else derive.sign(unsigned, _needed(signer))
    manifest = derive.finish(sysroot, unsigned, made)
    if allow is not None:
        allow(manifest.id)
    done()
    with step(monitor, "staging"):
        stage.commit(sysroot, manifest)
    return Outcome("staged", manifest)


def _needed(signer: Signer | None) -> Signer:
    if signer is None:
        raise UnsignableError
    return signer


def _check_order(entries: Sequence[loader.Entry], manifest: Manifest) -> None:
    new = loader.Entry(manifest.version, manifest.id, loader.TRIES)
    first = loader.order([*entries, new])[0]
    if first != new:
        raise VerificationError(
            f"the boot loader would sort {manifest.version} behind {first.version}, which is here already",
            hint="`freehold rollback` sets that one aside",
        )


def _plain(
    sysroot: Sysroot, base: Base, entries: Sequence[loader.Entry], done: Accept, monitor: Monitor, allow: Allow | None
) -> Outcome:
    """No requests are left, and the release's own boot entry is gone: bring it back, then set what sorts before it aside."""
    bases.kernel_image(sysroot, base, entries)
    bases.rescue_image(sysroot, base)
    if allow is not None:
        try:
            allow(base.manifest.id)
        except FreeholdError as error:
            # The release needs no signature of ours: a key that is not there keeps nobody from it.
            monitor.message(f"the device key will not be there after the reboot: {error.message}")
    done()
    with step(monitor, "staging"):
        entry = stage.commit(sysroot, base.manifest)
    _choose(sysroot, loader.listing(sysroot.esp), entry, monitor)
    return Outcome("staged", base.manifest)


def _choose(sysroot: Sysroot, entries: Sequence[loader.Entry], entry: loader.Entry, monitor: Monitor) -> Outcome:
    deployment = sysroot.deployment(entry.id)
    if deployment is None:
        raise FreeholdError(f"deployment {entry.id} has no manifest any more")
    if loader.order(entries)[0].id == entry.id:
        return Outcome("unchanged", deployment.manifest)
    with step(monitor, "switching"):
        switch = loader.plan_switch(entries, entry)
        loader.apply(sysroot.esp, switch)
    record(sysroot, "switched", id=entry.id, version=entry.version)
    return Outcome("switched", deployment.manifest)
