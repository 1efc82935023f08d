# SPDX-License-Identifier: Apache-2.0
"""What ``freehold verify`` asks the kernel, answered by a real one: images, rings of keys, reading."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lab_release import key

from freehold.build.store import cache_directory
from freehold.build.tools import Tools
from freehold.device import verify_kernel
from freehold.device.verify_keys import find_ring
from freehold.keys.issue import create
from freehold.keys.kernel import measure_descriptor
from freehold.seal.headerball import Entry, headerball

SOURCES = Path(__file__).parents[2] / "src"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts")


def elsewhere(code: str, *arguments: str | Path) -> list[Any]:
    """Run ``code`` in a process of its own, whose namespaces and rings of keys end with it; the JSON that it printed."""
    argv = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, env={"PYTHONPATH": str(SOURCES)})
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert isinstance(answer, list)
    return answer


def test_reading_a_file_through(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(3_000_001))
    buffer = bytearray(1 << 20)
    with path.open("rb") as source:
        assert verify_kernel.read_through(source.fileno(), buffer) == 3_000_001
    (tmp_path / "empty").touch()
    with (tmp_path / "empty").open("rb") as source:
        assert verify_kernel.read_through(source.fileno(), buffer) == 0


def test_a_file_that_ends_too_early_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    monkeypatch.setattr(os, "readv", lambda fd, buffers: 0)
    with path.open("rb") as source, pytest.raises(OSError, match="too early") as caught:
        verify_kernel.read_through(source.fileno(), bytearray(10))
    assert caught.value.errno == errno.EIO


def test_a_file_without_verity_has_no_digest(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (tmp_path / "file").open("rb") as source:
        assert measure_descriptor(source.fileno(), "file") is None


def test_the_store_is_listed(tmp_path: Path) -> None:
    for name in ("0b/x.file", "0b/y.commit", "ff/z.file", "tmp/a.file"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "ff/link.file").symlink_to("z.file")
    found = verify_kernel.store_objects(tmp_path)
    assert found == {name: (tmp_path / name).lstat().st_ino for name in ("0b/x.file", "ff/z.file", "ff/link.file")}


RINGS = """
import json, sys
from freehold.device.verify_kernel import is_sealed, keyctl, keys_in
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
ADD_KEY = {"x86_64": 248, "aarch64": 217}[__import__("platform").machine()]
def add(kind, name, payload, ring):
    return libc.syscall(ctypes.c_long(ADD_KEY), kind, name, payload, ctypes.c_long(len(payload or b"")), ctypes.c_long(ring))
ring = add(b"keyring", b"lab", None, -2)
one = add(b"user", b"one", b"x", ring)
answers = [is_sealed(ring), is_sealed(ring)]
two = add(b"user", b"two", b"x", ring)          # the question did not close it
inside = keys_in(ring)
keyctl(29, ring, 0, 0)                          # as the early step does
answers.append(is_sealed(ring))
three = add(b"user", b"three", b"x", ring)
print(json.dumps([ring > 0, answers, sorted(inside) == sorted([one, two]), three, len(keys_in(ring)), is_sealed(1)]))
"""


def test_a_sealed_ring_is_told_from_an_open_one_and_left_as_it_is() -> None:
    made, answers, listed, refused, count, none = elsewhere(RINGS)
    if not made:
        pytest.skip("this kernel makes no rings here")
    assert answers == [False, False, True]
    assert listed and refused == -1 and count == 2
    assert none is None


NAMES = """
import ctypes, json, sys
from pathlib import Path
from freehold.device.verify_kernel import keys_in
from freehold.device.verify_keys import _name, name_of, ring_keys
libc = ctypes.CDLL(None, use_errno=True)
ADD_KEY = {"x86_64": 248, "aarch64": 217}[__import__("platform").machine()]
def add(kind, name, payload, ring):
    return libc.syscall(ctypes.c_long(ADD_KEY), kind, name, payload, ctypes.c_long(len(payload or b"")), ctypes.c_long(ring))
ring = add(b"keyring", b"lab", None, -2)
ders = [Path(name).read_bytes() for name in sys.argv[1:]]
added = [add(b"asymmetric", b"", der, ring) for der in ders]
kernel = [_name(one) for one in ring_keys(Path("/proc/keys").read_text(), keys_in(ring))]
print(json.dumps([min(added) > 0, sorted(kernel), sorted(map(name_of, ders))]))
"""


def test_the_kernel_names_certificates_as_we_do(tmp_path: Path) -> None:
    """By their subject key identifier where they have one, as ours do, else by their serial number."""
    create("vendor", "vendor", tmp_path, None)
    (tmp_path / "plain.der").write_bytes(key("owner", "me: 00ff: X509.").certificate)
    taken, kernel, ours = elsewhere(NAMES, tmp_path / "vendor.der", tmp_path / "plain.der")
    if not taken:
        pytest.skip("this kernel takes no certificates here")
    assert kernel == ours


@needs_root
def test_a_ring_of_the_kernels_own() -> None:
    keys = Path("/proc/keys").read_text()
    if ".blacklist: " not in keys:
        pytest.skip("this kernel has no ring that is called .blacklist")
    serial = find_ring(keys, ".blacklist")
    assert serial is not None and f"{serial:08x} I" in keys


LIST = """
import json, os, sys
from pathlib import Path
from freehold.device.verify_kernel import KERNEL
KERNEL.isolate()
place = Path(sys.argv[2])
fd = os.open(sys.argv[1], os.O_RDONLY)
mounted = lambda: str(place) in Path("/proc/self/mountinfo").read_text()
try:
    said = KERNEL.list_image(fd, place)
except OSError as error:
    print(json.dumps([error.errno, mounted(), place.exists()]))
else:
    rows = [[one.path, one.name, one.digest.hex(), one.size] for one in said.pointers]
    print(json.dumps([sorted(rows), sorted(said.faults), mounted(), place.exists()]))
"""


@needs_root
def test_a_metadata_image_is_listed_by_the_kernel(tmp_path: Path) -> None:
    tools = next((root for root in sorted(cache_directory().glob("tools-*")) if (root / "usr/bin/mkfs.erofs").exists()), None)
    if tools is None or "erofs" not in Path("/proc/filesystems").read_text():
        pytest.skip("needs erofs in this kernel, and the tools tree that the builder makes")
    digests = {name: hashlib.sha256(name.encode()).digest() for name in ("a", "b", "c")}
    file, directory = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755

    def objekt(name: str) -> str:
        return f"/{digests[name].hex()[:2]}/{digests[name].hex()[2:]}.file"

    entries = [
        Entry("/", directory, 0, 0),
        Entry("/usr", directory, 0, 0),
        Entry("/usr/a", file, 0, 0, 5000, redirect=objekt("a"), digest=digests["a"]),
        Entry("/usr/a b", file, 0, 0, 7, redirect=objekt("b"), digest=digests["b"]),
        Entry("/usr/empty", file, 0, 0),
        Entry("/usr/link", stat.S_IFLNK | 0o777, 0, 0, target="a"),
        Entry("/usr/odd", file, 0, 0, 9, redirect="/etc/shadow", digest=digests["c"]),
        Entry("/usr/short", file, 0, 0, 9, redirect=objekt("c"), digest=b"short"),
        Entry("/usr/alone", file, 0, 0, 0, xattrs=(("trusted.overlay.redirect", objekt("a").encode()),)),
    ]
    (tmp_path / "ball").write_bytes(headerball(entries))
    image = tmp_path / "image"
    Tools(tools, "").run(["mkfs.erofs", "-d0", "--tar=headerball", "-T0", image, tmp_path / "ball"], binds=[tmp_path])
    assert elsewhere(LIST, image, tmp_path / "place") == [
        [["/usr/a", objekt("a")[1:], digests["a"].hex(), 5000], ["/usr/a b", objekt("b")[1:], digests["b"].hex(), 7]],
        [
            ["/usr/alone", "it has a redirect but demands no digest"],
            ["/usr/odd", "its redirect names no object"],
            ["/usr/short", "its metacopy attribute is malformed"],
        ],
        False,
        False,
    ]
    # What is no image leaves nothing behind either.
    number, mounted, left = elsewhere(LIST, tmp_path / "ball", tmp_path / "place")
    assert number in (errno.EINVAL, errno.EUCLEAN, errno.ENOTBLK)
    assert not mounted and not left
