# SPDX-License-Identifier: Apache-2.0
"""Trees of /etc: what is committed lies over the factory's as it ran, what is put back is as it was, whatever was changed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.device import etc_change
from freehold.device.sysroot import Sysroot
from freehold.errors import FreeholdError
from freehold.lock import etc
from freehold.lock.drift import ADDED, CHANGED, REMOVED, Change, drift
from freehold.lock.trees import Directory, Node, Selected, Stack, Tree, joined, parents, within

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes device nodes")
NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
#: What lies at a path: a link, a file with a mode, or a directory.
THINGS = st.one_of(
    st.sampled_from(["directory", "->x", "->a"]), st.tuples(st.sampled_from(["", "1", "2"]), st.sampled_from([0o644, 0o600]))
)
TREES = st.dictionaries(PATHS, THINGS, max_size=8)


def build(top: Path, things: dict[str, object]) -> None:
    top.mkdir()
    for path, thing in sorted(things.items()):
        target = top / path
        if not target.parent.is_dir() or target.parent.is_symlink():
            continue
        if thing == "directory":
            target.mkdir()
        elif isinstance(thing, str):
            target.symlink_to(thing.removeprefix("->"))
        elif isinstance(thing, tuple):
            target.write_text(thing[0])
            target.chmod(thing[1])


@contextmanager
def two(first: dict[str, object], second: dict[str, object]) -> Iterator[tuple[Path, Path, Path]]:
    work = Path(tempfile.mkdtemp(prefix="freehold-trees-"))
    try:
        build(work / "one", first)
        build(work / "two", second)
        yield work / "one", work / "two", work
    finally:
        shutil.rmtree(work)


def listing(tree: Tree, path: str = "") -> dict[str, tuple[Node, bytes]]:
    found = {}
    for name in tree.names(path):
        at = joined(path, name)
        node = tree.look(at)
        assert node is not None, at
        found[at] = (node, tree.read(at) if node.kind == 0o100000 else b"")
        if node.is_directory:
            found |= listing(tree, at)
    return found



@needs_root
@settings(max_examples=150)
@given(TREES, TREES)
def test_what_is_committed_lies_over_the_factory_s_as_it_ran(first: dict[str, object], second: dict[str, object]) -> None:
    with two(first, second) as (factory, running, work):
        changes = list(drift(Directory(factory), Directory(running), ignore=()))
        etc.stage(changes, Directory(running), work / "staging")
        shown = Stack(Directory(work / "staging"), Directory(factory))
        assert listing(shown) == listing(Directory(running))
        assert list(drift(shown, Directory(running), ignore=())) == []


@settings(max_examples=150)
@given(TREES, TREES, st.lists(PATHS, min_size=1, max_size=2))
def test_a_choice_has_each_path_from_its_tree(first: dict[str, object], second: dict[str, object], paths: Sequence[str]) -> None:
    with two(first, second) as (one, other, _):
        base, new = Directory(one), Directory(other)
        mixed, old_list, new_list = listing(Selected(base, new, paths)), listing(base), listing(new)
        assert {path: mixed.get(path) for path in new_list if within(path, paths)} == {
            path: thing for path, thing in new_list.items() if within(path, paths)
        }
        for path, thing in mixed.items():
            if within(path, paths):
                assert new_list.get(path) == thing
            else:
                leads = any(path in parents(one) for one in paths)
                assert old_list.get(path) == thing or (leads and new_list.get(path) == thing), path
        for path, thing in old_list.items():
            # What was not chosen stays, unless a directory takes the place of what it lies in, or of itself.
            if not within(path, paths) and not any(path in parents(one) for one in paths):
                assert mixed.get(path) == thing, path


@settings(max_examples=150)
@given(TREES, TREES)
def test_put_back_is_as_it_was(first: dict[str, object], second: dict[str, object]) -> None:
    with two(first, second) as (base, running, work):
        (work / "system").mkdir()
        running.rename(work / "system/etc")
        sysroot = Sysroot(root=work, system=work / "system")
        before = list(drift(Directory(base), Directory(work / "system/etc"), ignore=()))
        done = etc_change.put_back(sysroot, Directory(base), ())
        assert listing(Directory(work / "system/etc")) == listing(Directory(base))
        assert bool(done) == bool(before)
        assert etc_change.put_back(sysroot, Directory(base), ()) == []


def test_machine_state_is_left_where_it_is(tmp_path: Path) -> None:
    base, running = tmp_path / "base", tmp_path / "system/etc"
    base.mkdir()
    (running / "ssh").mkdir(parents=True)
    (running / "ssh/ssh_host_ed25519_key").write_text("the machine's")
    (running / "ssh/extra").write_text("x")
    (running / "passwd").write_text("the machine's")
    etc_change.put_back(Sysroot(root=tmp_path, system=tmp_path / "system"), Directory(base), ())
    assert sorted(path.name for path in running.rglob("*")) == ["passwd", "ssh", "ssh_host_ed25519_key"]


def test_only_the_named_paths_are_put_back(tmp_path: Path) -> None:
    base, running = tmp_path / "base", tmp_path / "system/etc"
    for top, text in ((base, "old"), (running, "new")):
        (top / "d").mkdir(parents=True)
        for name in ("d/one", "d/two"):
            (top / name).write_text(text)
    (base / "gone/deep").mkdir(parents=True)
    (base / "gone/deep/file").write_text("old")
    (base / "gone/other").write_text("old")
    sysroot = Sysroot(root=tmp_path, system=tmp_path / "system")
    assert etc_change.put_back(sysroot, Directory(base), ["d/one"]) == [Change("d/one", CHANGED)]
    assert ((running / "d/one").read_text(), (running / "d/two").read_text()) == ("old", "new")
    done = etc_change.put_back(sysroot, Directory(base), ["gone/deep/file"])
    assert done == [Change(path, ADDED) for path in ("gone", "gone/deep", "gone/deep/file")]
    assert not (running / "gone/other").exists()
    assert etc_change.inverse(done)[0] == Change("gone", REMOVED)


def test_links_on_the_way_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("secret")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/d").symlink_to(tmp_path / "outside")
    tree = Directory(tmp_path / "etc")
    assert (tree.look("d/secret"), tree.names("d")) == (None, [])
    (tmp_path / "etc/file").symlink_to(tmp_path / "outside/secret")
    with pytest.raises(OSError, match="symbolic links"):
        tree.read("file")
    # A directory in the place of a link has nothing of what the link leads to.
    (tmp_path / "running/d").mkdir(parents=True)
    assert list(drift(tree, Directory(tmp_path / "running"), ignore=["file"])) == [Change("d", CHANGED)]
    with pytest.raises(FreeholdError, match="went away"):
        etc.put(tree, "none", tmp_path / "target")


def test_an_upper_file_covers_a_lower_directory(tmp_path: Path) -> None:
    (tmp_path / "lower/d").mkdir(parents=True)
    (tmp_path / "lower/d/file").touch()
    (tmp_path / "upper").mkdir()
    (tmp_path / "upper/d").touch()
    tree = Stack(Directory(tmp_path / "upper"), Directory(tmp_path / "lower"))
    assert (tree.look("d/file"), tree.names("d"), tree.names("")) == (None, [], ["d"])


def test_what_was_not_touched_is_not_read(tmp_path: Path) -> None:
    for top, text in (("base", "1"), ("running", "2")):
        (tmp_path / top / "d").mkdir(parents=True)
        (tmp_path / top / "d/file").write_text(text)
        (tmp_path / top / "seen").write_text(text)
    (tmp_path / "base/gone").touch()
    trees = Directory(tmp_path / "base"), Directory(tmp_path / "running")
    found = list(drift(*trees, ignore=(), touched=lambda path: path == "seen"))
    assert found == [Change("gone", REMOVED), Change("seen", CHANGED)]
    assert Change("d/file", CHANGED) in list(drift(*trees, ignore=()))


def test_pipes_in_the_running_etc_are_no_drift(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "running").mkdir()
    os.mkfifo(tmp_path / "running/pipe")
    trees = Directory(tmp_path / "base"), Directory(tmp_path / "running")
    assert list(drift(*trees, ignore=())) == []
    assert list(drift(*reversed(trees), ignore=())) == []
