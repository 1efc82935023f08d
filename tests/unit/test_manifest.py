# SPDX-License-Identifier: Apache-2.0
"""Manifests and stream pointers: round trips, and everything a hostile or older builder may write."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab_release import manifest

from freehold.errors import InputError
from freehold.update.manifest import (
    MANIFEST_LIMIT,
    STREAM_LIMIT,
    Derived,
    Inputs,
    Stream,
    canonical,
    difference,
    parse_manifest,
    parse_stream,
    serialize_manifest,
    serialize_stream,
)

GOOD, _, _ = manifest("1.0", 1000)


def fields() -> dict[str, object]:
    value = json.loads(serialize_manifest(GOOD))
    assert isinstance(value, dict)
    return value


def test_round_trip() -> None:
    assert parse_manifest(serialize_manifest(GOOD)) == GOOD
    stream = Stream("stable", "1.0", "ab" * 32, 7)
    assert parse_stream(serialize_stream(stream)) == stream


DERIVED = Derived("ab" * 32, "cd" * 32, "1.0", "ef" * 32, ("karg append quiet", "package fish"))


def test_what_a_machine_made_says_from_what() -> None:
    assert b"derived" not in serialize_manifest(GOOD)
    made = GOOD._replace(version="1.0^7", derived=DERIVED)
    assert parse_manifest(serialize_manifest(made)) == made


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("base", "AB" * 32), ("base", 5), ("manifest", "cd" * 31), ("version", "1/2"), ("requests", None), ("lines", "karg"),
        ("lines", [5]), ("lines", ["a\nb"]), ("lines", [""]), ("lines", ["x"] * 513), ("lines", None),
    ],
)  # fmt: skip
def test_a_damaged_derivation_is_refused(key: str, value: object) -> None:
    whole = {**DERIVED._asdict(), "lines": list(DERIVED.lines), key: value}
    wrongs: tuple[object, ...] = (whole, {name: one for name, one in whole.items() if name != key}, [], None, "x")
    for wrong in wrongs:
        with pytest.raises(InputError) as error:
            parse_manifest(canonical({**fields(), "derived": wrong}))
        assert any("derived" in fault for fault in error.value.faults)


def test_kernel_inputs_are_a_name_and_a_signature() -> None:
    value = parse_manifest(json.dumps(fields()).encode())._replace(inputs=Inputs("ab" * 32, b"signature"))
    data = serialize_manifest(value)
    assert parse_manifest(data) == value
    assert json.loads(data)["kernel_inputs"] == {"name": "ab" * 32, "signature": "c2lnbmF0dXJl"}
    assert "kernel_inputs" not in json.loads(serialize_manifest(value._replace(inputs=None)))


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (None, "name"), ([], "name"), ({"name": "ab" * 32}, "signature"), ({"name": "AB" * 32, "signature": "AAAA"}, "name"),
        ({"name": "ab" * 32, "signature": "*"}, "signature"), ({"name": "ab" * 32, "signature": "A" * 20_000}, "signature"),
        ({"name": "ab" * 32, "signature": ""}, "signature"),
    ],
)  # fmt: skip
def test_damaged_kernel_inputs_are_refused(value: object, fault: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_manifest(json.dumps({**fields(), "kernel_inputs": value}).encode())
    assert any(one.startswith(f"kernel_inputs.{fault}") for one in caught.value.faults)


def test_canonical_form_is_pinned() -> None:
    assert canonical({"b": [1, "é"], "a": {}}) == b'{"a":{},"b":[1,"\xc3\xa9"]}'
    assert serialize_stream(Stream("s", "1", "0" * 64, 7)) == (
        b'{"format":"freehold-stream-1","manifest_sha256":"'
        + b"0" * 64
        + b'","stream":"s","timestamp":7,"version":"1"}'
    )


def test_id_is_the_beginning_of_the_image_digest() -> None:
    assert GOOD.id == GOOD.image_digest[:16]


def test_unknown_keys_are_ignored() -> None:
    assert parse_manifest(canonical({**fields(), "later": {"x": 1}})) == GOOD


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "UPPER"),
        ("name", ""),
        ("version", "1+2"),
        ("version", "../1"),
        ("version", "1/2"),
        ("version", "a..b"),
        ("version", "x" * 65),
        ("version", "1\n"),
        ("version", "rescue"),
        ("version", "rescue-1"),
        ("version", "Rescue-1"),
        ("commit", "c" * 63),
        ("commit", "C" * 64),
        ("image_digest", 5),
        ("image_size", 0),
        ("image_size", -1),
        ("image_size", 1 << 40),
        ("image_size", 1.5),
        ("image_size", True),
        ("timestamp", 0),
        ("timestamp", 2**60),
        ("number", None),
        ("number", -1),
        ("number", 2**53 + 1),
        ("number", "1"),
        ("uki", []),
        ("uki", {"name": "../x", "sha256": "a" * 64, "size": 1}),
        ("uki", {"name": "x", "sha256": "a" * 64, "size": 1 << 40}),
        ("rescue", None),
        ("rescue", {"name": "x", "sha256": "A" * 64, "size": 1}),
        ("rescue", {"name": "x", "sha256": "a" * 64, "size": 0}),
        ("packages", [["a", "b"]]),
        ("packages", [["a", "b", 1]]),
        ("packages", "all"),
        ("pockets", [" "]),
        ("architecture", None),
    ],
)
def test_faults_are_named(key: str, value: object) -> None:
    with pytest.raises(InputError) as caught:
        parse_manifest(canonical({**fields(), key: value}))
    assert caught.value.faults
    assert all(fault.startswith(key) for fault in caught.value.faults)


@pytest.mark.parametrize("version", ["rescued", "1-rescue", "rescue.1", "rescue_2"])
def test_what_only_looks_like_a_rescue_entrys_name(version: str) -> None:
    assert parse_manifest(canonical({**fields(), "version": version})).version == version


def test_all_faults_at_once() -> None:
    with pytest.raises(InputError) as caught:
        parse_manifest(canonical({"format": "freehold-release-1"}))
    assert len(caught.value.faults) >= 10


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"[" * 50_000,
        b'{"format":"freehold-stream-1","format":"freehold-stream-1"}',
        b'{"format":"freehold-stream-1","timestamp":NaN}',
        b'{"format":"freehold-stream-1","timestamp":' + b"9" * 5000 + b"}",
        b'{"format":"freehold-stream-2"}',
        b" " * (STREAM_LIMIT + 1),
    ],
)
def test_garbage_is_one_error(data: bytes) -> None:
    with pytest.raises(InputError):
        parse_stream(data)


def test_manifest_size_limit() -> None:
    with pytest.raises(InputError, match="larger"):
        parse_manifest(serialize_manifest(GOOD) + b" " * MANIFEST_LIMIT)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_value_or_an_input_error(data: bytes) -> None:
    try:
        parse_manifest(data)
    except InputError:
        return
    pytest.fail("random bytes became a manifest")


def test_difference() -> None:
    new = GOOD._replace(packages=(("base-files", "2.0", "amd64"), ("fish", "4.0", "amd64")))
    result = difference(GOOD, new)
    assert result.added == (("fish", "4.0"),)
    assert result.removed == (("bash", "5.2"),)
    assert result.changed == (("base-files", "1.0", "2.0"),)
