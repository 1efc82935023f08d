# SPDX-License-Identifier: Apache-2.0
"""Attestation with a real TPM (swtpm) and Debian's tpm2-tools; boot images against systemd-measure and sbsign."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab_attest import MACHINE, NONCE, Boot, log_of, sha
from lab_pe import whole
from lab_socket import wait_for

from freehold.attest import document, tpm
from freehold.attest.document import Attestation, Identity
from freehold.attest.judge import Release, judge
from freehold.attest.verdict import Verdict
from freehold.build import uki
from freehold.build.store import cache_directory
from freehold.build.tools import Tools, ensure
from freehold.device import attest
from freehold.device.attest import Tpm
from freehold.device.sysroot import Sysroot
from freehold.errors import FreeholdError, NotHereError
from freehold.keys import issue, x509
from freehold.keys.pcr import kernel_register
from freehold.keys.pe import parse
from freehold.keys.verify import Keychain
from freehold.monitor import NullMonitor
from freehold.run import start

pytestmark = pytest.mark.build


@pytest.fixture(scope="module")
def tree() -> Tools:
    return ensure(cache_directory(), NullMonitor())


def software_tpm(tree: Tools, work: Path) -> Iterator[Tpm]:
    """A new TPM, switched on."""
    (work / "state").mkdir()
    process = start(
        [
            *tree.beside("swtpm"), "socket", "--tpm2", "--server", f"type=unixio,path={work}/sock",
            "--ctrl", f"type=unixio,path={work}/sock.ctrl", "--tpmstate", f"dir={work}/state",
            "--flags", "not-need-init,startup-clear",
        ],
        log=work / "log",
    )  # fmt: skip
    try:
        wait_for(work / "sock")
        tcti = f"swtpm:path={work}/sock"
        # A kernel clears the TPM's memory after each program (/dev/tpmrm0); this socket has none in between.
        after = f'"$@"; status=$?; tpm2_flushcontext -T {tcti} -t; exit $status'
        yield Tpm((*tree.argv(["sh", "-c", after, "sh"], binds=[work]),), tcti, work)
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def chip(tree: Tools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tpm]:
    # A socket's path has at most 107 bytes.
    yield from software_tpm(tree, tmp_path_factory.mktemp("a"))


@pytest.fixture(scope="module")
def other_chip(tree: Tools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tpm]:
    yield from software_tpm(tree, tmp_path_factory.mktemp("b"))


def machine(boot: Boot, chip: Tpm, work: Path) -> Sysroot:
    """``boot`` as files of a running system, and measured into the TPM."""
    sysroot = Sysroot(root=work / "sysroot", esp=work / "esp", system=work / "system")
    deployment = sysroot.deployments / boot.image[:16]
    files: dict[Path, bytes] = {
        sysroot.root / "owner/id": f"{MACHINE}\n".encode(), sysroot.root / "owner/intent": boot.intent(),
        deployment / "manifest.json": boot.manifest()[0], deployment / "manifest.json.sig": boot.manifest()[1],
        sysroot.system / "proc/cmdline": f"{boot.cmdline}\n".encode(),
        sysroot.system / attest.FIRMWARE_LOG: log_of(boot.machine_log),
        sysroot.system / attest.SYSTEM_LOG: boot.system_log,
        sysroot.system / attest.MEASURED: boot.measured() or b"",
        **{sysroot.keychain / name: der for name, der in boot.keychain.items()},
    }  # fmt: skip
    for path, data in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    measured = [(one.pcr, one.digest.hex()) for one in boot.machine_log]
    # The early step comes after the firmware, and before systemd.
    measured += [(11, sha(b"freehold-locked").hex()), (15, sha(boot.measured() or b"").hex())]
    for part in boot.system_log.split(b"\x1e")[1:]:
        record = json.loads(part)
        measured.append((record["pcr"], record["digests"][0]["digest"]))
    for pcr, digest in measured:
        chip.run("tpm2_pcrextend", f"{pcr}:sha256={digest}")
    return sysroot


@pytest.fixture(scope="module")
def known(chip: Tpm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Boot, Sysroot, Identity, Attestation]:
    boot = Boot()
    sysroot = machine(boot, chip, tmp_path_factory.mktemp("m"))
    return boot, sysroot, attest.identity(sysroot, chip), attest.attest(sysroot, NONCE, chip)


def verdict_on(attestation: Attestation, boot: Boot, identity: Identity, nonce: bytes = NONCE) -> Verdict:
    keychain = Keychain.from_files(identity.keychain, "identity")
    release = Release(parse(boot.uki), sha(boot.uki).hex())
    return judge(attestation, nonce=nonce, identity=identity, keychain=keychain, release=release)


def refusals(verdict: Verdict) -> str:
    return " ".join(f"{line.check}: {line.text}" for line in verdict.lines if line.state == "refused")


def test_a_real_quote_is_believed(known: tuple[Boot, Sysroot, Identity, Attestation]) -> None:
    boot, _, identity, attestation = known
    verdict = verdict_on(attestation, boot, identity)
    assert refusals(verdict) == ""
    assert (verdict.good, verdict.lock) == (True, "locked")
    assert identity.measures
    assert document.parse_attestation(document.serialize_attestation(attestation)) == attestation
    assert document.parse_identity(document.serialize_identity(identity)) == identity
    assert attestation.pcrs == boot.pcrs()
    assert identity.endorsements[0].kind in ("rsa", "ecc")
    assert identity.firmware == boot.identity().firmware
    assert identity.programs == boot.identity().programs
    assert identity.variables == boot.identity().variables


def test_the_key_is_the_same_every_time_and_another_in_another_tpm(
    known: tuple[Boot, Sysroot, Identity, Attestation], chip: Tpm, other_chip: Tpm, tmp_path: Path
) -> None:
    boot, sysroot, identity, attestation = known
    assert attest.identity(sysroot, chip).key == identity.key == attestation.key
    assert "restricted" in tpm.parse_public(identity.key).attributes
    twin = machine(boot, other_chip, tmp_path)
    elsewhere = attest.attest(twin, NONCE, other_chip)
    assert refusals(verdict_on(elsewhere, boot, identity)).startswith("key: another machine")
    # The other machine with the first one's key written over its own.
    posing = dataclasses.replace(elsewhere, key=identity.key)
    assert refusals(verdict_on(posing, boot, identity)) == "signature: the key did not sign this quote"
    assert verdict_on(elsewhere, boot, attest.identity(twin, other_chip)).good


def test_replay_and_swap(known: tuple[Boot, Sysroot, Identity, Attestation], chip: Tpm) -> None:
    boot, sysroot, identity, attestation = known
    fresh = b"\x55" * 32
    assert "an old answer" in refusals(verdict_on(attestation, boot, identity, fresh))
    second = attest.attest(sysroot, fresh, chip)
    assert verdict_on(second, boot, identity, fresh).good
    mixed = dataclasses.replace(
        second, evidence=document.serialize_evidence(dataclasses.replace(boot.evidence(), time=5))
    )
    assert "not those of the quote" in refusals(verdict_on(mixed, boot, identity, fresh))
    old = dataclasses.replace(attestation, nonce=fresh)
    assert "not those of the quote" in refusals(verdict_on(old, boot, identity, fresh))


def test_a_log_changed_on_the_machine(
    known: tuple[Boot, Sysroot, Identity, Attestation], chip: Tpm, tmp_path: Path
) -> None:
    boot, sysroot, identity, _ = known
    log = sysroot.system / attest.FIRMWARE_LOG
    kept = log.read_bytes()
    try:
        log.write_bytes(kept.replace(boot.loader, sha(b"other")))
        assert "do not lead to the quoted PCR 4" in refusals(
            verdict_on(attest.attest(sysroot, NONCE, chip), boot, identity)
        )
    finally:
        log.write_bytes(kept)


def test_an_identity_says_whether_the_early_step_measures(
    known: tuple[Boot, Sysroot, Identity, Attestation], chip: Tpm
) -> None:
    _, sysroot, _, _ = known
    text = sysroot.system / attest.MEASURED
    kept = text.read_bytes()
    try:
        text.write_bytes(kept.replace(b"locked", b"open"))
        assert not attest.identity(sysroot, chip).measures
        text.unlink()
        assert not attest.identity(sysroot, chip).measures
    finally:
        text.write_bytes(kept)


def test_the_key_signs_nothing_that_only_looks_like_a_quote(
    known: tuple[Boot, Sysroot, Identity, Attestation], chip: Tpm
) -> None:
    """The TPM itself refuses: what makes the mark at the begin of a quote worth something."""
    _, _, _, attestation = known
    with attest._key(chip) as work:
        (work / "message").write_bytes(b"something else")
        sign = ("tpm2_sign", "-c", work / "ak.ctx", "-g", "sha256", "-o", work / "sig", work / "message")
        chip.run(*sign)
        (work / "message").write_bytes(attestation.quote)
        with pytest.raises(FreeholdError, match="the TPM refused"):
            chip.run(*sign)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_changed_bit_of_a_real_answer_is_refused(
    known: tuple[Boot, Sysroot, Identity, Attestation], data: st.DataObject
) -> None:
    boot, _, identity, real = known
    name = data.draw(st.sampled_from(["key", "quote", "signature", "evidence"]))
    content = bytearray(getattr(real, name))
    at = data.draw(st.integers(0, 8 * len(content) - 1))
    content[at // 8] ^= 1 << at % 8
    fields: dict[str, bytes] = {name: bytes(content)}
    assert not verdict_on(dataclasses.replace(real, **fields), boot, identity).good  # type: ignore[arg-type]


def test_what_is_missing_is_said(known: tuple[Boot, Sysroot, Identity, Attestation], chip: Tpm, tmp_path: Path) -> None:
    _, sysroot, _, _ = known
    (sysroot.system / attest.FIRMWARE_LOG).rename(tmp_path / "log")
    try:
        with pytest.raises(NotHereError, match="no log of its measurements"):
            attest.attest(sysroot, NONCE, chip)
    finally:
        (tmp_path / "log").rename(sysroot.system / attest.FIRMWARE_LOG)
    gone = chip._replace(tcti=f"swtpm:path={tmp_path}/nothing")
    with pytest.raises(FreeholdError, match="the TPM refused"):
        attest.attest(sysroot, NONCE, gone)
    with pytest.raises(NotHereError, match="no tpm2-tools"):
        attest.attest(sysroot, NONCE, Tpm(("/nonexistent/bwrap",), "", chip.scratch))
    assert [path.name for path in chip.scratch.iterdir() if path.name.startswith("attest-")] == []


def test_a_boot_image_as_its_tools_see_it(tree: Tools, tmp_path: Path) -> None:
    """PCR 11 as systemd-measure predicts it, and the digest that sbsign signs."""
    parts = {"linux": whole((".text", b"kernel" * 500)), "initrd": b"initrd" * 777}
    for name, content in parts.items():
        (tmp_path / name).write_bytes(content)
    release = uki.os_release("server", "1")
    made = uki.write_uki(
        tree,
        tmp_path,
        kernel=tmp_path / "linux",
        uname="6.12",
        initrd=tmp_path / "initrd",
        line="ro quiet",
        release=release,
    )
    issue.create("r", "release", tmp_path, None)
    signed = tmp_path / "signed.efi"
    uki.sign_efi(tree, made, signed, x509.load_signer(f"file:{tmp_path}/r.key", lambda _: b""))
    before, after = parse(made.read_bytes()), parse(signed.read_bytes())
    assert [before.stored(one) for one in before.sections] == [after.stored(one) for one in after.sections]
    # The signature has the digest that sbsign counted; it stands in the last part of the file.
    assert after.authenticode() in signed.read_bytes()[len(made.read_bytes()) :]
    assert parse(tree.root.joinpath("usr/lib/systemd/boot/efi/linuxx64.efi.stub").read_bytes()).content(".sdmagic")
    options = []
    for name in (".linux", ".osrel", ".cmdline", ".initrd", ".uname", ".sbat"):
        (tmp_path / f"s{name}").write_bytes(after.content(name) or b"")
        options.append(f"--{name[1:]}={tmp_path}/s{name}")
    measure = ["/usr/lib/systemd/systemd-measure", "calculate", "--bank=sha256", "--phase=", *options]
    text = tree.run(measure, binds=[tmp_path]).text
    found = re.search(r"11:sha256=([0-9a-f]{64})", text)
    assert found is not None
    assert kernel_register(signed.read_bytes()).hex() == found[1]
