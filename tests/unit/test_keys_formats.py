# SPDX-License-Identifier: Apache-2.0
"""The signature file and the list of revoked certificates: one spelling, every fault named."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.keys.formats import (
    MAX_DOCUMENT_SIGNATURE_BYTES,
    MAX_REVOKED_BYTES,
    DocumentSignature,
    Revocation,
    merge_revoked,
    parse_revoked,
    parse_signature,
    reason_valid,
    serialize_revoked,
    serialize_signature,
)
from freehold.update.manifest import SIGNATURE_LIMIT

GOOD = serialize_signature(DocumentSignature(b"\xab" * 256, b"certificate"))
HEAD = b"freehold-signature 1\nsignature " + b"ab" * 256 + b"\n"
LIST = f"freehold-revoked 1\n{'a' * 64} lost\n{'b' * 64} old, and tired\n".encode()

signatures = st.builds(
    DocumentSignature, st.binary(min_size=256, max_size=512), st.none() | st.binary(min_size=1, max_size=3000)
)
fingerprints = st.binary(min_size=32, max_size=32).map(bytes.hex)
reasons = st.text(min_size=1, max_size=200).filter(reason_valid)
lists = st.lists(st.builds(Revocation, fingerprints, reasons), max_size=20, unique_by=lambda entry: entry.fingerprint)


@given(signatures)
def test_a_signature_comes_back(value: DocumentSignature) -> None:
    assert parse_signature(serialize_signature(value)) == value


@given(lists)
def test_a_list_comes_back(entries: list[Revocation]) -> None:
    assert parse_revoked(serialize_revoked(entries)) == tuple(entries)


@given(st.binary(max_size=2000) | st.builds(lambda middle: HEAD + middle, st.binary(max_size=200)))
def test_what_is_read_has_one_spelling(data: bytes) -> None:
    try:
        value = parse_signature(data)
    except ValueError:
        return
    assert serialize_signature(value) == data


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_changed_signature_file_is_another_or_none(at: int, by: int) -> None:
    data = bytearray(GOOD)
    data[at] ^= by
    try:
        assert parse_signature(bytes(data)) != parse_signature(GOOD)
    except ValueError as error:
        assert str(error)


@given(st.binary(max_size=500) | st.builds(lambda end: LIST + end, st.binary(max_size=300)))
def test_a_list_that_is_read_has_one_spelling(data: bytes) -> None:
    try:
        entries = parse_revoked(data)
    except ValueError:
        return
    assert serialize_revoked(entries) == data


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "must begin"),
        (b"\x01" * 256, "must begin"),
        (b"\xff" * 256, "not UTF-8"),
        (HEAD.replace(b" 1\n", b" 2\n", 1), "must begin"),
        (HEAD[:-1], "does not end"),
        (HEAD + b"\n", "must have a line"),
        (HEAD + HEAD.split(b"\n", 1)[1], "must have a line"),
        (HEAD + b"reason none\n", "must have a line"),
        (HEAD.replace(b"ab", b"AB"), "lower-case hex"),
        (HEAD.replace(b"ab", b"a"), "lower-case hex"),
        (HEAD.replace(b"ab" * 256, b"ab" * 513), "512 to 1024"),
        (HEAD + b"certificate \n", "not spelt"),
        (HEAD + b"certificate YR==\n", "not spelt"),
        (HEAD + b"certificate YQ=\n", "not base64"),
        (HEAD + b"certificate Y Q==\n", "not base64"),
        (HEAD + b"certificate YQ==\n" * 2, "must have a line"),
        (HEAD + b"certificate " + base64.b64encode(bytes(MAX_DOCUMENT_SIGNATURE_BYTES)) + b"\n", "larger than"),
    ],
)
def test_signature_files_that_are_refused(data: bytes, said: str) -> None:
    assert parse_signature(HEAD).certificate is None
    assert parse_signature(HEAD + b"certificate YQ==\n").certificate == b"a"
    with pytest.raises(ValueError, match=said):
        parse_signature(data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "must begin"),
        (LIST.replace(b" 1\n", b" 2\n", 1), "must begin"),
        (LIST[:-1], "does not end"),
        (LIST + b"\n", "line 4 must begin"),
        (LIST + b"# comment\n", "line 4 must begin"),
        (LIST.replace(b"aaaa", b"AAAA", 1), "line 2 must begin"),
        (LIST.replace(b" lost", b""), "line 2 must give a reason"),
        (LIST.replace(b" lost", b" "), "line 2 must give a reason"),
        (LIST.replace(b"lost", b"x" * 201), "line 2 must give a reason"),
        (LIST.replace(b"lost", b"\x1b[31m"), "line 2 must give a reason"),
        (LIST.replace(b"lost", "\u202eevil".encode()), "line 2 must give a reason"),
        (LIST + b"\xff\n", "not UTF-8"),
        (LIST + b"".join(b"%064x x\n" % number for number in range(MAX_REVOKED_BYTES // 60)), "larger than"),
    ],
)
def test_lists_that_are_refused(data: bytes, said: str) -> None:
    assert len(parse_revoked(LIST)) == 2
    assert parse_revoked(LIST.replace(b"lost", b"x" * 200))[0].reason == "x" * 200
    with pytest.raises(ValueError, match=said):
        parse_revoked(data)


def test_merging_keeps_the_first_reason() -> None:
    first, second = Revocation("a" * 64, "one"), Revocation("a" * 64, "two")
    other = Revocation("b" * 64, "three")
    assert merge_revoked([first], [second, other], ()) == (first, other)


def test_one_limit_for_signature_files() -> None:
    """The manifest's module states it again: importing it from here would cost `freehold status` its start-up time."""
    assert SIGNATURE_LIMIT == MAX_DOCUMENT_SIGNATURE_BYTES
