# SPDX-License-Identifier: Apache-2.0
"""Typed machine state: what root wrote into it can never become more than ordinary people and host keys."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freehold.boot import machine_files
from freehold.errors import InputError
from freehold.lock import machine
from freehold.lock.machine import Account, AccountFiles, HostKey, MachineState, Record

R = TypeVar("R", bound=Record)
ANNA = Account("anna", 1000, 1000, "Anna", "/home/anna", "/bin/bash", "$y$j9T$abcdefghijk$lmnopqrstuv", 100_000)
PRIVATE = "-----BEGIN OPENSSH PRIVATE KEY-----\n" + "QUJD\n" * 3 + "-----END OPENSSH PRIVATE KEY-----\n"
KEY = HostKey("ed25519", PRIVATE, "ssh-ed25519 " + "A" * 40 + " root@here\n")
STATE = MachineState("freehold", (KEY,), (ANNA,))
BASE = AccountFiles(
    "root:x:0:0:root:/root:/bin/bash\nsshd:x:990:65534::/run/sshd:/usr/sbin/nologin\n",
    "root:x:0:\nsudo:x:27:\nshadow:x:42:\n", "root:*:1::::::\n", "root:*::\n", "", "",
)  # fmt: skip



def replace(record: R, **change: object) -> R:
    """A copy with other values."""
    return type(record)(**{**record.values(), **change})


odd = st.text(st.sampled_from("a0_-:\n\r\0/.$!* é\x85\u2028"), max_size=12)
numbers = st.integers(-5, 70_000) | st.sampled_from([0, 999, 1000, 59_999, 60_000, 65_534, 1 << 32, 1 << 64])
ACCOUNTS = st.builds(
    Account,
    name=st.sampled_from(["anna", "root", "bob", "bob\n"]) | odd, uid=numbers, gid=numbers,
    gecos=st.just("A person") | odd, home=st.sampled_from(["/home/anna", "/var/home/b", "/root", "/home/../etc"]) | odd,
    shell=st.sampled_from([*machine.SHELLS, "/bin/evil"]) | odd,
    hash=st.sampled_from(["", "*", "!", "!*", "!!", ANNA.hash]) | odd, subid=numbers,
)  # fmt: skip


@given(st.lists(ACCOUNTS, max_size=6), odd)
@settings(max_examples=400, deadline=None)
def test_nothing_that_is_believed_has_power(accounts: list[Account], hostname: str) -> None:
    state, dropped = machine.check(MachineState(hostname, (), tuple(accounts)))
    assert len(state.accounts) + sum(line.startswith("account") for line in dropped) == len(accounts)
    files = machine.render(BASE, state.accounts)
    for name in BASE.values():
        base, text = getattr(BASE, name), getattr(files, name)
        assert text.startswith(base)
        for line in text[len(base):].split("\n")[:-1]:
            fields = line.split(":")
            assert len(fields) == {"passwd": 7, "group": 4, "shadow": 9, "gshadow": 4, "subuid": 3, "subgid": 3}[name]
            assert fields[0] != "root"
            if name == "passwd":
                assert 1000 <= int(fields[2]) <= 59_999
                assert 1000 <= int(fields[3]) <= 59_999
                assert fields[6] in machine.SHELLS
            if name == "group":
                assert int(fields[2]) >= 1000
                assert fields[3] == ""
            if name == "shadow":
                assert fields[1] != "", "an account without a password field could log in with none"
            if name in ("subuid", "subgid"):
                assert int(fields[1]) >= 100_000
    assert not set(state.hostname) & set(":\n\r\0/ ")


@given(st.lists(ACCOUNTS, max_size=6))
def test_what_was_checked_passes_again(accounts: list[Account]) -> None:
    state, _ = machine.check(MachineState("", (), tuple(accounts)))
    assert machine.check(state) == (state, [])
    assert machine.parse(machine.serialize(state).encode()) == (state, [])


def test_a_good_state_survives_whole() -> None:
    assert machine.parse(machine.serialize(STATE).encode()) == (STATE, [])


@pytest.mark.parametrize("change", [
    {"name": "Anna"}, {"name": "anna\n"}, {"uid": 0}, {"uid": 999}, {"uid": 60000}, {"gid": 27}, {"gecos": "a:b"},
    {"home": "/"}, {"home": "/home/anna/../.."}, {"shell": "/bin/zsh"}, {"hash": ""}, {"hash": "x:"}, {"hash": "plain"},
    {"subid": 1}, {"subid": -1},
])  # fmt: skip
def test_one_fault_drops_the_account(change: dict[str, object]) -> None:
    state, dropped = machine.check(MachineState("", (), (replace(ANNA, **change),)))
    assert state.accounts == ()
    assert len(dropped) == 1


def test_twins_are_dropped() -> None:
    bob = replace(ANNA, name="bob")
    state, dropped = machine.check(MachineState("", (KEY, KEY), (ANNA, ANNA, bob)))
    assert state.accounts == (ANNA,)
    assert state.host_keys == (KEY,)
    assert len(dropped) == 3


@pytest.mark.parametrize("change", [
    {"type": "dsa"}, {"type": "../x"}, {"private": PRIVATE + "x"}, {"private": "text"}, {"public": "command=x ssh-rsa A\n"},
    {"public": KEY.public + KEY.public},
])  # fmt: skip
def test_host_keys_are_keys(change: dict[str, str]) -> None:
    state, dropped = machine.check(MachineState("", (replace(KEY, **change),), ()))
    assert state.host_keys == ()
    assert len(dropped) == 1


@pytest.mark.parametrize("data", [
    b"", b"[]", b"null", b"{}", b"\xff\xfe", b'"x"', b"[" * 100_000, b'{"format": "other"}',
    b'{"format": "freehold-machine-1"}',
    b'{"format": "freehold-machine-1", "hostname": 1, "host_keys": [], "accounts": []}',
    b'{"format": "freehold-machine-1", "hostname": "", "host_keys": {}, "accounts": [1]}',
    b'{"format": "freehold-machine-1", "hostname": "", "host_keys": [null], "accounts": []}',
    json.dumps({"format": machine.FORMAT, "hostname": "", "host_keys": [], "accounts": [ANNA.values() | {"uid": True}]}).encode(),
    json.dumps({"format": machine.FORMAT, "hostname": "", "host_keys": [], "accounts": [ANNA.values() | {"uid": 1e3}]}).encode(),
    b" " * (machine.MAX_BYTES + 1),
])  # fmt: skip
def test_hostile_files_are_refused(data: bytes) -> None:
    with pytest.raises(InputError):
        machine.parse(data)


@given(st.binary(max_size=60) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["format", "hostname", "host_keys", "accounts", "type", "name"]), inner, max_size=4), max_leaves=8,
).map(lambda value: json.dumps({"format": machine.FORMAT, "hostname": value, "host_keys": value, "accounts": value}).encode()))
def test_parsing_ends_in_a_state_or_an_input_error(data: bytes) -> None:
    try:
        state, _ = machine.parse(data)
    except InputError:
        return
    assert machine.check(state)[0] == state


def test_the_image_wins_over_an_account() -> None:
    squatter = replace(ANNA, name="sshd")
    files = machine.render(BASE, [squatter])
    assert files == BASE


def test_nobody_takes_a_name_that_a_group_of_the_image_has() -> None:
    base = replace(BASE, group=BASE.group + "adm:x:4:syslog,anna\n")
    assert machine.render(base, [ANNA]) == base
    bob = replace(ANNA, name="bob")
    assert machine.render(base, [bob]).group == base.group + "bob:x:1000:\n"


def test_half_a_character_does_not_end_the_boot(tmp_path: Path) -> None:
    text = machine.serialize(MachineState("", (), (ANNA, replace(ANNA, name="bob", uid=1001, gid=1001, gecos="\ud800", subid=0))))
    state, dropped = machine.parse(text.encode())
    assert state.accounts == (ANNA,)
    assert len(dropped) == 1
    for name, _ in machine_files.ACCOUNT_FILES:
        (tmp_path / name).write_text(getattr(BASE, name))
    machine_files.apply(state, "0" * 32, tmp_path, tmp_path)


@pytest.mark.parametrize(("subid", "believed"), [(100_000, 1), (34_465 + 65_535, 1), (165_535, 1), (165_536, 2), (0, 2)])
def test_subordinate_ids_belong_to_one(subid: int, believed: int) -> None:
    bob = replace(ANNA, name="bob", uid=1001, gid=1001, home="/home/bob", subid=subid)
    for accounts in ((ANNA, bob), (bob, ANNA)):
        state, dropped = machine.check(MachineState("", (), accounts))
        assert state.accounts == accounts[:believed]
        assert len(dropped) == 2 - believed


def test_collect_takes_people_only() -> None:
    passwd = BASE.passwd + "anna:x:1000:1000:Anna:/home/anna:/bin/bash\nnobody:x:65534:65534::/:/usr/sbin/nologin\n"
    state, dropped = machine.collect("host\n", passwd, f"anna:{ANNA.hash}:1::::::\n", "anna:100000:65536\n", {})
    assert (state.hostname, state.accounts, dropped) == ("host", (ANNA,), [])


@pytest.mark.parametrize("number", ["²", "٣", "1" * 5000])
def test_collect_survives_odd_digits(number: str) -> None:
    state, _ = machine.collect("", f"anna:x:{number}:{number}::/home/anna:/bin/sh\n", "", f"anna:{number}:65536\n", {})
    assert state.accounts == ()


@pytest.mark.parametrize("name", ["A\u2028B", "A\x85B", "A\x0cB"])
def test_collect_reads_lines_as_the_c_library_does(name: str) -> None:
    anna = replace(ANNA, gecos=name)
    files = machine.render(BASE, [anna])
    state, dropped = machine.collect("", files.passwd, files.shadow, files.subuid, {})
    assert (state.accounts, dropped) == ((anna,), [])


def test_files_round_trip_through_etc(tmp_path: Path) -> None:
    factory, etc, store = tmp_path / "factory", tmp_path / "etc", tmp_path / "state"
    for directory in (factory, etc):
        directory.mkdir()
    for name, _ in machine_files.ACCOUNT_FILES:
        (factory / name).write_text(getattr(BASE, name))
    machine_files.save(STATE, store)
    loaded, dropped = machine_files.load(store)
    machine_files.apply(loaded, "0" * 32, factory, etc)
    assert dropped == []
    assert machine_files.collect(etc) == (STATE, [])
    assert (etc / "machine-id").read_text() == "0" * 32 + "\n"
    assert (etc / "shadow").stat().st_mode & 0o777 == 0o640
    assert (etc / "shadow").stat().st_gid == 42
    assert (etc / "ssh/ssh_host_ed25519_key").stat().st_mode & 0o777 == 0o600
    assert (store / machine_files.STATE_FILE).stat().st_mode & 0o777 == 0o600


def test_an_unreadable_state_is_none_and_named(tmp_path: Path) -> None:
    assert machine_files.load(tmp_path) == (MachineState(), [])
    (tmp_path / machine_files.STATE_FILE).write_bytes(b"{")
    state, dropped = machine_files.load(tmp_path)
    assert state == MachineState()
    assert len(dropped) == 1


def test_who_is_an_ordinary_user() -> None:
    text = (
        "root:x:0:0::/root:/bin/bash\ntss:x:107:107::/var/lib/tpm:/bin/false\nalice:x:1000:1000::/home/alice:/bin/bash\n"
        "nobody:x:65534:65534::/:/bin/false\nlast:x:59999:59999::/home/last:/bin/sh\nnext:x:60000:60000::/home/next:/bin/sh\n"
        # The first row of a name counts, whatever a later one says.
        "tss:x:1001:1001::/home/tss:/bin/sh\nshort:x:1002\nodd name:x:1003:1003::/home/odd:/bin/sh\n"
        "b:x:\u0661000:1::/home/b:/bin/sh\n"
    )
    assert machine.ordinary(text) == {"alice", "last"}


#: What a value must match as a whole: the same as :mod:`freehold.lock.machine` asks of it without ``re``.
SPECIFIED = (
    (machine.is_host_name, r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,62}[A-Za-z0-9])?", "aZ0.-_\n é"),
    (machine.is_name, r"[a-z_][a-z0-9_-]{0,30}", "a_0-A\n."),
    (machine.is_gecos, r"[^:\n\r\0\ud800-\udfff]{0,200}", "a:\n\r\0\ud800\udfff\ue000\u2028"),
    (machine.is_home, r"/(?:var/)?home/[a-z_][a-z0-9_-]{0,30}", "/varhome_-0.\n"),
    (machine.is_hash, r"!{0,2}\*?|!?\$[A-Za-z0-9]{1,8}\$[A-Za-z0-9./,=$+-]{10,300}", "!*$ay.,:\n"),
    (
        machine.is_private_key,
        "-----BEGIN OPENSSH PRIVATE KEY-----\n(?:[A-Za-z0-9+/=]{1,80}\n){2,200}-----END OPENSSH PRIVATE KEY-----\n", "Aa+=\n-",
    ),
    (
        machine.is_public_key, r"(?:ssh|ecdsa)-[a-z0-9-]{2,40} [A-Za-z0-9+/=]{20,2000}(?: [A-Za-z0-9@._-]{0,200})?\n",
        "shecda- A+=@.\n",
    ),
    (machine.is_decimal, r"[0-9]{1,10}", "019\u0663\n-"),
)  # fmt: skip

@pytest.mark.parametrize(("accepts", "pattern", "letters"), SPECIFIED)
def test_a_value_is_what_its_pattern_says(accepts: Callable[[str], bool], pattern: str, letters: str) -> None:
    seen = set()

    @given(st.from_regex(re.compile(pattern), fullmatch=True), st.integers(0, 400), st.integers(0, 2), st.sampled_from(letters))
    @settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def compare(good: str, at: int, gone: int, new: str) -> None:
        for text in (good, good[:at] + new + good[at + gone:], good[:at] + good[at + gone:], new * at):
            wanted = re.fullmatch(pattern, text) is not None
            seen.add(wanted)
            assert accepts(text) is wanted, repr(text)

    compare()
    assert seen == {True, False}, "the texts were all of one kind"


@pytest.mark.parametrize(
    ("accepts", "text"),
    [
        (machine.is_host_name, "a" * 64), (machine.is_name, "a" * 31), (machine.is_gecos, "\u00fc" * 200),
        (machine.is_home, "/var/home/" + "a" * 31), (machine.is_hash, "!$" + "a" * 8 + "$" + "." * 300),
        (machine.is_private_key, machine.KEY_BEGINS + ("A" * 80 + "\n") * 200 + machine.KEY_ENDS),
        (machine.is_public_key, "ecdsa-" + "a" * 40 + " " + "A" * 2000 + " " + "c" * 200 + "\n"),
        (machine.is_public_key, "ssh-rsa " + "A" * 20 + " \n"), (machine.is_decimal, "9" * 10),
        (machine.is_host_name, "a"), (machine.is_name, "_"), (machine.is_gecos, ""), (machine.is_home, "/home/a"),
        (machine.is_hash, "$y$" + "." * 10), (machine.is_private_key, machine.KEY_BEGINS + "A\nB\n" + machine.KEY_ENDS),
        (machine.is_public_key, "ssh-aa " + "A" * 20 + "\n"), (machine.is_decimal, "0"),
    ],
)  # fmt: skip
def test_the_longest_and_the_shortest_are_taken(accepts: Callable[[str], bool], text: str) -> None:
    assert accepts(text)
    [pattern] = [re.compile(one) for check, one, _ in SPECIFIED if check is accepts]
    assert pattern.fullmatch(text)
    for at in range(0, len(text), max(1, len(text) // 150)):
        for other in (text[:at] + text[at] + text[at:], text[:at] + text[at + 1:]):
            assert accepts(other) is (pattern.fullmatch(other) is not None), at


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@given(st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12))
@settings(max_examples=200, deadline=None)
def test_json_is_read_as_the_standard_library_reads_it(value: object) -> None:
    text = json.dumps({"": value}).encode()
    assert repr(machine.decode(b" \n" + text + b"\t")) == repr(json.loads(text))
    for damaged in (text[:-1], text + b"x", text + text, b"[" + text + b"]"):
        with pytest.raises(ValueError, match=r"object|Expecting|delimiter|Unterminated|escape|JSON"):
            machine.decode(damaged)


def test_a_locked_boot_imports_little() -> None:
    """Emulated, what `re`, `json`, `dataclasses` and `pathlib` cost is a second of each locked boot."""
    source = Path(machine.__file__).parents[2]
    script = "import sys; sys.path.insert(0, sys.argv[1]); import freehold.boot.prepare; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-ISBc", script, source], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert "freehold.lock.machine" in loaded
    assert {name for name in loaded if name.startswith("freehold.")} == {
        "freehold.atomic", "freehold.boot", "freehold.boot.linger", "freehold.boot.machine_files", "freehold.boot.prepare",
        "freehold.errors", "freehold.lock", "freehold.lock.covered", "freehold.lock.machine",
    }  # fmt: skip
    heavy = {"re", "json", "enum", "dataclasses", "typing", "pathlib", "contextlib", "collections", "subprocess", "hashlib"}
    assert not loaded & heavy
