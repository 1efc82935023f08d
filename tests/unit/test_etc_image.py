# SPDX-License-Identifier: Apache-2.0
"""Committed images read back without mounting: the same as erofs-utils read, no more than they hold, and compared."""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lab_derive import tools_or_skip

from freehold.device import etc_image, etc_paths
from freehold.device.etc_image import Image, changes_between
from freehold.errors import InputError
from freehold.lock.covered import COMMIT_FILE
from freehold.lock.drift import Change
from freehold.lock.trees import Directory
from freehold.seal import erofs

pytestmark = [pytest.mark.build, pytest.mark.skipif(os.geteuid() != 0, reason="makes device nodes")]


def tree(top: Path) -> Path:
    """What `freehold etc commit` may lay out."""
    (top / "etc/ssh/conf.d").mkdir(parents=True)
    (top / "etc/ssh/large").write_bytes(bytes(range(256)) * 70)
    (top / "etc/ssh/empty").touch()
    (top / "etc/ssh/secret").write_text("secret")
    (top / "etc/ssh/secret").chmod(0o600)
    os.chown(top / "etc/ssh/secret", 70_000, 8)
    (top / "etc/link").symlink_to("ssh/large")
    os.mknod(top / "etc/removed", 0o600 | stat.S_IFCHR, os.makedev(0, 0))
    for number in range(200):
        (top / f"etc/file-{number}").write_text(str(number))
    return top / "etc"


def made(top: Path, source: Path) -> bytes:
    tools_or_skip().run(
        ["mkfs.erofs", "-d0", "-T0", "-U00000000-0000-0000-0000-000000000000", top / "image", source], binds=[top]
    )
    return (top / "image").read_bytes()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    top = tmp_path_factory.mktemp("etc")
    return top, made(top, tree(top))


def test_it_has_what_was_put_in(image: tuple[Path, bytes]) -> None:
    top, data = image
    found, source = Image(data), Directory(top / "etc")
    paths = ["", *(str(path.relative_to(top / "etc")) for path in sorted((top / "etc").rglob("*")))]
    assert sorted(found.files) == sorted(paths)
    for path in paths:
        assert found.look(path) == source.look(path), path
        if stat.S_ISREG((top / "etc" / path).lstat().st_mode):
            assert found.read(path) == source.read(path), path
        assert found.names(path) == source.names(path), path
    removed = found.look("removed")
    assert removed is not None
    assert removed.removes


def test_another_reader_sees_the_same(image: tuple[Path, bytes]) -> None:
    """fsck.erofs is of erofs-utils."""
    top, data = image
    target = top / "extracted"
    tools_or_skip().run(["fsck.erofs", f"--extract={target}", "--preserve", top / "image"], binds=[top])
    found = Image(data)
    theirs = Directory(target)
    for path, file in found.files.items():
        node = theirs.look(path)
        assert node is not None, path
        assert (node.mode, node.uid, node.gid, node.target) == (file.mode, file.uid, file.gid, file.target), path
        if stat.S_ISREG(file.mode):
            assert theirs.read(path) == file.content, path


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_is_an_image_or_an_error(image: tuple[Path, bytes], data: st.DataObject) -> None:
    _, good = image
    bad = bytearray(good)
    # Superblock, inodes and directories are at its begin and its end.
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.integers(1024, 1152), st.integers(0, len(good) - 1)))
        bad[at] = data.draw(st.integers(0, 255))
    try:
        found = erofs.files(bytes(bad))
    except InputError:
        return
    assert stat.S_ISDIR(found[""].mode)
    assert all(".." not in path.split("/") and "" not in path.split("/") for path in found if path)
    assert sum(len(file.content) for file in found.values()) <= len(bad)


@given(st.binary(max_size=3000))
def test_any_bytes_are_an_error(data: bytes) -> None:
    with pytest.raises(InputError):
        erofs.files(data)


def test_attributes_and_devices_are_refused(tmp_path: Path) -> None:
    """overlayfs would go by them."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/file").touch()
    assert "file" in erofs.files(made(tmp_path, tmp_path / "etc"))
    os.setxattr(tmp_path / "etc/file", "trusted.overlay.redirect", b"/other")
    data = made(tmp_path, tmp_path / "etc")
    with pytest.raises(InputError, match="features"):
        erofs.files(data)
    # Also when the superblock does not say so.
    with pytest.raises(InputError, match="of a kind that no configuration has"):
        erofs.files(data[:1032] + b"\2" + data[1033:])
    os.removexattr(tmp_path / "etc/file", "trusted.overlay.redirect")
    os.mknod(tmp_path / "etc/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    with pytest.raises(InputError, match="'null' in the image is a device"):
        erofs.files(made(tmp_path, tmp_path / "etc"))


def test_files_hold_no_more_than_there_is_room_for(image: tuple[Path, bytes]) -> None:
    """A small image must not make gigabytes: files that share their blocks."""
    data = bytearray(image[1])
    reader = erofs._Config(bytes(data))
    names = dict(reader._names(reader._inode(reader.root)))
    for number in (1, 2):
        at = reader.meta + names[f"file-{number}"] * 32
        (form,) = struct.unpack_from("<H", data, at)
        assert not form & 1
        # Plain layout, the whole image as content.
        struct.pack_into("<H", data, at, form & 1)
        struct.pack_into("<I", data, at + 8, len(data))
        struct.pack_into("<I", data, at + 16, 0)
    with pytest.raises(InputError, match="more than it has room for"):
        erofs.files(bytes(data))


def test_images_are_compared(tmp_path: Path, image: tuple[Path, bytes]) -> None:
    before = Image(image[1])
    top = tmp_path / "etc"
    tree(tmp_path)
    (top / "ssh/secret").chmod(0o644)
    (top / "ssh/empty").unlink()
    os.mknod(top / "ssh/empty", 0o600 | stat.S_IFCHR, os.makedev(0, 0))
    (top / "file-7").unlink()
    (top / "new/deep").mkdir(parents=True)
    (top / "new/deep/file").write_text("new")
    (top / "alone").mkdir()
    (top / COMMIT_FILE).write_bytes(etc_image.write_message("about it"))
    after = Image(made(tmp_path, top))
    assert changes_between(before, after) == [
        Change("alone", "added"), Change("file-7", "returned"), Change("new/deep/file", "added"), Change("ssh/empty", "removes"),
        Change("ssh/secret", "changed"),
    ]  # fmt: skip
    assert changes_between(after, after) == changes_between(None, None) == []
    assert len(changes_between(None, after)) == len(changes_between(after, None)) == 207
    # A directory on the way, and /etc itself, are shown when others could write to them.
    (top / "new").chmod(0o777)
    os.chown(top, 5, 5)
    wide = changes_between(before, Image(made(tmp_path, top)))
    assert [one for one in wide if one not in changes_between(before, after)] == [Change("", "changed"), Change("new", "added")]
    assert (before.message, after.message) == ("", "about it")


@given(st.text(max_size=210))
def test_messages_are_one_line(text: str) -> None:
    try:
        data = etc_image.write_message(text)
    except InputError:
        assert not text or len(text) > 200 or not text.isprintable() or "\ud800" <= max(text) <= "\udfff"
        return
    assert text.isprintable()
    assert etc_image.read_message(data) == text
    assert data.count(b"\n") == 2


@given(st.binary(max_size=300))
def test_any_commit_file_has_a_message_or_none(data: bytes) -> None:
    text = etc_image.read_message(data)
    assert not text or etc_image.write_message(text) == data


@given(st.text(max_size=30))
def test_paths_are_safe_to_print(path: str) -> None:
    assert etc_paths.shown(path).isprintable()


@pytest.mark.parametrize(("given_", "path"), [
    ("/etc/ssh/", "ssh"), ("ssh/sshd_config", "ssh/sshd_config"), ("/etc/./motd", "motd"),
])  # fmt: skip
def test_paths_are_below_etc(given_: str, path: str) -> None:
    assert etc_paths.relative([given_]) == [path]


@pytest.mark.parametrize("word", ["/usr/etc/motd", "/etc", "/etc/", "", "..", "ssh/../../usr", "ssh//x", "/"])
def test_other_paths_are_refused(word: str) -> None:
    with pytest.raises(InputError) as caught:
        etc_paths.relative([word])
    assert word in caught.value.faults[0]
