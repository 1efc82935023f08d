# SPDX-License-Identifier: Apache-2.0
"""The judge of the tamper table: what must not pass does not."""

from __future__ import annotations

import pytest
from attack.boot import CIRCLES, KERNEL_QUIET, QUIET, verdict_of
from attack.judge import DENIED, deviations, judge
from attack.model import Probe, Row
from lab_attack import IMAGE, LINE, TRUTH, facts, row, seen

from freehold.update import rescue_entry

PREVIOUS = facts(image=IMAGE["1"], command_line=LINE.format(IMAGE["1"]), version="1")


def test_an_unchanged_locked_machine_is_harmless() -> None:
    verdict = judge(row(), seen("Linux version 6\n", facts()), TRUTH)
    assert (verdict.kept, verdict.end) == (True, "harmless")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"image": "e" * 64}, "an image that nobody signed"),
        ({"version": "1"}, "status says release 1"),
        ({"command_line": LINE.format(IMAGE["2"]) + " init=/bin/sh"}, "init=/bin/sh"),
        ({"command_line": LINE.format(IMAGE["2"]).replace("mounted=0", "mounted=1")}, "mounted=1"),
        ({"command_line": LINE.format(IMAGE["2"]).replace(" ro", "")}, "words are missing"),
        ({"lock": "open"}, "open, not locked"),
        ({"lock": "audit"}, "audit, not locked"),
        ({"secure_boot": False}, "Secure Boot is off"),
        ({"keychain": "image"}, "of the image"),
        ({"certificates": 3}, "3 certificates"),
        ({"machine": "0" * 32}, "another id"),
        ({"config": ""}, "another /etc"),
        ({"config": "0" * 64}, "another /etc"),
        ({"canaries": ("some-row",)}, "planted code ran: some-row"),
    ],
)
def test_every_deviation_is_a_changed_system(change: dict[str, object], word: str) -> None:
    verdict = judge(row(ends=("harmless", "fallback", "refused"), reason="x"), seen("", facts(**change)), TRUTH)
    assert not verdict.kept
    assert verdict.end == "changed"
    assert word in verdict.told


def test_factory_etc_counts_only_where_the_row_says_so_and_never_another() -> None:
    assert deviations(facts(config=""), TRUTH, row(factory_etc=True)) == []
    assert deviations(facts(config="0" * 64), TRUTH, row(factory_etc=True)) != []


def test_a_rescue_counts_only_where_the_row_says_so_and_only_with_its_own_line() -> None:
    line = rescue_entry.line(TRUTH.command_lines["2"])
    saved = facts(config="", command_line=line)
    assert deviations(saved, TRUTH, row(rescue=True)) == []
    assert len(deviations(saved, TRUTH, row())) == 2
    for wrong in (f"{line} init=/bin/sh", f"{TRUTH.command_lines['2']} freehold.rescue"):
        assert deviations(facts(config="", command_line=wrong), TRUTH, row(rescue=True)) != []
    # Without the rescue's words it is judged as any other system.
    assert deviations(facts(config=""), TRUTH, row(rescue=True)) != []
    assert deviations(facts(config="0" * 64, command_line=line), TRUTH, row(rescue=True)) != []


def test_a_fallback_needs_its_reason_on_the_console() -> None:
    one = row(ends=("fallback",), reason="is refused: Input/output error")
    said = "freehold: the system image aaaa is refused: Input/output error\n"
    good = judge(one, seen(said, PREVIOUS), TRUTH)
    assert (good.kept, good.end, good.reason) == (True, "fallback", said.strip())
    assert not judge(one, seen("Linux version 6\n", PREVIOUS), TRUTH).kept
    # The tampered deployment itself came up: not what was expected.
    assert not judge(one, seen(said, facts()), TRUTH).kept
    # Where it may also be ignored, nothing has to be said about that.
    assert judge(row(ends=("fallback", "harmless"), reason="is refused"), seen("", facts()), TRUTH).kept
    assert not judge(row(ends=("fallback", "harmless"), reason="is refused"), seen("", PREVIOUS), TRUTH).kept


def test_a_refusal_needs_a_reason_and_a_way_back() -> None:
    one = row(ends=("refused",), reason=DENIED)
    said = "Error loading \\EFI\\Linux\\x.efi: Access denied\n"
    assert judge(one, seen(said, None, "it stands still", recovered=PREVIOUS, recovery="chosen"), TRUTH).kept
    brick = judge(one, seen(said, None, "it stands still", recovery="the boot menu does not come"), TRUTH)
    assert (brick.kept, brick.end) == (False, "brick")
    silent = judge(one, seen("nothing said", None, "time is up", recovered=PREVIOUS), TRUTH)
    assert (silent.kept, silent.end) == (False, "silent")
    opened = judge(one, seen(said, None, "it stands still", recovered=facts(lock="open")), TRUTH)
    assert (opened.kept, opened.end) == (False, "changed")


def test_a_refusal_where_harmless_was_promised_is_a_failure() -> None:
    verdict = judge(row(reason="."), seen("Access Denied", None, "it stands still"), TRUTH)
    assert (verdict.kept, verdict.end) == (False, "refused")


def test_questions_have_to_be_asked_and_answered() -> None:
    one = row(probes=(Probe("nothing is merged", "true", r"^0\s*$"),))
    assert judge(one, seen("", facts(probes={"some-row/0": "0\n"})), TRUTH).kept
    assert not judge(one, seen("", facts(probes={"some-row/0": "1\n"})), TRUTH).kept
    assert not judge(one, seen("", facts()), TRUTH).kept


def test_rows_that_share_a_boot_answer_for_their_own_canaries_only() -> None:
    fired = seen("", facts(canaries=("other-row", "other-row.tmpfiles")))
    assert judge(row(together="x"), fired, TRUTH, alone=False).kept
    assert not judge(row(id="other-row", together="x"), fired, TRUTH, alone=False).kept
    assert not judge(row(together="x"), fired, TRUTH, alone=True).kept


def test_a_control_without_effect_proves_nothing() -> None:
    one = row(ends=("effective",), controls=(), probes=(Probe("it fired", "cat x", "^0"),), base="open")
    assert judge(one, seen("", facts(lock="open", probes={"some-row/0": "0"})), TRUTH).kept
    assert judge(one, seen("", facts(lock="open", probes={"some-row/0": ""})), TRUTH).end == "without effect"
    assert not judge(one, seen("", None, "time is up"), TRUTH).kept


def test_watching_ends_for_a_reason_only() -> None:
    refused = "Error loading x: Access denied\n"
    assert verdict_of(refused, "Access denied", QUIET - 1) == ""
    assert verdict_of(refused, "Access denied", QUIET + 1) == "it stands still"
    restarts = "Linux version 6\nfreehold: x is refused: y\n"
    assert verdict_of("Linux version 6\n", "is refused", 1000) == ""
    assert verdict_of(restarts, "is refused", 1) == ""
    assert verdict_of(restarts, "is refused", QUIET + 1) == ""
    assert verdict_of(restarts, "is refused", KERNEL_QUIET + 1) == "it stands still"
    assert verdict_of(restarts * CIRCLES, "is refused", 0) == "it restarts in a circle"
    assert verdict_of(restarts * (CIRCLES - 1), "is refused", 0) == ""
    assert verdict_of("BdsDxe: No bootable option or device was found.\n", "", QUIET) == "dead end"


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "Bad Id"},
        {"ends": ()},
        {"together": "x", "ends": ("refused",), "reason": "x"},
        {"reason": "("},
        {"reason": "x|"},
        {"ends": ("refused",)},
    ],
    ids=["id", "ends", "together", "pattern", "everything", "no-reason"],
)
def test_a_row_that_makes_no_sense_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises((ValueError, __import__("re").error)):
        row(**changes)


def test_control_is_what_has_no_control() -> None:
    assert row(controls=()).control
    assert not Row("a", "uki", "b", ("harmless",), lambda target: None).control
