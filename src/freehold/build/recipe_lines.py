# SPDX-License-Identifier: Apache-2.0
"""Which line of a TOML text a key stands on. Pure.

``tomllib`` gives values without positions. This walks over a text that ``tomllib`` has accepted
already, so it may be lax: it only knows headers, keys, strings, brackets and comments. Where it
has no answer, the nearest enclosing key's line is the answer.
"""

from __future__ import annotations

import re

KeyPath = tuple[str | int, ...]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SPACE = " \t"


def show(path: KeyPath) -> str:
    """``("users", 0, "uid")`` as ``users[0].uid``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


class LineIndex:
    """Line numbers (from 1) of the keys, tables and array elements of one TOML text."""

    def __init__(self, text: str) -> None:
        self._text = text.replace("\r\n", "\n")
        self._at = 0
        self._lines: dict[KeyPath, int] = {}
        self._arrays: dict[KeyPath, int] = {}
        self._scan()

    def line(self, path: KeyPath) -> int:
        """The line of ``path``, or of its nearest known parent; 1 when there is none."""
        for length in range(len(path), 0, -1):
            if path[:length] in self._lines:
                return self._lines[path[:length]]
        return 1

    def _number(self) -> int:
        return self._text.count("\n", 0, self._at) + 1

    def _peek(self, length: int = 1) -> str:
        return self._text[self._at : self._at + length]

    def _scan(self) -> None:
        table: KeyPath = ()
        while self._at < len(self._text):
            char = self._peek()
            if char in " \t\n":
                self._at += 1
            elif char == "#":
                self._to_line_end()
            elif char == "[":
                table = self._header()
            else:
                path = (*table, *self._keys())
                for length in range(len(table) + 1, len(path) + 1):
                    self._lines.setdefault(path[:length], self._number())
                self._at += 1  # the equals sign
                self._value(path)

    def _to_line_end(self) -> None:
        end = self._text.find("\n", self._at)
        self._at = len(self._text) if end < 0 else end

    def _header(self) -> KeyPath:
        number = self._number()
        many = self._peek(2) == "[["
        self._at += 2 if many else 1
        keys = self._keys()
        self._to_line_end()
        path: KeyPath = ()
        for position, key in enumerate(keys):
            path = (*path, key)
            if many and position == len(keys) - 1:
                self._arrays[path] = self._arrays.get(path, -1) + 1
            self._lines.setdefault(path, number)
            if path in self._arrays:
                path = (*path, self._arrays[path])
                self._lines.setdefault(path, number)
        return path

    def _keys(self) -> list[str]:
        """A dotted key; stops at the first character that is not part of it."""
        keys: list[str] = []
        while self._at < len(self._text):
            char = self._peek()
            bare = _BARE.match(self._text, self._at)
            if char in _SPACE or char == ".":
                self._at += 1
            elif bare:
                keys.append(bare.group())
                self._at = bare.end()
            elif char in "\"'":
                start = self._at
                self._string()
                keys.append(self._text[start + 1 : self._at - 1])
            else:
                break
        return keys

    def _string(self) -> None:
        """Skip one string of any of TOML's four kinds."""
        quote = self._peek()
        long = self._peek(3) == quote * 3
        end = quote * 3 if long else quote
        self._at += len(end)
        while self._at < len(self._text):
            if self._peek() == "\\" and quote == '"':
                self._at += 2
            elif self._peek(len(end)) == end:
                self._at += len(end)
                # A long string may end in up to two quotes of its own before the closing three.
                while long and self._peek() == quote:
                    self._at += 1
                return
            else:
                self._at += 1

    def _value(self, path: KeyPath) -> None:
        """Skip a value up to the end of its line; note where the elements of an outer array stand."""
        depth, element, noted = 0, 0, False
        array = False
        while self._at < len(self._text):
            char = self._peek()
            if char == "\n" and depth == 0:
                return
            if char == "#":
                self._to_line_end()
                continue
            if depth == 0 and char == "[":
                array = True
            elif array and depth == 1 and char == ",":
                element, noted = element + 1, False
            elif array and depth == 1 and not noted and char not in " \t\n]":
                self._lines[(*path, element)] = self._number()
                noted = True
            if char in "\"'":
                self._string()
                continue
            depth += (char in "[{") - (char in "]}")
            self._at += 1
