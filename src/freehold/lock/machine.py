# SPDX-License-Identifier: Apache-2.0
"""Typed machine state: the few things of /etc that are this machine's own and can be no code. Pure.

Under the lock /etc comes from signed images only. What a machine has beyond them, its host name, its ssh
host keys and its unprivileged accounts, is kept as data in ``/sysroot/state/machine.json``, which root may
write; so every value is checked here, each time it is read, and rendered into files whose format is known.
"""

from __future__ import annotations

from _json import make_scanner

from freehold.errors import InputError
from freehold.lock.covered import HOST_KEY_TYPES

# Every locked boot waits for this module, and each import counts there under emulation. So: no `re`, `json`, `dataclasses`,
# `typing`, none of which the interpreter has at its start; the C half of `json` is built into it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

FORMAT = "freehold-machine-1"
MAX_BYTES = 1 << 20
MAX_ACCOUNTS = 10_000
#: Ordinary people; everything below is the system's, and comes from the signed image only.
FIRST_UID, LAST_UID = 1000, 59999
#: Each account's range of subordinate ids (subuid(5)) lies here.
FIRST_SUBID, LAST_SUBID = 100_000, 0xFFFF_FFFE
SUBIDS = 65536
SHELLS = ("/bin/bash", "/bin/sh", "/bin/dash", "/usr/bin/bash", "/usr/bin/sh", "/usr/sbin/nologin", "/sbin/nologin")

DIGITS = "0123456789"
LOWER = "abcdefghijklmnopqrstuvwxyz"
LETTERS = LOWER + LOWER.upper() + DIGITS
BASE64 = LETTERS + "+/="
KEY_BEGINS, KEY_ENDS = "-----BEGIN OPENSSH PRIVATE KEY-----\n", "-----END OPENSSH PRIVATE KEY-----\n"


def _only(text: str, letters: str, least: int, most: int) -> bool:
    """Whether ``text`` is ``least`` to ``most`` of ``letters``."""
    return least <= len(text) <= most and not text.strip(letters)


def is_host_name(text: str) -> bool:
    """Up to 64 letters, digits, points and dashes; a letter or a digit at both ends."""
    return _only(text, LETTERS + ".-", 1, 64) and text[0] in LETTERS and text[-1] in LETTERS


def is_name(text: str) -> bool:
    """An account's name: up to 31 small letters, digits, ``_`` and ``-``, no digit or dash first."""
    return _only(text, LOWER + DIGITS + "_-", 1, 31) and text[0] in LOWER + "_"


def is_gecos(text: str) -> bool:
    """A full name: up to 200 characters that end neither field nor line.

    Half a character pair, which JSON can say and no file can hold, would end the boot's preparation.
    """
    return len(text) <= 200 and not any(char in ":\n\r\0" or "\ud800" <= char <= "\udfff" for char in text)


def is_home(text: str) -> bool:
    """A directory of its own in /home."""
    prefix = "/var/home/" if text.startswith("/var") else "/home/"
    return text.startswith(prefix) and is_name(text[len(prefix):])


def is_hash(text: str) -> bool:
    """A crypt(5) hash, or no password ("*", "!", "!*"); empty is neither for an account, see :func:`account_faults`."""
    if text in ("", "!", "!!", "*", "!*", "!!*"):
        return True
    method, dollar, rest = text.removeprefix("!")[1:].partition("$")
    crypt = text.removeprefix("!").startswith("$") and dollar == "$"
    return crypt and _only(method, LETTERS, 1, 8) and _only(rest, LETTERS + "./,=$+-", 10, 300)


def is_private_key(text: str) -> bool:
    """An OpenSSH private key: 2 to 200 lines of base64 between its first and last line."""
    if not (text.startswith(KEY_BEGINS) and text.endswith(KEY_ENDS)):
        return False
    *lines, rest = text[len(KEY_BEGINS):-len(KEY_ENDS)].split("\n")
    return not rest and 2 <= len(lines) <= 200 and all(_only(line, BASE64, 1, 80) for line in lines)


def is_public_key(text: str) -> bool:
    """A line of an OpenSSH public key: type, base64, and perhaps a comment of one word."""
    fields = text[:-1].split(" ")
    if not text.endswith("\n") or len(fields) not in (2, 3):
        return False
    family = "ecdsa-" if fields[0].startswith("ecdsa-") else "ssh-"
    kind = fields[0].startswith(family) and _only(fields[0][len(family):], LOWER + DIGITS + "-", 2, 40)
    return kind and _only(fields[1], BASE64, 20, 2000) and _only("".join(fields[2:]), LETTERS + "@._-", 0, 200)


def is_decimal(text: str) -> bool:
    """``str.isdigit`` would take other scripts' digits, and ``int`` fails on some of them and on thousands of ours."""
    return _only(text, DIGITS, 1, 10)


class Record:
    """Named values: compared, printed and listed by their names, in the order of ``__slots__``."""

    __slots__: tuple[str, ...] = ()

    def values(self) -> dict[str, object]:
        """Name → value; records inside as they are."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and isinstance(other, Record) and self.values() == other.values()

    def __hash__(self) -> int:
        return hash(tuple(self.values().values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.values().items())})"


class Account(Record):
    """An unprivileged account: no system range, no groups but its own."""

    __slots__ = ("gecos", "gid", "hash", "home", "name", "shell", "subid", "uid")

    def __init__(self, name: str, uid: int, gid: int, gecos: str, home: str, shell: str, hash: str, subid: int) -> None:
        self.name, self.uid, self.gid, self.gecos = name, uid, gid, gecos
        self.home, self.shell, self.hash, self.subid = home, shell, hash, subid


class HostKey(Record):
    """An ssh host key pair in OpenSSH's own format."""

    __slots__ = ("private", "public", "type")

    def __init__(self, type: str, private: str, public: str) -> None:
        self.type, self.private, self.public = type, private, public


class MachineState(Record):
    """All of it. ``hostname`` empty: the image's."""

    __slots__ = ("accounts", "host_keys", "hostname")

    def __init__(
        self, hostname: str = "", host_keys: tuple[HostKey, ...] = (), accounts: tuple[Account, ...] = ()
    ) -> None:
        self.hostname, self.host_keys, self.accounts = hostname, host_keys, accounts


def account_faults(account: Account) -> list[str]:
    """What keeps this account from being an ordinary one."""
    faults = []
    if not is_name(account.name):
        faults.append("its name")
    if not FIRST_UID <= account.uid <= LAST_UID:
        faults.append(f"uid {account.uid} is the system's")
    if not FIRST_UID <= account.gid <= LAST_UID:
        faults.append(f"gid {account.gid} is the system's")
    if not is_gecos(account.gecos):
        faults.append("its full name")
    if not is_home(account.home):
        faults.append("its home is not below /home")
    if account.shell not in SHELLS:
        faults.append(f"shell {account.shell}")
    if not account.hash or not is_hash(account.hash):
        faults.append("its password field")
    if account.subid and not FIRST_SUBID <= account.subid <= LAST_SUBID - SUBIDS:
        faults.append("its subordinate ids")
    return faults


def check(state: MachineState) -> tuple[MachineState, list[str]]:
    """The believable part of ``state``, and a line for everything that was left out."""
    dropped: list[str] = []
    hostname = state.hostname
    if hostname and not is_host_name(hostname):
        dropped.append("host name: not a host name")
        hostname = ""
    keys: dict[str, HostKey] = {}
    for key in state.host_keys:
        good = key.type in HOST_KEY_TYPES and is_private_key(key.private) and is_public_key(key.public)
        if good and key.type not in keys:
            keys[key.type] = key
        else:
            dropped.append(f"ssh host key {key.type[:20]!r}: not a key")
    accounts: list[Account] = []
    names: set[str] = set()
    numbers: set[int] = set()
    groups: set[int] = set()
    # By number of SUBIDS: no two that are believed begin in the same one.
    ranges: dict[int, int] = {}
    for account in state.accounts[:MAX_ACCOUNTS]:
        faults = account_faults(account)
        if account.name in names or account.uid in numbers or account.gid in groups:
            faults.append("it is there twice")
        place = account.subid // SUBIDS
        near = [ranges[at] for at in (place - 1, place, place + 1) if at in ranges]
        if account.subid and any(abs(account.subid - other) < SUBIDS for other in near):
            faults.append("its subordinate ids are another's")
        if faults:
            dropped.append(f"account {account.name[:40]!r}: {', '.join(faults)}")
            continue
        names.add(account.name)
        numbers.add(account.uid)
        groups.add(account.gid)
        if account.subid:
            ranges[place] = account.subid
        accounts.append(account)
    return MachineState(hostname, tuple(keys.values()), tuple(accounts)), dropped


def serialize(state: MachineState) -> str:
    """The state as JSON."""
    import json

    value = {
        "format": FORMAT, "hostname": state.hostname, "host_keys": [key.values() for key in state.host_keys],
        "accounts": [account.values() for account in state.accounts],
    }  # fmt: skip
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


class _Decoder:
    """What the scanner of ``json`` asks for: JSON as ``json.loads`` takes it, by default."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int, parse_constant = float, int, float


def decode(data: bytes) -> dict[str, Any]:
    """The object that JSON text in UTF-8 is. Raises :class:`ValueError` or :class:`RecursionError` for anything else."""
    text = data.decode().strip(" \t\n\r")
    try:
        value, end = make_scanner(_Decoder)(text, 0)  # type: ignore[arg-type]  # it takes what has these names
    except StopIteration:
        raise ValueError("no JSON") from None
    if end != len(text) or type(value) is not dict:
        raise ValueError("not one object")
    return value


def parse(data: bytes) -> tuple[MachineState, list[str]]:
    """Read what :func:`serialize` wrote, or what root made of it; (state, what was dropped).

    Raises :class:`InputError` when it is not such a file at all.
    """
    if len(data) > MAX_BYTES:
        raise InputError("the machine state is too large")
    try:
        value = decode(data)
        if value["format"] != FORMAT:
            raise InputError("the machine state has another format")
        state = MachineState(
            _text(value, "hostname"),
            tuple(HostKey(*(_text(key, name) for name in ("type", "private", "public"))) for key in _list(value, "host_keys")),
            tuple(_account(item) for item in _list(value, "accounts")),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"the machine state cannot be read: {type(error).__name__}") from None
    return check(state)


def _mapping(value: object) -> dict[str, object]:
    if type(value) is not dict:
        raise TypeError
    return value


def _list(item: Mapping[str, object], name: str) -> list[dict[str, object]]:
    value = item[name]
    if type(value) is not list:
        raise TypeError
    return [_mapping(one) for one in value]


def _text(item: Mapping[str, object], name: str) -> str:
    value = item[name]
    if type(value) is not str:
        raise TypeError
    return value


def _number(item: Mapping[str, object], name: str) -> int:
    value = item[name]
    if type(value) is not int:
        raise TypeError
    return value


def _account(item: Mapping[str, object]) -> Account:
    return Account(
        name=_text(item, "name"), uid=_number(item, "uid"), gid=_number(item, "gid"), gecos=_text(item, "gecos"),
        home=_text(item, "home"), shell=_text(item, "shell"), hash=_text(item, "hash"), subid=_number(item, "subid"),
    )  # fmt: skip


def collect(
    hostname: str, passwd: str, shadow: str, subuid: str, host_keys: Mapping[str, tuple[str, str]]
) -> tuple[MachineState, list[str]]:
    """The machine state that the text of a running /etc holds; (state, what cannot be kept)."""
    hashes = {fields[0]: fields[1] for fields in _table(shadow, 2)}
    ranges = {fields[0]: int(fields[1]) for fields in _table(subuid, 3) if is_decimal(fields[1])}
    accounts = []
    for fields in _table(passwd, 7):
        name, _, uid, gid, gecos, home, shell = fields[:7]
        if is_decimal(uid) and is_decimal(gid) and FIRST_UID <= int(uid) <= LAST_UID:
            accounts.append(
                Account(name, int(uid), int(gid), gecos, home, shell, hashes.get(name, "!"), ranges.get(name, 0))
            )
    keys = tuple(HostKey(kind, private, public) for kind, (private, public) in sorted(host_keys.items()))
    return check(MachineState(hostname.strip(), keys, tuple(accounts)))


def _table(text: str, width: int) -> Iterable[list[str]]:
    # Not splitlines(): to the C library only "\n" ends a line, and a full name may hold U+2028.
    for line in text.split("\n"):
        fields = line.split(":")
        if len(fields) >= width:
            yield fields


def ordinary(passwd: str) -> frozenset[str]:
    """The names in ``passwd`` that are ordinary users'. As for the C library, the first row of a name counts."""
    first: dict[str, str] = {}
    for fields in _table(passwd, 7):
        first.setdefault(fields[0], fields[2])
    return frozenset(
        name for name, uid in first.items()
        if is_name(name) and is_decimal(uid) and FIRST_UID <= int(uid) <= LAST_UID
    )  # fmt: skip


class AccountFiles(Record):
    """The account databases as text."""

    __slots__ = ("group", "gshadow", "passwd", "shadow", "subgid", "subuid")

    def __init__(self, passwd: str, group: str, shadow: str, gshadow: str, subuid: str, subgid: str) -> None:
        self.passwd, self.group, self.shadow = passwd, group, shadow
        self.gshadow, self.subuid, self.subgid = gshadow, subuid, subgid


def render(base: AccountFiles, accounts: Iterable[Account]) -> AccountFiles:
    """``base`` (the image's own) plus ``accounts``; a name or number that the image has wins over an account's.

    A member that one of the image's groups names counts as the image's: who took that name would be in the group.
    """
    names = {fields[0] for text in (base.passwd, base.group) for fields in _table(text, 3)}
    names |= {member for fields in _table(base.group, 4) for member in fields[3].split(",")}
    numbers = {fields[2] for fields in _table(base.passwd, 3)}
    groups = {fields[2] for fields in _table(base.group, 3)}
    lines: dict[str, list[str]] = {name: [] for name in ("passwd", "group", "shadow", "gshadow", "subuid", "subgid")}
    for one in accounts:
        if one.name in names or str(one.uid) in numbers or str(one.gid) in groups:
            continue
        lines["passwd"].append(f"{one.name}:x:{one.uid}:{one.gid}:{one.gecos}:{one.home}:{one.shell}")
        lines["group"].append(f"{one.name}:x:{one.gid}:")
        lines["shadow"].append(f"{one.name}:{one.hash}:1::::::")
        lines["gshadow"].append(f"{one.name}:!::")
        if one.subid:
            lines["subuid"].append(f"{one.name}:{one.subid}:65536")
            lines["subgid"].append(f"{one.name}:{one.subid}:65536")
    joined = {name: "".join(f"{line}\n" for line in new) for name, new in lines.items()}
    return AccountFiles(**{name: getattr(base, name) + joined[name] for name in lines})
