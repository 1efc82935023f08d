# SPDX-License-Identifier: Apache-2.0
"""fs-verity in user space against pinned digests, an independent tree, and the kernel's structures."""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.errors import FreeholdError, InputError
from freehold.keys import kernel, verity

EDGES = [0, 1, 4095, 4096, 4097, 127 * 4096, 128 * 4096 - 1, 128 * 4096, 128 * 4096 + 1, 129 * 4096, 1 << 20]


def slow(data: bytes) -> tuple[bytes, bytes]:
    """Root and tree straight from the kernel's documentation, recursively."""
    if not data:
        return bytes(64), b""
    blocks = [data[at : at + 4096].ljust(4096, b"\0") for at in range(0, len(data), 4096)]
    hashes = [hashlib.sha256(block).digest() for block in blocks]
    if len(hashes) == 1:
        return hashes[0].ljust(64, b"\0"), b""
    level = b"".join(hashes)
    root, above = slow(level)
    return root, above + level.ljust(-(-len(level) // 4096) * 4096, b"\0")


def content(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(EDGES).flatmap(lambda edge: st.integers(max(0, edge - 2), edge + 2)) | st.integers(0, 20_000))
def test_measure(size: int) -> None:
    data = content(size)
    root, tree = slow(data)
    wanted = b"\x01\x01\x0c\0" + struct.pack("<IQ", 0, size) + root + bytes(176)
    measured = verity.measure(data)
    assert (measured.tree, measured.descriptor, measured.size) == (tree, wanted, size)
    assert measured.digest == verity.digest_bytes(data) == hashlib.sha256(wanted).digest()


def test_pinned_digest_of_nothing() -> None:
    # What the fsverity program prints and kernel 6.12 measures for an empty file.
    assert verity.digest_bytes(b"").hex() == "3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95"


def test_pinned_digest_of_two_blocks() -> None:
    # Measured by kernel 6.12 on an ext4 prepared with metadata_bytes().
    expected = "400c7463e92663e30c1d62d1cb94543766f4d2b170ae5be808c30ef3020e4eae"
    assert verity.digest_bytes(b"some text\n" * 500).hex() == expected


@pytest.mark.parametrize("size", [*EDGES, (1 << 20) + 1, 3 << 20, (3 << 20) + 4097])
def test_files(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(content(size))
    assert verity.digest_file(path) == verity.digest_bytes(content(size)) == verity.measure(path).digest
    assert verity.measure(path) == verity.measure(content(size))


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FreeholdError):
        verity.digest_file(tmp_path / "fifo")
    with pytest.raises(FreeholdError):
        verity.digest_file(tmp_path)
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(OSError, match="symbolic"):
        verity.digest_file(tmp_path / "link")


@pytest.mark.parametrize("signature", [b"", b"s" * 300, b"s" * 3836, b"s" * 3837])
@pytest.mark.parametrize("size", [0, 5, 5000, 129 * 4096])
def test_layout(size: int, signature: bytes) -> None:
    measured = verity.measure(content(size))
    data = verity.metadata_bytes(measured, signature)
    assert len(data) % 4096 == 0
    (length,) = struct.unpack("<I", data[-4:])
    start = len(measured.tree)
    descriptor, behind = data[start : start + 256], data[start + 256 : start + length]
    assert (length, behind) == (256 + len(signature), signature)
    assert struct.unpack("<I", descriptor[4:8]) == (len(signature),)
    assert hashlib.sha256(descriptor[:4] + bytes(4) + descriptor[8:]).digest() == measured.digest
    assert verity.metadata_offset(size) % 65536 == 0
    assert 0 <= verity.metadata_offset(size) - size < 65536
    # The fewest blocks that hold descriptor, signature and length.
    assert len(data) - start - length < 4096 + 4


def test_limits() -> None:
    with pytest.raises(InputError):
        verity.metadata_bytes(verity.measure(b""), b"x" * 16129)
    with pytest.raises(InputError):
        verity.formatted_digest(b"short")
    assert verity.formatted_digest(bytes(32)) == b"FSVerity\x01\x00\x20\x00" + bytes(32)


def test_kernel_structures() -> None:
    # The sizes are part of the request numbers: _IOW('f', 133, 128 bytes), _IOWR('f', 134, 4 bytes).
    assert kernel._ENABLE.size == (kernel.FS_IOC_ENABLE_VERITY >> 16) & 0x3FFF
    assert kernel._MEASURE.size == ((kernel.FS_IOC_MEASURE_VERITY >> 16) & 0x3FFF) + 32


def test_a_plain_file_has_no_measure(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    assert kernel.measure_verity(tmp_path / "file") is None
    with pytest.raises(InputError):
        kernel.enable_verity(tmp_path / "file", b"x" * 16129)
