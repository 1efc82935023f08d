# SPDX-License-Identifier: Apache-2.0
"""The verdict on attestations: what is believed, what is refused, and in which words."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab_attest import (
    ACTION,
    APPLICATION,
    AUTHORITY,
    DATABASE,
    DRIVER_CONFIG,
    GLOBAL,
    IPL,
    NONCE,
    RESTRICTED,
    SEPARATOR,
    SOMEBODY,
    Boot,
    Made,
    authenticode,
    event,
    log_of,
    sha,
    signature_list,
    system_record,
    variable,
)
from lab_pe import whole
from lab_release import key

from freehold.attest import document, tpm, userlog
from freehold.attest.boot import started
from freehold.attest.document import Attestation, qualifying
from freehold.attest.judge import Release, judge
from freehold.attest.verdict import Verdict
from freehold.cli import main
from freehold.errors import InputError
from freehold.keys import eventlog, pcr, pe

Change = Callable[[Boot], Attestation]


@pytest.fixture(scope="module")
def good() -> Boot:
    return Boot()


def release_of(boot: Boot) -> Release:
    return Release(pe.parse(boot.uki), sha(boot.uki).hex())


def verdict_on(attestation: Attestation, boot: Boot, *, known: Boot | None = None, **changes: object) -> Verdict:
    """The verdict of an owner who knows ``known`` (by default a fresh, untouched machine) and its release."""
    known = known or Boot()
    given: dict[str, Any] = {"nonce": NONCE, "identity": known.identity(), "keychain": known.trusted()}
    given |= {"release": release_of(known), **changes}
    return judge(attestation, **given)


def refusals(verdict: Verdict) -> dict[str, str]:
    return {line.check: line.text for line in verdict.lines if line.state == "refused"}


def test_an_untouched_machine_is_believed(good: Boot) -> None:
    verdict = verdict_on(good.attestation(), good)
    assert refusals(verdict) == {}
    assert verdict.good
    text = verdict.text()
    for words in (
        "that of the identity", "answers your nonce", "PK: 1 entries, as when", "it was on", "the release's boot image",
        "all are the release's", "given nothing from outside", "server 1.0, signed by vendor",
        "locked, signed by me, serial 4",
        "phases of the boot that it measured itself: sysinit", "machine-id:abab",
        "locked when it started, and the guard with it (by the intent number 4, release 5)", "Proved: locked.",
    ):  # fmt: skip
        assert words in text, words


def test_without_an_identity_some_tpm_says_it(good: Boot) -> None:
    verdict = verdict_on(good.attestation(), good, identity=None)
    assert not verdict.good
    assert refusals(verdict) == {}
    assert "is not known: this says what some TPM says" in verdict.text()
    nothing = judge(good.attestation(), nonce=NONCE, identity=None, keychain=None, release=None)
    assert not nothing.good
    assert "Not shown (key" in nothing.conclusion()


def test_without_a_keychain_documents_prove_nothing(good: Boot) -> None:
    verdict = verdict_on(good.attestation(), good, keychain=None)
    assert not verdict.good
    assert {line.check for line in verdict.lines if line.state == "unknown" and line.decides} == {"release", "intent"}


def test_nothing_judged_is_nothing_good() -> None:
    assert not Verdict().good


def swapped_evidence(boot: Boot) -> Attestation:
    other = Boot(lock="open").attestation()
    return dataclasses.replace(boot.attestation(), evidence=other.evidence)


def lookalike(boot: Boot) -> Attestation:
    """Bytes like a quote, without the mark that only a TPM writes, signed by the key."""
    real = boot.attestation()
    quote = boot.quote(qualifying(NONCE, real.evidence), real.pcrs, magic=0xFF544346)
    return dataclasses.replace(real, quote=quote, signature=boot.sign(quote))


def of_another_type(boot: Boot) -> Attestation:
    real = boot.attestation()
    quote = boot.quote(qualifying(NONCE, real.evidence), real.pcrs, kind=0x8017)
    return dataclasses.replace(real, quote=quote, signature=boot.sign(quote))


def other_values(boot: Boot) -> Attestation:
    real = boot.attestation()
    return dataclasses.replace(real, pcrs=(*real.pcrs[:4], bytes(32), *real.pcrs[5:]))


def other_signature(boot: Boot) -> Attestation:
    real = boot.attestation()
    return dataclasses.replace(real, signature=boot.sign(real.quote + b"x"))


def fewer_pcrs(boot: Boot) -> Attestation:
    real = boot.attestation()
    quote = real.quote.replace(b"\x03\xff\xff\x00", b"\x03\xff\x7f\x00")
    return dataclasses.replace(real, quote=quote, signature=boot.sign(quote))


def other_parent(boot: Boot) -> Attestation:
    real = boot.attestation()
    quote = real.quote.replace(boot.signer(), boot.signer()[:-1] + b"x")
    return dataclasses.replace(real, quote=quote, signature=boot.sign(quote))


@pytest.mark.parametrize(
    ("change", "check", "words"),
    [
        (lambda boot: boot.attestation(b"\7" * 32), "nonce", "an old answer, or one for somebody else"),
        (
            lambda boot: dataclasses.replace(boot.attestation(b"\7" * 32), nonce=NONCE), "nonce",
            "nonce or evidence are not those of the quote",
        ),
        (lambda boot: Boot(seed=2).attestation(), "key", "another machine"),
        (lambda boot: Boot(attributes=RESTRICTED & ~0x10000).attestation(), "key", "it is not restricted"),
        (lambda boot: Boot(attributes=RESTRICTED & ~0x2).attestation(), "key", "it is not fixedTPM"),
        (lambda boot: dataclasses.replace(Boot(seed=2).attestation(), key=boot.public()), "signature", "did not sign"),
        (swapped_evidence, "nonce", "not those of the quote"),
        (lookalike, "quote", "a key signed bytes that are no TPM's"),
        (of_another_type, "quote", "something else than PCRs"),
        (other_values, "pcrs", "not those of the quote"),
        (other_signature, "signature", "did not sign"),
        (fewer_pcrs, "quote", "not 0 to 15"),
        (other_parent, "quote", "not this one below the endorsement hierarchy"),
    ],
)  # fmt: skip
def test_whose_word_it_is(good: Boot, change: Change, check: str, words: str) -> None:
    assert verdict_on(good.attestation(), good).good
    verdict = verdict_on(change(good), good)
    assert not verdict.good
    assert words in refusals(verdict)[check]
    assert verdict.lines[-1].text == "not looked at: nobody vouches for it"


def with_log(change: Callable[[list[Made]], list[Made]]) -> Change:
    """Root's doing: the log in the evidence differs from what was measured, and the TPM quotes that evidence."""

    def attest(boot: Boot) -> Attestation:
        log = log_of(change(list(boot.machine_log)))
        return boot.attestation(evidence=dataclasses.replace(boot.evidence(), firmware_log=log))

    return attest


def altered(pcr: int, kind: int, /, **fields: object) -> Callable[[list[Made]], list[Made]]:
    """The first event of ``kind`` in ``pcr``, changed."""

    def change(events: list[Made]) -> list[Made]:
        at = next(at for at, one in enumerate(events) if (one.pcr, one.kind) == (pcr, kind))
        return [*events[:at], dataclasses.replace(events[at], **cast("dict[str, Any]", fields)), *events[at + 1 :]]

    return change


OFF = variable(GLOBAL, "SecureBoot", b"\0")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (altered(4, APPLICATION, digest=bytes(32)), "do not lead to the quoted PCR 4"),
        (altered(4, APPLICATION, pcr=5), "do not lead to the quoted PCR 4, 5"),
        (altered(11, IPL, digest=bytes(32)), "do not lead to the quoted PCR 11"),
        (altered(7, DRIVER_CONFIG, data=OFF), "PCR 7: what PCR 7 EFI_VARIABLE_DRIVER_CONFIG (1) says is not what was measured"),
        (altered(7, DRIVER_CONFIG, data=OFF, digest=sha(OFF)), "do not lead to the quoted PCR 7"),
        (lambda events: events[:-1], "do not lead to the quoted PCR 5"),
        (lambda events: [*events, event(3, ACTION, b"more")], "do not lead to the quoted PCR 3"),
        (lambda events: [events[1], events[0], *events[2:]], "do not lead to the quoted PCR 0"),
    ],
)  # fmt: skip
def test_a_log_that_root_changed(good: Boot, change: Callable[[list[Made]], list[Made]], words: str) -> None:
    verdict = verdict_on(with_log(change)(good), good)
    assert not verdict.good
    assert words in " ".join(line.text for line in verdict.lines if line.check == "log")


def test_a_changed_kind_of_event_is_no_way_round(good: Boot) -> None:
    """The kind is not measured: calling the loader something else does not hide it, and hides no variable."""
    evil = Boot(secure_boot=b"\0", loader=sha(b"evil"))
    for kind in (0x77, ACTION, SEPARATOR, IPL, 6):
        attestation = with_log(altered(4, APPLICATION, kind=kind))(evil)
        verdict = verdict_on(attestation, evil, known=Boot(secure_boot=b"\0"))
        assert "nobody answers for it" in refusals(verdict)["programs"], kind
    assert (
        "measured and not understood: PCR 4 type 0x77 (1)"
        in verdict_on(with_log(altered(4, APPLICATION, kind=0x77))(good), good).text()
    )
    for kind in (0x77, ACTION, AUTHORITY, 0x0A):
        assert "secure-boot" in refusals(verdict_on(with_log(altered(7, DRIVER_CONFIG, kind=kind))(good), good)), kind


def test_a_second_list_of_variables_does_not_replace_the_first() -> None:
    """Root measures what a good boot would have, and labels the true beginning as something else."""
    off, on = Boot(secure_boot=b"\0"), Boot()
    staged = [one for one in on.machine_log if one.pcr == 7]
    machine = Boot(secure_boot=b"\0", more=staged)
    for kind in (ACTION, AUTHORITY, SEPARATOR, 0x0A, 0x77, DRIVER_CONFIG):
        log = [dataclasses.replace(one, kind=kind) if one.pcr == 7 else one for one in off.machine_log]
        evidence = dataclasses.replace(machine.evidence(), firmware_log=log_of([*log, *staged]))
        verdict = verdict_on(machine.attestation(evidence=evidence), machine, known=on)
        assert "lead to the quoted values" in verdict.text() or "log" in refusals(verdict)
        assert "secure-boot" in refusals(verdict), kind


def machine_with(*events: Made, **fields: object) -> Attestation:
    return Boot(more=list(events), **cast("dict[str, Any]", fields)).attestation()


def test_what_really_happened_is_judged() -> None:
    """Each of these machines is honest about its logs; the replay succeeds, the verdict is no."""
    on = event(7, DRIVER_CONFIG, variable(GLOBAL, "SecureBoot", b"\1"))
    cases = [
        (machine_with(on), "secure-boot", "SecureBoot was measured twice"),
        (machine_with(on, secure_boot=b"\0"), "secure-boot", "SecureBoot was measured twice"),
        (machine_with(event(7, DRIVER_CONFIG, variable(DATABASE, "db", b""))), "secure-boot", "db was measured twice"),
        (machine_with(event(12, IPL, b"credential")), "beside", "command lines, credentials or add-ons (PCR 12)"),
        (machine_with(event(13, IPL, b"extension")), "beside", "system extensions (PCR 13)"),
        (machine_with(event(11, IPL, b"more")), "boot-image", "not systemd-stub's"),
        (
            machine_with(event(4, APPLICATION, b"p", sha(b"evil")), secure_boot=b"\0"),
            "programs",
            "nobody answers for it",
        ),
        (machine_with(event(0, 8, b"2.0")), "firmware", "PCR 0"),
        (machine_with(image="2" * 64), "boot-image", "not the release's: .cmdline"),
        (
            machine_with(system_log=system_record(15, "machine-id", "machine-id:" + "0" * 32)),
            "system",
            "machine-id:0000",
        ),
    ]
    for attestation, check, words in cases:
        verdict = verdict_on(attestation, Boot())
        assert not verdict.good
        assert "lead to the quoted values" in verdict.text()
        assert words in refusals(verdict)[check], (check, refusals(verdict))


def test_secure_boot_off_is_said_and_measurements_alone_decide() -> None:
    off = Boot(secure_boot=b"\0")
    verdict = verdict_on(off.attestation(), off, known=off)
    assert verdict.good
    assert "it was off: firmware refused nothing, measurements alone speak" in verdict.text()
    stranger = Boot(secure_boot=b"\0", loader=sha(b"evil"))
    assert "nobody answers for it" in refusals(verdict_on(stranger.attestation(), off, known=off))["programs"]
    # With it on, and every key known, a new loader needs no introduction.
    updated = Boot(loader=sha(b"a newer loader"))
    assert verdict_on(updated.attestation(), updated).good


def test_keys_of_secure_boot_that_nobody_knows() -> None:
    class Foreign(Boot):
        def events(self) -> list[Made]:
            self.db = signature_list(self.vendor.certificate) + signature_list(key("vendor", "foreign").certificate)
            return super().events()

    foreign = Foreign()
    refused = refusals(verdict_on(foreign.attestation(), foreign))
    assert (
        "db has changed, and holds what is not of your keychain: release vendor, certificate" in refused["secure-boot"]
    )
    # Then Secure Boot vouches for nobody.
    late = Foreign(loader=sha(b"another"))
    assert "nobody answers for it" in refusals(verdict_on(late.attestation(), late))["programs"]
    # The owner who took the identity with it knows it.
    assert verdict_on(foreign.attestation(), foreign, known=foreign).good
    # Taken in by the keychain alone, as after the owner's own update of db.
    without = dataclasses.replace(Boot().identity(), variables=dict.fromkeys(document.VARIABLES, bytes(32)))
    assert verdict_on(Boot().attestation(), Boot(), identity=without).good


def test_what_anothers_key_in_db_accepted_is_not_known_by_that() -> None:
    """db has a stranger's key for option ROMs. A boot manager that they signed starts any kernel, whose root then measures
    what a good boot would have measured."""
    stranger = key("vendor", "foreign").certificate

    class Both(Boot):
        used: tuple[bytes, ...] = (stranger,)

        def events(self) -> list[Made]:
            self.db = signature_list(self.vendor.certificate) + signature_list(stranger)
            used = [event(7, AUTHORITY, variable(DATABASE, "db", SOMEBODY.bytes_le + one)) for one in self.used]
            return [*super().events(), *used]

    class Vendor(Both):
        used = ()

    good, evil = Vendor(), Both(loader=sha(b"a boot manager that somebody else signed"))
    verdict = verdict_on(evil.attestation(), evil, known=good)
    assert "nobody answers for it" in refusals(verdict)["programs"]
    assert f"{hashlib.sha256(stranger).hexdigest()[:16]} was used, which is not of your keychain" in verdict.text()
    # An option ROM of theirs does no harm where every program is known by itself, nor a new loader by our own key alone.
    assert verdict_on(Both().attestation(), Both(), known=good).good
    late = Vendor(loader=sha(b"a newer loader"))
    assert verdict_on(late.attestation(), late, known=good).good
    # Firmware that measured no authority did not say by whose word it started the program.
    late.machine_log = [one for one in late.machine_log if one.kind != AUTHORITY]
    assert "nobody answers for it" in refusals(verdict_on(late.attestation(), late, known=good))["programs"]


def test_a_release_without_a_command_line_is_judged_as_well() -> None:
    """Root can measure an empty section by the name."""
    sections = {name: content for name, content in Boot().sections.items() if name != ".cmdline"}
    release = Release(pe.parse(whole(*sections.items())), "0" * 64)
    bare = Boot(more=[event(11, IPL, b"", sha(b".cmdline\0")), event(11, IPL, b"", sha(b""))])
    bare.machine_log = [one for one in bare.machine_log if one.digest not in (sha(b".cmdline\0"), sha(bare.cmdline.encode()))]
    verdict = verdict_on(bare.attestation(), bare, release=release)
    assert "not the one that was measured" in refusals(verdict)["command-line"]


def test_an_authority_that_is_not_of_db() -> None:
    mok = event(7, AUTHORITY, variable(DATABASE, "MokList", b"certificate"))
    verdict = verdict_on(machine_with(mok), Boot())
    assert not verdict.good
    assert "MokList was an authority, which is not db" in verdict.text()


def test_documents_in_the_evidence(good: Boot) -> None:
    evidence = good.evidence()
    other = Boot(image="3" * 64)
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "another manifest": ({"manifest": other.manifest()[0], "manifest_signature": other.manifest()[1]}, "release"),
        "no signature": ({"manifest_signature": b""}, "release"),
        "another command line": ({"command_line": other.cmdline}, "command-line"),
        "an intent for another machine": ({"machine": "cd" * 16}, "intent"),
        "a damaged intent": ({"intent": evidence.intent and evidence.intent.replace(b"locked", b"open")}, "intent"),
    }
    for name, (fields, check) in cases.items():
        verdict = verdict_on(good.attestation(evidence=dataclasses.replace(evidence, **fields)), good)
        assert check in refusals(verdict), name
        assert not verdict.good
    none = verdict_on(good.attestation(evidence=dataclasses.replace(evidence, intent=None)), good)
    assert "an open machine, or one that hides it" in none.text()


def test_a_release_that_does_not_run(good: Boot) -> None:
    newer = Boot()
    newer.sections[".initrd"] = b"newer"
    newer.uki = whole(*newer.sections.items())
    refused = refusals(verdict_on(good.attestation(), good, release=release_of(newer)))
    assert refused["boot-image"] == "not the release's: .initrd"
    assert refused["programs"] == "the release's boot image is not among them"
    assert "the release to compare with is not" in refused["release"]


def test_startup_in_another_locality() -> None:
    late = Boot(locality=3)
    assert verdict_on(late.attestation(), late, known=late).good
    assert "PCR 0" in refusals(verdict_on(Boot().attestation(), late, known=late))["firmware"]


def test_ima_is_replayed_or_said_to_be_missing(good: Boot) -> None:
    fields = b"".join(len(one).to_bytes(4, "little") + one for one in (b"sha256:\0" + bytes(32), b"boot_aggregate\0"))
    row = (10).to_bytes(4, "little") + sha(fields) + b"\6\0\0\0ima-ng" + len(fields).to_bytes(4, "little") + fields
    (record,) = userlog.parse_ima(row)
    assert (record.pcr, record.text, record.proven) == (10, "boot_aggregate", True)
    measured = Boot(more=[event(10, 0x77, b"", sha(fields))])
    kept = log_of(measured.machine_log)  # the firmware knows nothing of it
    without = dataclasses.replace(measured.evidence(), firmware_log=kept)
    verdict = verdict_on(measured.attestation(evidence=without), measured)
    assert verdict.good
    assert "the machine has no SHA-256 log of it" in verdict.text()
    assert verdict_on(measured.attestation(evidence=dataclasses.replace(without, ima_log=row)), measured).good
    wrong = verdict_on(measured.attestation(evidence=dataclasses.replace(without, ima_log=row + row)), measured)
    assert "PCR 10" in refusals(wrong)["log"]


def test_evidence_that_cannot_be_read(good: Boot) -> None:
    cases: list[dict[str, Any]] = [
        {"firmware_log": b""},
        {"system_log": b"x"},
        {"ima_log": b"x"},
        {"firmware_log": bytes(100)},
    ]
    for fields in cases:
        verdict = verdict_on(good.attestation(evidence=dataclasses.replace(good.evidence(), **fields)), good)
        assert "cannot be read" in refusals(verdict)["evidence"]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_changed_bit_is_refused(data: st.DataObject) -> None:
    """Of whatever was signed, or signs; nothing raises."""
    boot = Boot()
    real = boot.attestation()
    name = data.draw(st.sampled_from(["key", "quote", "signature", "evidence", "nonce"]))
    content = bytearray(getattr(real, name))
    at = data.draw(st.integers(0, 8 * len(content) - 1))
    content[at // 8] ^= 1 << at % 8
    nonce = bytes(content) if name == "nonce" else NONCE
    fields: dict[str, Any] = {} if name == "nonce" else {name: bytes(content)}
    changed = dataclasses.replace(real, **fields)
    assert not verdict_on(changed, boot, nonce=nonce).good


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_changed_bit_of_a_log_is_not_believed_for_more(data: st.DataObject) -> None:
    """Root may quote any log. One that replays as the true one may differ only where nothing is decided by it."""
    boot = Boot()
    log = bytearray(boot.evidence().firmware_log)
    at = data.draw(st.integers(0, 8 * len(log) - 1))
    log[at // 8] ^= 1 << at % 8
    verdict = verdict_on(boot.attestation(evidence=dataclasses.replace(boot.evidence(), firmware_log=bytes(log))), boot)
    if verdict.good:
        before, _ = eventlog.parse(boot.evidence().firmware_log)
        after, _ = eventlog.parse(bytes(log))
        assert [(one.pcr, one.digest) for one in after] == [(one.pcr, one.digest) for one in before]
        assert [one.data for one in after if one.pcr == 7] == [one.data for one in before if one.pcr == 7]
        # A remark whose text was changed counts as a program; none may go unseen.
        assert set(started(before)) <= set(started(after))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_parsers_take_anything(data: bytes) -> None:
    head = log_of([])
    for parse in (
        tpm.parse_public, tpm.parse_quote, tpm.parse_signature, eventlog.parse, eventlog.parse_variable, userlog.parse_ima,
        userlog.parse_systemd, pe.parse, lambda one: eventlog.parse(head + one), lambda one: userlog.parse_systemd(b"\x1e" + one),
    ):  # fmt: skip
        try:
            parse(data)
        except ValueError:
            continue
    for load in (document.parse_attestation, document.parse_evidence, document.parse_identity):
        with pytest.raises(InputError):
            load(data)
    tpm.signed_by(tpm.parse_public(Boot().public()), data, data)


def test_logs_round_trip_and_every_cut_is_refused() -> None:
    events = Boot().machine_log
    log = log_of(events)
    parsed, _ = eventlog.parse(log)
    assert [(one.pcr, one.kind, one.data, one.digest) for one in parsed] == [
        (one.pcr, one.kind, one.data, one.digest) for one in events
    ]
    whole = {len(log_of(events[:count])) for count in range(len(events) + 1)}
    for end in range(len(log)):
        if end not in whole:
            with pytest.raises(ValueError, match=r"cut short|crypto-agile"):
                eventlog.parse(log[:end])


def test_limits() -> None:
    with pytest.raises(InputError, match="larger than"):
        document.parse_attestation(bytes(document.MAX_ATTESTATION_BYTES + 1))
    with pytest.raises(ValueError, match="larger than"):
        userlog.parse_systemd(b"\x1e" * (userlog.MAX_LOG_BYTES + 1))
    with pytest.raises(InputError, match="not JSON"):
        document.parse_attestation(b"[" * 100_000)


def test_documents_round_trip(good: Boot) -> None:
    attestation = good.attestation()
    text = document.serialize_attestation(attestation)
    assert document.parse_attestation(text) == attestation
    assert document.parse_evidence(attestation.evidence) == good.evidence()
    assert document.parse_identity(document.serialize_identity(good.identity())) == good.identity()
    # Empty is not missing: what can be read can be written.
    empty = dataclasses.replace(good.identity(), endorsements=(document.Endorsement("rsa", b"p", b""),))
    assert document.parse_identity(document.serialize_identity(empty)) == empty
    for end in (0, 1, 10, len(text) // 2, len(text) - 3):
        with pytest.raises(InputError):
            document.parse_attestation(text[:end])
    twice = text.replace(b'"nonce"', b'"nonce": "00", "nonce"')
    with pytest.raises(InputError, match="not JSON"):
        document.parse_attestation(twice)
    short = text.replace(NONCE.hex().encode(), b"00" * 15)
    with pytest.raises(InputError) as error:
        document.parse_attestation(short)
    assert error.value.faults == ("nonce: is missing or not as it should be",)


@pytest.mark.parametrize("text", ["", "00" * 15, "00" * 65, "0" * 33, "zz" * 16, " " + "00" * 16])
def test_nonces_that_are_none(text: str) -> None:
    assert document.parse_nonce("aB" * 16) == b"\xab" * 16
    with pytest.raises(InputError):
        document.parse_nonce(text)


def test_programs(good: Boot) -> None:
    program = pe.parse(good.uki)
    assert program.authenticode() == authenticode(good.uki)
    assert program.content(".cmdline") == good.cmdline.encode()
    assert pcr.kernel_register(good.uki) == Boot(system_log=b"", measures="").pcrs()[11]
    for end in (0, 1, 64, 200, 1000, len(good.uki) - 1):
        with pytest.raises(ValueError, match=r"cut short|not an EFI|do not fit|outside"):
            pe.parse(good.uki[:end])


def test_the_verb(good: Boot, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").write_bytes(document.serialize_attestation(good.attestation()))
    (tmp_path / "i").write_bytes(document.serialize_identity(good.identity()))
    (tmp_path / "uki.efi").write_bytes(good.uki)
    check = ["attest", "--check", str(tmp_path / "a"), "--nonce", NONCE.hex()]
    assert main([*check, "--identity", str(tmp_path / "i"), "--release", str(tmp_path)]) == 0
    assert "This is the machine that you know" in capsys.readouterr().out
    assert main([*check, "--identity", str(tmp_path / "i"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["schema"], shown["verdict"]) == ("freehold-attest-check-1", "ok")
    assert set(shown["lines"][0]) == {"check", "state", "text", "decides"}
    assert main(check) == 1
    assert main([*check[:-1], "11" * 32, "--identity", str(tmp_path / "i")]) == 1
    assert "Refused (nonce)" in capsys.readouterr().out
    for wrong in (
        check[:-2], [*check[:-1], "xx"], [*check, "--identity"], [*check, "-o", "x"], ["attest", "--nonce", NONCE.hex()],
        ["attest", "--check", "/nowhere", "--nonce", NONCE.hex()], ["attest", "--release", "x"],
        [*check, "--release", str(tmp_path / "a")],
    ):  # fmt: skip
        assert main(wrong) == 2, wrong
