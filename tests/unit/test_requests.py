# SPDX-License-Identifier: Apache-2.0
"""The list of requests: one spelling, edits, kernel arguments, warnings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.errors import InputError
from freehold.lock import requests
from freehold.lock.requests import Edit, File, Karg, Package, Requests

WORDS = st.text("abcxyz019_.-=,:/", min_size=1, max_size=12).filter(
    lambda text: requests.normal_key(text) and not requests.normal_key(text).startswith("freehold.") and text != "--"
)
KARGS = st.one_of(
    st.builds(Karg, st.sampled_from(["append", "delete"]), WORDS),
    st.builds(Karg, st.just("replace"), WORDS.map(lambda word: f"k{word.replace('=', '')}=1")),
)
PACKAGES = st.builds(
    Package, st.from_regex(r"[a-z][a-z0-9+.-]{1,8}", fullmatch=True), st.sampled_from(["", "1:2.3-1~deb13"])
)
FILES = st.builds(File, st.text("0123456789abcdef", min_size=64, max_size=64), st.just("a_1_all.deb"))
LISTS = st.builds(
    Requests,
    st.lists(KARGS, max_size=5, unique=True).map(tuple),
    st.lists(PACKAGES, max_size=5, unique_by=lambda one: one.name).map(lambda found: tuple(sorted(found))),
    st.lists(FILES, max_size=3, unique_by=lambda one: one.sha256).map(lambda found: tuple(sorted(found))),
)


@given(LISTS)
def test_what_is_written_is_read(value: Requests) -> None:
    data = requests.serialize(value)
    assert requests.parse(data) == value
    assert requests.from_lines(value.lines) == value
    assert len(requests.describe(value)) == max(1, len(value.lines))


@given(st.binary(max_size=200) | LISTS.map(requests.serialize).flatmap(lambda data: st.builds(
    lambda at, byte: data[: at % len(data)] + bytes((byte,)) + data[at % len(data) + 1 :], st.integers(0), st.integers(0, 255)
)))  # fmt: skip
def test_what_is_read_has_one_spelling(data: bytes) -> None:
    try:
        found = requests.parse(data)
    except InputError:
        return
    assert requests.serialize(found) == data


@pytest.mark.parametrize("line", [
    "karg append freehold.image=0", "karg append freehold.image", "karg replace freehold.release=9", "karg append --",
    "karg add quiet", "karg replace quiet", 'karg append a="b', "karg append", "karg append a b", "package UPPER", "package -x",
    "package a=", "package a/stable", "file 00 a.deb", f"file {'0' * 64} ../a.deb", f"file {'0' * 64} a", "exec rm", "",
    "karg append =x", f"karg append {'x' * 513}", "karg append \x7f", "karg append caf\xe9",
])  # fmt: skip
def test_refused_lines(line: str) -> None:
    with pytest.raises(InputError) as error:
        requests.parse(f"{requests.HEAD}\n{line}\n".encode("latin-1"))
    assert error.value.faults


@pytest.mark.parametrize("text", [
    "", "freehold-requests 2\n", "freehold-requests 1", "freehold-requests 1\npackage b\npackage a\n",
    "freehold-requests 1\npackage a\nkarg append x\n", "freehold-requests 1\npackage a\npackage a=1\n",
    "freehold-requests 1\nkarg append x\nkarg append x\n", "freehold-requests 1\r\n",
    "freehold-requests 1\n" + "karg append x\n" * 600, "freehold-requests 1\n" + "x" * 70000 + "\n",
])  # fmt: skip
def test_refused_lists(text: str) -> None:
    with pytest.raises(InputError):
        requests.parse(text.encode())


BASE = "freehold.image=00 ro quiet console=tty0 console=ttyS0 init_on_alloc=1"


@pytest.mark.parametrize(("kargs", "wanted"), [
    ([Karg("append", "a=1"), Karg("append", "a=2")], f"{BASE} a=1 a=2"),
    ([Karg("delete", "quiet")], BASE.replace(" quiet", "")),
    ([Karg("delete", "console")], BASE.replace(" console=tty0 console=ttyS0", "")),
    ([Karg("delete", "console=tty0")], BASE.replace(" console=tty0", "")),
    ([Karg("delete", "init-on-alloc=1")], BASE.replace(" init_on_alloc=1", "")),
    ([Karg("delete", "absent")], BASE),
    ([Karg("replace", "console=hvc0")], BASE.replace("console=tty0 console=ttyS0", "console=hvc0")),
    ([Karg("replace", "init-on-alloc=0")], BASE.replace("init_on_alloc=1", "init-on-alloc=0")),
    ([Karg("replace", "new=1"), Karg("delete", "new")], BASE),
])  # fmt: skip
def test_command_line(kargs: list[Karg], wanted: str) -> None:
    assert requests.command_line(BASE, kargs) == wanted


@given(st.lists(KARGS, max_size=8))
def test_no_request_touches_what_the_release_says_of_itself(kargs: list[Karg]) -> None:
    base = "freehold.image=00 freehold.release=7 ro"
    words = requests.command_line(
        base, [*kargs, Karg("delete", "freehold.image"), Karg("replace", "freehold.release=0")]
    ).split()
    assert words[:2] == ["freehold.image=00", "freehold.release=7"]


def test_a_command_line_that_the_kernel_would_cut_is_refused() -> None:
    with pytest.raises(InputError):
        requests.command_line(BASE, [Karg("append", "x" * 500)] * 5)


def test_edits() -> None:
    one = requests.edit(Requests(), Edit((Karg("append", "a=1"),), (Package("fish"),)))
    assert one.lines == ("karg append a=1", "package fish")
    assert requests.edit(one, Edit((Karg("append", "a=1"),))) == one
    assert requests.edit(one, Edit((Karg("delete", "a"),))).kargs == ()
    assert requests.edit(one, Edit((Karg("delete", "quiet"),))).lines[1] == "karg delete quiet"
    back = requests.edit(requests.edit(one, Edit((Karg("delete", "quiet"),))), Edit((Karg("append", "quiet"),)))
    assert back == one
    twice = requests.edit(requests.edit(one, Edit((Karg("replace", "p=1"),))), Edit((Karg("replace", "p=2"),)))
    assert [karg.value for karg in twice.kargs] == ["a=1", "p=2"]
    assert requests.edit(one, Edit(add=(Package("fish", "4.0-1"),))).packages == (Package("fish", "4.0-1"),)
    assert not requests.edit(one, Edit((Karg("delete", "a=1"),), remove=("fish",)))
    with pytest.raises(InputError) as error:
        requests.edit(one, Edit(remove=("zsh",)))
    assert "fish" in (error.value.hint or "")


@pytest.mark.parametrize("value", [
    "init=/bin/sh", "systemd.debug_shell", "systemd.debug-shell=1", "lockdown=none", "module.sig_enforce=0", "rescue",
    "systemd.run=/bin/sh", "single", "lsm=", "proc_mem.force_override=always", "systemd.unit=rescue.target", "emergency",
    "systemd.run_success_action=none",
])  # fmt: skip
def test_weakening_arguments_are_named(value: str) -> None:
    assert requests.warnings(Requests((Karg("append", value),)))
    assert requests.warnings(Requests((Karg("append", "loglevel=7"), Karg("append", "initcall_debug")))) == []
