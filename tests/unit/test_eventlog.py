# SPDX-License-Identifier: Apache-2.0
"""The one reader of the firmware's event log: what it refuses. What it reads is in test_attest.py and test_device_key.py."""

from __future__ import annotations

import struct
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab_attest import DATABASE, Made, event, log_of, sha, variable

from freehold.keys import eventlog
from freehold.keys.eventlog import Variable

SHA1, SHA256, SHA384 = 4, 0xB, 0xC
EVENT = event(7, 4, bytes(4))


def log(
    banks: list[tuple[int, int]], digests: list[tuple[int, int]], *, pcr: int = 7, behind: bytes = b"", vendor: bytes = b"\0"
) -> bytes:
    """A log of one event; ``banks`` as its header names them, ``digests`` as the event has them: (algorithm, bytes)."""
    head = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(banks))
    head += b"".join(struct.pack("<HH", *bank) for bank in banks) + vendor + behind
    body = struct.pack("<III", pcr, 4, len(digests))
    body += b"".join(struct.pack("<H", kind) + sha(b"x")[:1] * size for kind, size in digests)
    return struct.pack("<II20xI", 0, 3, len(head)) + head + body + struct.pack("<I", 4) + bytes(4)


BOTH = [(SHA1, 20), (SHA256, 32)]


def test_what_is_read() -> None:
    for banks in (BOTH, [(SHA256, 32)], [(SHA384, 48), (SHA256, 32)]):
        (one,), locality = eventlog.parse(log(banks, banks))
        assert (one.pcr, one.digest, locality) == (7, sha(b"x")[:1] * 32, 0)
    assert eventlog.parse(log(BOTH, BOTH, vendor=b"\3abc"))
    # What the log says without measuring it is no event.
    note = Made(0, eventlog.NO_ACTION, b"StartupLocality\0\3", bytes(32))
    assert eventlog.parse(log_of([note, EVENT])) == (eventlog.parse(log_of([EVENT]))[0], 3)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "cut short"),
        (b"\1" + log(BOTH, BOTH)[1:], "not a crypto-agile log"),
        (log(BOTH, BOTH).replace(b"Event03", b"Event02"), "not a crypto-agile log"),
        (log([(SHA1, 20)], [(SHA1, 20)]), "without SHA-256"),
        (log([(SHA256, 20)], [(SHA256, 20)]), "impossible sizes"),
        (log([*BOTH, (SHA384, 65)], BOTH), "impossible sizes"),
        (log([*BOTH, (SHA256, 32)], BOTH), "twice"),
        (log([], []), "0 digest algorithms"),
        (log([*BOTH, *((0x100 + at, 32) for at in range(7))], BOTH), "9 digest algorithms"),
        (log(BOTH, BOTH, behind=b"more"), "behind the end"),
        (log(BOTH, BOTH, vendor=b"\3ab"), "cut short"),
        (log(BOTH, [(SHA1, 20)]), "without a SHA-256 digest"),
        (log(BOTH, []), "0 digests in one event"),
        (log(BOTH, [(SHA256, 32), (SHA256, 32)]), "is there twice"),
        (log(BOTH, [(SHA384, 48), (SHA256, 32)]), "not in the header"),
        (log(BOTH, [*BOTH, (SHA1, 20)]), "3 digests in one event"),
        (log(BOTH, BOTH, pcr=24), "no PCR 24"),
        (log(BOTH, BOTH) + b"\0", "cut short"),
    ],
)
def test_logs_that_are_none(data: bytes, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        eventlog.parse(data)


def test_limits() -> None:
    with pytest.raises(ValueError, match="larger than"):
        eventlog.parse(bytes(eventlog.MAX_LOG_BYTES + 1))
    # What is not measured counts as well.
    for one in (EVENT, Made(0, eventlog.NO_ACTION, b"", bytes(32))):
        assert eventlog.parse(log_of([one] * eventlog.MAX_EVENTS))
        with pytest.raises(ValueError, match="too many events"):
            eventlog.parse(log_of([one] * (eventlog.MAX_EVENTS + 1)))


@given(st.uuids(), st.text(st.characters(codec="utf-16"), max_size=20), st.binary(max_size=50))
def test_variables_are_read_as_written(guid: UUID, name: str, data: bytes) -> None:
    one = Variable(guid, name, data)
    assert eventlog.parse_variable(eventlog.serialize_variable(one)) == one


def test_a_variable_is_written_as_firmware_does() -> None:
    assert eventlog.serialize_variable(Variable(DATABASE, "db", b"data")) == variable(DATABASE, "db", b"data")
