# SPDX-License-Identifier: Apache-2.0
"""Kernel inputs on a machine: derived deployments, what is lost and made again, and who signs when the owner signs elsewhere."""

from __future__ import annotations

import dataclasses
import json
import stat
import subprocess
from pathlib import Path

import pytest
from lab_derive import DeriveLab, digest_bytes, keys

from freehold.device import (
    apply,
    content,
    derive,
    inputs,
    prune,
    stage,
    status,
    strict,
    verify_deployments,
    verify_running,
)
from freehold.device import base as bases
from freehold.device.sysroot import UpdateConfig
from freehold.errors import FreeholdError, InputError, VerificationError
from freehold.keys.verify import Keychain
from freehold.lock import actions, requests
from freehold.lock import inputs as kernel
from freehold.lock.requests import Karg, Package, Requests
from freehold.monitor import NullMonitor
from freehold.seal import kernel_inputs, repack
from freehold.seal.headerball import Entry
from freehold.update import fetch
from freehold.update.manifest import Manifest, Stream, serialize_manifest

MONITOR = NullMonitor()
KARGS = requests.serialize(Requests(kargs=(Karg("append", "loglevel=7"),)))
PACKAGES = requests.serialize(Requests(packages=(Package("firmware-x"),)))


@pytest.fixture
def lab(tmp_path: Path) -> DeriveLab:
    return DeriveLab(tmp_path, inputs=True)


def file_of(lab: DeriveLab, manifest: Manifest) -> Path:
    return lab.sysroot.deployments / manifest.id / kernel_inputs.FILE


def lines_of(lab: DeriveLab, manifest: Manifest) -> list[str]:
    images = (lab.uki(manifest), lab.rescue(manifest).read_bytes())
    return [repack.content(repack.parse(data), ".cmdline").decode() for data in images]


def with_firmware(lab: DeriveLab) -> apply.PackageLayer:
    """A package with one firmware file."""

    def build(sysroot: object, base: object, found: Requests, monitor: object) -> derive.Layer:
        upper = lab.root / "upper"
        (upper / "usr/lib/firmware").mkdir(parents=True, exist_ok=True)
        (upper / "usr/lib/firmware/new.bin").write_text("new")
        entries = [Entry(f"/{name}", stat.S_IFDIR | 0o755, 0, 0) for name in ("", "usr", "usr/lib", "usr/lib/firmware")]
        entries.append(Entry("/usr/lib/firmware/new.bin", stat.S_IFREG | 0o644, 0, 0, 3, digest=digest_bytes(b"new")))
        return derive.Layer(upper, tuple(entries), (), lab.running.packages)

    return build


def test_the_release_s_policy_serves_a_tree_with_the_same_inputs(lab: DeriveLab) -> None:
    made = apply.transact(lab.sysroot, KARGS, 7, keys()["machine"], MONITOR).manifest
    assert made.inputs is not None
    assert made.inputs == lab.running.inputs
    for line in lines_of(lab, made):
        assert kernel_inputs.named(line) == made.inputs.name
    data = kernel_inputs.content(file_of(lab, made).read_bytes())
    assert kernel_inputs.check(data) == made.inputs.name
    assert kernel_inputs.count(data) == (1, 1)


def test_other_inputs_are_signed_by_who_signs_the_deployment(lab: DeriveLab) -> None:
    made = apply.transact(lab.sysroot, PACKAGES, 7, keys()["machine"], MONITOR, packages=with_firmware(lab)).manifest
    assert made.inputs is not None
    assert lab.running.inputs is not None
    assert made.inputs.name != lab.running.inputs.name
    for line in lines_of(lab, made):
        assert kernel_inputs.named(line) == made.inputs.name
        assert lab.running.inputs.name not in line
    whole = file_of(lab, made).read_bytes()
    data = kernel_inputs.content(whole)
    assert kernel_inputs.count(data) == (1, 2)
    assert f"sha256:{digest_bytes(b'new').hex()}".encode() in data
    (lab.root / "whole").write_bytes(whole)
    (lab.root / "owner.pem").write_bytes(keys()["me"].certificate_pem())
    command = ["openssl", "cms", "-verify", "-binary", "-inform", "DER", "-purpose", "any"]
    command += ["-CAfile", str(lab.root / "owner.pem"), "-in", str(lab.root / "whole")]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, data), done.stderr


def test_a_release_without_a_policy_has_none(tmp_path: Path) -> None:
    lab = DeriveLab(tmp_path)
    made = apply.transact(lab.sysroot, KARGS, 7, keys()["machine"], MONITOR).manifest
    assert made.inputs is None
    assert not file_of(lab, made).exists()
    assert inputs.is_whole(lab.sysroot, made)


def request(lab: DeriveLab) -> strict.Ask:
    base = bases.of(lab.sysroot, lab.running.id)
    layer = with_firmware(lab)(lab.sysroot, base, Requests(), MONITOR)
    return strict.Ask(None, PACKAGES, derive.assemble(lab.sysroot, base, PACKAGES, 7, MONITOR, layer))


def test_the_owner_signs_other_inputs_elsewhere(lab: DeriveLab) -> None:
    ask = request(lab)
    read = strict.unpack(strict.pack(ask))
    assert read == ask
    assert "other kernel inputs than the release's: 1 modules and 2 firmware files in all" in strict.describe(read)
    answer = strict.parse_answer(strict.answer(read, keys()["me"]))
    assert answer.signatures.policy
    derive.keep(lab.sysroot, ask.unsigned)
    with pytest.raises(VerificationError, match="not those of this deployment"):
        derive.finish(lab.sysroot, ask.unsigned, dataclasses.replace(answer.signatures, policy=b""))
    made = derive.finish(lab.sysroot, ask.unsigned, answer.signatures)
    assert made.inputs is not None
    assert made.inputs.signature == answer.signatures.policy
    assert inputs.is_whole(lab.sysroot, made)


def test_a_request_speaks_of_one_list_of_inputs(lab: DeriveLab) -> None:
    ask = request(lab)
    assert lab.running.inputs is not None
    unsigned = ask.unsigned
    older = kernel_inputs.policy(kernel_inputs.rules([]))
    for wrong, said in (
        (dataclasses.replace(unsigned, policy=older), "name other kernel inputs"),
        (dataclasses.replace(unsigned, policy=b""), "name other kernel inputs"),
        (dataclasses.replace(unsigned, policy=unsigned.policy + b"DEFAULT action=ALLOW\n"), "no policy of kernel inputs"),
        (dataclasses.replace(unsigned, manifest=unsigned.manifest._replace(inputs=lab.running.inputs)), "two lists"),
    ):
        with pytest.raises(InputError, match=said):
            strict.unpack(strict.pack(ask._replace(unsigned=wrong)))


def findings(lab: DeriveLab) -> list[tuple[str, str]]:
    boot = verify_deployments.open_esp(lab.sysroot)
    found, _ = verify_deployments.deployments(lab.sysroot, boot, Keychain.from_directory(lab.sysroot.keychain))
    return [(one.where, one.check) for each in found for one in verify_deployments.kernel_inputs(lab.sysroot, each)]


def test_what_was_lost_is_found_and_made_again(lab: DeriveLab) -> None:
    assert findings(lab) == [(lab.running.id, "kernel-inputs")]
    assert prune.cleanup(lab.sysroot, MONITOR) == []
    good = file_of(lab, lab.running).read_bytes()
    assert findings(lab) == []
    flipped = good[:-1] + bytes([good[-1] ^ 1])  # in the signature
    changed = good.replace(b"op=KMODULE action=DENY", b"op=KMODULE action=DENI")
    for damaged in (good[:-1], good + b"x", flipped, changed, b""):
        file_of(lab, lab.running).write_bytes(damaged)
        assert findings(lab) == [(lab.running.id, "kernel-inputs")], damaged[-20:]
        prune.cleanup(lab.sysroot, MONITOR)
        assert file_of(lab, lab.running).read_bytes() == good


def test_an_image_with_other_inputs_gets_no_policy(lab: DeriveLab) -> None:
    assert lab.running.inputs is not None
    wrong = lab.running._replace(inputs=lab.running.inputs._replace(name="0" * 64))
    with pytest.raises(VerificationError, match="other kernel inputs"):
        inputs.place(lab.sysroot, wrong)
    assert not file_of(lab, wrong).exists()


@pytest.mark.parametrize("sound", [True, False])
def test_a_download_has_its_policy_before_it_is_a_deployment(
    lab: DeriveLab, monkeypatch: pytest.MonkeyPatch, sound: bool
) -> None:
    manifest = lab.running
    assert manifest.inputs is not None
    if not sound:
        manifest = manifest._replace(inputs=manifest.inputs._replace(name="0" * 64))
    directory = lab.sysroot.deployments / manifest.id
    (directory / "manifest.json").unlink()
    for module, name in (
        (content, "pull"), (content, "verify_objects"), (stage, "_fetch_image"), (stage, "_fetch_uki"), (stage, "_fetch_rescue"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, lambda *_: None)
    stream = Stream("stable", "1.0", "0" * 64, 1)
    offer = fetch.Offer(stream, manifest, serialize_manifest(manifest), b"signature", "vendor")
    try:
        stage.download(lab.sysroot, offer, UpdateConfig("http://h", "stable", Path("here")), MONITOR)
    except VerificationError as error:
        assert "other kernel inputs" in error.message
    assert (directory / "manifest.json").exists() == sound
    assert file_of(lab, manifest).exists() == sound
    assert inputs.is_whole(lab.sysroot, manifest) == sound


@pytest.fixture
def machine(lab: DeriveLab, monkeypatch: pytest.MonkeyPatch) -> DeriveLab:
    """The lab as the machine that the lock's actions work on, with IPE's files."""
    assert lab.running.inputs is not None
    (lab.sysroot.system / "proc/cmdline").write_text(lines_of(lab, lab.running)[0])
    for name, value in (
        ("SYSROOT", lab.sysroot), ("CMDLINE", lab.sysroot.system / "proc/cmdline"), ("RUN", lab.sysroot.system / "run/freehold"),
    ):  # fmt: skip
        monkeypatch.setattr(actions, name, value)
    place = lab.sysroot.system / kernel.IPE / "policies" / f"freehold-{lab.running.inputs.name}"
    place.mkdir(parents=True)
    (place / "active").write_text("0")
    (lab.sysroot.system / kernel.IPE / "enforce").write_text("1")
    (lab.sysroot.system / kernel.IPE / "new_policy").write_text("")
    return lab


def firmware_knows(lab: DeriveLab, count: int) -> None:
    (lab.sysroot.system / "run/freehold/boot.json").write_text(json.dumps({"keychain_own": count}))


def test_a_running_machine_is_bound_when_it_is_locked(machine: DeriveLab) -> None:
    assert actions.bind_inputs() == "enforced"
    assert (machine.sysroot.system / kernel.IPE / "new_policy").read_bytes() == file_of(machine, machine.running).read_bytes()
    assert kernel.in_force(kernel_inputs.named(actions.CMDLINE.read_text()), machine.sysroot.system) is True


def test_a_machine_that_would_not_boot_locked_is_not_locked(machine: DeriveLab) -> None:
    """Where the firmware knows the keychain the early step insists; elsewhere the guard alone has to do."""
    switch = next((machine.sysroot.system / kernel.IPE / "policies").iterdir())
    switch.rename(switch.with_name("freehold-other"))
    firmware_knows(machine, 1)
    with pytest.raises(FreeholdError, match="does not take this release's list"):
        actions.bind_inputs()
    firmware_knows(machine, 0)
    assert actions.bind_inputs() == "unknown"
    actions.CMDLINE.write_text(f"freehold.image={machine.running.image_digest} quiet\n")
    assert actions.bind_inputs() == "none"


def test_a_file_that_cannot_be_made_again(machine: DeriveLab) -> None:
    (machine.sysroot.images / machine.running.image_digest).unlink()
    firmware_knows(machine, 2)
    with pytest.raises(FreeholdError, match="cannot be made again"):
        actions.bind_inputs()


def shown(lab: DeriveLab) -> tuple[object, bool]:
    lock, messages = status.lock_of(lab.sysroot)
    return lock["kernel_inputs"], any("judged by the guard alone" in one for one in messages)


def test_status_says_who_judges(machine: DeriveLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(machine.sysroot), "mode_and_tiers", lambda _: ("open", "privileged", "S1"))
    assert shown(machine) == ("off", False)
    monkeypatch.setattr(type(machine.sysroot), "mode_and_tiers", lambda _: ("locked", "privileged", "S1"))
    assert shown(machine) == ("guard", True)
    assert actions.bind_inputs() == "enforced"
    assert shown(machine) == ("enforced", False)
    (machine.sysroot.system / kernel.IPE / "enforce").write_text("0")
    assert shown(machine) == ("guard", True)


def test_verify_knows_when_the_kernel_ought_to(machine: DeriveLab) -> None:
    line = actions.CMDLINE.read_text()

    def found(*, locked: bool) -> list[tuple[str, str]]:
        return [(one.severity, one.check) for one in verify_running._inputs(machine.sysroot, line, locked=locked)]

    assert found(locked=True) == [("note", "kernel-inputs")]
    firmware_knows(machine, 1)
    assert found(locked=True) == [("deviation", "kernel-inputs")]
    assert found(locked=False) == []
    actions.bind_inputs()
    assert found(locked=True) == []
