# SPDX-License-Identifier: Apache-2.0
"""The two archive writers, read back by programs that are not ours."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import io
import lzma
import shutil
import stat
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold import run
from freehold.build import initrd
from freehold.build.store import cache_directory
from freehold.build.tools import Tools, identity
from freehold.errors import InputError
from freehold.seal import cpio, headerball
from freehold.seal.headerball import Entry

names = st.text(st.sampled_from("ab.- ä"), min_size=1, max_size=70).filter(lambda name: name not in (".", ".."))
paths = st.lists(names, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
entries = st.builds(
    Entry,
    path=paths, mode=st.integers(0, 0o7777).map(lambda bits: stat.S_IFREG | bits), uid=st.integers(0, 65_535),
    gid=st.integers(0, 65_535), size=st.integers(0, (1 << 33) - 1),
    redirect=st.just("/aa/bb.file"), digest=st.binary(min_size=32, max_size=32),
)  # fmt: skip


def parse_newc(data: bytes) -> list[tuple[str, int, int, bytes]]:
    """(name, mode, inode, data) of each member: an own reader, after the kernel's description."""
    found: list[tuple[str, int, int, bytes]] = []
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = data[at + 110 : at + 110 + fields[11] - 1].decode()
        at += (110 + fields[11] + 3) & ~3
        if name == "TRAILER!!!":
            assert at == len(data)
            return found
        found.append((name, fields[1], fields[0], data[at : at + fields[6]]))
        at += (fields[6] + 3) & ~3


@given(st.dictionaries(
    st.lists(st.text("abc", min_size=1, max_size=9), min_size=1, max_size=3).map("/".join), st.binary(max_size=9)
))  # fmt: skip
def test_cpio_gives_back_what_went_in(files: dict[str, bytes]) -> None:
    members = {name: cpio.Member(cpio.REGULAR, data) for name, data in files.items()}
    read = parse_newc(cpio.archive(members))
    assert {name: data for name, mode, _, data in read if stat.S_ISREG(mode)} == files
    order = [name for name, *_ in read]
    assert order == sorted(order)
    assert len({inode for _, _, inode, _ in read}) == len(read)
    for name in files:
        parent = name.rpartition("/")[0]
        assert not parent or order.index(parent) < order.index(name)


def test_cpio_depends_on_contents_only() -> None:
    one, two = cpio.Member(cpio.REGULAR, b"1"), cpio.Member(cpio.EXECUTABLE, b"2")
    assert cpio.archive({"a": one, "b": two}) == cpio.archive({"b": two, "a": one})


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed")
def test_cpio_is_read_by_cpio() -> None:
    data = cpio.archive({"usr/bin/one": cpio.Member(cpio.EXECUTABLE, b"x"), "dev": cpio.Member(cpio.DIRECTORY)})
    assert run.run(["cpio", "-t", "--quiet"], stdin=data).text.split() == ["dev", "usr", "usr/bin", "usr/bin/one"]


def headers(data: bytes) -> list[tarfile.TarInfo]:
    """A headerball's entries as ``tarfile`` reads them; one at a time, since sizes have no data behind them."""
    found, at = [], 0
    while data[at : at + 512] != b"\0" * 512:
        stop = at + 512
        if data[at + 156 : at + 157] == b"x":
            stop += 512 + (int(data[at + 124 : at + 135], 8) + 511 & ~511)
        with tarfile.open(fileobj=io.BytesIO(data[at:stop] + b"\0" * 1024)) as reader:
            member = reader.next()
            assert member is not None
            found.append(member)
        at = stop
    assert data[at:] == b"\0" * 1024
    return found


@given(st.lists(entries, max_size=5))
@settings(deadline=None)
def test_tarfile_reads_the_headerball(items: list[Entry]) -> None:
    wanted = {item.path: item for item in items}
    read = headers(headerball.headerball(items))
    assert [one.name for one in read] == [path.lstrip("/") for path in sorted(wanted)]
    for member, path in zip(read, sorted(wanted), strict=True):
        item = wanted[path]
        assert (member.uid, member.gid, member.mode, member.size) == (item.uid, item.gid, item.mode & 0o7777, item.size)
        assert ("SCHILY.xattr.trusted.overlay.redirect" in member.pax_headers) == (item.size > 0)


def test_links_directories_and_long_names() -> None:
    long = "/" + "d" * 90 + "/" + "f" * 90
    read = headers(headerball.headerball([
        Entry("/", stat.S_IFDIR | 0o755, 0, 0), Entry("/l", stat.S_IFLNK | 0o777, 0, 0, target="t" * 150),
        Entry(long, stat.S_IFDIR | 0o700, 1, 2),
    ]))  # fmt: skip
    assert [one.type for one in read] == [tarfile.DIRTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE]
    assert read[1].name == long.lstrip("/")
    assert read[2].linkname == "t" * 150


@pytest.mark.parametrize("length", [99, 100, 101, 110])
def test_names_around_the_header_s_width(length: int) -> None:
    name, target = "n" * length, "t" * length
    [read] = headers(headerball.headerball([Entry("/" + name, stat.S_IFLNK | 0o777, 0, 0, target=target)]))
    assert (read.name, read.linkname) == (name, target)


def test_metacopy_names_the_digest() -> None:
    digest = bytes(range(32))
    data = headerball.encode(Entry("/f", stat.S_IFREG | 0o644, 0, 0, 5, redirect="/aa/b.file", digest=digest))
    assert b"trusted.overlay.metacopy=\x00\x24\x00\x01" + digest in data
    assert b"trusted.overlay.redirect=/aa/b.file\n" in data


@pytest.mark.parametrize("change", [{"size": 1 << 33}, {"uid": 1 << 21}, {"gid": 1 << 21}])
def test_numbers_beyond_the_format_are_refused(change: dict[str, int]) -> None:
    fits = Entry("/f", stat.S_IFREG | 0o644, 0, 0, 5, digest=b"d" * 32)
    largest = {name: value - 1 for name, value in change.items()}
    assert len(headerball.encode(dataclasses.replace(fits, **largest))) % 512 == 0  # type: ignore[arg-type]
    with pytest.raises(InputError, match="too large"):
        headerball.encode(dataclasses.replace(fits, **change))  # type: ignore[arg-type]


def test_other_kinds_have_no_place() -> None:
    with pytest.raises(KeyError):
        headerball.encode(Entry("/p", stat.S_IFIFO | 0o644, 0, 0))


DEP = """kernel/fs/erofs/erofs.ko.xz: kernel/lib/crc/libcrc32c.ko.xz kernel/lib/lz4/lz4.ko.xz
kernel/lib/crc/libcrc32c.ko.xz:
kernel/lib/lz4/lz4.ko.xz:
kernel/drivers/block/virtio_blk.ko.xz: kernel/drivers/virtio/virtio-ring.ko.xz
kernel/drivers/virtio/virtio-ring.ko.xz:
kernel/sound/snd.ko.xz:
"""


def test_initrd_selects_modules_with_their_dependencies() -> None:
    chosen = initrd.select(
        initrd.parse_dependencies(DEP),
        ["# comment", "alias virtio:d00000002v* virtio_blk", "alias pci:sound* snd", "alias broken"],
    )
    assert chosen.rules.splitlines() == ["! lz4.ko libcrc32c.ko erofs.ko", "virtio:d00000002v* virtio_ring.ko virtio_blk.ko"]
    assert chosen.files["virtio_ring.ko"] == "kernel/drivers/virtio/virtio-ring.ko.xz"
    assert "snd.ko" not in chosen.files


@pytest.mark.parametrize(("name", "packed"), [
    ("m.ko", b"module"), ("m.ko.xz", lzma.compress(b"module")), ("m.ko.gz", gzip.compress(b"module", mtime=0)),
    ("m.ko.bz2", bz2.compress(b"module")),
])  # fmt: skip
def test_modules_are_decompressed(name: str, packed: bytes) -> None:
    assert initrd.decompress(name, packed) == b"module"
    assert initrd.module_name(f"kernel/x/{name}") == "m"


@pytest.mark.skipif(not Tools(cache_directory() / f"tools-{identity()}", identity()).root.is_dir(), reason="no tools tree yet")
def test_mkfs_erofs_takes_the_headerball(tmp_path: Path) -> None:
    tools = Tools(cache_directory() / f"tools-{identity()}", identity())
    items = [
        Entry("/", stat.S_IFDIR | 0o755, 0, 0), Entry("/d", stat.S_IFDIR | 0o750, 3, 4),
        Entry("/d/file", stat.S_IFREG | 0o640, 5, 6, 5_000_000_000, redirect="/aa/bb.file", digest=b"d" * 32),
        Entry("/link", stat.S_IFLNK | 0o777, 0, 0, target="d/file"),
    ]  # fmt: skip
    made = []
    for name in ("one", "two"):
        (tmp_path / "ball").write_bytes(headerball.headerball(items))
        options = ["-d0", "--tar=headerball", "-T0", "-U00000000-0000-0000-0000-000000000000"]
        tools.run(["mkfs.erofs", *options, tmp_path / name, tmp_path / "ball"], binds=[tmp_path])
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1]
    assert len(made[0]) < 65_536
    shown = tools.run(["dump.erofs", "--path=/d/file", tmp_path / "one"], binds=[tmp_path]).text
    assert "Size: 5000000000" in shown
    assert "Uid: 5   Gid: 6  Access: 0640" in shown
    assert b"overlay.metacopy\x00\x24\x00\x01" + b"d" * 32 in made[0]
