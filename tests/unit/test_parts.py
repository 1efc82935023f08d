# SPDX-License-Identifier: Apache-2.0
"""A rescue image as parts of the normal one: what goes in comes out, and no parts cost more than was asked for."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.errors import InputError
from freehold.update import parts
from freehold.update.manifest import canonical


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)  # noqa: S311 - test data


def packed(*some: object) -> bytes:
    return canonical({"format": parts.FORMAT, "parts": list(some)})


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20_000), st.booleans()), max_size=6), st.integers(0, 5000))
def test_any_two_files(pieces: list[tuple[int, int, bool]], cut: int) -> None:
    known = b"".join(noise(seed, size) for seed, size, _ in pieces)
    wanted = b"".join(noise(seed, size) if same else noise(seed + 9, size) for seed, size, same in pieces)[cut:]
    assert parts.rebuild(known, parts.describe(known, wanted), len(wanted)) == wanted


def test_images_that_differ_in_two_sections_share_the_rest() -> None:
    """As ukify lays them out: sections at multiples of 512, a signature behind."""
    stub, kernel, initrd = noise(1, 88_064), noise(2, 3 << 20), noise(3, 512 * 1001)
    known = noise(4, 4096) + stub + b"quiet".ljust(512, b"\0") + kernel + initrd + noise(5, 1800)
    wanted = noise(6, 4096) + stub + b"quiet rescue".ljust(1024, b"\0") + kernel + initrd + noise(7, 1800)
    described = parts.describe(known, wanted)
    assert parts.rebuild(known, described, len(wanted)) == wanted
    assert len(described) < 16_000
    assert described == parts.describe(known, wanted)


def test_the_format_is_pinned() -> None:
    assert parts.describe(b"", b"ab") == b'{"format":"freehold-parts-1","parts":["YWI="]}'
    assert parts.rebuild(b"0123456789", packed([2, 3], "YWI=", [0, 1], [10, 0]), 6) == b"234ab0"


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"null", b"[" * 50_000, b'{"parts":[]}', packed([8, 3]), packed([8, 3], "YWI="), packed([1 << 70, 1]),
        packed([-1, 1]), packed([0, -1]), packed([True, 1]), packed([1.0, 1]), packed([1]), packed([1, 1, 1]), packed("?"),
        packed("YWI"), packed("YW\u00e9="), packed(None),
        packed(*[[0, 0]] * 5000), packed([0, 5]), packed([0, 3]), packed("YWJjZA==", "YQ=="), packed(), b" " * (parts.LIMIT + 1),
        canonical({"format": "freehold-parts-2", "parts": [[0, 4]]}),
    ],
)  # fmt: skip
def test_what_is_no_list_of_parts(data: bytes) -> None:
    assert parts.rebuild(b"0123456789", packed([0, 4]), 4) == b"0123"
    with pytest.raises(InputError, match="not usable"):
        parts.rebuild(b"0123456789", data, 4)


def test_it_stops_before_it_is_larger_than_was_asked_for() -> None:
    """Ten thousand copies of a megabyte would be ten gigabytes."""
    with pytest.raises(InputError, match="more than 4 bytes"):
        parts.rebuild(bytes(1 << 20), packed(*[[0, 1 << 20]] * 4096), 4)


@given(st.binary(max_size=200) | st.recursive(
    st.none() | st.integers() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=4), max_leaves=8,
).map(lambda value: json.dumps({"format": parts.FORMAT, "parts": value}).encode()))  # fmt: skip
def test_any_bytes_give_the_size_that_was_asked_for_or_an_input_error(data: bytes) -> None:
    try:
        assert len(parts.rebuild(b"0123456789", data, 4)) == 4
    except InputError:
        return
