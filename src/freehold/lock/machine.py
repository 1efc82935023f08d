# SPDX-License-Identifier: Apache-2.0
"""Typed machine state: the few things of /etc that are this machine's own and can be no code. Pure.

Under the lock /etc comes from signed images only. What a machine has beyond them, its host name, its ssh
host keys and its unprivileged accounts, is kept as data in ``/sysroot/state/machine.json``, which root may
write; so every value is checked here, each time it is read, and rendered into files whose format is known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TypeVar

from freehold.errors import InputError
from freehold.lock.covered import HOST_KEY_TYPES

T = TypeVar("T")

FORMAT = "freehold-machine-1"
MAX_BYTES = 1 << 20
MAX_ACCOUNTS = 10_000
#: Ordinary people; everything below is the system's, and comes from the signed image only.
FIRST_UID, LAST_UID = 1000, 59999
#: Each account's range of subordinate ids (subuid(5)) lies here.
FIRST_SUBID, LAST_SUBID = 100_000, 0xFFFF_FFFE
SUBIDS = 65536
SHELLS = ("/bin/bash", "/bin/sh", "/bin/dash", "/usr/bin/bash", "/usr/bin/sh", "/usr/sbin/nologin", "/sbin/nologin")

HOST_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,62}[A-Za-z0-9])?")
NAME = re.compile(r"[a-z_][a-z0-9_-]{0,30}")
#: Half a character pair, which JSON can say and no file can hold, would end the boot's preparation.
GECOS = re.compile(r"[^:\n\r\0\ud800-\udfff]{0,200}")
HOME = re.compile(r"/(?:var/)?home/[a-z_][a-z0-9_-]{0,30}")
#: crypt(5) hashes, or no password ("*", "!", "!*"). An empty field would mean no password is asked for.
HASH = re.compile(r"!{0,2}\*?|!?\$[A-Za-z0-9]{1,8}\$[A-Za-z0-9./,=$+-]{10,300}")
PRIVATE_KEY = re.compile(
    r"-----BEGIN OPENSSH PRIVATE KEY-----\n(?:[A-Za-z0-9+/=]{1,80}\n){2,200}-----END OPENSSH PRIVATE KEY-----\n"
)
#: ``str.isdigit`` would take other scripts' digits, and ``int`` fails on some of them and on thousands of ours.
DECIMAL = re.compile(r"[0-9]{1,10}")
PUBLIC_KEY = re.compile(r"(?:ssh|ecdsa)-[a-z0-9-]{2,40} [A-Za-z0-9+/=]{20,2000}(?: [A-Za-z0-9@._-]{0,200})?\n")


@dataclass(frozen=True)
class Account:
    """An unprivileged account: no system range, no groups but its own."""

    name: str
    uid: int
    gid: int
    gecos: str
    home: str
    shell: str
    hash: str
    subid: int


@dataclass(frozen=True)
class HostKey:
    """An ssh host key pair in OpenSSH's own format."""

    type: str
    private: str
    public: str


@dataclass(frozen=True)
class MachineState:
    """All of it. ``hostname`` empty: the image's."""

    hostname: str = ""
    host_keys: tuple[HostKey, ...] = ()
    accounts: tuple[Account, ...] = ()


def account_faults(account: Account) -> list[str]:
    """What keeps this account from being an ordinary one."""
    faults = []
    if not NAME.fullmatch(account.name):
        faults.append("its name")
    if not FIRST_UID <= account.uid <= LAST_UID:
        faults.append(f"uid {account.uid} is the system's")
    if not FIRST_UID <= account.gid <= LAST_UID:
        faults.append(f"gid {account.gid} is the system's")
    if not GECOS.fullmatch(account.gecos):
        faults.append("its full name")
    if not HOME.fullmatch(account.home):
        faults.append("its home is not below /home")
    if account.shell not in SHELLS:
        faults.append(f"shell {account.shell}")
    if not account.hash or not HASH.fullmatch(account.hash):
        faults.append("its password field")
    if account.subid and not FIRST_SUBID <= account.subid <= LAST_SUBID - SUBIDS:
        faults.append("its subordinate ids")
    return faults


def check(state: MachineState) -> tuple[MachineState, list[str]]:
    """The believable part of ``state``, and a line for everything that was left out."""
    dropped: list[str] = []
    hostname = state.hostname
    if hostname and not HOST_NAME.fullmatch(hostname):
        dropped.append("host name: not a host name")
        hostname = ""
    keys: dict[str, HostKey] = {}
    for key in state.host_keys:
        good = key.type in HOST_KEY_TYPES and PRIVATE_KEY.fullmatch(key.private) and PUBLIC_KEY.fullmatch(key.public)
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
    return json.dumps({"format": FORMAT, **asdict(state)}, indent=1, sort_keys=True) + "\n"


def parse(data: bytes) -> tuple[MachineState, list[str]]:
    """Read what :func:`serialize` wrote, or what root made of it; (state, what was dropped).

    Raises :class:`InputError` when it is not such a file at all.
    """
    if len(data) > MAX_BYTES:
        raise InputError("the machine state is too large")
    try:
        value = json.loads(data)
        if value["format"] != FORMAT:
            raise InputError("the machine state has another format")
        state = MachineState(
            _typed(value["hostname"], str),
            tuple(HostKey(*(_typed(key[name], str) for name in ("type", "private", "public"))) for key in value["host_keys"]),
            tuple(_account(item) for item in value["accounts"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"the machine state cannot be read: {type(error).__name__}") from None
    return check(state)


def _typed(value: object, kind: type[T]) -> T:
    if type(value) is not kind:
        raise TypeError
    return value


def _account(item: Mapping[str, object]) -> Account:
    def text(name: str) -> str:
        return _typed(item[name], str)

    def number(name: str) -> int:
        return _typed(item[name], int)

    return Account(
        name=text("name"), uid=number("uid"), gid=number("gid"), gecos=text("gecos"), home=text("home"),
        shell=text("shell"), hash=text("hash"), subid=number("subid"),
    )  # fmt: skip


def collect(
    hostname: str, passwd: str, shadow: str, subuid: str, host_keys: Mapping[str, tuple[str, str]]
) -> tuple[MachineState, list[str]]:
    """The machine state that the text of a running /etc holds; (state, what cannot be kept)."""
    hashes = {fields[0]: fields[1] for fields in _table(shadow, 2)}
    ranges = {fields[0]: int(fields[1]) for fields in _table(subuid, 3) if DECIMAL.fullmatch(fields[1])}
    accounts = []
    for fields in _table(passwd, 7):
        name, _, uid, gid, gecos, home, shell = fields[:7]
        if DECIMAL.fullmatch(uid) and DECIMAL.fullmatch(gid) and FIRST_UID <= int(uid) <= LAST_UID:
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
        if NAME.fullmatch(name) and DECIMAL.fullmatch(uid) and FIRST_UID <= int(uid) <= LAST_UID
    )  # fmt: skip


@dataclass(frozen=True)
class AccountFiles:
    """The account databases as text."""

    passwd: str
    group: str
    shadow: str
    gshadow: str
    subuid: str
    subgid: str


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
