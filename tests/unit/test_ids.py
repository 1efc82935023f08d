# SPDX-License-Identifier: Apache-2.0
"""The id lock: ids are given once and stay; trees are renumbered to them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.errors import InputError
from freehold.seal import ids
from freehold.seal.ids import Account, Group, IdLock

PASSWD = """root:x:0:0:root:/root:/bin/bash
_apt:x:42:65534::/nonexistent:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
systemd-network:x:998:998:systemd Network Management:/:/usr/sbin/nologin
messagebus:x:996:996:System "Message" Bus:/nonexistent:/usr/sbin/nologin
sshd:x:989:65534:sshd user:/run/sshd:/usr/sbin/nologin
"""
GROUP = """root:x:0:
adm:x:4:messagebus,root
nogroup:x:65534:
systemd-journal:x:999:
systemd-network:x:998:
messagebus:x:996:
"""

names = st.from_regex(r"[a-z_][a-z0-9-]{0,8}", fullmatch=True)
system_ids = st.integers(100, 999)


@st.composite
def trees(draw: st.DrawFn) -> tuple[tuple[Account, ...], tuple[Group, ...]]:
    """Accounts as package installation could leave them: unique names and numbers, every gid there."""
    groups = draw(st.dictionaries(names, system_ids, max_size=12))
    groups = {name: gid for gid, name in {gid: name for name, gid in groups.items()}.items()}
    users = draw(st.dictionaries(names, system_ids, max_size=12)) if groups else {}
    users = {name: uid for uid, name in {uid: name for name, uid in users.items()}.items()}
    return (
        tuple(Account(name, uid, draw(st.sampled_from(sorted(groups.values())))) for name, uid in users.items()),
        tuple(Group(name, gid) for name, gid in groups.items()),
    )


def test_first_build_keeps_what_packages_chose() -> None:
    plan = ids.plan(IdLock(), ids.parse_passwd(PASSWD), ids.parse_group(GROUP))
    assert (plan.chown, plan.chgrp) == ({}, {})
    assert (plan.passwd(PASSWD), plan.group(GROUP)) == (PASSWD, GROUP)
    assert plan.lock.users["sshd"] == 989


def test_drift_is_renumbered_back() -> None:
    lock = ids.plan(IdLock(), ids.parse_passwd(PASSWD), ids.parse_group(GROUP)).lock
    drifted_passwd = PASSWD.replace("998:998", "TMP").replace("996:996", "998:998").replace("TMP", "996:996")
    drifted_group = GROUP.replace(":998:", ":T:").replace(":996:", ":998:").replace(":T:", ":996:")
    plan = ids.plan(lock, ids.parse_passwd(drifted_passwd), ids.parse_group(drifted_group))
    assert plan.chown == plan.chgrp == {998: 996, 996: 998}
    assert (plan.passwd(drifted_passwd), plan.group(drifted_group)) == (PASSWD, GROUP)


def test_a_new_name_never_takes_a_number_of_a_gone_one() -> None:
    lock = IdLock({"gone": 989}, {"gone": 989})
    plan = ids.plan(lock, (Account("sshd", 989, 65534),), (Group("nogroup", 65534),))
    assert plan.lock.users == {"gone": 989, "sshd": 999}
    assert plan.chown == {989: 999}


def test_user_and_group_of_one_name_get_one_number() -> None:
    lock = IdLock({"old": 998}, {"old": 998})
    plan = ids.plan(lock, (Account("new", 998, 998),), (Group("new", 998),))
    assert (plan.users[0].uid, plan.users[0].gid, plan.groups[0].gid) == (999, 999, 999)


def test_sysusers_text() -> None:
    text = ids.plan(IdLock(), ids.parse_passwd(PASSWD), ids.parse_group(GROUP)).sysusers()
    assert "g adm 4 - - -\n" in text
    assert "u sshd 989:65534 \"sshd user\" /run/sshd /usr/sbin/nologin\n" in text
    assert 'u messagebus 996:996 "System \\"Message\\" Bus" /nonexistent /usr/sbin/nologin\n' in text
    assert "u _apt 42:65534 - /nonexistent /usr/sbin/nologin\n" in text
    assert text.endswith("m messagebus adm\nm root adm\n")


@pytest.mark.parametrize(
    ("lock", "users", "groups", "fault"),
    [
        (IdLock(), (Account("a", 5, 0), Account("b", 5, 0)), (Group("root", 0),), "users 'a' and 'b' share the id 5"),
        (IdLock({"mail": 9}), (Account("mail", 8, 0),), (Group("root", 0),), "such ids are Debian's"),
        (IdLock({"other": 8}), (Account("mail", 8, 0),), (Group("root", 0),), "which the lock gives to another name"),
        (IdLock(), (Account("a", 500, 77),), (Group("root", 0),), "group id 77, which no group has"),
    ],
)
def test_conflicts_are_named(lock: IdLock, users: tuple[Account, ...], groups: tuple[Group, ...], fault: str) -> None:
    with pytest.raises(InputError) as caught:
        ids.plan(lock, users, groups)
    assert fault in "\n".join(caught.value.faults)


def test_all_faults_of_a_lock_are_reported() -> None:
    with pytest.raises(InputError) as caught:
        ids.parse_lock("freehold-ids 1\nuser a 1\nuser a 2\ngroup b x\nuser c 1\nuser d 007\n")
    assert [fault.split(":")[1] for fault in caught.value.faults] == ["3", "4", "5", "6"]


def test_foreign_text_is_no_lock() -> None:
    with pytest.raises(InputError):
        ids.parse_lock("user a 1\n")


@pytest.mark.parametrize("text", ["a:x:1\n", "a b:x:1:1:::\n", "a:x:-1:1:::\n", "a:x:1:1:::\na:x:2:2:::\n"])
def test_broken_passwd(text: str) -> None:
    with pytest.raises(InputError):
        ids.parse_passwd(text)


@given(trees(), trees())
def test_ids_never_change_and_never_meet(
    first: tuple[tuple[Account, ...], tuple[Group, ...]], second: tuple[tuple[Account, ...], tuple[Group, ...]]
) -> None:
    one = ids.plan(IdLock(), *first)
    two = ids.plan(ids.parse_lock(one.lock.text()), *second)
    for before, after in ((one.lock.users, two.lock.users), (one.lock.groups, two.lock.groups)):
        assert before.items() <= after.items()
        assert len(set(after.values())) == len(after)
    # Renumbering is one-to-one over the ids in the tree, so that no two owners' files are mixed up.
    for accounts, moves in (([a.uid for a in second[0]], two.chown), ([g.gid for g in second[1]], two.chgrp)):
        new = [moves.get(number, number) for number in accounts]
        assert len(set(new)) == len(new)
    # Every user keeps the group it had, by name.
    old_names = {group.gid: group.name for group in second[1]}
    new_names = {group.gid: group.name for group in two.groups}
    assert [old_names[u.gid] for u in second[0]] == [new_names[u.gid] for u in two.users]


@given(trees())
def test_planning_again_changes_nothing(tree: tuple[tuple[Account, ...], tuple[Group, ...]]) -> None:
    once = ids.plan(IdLock(), *tree)
    again = ids.plan(once.lock, once.users, once.groups)
    assert (again.chown, again.chgrp, again.lock) == ({}, {}, once.lock)
    assert ids.parse_lock(once.lock.text()) == once.lock
