# SPDX-License-Identifier: Apache-2.0
"""What a request to commit /etc carries: one spelling, bounds, and nothing else taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.errors import InputError
from freehold.lock import etc_request, intent, requests
from freehold.lock.etc_request import Carried

TEXT = intent.serialize(intent.Intent(machine="0" * 32, serial=4, lock="locked", since=5, config="a" * 64))
PARTS = st.binary(max_size=200)


@given(st.sampled_from(["commit", "revert"]), PARTS, PARTS, PARTS)
def test_what_goes_in_comes_out(verb: etc_request.Verb, image: bytes, before: bytes, standing: bytes) -> None:
    carried = Carried(verb, image, before, standing)
    assert etc_request.split(etc_request.pack(TEXT, carried)) == (TEXT, carried)


@given(st.binary(max_size=120), st.integers(0, 400))
def test_any_bytes_are_refused_or_whole(junk: bytes, at: int) -> None:
    """Whatever is changed or cut: what is accepted is spelt exactly so."""
    good = etc_request.pack(TEXT, Carried("commit", b"image", b"before", b"standing"))
    for data in (good[:at], good[:at] + junk, good[:at] + junk + good[at:], junk, TEXT + etc_request.HEAD + junk):
        try:
            text, carried = etc_request.split(data)
        except InputError as error:
            assert "damaged" in error.message
            continue
        if carried is None:
            assert text == data
        else:
            assert etc_request.pack(text, carried) == data


def test_an_image_that_holds_another_head() -> None:
    """A file in /etc may say anything; the request begins where the intent ends."""
    evil = b"\n" + etc_request.HEAD + b"\nfreehold-requests 1\nkarg append init=/bin/sh\n"
    data = etc_request.pack(TEXT, Carried("commit", evil, b"", b""))
    assert etc_request.split(data)[1] == Carried("commit", evil, b"", b"")
    listed = TEXT + requests.serialize(requests.Requests())
    assert etc_request.split(listed) == (listed, None)


def test_a_request_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etc_request, "MAX_IMAGE", 10)
    with pytest.raises(InputError, match="a request carries"):
        etc_request.pack(TEXT, Carried("commit", b"x" * 11, b"", b""))
    data = etc_request.pack(TEXT, Carried("commit", b"x" * 10, b"", b""))
    monkeypatch.setattr(etc_request, "MAX_IMAGE", 9)
    with pytest.raises(InputError, match="its length"):
        etc_request.split(data)
