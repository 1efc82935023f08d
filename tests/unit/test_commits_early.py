# SPDX-License-Identifier: Apache-2.0
"""The early step's part in committing /etc: which image it takes over from the inbox, and what it keeps (early/commits.c)."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_floor import MACHINE
from test_memory import Disk, disk, reader

from freehold.lock import commits, intent

__all__ = ["disk", "reader"]
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the early step is root")
KEPT = 64


def image(number: int) -> bytes:
    return f"image {number}".encode()


def name(data: bytes) -> str:
    """What the test program's fs-verity measures."""
    return hashlib.sha256(data).hexdigest()


def signed(serial: int, config: bytes | str | None = None, lock: intent.Lock = "locked", *, good: bool = True) -> bytes:
    digest = name(config) if isinstance(config, bytes) else config
    wanted = intent.Intent(machine=MACHINE, serial=serial, lock=lock, since=5, config=digest)
    return intent.sign(wanted, lambda _: (b"\xaa" if good else b"\xbb") * 256)


@pytest.fixture
def locked(disk: Disk) -> Disk:
    """A machine that is locked with the image 1."""
    disk.put("owner/id", f"{MACHINE}\n".encode())
    disk.put("owner/intent", signed(3, image(1)))
    put_image(disk, "owner", image(1))
    assert disk.read()[0].split()[1:4] == ["valid", "3", "locked"]
    return disk


def put_image(disk: Disk, where: str, data: bytes, called: str | None = None) -> Path:
    path = disk.place / where / "config" / (called or name(data))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def images(disk: Disk, where: str = "owner") -> set[str]:
    return {path.name for path in (disk.place / where / "config").iterdir()}


def records(disk: Disk) -> dict[int, bytes]:
    return {int(path.name): path.read_bytes() for path in (disk.place / "owner/commits").iterdir()}


def serial(disk: Disk) -> tuple[str, str]:
    """The number of the intent that stands after a boot, and what was said."""
    last, said = disk.read()
    return last.split()[2], said


def test_what_stands_is_kept(locked: Disk) -> None:
    assert records(locked) == {3: signed(3, image(1))}
    # An intent that changes no configuration is no commit.
    locked.put("owner/intent", signed(4, image(1)))
    assert serial(locked) == ("4", "")
    assert set(records(locked)) == {3}


def test_a_machine_without_a_committed_etc_has_no_history(disk: Disk) -> None:
    disk.put("owner/id", f"{MACHINE}\n".encode())
    disk.put("owner/intent", signed(3))
    assert serial(disk) == ("3", "")
    assert records(disk) == {}


def test_the_signed_image_comes_over(locked: Disk) -> None:
    path = put_image(locked, "inbox", image(2))
    path.chmod(0o777)
    os.chown(path, 7, 7)
    locked.put("inbox/intent", signed(4, image(2)))
    assert serial(locked) == ("4", "[a new intent of the owner stands: serial 4]")
    assert images(locked, "inbox") == set()
    assert images(locked) == {name(image(1)), name(image(2))}
    status = (locked.place / "owner/config" / name(image(2))).stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o600, 0, 0)
    assert records(locked) == {3: signed(3, image(1)), 4: signed(4, image(2))}
    assert not (locked.place / "inbox/intent").exists()


def test_an_image_that_is_here_need_not_come(locked: Disk) -> None:
    put_image(locked, "inbox", image(2))
    locked.put("inbox/intent", signed(4, image(2)))
    serial(locked)
    locked.put("inbox/intent", signed(5, image(1)))
    assert serial(locked)[0] == "5"
    assert list(records(locked)) and set(records(locked)) == {3, 4, 5}


def refused(disk: Disk) -> None:
    before = images(disk)
    answer, said = serial(disk)
    assert answer == "3", said
    assert "its /etc is not here, or is not what the owner signed" in said
    assert images(disk) == before
    assert set(records(disk)) == {3}


FOUND = ["none", "other", "unverified", "empty", "directory", "link", "linked directory", "pipe", "two"]


@pytest.mark.parametrize("found", FOUND)
def test_other_images_get_nothing(locked: Disk, found: str) -> None:
    wanted = image(2)
    path = locked.place / "inbox/config" / name(wanted)
    path.parent.mkdir()
    if found == "other":
        path.write_bytes(b"root's own")
    elif found == "unverified":
        path = put_image(locked, "inbox", b"unverified")
        wanted = b"unverified"
    elif found == "empty":
        path = put_image(locked, "inbox", b"")
        wanted = b""
    elif found == "directory":
        path.mkdir()
    elif found == "link":
        path.symlink_to(put_image(locked, "elsewhere", wanted))
    elif found == "linked directory":
        put_image(locked, "elsewhere", wanted)
        path.parent.rmdir()
        path.parent.symlink_to(locked.place / "elsewhere/config")
    elif found == "pipe":
        os.mkfifo(path)
    elif found == "two":
        path.write_bytes(wanted)
        os.link(path, path.with_name("second"))
    locked.put("inbox/intent", signed(4, wanted))
    refused(locked)
    # The counterpart: with the image in its place the same intent stands.
    if found == "none":
        put_image(locked, "inbox", wanted)
        assert serial(locked)[0] == "4"


def test_an_image_of_root_s_own_gets_nothing(locked: Disk) -> None:
    put_image(locked, "inbox", b"root's own")
    locked.put("inbox/intent", signed(4, b"root's own", good=False))
    answer, said = serial(locked)
    assert (answer, "no owner's key of this keychain signed it" in said) == ("3", True)
    assert images(locked) == {name(image(1))}
    # Also beside a valid intent that names another one.
    put_image(locked, "inbox", image(2))
    locked.put("inbox/intent", signed(4, image(2)))
    assert serial(locked)[0] == "4"
    assert images(locked) == {name(image(1)), name(image(2))}
    assert images(locked, "inbox") == {name(b"root's own")}


def test_too_large_an_image_gets_nothing(locked: Disk) -> None:
    path = put_image(locked, "inbox", bytes(4096))
    os.truncate(path, (512 << 20) + 1)
    locked.put("inbox/intent", signed(4, bytes(4096)))
    refused(locked)
    os.truncate(path, 512 << 20)
    assert serial(locked)[0] == "4"


def test_a_repair_needs_no_image(locked: Disk) -> None:
    """Who unlocks a machine whose image is lost, or whose intent is damaged, is not kept out by that."""
    (locked.place / "owner/config" / name(image(1))).unlink()
    locked.put("inbox/intent", signed(4, image(1), "open"))
    assert serial(locked)[0] == "4"
    locked.put("owner/intent", b"damaged")
    locked.put("inbox/intent", signed(5, image(2), "open"))
    assert serial(locked)[0] == "5"


def test_a_never_locked_machine_takes_only_what_is_there(disk: Disk) -> None:
    disk.put("owner/id", f"{MACHINE}\n".encode())
    disk.put("inbox/intent", signed(1, image(1), "open"))
    assert serial(disk)[0] == "0"
    put_image(disk, "inbox", image(1))
    assert serial(disk)[0] == "1"


def test_a_cut_between_image_and_intent(locked: Disk) -> None:
    put_image(locked, "owner", image(2))
    locked.put("inbox/intent", signed(4, image(2)))
    assert serial(locked)[0] == "4"


def test_a_cut_between_intent_and_record(locked: Disk) -> None:
    put_image(locked, "owner", image(2))
    locked.put("owner/intent", signed(4, image(2)))
    locked.put("inbox/intent", signed(4, image(2)))
    answer, said = serial(locked)
    assert (answer, "its serial is not newer" in said) == ("4", True)
    assert set(records(locked)) == {3, 4}


def test_an_older_release_left_the_image_in_the_inbox(locked: Disk) -> None:
    """It took the intent, and knew nothing of images there."""
    locked.put("owner/intent", signed(4, image(2)))
    put_image(locked, "inbox", image(2))
    assert serial(locked) == ("4", "")
    assert images(locked) == {name(image(1)), name(image(2))}


def test_the_last_64_are_kept_and_their_images(locked: Disk) -> None:
    for number in range(4, 4 + KEPT):
        locked.put(f"owner/commits/{number}", signed(number, image(number)))
        put_image(locked, "owner", image(number))
    put_image(locked, "owner", b"no image", "notes")
    # The number of a record says which it is, not its letters: 9 is older than 10.
    put_image(locked, "inbox", image(99))
    locked.put("inbox/intent", signed(99, image(99)))
    assert serial(locked)[0] == "99"
    left = [*range(5, 4 + KEPT), 99]
    assert sorted(records(locked)) == left
    assert len(left) == KEPT
    assert images(locked) == {*(name(image(number)) for number in left), "notes"}


def test_the_standing_image_stays(locked: Disk) -> None:
    """A record that was cut to pieces names nothing; what stands is not taken away for that."""
    locked.put("owner/commits/3", b"damaged")
    locked.put("owner/commits/x", b"damaged")
    put_image(locked, "owner", image(7))
    assert serial(locked) == ("3", "")
    assert records_of(locked) == {"3", "x"}
    assert images(locked) == {name(image(1))}
    assert (locked.place / "owner/commits/3").read_bytes() == signed(3, image(1))


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from([0, 1, 2, 3]), min_size=1, max_size=6))
def test_both_keep_the_same(reader: Path, wanted: list[int]) -> None:
    """The early step, and freehold.lock.commits on an open machine."""
    with tempfile.TemporaryDirectory() as early, tempfile.TemporaryDirectory() as open_:
        disk, owner = Disk(reader, Path(early)), Path(open_)
        disk.put("owner/id", f"{MACHINE}\n".encode())
        (owner / "config").mkdir()
        for number in (1, 2, 3, 4):
            put_image(disk, "owner", image(number))
            (owner / "config" / name(image(number))).touch()
        for number, config in enumerate(wanted, start=1):
            made = signed(number, image(config) if config else None)
            disk.put("owner/intent", made)
            assert serial(disk) == (str(number), "")
            commits.keep(owner, made)
        kept = {record.serial: record.signed for record in commits.load(owner)}
        assert records(disk) == kept
        assert images(disk) == {path.name for path in (owner / "config").iterdir()}


def records_of(disk: Disk) -> set[str]:
    return {path.name for path in (disk.place / "owner/commits").iterdir()}
