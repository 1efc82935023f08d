# SPDX-License-Identifier: Apache-2.0
"""Asking for a change, signing it, carrying it out: by the owner's key, by request and answer, on a new release."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab_derive import MACHINE, DeriveLab, keys

from freehold.cli.table import VERBS
from freehold.device import (
    apply,
    carry,
    derive,
    device_key,
    handover,
    loader,
    request_verbs,
    stage,
    status,
    strict,
    upgrade,
    wanted,
)
from freehold.device import base as bases
from freehold.device.sysroot import Sysroot, history
from freehold.errors import FreeholdError, InputError, NotHereError, VerificationError
from freehold.keys.device import Facts, write_facts
from freehold.lock import actions, requests
from freehold.lock import intent as intents
from freehold.lock import verbs as lock_verbs
from freehold.lock.intent import Intent
from freehold.lock.requests import Karg, Package, Requests
from freehold.monitor import NullMonitor
from freehold.report import Report
from freehold.seal import repack
from freehold.update.fetch import Offer
from freehold.update.manifest import Manifest, Stream, serialize_manifest

MONITOR = NullMonitor()
KARGS = requests.serialize(Requests((Karg("append", "loglevel=7"),)))
PLAIN = Intent(machine=MACHINE, serial=6, lock="locked", since=1000, config="c" * 64)
build = pytest.mark.build


@pytest.fixture
def small(tmp_path: Path) -> Sysroot:
    """Paths and keys of a machine, no release."""
    sysroot = Sysroot(root=tmp_path / "sysroot", esp=tmp_path / "esp", system=tmp_path / "system")
    for path in (sysroot.root / "owner/etc/0/upper", sysroot.keychain):
        path.mkdir(parents=True)
    (sysroot.root / "owner/id").write_text(MACHINE + "\n")
    (sysroot.keychain / "owner-me.der").write_bytes(keys()["me"].certificate_der())
    return sysroot


def sign(intent: Intent, by: str = "me") -> bytes:
    return intents.sign(intent, keys()[by].sign)


def test_nothing_is_wanted_at_first(small: Sysroot) -> None:
    now = wanted.load(small)
    assert (now.intent, now.text, now.waiting, now.serial) == (None, wanted.EMPTY, False, 0)
    assert not now.list
    first = wanted.propose(small, KARGS)
    assert (first.serial, first.lock, first.requests) == (1, "open", requests.name_of(KARGS))


def test_a_change_keeps_everything_else_of_the_intent(small: Sysroot) -> None:
    (small.root / "owner/intent").write_bytes(sign(dataclasses.replace(PLAIN, tier="all-code", strict=True, floor=5)))
    made = wanted.propose(small, KARGS)
    # A floor that is named would be set anew, and undo what the machine has raised since.
    assert made.floor is None
    assert (made.serial, made.lock, made.config, made.tier, made.strict) == (7, "locked", "c" * 64, "all-code", True)


def test_the_newest_believed_intent_decides(small: Sysroot) -> None:
    name = wanted.store_list(small, KARGS)
    (small.root / "owner/intent").write_bytes(sign(PLAIN))
    (small.root / "inbox").mkdir()
    waiting = small.root / "inbox/intent"
    for refused in (
        sign(dataclasses.replace(PLAIN, serial=7, requests=name), "stranger"),
        sign(dataclasses.replace(PLAIN, serial=6, requests=name)),
        sign(dataclasses.replace(PLAIN, serial=7, requests=name, machine="f" * 32)),
        sign(dataclasses.replace(PLAIN, serial=7, requests=name)).replace(b"serial 7", b"serial 8"),
        b"junk",
    ):
        waiting.write_bytes(refused)
        assert wanted.load(small).text == wanted.EMPTY
        with pytest.raises(VerificationError):
            wanted.check(small, refused)
    waiting.write_bytes(sign(dataclasses.replace(PLAIN, serial=7, requests=name)))
    now = wanted.load(small)
    assert (now.text, now.waiting, now.serial) == (KARGS, True, 7)
    assert wanted.propose(small, wanted.EMPTY).serial == 8
    # An older answer must not be taken while a newer one waits: the next boot would undo it.
    waiting.write_bytes(sign(dataclasses.replace(PLAIN, serial=9, requests=name)))
    with pytest.raises(VerificationError, match="newer"):
        wanted.check(small, sign(dataclasses.replace(PLAIN, serial=8)))


def test_root_cannot_add_to_the_list(small: Sysroot) -> None:
    name = wanted.store_list(small, KARGS)
    (small.root / "owner/intent").write_bytes(sign(dataclasses.replace(PLAIN, requests=name)))
    assert wanted.load(small).list.kargs == (Karg("append", "loglevel=7"),)
    evil = requests.serialize(Requests((Karg("append", "init=/bin/sh"),)))
    (small.root / "owner/requests" / name).write_bytes(evil)
    with pytest.raises(NotHereError):
        wanted.load(small)
    # The other place serves as well, when what lies there has the right name.
    (small.root / "inbox/requests").mkdir(parents=True)
    (small.root / "inbox/requests" / name).write_bytes(KARGS)
    assert wanted.load(small).text == KARGS


def test_a_damaged_intent_asks_for_nothing_and_says_so(small: Sysroot) -> None:
    (small.root / "owner/intent").write_bytes(b"junk")
    with pytest.raises(VerificationError):
        wanted.load(small)


def test_a_closed_directory_makes_the_list_go_to_the_inbox(small: Sysroot, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.mkdir

    def mkdir(self: Path, *arguments: object, **named: object) -> None:
        if "owner" in self.parts:
            raise PermissionError(1, "Operation not permitted", str(self))
        real(self, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", mkdir)
    name = wanted.store_list(small, KARGS)
    assert (small.root / "inbox/requests" / name).read_bytes() == KARGS
    assert wanted.read_list(small, name) == KARGS


def test_package_files_are_kept_by_their_content(small: Sysroot, tmp_path: Path) -> None:
    (tmp_path / "a_1_all.deb").write_bytes(b"!<arch>\nrest")
    one = wanted.store_file(small, tmp_path / "a_1_all.deb")
    assert wanted.file_path(small, one).read_bytes() == b"!<arch>\nrest"
    (tmp_path / "b_1_all.deb").write_bytes(b"text")
    with pytest.raises(InputError):
        wanted.store_file(small, tmp_path / "b_1_all.deb")
    with pytest.raises(InputError):
        wanted.store_file(small, tmp_path / "missing_1_all.deb")


def test_a_change_on_an_open_machine_keeps_the_layer_of_etc(small: Sysroot) -> None:
    layers = small.root / "owner/etc"
    intent = wanted.propose(small, KARGS)
    wanted.leave(small, intent, sign(intent))
    assert (layers / "1").readlink() == Path("0")
    assert (layers / "1/upper").is_dir()
    assert (small.root / "inbox/intent").read_bytes() == sign(intent)
    actions.drop_links(layers, 0)
    assert not (layers / "1").is_symlink()


@pytest.mark.parametrize("change", [{"lock": "open"}, {"lock": "locked"}, {"lock": "audit", "config": "d" * 64}])
def test_what_changes_etc_or_the_lock_begins_a_layer_of_its_own(small: Sysroot, change: dict[str, str]) -> None:
    old = dataclasses.replace(PLAIN, lock="locked" if change["lock"] == "open" else "audit")
    (small.root / "owner/intent").write_bytes(sign(old))
    (small.root / "owner/etc/6/upper").mkdir(parents=True)
    new = dataclasses.replace(old, serial=7, **change)  # type: ignore[arg-type]
    wanted.leave(small, new, sign(new))
    assert not (small.root / "owner/etc/7").is_symlink()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DeriveLab:
    made = DeriveLab(tmp_path / "lab")
    monkeypatch.setattr("freehold.device.sysroot.Sysroot", lambda: made.sysroot)
    monkeypatch.setattr(lock_verbs, "owner_signer", lambda uri, _: keys()[uri])
    return made


class LabKey:
    """The device key of a machine in a directory: ``by`` signs, or nobody does."""

    def __init__(self, by: str | None, fault: str = "") -> None:
        self.by, self.fault, self.allowed = by, fault, list[str]()

    def refusal(self, _: Intent | None) -> str:
        return "" if self.by else "strict"

    def signatures(self, unsigned: derive.Unsigned) -> derive.Signatures:
        if self.fault:
            raise apply.UnsignableError(self.fault)
        return derive.sign(unsigned, keys()[self.by or ""])

    def allow(self, identity: str) -> None:
        if self.fault:
            raise FreeholdError(self.fault)
        self.allowed.append(identity)


def device(monkeypatch: pytest.MonkeyPatch, by: str | None, fault: str = "") -> LabKey:
    """What the command hands over, the updater's work does in this process, with the words that it would have read."""
    from freehold.device import sysroot

    key = LabKey(by, fault)

    def start(verb: str, words: handover.Words) -> Report:
        work = {"apply": carry.apply, "upgrade": carry.upgrade}[verb]
        return work(sysroot.Sysroot(), key, MONITOR, handover.read(words.spelt()))

    monkeypatch.setattr(handover, "start", start)
    monkeypatch.setattr(handover, "refusal", lambda _, intent: key.refusal(intent))
    return key


def command(line: str) -> Report:
    name, *words = line.split()
    [row] = [row for row in request_verbs.VERBS if row[0] == name]
    parser = argparse.ArgumentParser()
    row[2](parser)
    return row[3](parser.parse_args(words), MONITOR)


def sign_request(path: Path, by: str = "me") -> Path:
    options = argparse.Namespace(request=path, key=by, output=None, store=None, no_device_key=False, days=30)
    return Path(str(lock_verbs.sign(options, MONITOR).data["answer"]))


@build
def test_the_owner_at_the_machine(lab: DeriveLab, monkeypatch: pytest.MonkeyPatch) -> None:
    device(monkeypatch, "machine")
    with pytest.raises(InputError, match="credential"):
        command("kargs --append loglevel=7")
    preview = command("kargs --append loglevel=7 --append init=/bin/sh -n")
    assert preview.data["added"] == ["karg append loglevel=7", "karg append init=/bin/sh"]
    assert "WARNING" in preview.text
    assert len(lab.entries()) == 1
    report = command("kargs --append loglevel=7 --key me")
    assert (report.data["verdict"], report.data["version"]) == ("staged", "1.0^1")
    waiting = wanted.load(lab.sysroot)
    assert (waiting.waiting, waiting.list.lines) == (True, ("karg append loglevel=7",))
    assert command("kargs --append loglevel=7 --key me").data["verdict"] == "unchanged"
    assert command("requests").data["running"] is False
    assert command("apply").data["verdict"] == "unchanged"
    assert command("kargs --append nosmt --key me").data["version"] == "1.0^2"
    assert wanted.load(lab.sysroot).list.lines == ("karg append loglevel=7", "karg append nosmt")
    assert command("kargs --delete loglevel --delete nosmt --key me").data["version"] == "1.0"
    with pytest.raises(VerificationError):
        command("kargs --append evil --key stranger")
    assert wanted.load(lab.sysroot).list.lines == ()


@build
def test_the_owner_signs_where_no_device_key_does(lab: DeriveLab, monkeypatch: pytest.MonkeyPatch) -> None:
    device(monkeypatch, None)
    assert command("kargs --append loglevel=7 --key me").data["version"] == "1.0^1"
    assert bases.read(lab.sysroot, loader.listing(lab.sysroot.esp)[0].id)[0].signer == "me"
    with pytest.raises(apply.UnsignableError, match=r"^no key on this machine can sign a deployment: strict$") as error:
        standing(lab, requests.serialize(Requests((Karg("append", "nosmt"),))), 8)
        command("apply")
    assert "--request FILE" in (error.value.hint or "")


@build
def test_the_key_fails_when_it_is_opened(lab: DeriveLab, monkeypatch: pytest.MonkeyPatch) -> None:
    device(monkeypatch, "machine", "the TPM refuses the device key")
    with pytest.raises(apply.UnsignableError, match="can sign a deployment: the TPM refuses the device key"):
        command("kargs --append loglevel=7 --key me")
    inbox = lab.sysroot.root / "inbox"
    assert len(lab.entries()) == 1
    assert not (inbox / "intent").exists()
    assert not (inbox / "offered").exists()


@build
def test_what_the_updater_is_offered_counts_by_its_signature(lab: DeriveLab, monkeypatch: pytest.MonkeyPatch) -> None:
    key = device(monkeypatch, "machine")
    standing(lab, KARGS, 7)
    name = wanted.store_list(lab.sysroot, requests.serialize(Requests((Karg("append", "evil"),))))
    words = handover.Words(offered=True)
    for offer in (
        sign(dataclasses.replace(PLAIN, serial=8, requests=name), "stranger"),
        sign(dataclasses.replace(PLAIN, serial=7, requests=name)),
        sign(dataclasses.replace(PLAIN, serial=8, requests=name, machine="f" * 32)),
        b"freehold-device-key 1\nsecret c2VjcmV0\n",
        b"x" * 1_000_000,
    ):
        wanted.offer(lab.sysroot, offer)
        with pytest.raises(VerificationError) as error:
            carry.apply(lab.sysroot, key, MONITOR, words)
        assert "c2VjcmV0" not in f"{error.value.message}{error.value.hint}{error.value.details}"
    with pytest.raises(NotHereError, match="no intent is offered"):
        carry.apply(lab.sysroot, key, MONITOR, words)
    secret = lab.sysroot.root / "owner/secret"
    secret.write_bytes(sign(dataclasses.replace(PLAIN, serial=8, requests=name)))
    (lab.sysroot.root / "inbox/offered").symlink_to(secret)
    with pytest.raises(NotHereError, match="no intent is offered"):
        carry.apply(lab.sysroot, key, MONITOR, words)
    assert len(lab.entries()) == 1
    # What root wrote into the list beside the intent asks for nothing.
    assert carry.apply(lab.sysroot, key, MONITOR, handover.PLAIN).data["requests"] == ["karg append loglevel=7"]
    assert key.allowed == [loader.listing(lab.sysroot.esp)[0].id]


@build
def test_the_updater_takes_releases_only(lab: DeriveLab, monkeypatch: pytest.MonkeyPatch) -> None:
    key = device(monkeypatch, "machine")
    standing(lab, KARGS, 7)
    made = apply.transact(lab.sysroot, KARGS, 7, keys()["machine"], MONITOR).manifest
    older = lab.install("0.9", 900, entry=False)
    for work in (carry.apply, carry.upgrade):
        with pytest.raises(VerificationError, match="no release"):
            work(lab.sysroot, key, MONITOR, handover.Words(release=made.id))
        with pytest.raises(NotHereError):
            work(lab.sysroot, key, MONITOR, handover.Words(release="0" * 16))
    with pytest.raises(VerificationError, match="not newer than the running"):
        carry.upgrade(lab.sysroot, key, MONITOR, handover.Words(release=older.id))
    # Below the floor nothing is made, whatever is asked for.
    (lab.sysroot.root / "owner/floor").write_bytes(b"freehold-floor 1\nraised 950\nserial 7\n")
    with pytest.raises(VerificationError, match="rollback floor 950"):
        carry.apply(lab.sysroot, key, MONITOR, handover.Words(release=older.id))
    data = (lab.sysroot.deployments / older.id / "manifest.json").read_bytes()
    (lab.sysroot.deployments / older.id / "manifest.json.sig").write_bytes(keys()["machine"].sign_document(data))
    with pytest.raises(VerificationError, match="only a release key may"):
        carry.upgrade(lab.sysroot, key, MONITOR, handover.Words(release=older.id))


@build
def test_packages_are_not_added_under_the_lock(lab: DeriveLab, monkeypatch: pytest.MonkeyPatch) -> None:
    key = device(monkeypatch, "machine")
    standing(lab, requests.serialize(Requests(packages=(Package("fish"),))))
    with pytest.raises(FreeholdError, match="while this machine is locked"):
        carry.apply(lab.sysroot, key, MONITOR, handover.PLAIN)
    assert len(lab.entries()) == 1


@build
def test_the_last_request_that_goes_leaves_the_release_with_the_key(lab: DeriveLab, monkeypatch: pytest.MonkeyPatch) -> None:
    key = device(monkeypatch, "machine")
    standing(lab, KARGS, 7)
    assert command("apply").data["version"] == "1.0^7"
    for path in (lab.sysroot.esp / "EFI/Linux").glob("freehold-1.0-*"):
        path.rename(lab.sysroot.deployments / lab.running.id / "uki.efi")
    standing(lab, wanted.EMPTY, 8)
    assert command("apply").data["version"] == "1.0"
    assert key.allowed[-1] == lab.running.id


@build
def test_a_request_that_is_signed_elsewhere(
    lab: DeriveLab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    device(monkeypatch, "machine")
    path = lab.root / "kargs.request"
    command(f"kargs --append lockdown=none --request {path}")
    assert len(lab.entries()) == 1
    answer = sign_request(path)
    shown = capsys.readouterr().err
    assert "add the kernel argument lockdown=none" in shown
    assert "WARNING" in shown
    assert command(f"apply --answer {answer}").data["version"] == "1.0^1"
    assert wanted.load(lab.sysroot).waiting


@build
def test_the_intent_comes_before_the_boot_entry_and_after_the_deployment(
    lab: DeriveLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cut(BaseException):
        pass

    def cut(*_: object) -> None:
        raise Cut

    device(monkeypatch, "machine")
    inbox = lab.sysroot.root / "inbox/intent"
    for module, name, stands in ((derive, "_image", False), (derive, "finish", False), (loader, "move", True)):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, cut)
            with pytest.raises(Cut):
                command("kargs --append loglevel=7 --key me")
        assert inbox.exists() is stands
        assert len(lab.entries()) == 1
    # What the cut left, `apply` carries out.
    assert command("requests").data["running"] is False
    assert command("apply").data["version"] == "1.0^1"


@build
def test_a_list_under_a_foreign_intent_is_not_signed(lab: DeriveLab, monkeypatch: pytest.MonkeyPatch) -> None:
    device(monkeypatch, "machine")
    path = lab.root / "kargs.request"
    command(f"kargs --append loglevel=7 --request {path}")
    path.write_bytes(path.read_bytes().replace(b"loglevel=7", b"loglevel=8"))
    with pytest.raises(InputError, match="not the one"):
        sign_request(path)


@build
def test_a_strict_machine(lab: DeriveLab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    device(monkeypatch, None)
    path = lab.root / "kargs.request"
    command(f"kargs --append loglevel=7 --request {path}")
    answer = sign_request(path)
    shown = capsys.readouterr().err
    rescue = "of the rescue entry: freehold.image="
    added = "add the kernel argument loglevel=7"
    for words in ("made from release 1.0", rescue, added, "ro quiet console=ttyS0 panic=5 loglevel=7"):
        assert words in shown
    assert command(f"apply --answer {answer}").data["version"] == "1.0^1"
    staged = loader.listing(lab.sysroot.esp)[0]
    found, _ = bases.read(lab.sysroot, staged.id)
    assert found.signer == "me"
    (lab.root / "owner.pem").write_bytes(keys()["me"].certificate_pem())
    (lab.root / "check.efi").write_bytes(lab.uki(found.manifest))
    lab.tools.run(["sbverify", "--cert", lab.root / "owner.pem", lab.root / "check.efi"], ro_binds=[lab.root])
    (lab.root / "check.efi").write_bytes(lab.rescue(found.manifest).read_bytes())
    lab.tools.run(["sbverify", "--cert", lab.root / "owner.pem", lab.root / "check.efi"], ro_binds=[lab.root])


@build
def test_an_answer_finds_the_release_that_it_is_about(lab: DeriveLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """An update that was held waits for the owner: the answer need not be told which. Later it is about nothing any more."""
    device(monkeypatch, None)
    first, second = lab.root / "first", lab.root / "second"
    command(f"kargs --append loglevel=7 --request {first}")
    stale = sign_request(first)
    assert command(f"apply --answer {stale}").data["version"] == "1.0^1"
    lab.install("2.0", 2000, entry=False)
    command(f"apply --release 2.0 --request {second}")
    assert command(f"apply --answer {sign_request(second)}").data["version"] == "2.0^1"
    assert loader.listing(lab.sysroot.esp)[0].version == "2.0^1"
    with pytest.raises(InputError, match="another deployment"):
        command(f"apply --answer {stale}")
    assert command(f"apply --answer {second}.signed").data["verdict"] == "unchanged"


@build
def test_a_foreign_or_stale_answer_is_refused(lab: DeriveLab, monkeypatch: pytest.MonkeyPatch) -> None:
    device(monkeypatch, None)
    path, other = lab.root / "one", lab.root / "two"
    command(f"kargs --append loglevel=7 --request {path}")
    command(f"kargs --append nosmt --request {other}")
    with pytest.raises(VerificationError):
        command(f"apply --answer {sign_request(path, 'stranger')}")
    mixed = strict.parse_answer(sign_request(path).read_bytes())
    foreign = strict.parse_answer(sign_request(other).read_bytes())
    with pytest.raises(InputError, match="another deployment"):
        request_verbs.attach(lab.sysroot, mixed._replace(digest=foreign.digest), None, MONITOR)
    with pytest.raises(VerificationError):
        request_verbs.attach(lab.sysroot, mixed._replace(signatures=foreign.signatures), None, MONITOR)
    assert len(lab.entries()) == 1
    assert not (lab.sysroot.root / "inbox/intent").exists()


def ask(lab: DeriveLab) -> strict.Ask:
    base = bases.next_to_boot(lab.sysroot, loader.listing(lab.sysroot.esp))
    unsigned = apply.prepare(lab.sysroot, base, KARGS, 7, MONITOR)
    return strict.Ask(dataclasses.replace(PLAIN, requests=requests.name_of(KARGS)), KARGS, unsigned)


@build
def test_a_request_says_one_thing(lab: DeriveLab) -> None:
    good = ask(lab)
    data = strict.pack(good)
    assert strict.unpack(data) == good
    other = requests.serialize(Requests((Karg("append", "init=/bin/sh"),)))
    uki = repack.exchange(repack.parse(good.unsigned.uki), {".cmdline": [b"freehold.image=" + b"0" * 64]})
    two = strict.command_line(good.unsigned.uki).encode() + b" freehold.image=0"
    twice = repack.exchange(repack.parse(good.unsigned.uki), {".cmdline": [two]})
    saving = strict.command_line(good.unsigned.rescue)
    rescues = [
        repack.exchange(repack.parse(good.unsigned.rescue), {".cmdline": [line.encode()]})
        for line in (
            saving.replace(good.unsigned.manifest.image_digest, "0" * 64), saving.replace("freehold.rescue ", ""),
            f"{saving} freehold.image={'0' * 64}", f"{saving}\ninit=/bin/sh",
        )
    ]  # fmt: skip
    for wrong in (
        good._replace(text=other),
        good._replace(intent=PLAIN),
        good._replace(unsigned=dataclasses.replace(good.unsigned, uki=uki)),
        good._replace(unsigned=dataclasses.replace(good.unsigned, uki=twice)),
        good._replace(unsigned=dataclasses.replace(good.unsigned, manifest=lab.running)),
        good._replace(unsigned=dataclasses.replace(good.unsigned, uki=repack.attach(good.unsigned.uki, b"x"))),
        # The rescue's command line: of another tree, of no rescue, of two trees; or the deployment's is the rescue's.
        *(good._replace(unsigned=dataclasses.replace(good.unsigned, rescue=rescue)) for rescue in rescues),
        good._replace(unsigned=dataclasses.replace(good.unsigned, uki=good.unsigned.rescue)),
    ):
        with pytest.raises(InputError):
            strict.unpack(strict.pack(wrong))
    for wrong_bytes in (data[:-1], data + b"x", data[:5000], data.replace(b"1 ", b"2 ", 1), b""):
        with pytest.raises(InputError):
            strict.unpack(wrong_bytes)


@given(st.binary(max_size=300) | st.builds(
    lambda header, tail: strict.MAGIC + f"{len(header)} {len(tail)}\n".encode() + header + tail, st.binary(max_size=80),
    st.binary(max_size=80),
))  # fmt: skip
@settings(max_examples=200)
def test_no_bytes_make_the_readers_fail_otherwise(data: bytes) -> None:
    for read in (strict.unpack, strict.parse_answer):
        try:
            read(data)
        except InputError:
            continue


class Releases:
    """An update server that offers what the machine has downloaded already."""

    def __init__(self, lab: DeriveLab, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lab = lab
        config = lab.sysroot.system / "usr/lib/freehold/update.toml"
        config.write_text('[update]\nurl = "http://localhost"\nstream = "stable"\n')
        self.offer: Offer | None = None
        self.monkeypatch = monkeypatch
        monkeypatch.setattr(stage, "look", lambda *_: self.offer)
        monkeypatch.setattr(stage, "download", lambda *_: None)

    def bring(self, version: str, timestamp: int) -> Manifest:
        made = self.lab.install(version, timestamp, entry=False)
        self.offer = Offer(Stream("stable", version, "0" * 64, timestamp), made, serialize_manifest(made), b"", "vendor")
        return made


def go(lab: DeriveLab, server: Releases, by: str | None, fault: str = "") -> Report:
    device(server.monkeypatch, by, fault)
    return upgrade.upgrade(lab.sysroot, upgrade.Options(), MONITOR)


def standing(lab: DeriveLab, text: bytes, serial: int = 7) -> None:
    name = wanted.store_list(lab.sysroot, text)
    (lab.sysroot.root / "owner/intent").write_bytes(sign(dataclasses.replace(PLAIN, serial=serial, requests=name)))


@build
def test_an_update_takes_the_requests_along(lab: DeriveLab, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Releases(lab, monkeypatch)
    standing(lab, KARGS)
    first = apply.transact(lab.sysroot, KARGS, 7, keys()["machine"], MONITOR).manifest
    lab.boot(first)
    new = server.bring("2.0", 2000)
    report = go(lab, server, "machine")
    assert "2.0^7 is staged" in report.text
    assert {"verdict", "running", "offered", "signer", "stream", "staged", "downloaded", "requests"} <= set(report.data)
    assert (report.data["signer"], report.data["stream"]) == ("vendor", "stable")
    assert status.gather(lab.sysroot)["update"]["available"] is None  # type: ignore[index]
    staged = loader.listing(lab.sysroot.esp)[0]
    assert staged.version == "2.0^7"
    # The release alone has no boot entry.
    assert new.id not in {entry.id for entry in loader.listing(lab.sysroot.esp)}
    line = strict.command_line(lab.uki(bases.read(lab.sysroot, staged.id)[0].manifest))
    assert line.endswith("panic=5 loglevel=7")
    assert go(lab, server, "machine").data["verdict"] == "staged"
    # The next one goes on from there, though the release is only known below what runs.
    lab.boot(bases.read(lab.sysroot, staged.id)[0].manifest)
    assert go(lab, server, "machine").data["verdict"] == "current"
    server.bring("3.0", 3000)
    assert "3.0^7 is staged" in go(lab, server, "machine").text


@build
def test_an_update_is_held_when_the_requests_do_not_go_with_it(lab: DeriveLab, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Releases(lab, monkeypatch)
    standing(lab, KARGS)
    server.bring("2.0", 2000)
    before = lab.entries()
    with pytest.raises(FreeholdError, match=r"2\.0 is held.*strict") as error:
        go(lab, server, None)
    assert "--release 2.0" in (error.value.hint or "")
    # The updater finds out only when it opens the key.
    with pytest.raises(FreeholdError, match=r"2\.0 is held.*the TPM refuses") as error:
        go(lab, server, "machine", "the TPM refuses the device key")
    assert "--release 2.0" in (error.value.hint or "")
    assert "the TPM refuses" in str(status.gather(lab.sysroot)["messages"])
    standing(lab, requests.serialize(Requests(tuple(Karg("append", f"a{n}={'x' * 500}") for n in range(5)))), 8)
    with pytest.raises(FreeholdError, match=r"2\.0 is held.*2047"):
        go(lab, server, "machine")
    assert lab.entries() == before
    assert [event["event"] for event in history(lab.sysroot)] == ["held"] * 3
    assert "2.0 is held" in str(status.gather(lab.sysroot)["messages"])
    # The owner signs the deployment elsewhere.
    standing(lab, KARGS, 9)
    device(monkeypatch, None)
    path = lab.root / "held"
    command(f"apply --release 2.0 --request {path}")
    answer = sign_request(path)
    assert command(f"apply --release 2.0 --answer {answer}").data["version"] == "2.0^9"


@build
def test_without_requests_an_update_is_the_release_itself(lab: DeriveLab, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Releases(lab, monkeypatch)
    new = server.bring("2.0", 2000)
    assert "2.0 is staged" in go(lab, server, None).text
    assert loader.listing(lab.sysroot.esp)[0].id == new.id


def locked(small: Sysroot, monkeypatch: pytest.MonkeyPatch, *, key: bool = True) -> list[str]:
    """Make ``small`` a locked machine, with or without a key; what a boot that may not use the key is refused for."""
    refused: list[str] = []

    def check_boot(*_: object) -> None:
        if refused:
            raise device_key.DeviceKeyError(refused[0])

    monkeypatch.setattr(device_key, "check_boot", check_boot)
    monkeypatch.setattr(device_key, "open_key", lambda *_: pytest.fail("the key was opened"))
    (small.root / "owner/intent").write_bytes(sign(PLAIN))
    if key:
        (small.root / "owner/device.facts").write_bytes(write_facts(Facts("file", "a" * 64, 1, 2)))
    return refused


def test_who_signs_is_decided_without_opening_the_key(small: Sysroot, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = locked(small, monkeypatch)
    assert handover.refusal(small, PLAIN) == ""
    assert "strict" in handover.refusal(small, dataclasses.replace(PLAIN, strict=True))
    refused.append("Secure Boot is off: the device key is not used")
    assert handover.refusal(small, PLAIN) == "Secure Boot is off: the device key is not used"


def test_a_machine_without_a_device_key(small: Sysroot, monkeypatch: pytest.MonkeyPatch) -> None:
    locked(small, monkeypatch, key=False)
    assert handover.refusal(small, PLAIN) == "this machine has no device key"


def test_the_verbs_are_in_the_table() -> None:
    assert {row[0] for row in request_verbs.VERBS} <= {verb.name for verb in VERBS}
