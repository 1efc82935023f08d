# SPDX-License-Identifier: Apache-2.0
"""What a recipe may say: one declarative table of keys, and the check of a document against it. Pure.

The check goes on after a fault and reports all of them, each with the path of its key.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from freehold.build.recipe_lines import KeyPath

SUITES = ("trixie",)
POCKETS = ("security", "updates", "backports")
ARCHITECTURES = ("amd64",)
#: Of scripts under the lock; in S2 units that are shell text become scripts.
TIERS = ("S1", "S2")
#: Where Ignition 2.14 can find a configuration; "none" leaves Ignition out.
PLATFORMS = (
    "none", "aliyun", "aws", "azure", "azurestack", "brightbox", "cloudstack", "digitalocean", "exoscale", "file",
    "gcp", "ibmcloud", "kubevirt", "metal", "nutanix", "openstack", "packet", "powervs", "qemu", "virtualbox", "vmware",
    "vultr", "zvm",
)  # fmt: skip
#: Command line keys that the builder sets itself, or that would undo the verified boot.
RESERVED_ARGUMENTS = ("root", "rootfstype", "rootflags", "init", "rdinit", "rd.systemd.unit", "lsm", "lockdown")

NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
#: The boot menu sorts by it, and the rescue entry comes last: freehold.update.rescue_entry.SORT_KEY.
SYSTEM_NAME = re.compile(r"(?!zz)[a-z][a-z0-9-]{0,31}")
VERSION = re.compile(r"(?!(?i:rescue)\Z)(?:[0-9A-Za-z._]|\{date\}|\{serial\}){1,64}")
PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]*[a-z0-9+.](?:=[A-Za-z0-9.+:~-]+|/[a-z][a-z0-9-]*)?")
ACCOUNT = re.compile(r"[a-z_][a-z0-9_-]{0,30}")
UNIT = re.compile(
    r"[A-Za-z0-9:_.\\@-]{1,240}\.(?:service|socket|timer|path|target|mount|automount|swap|slice|scope|device)"
)
CONSOLE = re.compile(r"[A-Za-z0-9]+(?:,[a-z0-9]+)?")
LOCALE = re.compile(r"[A-Za-z][A-Za-z0-9_.@-]*")
HOST_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
OWNER = re.compile(r"[a-z_][a-z0-9_-]{0,30}:[a-z_][a-z0-9_-]{0,30}")
URL = re.compile(r"https?://[^\s/]+\S*/?")

Check = Callable[[object], str | None]


@dataclass(frozen=True)
class Key:
    """One value: its TOML ``type`` and what else must hold (``check`` says what is wrong, or None)."""

    type: str
    about: str
    check: Check = lambda _value: None
    required: bool = False


@dataclass(frozen=True)
class Table:
    """A table (``many``: an array of tables) with exactly these ``keys``."""

    keys: Mapping[str, Key | Table]
    about: str
    many: bool = False


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _matches(pattern: re.Pattern[str], what: str) -> Check:
    return lambda value: None if pattern.fullmatch(_text(value)) else f"{value!r} is not {what}"


def _one_of(choices: tuple[str, ...] | list[str]) -> Check:
    def check(value: object) -> str | None:
        if value in choices:
            return None
        return f"{value!r} is not one of: {', '.join(choices)}{suggest(_text(value), choices)}"

    return check


def _between(low: int, high: int) -> Check:
    return lambda value: None if isinstance(value, int) and low <= value <= high else f"must be {low} to {high}"


def suggest(word: str, choices: tuple[str, ...] | list[str]) -> str:
    """``; did you mean …?`` when one of ``choices`` is close to ``word``, else nothing."""
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def absolute(value: object) -> str | None:
    """What is wrong with ``value`` as an absolute, normal path."""
    text = _text(value)
    if not text.startswith("/") or text.startswith("//") or str(PurePosixPath(text)) != text or text == "/":
        return f"{value!r} is not an absolute path in its shortest form"
    if ".." in text.split("/") or not text.isprintable() or len(text) > 1024:
        return f"{value!r} may not contain '..' or unprintable characters"
    return None


def _file_path(value: object) -> str | None:
    if _text(value).split("/")[1:2] not in (["usr"], ["etc"]) or _text(value).count("/") < 2:
        return f"{value!r} must lie below /usr or /etc"
    return absolute(value)


def _relative(value: object) -> str | None:
    text = _text(value)
    bad = not text or text.startswith("/") or not text.isprintable()
    return f"{value!r} must be a path relative to the recipe" if bad else None


def _mode(value: object) -> str | None:
    good = isinstance(value, int) and 0 <= value <= 0o777
    return None if good else "must be 0o000 to 0o777 (no set-uid, set-gid, sticky)"


def _argument(value: object) -> str | None:
    text = _text(value)
    if not text or not text.isascii() or not text.isprintable() or any(c in text for c in " \"'"):
        return f"{value!r} is not one kernel argument (no spaces, no quotes)"
    name = text.partition("=")[0]
    if name in RESERVED_ARGUMENTS or name.startswith("freehold."):
        return f"{name!r} is set by the builder"
    return None


def _var_pattern(value: object) -> str | None:
    text = _text(value)
    if not text.startswith("var/") or ".." in text.split("/") or not text.isprintable() or text.endswith("/"):
        return f"{value!r} is not a pattern of paths below var/ (as var/lib/thing or var/lib/thing/**)"
    return None


def _epoch(value: object) -> str | None:
    good = value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32)
    return None if good else 'must be "auto" or seconds since 1970'


def _no_line_break(value: object) -> str | None:
    return None if _text(value).isprintable() else "must be one printable line"


def _gecos(value: object) -> str | None:
    return "must be one printable line without ':' or '\"'" if {":", '"'} & set(_text(value)) else _no_line_break(value)


_PATTERNS = Key("strings", "path patterns below var/", _var_pattern)
_UNITS = Key("strings", "unit names", _matches(UNIT, "a unit name (as ssh.service)"))
_CERTIFICATES = Key("strings", "certificate files (PEM or DER), relative to the recipe", _relative)
_ACCOUNT = _matches(ACCOUNT, "a user or group name")

SCHEMA = Table(
    about="A recipe",
    keys={
        "name": Key("string", "name of the system", _matches(SYSTEM_NAME, "a name (a-z, 0-9, -; not zz…)"), required=True),
        "description": Key("string", "one line for people", _no_line_break),
        "inherit": Key("string", "another recipe to start from", _relative),
        "version": Key(
            "string", "a version, or a pattern with {date} and {serial}",
            _matches(VERSION, "a version (letters, digits, '.', '_', {date}, {serial})"),
        ),
        "epoch": Key("integer or string", 'time stamp of everything built: seconds, or "auto"', _epoch),
        "suite": Key("string", "Debian suite", _one_of(SUITES)),
        "pockets": Key("strings", "the suite's update pockets", _one_of(POCKETS)),
        "architecture": Key("string", "Debian architecture", _one_of(ARCHITECTURES)),
        "packages": Key("strings", "packages", _matches(PACKAGE, "a package name (name or name=version)")),
        "without": Key("strings", "inherited packages to leave out", _matches(PACKAGE, "a package name")),
        "kernel": Key("string", "kernel package", _matches(PACKAGE, "a package name")),
        "recommends": Key("boolean", "also install what packages recommend"),
        "users": Table(
            about="Accounts in the image", many=True,
            keys={
                "name": Key("string", "login name", _ACCOUNT, required=True),
                "uid": Key("integer", "user and group id", _between(1000, 59999)),
                "groups": Key("strings", "further groups", _ACCOUNT),
                "shell": Key("string", "login shell", absolute),
                "home": Key("string", "home directory", absolute),
                "gecos": Key("string", "full name", _gecos),
            },
        ),
        "files": Table(
            about="Files that replace or add to what packages ship", many=True,
            keys={
                "path": Key("string", "where, below /usr or /etc", _file_path, required=True),
                "content": Key("string", "the text itself"),
                "source": Key("string", "a file relative to the recipe", _relative),
                "mode": Key("integer", "permissions, as 0o644", _mode),
                "owner": Key("string", "user:group", _matches(OWNER, "user:group")),
            },
        ),
        "modules": Table(
            about="Kernel modules of your own, signed",
            keys={"files": Key("strings", "modules (.ko, .ko.xz), relative to the recipe", _relative)},
        ),
        "units": Table(about="systemd units", keys={"enable": _UNITS, "disable": _UNITS, "mask": _UNITS}),
        "boot": Table(
            about="Boot loader and kernel",
            keys={
                "cmdline": Key("strings", "further kernel arguments", _argument),
                "console": Key(
                    "strings", "consoles, the last one is /dev/console", _matches(CONSOLE, "a console (as ttyS0)")
                ),
                "timeout": Key("integer", "seconds that the menu waits", _between(0, 3600)),
            },
        ),
        "etc": Table(
            about="Plain settings",
            keys={
                "hostname": Key("string", "host name until one is set", _matches(HOST_NAME, "a host name")),
                "locale": Key("string", "LANG of the system", _matches(LOCALE, "a locale (as C.UTF-8)")),
            },
        ),
        "provision": Table(
            about="First boot", keys={"platform": Key("string", "where Ignition looks", _one_of(PLATFORMS))}
        ),
        "update": Table(
            about="Where updates come from",
            keys={
                "url": Key("string", "address of the release server", _matches(URL, "an http or https address")),
                "stream": Key("string", "stream to follow", _matches(NAME, "a stream name (a-z, 0-9, -)")),
            },
        ),
        "keychain": Table(
            about="Certificates built into the image",
            keys={
                "vendor": _CERTIFICATES,
                "owner": _CERTIFICATES,
                "release": _CERTIFICATES,
                "revoked": Key("string", "list of revoked certificates, relative to the recipe", _relative),
            },
        ),
        "var": Table(
            about="What happens to what packages put into /var",
            keys={"tmpfiles": _PATTERNS, "discard": _PATTERNS, "seed": _PATTERNS},
        ),
        "lock": Table(
            about="What the image is built for when it is locked",
            keys={"tier": Key("string", "tier of scripts, S1 or S2", _one_of(TIERS))},
        ),
        "setuid": Table(
            about="Programs that keep their set-uid or set-gid bit",
            keys={"keep": Key("strings", "absolute paths", absolute)},
        ),
    },
)  # fmt: skip

_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "boolean": (bool,), "strings": (list,), "integer or string": (int, str),
}  # fmt: skip
_TOML_NAMES: Mapping[type, str] = {
    str: "a string", int: "an integer", bool: "a boolean", list: "a list", dict: "a table", float: "a float",
}  # fmt: skip


def faults(data: Mapping[str, object], table: Table = SCHEMA, at: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Everything wrong with ``data``: (path of the key, what). Required keys are judged in arrays only,
    because a recipe may inherit its own; :func:`freehold.build.recipe.assemble` judges the whole.
    """
    for name, value in data.items():
        path = (*at, name)
        entry = table.keys.get(name)
        if entry is None:
            yield path, f"unknown key{suggest(name, list(table.keys))}"
        elif isinstance(entry, Table):
            yield from _table_faults(value, entry, path)
        else:
            yield from _key_faults(value, entry, path)
    if at:
        for name, entry in table.keys.items():
            if isinstance(entry, Key) and entry.required and name not in data:
                yield at, f"{name!r} is missing"
    if at[:1] == ("files",) and ("content" in data) == ("source" in data):
        yield at, "needs either 'content' or 'source'"


def _table_faults(value: object, entry: Table, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if not entry.many:
        if isinstance(value, dict):
            yield from faults(value, entry, path)
        else:
            yield path, f"must be a table, is {_kind(value)}"
    elif not isinstance(value, list):
        yield path, f"must be an array of tables ([[{path[-1]}]]), is {_kind(value)}"
    else:
        for index, element in enumerate(value):
            if isinstance(element, dict):
                yield from faults(element, entry, (*path, index))
            else:
                yield (*path, index), f"must be a table, is {_kind(element)}"


def _key_faults(value: object, entry: Key, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    wanted = _TYPES[entry.type]
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        article = "an" if entry.type.startswith("integer") else "a"
        name = "a list of strings" if entry.type == "strings" else f"{article} {entry.type}"
        yield path, f"must be {name}, is {_kind(value)}"
    elif isinstance(value, list):
        seen: set[str] = set()
        for index, element in enumerate(value):
            if not isinstance(element, str):
                yield (*path, index), f"must be a string, is {_kind(element)}"
                continue
            problem = entry.check(element) or (f"{element!r} is listed twice" if element in seen else None)
            seen.add(element)
            if problem:
                yield (*path, index), problem
    else:
        problem = entry.check(value)
        if problem:
            yield path, problem


def _kind(value: object) -> str:
    return _TOML_NAMES.get(type(value), "a date or time")
