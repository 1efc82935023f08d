# SPDX-License-Identifier: Apache-2.0
"""The fuzzer for targets in Python, with the command line of the one in C: ``python -m fuzz.worker TARGET CORPUS CURRENT [SECONDS
SEED]``.

A target's module has ``one(data)``, which raises for a finding whatever its reader does not raise by contract
(:class:`Found` when something was accepted that must not be), and returns what kind of answer it was; ``WORDS``, which its
formats are made of; and perhaps ``end()``, which looks at many inputs at once. An input that reaches a line, or an answer,
for the first time joins the corpus.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import random
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from fuzz.targets import BY_NAME, PACKAGE

MOST_BYTES = 1 << 18
HANG_SECONDS = 10.0
_UNDER_TEST = f"{PACKAGE}/"
_DIGITS = b"0123456789abcdef\n\t :/-+=\"{}[],"
_TOKEN = re.compile(rb"[0-9A-Za-z]+")
_EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x20, 0x0A)
#: What a value in JSON may not be, more often than not.
_ODD: tuple[object, ...] = (
    "", "\n", "a\nb", ":", "\0", "\ud800", "é\u2028", "../x", "root", "x" * 300, 0, -1, 1, 999, 1000, 59_999, 60_000, 65_534,
    100_000, 1 << 32, 1 << 53, 1 << 64, 10**4000, 0.5, True, False, None, [], {}, [[]], {"a": 1},
)  # fmt: skip


class Found(Exception):  # noqa: N818 (it is what was found)
    """Something was accepted that must not be. ``data``: the input, where it is not the one at hand."""

    def __init__(self, rule: str, data: bytes | None = None) -> None:
        super().__init__(rule)
        self.data = data


def must(holds: object, rule: str) -> None:
    """What has to hold of everything that is accepted; :class:`Found` when it does not."""
    if not holds:
        raise Found(rule)


class Reached:
    """The lines of Freehold that were reached, and which answers were given."""

    def __init__(self) -> None:
        self.known: set[object] = set()
        self.fresh = False

    def trace(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        """For :func:`sys.settrace`: code of others is not looked at."""
        return self.line if frame.f_code.co_filename.startswith(_UNDER_TEST) else None

    def line(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        """One line more."""
        self.note((frame.f_code.co_filename, frame.f_lineno))
        return self.line

    def note(self, what: object) -> None:
        """Something was reached."""
        if what not in self.known:
            self.known.add(what)
            self.fresh = True


def mutate(data: bytes, dice: random.Random, words: Sequence[bytes], others: Sequence[bytes]) -> bytes:
    """One small change."""
    at = dice.randrange(len(data) + 1)
    some = min(len(data) - at, dice.randint(1, 64))
    match dice.randrange(11):
        case 0 if data:
            at = dice.randrange(len(data))
            return data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :]
        case 1:
            return data[:at] + bytes([dice.choice(_DIGITS)]) + data[at + 1 :]
        case 2:
            return data[:at] + data[at + some :]
        case 3:
            return data[:at] + bytes([dice.choice(_EDGES)]) + data[at:]
        case 4 | 5 if words:
            return data[:at] + dice.choice(words) + data[at + dice.choice((0, some)) :]
        case 6:
            return data[: at + some] + data[at : at + some] + data[at + some :]
        case 9 if words:
            token = [one for one in _TOKEN.finditer(data, max(0, at - 100), at + 100) if one.end() > at]
            begin, end = token[0].span() if token else (at, at)
            return data[:begin] + dice.choice(words) + data[end:]
        case 7:
            other = dice.choice(others)
            return data[:at] + other[dice.randrange(len(other) + 1) :]
        case 8 if len(data) - at >= 4:
            order = dice.choice(("little", "big"))
            number = int.from_bytes(data[at : at + 4], order) + dice.randint(-16, 16)  # type: ignore[arg-type]
            return data[:at] + (number % (1 << 32)).to_bytes(4, order) + data[at + 4 :]  # type: ignore[arg-type]
        case _:
            lines = data.split(b"\n")
            one, two = dice.randrange(len(lines)), dice.randrange(len(lines))
            match dice.randrange(3):
                case 0:
                    lines[one], lines[two] = lines[two], lines[one]
                case 1:
                    lines.insert(two, lines[one])
                case _:
                    del lines[one]
            return b"\n".join(lines)


def mutate_json(value: object, dice: random.Random, words: Sequence[bytes]) -> object:
    """``value`` with something changed, at a place that is drawn."""
    if isinstance(value, dict) and value and dice.random() < 0.9:
        key = dice.choice(list(value))
        made = dict(value)
        if (what := dice.random()) < 0.8:
            made[key] = mutate_json(value[key], dice, words)
        elif what < 0.9:
            del made[key]
        else:
            made[dice.choice(("x", key + "x", dice.choice(list(value))))] = value[key]
        return made
    if isinstance(value, list) and value and dice.random() < 0.9:
        at = dice.randrange(len(value))
        if (what := dice.random()) < 0.8:
            return [*value[:at], mutate_json(value[at], dice, words), *value[at + 1 :]]
        return [*value, value[at]] if what < 0.9 else value[:at] + value[at + 1 :]
    if isinstance(value, str) and dice.random() < 0.35:
        return dice.choice(words).decode(errors="replace")
    if isinstance(value, str) and dice.random() < 0.7:
        return mutate(value.encode(errors="surrogatepass"), dice, words, [b""]).decode(errors="replace")
    if isinstance(value, int) and not isinstance(value, bool) and dice.random() < 0.5:
        return value + dice.randint(-3, 3)
    return dice.choice(_ODD)


def change(data: bytes, dice: random.Random, words: Sequence[bytes], others: Sequence[bytes]) -> bytes:
    """Some changes, by structure where the input has one that is known."""
    start = data.find(b"{", 0, 2)
    if start >= 0 and dice.random() < 0.6:
        try:
            value = json.loads(data[start:])
        except (ValueError, RecursionError):
            value = None
        if value is not None:
            for _ in range(dice.randint(1, 3)):
                value = mutate_json(value, dice, words)
            canonical = dice.random() < 0.5
            try:
                text = json.dumps(
                    value, sort_keys=True, separators=(",", ":") if canonical else None, ensure_ascii=dice.random() < 0.5
                )
                return data[:start] + text.encode(errors="surrogatepass") + b"\n" * canonical
            except ValueError:  # a number of thousands of digits
                return data
    for _ in range(dice.randint(1, 5)):
        data = mutate(data, dice, words, others)
    return data[:MOST_BYTES]


class Session:
    """One run of a target's module, which is a target's by what it has."""

    def __init__(self, module: Any, corpus: Path, current: Path) -> None:  # noqa: ANN401 (see above)
        self.module = module
        self.corpus = corpus
        self.current = current
        self.reached = Reached()
        self.inputs: list[bytes] = []
        self.runs = 0
        self.file = current.open("wb+", buffering=0)

    def hold(self, data: bytes) -> None:
        """Leave the input where it is found whatever ends us."""
        self.file.seek(0)
        self.file.write(len(data).to_bytes(4, "little") + data)

    def one(self, data: bytes) -> bool:
        """Run one input; whether it did anything new."""
        self.hold(data)
        self.runs += 1
        self.reached.fresh = False
        if self.runs % 64 == 0:
            faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        sys.settrace(self.reached.trace)
        try:
            answer = self.module.one(data)
        except BaseException:
            # Whoever reports it may live on.
            faulthandler.cancel_dump_traceback_later()
            raise
        finally:
            sys.settrace(None)
        self.reached.note(answer)
        return self.reached.fresh

    def load(self) -> None:
        """Run what is kept."""
        for path in sorted(self.corpus.iterdir()):
            data = path.read_bytes()
            self.one(data)
            self.inputs.append(data)

    def search(self, seconds: float, dice: random.Random) -> None:
        """Look for something new."""
        until = time.monotonic() + seconds
        words = self.module.WORDS
        while time.monotonic() < until:
            new = self.inputs[-16:] if dice.random() < 0.3 else self.inputs
            data = change(dice.choice(new), dice, words, self.inputs)
            if self.one(data):
                self.inputs.append(data)
                (self.corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)

    def end(self) -> None:
        """What the target does at the end."""
        faulthandler.cancel_dump_traceback_later()
        if hasattr(self.module, "end"):
            self.module.end()


def main(arguments: Sequence[str]) -> int:
    """Fuzz; the last line that is printed is JSON, as that of the engine in C."""
    name, corpus, current, *rest = arguments
    started = time.monotonic()
    session = Session(BY_NAME[name].module(), Path(corpus), Path(current))
    try:
        session.load()
        if rest:
            session.search(float(rest[0]), random.Random(int(rest[1])))  # noqa: S311 (no secret)
        session.end()
    except Found as found:
        if found.data is not None:
            session.hold(found.data)
        raise
    print(json.dumps({
        "runs": session.runs, "corpus": len(session.inputs), "blocks": len(session.reached.known),
        "seconds": round(time.monotonic() - started, 1),
    }))  # fmt: skip
    return 0
