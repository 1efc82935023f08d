# SPDX-License-Identifier: Apache-2.0
"""What a boot measures of its own lock: the early step's text, the judge's reading of it, and who cannot pretend."""

from __future__ import annotations

import dataclasses
import hashlib
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab_attest import IPL, MACHINE, NONCE, Boot, event, sha, system_record
from test_attest import refusals, verdict_on
from test_memory import reader

from freehold.attest import document, measured
from freehold.attest.document import Attestation
from freehold.attest.verdict import Verdict
from freehold.lock.intent import Lock
from freehold.run import run

# The early step's own sources, to compare with.
__all__ = ["reader"]

IMAGE = "1" * 64


def lock_line(verdict: Verdict) -> tuple[str, str]:
    (line,) = [one for one in verdict.lines if one.check == "lock"]
    return line.state, line.text


def answer(boot: Boot, **evidence: bytes | None) -> Attestation:
    changes: dict[str, Any] = dict(evidence)
    return boot.attestation(evidence=dataclasses.replace(boot.evidence(), **changes))


class Opened(Boot):
    """A machine without an intent of the owner's."""

    def measured(self, **changes: object) -> bytes | None:
        words = {"signed": "none", "intent": "absent", "lock": "open", "guard": "none", "device-key": "no"}
        return super().measured(serial=0, **words, **changes)


@pytest.mark.parametrize(
    ("state", "lock"), [("open", "open"), ("audit", "audit"), ("locked", "locked"), ("rescue", "open")]
)
def test_what_was_in_force_is_proved(state: str, lock: Lock) -> None:
    machine = Boot(lock=lock, measures=state)
    verdict = verdict_on(machine.attestation(), machine)
    assert refusals(verdict) == {}
    assert (verdict.good, verdict.lock, verdict.data()["lock"]) == (True, state, state)
    assert f"Proved: {state}." in verdict.conclusion()
    assert lock_line(verdict)[0] == "ok"


@pytest.mark.parametrize(
    ("words", "state"), [({"intent": "absent", "lock": "open"}, "open"), ({"intent": "invalid"}, "locked")]
)
def test_without_an_intent(words: dict[str, str], state: str) -> None:
    class Bare(Boot):
        def measured(self, **changes: object) -> bytes | None:
            guard = "none" if state == "open" else "locked"
            return super().measured(serial=0, signed="none", guard=guard, **words, **{"device-key": "no"}, **changes)

    machine = Bare()
    verdict = verdict_on(answer(machine, intent=None), machine)
    assert (verdict.good, verdict.lock) == (True, state)
    # The machine presents one that was not believed, or came later.
    assert "not the one of that start" in refusals(verdict_on(machine.attestation(), machine))["lock"]


def test_root_of_an_open_machine_cannot_say_locked() -> None:
    """It began as open. What root can do is to quote other texts, hide it, and measure more."""
    locked = Boot().measured()
    machine = Opened()
    # An intent that says locked, which did not stand.
    assert "not the one of that start" in refusals(verdict_on(machine.attestation(), machine))["lock"]
    # A text that says locked.
    assert "PCR 11, 15" in refusals(verdict_on(answer(machine, measured=locked), machine))["log"]
    # None at all.
    assert "PCR 11, 15" in refusals(verdict_on(answer(machine, measured=None), machine))["log"]
    # The locked text measured as well, and put first in the evidence, or last.
    late = Opened(system_log=system_record(15, "phase", (locked or b"").decode()))
    for said in (locked, late.measured(), None):
        verdict = verdict_on(answer(late, measured=said), late)
        assert not verdict.good
        assert verdict.data()["lock"] is None
    # Measured with a log that hides what it is: the digest is known.
    hidden = system_record(15, "filesystem", "x").replace(sha(b"x").hex().encode(), sha(locked or b"").hex().encode())
    assert "more than one" in refusals(verdict_on(Boot(system_log=hidden).attestation(), Boot()))["lock"]


def test_what_is_measured_of_the_lock_cannot_be_left_out() -> None:
    """Root shows an old intent that says locked, and the early step's measurements as ones of its own that nobody knows."""
    machine = Opened()
    words = [(number, one.hex()) for number, one in measured.extended(machine.measured() or b"")]
    hidden = [b'\x1e{"pcr": %d, "digests": [{"hashAlg": "sha256", "digest": "%s"}]}' % (n, d.encode()) for n, d in words]
    evidence = {"measured": None, "system_log": b"".join(hidden) + machine.system_log}
    verdict = verdict_on(answer(machine, **evidence), machine)
    assert "lead to the quoted values" in verdict.text()
    assert refusals(verdict) == {}
    assert not verdict.good
    assert "Not shown (lock)" in verdict.conclusion()


def test_the_word_about_the_device_key_goes_with_it() -> None:
    """PCR 11 has one word between the boot image and systemd's phases (docs/device-key.md)."""
    strict = Boot(strict=True)
    verdict = verdict_on(strict.attestation(), strict)
    assert (verdict.good, verdict.lock) == (True, "locked")
    for one, other in ((strict, Boot()), (Boot(), strict)):
        assert "PCR 11, 15" in refusals(verdict_on(answer(one, measured=other.measured()), one))["log"]


def test_the_first_measurement_has_to_be_the_early_steps() -> None:
    before = Boot()
    before.machine_log.append(event(15, IPL, b"somebody"))
    verdict = verdict_on(before.attestation(), before)
    assert "before the early step" in refusals(verdict)["lock"]
    # Two starts with one power-on (kexec).
    twice = Boot(system_log=system_record(15, "phase", "freehold-measured 1 again"))
    assert "more than one" in refusals(verdict_on(twice.attestation(), twice))["lock"]


def test_it_is_about_this_boot() -> None:
    class Other(Boot):
        changes: dict[str, object]

        def measured(self, **_: object) -> bytes | None:
            return super().measured(**self.changes)

    cases: list[tuple[dict[str, object], str]] = [
        ({"image": "2" * 64}, "another image or machine"), ({"machine": "0" * 32}, "another image or machine"),
        ({"signed": "0" * 64}, "not the one of that start"), ({"guard": "none"}, "contradicts itself"),
        ({"serial": "04"}, "not the early step's text"),
    ]  # fmt: skip
    for changes, words in cases:
        Other.changes = changes
        machine = Other()
        verdict = verdict_on(machine.attestation(), machine)
        assert words in refusals(verdict)["lock"], changes
        assert verdict.lock is None
    gone = verdict_on(answer(Boot(), intent=None), Boot())
    assert "that the machine does not present" in refusals(gone)["lock"]


def test_where_nothing_is_known_nothing_is_proved() -> None:
    old = Boot(measures="")
    verdict = verdict_on(old.attestation(), old, known=old)
    assert verdict.good
    assert verdict.lock is None
    assert (lock_line(verdict)[0], "compare its serial" in lock_line(verdict)[1]) == ("unknown", True)
    # A machine whose early step did not reach the TPM when it was trusted: root may have been the first.
    machine = Boot()
    unsure = verdict_on(
        machine.attestation(), machine, identity=dataclasses.replace(machine.identity(), measures=False)
    )
    assert (unsure.good, unsure.lock, lock_line(unsure)[0]) == (True, None, "unknown")
    assert "take a new identity" in lock_line(unsure)[1]
    assert verdict_on(machine.attestation(), machine, identity=None).lock is None


def test_a_refused_answer_proves_no_lock() -> None:
    """However good that line is by itself."""
    machine = Boot(more=[event(12, IPL, b"a credential")])
    verdict = verdict_on(machine.attestation(), machine)
    assert lock_line(verdict)[0] == "ok"
    assert (verdict.good, verdict.data()["lock"]) == (False, None)
    assert "Proved" not in verdict.conclusion()


def test_files_of_before_are_read() -> None:
    machine = Boot(measures="")
    evidence = document.serialize_evidence(machine.evidence())
    assert document.parse_evidence(evidence.replace(b', "measured": null', b"")) == machine.evidence()
    identity = document.serialize_identity(machine.identity())
    assert document.parse_identity(identity.replace(b',\n "measures": false', b"")) == machine.identity()
    assert document.parse_evidence(document.serialize_evidence(Boot().evidence())).measured == Boot().measured()
    assert document.parse_identity(document.serialize_identity(Boot().identity())).measures
    assert Boot().attestation(NONCE).nonce == NONCE


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_one_spelling(data: st.DataObject) -> None:
    text = Boot().measured() or b""
    known = measured.parse(text)
    changed = bytearray(text)
    at = data.draw(st.integers(0, len(text) - 1))
    changed[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([bytes(changed), text[:at], text + bytes(changed[:at]), text + b"\n"]))
    try:
        assert measured.parse(cut) != known or cut == text
    except ValueError:
        assert cut != text


@given(st.binary(max_size=1500))
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(ValueError, match="not the early step's text"):
        measured.parse(data)


def test_c_and_python_agree(reader: Path) -> None:
    """Every boot that there can be, as ``early/measure.c`` writes it."""
    states: tuple[measured.State, ...] = ("absent", "valid", "invalid")
    locks: tuple[Lock, ...] = ("open", "audit", "locked")
    without: dict[str, Lock] = {"absent": "open", "invalid": "locked"}
    for (standing, state), (lock, name), rescue, keyed in product(enumerate(states), enumerate(locks), (0, 1), (0, 1)):
        number = 1 << 53
        valid = state == "valid"
        words = (standing, lock, number, rescue, IMAGE, MACHINE, keyed)
        text = run([reader, "measured", *map(str, words)]).stdout
        if keyed and (rescue or not valid or name != "locked"):
            with pytest.raises(ValueError, match="contradicts itself"):
                measured.parse(text)
            continue
        wanted = name if valid else without[state]
        found = measured.parse(text)
        assert found == measured.Measured(
            IMAGE, 5, MACHINE, state, number if valid else 0, wanted, "cd" * 32 if valid else "", bool(rescue),
            "locked" if rescue else {"open": "none"}.get(wanted, wanted), bool(keyed),
        )  # fmt: skip
        assert found.state == ("rescue" if rescue else wanted)
        assert len(text) < measured.MAX_BYTES
        assert measured.digest(text) == hashlib.sha256(text).digest()
