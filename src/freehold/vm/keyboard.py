# SPDX-License-Identifier: Apache-2.0
"""Text and key names to QEMU key codes (a US keyboard). Pure."""

from __future__ import annotations

import string

from freehold.errors import InputError

#: Longest text that is typed at once; a keyboard is slow, larger texts are files.
MAX_TEXT = 4096

_PLAIN = {
    " ": "spc", "\n": "ret", "\t": "tab", "-": "minus", "=": "equal", "[": "bracket_left",
    "]": "bracket_right", ";": "semicolon", "'": "apostrophe", "`": "grave_accent", "\\": "backslash",
    ",": "comma", ".": "dot", "/": "slash",
}  # fmt: skip
_SHIFTED = {
    "!": "1", "@": "2", "#": "3", "$": "4", "%": "5", "^": "6", "&": "7", "*": "8", "(": "9", ")": "0",
    "_": "minus", "+": "equal", "{": "bracket_left", "}": "bracket_right", ":": "semicolon",
    '"': "apostrophe", "~": "grave_accent", "|": "backslash", "<": "comma", ">": "dot", "?": "slash",
}  # fmt: skip
#: What people call keys, and what QEMU calls them.
_ALIASES = {
    "control": "ctrl", "del": "delete", "ins": "insert", "escape": "esc", "enter": "ret", "return": "ret",
    "space": "spc", "win": "meta_l", "super": "meta_l", "meta": "meta_l", "altgr": "alt_r",
    "pageup": "pgup", "pagedown": "pgdn", "capslock": "caps_lock", "backspc": "backspace",
    "printscreen": "print", "plus": "kp_add",
}  # fmt: skip
_NAMES = frozenset(
    [
        *string.ascii_lowercase,
        *string.digits,
        *(f"f{number}" for number in range(1, 13)),
        *_PLAIN.values(),
        *(f"kp_{number}" for number in range(10)),
        "kp_add", "kp_subtract", "kp_multiply", "kp_divide", "kp_enter", "kp_decimal",
        "ctrl", "ctrl_r", "alt", "alt_r", "shift", "shift_r", "meta_l", "meta_r", "menu",
        "esc", "backspace", "delete", "insert", "home", "end", "pgup", "pgdn", "up", "down", "left", "right",
        "caps_lock", "num_lock", "scroll_lock", "print", "sysrq", "pause", "power", "sleep", "wake",
    ]
)  # fmt: skip


def chord(text: str) -> tuple[str, ...]:
    """Key codes of a combination such as ``ctrl-alt-delete``, in the order they go down.

    Raises :class:`InputError` for a key that a keyboard does not have.
    """
    codes = []
    for part in text.lower().split("-"):
        code = _ALIASES.get(part, part)
        if code not in _NAMES:
            raise InputError(
                f"no key is called {part!r}", hint="for example: ctrl-alt-delete, alt-f2, esc, enter, sysrq"
            )
        codes.append(code)
    return tuple(codes)


def strokes(text: str) -> list[tuple[str, ...]]:
    """The key presses that type ``text`` on a US keyboard; newline is Enter, tab is Tab.

    Raises :class:`InputError` for a character that a US keyboard cannot type, and for texts over
    ``MAX_TEXT`` characters.
    """
    if len(text) > MAX_TEXT:
        raise InputError(
            f"the text has {len(text):,} characters, at most {MAX_TEXT:,} can be typed", hint="copy a file instead"
        )
    pressed: list[tuple[str, ...]] = []
    for position, character in enumerate(text):
        if character in _PLAIN:
            pressed.append((_PLAIN[character],))
        elif character in _SHIFTED:
            pressed.append(("shift", _SHIFTED[character]))
        elif character in string.ascii_lowercase or character in string.digits:
            pressed.append((character,))
        elif character in string.ascii_uppercase:
            pressed.append(("shift", character.lower()))
        else:
            raise InputError(f"character {position + 1}, {character!r}, is not on a US keyboard")
    return pressed
