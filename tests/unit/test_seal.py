# SPDX-License-Identifier: Apache-2.0
"""What a deployment is made of: kernel images taken apart, signatures, metadata images read back."""

from __future__ import annotations

import contextlib
import itertools
import stat
import struct
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st
from lab_pe import OPTIONAL, whole
from lab_release import key

from freehold.build.store import cache_directory
from freehold.build.tools import Tools
from freehold.errors import InputError
from freehold.keys.x509 import Signer
from freehold.seal import authenticode, erofs, headerball, repack
from freehold.seal.headerball import Entry


def program(**sections: bytes) -> bytes:
    """A program with these sections (``_`` for the dot), as a UKI has them."""
    return whole(*((f".{name.strip('_')}", content) for name, content in sections.items()))


UKI = program(
    text=b"code" * 300, osrel=b"ID=x\n", cmdline=b"freehold.image=00 ro", linux=b"kernel" * 999, initrd=b"initrd" * 77
)


def signer() -> Signer:
    one = key("owner", "me")
    return Signer(one.private, x509.load_der_x509_certificate(one.certificate))


@given(st.binary(max_size=6000), st.binary(max_size=600))
def test_exchange_changes_what_it_should_and_nothing_else(line: bytes, release: bytes) -> None:
    made = repack.parse(repack.exchange(repack.parse(UKI), {".cmdline": [line], ".osrel": [release]}))
    assert (made.content(".cmdline"), made.content(".osrel")) == (line, release)
    for name in (".text", ".linux", ".initrd"):
        assert made.content(name) == repack.parse(UKI).content(name)
    ordered = sorted(made.sections, key=lambda one: one.address)
    assert list(made.sections) == ordered
    for one, two in itertools.pairwise(ordered):
        assert one.address + one.size <= two.address
        assert two.address % 4096 == 0
    assert {one.name: one.address for one in made.sections}[".text"] == 4096
    back = repack.exchange(made, {".cmdline": [b"freehold.image=00 ro"], ".osrel": [b"ID=x\n"]})
    assert repack.parse(back).content(".linux") == repack.parse(UKI).content(".linux")


@given(st.binary(max_size=9000), st.binary(max_size=9000))
def test_profiles_stay_what_they_are(one: bytes, two: bytes) -> None:
    parts = {"text": b"t", "osrel": b"o", "cmdline": b"a", "linux": b"l" * 5000, "initrd": b"i", "profile": b"p"}
    parsed = repack.parse(program(**parts, profile_=b"q", cmdline_=b"b"))
    assert parsed.contents(".cmdline") == [b"a", b"b"]
    made = repack.parse(repack.exchange(parsed, {".cmdline": [one, two]}))
    assert [section.name for section in made.sections] == [section.name for section in parsed.sections]
    assert made.contents(".cmdline") == [one, two]
    assert made.contents(".profile") == [b"p", b"q"]
    assert all(a.address + a.size <= b.address for a, b in itertools.pairwise(made.sections))
    assert made.sections[0].address == parsed.sections[0].address
    with pytest.raises(InputError):
        repack.exchange(parsed, {".cmdline": [one]})


def test_what_is_not_found_by_name_does_not_move() -> None:
    parsed = repack.parse(program(cmdline=b"a", text=b"t"))
    assert repack.exchange(parsed, {".cmdline": [b"x" * 4096]})
    with pytest.raises(InputError, match="move"):
        repack.exchange(parsed, {".cmdline": [b"x" * 4097]})


@pytest.mark.parametrize(("memory", "file"), [(0, 512), (4096, 0), (4096, 768), (4096, 256), (512, 1024), (1 << 31, 1 << 31)])
def test_blocks_of_strange_sizes_are_refused(memory: int, file: int) -> None:
    """The owner's computer puts together what a machine asks for: a block of 2 GiB for each section would kill it."""
    changed = bytearray(UKI)
    struct.pack_into("<II", changed, OPTIONAL + 32, memory, file)
    with pytest.raises(InputError, match="of a kind"):
        repack.parse(bytes(changed))


def test_exchange_of_nothing_keeps_the_digest() -> None:
    same = repack.exchange(repack.parse(UKI), {".cmdline": [b"freehold.image=00 ro"]})
    assert repack.digest(repack.parse(same)) == repack.digest(repack.parse(UKI))


def test_a_section_can_be_dropped_and_must_exist() -> None:
    made = repack.parse(repack.exchange(repack.parse(UKI), {}, drop=frozenset({".osrel"})))
    assert [one.name for one in made.sections] == [".text", ".cmdline", ".linux", ".initrd"]
    with pytest.raises(InputError):
        repack.exchange(repack.parse(UKI), {".pcrsig": [b""]})


def test_a_signature_does_not_change_the_digest_and_any_byte_does() -> None:
    unsigned = repack.exchange(repack.parse(UKI), {})
    digest = repack.digest(repack.parse(unsigned))
    signed = repack.attach(unsigned, authenticode.sign(digest, signer().certificate_der(), signer().sign))
    assert repack.digest(repack.parse(signed)) == digest
    assert len(signed) % 8 == 0
    program = repack.parse(signed)
    for at in (64, program.table + 20, 1024, len(unsigned) - 1):
        changed = bytearray(signed)
        changed[at] ^= 1
        with contextlib.suppress(InputError):
            assert repack.digest(repack.parse(bytes(changed))) != digest
    with pytest.raises(InputError):
        repack.attach(signed, b"x")
    with pytest.raises(InputError):
        repack.digest(repack.parse(signed + b"more"))


@given(st.integers(0, 1400), st.binary(min_size=1, max_size=8))
@settings(max_examples=300)
def test_a_damaged_program_is_refused_or_read(at: int, junk: bytes) -> None:
    data = UKI[:at] + junk + UKI[at + len(junk) :]
    for one in (data, data[:at]):
        try:
            repack.digest(repack.parse(one))
            repack.exchange(repack.parse(one), {".cmdline": [b"x"]})
        except InputError:
            continue


def test_der() -> None:
    assert authenticode.oid("1.2.840.113549.1.7.2").hex() == "06092a864886f70d010702"
    assert authenticode.integer(0) == b"\x02\x01\0"
    assert authenticode.integer(128) == b"\x02\x02\0\x80"
    assert authenticode.tlv(4, b"x" * 300)[:4] == b"\x04\x82\x01\x2c"


def cached_tools() -> Tools:
    for root in sorted(cache_directory().glob("tools-*")):
        if (root / "usr/bin/sbverify").exists() and (root / "usr/bin/mkfs.erofs").exists():
            return Tools(root, "")
    pytest.skip("no tools tree in the cache")


@pytest.mark.build
def test_sbverify_believes_our_signatures_and_ukify_reads_our_sections(tmp_path: Path) -> None:
    tools = cached_tools()
    stub = tools.root / "usr/lib/systemd/boot/efi/linuxx64.efi.stub"
    (tmp_path / "kernel").write_bytes(stub.read_bytes())
    (tmp_path / "initrd").write_bytes(b"initrd" * 1000)
    tools.run([
        "ukify", "build", f"--linux={tmp_path}/kernel", f"--initrd={tmp_path}/initrd", "--cmdline=freehold.image=00 ro",
        "--uname=6",
        "--os-release=ID=x\n", "--stub=/usr/lib/systemd/boot/efi/linuxx64.efi.stub", f"--output={tmp_path}/uki",
    ], binds=[tmp_path])  # fmt: skip
    uki = repack.parse((tmp_path / "uki").read_bytes())
    (tmp_path / "certificate").write_bytes(signer().certificate_pem())
    for line in (b"freehold.image=11 ro", b"freehold.image=22 " + b"long " * 2000):
        unsigned = repack.exchange(uki, {".cmdline": [line]})
        pkcs7 = authenticode.sign(repack.digest(repack.parse(unsigned)), signer().certificate_der(), signer().sign)
        (tmp_path / "signed").write_bytes(repack.attach(unsigned, pkcs7))
        tools.run(["sbverify", "--cert", tmp_path / "certificate", tmp_path / "signed"], ro_binds=[tmp_path])
        shown = tools.run(["ukify", "inspect", tmp_path / "signed", "--section=.cmdline:text"], ro_binds=[tmp_path])
        assert line.decode().strip() in shown.text
        broken = bytearray((tmp_path / "signed").read_bytes())
        broken[broken.index(line) + 3] ^= 1
        (tmp_path / "broken").write_bytes(broken)
        done = tools.run(
            ["sbverify", "--cert", tmp_path / "certificate", tmp_path / "broken"], ro_binds=[tmp_path], check=False
        )
        assert done.status != 0


NAMES = st.text("abcäß._-", min_size=1, max_size=90).filter(
    lambda name: name not in (".", "..") and len(name.encode()) <= 255
)
XATTRS = st.dictionaries(
    st.sampled_from(["user.a", "security.capability", "trusted.t"]), st.binary(min_size=1, max_size=40)
)


@st.composite
def trees(draw: st.DrawFn) -> list[Entry]:
    folders = ["/"]
    entries = [Entry("/", stat.S_IFDIR | 0o755, 0, 0)]
    for name in draw(st.lists(NAMES, max_size=12, unique=True)):
        path = f"{draw(st.sampled_from(folders)).rstrip('/')}/{name}"
        mode, xattrs = draw(st.integers(0, 0o7777)), tuple(sorted(draw(XATTRS).items()))
        ids = draw(st.integers(0, 70000)), draw(st.integers(0, 70000))
        kind = draw(st.sampled_from("dlfe"))
        if kind == "d":
            folders.append(path)
            entries.append(Entry(path, stat.S_IFDIR | mode, *ids, xattrs=xattrs))
        elif kind == "l":
            entries.append(Entry(path, stat.S_IFLNK | 0o777, *ids, target=draw(NAMES) * draw(st.integers(1, 20))))
        elif kind == "f":
            size, digest = draw(st.integers(1, 1 << 32)), draw(st.binary(min_size=32, max_size=32))
            entries.append(Entry(path, stat.S_IFREG | mode, *ids, size, "", f"/aa/{'b' * 62}.file", digest, xattrs))
        else:
            entries.append(Entry(path, stat.S_IFREG | mode, *ids, xattrs=xattrs))
    return sorted(entries, key=lambda entry: entry.path)


def write(tools: Tools, directory: Path, entries: list[Entry]) -> bytes:
    (directory / "ball").write_bytes(headerball.headerball(entries))
    (directory / "image").unlink(missing_ok=True)
    options = ["-d0", "--tar=headerball", "-T77", "-U00000000-0000-0000-0000-000000000001"]
    tools.run(["mkfs.erofs", *options, directory / "image", directory / "ball"], binds=[directory])
    return (directory / "image").read_bytes()


@pytest.mark.build
@settings(max_examples=60, deadline=None)
@given(items=trees())
def test_what_mkfs_writes_is_read_back(tmp_path_factory: pytest.TempPathFactory, items: list[Entry]) -> None:
    image = erofs.read(write(cached_tools(), tmp_path_factory.mktemp("image"), items))
    assert image == erofs.Image(77, items)


@pytest.mark.build
def test_damaged_images_are_refused_or_read(tmp_path: Path) -> None:
    import random

    items = [Entry("/", stat.S_IFDIR | 0o755, 0, 0)]
    items += [Entry(f"/f{n}", stat.S_IFREG | 0o644, 0, 0, 5, "", "/aa/b.file", b"d" * 32) for n in range(300)]
    data, chance = write(cached_tools(), tmp_path, items), random.Random(7)  # noqa: S311
    assert erofs.read(data).entries == sorted(items, key=lambda entry: entry.path)
    for _ in range(3000):
        changed = bytearray(data)
        for _ in range(chance.randint(1, 6)):
            changed[chance.randrange(1024, len(changed))] = chance.randrange(256)
        try:
            erofs.read(bytes(changed[: chance.choice((len(changed), chance.randrange(len(changed))))]))
        except InputError:
            continue


def test_what_is_no_image_is_refused() -> None:
    for data in (b"", b"\0" * 5000, b"x" * 1024 + struct.pack("<I", erofs.MAGIC) + b"\xff" * 4000):
        with pytest.raises(InputError):
            erofs.read(data)
