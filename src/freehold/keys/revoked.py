# SPDX-License-Identifier: Apache-2.0
"""The keychain's list of revoked certificates, the file ``revoked``. Pure.

Text: the line ``freehold-revoked 1``, then a line ``SHA256HEX reason`` for each, the hash over the certificate's DER,
the reason in printable ASCII. ``early/revoked.c`` reads it too; whatever one of them refuses, the other does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

FILE_NAME = "revoked"
HEADING = "freehold-revoked 1"
MAX_BYTES = 256 << 10
MAX_ENTRIES = 1024
_LINE = re.compile(r"([0-9a-f]{64}) ([ -~]{1,200})")


def parse(data: bytes) -> dict[str, str]:
    """SHA-256 (hex) to reason. :class:`ValueError` for anything that is not such a list."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes")
    heading, *lines = data.decode("latin-1").split("\n")
    if heading != HEADING or not lines or lines.pop() != "":
        raise ValueError(f"is not the line {HEADING!r} and complete lines after it")
    if len(lines) > MAX_ENTRIES:
        raise ValueError(f"more than {MAX_ENTRIES} entries")
    found = {}
    for number, line in enumerate(lines, start=2):
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"line {number} is not SHA256HEX and a reason")
        found[match[1]] = match[2]
    return found


def serialize(entries: Mapping[str, str]) -> bytes:
    """The text for ``entries`` (hash to reason), sorted. :class:`ValueError` for what :func:`parse` would refuse."""
    data = "".join(f"{line}\n" for line in (HEADING, *(f"{sha} {entries[sha]}" for sha in sorted(entries))))
    encoded = data.encode("ascii", errors="strict")
    if parse(encoded) != dict(entries):
        raise ValueError("a reason does not fit in a line")
    return encoded
