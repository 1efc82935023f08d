# SPDX-License-Identifier: Apache-2.0
"""The rescue entry's program on a machine in a directory: what it shows, whom it believes, what it does then."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab_release import Lab

from freehold.errors import FreeholdError, InputError, VerificationError
from freehold.keys.issue import create
from freehold.keys.verify import Keychain
from freehold.keys.x509 import Signer, load_signer
from freehold.lock import intent as intents
from freehold.lock.intent import Intent
from freehold.rescue import console, credential, media, view, wish
from freehold.rescue.console import Console
from freehold.rescue.media import Medium
from freehold.rescue.session import LOG, LOG_LIMIT, Session

MACHINE = "0123456789abcdef0123456789abcdef"
LOCKED = Intent(machine=MACHINE, serial=7, lock="locked", since=5, floor=900, config="ab" * 32, requests="cd" * 32, strict=True)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("keys")
    create("me", "owner", directory, b"correct horse")
    create("stranger", "owner", directory, None)
    create("maker", "release", directory, None)
    return directory


def signer(keys: Path, name: str) -> Signer:
    return load_signer(f"file:{keys / name}.key", lambda _: b"correct horse")


@pytest.fixture
def lab(tmp_path: Path, keys: Path) -> Lab:
    made = Lab(tmp_path / "lab")
    shutil.copyfile(keys / "me.der", made.sysroot.keychain / "owner-me.der")
    owner = made.sysroot.root / "owner"
    owner.mkdir()
    (owner / "id").write_text(f"{MACHINE}\n")
    stand(made, keys, LOCKED)
    record = {"rescue": True, "intent": {"state": "valid", "serial": 7, "lock": "locked"}, "floor": 900}
    (made.sysroot.system / "run/freehold/boot.json").write_text(json.dumps(record))
    (made.sysroot.system / "usr/lib/os-release").write_text('NAME="x"\nIMAGE_VERSION=1.0\n')
    return made


def stand(lab: Lab, keys: Path, wanted: Intent) -> None:
    (lab.sysroot.root / "owner/intent").write_bytes(intents.sign(wanted, signer(keys, "me").sign))


class Seat:
    """A person at the console: lines that are typed, passphrases, a stick that is a directory."""

    def __init__(self, lab: Lab, stick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lab, self.stick = lab, stick
        self.logged: list[str] = []
        self.slept: list[float] = []
        self.lines: list[str] = []
        self.passphrase = "correct horse"
        self.session = Session(lab.sysroot, log=self.logged.append, console="tty1")

        @contextlib.contextmanager
        def mounted(medium: Medium, *, write: bool = False) -> Iterator[Path]:
            yield stick

        monkeypatch.setattr(media, "mounted", mounted)
        monkeypatch.setattr(view, "read_kernel_log", lambda: "x\nfreehold: the standing intent is fine\n")
        self.console = Console(
            self.session, reader=self._line, secret=lambda _: self.passphrase, sleep=self.slept.append,
            media_list=lambda: [Medium("/dev/sdz1", "vfat", "FREEHOLDKEY")],
        )  # fmt: skip

    def _line(self, _prompt: str) -> str:
        if not self.lines:
            raise EOFError
        return self.lines.pop(0)

    def type(self, capsys: pytest.CaptureFixture[str], line: str, *more: str) -> str:
        self.lines = list(more)
        self.console.command(line)
        return capsys.readouterr().out

    @property
    def inbox(self) -> Path:
        return self.lab.sysroot.root / "inbox/intent"

    def waiting(self) -> Intent:
        text, _ = intents.split(self.inbox.read_bytes())
        return intents.parse(text)


@pytest.fixture
def seat(lab: Lab, tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> Seat:
    stick = tmp_path / "stick"
    shutil.copytree(keys, stick)
    return Seat(lab, stick, monkeypatch)


ACTS = ("unlock", "floor 3", "boot 1.0", "repair-esp", "dbx", "logs", "shell")


def test_nothing_works_before_the_owner_proved(seat: Seat, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in seat.lab.root.rglob("*") if path.is_file() and not path.is_symlink()}
    for act in ACTS:
        assert "refused: this needs the owner's credential" in seat.type(capsys, act), act
    after = {path: path.read_bytes() for path in seat.lab.root.rglob("*") if path.is_file() and not path.is_symlink()}
    assert before == after


def test_the_owners_key_unlocks(seat: Seat, capsys: pytest.CaptureFixture[str]) -> None:
    assert "good: this is me's key" in seat.type(capsys, "key me.key")
    assert "from the next boot on" in seat.type(capsys, "unlock")
    wanted = seat.waiting()
    # Everything else that the owner said stays.
    assert replace(wanted, since=5) == replace(LOCKED, lock="open", serial=8)
    keychain = Keychain.from_directory(seat.lab.sysroot.keychain)
    standing = intents.judge((seat.lab.sysroot.root / "owner/intent").read_bytes(), keychain=keychain, machine=MACHINE)
    assert intents.judge_offer(standing, seat.inbox.read_bytes(), keychain=keychain, machine=MACHINE).accepted
    log = (seat.lab.sysroot.root / "inbox" / LOG).read_text().splitlines()
    assert len(log) == len(seat.logged) == 2
    assert "tty1: owner's key opened by me" in log[0]
    assert "unlock" in log[1]


def test_wrong_credentials_are_refused_slowed_and_logged(seat: Seat, capsys: pytest.CaptureFixture[str]) -> None:
    seat.passphrase = "wrong"
    assert "refused: that is not the passphrase" in seat.type(capsys, "key me.key")
    assert "refused: this is not the owner's key" in seat.type(capsys, "key stranger.key")
    assert "refused: this is not the owner's key" in seat.type(capsys, "key maker.key")
    (seat.stick / "junk.key").write_bytes(b"\0" * 5000)
    (seat.stick / "junk.key").chmod(0o600)
    assert "refused" in seat.type(capsys, "key junk.key")
    assert seat.slept == [2, 4, 8, 16]
    assert sum("credential refused" in line for line in seat.logged) == 4
    assert not seat.session.by
    assert "refused: this needs" in seat.type(capsys, "unlock")
    seat.passphrase = "correct horse"
    assert "good" in seat.type(capsys, "key me.key")
    assert seat.session.failures == 0


def test_a_revoked_owner_is_nobody(seat: Seat, keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import hashlib

    digest = hashlib.sha256((keys / "me.der").read_bytes()).hexdigest()
    (seat.lab.sysroot.keychain / "revoked").write_text(f"freehold-revoked 1\n{digest} lost\n")
    seat.session.keychain = Keychain.from_directory(seat.lab.sysroot.keychain)
    assert "revoked" in seat.type(capsys, "key me.key")
    assert not seat.session.by


@given(st.integers(0, 10_000))
def test_the_penalty_grows_and_ends(failures: int) -> None:
    assert 2 <= credential.penalty(failures) <= credential.penalty(failures + 1) <= 60


def answer(seat: Seat, keys: Path, name: str = "me") -> bytes:
    text = (seat.stick / console.REQUEST_NAME).read_bytes()
    signed = intents.join(text, signer(keys, name).sign(text))
    (seat.stick / f"{console.REQUEST_NAME}.signed").write_bytes(signed)
    return signed


def test_a_signed_answer_unlocks(seat: Seat, keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = seat.type(capsys, "request unlock")
    assert "written to the stick" in said
    assert f"machine {MACHINE}\nserial 8\nlock open\n" in said
    answer(seat, keys, "stranger")
    assert "refused: the answer is refused" in seat.type(capsys, "answer")
    assert seat.slept == [2]
    signed = answer(seat, keys)
    assert "good: machine" in seat.type(capsys, "answer")
    assert seat.inbox.read_bytes() == signed
    assert seat.session.by == "me"
    # It proves, but the key is not here: what needs another signature says how to get it.
    assert "request floor" in seat.type(capsys, "floor 3")
    assert "boots next" in seat.type(capsys, "boot 1.0")


def test_an_answer_can_be_typed(seat: Seat, keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seat.type(capsys, "request floor 12")
    signed = answer(seat, keys).decode()
    assert "good: machine" in seat.type(capsys, "answer -", *signed.splitlines())
    assert seat.waiting() == replace(LOCKED, serial=8, floor=12, since=seat.waiting().since)


def test_only_answers_to_this_rescues_questions_count(seat: Seat, keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A genuine answer of another time, kept by somebody, gives no shell."""
    old = replace(LOCKED, serial=8, since=6)
    (seat.stick / "old.signed").write_bytes(intents.sign(old, signer(keys, "me").sign))
    seat.type(capsys, "request access")
    assert "the answer is to another request" in seat.type(capsys, "answer old.signed")
    answer(seat, keys)
    assert "good" in seat.type(capsys, f"answer {console.REQUEST_NAME}.signed")
    # Once: the number is used up, here and from the next boot on.
    assert "refused" in seat.type(capsys, f"answer {console.REQUEST_NAME}.signed")
    assert seat.waiting().serial == 8


def test_a_proof_on_an_open_machine_changes_nothing(seat: Seat, keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A new intent would put a fresh /etc over the one that its owner changes."""
    stand(seat.lab, keys, replace(LOCKED, lock="open"))
    seat.type(capsys, "request access")
    answer(seat, keys)
    assert "good" in seat.type(capsys, "answer")
    assert not seat.inbox.exists()
    assert "does not lock this machine" in seat.type(capsys, "request unlock")
    assert "counts while locked" in seat.type(capsys, "request floor 1")


def test_two_acts_follow_each_other(seat: Seat, capsys: pytest.CaptureFixture[str]) -> None:
    seat.type(capsys, "key me.key")
    seat.type(capsys, "floor 800")
    seat.type(capsys, "unlock")
    assert (seat.waiting().serial, seat.waiting().floor, seat.waiting().lock) == (9, 800, "open")
    assert "not below" not in seat.type(capsys, "state")


def test_the_floor_only_sinks(seat: Seat, capsys: pytest.CaptureFixture[str]) -> None:
    seat.type(capsys, "key me.key")
    for number in ("900", "901", "x", "", "9" * 17):
        assert "refused" in seat.type(capsys, f"floor {number}"), number
        assert not seat.inbox.exists()
    seat.type(capsys, "floor 0")
    assert seat.waiting().floor == 0


@pytest.mark.parametrize(
    ("found", "wanted"),
    [(900, 900), ({"effective": 950, "raised": 950}, 950), (None, None), ("900", None), ({}, None), (True, None), ([1], None)],
)
def test_the_floor_in_force(found: object, wanted: int | None) -> None:
    assert view.floor_of({"floor": found}) == wanted


def test_a_floor_that_the_machine_raised_itself_sinks_too(seat: Seat, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"rescue": True, "intent": {"state": "valid", "serial": 7, "lock": "locked"}, "floor": {"effective": 950}}
    (seat.lab.sysroot.system / "run/freehold/boot.json").write_text(json.dumps(record))
    (seat.lab.sysroot.system / "run/freehold/last-refusal").write_text("freehold-3.0-x.efi\tits image is not there\nrubbish\n")
    said = seat.type(capsys, "state")
    assert "floor        950" in said
    assert "refused      freehold-3.0-x.efi: its image is not there" in said
    seat.type(capsys, "key me.key")
    assert "950 is not below" in seat.type(capsys, "floor 950")
    seat.type(capsys, "floor 940")
    assert seat.waiting().floor == 940
    # A second act follows the first; one that is not about the floor leaves it where it is.
    seat.type(capsys, "unlock")
    assert (seat.waiting().floor, seat.waiting().serial) == (940, 9)


@pytest.mark.parametrize(("release", "floor"), [(950, 950), (2000, 950), (949, 900), (None, 900)])
def test_an_unlock_lowers_no_floor_by_the_way(
    seat: Seat, capsys: pytest.CaptureFixture[str], release: int | None, floor: int
) -> None:
    """Unless the release that runs lies below it: the early step would not take the intent then."""
    line = seat.lab.sysroot.system / "proc/cmdline"
    line.write_text(line.read_text().strip() + (f" freehold.release={release}\n" if release else "\n"))
    record = {"rescue": True, "intent": {"state": "valid", "serial": 7, "lock": "locked"}, "floor": {"effective": 950}}
    (seat.lab.sysroot.system / "run/freehold/boot.json").write_text(json.dumps(record))
    seat.inbox.parent.mkdir(exist_ok=True)
    seat.inbox.write_text("what root left there\nsignature 00\n")
    seat.type(capsys, "key me.key")
    seat.type(capsys, "unlock")
    assert seat.waiting().floor == floor


def test_a_damaged_intent_is_replaced_and_never_believed(seat: Seat, capsys: pytest.CaptureFixture[str]) -> None:
    path = seat.lab.sysroot.root / "owner/intent"
    path.write_bytes(path.read_bytes().replace(b"config ab", b"config ba"))
    assert "locked" in seat.session.standing().state
    seat.type(capsys, "key me.key")
    seat.type(capsys, "unlock")
    wanted = seat.waiting()
    assert (wanted.lock, wanted.config) == ("open", None)
    assert wanted.serial > 1_700_000_000  # no writable /etc of an older number comes back


def test_another_deployment_boots_next(seat: Seat, capsys: pytest.CaptureFixture[str]) -> None:
    newer = seat.lab.install("2.0", 2000, counter="+0-3")
    seat.type(capsys, "key me.key")
    assert f"2.0 ({newer.id}) boots next" in seat.type(capsys, f"boot {newer.id[:6]}")
    assert f"freehold-2.0-{newer.id}+3.efi" in seat.lab.entries()
    assert "1.0 (" in seat.type(capsys, "boot 1.0")
    assert f"freehold-2.0-{newer.id}+0.efi" in seat.lab.entries()
    assert "names 0 deployments" in seat.type(capsys, "boot 3.0")
    assert "names 0 deployments" in seat.type(capsys, "boot")


def test_state_and_verify_need_nothing_and_tell_of_no_user(seat: Seat, capsys: pytest.CaptureFixture[str]) -> None:
    (seat.lab.sysroot.root / "state").mkdir(exist_ok=True)
    (seat.lab.sysroot.root / "state/machine.json").write_text('{"hostname": "attic", "accounts": [{"name": "alice"}]}')
    said = seat.type(capsys, "state") + seat.type(capsys, "verify")
    for part in ("Freehold 1.0", "off: not verified", "owner-me", "number 7", "floor        900", "the standing intent is fine"):
        assert part in said, part
    assert f"good  1.0 ({seat.lab.running.id})" not in said  # the lab's disk has no copy of the boot image
    assert "no sound copy of its boot image" in said
    assert "alice" not in said
    assert "attic" not in said
    (seat.lab.sysroot.images / seat.lab.running.image_digest).chmod(0o644)
    assert "its image is missing or not the one" in seat.type(capsys, "verify")


def test_every_line_is_survived(seat: Seat, capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("", "   ", "nonsense", "\x1b[2Jx", "key ../../etc/shadow", "key /", "answer x", "request", "floor", "help"):
        said = seat.type(capsys, line)
        assert "Traceback" not in said
        assert "\x1b" not in said
    seat.stick.joinpath("link.key").symlink_to(seat.lab.sysroot.root / "owner/id")
    assert "leads out" in seat.type(capsys, "key link.key")


@given(st.binary(max_size=300) | st.text(max_size=200).map(str.encode))
def test_typed_lines_of_any_kind(data: bytes) -> None:
    """The answer's reader takes what people and noisy lines send, and gives a verdict."""
    keychain = Keychain((), ())
    standing = intents.Standing("locked", None, "", "")
    with pytest.raises(VerificationError):
        wish.check_answer(data, frozenset({data}), standing, keychain, MACHINE)


def test_the_log_is_bounded_and_ours(seat: Seat, tmp_path: Path) -> None:
    log = seat.lab.sysroot.root / "inbox" / LOG
    for _ in range(5):
        seat.session.note("x" * 20000)
    assert log.stat().st_size <= LOG_LIMIT
    log.unlink()
    victim = tmp_path / "victim"
    victim.write_text("mine")
    log.symlink_to(victim)
    seat.session.note("y")
    assert victim.read_text() == "mine"
    assert not log.is_symlink()


LISTING = {
    "blockdevices": [
        {"path": "/dev/vda2", "fstype": "ext4", "label": "freehold-root", "partlabel": "freehold-root", "mountpoints": [None]},
        {"path": "/dev/sda1", "fstype": "vfat", "label": "DATA", "partlabel": None, "mountpoints": [None]},
        {"path": "/dev/sdb1", "fstype": "vfat", "label": "FREEHOLDKEY", "partlabel": None, "mountpoints": [None]},
        {"path": "/dev/sdc1", "fstype": "ext4", "label": None, "partlabel": "FREEHOLD-KEY", "mountpoints": []},
        {"path": "/dev/sdd1", "fstype": "ntfs", "label": "FREEHOLDKEY", "partlabel": None, "mountpoints": [None]},
        {"path": "/dev/sde1", "fstype": "vfat", "label": "X", "partlabel": None, "mountpoints": ["/efi"]},
        {"path": "/etc/../dev/x", "fstype": "vfat", "label": "X", "partlabel": None, "mountpoints": []},
    ]
}


def test_media() -> None:
    found = media.parse(json.dumps(LISTING).encode())
    assert [(one.device, one.named) for one in found] == [("/dev/sdb1", True), ("/dev/sdc1", True), ("/dev/sda1", False)]


@given(st.recursive(st.none() | st.text() | st.integers(), lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=20))
def test_media_of_any_kind(value: object) -> None:
    media.parse(json.dumps({"blockdevices": value}).encode())
    row: dict[str, object] = {"path": "/dev/sda", "fstype": "vfat", "label": "X", "partlabel": None, "mountpoints": []}
    for name in row:
        media.parse(json.dumps({"blockdevices": [{**row, name: value}]}).encode())
    media.parse(json.dumps(value).encode())


def test_wishes_are_valid_intents(keys: Path) -> None:
    standing = intents.Standing("locked", LOCKED, "me", "")
    for made in (wish.access(standing, MACHINE, 9), wish.unlock(standing, MACHINE, 9), wish.floor(standing, MACHINE, 9, 1)):
        assert made.serial == 8
        intents.serialize(made)
    with pytest.raises(InputError):
        wish.access(replace(standing, intent=replace(LOCKED, serial=1 << 53)), MACHINE, 9)
    with pytest.raises(FreeholdError):
        wish.unlock(intents.Standing("open", None, "", ""), MACHINE, 9)


def test_a_machine_that_is_not_in_rescue_has_no_rescue_program(
    monkeypatch: pytest.MonkeyPatch, lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    (lab.sysroot.system / "run/freehold/boot.json").write_text("{}")
    monkeypatch.setattr(console, "Sysroot", lambda: lab.sysroot)
    assert console.main() == 1
