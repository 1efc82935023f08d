# SPDX-License-Identifier: Apache-2.0
"""Units whose commands are shell text → units that start a sealed script: for images that are locked in tier S2.

There a privileged shell starts for a script only (docs/guard.md). ``ExecStart=/bin/sh -c 'TEXT'`` becomes a script with TEXT in
it and ``ExecStart=`` that script. The words of a line are read as systemd.service(5) and systemd.syntax(7) say; what that could
make into something else, or what a script could not be, is a fault. Nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from freehold.errors import InputError

#: Below /usr of the image, one directory per unit file.
PLACE = "/usr/lib/freehold/unit-scripts"
UNITS = ("usr/lib/systemd/system", "etc/systemd/system")
_COMMAND = re.compile(r"(?:Exec(?:Condition|Start|StartPre|StartPost|Reload|Stop|StopPre|StopPost|ReloadPost))")
_INTERPRETER = re.compile(
    r"(?:(?:/usr)?/bin/)?(sh|dash|bash|ksh|mksh|zsh|yash|fish|(?:python|perl|ruby|lua|node|php|tclsh)[0-9.]*)"
)
_SHELLS = ("sh", "dash", "bash")
#: Options that mean the same on a script's first line, before the letter that brings the text.
_OPTIONS = re.compile(r"-([efux]*)c")
_PLAIN_OPTIONS = re.compile(r"-[efux]+")
_CODE = re.compile(r"-[A-Za-z]*[ceE]")
_SPACE = " \t\n\r"
_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\", '"': '"', "'": "'", "s": " "}
_NUMBERS = {"x": (2, 16), "u": (4, 16), "U": (8, 16)}
_OCTAL = 3
_LINE = re.compile(r"[^\r\n\0]*(?:\r\n|\n\r|[\r\n\0])|[^\r\n\0]+")
_KINDS = (".service", ".socket", ".mount", ".swap", ".conf")


class _FormError(Exception):
    """Why a line cannot be converted."""


@dataclass(frozen=True)
class Converted:
    """A unit's new text, and its scripts by file name."""

    text: str
    scripts: dict[str, str]


@dataclass(frozen=True)
class _Word:
    """A word after unquoting, and where it is in the line."""

    value: str
    start: int
    end: int


def _escape(line: str, at: int) -> tuple[str, int]:
    """What the escape at ``at`` (its backslash) stands for, and where it ends."""
    kind = line[at + 1 : at + 2]
    if kind in _ESCAPES and kind:
        return _ESCAPES[kind], at + 2
    if kind in _NUMBERS and kind:
        length, base = _NUMBERS[kind]
        digits = line[at + 2 : at + 2 + length]
        end = at + 2 + length
    else:
        length, base = _OCTAL, 8
        digits = line[at + 1 : at + 1 + length]
        end = at + 1 + length
    if len(digits) != length or not re.fullmatch(r"[0-9A-Fa-f]+" if kind in _NUMBERS else r"[0-7]+", digits):
        raise _FormError("an escape that systemd does not know")
    number = int(digits, base)
    # By bytes: what is not ASCII would be half a character.
    if not 0 < number < (0x80 if kind not in ("u", "U") else 0xD800):
        raise _FormError("an escape for a byte that is no character")
    return chr(number), end


def _word(line: str, at: int) -> _Word | None:
    """The next word from ``at`` on; ``None`` at the end."""
    while at < len(line) and line[at] in _SPACE:
        at += 1
    if at == len(line):
        return None
    quote, value, start = "", [], at
    while at < len(line):
        char = line[at]
        if char == "\\":
            text, at = _escape(line, at)
            value.append(text)
            continue
        if quote:
            if char == quote:
                quote = ""
            else:
                value.append(char)
        elif char in "'\"":
            quote = char
        elif char in _SPACE:
            break
        else:
            value.append(char)
        at += 1
    if quote:
        raise _FormError("a quotation that does not end")
    return _Word("".join(value), start, at)


def _words(line: str) -> Iterator[_Word]:
    at = 0
    while (word := _word(line, at)) is not None:
        yield word
        at = word.end


def _literal(word: str, *, expands: bool) -> str:
    """The word as the program gets it, where that is known beforehand."""
    if re.search(r"%(?!%)", word.replace("%%", "")):
        raise _FormError("a specifier (%) in the text")
    word = word.replace("%%", "%")
    if not expands:
        return word
    if re.fullmatch(r"\$(?![${]).*", word, re.DOTALL) or "${" in word.replace("$$", ""):
        raise _FormError("a variable of systemd's ($NAME alone, ${NAME}) in the text")
    return word.replace("$$", "$")


def _command(value: str) -> tuple[str, str, str] | None:
    """(prefix, script, raw arguments) of a command that is shell text; ``None`` for any other."""
    prefix = re.match(r"[@\-:+!|]*", value)
    at = prefix.end() if prefix else 0
    try:
        words = list(_words(value[at:]))
    except _FormError:
        # Not ours to judge, unless a shell is among it.
        if _INTERPRETER.match(value[at:].split(" ", 1)[0].strip("'\"")):
            raise
        return None
    if not words or not (found := _INTERPRETER.fullmatch(words[0].value)):
        for word, following in pairwise(words):
            if _INTERPRETER.fullmatch(word.value) and _CODE.fullmatch(following.value):
                raise _FormError(f"{word.value} {following.value} by way of {words[0].value}")
        return None
    if ("@" in value[:at] or "|" in value[:at]) and any(_CODE.fullmatch(word.value) for word in words):
        raise _FormError("a prefix (@ or |) that gives the shell another name")
    options = []
    for number, word in enumerate(words[1:], start=1):
        if found[1] in _SHELLS and (code := _OPTIONS.fullmatch(word.value)):
            options.append(code[1])
            return value[:at], *_script(value[at:], words, number, found[1], "".join(options), expands=":" not in value[:at])
        if found[1] in _SHELLS and _PLAIN_OPTIONS.fullmatch(word.value):
            options.append(word.value[1:])
            continue
        if _CODE.fullmatch(word.value):
            raise _FormError(f"{found[1]} {word.value}: only sh, dash and bash with -c, -e, -f, -u and -x can be converted")
        return None
    return None


def _script(line: str, words: list[_Word], number: int, shell: str, options: str, *, expands: bool) -> tuple[str, str]:
    """The script, and its arguments as they were written; word ``number`` is the option before the text."""
    if any(line[word.start : word.end] == ";" for word in words):
        raise _FormError("several commands in one line")
    if len(words) <= number + 1:
        raise _FormError("-c without text")
    text = _literal(words[number + 1].value, expands=expands)
    rest = words[number + 2 :]
    # The first argument is the script's own name there; here it is its path.
    if re.search(r"\$\{?0", text):
        raise _FormError("text that asks for its own name ($0)")
    path = words[0].value if words[0].value.startswith("/") else f"/usr/bin/{shell}"
    first = f"#!{path}" + (f" -{options}" if options else "")
    return f"{first}\n{text}\n", line[rest[0].end :] if rest else ""


def place(name: str) -> str:
    """The directory of the scripts of unit ``name``; nothing in it means something to systemd."""
    return f"{PLACE}/{re.sub(r'[^A-Za-z0-9:_./@-]', '_', name)}"


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """Logical lines, as (what stands in the file, what systemd makes of it)."""
    raw, joined = "", ""
    for line in _LINE.findall(text):
        bare = line.rstrip("\r\n\0")
        stripped = bare.lstrip(" \t\r")
        raw += line
        if stripped[:1] in ("#", ";"):
            if not joined:
                yield raw, ""
                raw = ""
            continue
        joined += stripped if joined else bare
        if (len(joined) - len(joined.rstrip("\\"))) % 2:
            joined = f"{joined[:-1]} "
            continue
        yield raw, joined
        raw, joined = "", ""
    if raw:
        yield raw, joined


def convert(name: str, text: str) -> Converted:
    """Unit ``name``'s ``text`` without shell text in its commands. Pure; what is not concerned stays byte for byte.

    Raises :class:`InputError` with every command that cannot be converted.
    """
    made: list[str] = []
    scripts: dict[str, str] = {}
    faults: list[str] = []
    other_root = re.search(r"^\s*Root(?:Directory|Image)\s*=\s*\S", text, re.MULTILINE)
    for raw, line in _lines(text):
        key, equals, value = line.partition("=")
        key = key.strip()
        if not equals or not _COMMAND.fullmatch(key):
            made.append(raw)
            continue
        try:
            found = _command(value.strip(_SPACE))
            if found and other_root:
                raise _FormError("a root directory of the unit's own, where the script would not be")
        except _FormError as fault:
            faults.append(f"{name}: {key}: {fault}")
            found = None
        if found is None:
            made.append(raw)
            continue
        prefix, script, rest = found
        file = f"{key}-{len(scripts) + 1}"
        scripts[file] = script
        made.append(f"{key}={prefix}{place(name)}/{file}{rest}\n")
    if faults:
        raise InputError("units start shell text that cannot be made a script", faults=faults)
    return Converted("".join(made), scripts)


def settle(tree: Path) -> None:
    """Convert the system units of ``tree`` and their drop-ins; those that are masked stay as they are.

    Raises :class:`InputError` naming every unit and command that cannot be converted.
    """
    links = (path for top in UNITS for path in (tree / top).glob("*") if path.is_symlink())
    masked = {path.name for path in links if str(path.readlink()) == "/dev/null"}
    faults: list[str] = []
    for top in UNITS:
        for path in sorted((tree / top).rglob("*")):
            name = str(path.relative_to(tree / top))
            if path.is_symlink() or not path.is_file() or name in masked or path.suffix not in _KINDS:
                continue
            data = path.read_bytes()
            try:
                made = convert(name, data.decode())
            except InputError as error:
                faults += error.faults
                continue
            except UnicodeDecodeError:
                continue
            if made.scripts:
                path.write_text(made.text)
            for file, script in made.scripts.items():
                target = tree / place(name).lstrip("/") / file
                if target.exists():
                    faults.append(f"{name}: {file}: another unit has a script of this name")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(script)
                target.chmod(0o755)
    if faults:
        raise InputError(
            "units start shell text that cannot be made a script", faults=faults,
            hint="mask the unit ([units] mask), or replace it ([[files]]) with one that starts a script",
        )  # fmt: skip
