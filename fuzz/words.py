# SPDX-License-Identifier: Apache-2.0
"""Target: what the owner says, as machines read it. Whatever is accepted has one spelling, and means the same to every reader.

Intents are asked of the parser in C as well, in batches: both accept the same, and read the same values.
"""

from __future__ import annotations

import contextlib
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

from freehold import run
from freehold.device import strict
from freehold.errors import InputError
from freehold.keys import formats
from freehold.lock import floor, intent, memory, requests
from fuzz.engine import Found, must
from fuzz.targets import EARLY, REPOSITORY

WORDS = (
    b"freehold-intent 1\n", b"machine ", b"serial ", b"lock ", b"locked\n", b"tier all-code\n", b"since ", b"floor ",
    b"strict yes\n", b"requests ", b"config ", b"emergency-ssh ", b"0123456789abcdef" * 2, b"9007199254740992",
    b"9007199254740993", b"signature ", b"freehold-requests 1\n", b"karg append ", b"karg delete ", b"karg replace ",
    b"freehold.image=", b"package ", b"file ", b"init=/bin/sh", b"freehold_", b"--", b"freehold-floor 1\nraised ",
    b"freehold-remembered 1\nlock ", b"freehold-revoked 1\n", b"freehold-signature 1\nsignature ", b"certificate ",
    b"\xff", b"\xc2\x85", b"\r",
)  # fmt: skip
#: So many intents are handed to the parser in C at once.
BATCH = 4096
_SOURCES = ("intent", "sha256", "keyring", "firmware", "revoked", "signatures", "util")

_waiting: list[bytes] = []
_parser: list[Path] = []
_cleanup = contextlib.ExitStack()


def _intent(data: bytes) -> object:
    _waiting.append(data)
    if len(_waiting) >= BATCH:
        compare()
    it = intent.parse(data)
    must(intent.parse(intent.serialize(it)) == it, "the canonical form says the same")
    must(it.lock in ("open", "audit", "locked") and 1 <= it.serial <= 1 << 53, "an intent's values are of their kinds")
    return it.lock, it.tier, it.scripts, it.strict, it.floor is None


def _split(data: bytes) -> object:
    text, signature = intent.split(data)
    must(intent.join(text, signature) == data, "a signed intent has one spelling")
    return len(signature) > 1


def _requests(data: bytes) -> object:
    listed = requests.parse(data)
    must(requests.serialize(listed) == data, "a list of requests has one spelling")
    for one in listed.kargs:
        must(one.value.isascii() and one.value.isprintable() and not set(one.value) & set(" \"'"), "an argument is one argument")
        must(not one.value.replace("-", "_").startswith("freehold."), "the sealed tree is not chosen by a request")
    line = requests.command_line("freehold.image=ab quiet", listed.kargs)
    must(line.split(" ")[0] == "freehold.image=ab", "the sealed tree stays first")
    must("--" not in line.split(" "), "nothing is handed to the first program")
    return len(listed.kargs) > 0, len(listed.packages) > 0, len(listed.files) > 0


def _floor(data: bytes) -> object:
    copy = floor.parse(data)
    if copy is not None:
        must(f"freehold-floor 1\nraised {copy.raised}\nserial {copy.serial}\n".encode() == data, "the floor has one spelling")
    must(0 <= floor.release_of(data.decode("latin-1")) <= 1 << 53, "a release's number is one")
    return copy is not None


def _memory(data: bytes) -> object:
    kept = memory.parse(data)
    if kept is not None:
        text = f"freehold-remembered 1\nlock {kept.lock}\nserial {kept.serial}\ntext {kept.text.hex()}\n"
        must(text.encode() == data, "what is remembered has one spelling")
    return kept is not None and kept.lock


def _strict(data: bytes) -> object:
    if data.startswith(b"{"):
        strict.parse_answer(data)
        return "answer"
    must(strict.pack(strict.unpack(data)) == data, "a request file has one spelling")
    return "ask"


def _revoked(data: bytes) -> object:
    must(formats.serialize_revoked(formats.parse_revoked(data)) == data, "a list of revocations has one spelling")
    return True


def _signature(data: bytes) -> object:
    must(formats.serialize_signature(formats.parse_signature(data)) == data, "a signature file has one spelling")
    return True


READERS: tuple[Callable[[bytes], object], ...] = (
    _intent, _intent, _split, _requests, _floor, _memory, _strict, _revoked, _signature,
)  # fmt: skip


def one(data: bytes) -> object:
    """The first byte says which reader."""
    if not data:
        return None
    which = data[0] % len(READERS)
    try:
        return which, READERS[which](data[1:])
    except InputError as error:
        return which, min(len(error.faults), 4)
    except ValueError:
        must(READERS[which] in (_revoked, _signature), "only these refuse by a ValueError")
        return which, "refused"


def _expected(data: bytes) -> str:
    try:
        it = intent.parse(data)
    except InputError:
        return "refused"
    values = (
        it.machine, it.serial, it.lock, it.tier, it.since, it.config or "-", it.emergency_ssh or "-",
        "-" if it.floor is None else it.floor, it.requests or "-", int(it.strict), it.scripts,
    )  # fmt: skip
    return " ".join(map(str, values))


def compare() -> None:
    """Ask the parser in C about the waiting intents; :class:`Found` when it says anything else."""
    inputs, _waiting[:] = list(_waiting), []
    if not _parser:
        directory = Path(_cleanup.enter_context(tempfile.TemporaryDirectory(prefix="freehold-fuzz-")))
        sources = [REPOSITORY / "tests/unit/c/intent_main.c", *(EARLY / f"{name}.c" for name in _SOURCES)]
        run.run(["gcc", "-std=gnu17", "-O1", f"-I{EARLY}", "-o", directory / "intent", *sources])
        _parser.append(directory / "intent")
    answers = run.run(_parser, stdin=b"".join(struct.pack("<I", len(data)) + data for data in inputs)).text.splitlines()
    must(len(answers) == len(inputs), "the parser in C answers everything")
    for data, answer in zip(inputs, answers, strict=True):
        if answer.partition(" ")[2] != _expected(data):
            raise Found(f"C says {answer.partition(' ')[2]!r}, Python {_expected(data)!r}", b"\0" + data)


def end() -> None:
    """Nothing is left waiting."""
    compare()
    _parser.clear()
    _cleanup.close()
