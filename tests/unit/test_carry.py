# SPDX-License-Identifier: Apache-2.0
"""The updater's work with the real device key, on a machine in a directory: when it opens the key, and what it does then."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab_child import in_a_child
from lab_derive import MACHINE, DeriveLab, keys
from lab_device import SECURE_BOOT

from freehold import run
from freehold.device import base as bases
from freehold.device import carry, derive, device_key, handover, loader, private, wanted
from freehold.device.sysroot import Sysroot
from freehold.errors import FreeholdError
from freehold.keys import issue, verity
from freehold.lock import intent as intents
from freehold.lock import requests
from freehold.lock.intent import Intent
from freehold.lock.requests import Karg, Requests
from freehold.monitor import NullMonitor
from freehold.seal import erofs, repack

pytestmark = pytest.mark.build
KARGS = requests.serialize(Requests((Karg("append", "loglevel=7"),)))
NEXT = requests.serialize(Requests((Karg("append", "nosmt"),)))
PLAIN = Intent(machine=MACHINE, serial=6, lock="locked", since=1000)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[DeriveLab]:
    """Locked, Secure Boot on, a device key in a file that its owner certified."""
    made = DeriveLab(tmp_path / "lab")
    system = made.sysroot.system
    (system / SECURE_BOOT).parent.mkdir(parents=True)
    secure_boot(made, on=True)
    record = {
        "schema": "freehold-boot-1", "image": made.running.image_digest, "secure_boot": True, "rescue": False,
        "keychain_source": "firmware",
    }  # fmt: skip
    (system / "run/freehold/boot.json").write_text(json.dumps(record))
    (system / "usr/lib/freehold/guardctl").write_text('#!/bin/sh\necho \'{"loaded": true, "mode": "locked"}\'\n')
    (system / "usr/lib/freehold/guardctl").chmod(0o755)
    stand(made, KARGS, 6)
    machine = handover.this_machine(made.sysroot)
    machine = machine._replace(tpm=machine.tpm._replace(directory=tmp_path / "no-tpm"))
    public = issue.requested_key_der(device_key.make(machine).request, "it")
    device_key.install(machine, issue.device_certificate(public, MACHINE, keys()["me"]))
    yield made


def secure_boot(lab: DeriveLab, *, on: bool) -> None:
    (lab.sysroot.system / SECURE_BOOT).write_bytes(b"\6\0\0\0" + bytes([on]))


def stand(lab: DeriveLab, text: bytes, serial: int) -> None:
    name = wanted.store_list(lab.sysroot, text)
    signed = intents.sign(dataclasses.replace(PLAIN, serial=serial, requests=name), keys()["me"].sign)
    (lab.sysroot.root / "owner/intent").write_bytes(signed)


def carried(lab: DeriveLab, work: Callable[..., object] = carry.apply, words: handover.Words = handover.PLAIN) -> str:
    return in_a_child(lambda: work(lab.sysroot, carry.DeviceKey(lab.sysroot), NullMonitor(), words))


def test_the_device_key_signs_what_the_owner_asked_for(lab: DeriveLab) -> None:
    assert "1.0^6 is staged" in carried(lab)
    first = loader.listing(lab.sysroot.esp)[0]
    found, _ = bases.read(lab.sysroot, first.id)
    assert (found.signer, first.version) == (MACHINE, "1.0^6")
    # And an answer: kept only now, with its deployment.
    name = wanted.store_list(lab.sysroot, NEXT)
    signed = intents.sign(dataclasses.replace(PLAIN, serial=7, requests=name), keys()["me"].sign)
    wanted.offer(lab.sysroot, signed)
    assert "1.0^7 is staged" in carried(lab, words=handover.Words(offered=True))
    assert (lab.sysroot.root / "inbox/intent").read_bytes() == signed
    assert sorted(path.name for path in (lab.sysroot.root / "inbox").iterdir()) == ["intent"]


def test_an_update_is_signed(lab: DeriveLab) -> None:
    new = lab.install("2.0", 2000, entry=False)
    assert "2.0^6 is staged" in carried(lab, carry.upgrade, handover.Words(release=new.id))
    assert "2.0^6" in loader.listing(lab.sysroot.esp)[0].name


def test_the_key_is_opened_when_all_is_there_and_no_program_follows(lab: DeriveLab, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    started, opened = run._started, device_key.open_key

    def start(command: tuple[str, ...], **options: object) -> object:
        # Asking the guard is part of opening it, before its file is read.
        names = ("guardctl", "mkfs.erofs", "refs", "commit", "ls")
        events.append(next((word for word in names if word in " ".join(command)), "?"))
        return started(command, **options)

    def opens(*arguments: object) -> object:
        done = opened(*arguments)  # type: ignore[arg-type]
        events.append("opened")
        return done

    monkeypatch.setattr(run, "_started", start)
    monkeypatch.setattr(device_key, "open_key", opens)

    def work() -> list[str]:
        carry.apply(lab.sysroot, carry.DeviceKey(lab.sysroot), NullMonitor(), handover.PLAIN)
        return events

    told = in_a_child(work)
    assert told.startswith("['guardctl', 'commit'"), told
    assert told.endswith("'mkfs.erofs', 'refs', 'guardctl', 'opened']"), told


def test_a_program_after_it_is_a_fault(lab: DeriveLab, monkeypatch: pytest.MonkeyPatch) -> None:
    real = derive.finish
    monkeypatch.setattr(derive, "finish", lambda *parts: (run.run(["true"]), real(*parts))[1])
    assert carried(lab).startswith("RuntimeError: no program is started any more")
    assert len(loader.listing(lab.sysroot.esp)) == 1


def test_one_line_says_why_the_key_is_not_used(lab: DeriveLab) -> None:
    secure_boot(lab, on=False)
    reason = "UnsignableError: no key on this machine can sign a deployment: Secure Boot is off: the device key is not used"
    assert carried(lab) == reason
    secure_boot(lab, on=True)
    (lab.sysroot.root / "owner/secret/device.key").unlink()
    assert carried(lab) == "UnsignableError: no key on this machine can sign a deployment: this machine has no device key"
    (lab.sysroot.root / "owner/device.facts").unlink()
    assert carried(lab) == "UnsignableError: no key on this machine can sign a deployment: this machine has no device key"
    stand(lab, KARGS, 9)
    strict = dataclasses.replace(PLAIN, serial=10, requests=requests.name_of(KARGS), strict=True)
    (lab.sysroot.root / "owner/intent").write_bytes(intents.sign(strict, keys()["me"].sign))
    assert "the intent is strict: the owner signs every deployment" in carried(lab)
    assert len(loader.listing(lab.sysroot.esp)) == 1


def test_scratch_lies_where_the_updater_says(lab: DeriveLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the image nor a file's content comes from a place of root's before it was compared."""
    place = lab.root / "private"
    place.mkdir()
    lab.sysroot = lab.sysroot._replace(scratch=place)
    seen: list[str] = []
    real = derive.fresh

    def fresh(path: Path) -> Path:
        seen.append(str(path))
        return real(path)

    monkeypatch.setattr(derive, "fresh", fresh)

    def work() -> list[str]:
        carry.apply(lab.sysroot, carry.DeviceKey(lab.sysroot), NullMonitor(), handover.PLAIN)
        return seen

    assert in_a_child(work) == repr([str(place / "derive")])
    assert not (lab.sysroot.root / "derive").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has a mount namespace")
def test_it_works_in_a_place_of_its_own(lab: DeriveLab) -> None:
    """Scratch on another file system, in memory, which nobody else sees."""
    place = lab.root / "place"
    place.mkdir()

    def work() -> object:
        mine = lab.sysroot._replace(scratch=private.enter(place).scratch)
        return carry.apply(mine, carry.DeviceKey(mine), NullMonitor(), handover.PLAIN).text, os.listdir(place / "scratch")

    told = in_a_child(work)
    if "has no place of its own" in told:
        pytest.skip(told)
    assert "1.0^6 is staged" in told
    assert told.endswith(", [])")
    assert list(place.iterdir()) == []


def test_what_is_signed_is_what_was_meant(lab: DeriveLab) -> None:
    """The signed kernel image names the image on the disk, whose entries are the release's and the two files of its own."""
    carried(lab)
    first = loader.listing(lab.sysroot.esp)[0]
    found, _ = bases.read(lab.sysroot, first.id)
    data = (lab.sysroot.images / found.manifest.image_digest).read_bytes()
    assert verity.digest_bytes(data).hex() == found.manifest.image_digest
    line = repack.content(repack.parse(lab.uki(found.manifest)), ".cmdline").decode()
    assert f"freehold.image={found.manifest.image_digest} " in line
    below = {one.path: one for one in erofs.read((lab.sysroot.images / lab.running.image_digest).read_bytes()).entries}
    changed = {one.path for one in erofs.read(data).entries if below.get(one.path) != one}
    assert changed == {derive.OS_RELEASE, derive.REQUESTS}


def test_the_machine_is_found_below_its_own_root(lab: DeriveLab) -> None:
    machine = handover.this_machine(lab.sysroot)
    assert (machine.id, machine.places.owner) == (MACHINE, lab.sysroot.root / "owner")
    assert handover.refusal(lab.sysroot, PLAIN) == ""
    with pytest.raises(FreeholdError):
        handover.this_machine(Sysroot(root=lab.root / "elsewhere", system=lab.sysroot.system))
