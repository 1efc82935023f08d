# SPDX-License-Identifier: Apache-2.0
"""The way out of a refusal: which boot entry comes next, and what is remembered of why."""

from __future__ import annotations

import random
import shutil
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freehold.run import run

EARLY = Path(__file__).parents[2] / "early"
LOADER = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
CHAIN = "FreeholdRefused-f18cf8a6-3f0e-45a1-9e53-d2c3b1b8e0a7"
ONE, TWO, THREE = (f"freehold-{n}.0-{str(n) * 16}.efi" for n in (1, 2, 3))
RESCUE, RESCUE_TWO = (f"freehold-rescue-{n}.0-{str(n) * 16}.efi" for n in (1, 2))
FOREIGN = "auto-reboot-to-firmware-setup"
OTHER, RESCUED, NONE = 0, 1, 2


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The early step's sources with the sanitizers on."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    target = tmp_path_factory.mktemp("c") / "fallback"
    sources = [Path(__file__).parent / "c/fallback_main.c", *(EARLY / f"{n}.c" for n in ("fallback", "util"))]
    flags = ["-std=gnu17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]
    run(["cc", *flags, "-fno-sanitize-recover=all", "-Wl,--wrap=say", f"-I{EARLY}", "-o", target, *sources])
    return target


def wide(*ids: str) -> bytes:
    return b"".join(f"{each}\0".encode("utf-16-le") for each in ids)


def chain(*ids: str) -> bytes:
    return "".join(f"{each}\tbecause\n" for each in ids).encode()


def packed(*parts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


def choose(program: Path, *some: tuple[bytes, str, bytes]) -> list[tuple[list[str], int, str]]:
    stdin = b"".join(packed(entries, selected.encode(), refused) for entries, selected, refused in some)
    rows = [line.split() for line in run([program, "choose"], stdin=stdin).text.splitlines()]
    return [(row[:-2], int(row[-2]), row[-1]) for row in rows]


def test_the_first_of_ours_that_was_not_refused(program: Path) -> None:
    every = wide(THREE, FOREIGN, TWO, ONE, RESCUE)
    table = {
        (every, THREE, b""): (OTHER, TWO),
        (every, TWO, chain(THREE)): (OTHER, ONE),
        (every, TWO, b""): (OTHER, THREE),
        (every, ONE, chain(THREE, TWO)): (RESCUED, RESCUE),
        (every, RESCUE, chain(THREE, TWO, ONE)): (NONE, "-"),
        (every, RESCUE, b""): (OTHER, THREE),
        # Rescue is last, wherever the loader lists it; the first of several.
        (wide(RESCUE, ONE), TWO, b""): (OTHER, ONE),
        (wide(RESCUE_TWO, RESCUE, ONE), ONE, b""): (RESCUED, RESCUE_TWO),
        # Each deployment has one; one whose image is refused gives way to the next.
        (wide(RESCUE_TWO, RESCUE, ONE), RESCUE_TWO, chain(ONE)): (RESCUED, RESCUE),
        (wide(RESCUE_TWO, RESCUE, ONE), RESCUE, chain(ONE, RESCUE_TWO)): (NONE, "-"),
        (wide(RESCUE_TWO.upper(), ONE), ONE, b""): (RESCUED, RESCUE_TWO),
        # Only what begins so is one.
        (wide("freehold-rescued.0-1.efi", ONE), ONE, b""): (OTHER, "freehold-rescued.0-1.efi"),
        (wide(FOREIGN, THREE), THREE, b""): (NONE, "-"),
        (b"", THREE, b""): (NONE, "-"),
        # Counters change between two boots of one entry; names come in lower case.
        (wide(THREE.replace(".efi", "+1-2.efi"), ONE), TWO, chain(THREE.replace(".efi", "+2-1.efi"))): (OTHER, ONE),
        (wide(THREE.replace(".efi", "+0-3.efi"), ONE), THREE, b""): (OTHER, ONE),
        (wide(TWO.replace(".efi", "+3.efi")), THREE, b""): (OTHER, TWO.replace(".efi", "+3.efi")),
        (wide(THREE.upper(), ONE), THREE, b""): (OTHER, ONE),
    }
    assert [row[1:] for row in choose(program, *table)] == list(table.values())


def test_what_is_no_id_is_passed_over(program: Path) -> None:
    odd = ["", "a b", "é.efi", "freehold-" + "x" * 200, "tab\t.efi", "\U0001f600"]
    (ids, next_, chosen), *cut = choose(
        program, (wide(*odd, ONE), "", b""), (wide(ONE)[:-2], "", b""), (wide(ONE)[:-1], "", b""), (b"\0", "", b"")
    )
    assert (ids, next_, chosen) == ([ONE], OTHER, ONE)
    assert cut == [([], NONE, "-")] * 3
    longest = "freehold-" + "x" * (159 - 9)
    assert choose(program, (wide(longest), "", b""), (wide(longest + "x"), "", b"")) == [
        ([longest], OTHER, longest),
        ([], 2, "-"),
    ]


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (ONE, ONE, True), (ONE, TWO, False), ("a+3.efi", "a+2-1.efi", True), ("a.efi", "a+0-3.efi", True),
        ("a+3.efi", "b+3.efi", False), ("a+x.efi", "a.efi", False), ("a+3-.efi", "a.efi", False), ("a+3", "a", False),
        ("a+3.efi@1", "a.efi@1", True), ("a+3.efi@1", "a.efi", False), ("+3.efi", ".efi", True), ("a+1+2.efi", "a+1.efi", False),
    ],
)  # fmt: skip
def test_one_entry_by_two_names(program: Path, a: str, b: str, same: bool) -> None:
    assert run([program, "same", a, b]).text == f"{int(same)}\n"
    assert run([program, "same", b, a]).text == f"{int(same)}\n"


@pytest.mark.parametrize(
    ("identity", "pattern"),
    [
        (ONE, ONE), (RESCUE, RESCUE), ("freehold-1+2-1.efi@x", "freehold-1+*.efi@x"), ("a+3.efi", "a+*.efi"),
        ("x" * 150 + "+3.efi", "x" * 150 + "+*.efi"), ("a+b.efi", "a+b.efi"), ("freehold-x", "freehold-x"),
    ],
)  # fmt: skip
def test_the_loader_is_asked_for_any_counter(program: Path, identity: str, pattern: str) -> None:
    """The entry that runs was renamed when it started; it is called otherwise at the next start."""
    assert run([program, "pattern", identity]).text == f"{pattern}\n"


def append(program: Path, before: bytes, identity: str, reason: str) -> bytes:
    return run([program, "append", identity, reason], stdin=packed(before)).stdout


def test_the_chain_grows_and_forgets_the_oldest(program: Path) -> None:
    assert append(program, b"", ONE, "why\nnot\té") == f"{ONE}\twhy?not???\n".encode()
    # An entry's newer reason replaces the older one.
    assert append(program, chain(ONE, TWO), ONE.replace(".efi", "+2-1.efi"), "again") == (
        chain(TWO) + ONE.replace(".efi", "+2-1.efi").encode() + b"\tagain\n"
    )
    text = b""
    for number in range(60):
        text = append(program, text, f"freehold-{number}.efi", "r" * 500)
        assert len(text) <= 4096
    lines = text.decode().splitlines()
    assert lines[-1].startswith("freehold-59.efi\t")
    assert [line.split("\t")[0] for line in lines] == [f"freehold-{n}.efi" for n in range(60 - len(lines), 60)]
    assert all(len(line.split("\t")[1]) == 240 for line in lines)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 1 << 32))
def test_anything_that_somebody_stored(program: Path, seed: int) -> None:
    dice = random.Random(seed)  # noqa: S311 - test data
    some = []
    for _ in range(60):
        entries = bytearray(wide(*dice.choices([ONE, TWO, THREE, RESCUE, FOREIGN, "", "x" * 300], k=5)))
        refused = bytearray(chain(*dice.choices([ONE, TWO, THREE], k=3)))
        for data in (entries, refused):
            for _ in range(dice.randrange(4)):
                data[dice.randrange(len(data))] = dice.choice([0, 9, 10, 43, 45, 255, dice.randrange(256)])
        some.append(
            (
                bytes(entries[: dice.randrange(len(entries) + 1)]),
                ONE,
                bytes(refused[: dice.randrange(len(refused) + 1)]),
            )
        )
    answers = choose(program, *some)
    assert len(answers) == len(some)
    for ids, verdict, chosen in answers:
        assert all(len(each) < 160 for each in ids)
        # Never anything but an entry of ours that the loader lists.
        assert verdict == NONE or (chosen in ids and chosen.startswith("freehold-") and chosen != ONE)
    for _, _, refused_bytes in some[:5]:
        assert append(program, refused_bytes * 30, ONE, "x").endswith(f"{ONE}\tx\n".encode())


def variables(directory: Path, selected: str, *entries: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / f"LoaderEntrySelected-{LOADER}").write_bytes(b"\6\0\0\0" + wide(selected))
    (directory / f"LoaderEntries-{LOADER}").write_bytes(b"\6\0\0\0" + wide(*entries))


def test_a_chain_of_refusals_ends(program: Path, tmp_path: Path) -> None:
    """Every entry once, the rescue entry last, then a long pause and a new beginning."""
    place = tmp_path / "efivars"
    entries = (THREE, TWO, ONE, RESCUE)
    order, selected = [], THREE
    for _ in range(len(entries)):
        order.append(selected)
        variables(place, selected, *entries)
        said = run([program, "refuse", place, f"{selected} is bad"]).text.splitlines()
        shot = place / f"LoaderEntryOneShot-{LOADER}"
        if not shot.exists():
            break
        assert said[-1] == "5"
        value = shot.read_bytes()
        # Stored, with one terminated string.
        assert value[:4] == b"\7\0\0\0"
        selected = value[4:].decode("utf-16-le").rstrip("\0")
        assert value[4:] == wide(selected)
        assert f"next is {selected}" in said[-2]
        shot.unlink()  # as the boot loader does
    assert order == [THREE, TWO, ONE, RESCUE]
    assert said == ["[every deployment of this machine was refused, and no rescue entry is left]", "60"]
    assert not (place / CHAIN).exists()


def test_a_good_boot_ends_the_chain_and_keeps_the_reason(program: Path, tmp_path: Path) -> None:
    place = tmp_path / "efivars"
    variables(place, TWO, TWO, ONE)
    run([program, "refuse", place, "its number is below the floor"])
    assert (place / CHAIN).read_bytes() == b"\7\0\0\0" + f"{TWO}\tits number is below the floor\n".encode()
    said = run([program, "done", place, tmp_path]).text
    assert "was refused" in said
    assert (tmp_path / "last-refusal").read_text() == f"{TWO}\tits number is below the floor\n"
    assert not (place / CHAIN).exists()
    assert run([program, "done", place, tmp_path]).text == ""


def test_without_that_boot_loader_nothing_is_stored(program: Path, tmp_path: Path) -> None:
    assert run([program, "refuse", tmp_path / "nowhere", "x"]).text == "5\n"
    (tmp_path / f"LoaderEntrySelected-{LOADER}").write_bytes(b"\6\0")
    assert run([program, "refuse", tmp_path, "x"]).text == "5\n"
    assert len(list(tmp_path.iterdir())) == 1
