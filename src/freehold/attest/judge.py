# SPDX-License-Identifier: Apache-2.0
"""Is this attestation the known machine's answer to my question, and what does it say? Pure: bytes in, verdict out.

First whose word it is and whether it answers: key, signature, nonce, evidence, PCRs. Only then is the evidence
parsed, and its logs replayed: what they do not explain is refused. :mod:`freehold.attest.boot` and
:mod:`freehold.attest.owner` judge what they explain. Root of trust is what the caller gives: there is no default.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

from freehold.attest import boot, document, measured, owner, tpm, userlog
from freehold.attest.document import Attestation, Evidence, Identity
from freehold.attest.verdict import Verdict
from freehold.errors import InputError
from freehold.keys import eventlog, pcr
from freehold.keys.pe import Program
from freehold.keys.verify import Keychain

#: What Linux measures by itself, whose log some kernels do not show in SHA-256.
_IMA_PCR = 10


@dataclass(frozen=True)
class Release:
    """A release to compare with: its UKI, parsed, and the SHA-256 (hex) of the file."""

    program: Program
    sha256: str


def judge(
    attestation: Attestation,
    *,
    nonce: bytes,
    identity: Identity | None,
    keychain: Keychain | None,
    release: Release | None,
) -> Verdict:
    """The verdict on ``attestation`` as an answer to ``nonce`` by the machine ``identity``.

    ``None`` for an argument means that the caller does not know; the verdict then says what is not shown.
    Never raises for bad input.
    """
    verdict = Verdict()
    if not _whose_word(verdict, attestation, nonce, identity):
        verdict.unknown("evidence", "not looked at: nobody vouches for it", decides=True)
        return verdict
    try:
        evidence = document.parse_evidence(attestation.evidence)
        events, locality = eventlog.parse(evidence.firmware_log)
        records = (*userlog.parse_ima(evidence.ima_log), *userlog.parse_systemd(evidence.system_log))
    except (InputError, ValueError) as error:
        faults = error.faults if isinstance(error, InputError) else ()
        verdict.refused("evidence", f"it cannot be read: {'; '.join((str(error), *faults))}")
        return verdict
    _replay(verdict, attestation, evidence, events, locality, records)
    _contents(verdict, events)
    _judged(verdict, attestation, evidence, events, records, identity, keychain, release)
    return verdict


def _judged(
    verdict: Verdict,
    attestation: Attestation,
    evidence: Evidence,
    events: tuple[eventlog.Event, ...],
    records: tuple[userlog.Record, ...],
    identity: Identity | None,
    keychain: Keychain | None,
    release: Release | None,
) -> None:
    program = release.program if release else None
    boot.firmware(verdict, attestation.pcrs, identity)
    vouched = boot.secure_boot(verdict, events, identity, keychain)
    vouched = boot.authorities(verdict, events, keychain) and vouched
    boot.programs(verdict, events, identity, program, vouched=vouched)
    sections = boot.boot_image(verdict, events, program)
    boot.beside(verdict, attestation.pcrs)
    boot.system(verdict, records, evidence.machine)
    image = owner.command_line(verdict, evidence, sections, program)
    owner.release(verdict, evidence, image, keychain, release.sha256 if release else None)
    owner.machine(verdict, evidence, identity)
    owner.signed_intent(verdict, evidence, keychain)
    fault = measured.fault(evidence.measured, events, records) if evidence.measured is not None else ""
    owner.lock(verdict, evidence, image, identity, fault)
    owner.account(verdict, evidence)


def _whose_word(verdict: Verdict, attestation: Attestation, nonce: bytes, identity: Identity | None) -> bool:
    """Whether a TPM says this now, over this evidence and these PCRs; and whether it is the known one."""
    try:
        key = tpm.parse_public(attestation.key)
    except ValueError as error:
        verdict.refused("key", f"{error}")
        return False
    if identity is None:
        verdict.unknown(
            "key", f"the key {key.fingerprint[:16]} is not known: this says what some TPM says", decides=True
        )
    elif identity.key != attestation.key:
        verdict.refused("key", f"another machine: the key {key.fingerprint[:16]} is not the identity's")
        return False
    else:
        verdict.ok("key", f"the key {key.fingerprint[:16]} is that of the identity")
    if not tpm.signed_by(key, attestation.quote, attestation.signature):
        verdict.refused("signature", "the key did not sign this quote")
        return False
    try:
        quote = tpm.parse_quote(attestation.quote)
    except ValueError as error:
        verdict.refused("quote", f"what the key signed is no quote: {error}")
        return False
    if quote.signer != key.qualified_name:
        verdict.refused("quote", "the key that the quote names is not this one below the endorsement hierarchy")
        return False
    if quote.pcrs != document.PCRS:
        verdict.refused("quote", f"it is about the PCRs {', '.join(map(str, quote.pcrs))}, not 0 to 15")
        return False
    verdict.ok("signature", f"the TPM signed a quote of PCR 0 to 15 (its boot number {quote.resets})")
    if quote.extra != document.qualifying(nonce, attestation.evidence):
        replayed = (
            quote.extra == document.qualifying(attestation.nonce, attestation.evidence) and attestation.nonce != nonce
        )
        why = (
            f"it answers the nonce {attestation.nonce.hex()[:16]}…, not yours: an old answer, or one for somebody else"
            if replayed
            else "nonce or evidence are not those of the quote"
        )
        verdict.refused("nonce", why)
        return False
    verdict.ok("nonce", "the quote answers your nonce, and covers this evidence")
    good = hashlib.sha256(b"".join(attestation.pcrs)).digest() == quote.digest
    verdict.judged(
        "pcrs", "the values are those of the quote" if good else "the values are not those of the quote", good=good
    )
    return good


def _replay(
    verdict: Verdict,
    attestation: Attestation,
    evidence: Evidence,
    events: tuple[eventlog.Event, ...],
    locality: int,
    records: tuple[userlog.Record, ...],
) -> None:
    """Do the logs, firmware's first, then what the early step measured, lead to the quoted values?"""
    values = eventlog.start_values(locality)
    text = evidence.measured
    ours = [] if text is None else measured.extended(text)
    pairs = [(one.pcr, one.digest) for one in events], ours, [(one.pcr, one.digest) for one in records]
    for number, digest in (pair for part in pairs for pair in part):
        values[number] = pcr.extend(values[number], digest)
    wrong = [number for number, value in zip(document.PCRS, attestation.pcrs, strict=True) if values[number] != value]
    if _IMA_PCR in wrong and not evidence.ima_log:
        wrong.remove(_IMA_PCR)
        verdict.unknown(
            "log", "PCR 10 (files that Linux measured): the machine has no SHA-256 log of it", decides=False
        )
    if wrong:
        verdict.refused("log", f"the logs do not lead to the quoted PCR {', '.join(map(str, wrong))}")
    else:
        verdict.ok(
            "log", f"{len(events)} measurements of firmware and {len(records)} of the system lead to the quoted values"
        )


def _contents(verdict: Verdict, events: tuple[eventlog.Event, ...]) -> None:
    """Events that say something else than what was measured, and those of kinds that nobody here knows."""
    lying = [one for one in events if one.kind in eventlog.SELF_DESCRIBING and not one.proven]
    decisive = [one for one in lying if one.pcr == pcr.SECURE_BOOT_PCR]
    if decisive:
        verdict.refused("log", f"PCR 7: what {_kinds(decisive)} says is not what was measured")
    if len(lying) > len(decisive):
        rest = [one for one in lying if one.pcr != pcr.SECURE_BOOT_PCR]
        verdict.unknown("log", f"measured, but not what the log shows of it: {_kinds(rest)}", decides=False)
    strange = [one for one in events if one.kind not in eventlog.NAMES]
    if strange:
        verdict.unknown("log", f"measured and not understood: {_kinds(strange)}", decides=False)


def _kinds(events: list[eventlog.Event]) -> str:
    counted = Counter((one.pcr, one.kind_name) for one in events)
    return ", ".join(f"PCR {number} {name} ({count})" for (number, name), count in sorted(counted.items())[:12])
