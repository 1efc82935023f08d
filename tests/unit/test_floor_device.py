# SPDX-License-Identifier: Apache-2.0
"""The rollback floor on the device: what commands know of it, refuse, ask the owner for, and note after a healthy boot."""

from __future__ import annotations

import json
import os
import time
from dataclasses import astuple, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lab_release import Lab
from test_floor import LOCKED, OPEN, SMALL, VALID, Facts, judge, program, records
from test_stage import serving

from freehold.cli import main
from freehold.device import status, upgrade
from freehold.errors import FreeholdError, InputError, VerificationError
from freehold.keys.issue import create
from freehold.keys.x509 import load_signer
from freehold.lock import actions, floor, intent
from freehold.lock.floor import Copy, Known
from freehold.lock.intent import Intent, Standing
from freehold.monitor import NullMonitor
from freehold.run import run

# The early step's own program, to compare with.
__all__ = ["program"]

MACHINE = "0123456789abcdef" * 2
HEALTHY = Path(__file__).parents[2] / "data/usr/lib/freehold/healthy"
SKIPPED = HEALTHY.with_name("skipped")
MONITOR = NullMonitor()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.builds(
            Facts, standing=st.just(VALID), lock=st.sampled_from([OPEN, LOCKED]), named=st.integers(0, 1), floor=SMALL,
            serial=st.integers(1, 6), release=SMALL, file=st.integers(0, 1), file_raised=SMALL, file_serial=SMALL,
        ),
        min_size=10, max_size=40,
    )
)  # fmt: skip
def test_the_device_and_the_early_step_agree(program: Path, some: list[Facts]) -> None:
    for facts, early in zip(some, judge(program, some), strict=True):
        wanted = Intent(
            MACHINE,
            facts.serial,
            "locked" if facts.lock == LOCKED else "open",
            0,
            floor=facts.floor if facts.named else None,
        )
        copy = Copy(facts.file_raised, facts.file_serial) if facts.file else None
        known = floor.judge_floor(Standing(wanted.lock, wanted, "me", ""), copy)
        assert (known.floor, known.locked and facts.release < known.floor) == (early.effective, bool(early.refused)), (
            facts
        )


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text("0123456789", max_size=18), st.text("0123456789 \n", max_size=4))
def test_the_file_means_the_same_to_both(program: Path, raised: str, serial: str) -> None:
    data = f"freehold-floor 1\nraised {raised}\nserial {serial}\n".encode()
    copy = floor.parse(data)
    assert records(program, "text", [data]) == ["refused" if copy is None else f"{copy.raised} {copy.serial}"]


@pytest.mark.parametrize(
    ("line", "number"),
    [
        ("quiet freehold.release=17 ro\n", 17), ("freehold.release=17 freehold.release=3", 3), ("xfreehold.release=17", 0),
        ("", 0),
        ("freehold.release=017", 0), ("freehold.release=", 0), ("freehold.release=9007199254740993", 0),
        ("freehold.release=0", 0),
        ("freehold.release=17 freehold.release=x", 0),
    ],
)  # fmt: skip
def test_the_number_of_the_running_release(line: str, number: int) -> None:
    assert floor.release_of(line) == number


class Place:
    """A machine whose owner has a key: the lab's directories, and the paths of the lock's actions pointed at them."""

    def __init__(self, lab: Lab, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lab = lab
        self.key = keys / "me.key"
        self.owner = lab.sysroot.root / "owner"
        self.inbox = lab.sysroot.root / "inbox"
        self.owner.mkdir()
        (self.owner / "id").write_text(f"{MACHINE}\n")
        (lab.sysroot.keychain / "owner-me.der").write_bytes((keys / "me.der").read_bytes())
        self.cmdline = lab.sysroot.system / "proc/cmdline"
        for name, path in {
            "OWNER": self.owner, "INBOX": self.inbox, "KEYCHAIN": lab.sysroot.keychain, "CMDLINE": self.cmdline,
            "RUN": lab.sysroot.system / "run/freehold",
        }.items():  # fmt: skip
            monkeypatch.setattr(actions, name, path)
        self.number(1000)

    def number(self, number: int) -> None:
        """The running release's number."""
        self.cmdline.write_text(f"freehold.image={self.lab.running.image_digest} freehold.release={number}\n")

    def stand(self, wanted: Intent) -> None:
        """A standing intent, signed."""
        signer = load_signer(f"file:{self.key}", lambda _: b"")
        (self.owner / "intent").write_bytes(intent.sign(wanted, signer.sign))

    def keep(self, raised: int, serial: int) -> None:
        (self.owner / "floor").write_text(f"freehold-floor 1\nraised {raised}\nserial {serial}\n")

    def offered(self) -> Intent:
        return intent.parse(intent.split((self.inbox / "intent").read_bytes())[0])


LOCKED_AT_1000 = Intent(MACHINE, 5, "locked", 7, floor=1000, config=None, strict=True)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("keys")
    create("me", "owner", directory, None)
    return directory


@pytest.fixture
def place(tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(Lab(tmp_path / "lab"), keys, monkeypatch)


def test_what_is_known(place: Place) -> None:
    assert actions.known_floor() == Known(False, 0, None, 0, 0)
    place.keep(1200, 4)
    assert actions.known_floor() == Known(False, 1200, None, 1200, 4)
    # A newer word of the owner's, which names a floor, is what the next boot will keep.
    place.stand(LOCKED_AT_1000)
    assert actions.known_floor() == Known(True, 1000, 1000, 1000, 5)
    place.keep(1200, 5)
    assert actions.known_floor() == Known(True, 1200, 1000, 1200, 5)
    (place.owner / "floor").write_text("x")
    assert actions.known_floor() == Known(True, 1000, 1000, 1000, 5)
    # Not believed: locked, and what is kept counts.
    place.keep(1200, 5)
    (place.owner / "intent").write_bytes((place.owner / "intent").read_bytes().replace(b"1000", b"0001"))
    assert actions.known_floor() == Known(True, 1200, None, 1200, 5)
    assert floor.known(place.lab.root / "nowhere", place.lab.sysroot.keychain) == Known(False, 0, None, 0, 0)


def test_upgrade_does_not_stage_what_would_not_boot(place: Place) -> None:
    lab = place.lab
    lab.release("2.0", 2000)
    place.keep(3000, 5)
    place.stand(LOCKED_AT_1000)
    before = lab.entries()
    with serving(lab.web) as url:
        lab.configure(url)
        for until in ("check", "preview", "download", "stage"):
            with pytest.raises(VerificationError, match="below this machine's rollback floor 3000") as caught:
                upgrade.upgrade(lab.sysroot, upgrade.Options(until), MONITOR)
            assert "freehold floor --lower 2000" in (caught.value.hint or "")
        assert lab.entries() == before
        # Open, the same release is taken.
        place.stand(replace(LOCKED_AT_1000, lock="open", serial=6, floor=None))
        assert upgrade.upgrade(lab.sysroot, upgrade.Options(), MONITOR).data["staged"] is True


def test_rollback_does_not_choose_what_would_not_boot(place: Place) -> None:
    lab = place.lab
    old = lab.install("0.9", 900)
    place.stand(LOCKED_AT_1000)
    before = lab.entries()
    with pytest.raises(VerificationError, match=r"0\.9 has the number 900, below this machine's rollback floor 1000"):
        upgrade.rollback(lab.sysroot, MONITOR)
    assert lab.entries() == before
    place.stand(replace(LOCKED_AT_1000, serial=6, floor=900))
    chosen = upgrade.rollback(lab.sysroot, MONITOR).data["next"]
    assert isinstance(chosen, dict)
    assert chosen["id"] == old.id


def test_an_intent_keeps_the_floor_and_its_serial_is_new(place: Place) -> None:
    assert (actions.propose("open", None).floor, actions.propose("open", None).serial) == (None, 1)
    place.stand(LOCKED_AT_1000)
    place.keep(1200, 5)
    place.number(1300)
    assert (actions.propose("open", None).floor, actions.propose("open", None).serial) == (1200, 6)
    assert actions.propose("locked", None, wanted_floor=0).floor == 0
    # While open an older release runs: a floor above it is not signed.
    place.number(1100)
    assert actions.propose("open", None).floor is None
    # The intent was lost; its serial must not come again.
    (place.owner / "intent").unlink()
    place.keep(1200, 9)
    assert actions.propose("locked", None).serial == 10
    (place.owner / "floor").unlink()
    (actions.RUN / "boot.json").write_text(json.dumps({"floor": {"serial": 12}}))
    assert actions.propose("locked", None).serial == 13
    fields: list[object] = [{"serial": "x"}, [], {"serial": -3}, {"serial": 2**60}]
    for nonsense in fields:
        (actions.RUN / "boot.json").write_text(json.dumps({"floor": nonsense}))
        assert actions.propose("locked", None).serial == 1


def test_a_floor_above_the_running_release_is_not_taken(place: Place) -> None:
    signer = load_signer(f"file:{place.key}", lambda _: b"")
    for number, good in ((1000, True), (1001, False), (0, True)):
        signed = intent.sign(Intent(MACHINE, 1, "locked", 7, floor=number), signer.sign)
        if good:
            assert actions.check_answer(signed).floor == number
        else:
            with pytest.raises(VerificationError, match="above the running release 1000"):
                actions.check_answer(signed)


def test_lowering_with_the_key(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.stand(LOCKED_AT_1000)
    assert main(["floor", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["schema"], shown["release"], shown["floor"], shown["enforced"]) == (
        "freehold-floor-1",
        1000,
        1000,
        True,
    )
    assert main(["floor", "--lower", "900", "--key", f"file:{place.key}"]) == 0
    assert "Next: reboot" in capsys.readouterr().out
    # Nothing else of the owner's will changes.
    assert place.offered() == replace(LOCKED_AT_1000, serial=6, floor=900)


def test_lowering_by_a_request(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place.stand(LOCKED_AT_1000)
    request = tmp_path / "floor.request"
    assert main(["floor", "--lower", "0", "--request", str(request)]) == 0
    assert "freehold floor --answer" in capsys.readouterr().out
    assert main(["sign", str(request), "--key", f"file:{place.key}"]) == 0
    said = capsys.readouterr()
    assert "booting no release below number 0" in said.err
    assert "freehold floor --answer" in said.out
    assert not place.inbox.exists()
    assert main(["floor", "--answer", f"{request}.signed"]) == 0
    assert place.offered() == replace(LOCKED_AT_1000, serial=6, floor=0)
    # The answer of another request: it says nothing about a floor.
    signer = load_signer(f"file:{place.key}", lambda _: b"")
    Path(f"{request}.signed").write_bytes(intent.sign(replace(LOCKED_AT_1000, serial=7, floor=None), signer.sign))
    assert main(["floor", "--answer", f"{request}.signed"]) == 2


@pytest.mark.parametrize(
    "words",
    [
        ["--lower", "1000"],
        ["--lower", "1001"],
        ["--lower", "-1"],
        ["--lower", "900"],
        ["--key", "file:x"],
        ["--lower", "x"],
        ["-n"],
    ],
)
def test_what_lowers_nothing_is_refused(place: Place, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    place.stand(LOCKED_AT_1000)
    assert main(["floor", *words]) == 2
    assert capsys.readouterr().err
    assert not place.inbox.exists()


def test_a_dry_run_changes_nothing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.stand(LOCKED_AT_1000)
    assert main(["floor", "--lower", "900", "-n"]) == 0
    assert "booting no release below number 900" in capsys.readouterr().out
    assert not place.inbox.exists()


def test_a_machine_without_an_intent_has_nothing_to_lower(place: Place) -> None:
    with pytest.raises(FreeholdError, match="no rollback floor"):
        actions.lower_floor(0)
    place.stand(replace(LOCKED_AT_1000, floor=None))
    with pytest.raises(InputError, match="not below the rollback floor 0"):
        actions.lower_floor(0)


def test_lock_names_the_running_release(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("freehold.lock.guard.mode", lambda: "open")
    monkeypatch.setattr("freehold.lock.guard.load", lambda: None)
    monkeypatch.setattr(actions, "capture", lambda: actions.Captured((), None, ()))

    def request(*words: str) -> int | None:
        path = tmp_path / "lock.request"
        path.unlink(missing_ok=True)
        status_ = main(["lock", "--request", str(path), *words])
        return intent.parse(path.read_bytes()).floor if status_ == 0 else -status_

    assert request() == 1000
    assert request("--floor", "0") == 0
    assert request("--floor", "999") == 999
    assert request("--floor", "1001") == -2
    assert request("--floor", "-1") == -2
    assert request("--audit") is None


def test_status_says_what_was_refused(place: Place) -> None:
    lab = place.lab
    record = lab.sysroot.system / "run/freehold/boot.json"
    record.write_text(json.dumps({"floor": {"effective": 1000, "tpm": "failed"}}))
    (lab.sysroot.system / "run/freehold/last-refusal").write_text(
        "freehold-2.0-x.efi\tbecause of the floor\nnonsense\n"
    )
    data = status.gather(lab.sysroot)
    assert isinstance(data["lock"], dict)
    assert data["lock"]["floor"] == 1000
    messages = data["messages"]
    assert isinstance(messages, list)
    assert "freehold-2.0-x.efi did not boot before this start: because of the floor" in messages
    assert not any("nonsense" in str(message) for message in messages)
    assert any("TPM could not keep" in str(message) for message in messages)
    record.write_text(json.dumps({"floor": {"effective": 1000, "tpm": "kept"}}))
    assert not any("TPM" in str(message) for message in status.lock_of(lab.sysroot)[1])


def test_the_mark_of_a_healthy_boot(tmp_path: Path) -> None:
    line = tmp_path / "cmdline"

    def note(text: str) -> tuple[int, str | None]:
        line.write_text(text)
        done = run([HEALTHY, line, tmp_path], check=False)
        mark = tmp_path / "healthy"
        return done.status, mark.read_text() if mark.exists() else None

    assert note("quiet ro\n") == (1, None)
    assert note(f"quiet freehold.image={'a' * 63} ro\n") == (1, None)
    assert note(f"quiet freehold.image={'a' * 64} * ro\n") == (0, "a" * 64 + "\n")
    before = (tmp_path / "healthy").stat().st_mtime_ns
    assert note(f"freehold.image={'a' * 64}") == (0, "a" * 64 + "\n")
    assert (tmp_path / "healthy").stat().st_mtime_ns == before, "each boot would write to the disk"
    assert note(f"freehold.image={'b' * 64}") == (0, "b" * 64 + "\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cmdline", "healthy"]


def test_what_the_boot_loader_skipped_is_told(tmp_path: Path) -> None:
    entries, listed, record, log = (
        tmp_path / "Linux",
        tmp_path / "LoaderEntries",
        tmp_path / "refused",
        tmp_path / "log",
    )
    begin = tmp_path / "boot.json"
    entries.mkdir()
    for name in (
        "freehold-1.0-aa.efi",
        "freehold-2.0-BB+2-1.efi",
        "freehold-3.0-cc+3.efi",
        "freehold-rescue-2.0-bb.efi",
        "other.efi",
    ):
        (entries / name).write_text("MZ")
    (entries / "freehold-4.0-dd.efi").touch()
    begin.touch()

    def tell() -> tuple[str, str]:
        for path in (record, log):
            path.write_text("")
        done = run([str(SKIPPED), *map(str, (entries, listed, record, begin, log))], check=False)
        assert done.status == 0, done.stderr
        return record.read_text(), log.read_text()

    assert tell() == ("", ""), "without the loader's list nobody can tell"
    known = [
        "freehold-1.0-aa.efi",
        "freehold-2.0-bb.efi",
        "freehold-rescue-2.0-bb.efi",
        "auto-reboot-to-firmware-setup",
    ]
    listed.write_bytes(bytes([6, 0, 0, 0]) + "".join(f"{name}\0" for name in known).encode("utf-16-le"))
    boots = listed.read_bytes()
    listed.write_bytes(boots[:4])
    assert tell() == ("", ""), "an empty list is none"
    listed.write_bytes(boots)
    told, line = tell()
    assert told == "freehold-3.0-cc+3.efi\tthe boot loader cannot read it as a program\n"
    assert line == "<4>freehold: freehold-3.0-cc+3.efi did not boot: the boot loader cannot read it as a program\n"
    os.utime(entries / "freehold-3.0-cc+3.efi", (time.time() + 60, time.time() + 60))
    assert tell() == ("", ""), "it was staged since, and the loader has not seen it"
    for number in range(20):
        (entries / f"freehold-9.{number}-ee.efi").write_text("MZ")
    os.utime(begin, (time.time() + 30, time.time() + 30))
    assert len(tell()[0].splitlines()) == 8, "who has the boot partition may leave any number"
    (entries / "freehold-3.0-\x1b[2J.efi").write_text("MZ")
    assert "\x1b" not in "".join(tell())


def test_facts_are_complete() -> None:
    assert len(astuple(Facts())) == 14
