# SPDX-License-Identifier: Apache-2.0
"""One file as the parts that another has not: how a rescue image travels beside the normal one. Pure.

Format (docs/release-format.md): a list of copies out of the known file and of literal bytes, in the order of the result. JSON::

    {"format": "freehold-parts-1", "parts": [[OFFSET, LENGTH], "BASE64", …]}

Nothing here is trusted: the result counts when its SHA-256 is the signed manifest's, whatever the parts were. The limits
keep a hostile list from costing more memory than the result that was asked for.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence

from freehold.errors import InputError
from freehold.update.manifest import canonical

FORMAT = "freehold-parts-1"
#: Bytes of a list of parts.
LIMIT = 4 << 20
_MAX_PARTS = 4096
#: Shorter equal stretches are not looked for: a copy costs about as much.
_BLOCK = 4096


def describe(known: bytes, wanted: bytes) -> bytes:
    """The parts that make ``wanted`` out of ``known``. Deterministic."""
    places: dict[bytes, int] = {}
    for at in range(0, len(known) - _BLOCK + 1, _BLOCK):
        places.setdefault(known[at : at + _BLOCK], at)
    parts: list[list[int] | str] = []
    done = at = 0
    # A section begins at a multiple of the file alignment in both files, so that steps of it are fine enough.
    while at + _BLOCK <= len(wanted):
        found = places.get(wanted[at : at + _BLOCK])
        if found is None:
            at += 512
            continue
        length = _common(known, found, wanted, at)
        _literal(parts, wanted[done:at])
        parts.append([found, length])
        done = at = at + length
        at += -at % 512
    _literal(parts, wanted[done:])
    return canonical({"format": FORMAT, "parts": parts})


def _literal(parts: list[list[int] | str], data: bytes) -> None:
    if data:
        parts.append(base64.b64encode(data).decode())


def _common(known: bytes, at: int, wanted: bytes, to: int) -> int:
    """How many bytes are equal from ``at`` and ``to`` on."""
    most = min(len(known) - at, len(wanted) - to)
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if known[at + low : at + middle] == wanted[to + low : to + middle]:
            low = middle
        else:
            high = middle - 1
    return low


def rebuild(known: bytes, data: bytes, size: int) -> bytes:
    """The file of ``size`` bytes that the parts ``data`` make out of ``known``.

    :class:`InputError` when they are no parts, or make anything else than ``size`` bytes.
    """
    result = bytearray()
    for part in _parse(data):
        if isinstance(part, str):
            try:
                piece = base64.b64decode(part, validate=True)
            except (ValueError, binascii.Error):
                raise _bad("a literal that is none") from None
        else:
            offset, length = part
            piece = known[offset : offset + length]
            if len(piece) != length:
                raise _bad("a copy from outside of the known file")
        if len(result) + len(piece) > size:
            raise _bad(f"more than {size} bytes")
        result += piece
    if len(result) != size:
        raise _bad(f"{len(result)} bytes, not {size}")
    return bytes(result)


def _parse(data: bytes) -> Sequence[list[int] | str]:
    if len(data) > LIMIT:
        raise _bad(f"more than {LIMIT} bytes of parts")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise _bad("no JSON") from None
    parts = value.get("parts") if isinstance(value, dict) and value.get("format") == FORMAT else None
    if not isinstance(parts, list) or len(parts) > _MAX_PARTS:
        raise _bad("no list of parts of this format")
    for part in parts:
        copy = isinstance(part, list) and len(part) == 2 and all(type(one) is int and one >= 0 for one in part)
        if not (copy or isinstance(part, str)):
            raise _bad("a part that is neither a copy nor a literal")
    return parts


def _bad(what: str) -> InputError:
    return InputError(f"the parts of the rescue image are not usable: {what}")
