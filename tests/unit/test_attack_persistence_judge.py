# SPDX-License-Identifier: Apache-2.0
"""The judge of the persistence table: what fired is seen, and what proves nothing is void."""

from __future__ import annotations

import json
import re

import pytest
from attack.persistence.judge import faults, judge, judge_collateral, judge_live
from attack.persistence.model import Done, Sight, canaries_of, sight_of
from lab_persistence import DENIED, GOOD, ONE, TWO, act, locked, opened, row


def test_what_fires_open_and_not_locked_is_kept() -> None:
    one = row()
    verdict = judge(one, opened(one), locked(one))
    assert (verdict.end, verdict.open, verdict.locked) == ("kept", "fires", "no")


def test_a_refused_plant_is_as_good_when_it_was_planted_open() -> None:
    one = row()
    verdict = judge(one, opened(one), locked(one, planted={one.id: DENIED}))
    assert (verdict.end, verdict.locked) == ("kept", "refused")
    assert "Operation not permitted" in verdict.told
    assert judge(one, opened(one, planted={one.id: DENIED}), locked(one)).end == "void"
    assert judge(one, opened(one), locked(one, planted={})).end == "void"


@pytest.mark.parametrize(
    "canaries",
    [
        {},
        {"a24-unit": ((0, TWO),)},
        {"a24-unit": ((0, TWO),), "a24-unit.native": ((0, ONE),)},
        {"a24-other": ((0, TWO),), "a24-other.native": ((0, TWO),)},
    ],
    ids=["none", "text only", "native before the reboot", "another row's"],
)
def test_without_each_canary_in_the_boot_after_a_row_is_void(canaries: dict[str, object]) -> None:
    one = row()
    verdict = judge(one, opened(one, canaries=canaries), locked(one))
    assert (verdict.end, verdict.kept) == ("void", False)
    assert "canary a24-unit" in verdict.told


@pytest.mark.parametrize(
    "canaries",
    [
        {"a24-unit": ((0, TWO),)},
        {"a24-unit": ((0, ONE), (0, TWO))},
        {"a24-unit.native": ((1000, TWO),)},
        {"a24-unit.other": ((0, TWO),)},
        {"a24-unit": ((0, ""),)},
        {"a24-unit.native": ((0, ONE),)},
    ],
    ids=["after", "before and after", "as a user", "by another name", "in no known boot", "native while planted"],
)
def test_whatever_grew_on_the_locked_machine_has_fired(canaries: dict[str, object]) -> None:
    one = row()
    verdict = judge(one, opened(one), locked(one, canaries=canaries))
    assert (verdict.end, verdict.locked) == ("fired", "FIRED")
    # Nor does a void control, or a refused plant, hide it.
    assert judge(one, opened(one, canaries={}), locked(one, canaries=canaries, planted={one.id: DENIED})).end == "fired"


@pytest.mark.parametrize("what", ["planted", "looks", "triggers"])
def test_what_was_not_done_to_its_end_on_the_locked_machine_proves_nothing(what: str) -> None:
    one = row(look="x", trigger="y", found="there")
    control = opened(one, triggers={one.id: GOOD})
    assert judge(one, control, locked(one)).kept
    for runs in ({}, {one.id: Done(-1, "")}):
        verdict = judge(one, control, locked(one, **{what: runs}))
        assert verdict.end == "void"
        assert "did not end on the locked machine" in verdict.told
    # A trigger may fail: there is nothing to log in to, to start, to look up.
    assert judge(one, control, locked(one, triggers={one.id: Done(1, "no")})).kept


def test_text_in_the_boot_of_its_planting_is_not_persistence() -> None:
    one = row()
    assert judge(one, opened(one), locked(one, canaries={"a24-unit": ((0, ONE),)})).kept


def test_only_root_counts_where_a_row_says_so() -> None:
    one = row(root_only=True)
    assert judge(one, opened(one), locked(one, canaries={"a24-unit": ((1000, TWO),)})).kept
    assert judge(one, opened(one, uid=1000), locked(one)).end == "void"
    assert judge(one, opened(one), locked(one, canaries={"a24-unit": ((0, TWO),)})).end == "fired"


def test_what_dies_with_its_boot_has_to_have_lived() -> None:
    one = row(control="now")
    assert judge(one, opened(one, boot=ONE), locked(one)).kept
    assert judge(one, opened(one, boot=TWO), locked(one)).end == "void"
    assert judge(one, opened(one, boot=ONE), locked(one, canaries={"a24-unit": ((0, TWO),)})).end == "fired"


def test_a_look_is_a_canary_too() -> None:
    one = row(canaries=(), look="getent passwd x", found="there")
    assert judge(one, opened(one), locked(one)).kept
    assert judge(one, opened(one, looks={one.id: Done(0, "")}), locked(one)).end == "void"
    assert judge(one, opened(one, looks={}), locked(one)).end == "void"
    assert judge(one, opened(one), locked(one, looks={one.id: Done(1, "there")})).end == "fired"


def test_absence_is_checked_on_both_machines_and_believed_only_without_canaries() -> None:
    one = row(control="absent", absence="true")
    silent = opened(one, canaries={})
    verdict = judge(one, silent, locked(one))
    assert (verdict.end, verdict.open) == ("kept", "absent")
    assert judge(one, opened(one, canaries={}, absence={one.id: Done(1, "/usr/sbin/cron")}), locked(one)).end == "void"
    assert judge(one, silent, locked(one, absence={one.id: Done(1, "/usr/sbin/cron")})).end == "void"
    assert judge(one, silent, locked(one, absence={})).end == "void"
    assert judge(one, opened(one), locked(one)).end == "void"
    assert judge(one, silent, locked(one, canaries={"a24-unit": ((0, TWO),)})).end == "fired"


def test_what_is_closed_in_every_state_says_why_in_both() -> None:
    one = row(control="closed", reason="ead-only file system", canaries=())
    said = {one.id: Done(1, "cp: Read-only file system")}
    assert judge(one, opened(one, planted=said), locked(one, planted=said)).kept
    assert judge(one, opened(one), locked(one, planted=said)).end == "void"
    assert judge(one, opened(one, planted={one.id: DENIED}), locked(one, planted=said)).end == "void"
    assert judge(one, opened(one, planted=said), locked(one, planted={one.id: DENIED})).end == "other"
    assert judge(one, opened(one, planted=said), locked(one)).end == "other"


def test_rows_of_the_other_table_need_no_control_here_but_must_not_fire() -> None:
    one = row(control="elsewhere", covered_by=("entry-options",), look="cat /proc/cmdline", found="planted")
    verdict = judge(one, opened(one, canaries={}, looks={}), locked(one))
    assert (verdict.end, verdict.open) == ("kept", "elsewhere")
    assert "entry-options" in verdict.told
    assert judge(one, opened(one), locked(one, looks={one.id: Done(0, "planted")})).end == "fired"
    assert judge(one, opened(one), locked(one, looks={})).end == "void"
    assert judge(one, opened(one), locked(one, canaries={"a24-unit": ((0, TWO),)})).end == "fired"


def test_what_leaves_a_trace_has_to_be_told() -> None:
    one = row(trace='"add-on"')
    assert judge(one, opened(one), locked(one)).end == "untold"
    assert judge(one, opened(one), locked(one, trace='{"check": "add-on"}')).kept
    # What was refused has left none.
    assert judge(one, opened(one), locked(one, planted={one.id: DENIED})).kept


def test_out_of_scope_works_for_a_user_and_for_nobody_else() -> None:
    one = row(kind="O")
    own = dict.fromkeys(one.canaries, ((1000, TWO),))
    control = opened(one, uid=1000)
    assert judge(one, control, locked(one, canaries=own)).locked == "as user"
    assert judge(one, control, locked(one)).end == "broken"
    assert judge(one, control, locked(one, canaries={**own, "a24-unit": ((0, TWO),)})).end == "fired"
    assert judge(one, opened(one, canaries={}), locked(one, canaries=own)).end == "void"


def test_acts_are_refused_for_the_lock() -> None:
    one = act()

    def ends(there: Done, here: Done, **changes: object) -> str:
        changed = act(**changes)
        return judge_live(changed, Sight(ONE, TWO, live={one.id: there}), Sight(ONE, TWO, live={one.id: here})).end

    assert ends(GOOD, DENIED) == "kept"
    assert ends(GOOD, GOOD) == "fired"
    assert ends(GOOD, Done(1, "No space left on device")) == "other"
    assert ends(GOOD, Done(-1, "")) == "other"
    assert ends(DENIED, DENIED) == "void"
    assert ends(DENIED, GOOD) == "fired"
    past = {"past": "Invalid argument"}
    assert ends(Done(1, "Invalid argument"), DENIED, **past) == "kept"
    assert ends(Done(1, "Invalid argument"), Done(1, "Invalid argument"), **past) == "fired"
    closed = {"control": "closed"}
    assert ends(DENIED, DENIED, **closed) == "kept"
    assert ends(GOOD, DENIED, **closed) == "void"
    assert ends(Done(1, "No such file"), DENIED, **closed) == "void"
    assert judge_live(one, Sight(ONE, TWO), Sight(ONE, TWO)).end == "void"


def test_what_has_to_go_on_working_does() -> None:
    one = act(allowed=True)
    for there, here, end in ((GOOD, GOOD, "kept"), (GOOD, DENIED, "broken"), (DENIED, GOOD, "void")):
        found = judge_collateral(one, Sight(ONE, TWO, collateral={one.id: there}), Sight(ONE, TWO, collateral={one.id: here}))
        assert found.end == end


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"lock": "open"}, "is open"),
        ({"lock": ""}, "of no state"),
        ({"target": "degraded", "failed": "x.service failed"}, "x.service"),
        ({"second": ONE}, "was not rebooted"),
        ({"canaries": {"b99-live.native": ((0, ONE),)}}, "b99-live.native"),
    ],
    ids=["open", "no state", "degraded", "no reboot", "stranger"],
)
def test_a_machine_that_is_not_what_it_has_to_be_is_told(changes: dict[str, object], word: str) -> None:
    one = row()
    assert faults([one], opened(one), locked(one, canaries={"c00-mine.native": ((1000, TWO),)})) == []
    assert any(word in text for text in faults([one], opened(one), locked(one, **changes)))


def test_the_control_machine_has_to_be_open() -> None:
    one = row()
    assert any("not open" in text for text in faults([one], opened(one, lock="locked"), locked(one)))


def test_canaries_are_read_as_they_are_written() -> None:
    boot = "01234567-89ab-cdef-0123-456789abcdef"
    plain = boot.replace("-", "")
    found = canaries_of({"x": f"0 {boot}\n0 {boot}\n1000 {plain}\n\n", "y": "nonsense", "z": ""})
    assert found == {"x": ((0, plain), (1000, plain)), "y": ((0, ""),), "z": ()}


def test_a_sight_comes_back_from_json() -> None:
    one = row(look="x", trigger="y")
    seen = opened(one, live={"a17-disk": DENIED}, triggers={one.id: GOOD}, seconds=1.5)
    assert sight_of(json.loads(json.dumps(seen.data()))) == seen
    for wrong in ({}, {**seen.data(), "planted": []}, {**seen.data(), "unknown": 1}):
        with pytest.raises((KeyError, TypeError, ValueError)):
            sight_of(wrong)


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "Unit"},
        {"plant": ""},
        {"canaries": ()},
        {"control": "now", "canaries": (), "look": "x"},
        {"control": "absent"},
        {"absence": "true"},
        {"control": "closed"},
        {"control": "elsewhere"},
        {"trace": "x|"},
        {"look": "x", "found": ".*"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_a_row_that_could_prove_nothing_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises((ValueError, re.error)):
        row(**changes)


@pytest.mark.parametrize(
    "changes", [{"id": "x"}, {"act": ""}, {"allowed": True, "control": "closed"}, {"reason": ""}, {"past": "x|"}],
    ids=lambda one: "-".join(one),
)
def test_an_act_that_could_prove_nothing_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"id|done|allowed|everything"):
        act(**changes)
