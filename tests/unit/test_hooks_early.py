# SPDX-License-Identifier: Apache-2.0
"""The kernel's hooks, found in its type information in one passage."""

from __future__ import annotations

import errno
import shutil
import struct
from pathlib import Path

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
    built = tmp_path_factory.mktemp("c") / "hooks"
    flags = ["-std=gnu17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]
    source = Path(__file__).parent / "c/hooks_main.c"
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
    return run([program, path]).text.splitlines()


NAMES = st.sampled_from(["", "x", "bpf_lsm_", "bpf_lsm_a"])


@given(st.lists(st.tuples(st.sampled_from(sorted(TAILS)), st.integers(0, 5), NAMES), max_size=30))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    assert run([program, tmp_path / "none"]).text.splitlines() == [f"error {errno.ENOENT}"]


@given(st.integers(0, 90), st.binary(min_size=1, max_size=4))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_lead_outside(program: Path, tmp_path: Path, at: int, new: bytes) -> None:
    """The sanitizers watch."""
    good = btf([(4, 2, "file"), (1, 0, "int"), (FUNC, 0, "bpf_lsm_capable")])
    found(program, tmp_path, (good[:at] + new + good[at + len(new):])[: len(good)])
