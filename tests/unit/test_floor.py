# SPDX-License-Identifier: Apache-2.0
"""The rollback floor in the early step: the rule, its two copies, and a real TPM (swtpm)."""

from __future__ import annotations

import random
import shutil
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lab_socket import wait_for

from freehold.build.store import cache_directory
from freehold.build.tools import Tools, ensure
from freehold.monitor import NullMonitor
from freehold.run import run, start

EARLY = Path(__file__).parents[2] / "early"
MACHINE, OTHER = "0123456789abcdef" * 2, "f" * 32
DIGEST = "ab" * 32
OPEN, AUDIT, LOCKED = 0, 1, 2
ABSENT, VALID, INVALID = 0, 1, 2
LIMIT = 1 << 53


@dataclass(frozen=True)
class Facts:
    """As ``struct floor_facts``; ``file`` and ``tpm`` are (present, raised, serial)."""

    standing: int = VALID
    lock: int = LOCKED
    named: int = 0
    floor: int = 0
    serial: int = 1
    release: int = 100
    confirmed: int = 0
    file: int = 0
    file_raised: int = 0
    file_serial: int = 0
    tpm: int = 0
    foreign: int = 0
    tpm_raised: int = 0
    tpm_serial: int = 0


@dataclass(frozen=True)
class Floor:
    raised: int
    serial: int
    effective: int
    refused: int
    risen: int
    set: int


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The early step's sources with the sanitizers on."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    target = tmp_path_factory.mktemp("c") / "floor"
    names = ("floor", "memory", "sha256", "tpm", "util")
    sources = [Path(__file__).parent / "c/floor_main.c", *(EARLY / f"{name}.c" for name in names)]
    flags = ["-std=gnu17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]
    run(["cc", *flags, "-fno-sanitize-recover=all", "-Wl,--wrap=say", f"-I{EARLY}", "-o", target, *sources])
    return target


def judge(program: Path, some: list[Facts]) -> list[Floor]:
    lines = "".join(" ".join(map(str, astuple(facts))) + "\n" for facts in some)
    answers = run([program, "judge"], stdin=lines.encode()).text.splitlines()
    return [Floor(*map(int, line.split())) for line in answers]


def records(program: Path, what: str, inputs: list[bytes]) -> list[str]:
    stdin = b"".join(struct.pack("<I", len(data)) + data for data in inputs)
    return run([program, what], stdin=stdin).text.splitlines()


SMALL = st.integers(0, 6)
FACTS = st.builds(
    Facts,
    standing=st.sampled_from([ABSENT, VALID, INVALID]), lock=st.sampled_from([OPEN, AUDIT, LOCKED]),
    named=st.integers(0, 1), floor=SMALL, serial=st.integers(1, 6), release=SMALL, confirmed=st.integers(0, 1),
    file=st.integers(0, 1), file_raised=SMALL, file_serial=SMALL,
    tpm=st.integers(0, 1), foreign=st.integers(0, 1), tpm_raised=SMALL, tpm_serial=SMALL,
)  # fmt: skip


def test_the_table(program: Path) -> None:
    plain = Facts()
    both = replace(plain, file=1, file_raised=50, file_serial=1, tpm=1, tpm_raised=50, tpm_serial=1)
    rows = {
        # No floor anywhere.
        plain: Floor(0, 0, 0, 0, 0, 0),
        # The owner's first word is also the first raised floor.
        replace(plain, named=1, floor=100): Floor(100, 1, 100, 0, 0, 0),
        replace(plain, named=1, floor=101): Floor(101, 1, 101, 1, 0, 0),
        # A release without a number counts as 0.
        replace(plain, named=1, floor=1, release=0): Floor(1, 1, 1, 1, 0, 0),
        # Equal is not below.
        replace(both, release=50): Floor(50, 1, 50, 0, 0, 0),
        replace(both, release=49): Floor(50, 1, 50, 1, 0, 0),
        # Open and audit enforce nothing and raise nothing.
        replace(both, release=49, lock=OPEN): Floor(50, 1, 50, 0, 0, 0),
        replace(both, release=99, lock=AUDIT, confirmed=1): Floor(50, 1, 50, 0, 0, 0),
        # An intent that is not believed is locked: the floor stands, and does not rise.
        replace(both, release=49, standing=INVALID): Floor(50, 1, 50, 1, 0, 0),
        replace(both, release=99, standing=INVALID, confirmed=1): Floor(50, 1, 50, 0, 0, 0),
        replace(both, release=49, standing=ABSENT): Floor(50, 1, 50, 0, 0, 0),
        # Raised to this release where it was healthy before, and never while it is refused.
        replace(both, confirmed=1): Floor(100, 1, 100, 0, 1, 0),
        replace(both, confirmed=1, release=49): Floor(50, 1, 50, 1, 0, 0),
        # One copy lost, or put back: the other one stands.
        replace(both, release=49, tpm=0): Floor(50, 1, 50, 1, 0, 0),
        replace(both, release=49, file=0): Floor(50, 1, 50, 1, 0, 0),
        replace(both, release=49, file_raised=10, file_serial=0): Floor(50, 1, 50, 1, 0, 0),
        # The owner lowers it: a newer intent with a floor, and no other one.
        replace(both, release=49, named=1, floor=40, serial=2): Floor(40, 2, 40, 0, 0, 1),
        replace(both, release=49, named=1, floor=0, serial=2): Floor(0, 2, 0, 0, 0, 1),
        replace(both, release=49, named=0, floor=0, serial=2): Floor(50, 1, 50, 1, 0, 0),
        replace(both, release=49, named=1, floor=40, serial=1): Floor(50, 1, 50, 1, 0, 0),
        # A cut after one of the two copies was lowered: the other one follows.
        replace(both, named=1, floor=40, serial=2, tpm_raised=40, tpm_serial=2): Floor(40, 2, 40, 0, 0, 1),
        # The TPM's copy is another machine's: it counts until the owner signs for this one.
        replace(plain, tpm=1, foreign=1, tpm_raised=200, tpm_serial=9): Floor(0, 0, 0, 0, 0, 0),
        replace(plain, tpm=1, foreign=1, tpm_raised=200, tpm_serial=9, standing=INVALID): Floor(200, 9, 200, 1, 0, 0),
    }
    assert dict(zip(rows, judge(program, list(rows)), strict=True)) == rows


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(FACTS, min_size=20, max_size=60))
def test_what_always_holds(program: Path, some: list[Facts]) -> None:
    for facts, floor in zip(some, judge(program, some), strict=True):
        locked = facts.standing == INVALID or (facts.standing == VALID and facts.lock == LOCKED)
        named = facts.standing == VALID and facts.named
        # Refused exactly when locked and below.
        assert floor.refused == (locked and facts.release < floor.effective)
        # The owner's own floor always counts.
        assert floor.effective >= (facts.floor if named else 0)
        # It rises to the release that boots, and to nothing else.
        if floor.risen:
            assert facts.confirmed
            assert (floor.raised, floor.effective, floor.refused) == (facts.release, facts.release, 0)
        # It sinks below a copy that is this machine's only by a newer word of the owner's.
        copies = [(facts.file, 0, facts.file_raised, facts.file_serial)]
        copies += [(facts.tpm, facts.foreign, facts.tpm_raised, facts.tpm_serial)]
        for present, foreign, raised, serial in copies:
            if present and not (foreign and facts.standing == VALID) and not (named and serial < facts.serial):
                assert floor.raised >= raised
        # Nothing but a copy, the owner's word or this release is ever the floor.
        assert floor.raised in {0, facts.file_raised, facts.tpm_raised, facts.floor, facts.release}
        # A second boot with what was stored changes nothing.
    again = [
        replace(
            facts, file=1, file_raised=floor.raised, file_serial=floor.serial,
            tpm=1, foreign=0, tpm_raised=floor.raised, tpm_serial=floor.serial,
        )
        for facts, floor in zip(some, judge(program, some), strict=True)
    ]  # fmt: skip
    once = judge(program, again)
    assert [(floor.raised, floor.serial) for floor in once] == [(f.file_raised, f.file_serial) for f in again]
    assert not any(floor.set or floor.risen for floor in once)


def test_the_file_has_one_spelling(program: Path) -> None:
    def text(raised: object, serial: object) -> bytes:
        return f"freehold-floor 1\nraised {raised}\nserial {serial}\n".encode()

    good = [text(0, 0), text(7, 3), text(LIMIT, LIMIT)]
    bad = [
        b"", text("07", 0), text("+7", 0), text(-7, 0), text(LIMIT + 1, 0), text(0, LIMIT + 1), text("9" * 30, 0),
        text(7, 3)[:-1], text(7, 3) + b"\n", text(7, 3).replace(b" 3", b"  3"), text(7, 3).replace(b"1\n", b"2\n"),
        text(7, 3).replace(b"\n", b" "), text(7, "3\0"), b"x" * 96, b"x" * 5000, b"freehold-floor 1\nraised 7\n",
    ]  # fmt: skip
    assert records(program, "text", [*good, *bad]) == ["0 0", "7 3", f"{LIMIT} {LIMIT}", *["refused"] * len(bad)]


@pytest.mark.parametrize(
    ("floor", "release", "taken"),
    [("-", 0, True), ("0", 0, True), ("5", 5, True), ("5", 4, False), ("5", 0, False), ("4", 5, True)],
)
def test_an_intent_that_would_refuse_its_own_taker_is_left(program: Path, floor: str, release: int, taken: bool) -> None:
    assert run([program, "takes", floor, str(release)]).text == f"{int(taken)}\n"


NUMBERS = {
    "0": 0, "1790000000": 1_790_000_000, str(LIMIT): LIMIT, str(LIMIT + 1): 0, "": 0, "-1": 0, "+1": 0, " 1": 0, "1 ": 0,
    "01": 0, "1e3": 0, "9" * 40: 0, "0x10": 0,
}  # fmt: skip


@pytest.mark.parametrize(("text", "number"), NUMBERS.items())
def test_numbers(program: Path, text: str, number: int) -> None:
    assert run([program, "number", text]).text == f"{number}\n"


def good_answers() -> list[bytes]:
    index, attributes = 0x01846668, 1 << 2 | 1 << 14 | 1 << 18 | 1 << 25 | 1 << 29
    public = struct.pack(">HIHIHH", 14, index, 11, attributes, 0, 64) + struct.pack(">H", 34) + bytes(34)
    read = struct.pack(">IH", 66, 64) + bytes(range(64)) + b"\0\0\1\0\0"
    return [
        struct.pack(">HII", 0x8001, 10 + len(public), 0) + public,
        struct.pack(">HII", 0x8002, 10 + len(read), 0) + read,
        struct.pack(">HII", 0x8001, 10, 0x18B),
        struct.pack(">HII", 0x8001, 10, 0x148),
        struct.pack(">HII", 0x8002, 19, 0) + bytes(4) + bytes(5),
    ]


def test_answers_of_a_tpm(program: Path) -> None:
    lines = records(program, "answers", good_answers())
    assert lines[0].split()[0] == "0"
    assert lines[1].split()[1:] == ["0", "0", "0", bytes(range(64)).hex()]
    assert lines[2].split() == ["139"] * 4
    assert lines[3].split() == ["328"] * 4
    # It says 64 bytes and has 63, by its own account of its parameters.
    short = struct.pack(">HIIIH", 0x8002, 10 + 4 + 65, 0, 65, 64) + bytes(63)
    assert records(program, "answers", [short])[0].split()[1] == "-74"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 1 << 32))
def test_malformed_answers_are_errors(program: Path, seed: int) -> None:
    dice = random.Random(seed)  # noqa: S311 - test data
    some: list[bytes] = [b""]
    for _ in range(100):
        data = bytearray(dice.choice(good_answers()))
        for _ in range(dice.randrange(1, 4)):
            at = dice.randrange(len(data))
            data[at] = dice.choice([0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)])
        cut = bytes(data[: dice.randrange(len(data) + 1)])
        some += [bytes(data), cut, bytes(data) + bytes(dice.randrange(300))]
        # With its length put right, so that the rest is looked at.
        some += [cut[:2] + struct.pack(">I", len(cut)) + cut[6:]] if len(cut) >= 10 else []
    assert len(records(program, "answers", some)) == len(some)


# What follows talks to a real TPM.


@pytest.fixture(scope="module")
def tools() -> Tools:
    return ensure(cache_directory(), NullMonitor())


def raw(place: Path, tag: int, code: int, body: bytes) -> int:
    """Send a command of a TPM's as bytes; its response code."""
    with socket.socket(socket.AF_UNIX) as tpm:
        tpm.connect(str(place))
        tpm.sendall(struct.pack(">HII", tag, 10 + len(body), code) + body)
        return int.from_bytes(tpm.recv(256)[6:10], "big")


def by_owner(body: bytes) -> bytes:
    """What follows the header of a command that the owner authorizes with an empty password."""
    return struct.pack(">IIIHBH", 0x40000001, 9, 0x40000009, 0, 0, 0) + body


@contextmanager
def powered(tools: Tools, work: Path) -> Iterator[Path]:
    """A TPM from power-on to power-off; its state stays in ``work``. Its socket takes one connection after another."""
    (work / "state").mkdir(exist_ok=True)
    place = work / "sock"
    place.unlink(missing_ok=True)
    process = start(
        [
            *tools.beside("swtpm"), "socket", "--tpm2", "--server", f"type=unixio,path={place}",
            "--ctrl", f"type=unixio,path={place}.ctrl", "--tpmstate", f"dir={work}/state",
            "--flags", "not-need-init,startup-clear",
        ],
        log=work / "log",
    )  # fmt: skip
    try:
        wait_for(place)
        yield place
    finally:
        process.terminate()
        process.wait()


@dataclass
class Machine:
    """A disk and a TPM that go through boots."""

    program: Path
    work: Path
    tools: Tools

    def __post_init__(self) -> None:
        for name in ("owner", "inbox"):
            (self.work / name).mkdir()

    def settle(self, tpm: Path | None, *, release: int, serial: int = 1, floor: object = "-", standing: int = VALID,
               lock: int = LOCKED, machine: str = MACHINE) -> tuple[Floor, str, str]:  # fmt: skip
        """One boot's work: the verdict, what became of the TPM's copy, and what was said."""
        done = run([
            self.program, "settle", self.work / "owner", self.work / "inbox", tpm or "-", str(standing), str(lock), str(floor),
            str(serial), str(release), DIGEST, machine,
        ])  # fmt: skip
        *said, last = done.text.splitlines()
        *numbers, kept = last.split()
        return Floor(*map(int, numbers)), kept, " ".join(said)

    def boot(self, *, release: int, serial: int = 1, floor: object = "-", standing: int = VALID, lock: int = LOCKED,
             machine: str = MACHINE) -> tuple[Floor, str, str]:  # fmt: skip
        """:meth:`settle` between power-on and power-off."""
        with powered(self.tools, self.work) as tpm:
            return self.settle(
                tpm, release=release, serial=serial, floor=floor, standing=standing, lock=lock, machine=machine
            )

    def healthy(self) -> None:
        (self.work / "inbox/healthy").write_text(f"{DIGEST}\n")

    @property
    def file(self) -> Path:
        return self.work / "owner/floor"

    def ask(self, tpm: Path, *words: str) -> int:
        return int(run([self.program, words[0], tpm, *words[1:]]).text)


@pytest.fixture
def machine(program: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Machine:
    return Machine(program, tmp_path, request.getfixturevalue("tools"))


@pytest.fixture
def without_tpm(program: Path, tmp_path: Path) -> Machine:
    return Machine(program, tmp_path, Tools(tmp_path, ""))


def test_without_a_tpm_the_file_counts(without_tpm: Machine) -> None:
    one = without_tpm
    assert one.settle(None, release=100, lock=OPEN) == (Floor(0, 0, 0, 0, 0, 0), "none", "")
    assert not one.file.exists()
    assert one.settle(None, release=100, floor=100)[0] == Floor(100, 1, 100, 0, 0, 0)
    assert one.file.read_bytes() == b"freehold-floor 1\nraised 100\nserial 1\n"
    one.healthy()
    assert one.settle(None, release=200, floor=100)[0] == Floor(200, 1, 200, 0, 1, 0)
    assert one.settle(None, release=100, floor=100)[0].refused
    one.file.write_text("nonsense")
    floor, _, said = one.settle(None, release=100, floor=100)
    assert (floor.effective, floor.refused) == (100, 0)
    assert "damaged" in said


def test_another_images_mark_raises_nothing(without_tpm: Machine) -> None:
    for text in ("cd" * 32 + "\n", DIGEST, DIGEST + "\n\n", "", DIGEST[:-1] + "\n"):
        (without_tpm.work / "inbox/healthy").write_text(text)
        assert not without_tpm.settle(None, release=200, floor=100)[0].risen, text
    without_tpm.healthy()
    assert without_tpm.settle(None, release=200, floor=100)[0].risen


@pytest.mark.build
def test_a_machines_life_with_a_tpm(machine: Machine) -> None:
    # Never locked: the TPM is left alone.
    assert machine.boot(release=100, standing=ABSENT, lock=OPEN)[1] == "unused"
    # Locked for the first time.
    floor, tpm, _ = machine.boot(release=100, floor=100)
    assert (floor, tpm) == (Floor(100, 1, 100, 0, 0, 0), "anew")
    assert machine.boot(release=100, floor=100)[1] == "kept"
    # An update that proved healthy: the one before it does not boot any more, whatever happens to the file.
    machine.healthy()
    assert machine.boot(release=200, floor=100)[0].risen
    assert machine.boot(release=100, floor=100)[0].refused
    machine.file.write_bytes(b"freehold-floor 1\nraised 0\nserial 0\n")
    assert machine.boot(release=100, floor=100)[0].refused
    machine.file.unlink()
    assert machine.boot(release=100, floor=100)[0].refused
    assert machine.file.read_bytes() == b"freehold-floor 1\nraised 200\nserial 1\n"
    # The owner's word lowers both, once.
    floor, tpm, said = machine.boot(release=100, floor=50, serial=2)
    assert (floor, tpm) == (Floor(100, 2, 100, 0, 1, 1), "kept")
    assert "the owner set the rollback floor" in said
    machine.file.unlink()
    assert machine.boot(release=99, floor=50, serial=2)[0] == Floor(100, 2, 100, 1, 0, 0)
    # Open again: nothing is refused, and the copies stay.
    assert machine.boot(release=1, lock=OPEN, serial=3)[0] == Floor(100, 2, 100, 0, 0, 0)


@pytest.mark.build
def test_it_is_closed_for_the_rest_of_the_boot(machine: Machine) -> None:
    machine.boot(release=100, floor=100)
    for lock in (LOCKED, OPEN):
        with powered(machine.tools, machine.work) as tpm:
            # Before the early step was there, it is open: the test can tell.
            assert machine.ask(tpm, "write", "100", "1", MACHINE) == 0
            machine.settle(tpm, release=100, floor=100, lock=lock)
            assert machine.ask(tpm, "write", "0", "9", MACHINE) == 0x148
            # A second pass in the same boot (kexec) is no fault while nothing has to be written.
            assert machine.settle(tpm, release=100, floor=100, lock=lock)[1:] == ("kept", "")


@pytest.mark.build
def test_a_cleared_tpm_gets_the_floor_again(machine: Machine) -> None:
    machine.boot(release=100, floor=100)
    with powered(machine.tools, machine.work) as tpm:
        machine.settle(tpm, release=100, floor=100)
        # What root can do at run time.
        assert machine.ask(tpm, "undefine") == 0
    floor, kept, said = machine.boot(release=99, floor=100)
    assert floor.refused
    assert kept == "anew"
    assert "cleared, or another board" in said
    machine.file.unlink()
    assert machine.boot(release=99)[0].refused


@pytest.mark.build
def test_an_index_that_is_not_ours_is_replaced(machine: Machine) -> None:
    machine.boot(release=100, floor=100)
    with powered(machine.tools, machine.work) as tpm:
        assert machine.ask(tpm, "undefine") == 0
        assert machine.ask(tpm, "define", "8") == 0
        assert machine.settle(tpm, release=99, floor=100)[1] == "anew"
        assert machine.ask(tpm, "write", "0", "9", MACHINE) == 0x148
    assert machine.boot(release=99, floor=100)[1] == "kept"


@pytest.mark.build
def test_an_index_that_would_stay_open_is_replaced(machine: Machine) -> None:
    """Of the right size, but without what closes it for a boot."""
    machine.boot(release=100, floor=100)
    public = struct.pack(">HIHIHH", 14, 0x01846668, 11, 1 << 2 | 1 << 18 | 1 << 25, 0, 64)
    with powered(machine.tools, machine.work) as tpm:
        assert machine.ask(tpm, "undefine") == 0
        assert raw(tpm, 0x8002, 0x12A, by_owner(b"\0\0" + public)) == 0
        assert machine.ask(tpm, "write", "0", "9", MACHINE) == 0
        floor, kept, said = machine.settle(tpm, release=99, floor=100)
        assert (floor.refused, kept) == (1, "anew")
        assert "not the one that was made" in said
        assert machine.ask(tpm, "write", "0", "9", MACHINE) == 0x148


@pytest.mark.build
def test_the_disk_is_made_anew(machine: Machine) -> None:
    """The floor of the machine that was does not keep the new one from booting an older release."""
    machine.boot(release=200, floor=200, serial=7)
    # While it was locked the TPM does not let it go (test_memory.py); the owner opens it first.
    machine.boot(release=200, serial=8, lock=OPEN)
    machine.file.unlink()
    assert not machine.boot(release=100, standing=ABSENT, lock=OPEN, machine=OTHER)[0].refused
    assert not machine.file.exists()
    floor, _, _ = machine.boot(release=100, floor=100, machine=OTHER)
    assert floor == Floor(100, 1, 100, 0, 0, 0)
    assert machine.boot(release=99, floor=100, machine=OTHER)[0].refused
    # The TPM's copy is the new machine's also where its numbers did not change.
    assert machine.boot(release=100, floor=100, machine=MACHINE)[1] == "kept"
    machine.file.unlink()
    assert machine.boot(release=99, machine=MACHINE)[0].refused


@pytest.mark.build
def test_a_tpm_with_an_owners_password_is_one_line(machine: Machine) -> None:
    """The index cannot be made then; the file counts."""
    with powered(machine.tools, machine.work) as tpm:
        assert raw(tpm, 0x8002, 0x129, by_owner(b"\0\4pass")) == 0
        floor, kept, said = machine.settle(tpm, release=100, floor=100)
        assert (floor.raised, kept) == (100, "failed")
        assert said.count("[") == 1
        assert "the TPM cannot keep what it remembers of lock and rollback floor (its answer is 0x" in said
        assert machine.settle(tpm, release=99, floor=100)[0].refused


@pytest.mark.build
def test_a_tpm_that_does_not_answer_is_one_line(machine: Machine) -> None:
    machine.boot(release=100, floor=100)
    server = machine.work / "mute"
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(server))
        mute.listen(4)
        mute.settimeout(20)

        def hang_up() -> None:
            connection, _ = mute.accept()
            connection.recv(4096)
            connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        floor, tpm, said = machine.settle(server, release=99, floor=100)
        thread.join()
    assert floor.refused
    assert tpm == "failed"
    assert said.count("[") == 1
    assert "the disk counts" in said
