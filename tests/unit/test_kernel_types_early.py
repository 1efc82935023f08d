# SPDX-License-Identifier: Apache-2.0
"""The kernel's type information: its hooks, and the small part of it that the guard is loaded with."""

from __future__ import annotations

import errno
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freehold.run import run

EARLY = Path(__file__).parents[2] / "early"
FUNC = 12
#: Kind → bytes behind the 12 of every type: always, and for each member (kernel documentation, "BPF Type Format").
TAILS = {
    1: (4, 0), 2: (0, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 7: (0, 0), 8: (0, 0), 9: (0, 0), 10: (0, 0), 11: (0, 0),
    FUNC: (0, 0), 13: (0, 8), 14: (4, 0), 15: (0, 12), 16: (0, 0), 17: (4, 0), 18: (0, 0), 19: (0, 12),
}  # fmt: skip


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C code with the sanitizers on."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    built = tmp_path_factory.mktemp("c") / "kernel_types"
    flags = ["-std=gnu17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]
    source = Path(__file__).parent / "c/kernel_types_main.c"
    run(["cc", *flags, "-fno-sanitize-recover=all", f"-I{EARLY}", "-o", built, source])
    return built


def btf(types: list[tuple[int, int, str]]) -> bytes:
    """Type information of (kind, count of members, name); what types refer to is nothing to the reader."""
    strings, body = b"\0", b""
    for kind, count, name in types:
        at = len(strings) if name else 0
        strings += name.encode() + b"\0" if name else b""
        # Members look like a function's type, so that who loses step finds hooks that are none.
        tail = (struct.pack("<III", 1, FUNC << 24, 0) * (count + 1))[: TAILS[kind][0] + TAILS[kind][1] * count]
        body += struct.pack("<III", at, kind << 24 | count, 0) + tail
    return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(body), len(body), len(strings)) + body + strings


def found(program: Path, directory: Path, data: bytes) -> list[str]:
    path = directory / "btf"
    path.write_bytes(data)
    return run([program, "hooks", path]).text.splitlines()


NAMES = st.sampled_from(["", "x", "bpf_lsm_", "bpf_lsm_a"])


@given(st.lists(st.tuples(st.sampled_from(sorted(TAILS)), st.integers(0, 5), NAMES), max_size=30))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_kind_of_type_is_stepped_over(program: Path, tmp_path: Path, types: list[tuple[int, int, str]]) -> None:
    wanted = [number for number, (kind, _, name) in enumerate(types, 1) if kind == FUNC and name == "bpf_lsm_a"]
    rows = found(program, tmp_path, btf([*types, (FUNC, 1, "bpf_lsm_last")]))
    # Of two with one name the first counts.
    assert [row for row in rows if row.startswith("a ")] == [f"a {wanted[0]}"] * len(wanted) if wanted else True
    assert rows[-1] == f"last {len(types) + 1}"


def test_only_functions_with_the_whole_prefix_are_hooks(program: Path, tmp_path: Path) -> None:
    types = [(8, 0, "bpf_lsm_file_open"), (FUNC, 0, "bpf_lsm_file_open"), (FUNC, 0, "security_file_open"), (FUNC, 0, "bpf_ls")]
    assert found(program, tmp_path, btf(types)) == ["file_open 2"]


def test_damage_is_an_error(program: Path, tmp_path: Path) -> None:
    good = btf([(1, 0, "int"), (FUNC, 0, "bpf_lsm_capable")])
    assert found(program, tmp_path, good) == ["capable 2"]
    bad = [f"error {errno.EBADMSG}"]
    assert found(program, tmp_path, b"\x9f\xec" + good[2:]) == bad
    assert found(program, tmp_path, good[:-1] + b"x") == bad
    assert found(program, tmp_path, btf([(1, 0, "int")]).replace(struct.pack("<I", 1 << 24), struct.pack("<I", 30 << 24))) == bad
    for length in range(len(good)):
        assert found(program, tmp_path, good[:length]) == bad, length
    assert run([program, "hooks", tmp_path / "none"]).text.splitlines() == [f"error {errno.ENOENT}"]


@given(st.integers(0, 90), st.binary(min_size=1, max_size=4))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_lead_outside(program: Path, tmp_path: Path, at: int, new: bytes) -> None:
    """The sanitizers watch."""
    good = btf([(4, 2, "file"), (1, 0, "int"), (FUNC, 0, "bpf_lsm_capable")])
    found(program, tmp_path, (good[:at] + new + good[at + len(new):])[: len(good)])


PTR, ARRAY, STRUCT, UNION, ENUM, TYPEDEF, CONST, ENUM64 = 2, 3, 4, 5, 6, 8, 10, 19
ALIASES = (TYPEDEF, 9, CONST, 11, 18)


def written(types: list[tuple[int, str, list[int]]]) -> bytes:
    """Type information of (kind, name, numbers that it refers to); each member of a structure is called after its number."""
    strings, body = b"\0", b""

    def text(name: str) -> int:
        nonlocal strings
        at = len(strings) if name else 0
        strings += name.encode() + b"\0" if name else b""
        return at

    for kind, name, refers in types:
        count = len(refers) if TAILS[kind][1] else 0
        one = refers[0] if kind in (PTR, *ALIASES) else 40 + len(refers)
        body += struct.pack("<III", text(name), kind << 24 | count, one)
        if kind in (STRUCT, UNION):
            body += b"".join(struct.pack("<III", text(f"m{at}"), one, at * 8) for at, one in enumerate(refers))
        elif kind == ARRAY:
            body += struct.pack("<III", refers[0], refers[1], 7)
        elif kind == ENUM:
            body += b"".join(struct.pack("<II", text(f"v{one}"), one) for one in refers)
        elif kind == ENUM64:
            body += b"".join(struct.pack("<III", text(f"v{one}"), one, 1) for one in refers)
        else:
            body += bytes(TAILS[kind][0])
    return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(body), len(body), len(strings)) + body + strings


def shapes(data: bytes, pointed: list[int] | None = None) -> list[tuple[int, str, Any]]:
    """Type information, read again: (kind, name, what it is made of), what is pointed to in a list of its own."""
    pointed = [] if pointed is None else pointed
    magic, _, _, header, type_off, type_len, str_off, str_len = struct.unpack_from("<HBBIIIII", data)
    assert (magic, header, len(data)) == (0xEB9F, 24, 24 + str_off + str_len)
    strings, at, found = data[24 + str_off:], 24 + type_off, [(0, "void", ())]

    def text(offset: int) -> str:
        return strings[offset:strings.index(b"\0", offset)].decode()

    while at < 24 + type_off + type_len:
        name, info, one = struct.unpack_from("<III", data, at)
        kind, count = info >> 24 & 31, info & 0xFFFF
        always, each = TAILS[kind]
        rows = [struct.unpack_from("<III"[: 1 + each // 4], data, at + 12 + row * each) for row in range(count) if each]
        made: Any = one
        if kind in (STRUCT, UNION):
            made = (one, [(text(row[0]), row[1], row[2]) for row in rows])
        elif kind in (ENUM, ENUM64):
            made = (one, [(text(row[0]), *row[1:]) for row in rows])
        elif kind == ARRAY:
            made = struct.unpack_from("<III", data, at + 12)
        elif kind == PTR:
            made = "something"
            pointed.append(one)
        found.append((kind, text(name), made))
        at += 12 + always + each * count
    return found


def unfolded(types: list[tuple[int, str, Any]], number: int, depth: int) -> object:
    """A type with what it is made of in the place of the numbers."""
    kind, name, made = types[number]
    if depth == 0:
        return kind, name
    if kind in (STRUCT, UNION):
        made = (made[0], [(called, unfolded(types, one, depth - 1), where) for called, one, where in made[1]])
    elif kind == ARRAY:
        made = (*(unfolded(types, one, depth - 1) for one in made[:2]), made[2])
    elif kind in ALIASES:
        made = unfolded(types, made, depth - 1)
    return kind, name, made


def small(program: Path, directory: Path, data: bytes, *names: str) -> bytes:
    path = directory / "btf"
    path.write_bytes(data)
    return run([program, "small", path, *names]).stdout


KINDS = st.sampled_from([1, PTR, ARRAY, STRUCT, UNION, ENUM, TYPEDEF, CONST, 16, ENUM64])
NUMBERS = st.lists(st.integers(0, 14), min_size=2, max_size=4)
TYPES = st.lists(st.tuples(KINDS, st.sampled_from(["", "inode", "file", "other"]), NUMBERS), min_size=14, max_size=14)


@given(TYPES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_small_part_has_the_same_structures(
    program: Path, tmp_path: Path, types: list[tuple[int, str, list[int]]]
) -> None:
    data = written(types)
    whole, part = shapes(data), shapes(small(program, tmp_path, data, "inode", "file"))
    named = (STRUCT, UNION, ENUM, TYPEDEF, ENUM64)

    def wanted(types: list[tuple[int, str, Any]]) -> list[object]:
        found = [at for at, (kind, name, _) in enumerate(types) if kind in named and name in ("inode", "file")]
        return [unfolded(types, at, 5) for at in found]

    assert wanted(part) == wanted(whole)
    assert len(part) <= len(whole)


def test_what_is_pointed_to_and_what_is_not_named_stays_out(program: Path, tmp_path: Path) -> None:
    members = [(PTR, "", [5]), (TYPEDEF, "size_t", [6]), (ARRAY, "", [6, 6])]
    types = [(STRUCT, "inode", [2, 3, 4]), *members, (STRUCT, "huge", [1, 6]), (1, "long", [])]
    pointed: list[int] = []
    found = shapes(small(program, tmp_path, written(types), "inode"), pointed)
    assert pointed == [0]
    assert [name for _, name, _ in found] == ["void", "inode", "", "size_t", "", "long"]
    assert shapes(small(program, tmp_path, written(types), "nothing")) == [(0, "void", ())]


@given(st.integers(0, 200), st.binary(min_size=1, max_size=4))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_lead_the_small_part_outside(program: Path, tmp_path: Path, at: int, new: bytes) -> None:
    """The sanitizers watch."""
    members = [(PTR, "", [5]), (TYPEDEF, "x", [6]), (ARRAY, "", [6, 6]), (ENUM, "inode", [1]), (1, "i", [])]
    good = written([(STRUCT, "inode", [2, 3, 4]), *members])
    small(program, tmp_path, (good[:at] + new + good[at + len(new):])[: len(good)], "inode")
