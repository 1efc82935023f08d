# SPDX-License-Identifier: Apache-2.0
"""What a request to commit /etc carries behind its intent: its owner sees elsewhere what is signed. Pure (docs/etc.md)."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, get_args

from freehold.errors import InputError
from freehold.lock.intent import MAX_BYTES as MAX_INTENT
from freehold.lock.intent import MAX_SIGNED_BYTES

HEAD = b"freehold-etc 1\n"
#: Bytes of an image that a request can carry.
MAX_IMAGE = 16 << 20
MAX_BYTES = MAX_INTENT + 2 * MAX_IMAGE + MAX_SIGNED_BYTES + 256
Verb = Literal["commit", "revert"]
_SIZE = rb"(0|[1-9][0-9]{0,8})"
_HEADER = re.compile(
    HEAD + rb"verb (commit|revert)\nimage " + _SIZE + rb"\nbefore " + _SIZE + rb"\nstanding " + _SIZE + rb"\n\n"
)


class Carried(NamedTuple):
    """``image`` is what the intent names (empty: the factory's /etc); ``before`` the image that the machine has, named by its
    signed intent ``standing`` (both empty: none). ``verb`` asked for it.
    """

    verb: Verb
    image: bytes
    before: bytes
    standing: bytes


def pack(text: bytes, carried: Carried) -> bytes:
    """The request file for the intent's ``text``. :class:`InputError` for an image that is too large to be carried."""
    for data in (carried.image, carried.before):
        if len(data) > MAX_IMAGE:
            raise InputError(
                f"the committed /etc has {len(data) >> 20} MiB, and a request carries {MAX_IMAGE >> 20}",
                hint="commit with --key where the owner's key is at hand, or keep large files out of /etc",
            )
    header = "verb {}\nimage {}\nbefore {}\nstanding {}\n\n".format(carried.verb, *map(len, carried[1:]))
    return b"".join([text, HEAD, header.encode(), *carried[1:]])


def split(data: bytes) -> tuple[bytes, Carried | None]:
    """The intent's text and what comes behind it; ``None`` when ``data`` is another kind of request.

    :class:`InputError` for one of ours that is damaged.
    """
    at = data.find(b"\n" + HEAD, 0, MAX_INTENT + 1) + 1
    if not at:
        return data, None
    match = _HEADER.match(data, at)
    if match is None:
        raise InputError("the request to commit /etc is damaged: its head")
    sizes = [int(digits) for digits in match.groups()[1:]]
    begin = match.end()
    if max(sizes[:2]) > MAX_IMAGE or sizes[2] > MAX_SIGNED_BYTES or len(data) != begin + sum(sizes):
        raise InputError("the request to commit /etc is damaged: its length")
    image, before = data[begin : begin + sizes[0]], data[begin + sizes[0] : begin + sizes[0] + sizes[1]]
    verb = next(verb for verb in get_args(Verb) if verb.encode() == match[1])
    return data[:at], Carried(verb, image, before, data[len(data) - sizes[2] :] if sizes[2] else b"")
