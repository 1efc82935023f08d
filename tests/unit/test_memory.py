# SPDX-License-Identifier: Apache-2.0
"""What the TPM remembers of the owner's word: the rule, the id that goes with it, files, and a real TPM (swtpm)."""

from __future__ import annotations

import hashlib
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_floor import ABSENT, INVALID, MACHINE, OPEN, OTHER, VALID, Machine, machine, powered, program, records, tools
from test_floor import AUDIT as AUDITED

from freehold.lock import intent, memory
from freehold.run import run

EARLY = Path(__file__).parents[2] / "early"
NOTHING, REMEMBERED_OPEN, AUDIT, REMEMBERED_LOCKED = range(4)
LIMIT = 1 << 53
# The fixtures: the program with a TPM, a machine's life, the tree with swtpm.
__all__ = ["machine", "program", "tools"]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``early/owner.c`` with the sanitizers on; its files lie below the directory in which it runs."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    target = tmp_path_factory.mktemp("c") / "owner"
    names = ("commits", "floor", "intent", "measure", "memory", "owner", "sha256", "tpm", "util", "verity")
    sources = [Path(__file__).parent / "c/owner_main.c", *(EARLY / f"{name}.c" for name in names)]
    flags = ["-std=gnu17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined", '-DDISK="."']
    wrapped = [f"-Wl,--wrap={name}" for name in ("say", "die", "keyring_verify", "verity_measure")]
    run(["cc", *flags, "-fno-sanitize-recover=all", *wrapped, f"-I{EARLY}", "-o", target, *sources])
    return target


def allowed(lock: int, serial: int, same: int, standing: int, own: int) -> tuple[int, int]:
    """The rule once more, from docs/memory.md: may it stand, may one of it be taken."""
    newest = own > serial or (own == serial and bool(same))
    if lock != REMEMBERED_LOCKED:
        return 1, 1
    return int(standing == INVALID or (standing == VALID and newest)), int(newest)


CASES = st.tuples(
    st.integers(0, 3), st.integers(0, 4), st.integers(0, 1), st.sampled_from([ABSENT, VALID, INVALID]), st.integers(1, 4)
)  # fmt: skip


def rule(program: Path, cases: list[tuple[int, int, int, int, int]]) -> list[tuple[int, int]]:
    lines = "".join(" ".join(map(str, case)) + "\n" for case in cases)
    return [tuple(map(int, line.split())) for line in run([program, "rule"], stdin=lines.encode()).text.splitlines()]  # type: ignore[misc]


def test_the_table(reader: Path) -> None:
    rows = {
        # Nothing, open and audit: an absent intent is open as ever, an older one counts.
        (NOTHING, 0, 0, ABSENT, 1): (1, 1),
        (REMEMBERED_OPEN, 7, 0, ABSENT, 1): (1, 1),
        (REMEMBERED_OPEN, 7, 0, VALID, 3): (1, 1),
        (AUDIT, 7, 0, ABSENT, 1): (1, 1),
        # Locked: gone, older, and another one of that number are not believed.
        (REMEMBERED_LOCKED, 7, 0, ABSENT, 1): (0, 0),
        (REMEMBERED_LOCKED, 7, 0, VALID, 6): (0, 0),
        (REMEMBERED_LOCKED, 7, 0, VALID, 7): (0, 0),
        # The very one, and a newer one.
        (REMEMBERED_LOCKED, 7, 1, VALID, 7): (1, 1),
        (REMEMBERED_LOCKED, 7, 0, VALID, 8): (1, 1),
        # A damaged one is locked anyway; the signed newest, or a newer one, may take its place.
        (REMEMBERED_LOCKED, 7, 0, INVALID, 6): (1, 0),
        (REMEMBERED_LOCKED, 7, 1, INVALID, 7): (1, 1),
    }
    assert dict(zip(rows, rule(reader, list(rows)), strict=True)) == rows


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(CASES, min_size=20, max_size=80))
def test_the_rule_always(reader: Path, cases: list[tuple[int, int, int, int, int]]) -> None:
    assert rule(reader, cases) == [allowed(*case) for case in cases]


def packed(version: int = 2, lock: int = 3, floor: int = 5, floor_serial: int = 6, serial: int = 7) -> bytes:
    head = struct.pack(">BB6xQQQ", version, lock, floor, floor_serial, serial)
    return head + bytes.fromhex(MACHINE) + b"t" * 16


def test_the_index_has_one_spelling(program: Path) -> None:
    bad = [
        packed(version=1), packed(version=3), packed(version=0), packed(lock=0), packed(lock=4), packed(serial=0),
        packed(serial=LIMIT + 1), packed(floor=LIMIT + 1), packed(floor_serial=1 << 63), bytes(64), b"\xff" * 64,
        packed()[:4] + b"\1" + packed()[5:],
    ]  # fmt: skip
    good = [packed(), packed(lock=1, serial=LIMIT, floor=0, floor_serial=0)]
    unknown = f"5 locked 0 0 0 - {'0' * 32}"
    text = (b"t" * 16).hex()
    assert records(program, "memory", [*good, *bad]) == [
        f"4 locked 7 5 6 {MACHINE} {text}", f"4 open {LIMIT} 0 0 {MACHINE} {text}", *[unknown] * len(bad),
    ]  # fmt: skip


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(min_size=64, max_size=64), min_size=1, max_size=30))
def test_any_bytes_of_an_index_never_open(program: Path, some: list[bytes]) -> None:
    for data, line in zip(some, records(program, "memory", some), strict=True):
        if not line.startswith("5 locked 0"):
            assert data[0] == 2


def signed(serial: int, lock: intent.Lock = "locked", machine: str = MACHINE) -> bytes:
    wanted = intent.Intent(machine=machine, serial=serial, lock=lock, since=5)
    return intent.sign(wanted, lambda _: b"\xaa" * 256)


def text_of(data: bytes) -> str:
    return hashlib.sha256(intent.split(data)[0]).hexdigest()[:32]


@dataclass
class Disk:
    """A disk below ``place``; :meth:`read` is the early step's look at it."""

    reader: Path
    place: Path

    def put(self, name: str, data: bytes) -> None:
        (self.place / name).parent.mkdir(exist_ok=True)
        (self.place / name).write_bytes(data)

    def read(self, lock: str = "nothing", serial: int = 0, machine: str = "-", text: str = "") -> tuple[str, str]:
        """The last line, and what was said."""
        words: list[str | Path] = [self.reader, "read", "10", lock, str(serial), machine, text]
        *said, last = run(words, cwd=self.place).text.splitlines()
        return last, " ".join(said)

    def id(self) -> str:
        return (self.place / "owner/id").read_text().strip()


@pytest.fixture
def disk(reader: Path, tmp_path: Path) -> Disk:
    return Disk(reader, tmp_path)


def test_nothing_remembered_is_as_ever(disk: Disk) -> None:
    last, said = disk.read()
    assert (last.split()[1:], said) == (["absent", "0", "open", "0", "none"], "")
    assert last.split()[0] == disk.id()
    disk.put("owner/id", f"{MACHINE}\n".encode())
    disk.put("owner/intent", signed(3))
    digest = hashlib.sha256(signed(3)).hexdigest()
    assert disk.read() == (f"{MACHINE} valid 3 locked 0 {digest}", "")
    # The owner opened it last: then a machine may start anew, or from an older intent.
    assert disk.read("open", 7, MACHINE)[0].split()[1:5] == ["valid", "3", "locked", "0"]
    (disk.place / "owner/intent").unlink()
    for lock in ("open", "audit"):
        assert disk.read(lock, 7, MACHINE) == (f"{MACHINE} absent 0 open 0 none", "")


def test_a_removed_or_older_intent_is_locked(disk: Disk) -> None:
    disk.put("owner/id", f"{MACHINE}\n".encode())
    newest = signed(7)
    memory_ = ("locked", 7, MACHINE, text_of(newest))
    last, said = disk.read(*memory_)
    assert last == f"{MACHINE} invalid 0 locked 1 none"
    assert "is not believed (it is gone, and the TPM remembers that this machine was locked; number 7)" in said
    assert "sign a newer one (rescue entry, inbox), or clear the TPM" in said
    for older in (signed(6), signed(6, "open"), signed(7, "open")):
        disk.put("owner/intent", older)
        last, said = disk.read(*memory_)
        assert last == f"{MACHINE} invalid 0 locked 1 none"
        assert "it is not the newest" in said
    disk.put("owner/intent", newest)
    assert disk.read(*memory_)[0].split()[1:5] == ["valid", "7", "locked", "0"]
    disk.put("owner/intent", signed(8, "open"))
    assert disk.read(*memory_)[0].split()[1:5] == ["valid", "8", "open", "0"]


def test_the_inbox_brings_it_back(disk: Disk) -> None:
    disk.put("owner/id", f"{MACHINE}\n".encode())
    newest = signed(7)
    memory_ = ("locked", 7, MACHINE, text_of(newest))
    for refused in (signed(6, "open"), signed(7, "open"), signed(9, "open", OTHER)):
        disk.put("inbox/intent", refused)
        last, said = disk.read(*memory_)
        assert last.split()[1:5] == ["invalid", "0", "locked", "1"]
        assert "the intent in the inbox is ignored" in said
        assert not (disk.place / "owner/intent").exists()
    disk.put("inbox/intent", newest)
    assert disk.read(*memory_)[0].split()[1:5] == ["valid", "7", "locked", "0"]
    (disk.place / "owner/intent").unlink()
    disk.put("inbox/intent", signed(8, "open"))
    assert disk.read(*memory_)[0].split()[1:5] == ["valid", "8", "open", "0"]
    assert (disk.place / "owner/intent").read_bytes() == signed(8, "open")


def test_the_machine_keeps_its_id(disk: Disk) -> None:
    """With another one, and the intent of the machine that has it, it would believe what was never said of it."""
    newest = signed(7)
    memory_ = ("locked", 7, MACHINE, text_of(newest))
    # The owner's directory removed.
    assert disk.read(*memory_)[0].split()[:3] == [MACHINE, "invalid", "0"]
    assert disk.id() == MACHINE
    # The directory of another machine of the same owner.
    disk.put("owner/id", f"{OTHER}\n".encode())
    disk.put("owner/intent", signed(99, "open", OTHER))
    last, said = disk.read(*memory_)
    assert last == f"{MACHINE} invalid 0 locked 0 none"
    assert "id.aside" in said
    assert "signed for another machine" in said
    assert disk.id() == MACHINE
    assert (disk.place / "owner/id.aside").read_text() == f"{OTHER}\n"
    # Damaged; the standing intent is the newest still.
    disk.put("owner/id", b"nonsense")
    disk.put("owner/intent", newest)
    assert disk.read(*memory_)[0].split()[:4] == [MACHINE, "valid", "7", "locked"]
    # Where nothing, or open, is remembered it may have any.
    disk.put("owner/id", f"{OTHER}\n".encode())
    disk.put("owner/intent", signed(1, "locked", OTHER))
    for lock in ("nothing", "open", "audit"):
        assert disk.read(lock, 7, MACHINE, text_of(newest))[0].split()[:4] == [OTHER, "valid", "1", "locked"]
    assert disk.read("locked", 0)[0].split()[0] == OTHER  # of a version that is not known here


def test_a_version_that_is_not_known_is_locked(disk: Disk) -> None:
    disk.put("owner/id", f"{MACHINE}\n".encode())
    assert disk.read("locked", 0)[0].split()[1:5] == ["invalid", "0", "locked", "1"]
    disk.put("owner/intent", signed(1))
    assert disk.read("locked", 0)[0].split()[1:5] == ["valid", "1", "locked", "0"]


# What follows talks to a real TPM.


def remembered(machine: Machine) -> str:
    with powered(machine.tools, machine.work) as tpm:
        return run([machine.program, "show", tpm]).text.splitlines()[-1].rpartition(" ")[0]


@pytest.mark.build
def test_a_machines_life(machine: Machine) -> None:
    note = machine.work / "owner/remembered"
    machine.boot(release=1, standing=ABSENT, lock=OPEN)
    assert remembered(machine) == "1 nothing 0 0 0 -"
    assert not note.exists()
    # An intent without a floor is remembered as well.
    assert machine.boot(release=1, serial=3, lock=AUDITED)[1] == "anew"
    assert remembered(machine) == f"4 audit 3 0 0 {MACHINE}"
    assert not machine.file.exists()
    assert machine.boot(release=1, serial=4)[1:] == ("kept", "")
    assert remembered(machine) == f"4 locked 4 0 0 {MACHINE}"
    assert memory.parse(note.read_bytes()) == memory.Remembered("locked", 4, b"\4" * 16)
    # Removed, older, another id: locked, and the memory stays what it is.
    for standing, serial, name in ((ABSENT, 4, MACHINE), (VALID, 3, MACHINE), (ABSENT, 9, OTHER)):
        _, kept, said = machine.boot(release=1, serial=serial, standing=standing, lock=OPEN, machine=name)
        assert (kept, "the TPM remembers" in said) == ("kept", True)
        assert remembered(machine) == f"4 locked 4 0 0 {MACHINE}"
    # The owner opens it; then it may lose its directory, or get another id.
    assert machine.boot(release=1, serial=5, lock=OPEN)[1:] == ("kept", "")
    assert machine.boot(release=1, standing=ABSENT, lock=OPEN)[1:] == ("kept", "")
    # Under an older one that is not forgotten: what follows has a higher number.
    assert machine.boot(release=1, serial=3)[1:] == ("kept", "")
    assert remembered(machine) == f"4 open 5 0 0 {MACHINE}"
    assert memory.parse(note.read_bytes()) == memory.Remembered("open", 5, b"\5" * 16)
    assert machine.boot(release=1, serial=1, machine=OTHER)[1:] == ("kept", "")
    assert remembered(machine) == f"4 locked 1 0 0 {OTHER}"


@pytest.mark.build
def test_it_is_closed_on_every_path(machine: Machine) -> None:
    machine.boot(release=100, floor=100)
    paths = [
        {"release": 100, "floor": 100}, {"release": 99, "floor": 100}, {"release": 100, "standing": ABSENT, "lock": OPEN},
        {"release": 100, "standing": INVALID}, {"release": 100, "serial": 2}, {"release": 100, "serial": 3, "lock": OPEN},
        {"release": 100, "standing": ABSENT, "lock": OPEN},
    ]  # fmt: skip
    for path in paths:
        with powered(machine.tools, machine.work) as tpm:
            machine.settle(tpm, **path)  # type: ignore[arg-type]
            assert machine.ask(tpm, "write", "0", "9", MACHINE) == 0x148, path
    # One with values that nobody writes: locked without an intent, written anew with one; closed in both.
    for standing, state in ((ABSENT, "5 locked 0"), (VALID, "4 locked 1")):
        with powered(machine.tools, machine.work) as tpm:
            assert machine.ask(tpm, "write", str(LIMIT), str(LIMIT), "0" * 32) == 0
            assert machine.ask(tpm, "undefine") == 0
            assert machine.ask(tpm, "define", "64") == 0
            assert run([machine.program, "garbage", tpm]).text == "0\n"
            _, _, said = machine.settle(tpm, release=100, standing=standing)
            assert "it counts as locked" in said
            assert machine.ask(tpm, "write", "0", "9", MACHINE) == 0x148
            assert run([machine.program, "show", tpm]).text.splitlines()[-1].startswith(state)


@pytest.mark.build
def test_an_index_of_the_first_layout_is_replaced(machine: Machine) -> None:
    """32 bytes, floor only: the file has the floor as well."""
    machine.boot(release=100, floor=100)
    with powered(machine.tools, machine.work) as tpm:
        assert machine.ask(tpm, "undefine") == 0
        assert machine.ask(tpm, "define", "32") == 0
        floor, kept, said = machine.settle(tpm, release=99, floor=100)
        assert (floor.refused, kept) == (1, "anew")
        assert "not the one that was made" in said


@pytest.mark.build
def test_a_boot_measures_itself(machine: Machine) -> None:
    """TPM2_PCR_Extend by our bytes, read back with Debian's tools."""
    digest = hashlib.sha256(b"text").digest()
    with powered(machine.tools, machine.work) as tpm:
        assert run([machine.program, "extend", tpm, "15", digest.hex()]).text == "0\n"
        read: list[str | Path] = ["tpm2_pcrread", "-Q", "-T", f"swtpm:path={tpm}", "-o", machine.work / "pcr", "sha256:14,15"]
        machine.tools.run(read, binds=[machine.work])
        assert (machine.work / "pcr").read_bytes() == bytes(32) + hashlib.sha256(bytes(32) + digest).digest()
        # A PCR that there is none of is an error and no success.
        assert int(run([machine.program, "extend", tpm, "99", digest.hex()]).text) > 0
