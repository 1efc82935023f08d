# SPDX-License-Identifier: Apache-2.0
"""What the signed documents in the evidence say: release, machine, lock; and the machine's own account. All pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from freehold.attest import measured
from freehold.attest.document import Evidence, Identity
from freehold.attest.verdict import Verdict
from freehold.errors import FreeholdError
from freehold.keys.pe import Program
from freehold.keys.verify import Keychain
from freehold.lock import intent
from freehold.update import believe
from freehold.update.manifest import image_of

_NO_KEYCHAIN = "no keychain was given to judge it by (--identity or --keychain)"


def command_line(verdict: Verdict, evidence: Evidence, sections: Mapping[str, bytes], program: Program | None) -> str:
    """The image digest that the measured command line names; "" when that is not shown."""
    measured = sections.get(".cmdline")
    line = evidence.command_line
    sealed = program.first_profile().get(".cmdline") if program is not None else None
    if program is not None and sealed is not None and measured == hashlib.sha256(program.loaded(sealed)).digest():
        line = program.stored(sealed).decode("latin-1").rstrip("\0\n")
    elif measured is None or measured not in _spellings(line):
        verdict.refused("command-line", "the one in the evidence is not the one that was measured")
        return ""
    if line != evidence.command_line:
        verdict.refused("command-line", "the kernel runs with another one than that of its boot image")
        return ""
    image = image_of(line)
    if not image:
        verdict.refused("command-line", "it names no image, or more than one")
        return ""
    verdict.ok("command-line", f"measured, and names the image {image[:16]}")
    return image


def _spellings(line: str) -> set[bytes]:
    """SHA-256 of the section that becomes ``line``: tools end it in nothing, a newline or a NUL."""
    text = line.encode("latin-1", errors="replace")
    return {hashlib.sha256(text + end).digest() for end in (b"", b"\n", b"\0", b"\n\0")}


def release(verdict: Verdict, evidence: Evidence, image: str, keychain: Keychain | None, uki: str | None) -> None:
    """Is the running image that of a release that the keychain vouches for?"""
    if keychain is None:
        verdict.unknown("release", _NO_KEYCHAIN, decides=True)
        return
    try:
        manifest, signer = believe.manifest(
            evidence.manifest, evidence.manifest_signature, keychain, evidence.machine or None, "its manifest"
        )
    except FreeholdError as error:
        verdict.refused("release", error.message)
        return
    what = f"{manifest.name} {manifest.version}"
    if manifest.derived is not None:
        what += f", which the machine made of {manifest.derived.version} as its owner asked"
    if manifest.image_digest != image:
        verdict.refused("release", f"the signed manifest of {what} is not that of the running image")
    elif uki is not None and manifest.uki.sha256 != uki:
        verdict.refused("release", f"the release to compare with is not {what}, whose manifest the machine has")
    else:
        verdict.ok("release", f"{what}, signed by {signer}")


def machine(verdict: Verdict, evidence: Evidence, identity: Identity | None) -> None:
    """Does the evidence carry the identity's machine id?"""
    if identity is not None:
        good = evidence.machine == identity.machine
        text = f"machine {evidence.machine or 'without an id'}"
        verdict.judged("machine", text if good else f"{text}, not {identity.machine}", good=good)


def signed_intent(verdict: Verdict, evidence: Evidence, keychain: Keychain | None) -> None:
    """What the owner's signed intent says, as the machine presents it.

    An older intent is signed as well as the newest: whether it is in force is :func:`lock`'s.
    """
    if keychain is None:
        verdict.unknown("intent", _NO_KEYCHAIN, decides=True)
        return
    standing = intent.judge(evidence.intent, keychain=keychain, machine=evidence.machine)
    if standing.intent is None and standing.state == "locked":
        verdict.refused("intent", standing.reason)
        return
    if standing.intent is None:
        verdict.unknown("intent", "it presents none: an open machine, or one that hides it", decides=False)
        return
    config = f", /etc image {standing.intent.config[:16]}" if standing.intent.config else ""
    verdict.ok("intent", f"{standing.state}, {standing.reason}{config}")


def lock(verdict: Verdict, evidence: Evidence, image: str, identity: Identity | None, fault: str) -> None:
    """Which lock was in force when this boot began, by what the early step measured.

    ``image``: that of the measured command line. ``fault``: why PCR 15 does not vouch for the text.
    """
    text = evidence.measured
    if text is None:
        measures = identity is not None and identity.measures
        why = ", although this machine's early step measures: an older release, or it is left out" if measures else ""
        verdict.unknown(
            "lock",
            f"that this intent is in force is not measured{why}: compare its serial with the last that you signed",
            decides=measures,
        )
        return
    try:
        boot = measured.parse(text)
    except ValueError as error:
        verdict.refused("lock", f"what this boot is said to have measured cannot be relied on: {error}")
        return
    if fault:
        verdict.refused("lock", f"what this boot measured cannot be relied on: {fault}")
    elif boot.image != image or boot.machine != evidence.machine:
        verdict.refused("lock", "what was measured is about another image or machine")
    elif identity is None or not identity.measures:
        verdict.unknown(
            "lock",
            f"PCR 15 says {boot.state}, but the identity does not show that this machine's early step is the first to"
            " measure there: take a new identity while you trust it",
            decides=False,
        )
    elif evidence.intent is not None and hashlib.sha256(evidence.intent).hexdigest() != boot.signed:
        verdict.refused("lock", f"{_said(boot)}; the intent presented is not the one of that start: restart it")
    elif evidence.intent is None and boot.signed:
        verdict.refused("lock", f"{_said(boot)}, by an intent that the machine does not present")
    else:
        verdict.lock = boot.state
        verdict.ok("lock", _said(boot))


def _said(boot: measured.Measured) -> str:
    by = {
        "valid": f"by the intent number {boot.serial}",
        "absent": "no intent stood",
        "invalid": "the intent was not believed",
    }
    words = {
        "open": "open when it started", "audit": "in audit when it started: nothing is refused",
        "locked": "locked when it started, and the guard with it", "rescue": "a rescue: locked, with factory settings",
    }  # fmt: skip
    return f"{words[boot.state]} ({by[boot.intent]}, release {boot.release})"


def account(verdict: Verdict, evidence: Evidence) -> None:
    """What the machine says of itself. Nothing measures it; root could have written it."""
    guard = evidence.guard
    mode = guard.get("mode") if guard.get("loaded") is True else None
    words = [f"guard {mode if mode in ('open', 'audit', 'locked') else 'not loaded'}"]
    source = evidence.boot.get("keychain_source")
    if source in ("firmware", "image"):
        words.append(f"keys for files from the {source}")
    verdict.unknown("account", f"in its own words: {', '.join(words)}", decides=False)
