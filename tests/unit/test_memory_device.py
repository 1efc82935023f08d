# SPDX-License-Identifier: Apache-2.0
"""What commands of the running system, a rescue and a stick make of an intent that the TPM remembers otherwise."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lab_release import Key, Lab, key
from test_floor import VALID
from test_memory import CASES, REMEMBERED_LOCKED, reader, rule

from freehold.device import status, verify_running, wanted
from freehold.errors import InputError, VerificationError
from freehold.keys.verify import Keychain
from freehold.lock import actions, floor, intent, memory, requests
from freehold.lock.intent import Intent, Standing
from freehold.lock.memory import Remembered
from freehold.rescue import install, wish
from freehold.rescue.session import Session

# The early step's own sources, to compare with.
__all__ = ["reader"]

MACHINE = "0123456789abcdef" * 2
LOCKS: tuple[intent.Lock, ...] = ("open", "open", "audit", "locked")


def signed(serial: int, lock: intent.Lock = "locked", who: Key | None = None) -> bytes:
    private = (who or key("owner", "me")).private
    said = Intent(MACHINE, serial, lock, 5)
    return intent.sign(said, lambda text: private.sign(text, padding.PKCS1v15(), hashes.SHA256()))


def note(serial: int, lock: str, newest: bytes = b"") -> bytes:
    text = hashlib.sha256(intent.split(newest)[0] if newest else b"").hexdigest()[:32]
    return f"freehold-remembered 1\nlock {lock}\nserial {serial}\ntext {text}\n".encode()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(CASES, min_size=20, max_size=60))
def test_the_device_and_the_early_step_agree(reader: Path, cases: list[tuple[int, int, int, int, int]]) -> None:
    for case, (stands, _) in zip(cases, rule(reader, cases), strict=True):
        lock, serial, same, standing, own = case
        raw = b"text\nsignature 00\n" if standing == VALID else None
        digest = hashlib.sha256(b"text\n" if same else b"another").digest()[:16]
        before = (
            Standing("open", Intent(MACHINE, own, "open", 0), "me", "")
            if standing == VALID
            else Standing("locked" if standing else "open", None, "", "")
        )
        after = memory.judge(before, raw, Remembered(LOCKS[lock], serial, digest) if lock else None)
        assert (after.state, after.intent) == ((before.state, before.intent) if stands else ("locked", None)), case
        assert after.after == (serial if lock else 0)
    assert LOCKS.index("locked") == REMEMBERED_LOCKED


@pytest.mark.parametrize(
    "data",
    [b"", b"x" * 500, note(7, "locked")[:-1], note(7, "locked") + b"\n", note(7, "shut"), note((1 << 53) + 1, "locked"),
     note(7, "locked").replace(b"7", b"07")],
)  # fmt: skip
def test_a_note_that_is_none(data: bytes) -> None:
    assert memory.parse(note(1 << 53, "locked")) is not None
    assert memory.parse(data) is None


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A running machine of the owner's; its directory."""
    owner, keychain = tmp_path / "owner", tmp_path / "keychain"
    owner.mkdir()
    keychain.mkdir()
    (keychain / "owner-me.der").write_bytes(key("owner", "me").certificate)
    (owner / "id").write_text(f"{MACHINE}\n")
    for name, path in (("OWNER", owner), ("KEYCHAIN", keychain), ("RUN", tmp_path), ("CMDLINE", tmp_path / "cmdline")):
        monkeypatch.setattr(actions, name, path)
    (tmp_path / "cmdline").write_text("freehold.release=5\n")
    return owner


def test_commands_see_what_the_early_step_saw(here: Path) -> None:
    newest = signed(7)
    (here / "remembered").write_bytes(note(7, "locked", newest))
    for data in (None, signed(6, "open"), signed(7, "open")):
        (here / "intent").unlink(missing_ok=True)
        if data is not None:
            (here / "intent").write_bytes(data)
        standing = actions.standing()
        assert (standing.state, standing.intent) == ("locked", None)
        assert "the TPM remembers" in standing.reason
        assert actions.known_floor().locked
        assert actions.next_serial() == 8
        assert not intent.judge_offer(standing, signed(7), keychain=actions.keychain(), machine=MACHINE).accepted
        assert intent.judge_offer(standing, signed(8), keychain=actions.keychain(), machine=MACHINE).accepted
    (here / "intent").write_bytes(newest)
    assert actions.standing().intent is not None
    (here / "intent").write_bytes(signed(9, "open"))
    assert actions.standing().state == "open"
    assert actions.next_serial() == 10


def test_a_number_that_was_used_is_not_used_again(here: Path) -> None:
    """The owner opened the machine with 7; an older intent stands. What follows has to be newer than both."""
    (here / "remembered").write_bytes(note(7, "open", signed(7, "open")))
    assert actions.next_serial() == 8
    (here / "intent").write_bytes(signed(3))
    assert actions.standing().state == "locked"
    assert actions.propose("open", None).serial == 8
    assert floor.known(here, actions.KEYCHAIN).serial == 7


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    found = Lab(tmp_path)
    (found.sysroot.root / "owner").mkdir(parents=True, exist_ok=True)
    (found.sysroot.root / "owner/id").write_text(f"{MACHINE}\n")
    (found.sysroot.keychain / "owner-me.der").write_bytes(key("owner", "me").certificate)
    return found


def test_the_rescue_signs_what_the_next_boot_takes(lab: Lab) -> None:
    owner = lab.sysroot.root / "owner"
    future = 4_000_000_000  # a number above any clock of today
    (owner / "remembered").write_bytes(note(future, "locked", signed(future)))
    session = Session(lab.sysroot, log=lambda _: None)
    assert session.standing().state == "locked"
    asked = intent.parse(session.ask("unlock"))
    assert (asked.serial, asked.lock) == (future + 1, "open")
    with pytest.raises(InputError, match="cannot rise any more"):
        wish.unlock(Standing("locked", None, "", "", after=1 << 53), MACHINE, 5)
    keychain = Keychain.from_directory(lab.sysroot.keychain)
    assert install.judge_standing(lab.sysroot, keychain).state == "locked"
    assert install.remembers_lock(lab.sysroot)
    assert verify_running.standing_of(lab.sysroot, keychain).state == "locked"
    (owner / "remembered").write_bytes(note(7, "open"))
    assert not install.remembers_lock(lab.sysroot)
    assert session.standing().state == "open"


def test_a_request_for_packages_has_a_new_number_too(lab: Lab) -> None:
    owner = lab.sysroot.root / "owner"
    text = requests.serialize(requests.Requests())
    assert wanted.propose(lab.sysroot, text).serial == 1
    (owner / "remembered").write_bytes(note(7, "open"))
    assert wanted.propose(lab.sysroot, text).serial == 8
    (owner / "intent").write_bytes(signed(3, "open"))
    assert wanted.propose(lab.sysroot, text).serial == 8
    (owner / "remembered").write_bytes(note(7, "locked", signed(7)))
    with pytest.raises(VerificationError, match="the TPM remembers number 7"):
        wanted.propose(lab.sysroot, text)


def test_status_says_why(lab: Lab) -> None:
    record = lab.sysroot.system / "run/freehold/boot.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(
        json.dumps(
            {
                "intent": {"state": "invalid", "lock": "locked"},
                "remembered": {"lock": "locked", "serial": 7, "overruled": True},
            }
        )
    )
    _, messages = status.lock_of(lab.sysroot)
    assert any("older than number 7, which the TPM remembers" in line for line in messages)
