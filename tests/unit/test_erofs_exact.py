# SPDX-License-Identifier: Apache-2.0
"""An image that is about to be signed: exactly what was meant, also for a reader that looks where ours does not."""

from __future__ import annotations

import dataclasses
import shutil
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lab_derive import DeriveLab, keys, tools_or_skip

from freehold.device import apply, loader
from freehold.errors import VerificationError
from freehold.keys.verity import digest_bytes
from freehold.lock import requests
from freehold.lock.requests import Karg, Requests
from freehold.monitor import NullMonitor
from freehold.seal import erofs
from freehold.seal.headerball import Entry, headerball

pytestmark = pytest.mark.build
EPOCH = 1_700_000_000
KARGS = requests.serialize(Requests((Karg("append", "loglevel=7"),)))


def entry(path: str, mode: int = stat.S_IFREG | 0o644, **more: object) -> Entry:
    made = Entry(path, mode, 0, 0)
    if stat.S_ISREG(mode) and "size" not in more:
        redirect = f"/{len(path):02x}/{path.strip('/').replace('/', '-')}.file"
        made = dataclasses.replace(made, size=10, digest=digest_bytes(path.encode()), redirect=redirect)
    return dataclasses.replace(made, **more)  # type: ignore[arg-type]


def tree() -> list[Entry]:
    """Links, empty files, attributes of files and directories, a directory of several blocks."""
    directory = stat.S_IFDIR | 0o755
    found = [
        entry("/", directory), entry("/d", directory), entry("/d/cap", xattrs=(("security.capability", b"\1" * 20),)),
        entry("/d/link", stat.S_IFLNK | 0o777, target="cap"), entry("/d/empty", size=0),
        entry("/o", directory, xattrs=(("user.note", b"x"), ("security.note", b"a longer value"))), entry("/many", directory),
        *(entry(f"/many/file-{number:04}") for number in range(400)),
    ]  # fmt: skip
    return sorted(found, key=lambda one: one.path)


def write(work: Path, entries: list[Entry]) -> bytes:
    work.mkdir(exist_ok=True)
    (work / "ball").write_bytes(headerball(entries))
    tools_or_skip().run(
        ["mkfs.erofs", "-d0", "--tar=headerball", f"-T{EPOCH}", f"-U{'0' * 8}-0000-0000-0000-{'0' * 12}", work / "image",
         work / "ball"], binds=[work],
    )  # fmt: skip
    return (work / "image").read_bytes()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("exact"), tree())


def test_what_mkfs_writes_is_exact(image: bytes) -> None:
    assert erofs.exactly(image, tree(), EPOCH) == ""


def others() -> list[list[Entry]]:
    made = []
    for at, one in enumerate(tree()):
        if one.path.startswith("/many/file-") and one.path != "/many/file-0007":
            continue
        whole = tree()
        variants = [dataclasses.replace(one, mode=one.mode ^ 0o111), dataclasses.replace(one, uid=1)]
        if one.digest:
            variants += [dataclasses.replace(one, digest=bytes(32)), dataclasses.replace(one, redirect="/aa/b.file")]
        if one.path.startswith("/d/"):
            made.append(whole[:at] + whole[at + 1 :])
        made += [[*whole[:at], variant, *whole[at + 1 :]] for variant in variants]
    return [*made, [*tree(), entry("/z")], tree()[:-1]]


def test_another_tree_is_not_it(image: bytes) -> None:
    for entries in others():
        assert erofs.exactly(image, entries, EPOCH) != ""
    assert "time" in erofs.exactly(image, tree(), EPOCH + 1)


def nid(image: bytes, path: str) -> int:
    """Where the inode of ``path`` is."""
    reader = erofs._Reader(image)
    number: int = reader.root
    for part in path.split("/")[1:]:
        number = dict(reader._names(reader._inode(number)))[part]
    return int(reader.meta + number * 32)


def xattrs(image: bytes, path: str) -> tuple[int, int]:
    """Begin and end of the attributes of ``path``."""
    reader = erofs._Reader(image)
    inode = reader._inode((nid(image, path) - reader.meta) // 32)
    return inode.xattrs[0], sum(inode.xattrs)


def changed(image: bytes, at: int, data: bytes) -> bytes:
    return image[:at] + data + image[at + len(data) :]


def swap_names(image: bytes) -> bytes:
    """Two files of one directory change places, names and inodes: the kernel, which searches by halves, would miss them."""
    reader = erofs._Reader(image)
    inode = reader._inode((nid(image, "/many") - reader.meta) // 32)
    block = inode.start * reader.block
    count = struct.unpack_from("<QH", image, block)[1] // 12
    rows = [struct.unpack_from("<QHBB", image, block + 12 * number) for number in range(count)]
    [one, two] = [
        number for number, row in enumerate(rows) if image[block + row[1] :][:9] in (b"file-0003", b"file-0004")
    ]
    (first, at_first, *_), (second, at_second, *_) = rows[one], rows[two]
    image = changed(changed(image, block + at_first, b"file-0004"), block + at_second, b"file-0003")
    image = changed(image, block + 12 * one, struct.pack("<Q", second))
    return changed(image, block + 12 * two, struct.pack("<Q", first))


def hide(image: bytes) -> bytes:
    begin, _ = xattrs(image, "/d/cap")
    return changed(image, begin, b"\xff\xff\xff\xff")


def show(image: bytes) -> bytes:
    begin, _ = xattrs(image, "/d/cap")
    return changed(image, begin, bytes(4))


def feature(offset: int) -> Callable[[bytes], bytes]:
    def change(image: bytes) -> bytes:
        (value,) = struct.unpack_from("<I", image, 1024 + offset)
        return changed(image, 1024 + offset, struct.pack("<I", value ^ 0x80))

    return change


def layout(image: bytes) -> bytes:
    at = nid(image, "/d/cap")
    return changed(image, at + 1, b"\x80")


def kind(image: bytes) -> bytes:
    """A file that the directory calls a device: overlayfs would take it for a removal."""
    name = image.index(b"emptylink") if b"emptylink" in image else image.index(b"capemptylink")
    block = name // 512 * 512
    reader = erofs._Reader(image)
    for at in range(block, name, 12):
        number, _, form, _ = struct.unpack_from("<QHBB", image, at)
        if form == 1 and reader._inode(number).size == 0:
            return changed(image, at + 10, b"\3")
    raise AssertionError


def longer(image: bytes) -> bytes:
    return image + bytes(512)


@pytest.mark.parametrize(
    "change", [swap_names, hide, show, feature(8), feature(80), layout, kind, longer], ids=lambda one: one.__name__
)
def test_what_our_reader_passes_over(image: bytes, change: Callable[[bytes], bytes]) -> None:
    """Each of these reads as the same tree, and a kernel could see another."""
    wrong = change(image)
    assert wrong != image
    assert sorted(erofs.read(wrong).entries, key=lambda one: one.path) == erofs.read(image).entries
    assert erofs.exactly(wrong, tree(), EPOCH) != ""


def attributes(names: list[tuple[int, bytes, bytes]], room: int) -> bytes:
    """Inline attributes with a header, filled up to ``room`` bytes."""
    shown, made = 0, b""
    for index, name, value in names:
        shown |= 1 << (erofs.xxh32(name, 0x25BBE08F + index) & 31)
        one = struct.pack("<BBH", len(name), index, len(value)) + name + value
        made += one + bytes(-len(one) % 4)
    assert len(made) + 12 <= room
    return struct.pack("<IB7x", shown ^ 0xFFFFFFFF, 0) + made + bytes(room - 12 - len(made))


def test_attributes_that_are_there_twice_or_behind_the_end(image: bytes) -> None:
    begin, end = xattrs(image, "/o")
    room = end - begin
    # The kernel takes the first of two, and goes on behind an empty one.
    for names in ([(1, b"a", b"1"), (1, b"a", b"2")], [(1, b"a", b"1"), (0, b"", b""), (1, b"b", b"2")]):
        wrong = changed(image, begin, attributes(names, room))
        found = next(one for one in erofs.read(wrong).entries if one.path == "/o")
        entries = [found if one.path == "/o" else one for one in tree()]
        assert "attribute" in erofs.exactly(wrong, entries, EPOCH)
    good = changed(image, begin, attributes([(1, b"a", b"1"), (1, b"b", b"2")], room))
    found = next(one for one in erofs.read(good).entries if one.path == "/o")
    assert erofs.exactly(good, [found if one.path == "/o" else one for one in tree()], EPOCH) == ""


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_a_fault_in_words(image: bytes, data: st.DataObject) -> None:
    wrong = bytearray(image)
    for _ in range(data.draw(st.integers(1, 4))):
        wrong[data.draw(st.integers(1024, len(wrong) - 1))] = data.draw(st.integers(0, 255))
    assert isinstance(erofs.exactly(bytes(wrong), tree(), EPOCH), str)


@pytest.mark.parametrize(
    ("text", "value"),
    [(b"", 0x02CC5D05), (b"a", 0x550D7456), (b"abc", 0x32D153FF), (b"Nobody inspects the spammish repetition", 0xE2293B2F)],
)
def test_the_hash_of_the_filter(text: bytes, value: int) -> None:
    """Values of the reference implementation."""
    assert erofs.xxh32(text, 0) == value


def test_an_image_that_somebody_changed_is_not_signed(tmp_path: Path) -> None:
    """Root can reach the program that writes the image: here it is one that writes another tree."""
    lab = DeriveLab(tmp_path / "lab")
    wrapper = lab.root / "mkfs"
    real = " ".join(lab.sysroot.mkfs)
    wrapper.write_text(
        f'#!/bin/sh\n{real} "$@" || exit\n'
        f"sed -i s/readme/readmf/ {lab.sysroot.root}/derive/image\n"
    )
    wrapper.chmod(0o755)
    evil = lab.sysroot._replace(mkfs=(str(wrapper),))
    with pytest.raises(VerificationError, match=r"the new image is not used: '/usr/share/doc/old/readme'"):
        apply.transact(evil, KARGS, 7, keys()["machine"], NullMonitor())
    assert len(loader.listing(lab.sysroot.esp)) == 1
    assert not [path for path in lab.sysroot.images.iterdir() if path.name != lab.running.image_digest]
    shutil.rmtree(lab.root)
