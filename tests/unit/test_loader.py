# SPDX-License-Identifier: Apache-2.0
"""Boot entries: names, order as the boot loader has it, rollback plans, and cuts between their renames."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.device import loader
from freehold.device.loader import Entry
from freehold.errors import FreeholdError, NotHereError

A, B, C = "a" * 16, "b" * 16, "c" * 16


@pytest.mark.parametrize(
    ("name", "state"),
    [
        (f"freehold-1.0-{A}.efi", "good"),
        (f"freehold-1.0-rc1-{A}+3.efi", "trying"),
        (f"freehold-1.0-{A}+2-1.efi", "trying"),
        (f"freehold-1.0-{A}+0-3.efi", "bad"),
        (f"freehold-1.0-{A}+0.efi", "set-aside"),
    ],
)
def test_names(name: str, state: str) -> None:
    entry = loader.parse(name)
    assert entry is not None
    assert (entry.name, entry.state, entry.id) == (name, state, A)


@pytest.mark.parametrize(
    "name",
    ["linux.efi", f"freehold-1.0-{A}", f"freehold-1.0-{A[:-1]}.efi", f"freehold--{A}.efi", f"freehold-1-{A}+.efi",
     f"freehold-1-{A}+3-.efi", f"freehold-1/2-{A}.efi", f"freehold-1-{A}.efi\n", f"freehold-1-{A.upper()}.efi",
     f"freehold-1+1-{A}.efi", f"freehold-rescue-1.0-{A}.efi", f"freehold-rescue-{A}.efi", f"freehold-Rescue-1-{A}+3.efi"],
)  # fmt: skip
def test_foreign_names(name: str) -> None:
    assert loader.parse(name) is None


#: From the UAPI group's version format specification, ascending.
ASCENDING = [
    "1~rc1", "1", "1-1", "1.0", "1.0.1", "1.2", "1.10", "1.10.a", "1.10.1",
    "2", "10", "122.1", "123~rc1-1", "123", "123-a", "123-a.1", "123-1", "123-1.1",
    "123^post1", "123.a-1", "123.1-1", "123a-1", "124-1",
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(ASCENDING) - 1))
def test_version_order(index: int) -> None:
    low, high = ASCENDING[index], ASCENDING[index + 1]
    assert loader.compare_versions(low, high) == -1
    assert loader.compare_versions(high, low) == 1
    assert loader.compare_versions(low, low) == 0


VERSIONS = st.text("0129ab.-~^", min_size=1, max_size=8)


@given(VERSIONS, VERSIONS, VERSIONS)
def test_version_order_is_an_order(a: str, b: str, c: str) -> None:
    assert loader.compare_versions(a, b) == -loader.compare_versions(b, a)
    if loader.compare_versions(a, b) <= 0 and loader.compare_versions(b, c) <= 0:
        assert loader.compare_versions(a, c) <= 0


def test_boot_order() -> None:
    entries = [Entry("3.0", C, 0, 3), Entry("1.0", A), Entry("2.0", B, 2, 1)]
    assert [entry.id for entry in loader.order(entries)] == [B, A, C]
    assert loader.order([Entry("1.0", A), Entry("1.0", B, 0)])[0].id == A


def machine(tmp_path: Path, *entries: Entry) -> Path:
    directory = tmp_path / "EFI/Linux"
    directory.mkdir(parents=True)
    for entry in entries:
        (directory / entry.name).write_text(entry.id)
    (directory / "other.efi").write_text("not ours")
    return tmp_path


def test_rollback_and_back(tmp_path: Path) -> None:
    esp = machine(tmp_path, Entry("1.0", A), Entry("2.0", B))
    switch = loader.plan_rollback(loader.listing(esp), B)
    loader.apply(esp, switch)
    assert [entry.name for entry in loader.listing(esp)] == [f"freehold-1.0-{A}.efi", f"freehold-2.0-{B}+0.efi"]
    # After the reboot into A: back to B, which must prove itself again.
    loader.apply(esp, loader.plan_rollback(loader.listing(esp), A))
    assert [entry.name for entry in loader.listing(esp)] == [f"freehold-2.0-{B}+3.efi", f"freehold-1.0-{A}.efi"]
    assert (esp / "EFI/Linux/other.efi").exists()


def test_rollback_before_the_reboot_is_undone(tmp_path: Path) -> None:
    esp = machine(tmp_path, Entry("1.0", A), Entry("2.0", B))
    loader.apply(esp, loader.plan_rollback(loader.listing(esp), B))
    switch = loader.plan_rollback(loader.listing(esp), B)
    loader.apply(esp, switch)
    assert switch.chosen.id == B
    assert loader.listing(esp)[0].id == B


def test_rollback_with_an_update_waiting_stays(tmp_path: Path) -> None:
    esp = machine(tmp_path, Entry("1.0", A), Entry("2.0", B), Entry("3.0", C, 3))
    switch = loader.plan_rollback(loader.listing(esp), B)
    assert switch.chosen.id == B
    loader.apply(esp, switch)
    assert [entry.id for entry in loader.listing(esp)] == [B, A, C]


def test_rollback_never_chooses_a_bad_or_untried_one() -> None:
    with pytest.raises(NotHereError, match="no other deployment"):
        loader.plan_rollback([Entry("2.0", B), Entry("1.0", A, 0, 3)], B)
    with pytest.raises(NotHereError):
        loader.plan_rollback([Entry("2.0", B), Entry("1.0", A, 3)], B)
    with pytest.raises(NotHereError):
        loader.plan_rollback([], B)


STATES = st.sampled_from([(None, None), (3, None), (1, 2), (0, None), (0, 3)])


@given(st.lists(STATES, min_size=1, max_size=5), st.integers(0, 4))
def test_every_cut_of_a_rollback_boots_something_that_booted(
    states: list[tuple[int | None, int | None]], at: int
) -> None:
    entries = [Entry(f"{i + 1}.0", f"{i:016x}", *state) for i, state in enumerate(states)]
    booted = entries[at % len(entries)]
    try:
        switch = loader.plan_rollback(entries, booted.id)
    except NotHereError:
        return
    files = {entry.name for entry in entries}
    fit = {entry.id for entry in entries if entry.state != "bad"} | {booted.id}
    for old, new in switch.renames:
        files.remove(old)
        assert new not in files
        files.add(new)
        now = loader.order(entry for entry in map(loader.parse, files) if entry)
        assert now[0].id in fit
        assert now[0].left != 0
    assert loader.order(entry for entry in map(loader.parse, files) if entry)[0].id == switch.chosen.id
    assert {name.split("+")[0].removesuffix(".efi") for name in files} == {
        entry.name.split("+")[0].removesuffix(".efi") for entry in entries
    }


def test_apply_refuses_to_replace(tmp_path: Path) -> None:
    esp = machine(tmp_path, Entry("1.0", A), Entry("2.0", B), Entry("2.0", B, 0))
    with pytest.raises(FreeholdError, match="exists already"):
        loader.apply(esp, loader.Switch(Entry("1.0", A), ((Entry("2.0", B).name, Entry("2.0", B, 0).name),)))
    assert len(loader.listing(esp)) == 3


def test_no_esp(tmp_path: Path) -> None:
    with pytest.raises(NotHereError, match="not mounted"):
        loader.listing(tmp_path)
