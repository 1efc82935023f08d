# SPDX-License-Identifier: Apache-2.0
"""The device key without a TPM: its texts, certificate and file, boots that may use it, registers foreseen."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import cast
from uuid import UUID

import pytest
from cryptography import x509 as cx509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from hypothesis import given, settings
from hypothesis import strategies as st
from lab_device import ID, LOCKED, OTHER, Bench, digest, event, keychain, log, signer, standing
from lab_pe import program
from lab_release import Lab

from freehold.cli import main
from freehold.device import device_key, device_key_verbs, handover, stage, updater, upgrade
from freehold.device.device_key import DeviceKeyError
from freehold.device.status import gather, text
from freehold.errors import FreeholdError, InputError, NotHereError, VerificationError
from freehold.keys import device, eventlog, issue, pcr, x509
from freehold.keys.efi import CERT_X509, OWNER, Signature
from freehold.keys.formats import Revocation
from freehold.keys.verify import judge_leaf, machine_of, verify_document
from freehold.lock import intent as intents
from freehold.lock import verbs as lock_verbs
from freehold.lock.intent import Intent
from freehold.monitor import NullMonitor
from freehold.update.manifest import Derived, serialize_manifest

blobs = st.binary(min_size=1, max_size=600)
states = st.lists(st.binary(min_size=32, max_size=32).map(bytes.hex), max_size=device.MAX_STATES).map(tuple)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An owner, another one, a vendor."""
    directory = tmp_path_factory.mktemp("keys")
    for name, role in (("me", "owner"), ("stranger", "owner"), ("vendor", "vendor")):
        issue.create(name, role, directory, None)  # type: ignore[arg-type]
    return directory


# The texts


@given(blobs, blobs, blobs, states, st.booleans())
def test_a_keys_file_is_read_as_it_was_written(
    public: bytes, secret: bytes, sealed: bytes, some: tuple[str, ...], tpm: bool
) -> None:
    value = device.KeyFile("tpm2" if tpm else "file", ID, public, secret, sealed if tpm else b"", some)
    assert device.read_key(device.write_key(value)) == value
    bundle = device.Bundle(secret, some)
    assert device.read_bundle(device.write_bundle(bundle)) == bundle
    request = device.Request(ID, public)
    assert device.read_request(device.write_request(request)) == request
    assert device.read_answer(device.write_answer(public)) == public


@given(st.binary(max_size=300), st.data())
def test_damaged_texts_are_refused_in_words_or_read_as_spelt(noise: bytes, data: st.DataObject) -> None:
    """Every reader either says ValueError or has read exactly what its writer would write."""
    value = device.KeyFile("tpm2", ID, b"public", b"secret", b"sealed", ("a" * 64,))
    facts = device.Facts("file", "b" * 64, 1, 2)
    pairs: list[tuple[bytes, Callable[[bytes], object], Callable[..., bytes]]] = [
        (device.write_key(value), device.read_key, device.write_key),
        (device.write_bundle(device.Bundle(b"private", ("c" * 64,))), device.read_bundle, device.write_bundle),
        (device.write_request(device.Request(ID, b"old")), device.read_request, device.write_request),
        (device.write_answer(b"new"), device.read_answer, device.write_answer),
        (device.write_facts(facts), device.read_facts, device.write_facts),
    ]
    good, read, write = data.draw(st.sampled_from(pairs))
    at = data.draw(st.integers(0, len(good)))
    cut = data.draw(st.integers(0, 5))
    changed = good[:at] + noise + good[at + cut :]
    try:
        found = read(changed)
    except ValueError:
        return
    assert write(found) == changed


@pytest.mark.parametrize("size", [device.MAX_KEY_FILE + 1, 1 << 22])
def test_texts_have_a_limit(size: int) -> None:
    for read in (device.read_key, device.read_bundle, device.read_request, device.read_answer, device.read_facts):
        with pytest.raises(ValueError, match="larger"):
            cast(Callable[[bytes], object], read)(b"a" * size)


@given(blobs)
def test_a_line_behind_an_intent_comes_off_as_it_went_on(value: bytes) -> None:
    words = intents.serialize(LOCKED)
    for mark in (device.REQUEST_LINE, device.CERTIFICATE_LINE):
        assert device.detach(device.attach(words, mark, value), mark) == (words, value)
        assert device.detach(device.attach(words, mark, None), mark) == (words, None)


@given(st.binary(max_size=400))
def test_detaching_never_loses_a_byte(data: bytes) -> None:
    for mark in (device.REQUEST_LINE, device.CERTIFICATE_LINE):
        for whole in (data, data + b"\n" + mark + data + b"\n"):
            try:
                head, value = device.detach(whole, mark)
            except InputError:
                continue
            assert device.attach(head, mark, value) == whole


@pytest.mark.parametrize("spelling", ["QR==", "QQ=", "Q Q==", "QQ==QQ==", "", "QQ==\t", "Q" * (2 * device.MAX_VALUE + 4)])
def test_values_have_one_spelling(spelling: str) -> None:
    """Base64 has spare bits: the same bytes under another text would be another file."""
    words = intents.serialize(LOCKED)
    assert device.detach(words + device.CERTIFICATE_LINE + b"QQ==\n", device.CERTIFICATE_LINE) == (words, b"A")
    assert device.read_answer(f"{device.ANSWER_HEAD}\ncertificate QQ==\n".encode()) == b"A"
    with pytest.raises(InputError):
        device.detach(words + device.CERTIFICATE_LINE + spelling.encode() + b"\n", device.CERTIFICATE_LINE)
    with pytest.raises(ValueError, match=r"certificate|larger"):
        device.read_answer(f"{device.ANSWER_HEAD}\ncertificate {spelling}\n".encode())


# The certificate


@pytest.fixture(scope="module")
def certificate(keys: Path) -> tuple[rsa.RSAPrivateKey, bytes]:
    private = rsa.generate_private_key(65537, 2048)
    return private, issue.device_certificate(private.public_key(), ID, signer(keys))


def test_a_device_certificate_counts_on_its_machine_only(keys: Path, certificate: tuple[rsa.RSAPrivateKey, bytes]) -> None:
    private, der = certificate
    assert machine_of(cx509.load_der_x509_certificate(der)) == ID
    assert judge_leaf(der, keychain(keys), "device", ID) == (ID, "me")
    made = x509.Signer(private, cx509.load_der_x509_certificate(der))
    document = made.sign_document(b"text")
    good = verify_document(b"text", document, keychain=keychain(keys), role="device", machine=ID)
    assert (good.ok, good.reason) == (True, f"signed by {ID} (device), issued by me (owner)")
    for role, machine, said in (("device", OTHER, "another machine"), ("device", None, "another machine"),
                                ("release", ID, "not of role release"), ("owner", ID, "no certificate of role")):  # fmt: skip
        bad = verify_document(b"text", document, keychain=keychain(keys), role=role, machine=machine)  # type: ignore[arg-type]
        assert not bad.ok
        assert said in bad.reason
    assert not verify_document(b"texT", document, keychain=keychain(keys), role="device", machine=ID).ok


@pytest.mark.parametrize(
    ("name", "said"),
    [("stranger", "issued by no owner"), ("vendor", "issued by no owner"), ("unbound", "another machine"),
     ("release", "not of role device"), ("revoked", "is revoked: lost"),
     ("owner revoked", r"issued by me \(owner\), which is revoked")],
)  # fmt: skip
def test_certificates_that_do_not_count(
    keys: Path, certificate: tuple[rsa.RSAPrivateKey, bytes], name: str, said: str
) -> None:
    public = certificate[0].public_key()
    chain = keychain(keys)
    by, role, machine = signer(keys), "device", ID
    if name in ("stranger", "vendor"):
        by = signer(keys, name)
    if name == "release":
        role = "release"
    der = x509.der_of(issue.issued(public, ID, role, by, 9, None if name == "unbound" else machine))  # type: ignore[arg-type]
    if name == "revoked":
        chain = keychain(keys, (Revocation(hashlib.sha256(der).hexdigest(), "lost"),))
    if name == "owner revoked":
        chain = keychain(keys, (Revocation(hashlib.sha256(by.certificate_der()).hexdigest(), "gone"),))
    with pytest.raises(ValueError, match=said):
        judge_leaf(der, chain, "device", ID)


# Registers


VENDOR, MINE = Signature(CERT_X509, OWNER, b"vendor's certificate"), Signature(CERT_X509, OWNER, b"owner's certificate")
VARIABLES = [digest(word) for word in (b"SecureBoot", b"PK", b"KEK", b"db", b"dbx", b"separator")]


def test_the_log_gives_one_registers_events() -> None:
    other = (event(4, 1, digest(b"other")), event(7, 3, digest(b"no action")))
    data = log(event(7, 1, digest(b"a")), *other, event(7, 4, digest(b"b")))
    assert eventlog.register(eventlog.parse(data)[0], 7) == (digest(b"a"), digest(b"b"))
    assert pcr.replay([]) == bytes(32)
    assert pcr.replay((digest(b"a"), digest(b"b"))) == digest(digest(bytes(32) + digest(b"a")) + digest(b"b"))


@given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 60))
@settings(max_examples=300)
def test_damaged_logs_are_refused_in_words(noise: bytes, at: int, cut: int) -> None:
    good = log(*(event(7, 1, digest(bytes([number]))) for number in range(4)))
    for data in (noise, good[:at] + noise + good[at + cut :], good[:at]):
        try:
            found = eventlog.register(eventlog.parse(data)[0], 7)
        except ValueError:
            continue
        assert all(len(one) == 32 for one in found)


def test_what_vouches_is_measured_as_firmware_does() -> None:
    """UEFI_VARIABLE_DATA by hand: GUID of db, the two lengths, the name in UTF-16, the entry with its owner."""
    guid = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f").bytes_le
    by_hand = guid + (2).to_bytes(8, "little") + (16 + len(VENDOR.data)).to_bytes(8, "little") + b"d\0b\0" + OWNER.bytes_le
    assert pcr.vouching(VENDOR) == digest(by_hand + VENDOR.data)


def test_a_first_change_of_the_owners_is_foreseen_and_the_way_back() -> None:
    """The vendor's boot and the derived one have different values, and each leads to the other."""
    db = (VENDOR, MINE)
    release = [*VARIABLES, pcr.vouching(VENDOR)]
    derived = [*release, pcr.vouching(MINE)]
    one, two = pcr.replay(release), pcr.replay(derived)
    assert pcr.foresee(release, db, MINE.data) == (one, two)
    assert pcr.foresee(derived, db, MINE.data) == (two, one)
    # Without the owner in db a derived image does not start: nothing else is to be believed.
    assert pcr.foresee(release, (VENDOR,), MINE.data) == (one,)
    only = [*VARIABLES, pcr.vouching(MINE)]
    assert pcr.foresee(only, (MINE,), MINE.data) == (pcr.replay(only),)


def test_secure_boot_off_is_never_among_the_values() -> None:
    off = pcr.replay([digest(b"SecureBoot off"), *VARIABLES[1:]])
    assert off not in pcr.foresee([*VARIABLES, pcr.vouching(VENDOR)], (VENDOR, MINE), MINE.data)
    # Nor the variables without anything that vouched: nothing signed was started then.
    assert pcr.replay(VARIABLES) not in pcr.foresee([*VARIABLES, pcr.vouching(MINE)], (MINE,), MINE.data)


def test_a_kernel_image_is_measured_section_by_section() -> None:
    def after(*measured: bytes) -> bytes:
        value = bytes(32)
        for part in measured:
            value = digest(value + digest(part))
        return value

    # In memory the kernel is larger than in the file: what is not there is zeros.
    kernel = (b".linux\0", b"kernel".ljust(600, b"\0"))
    expected = after(*kernel, b".cmdline\0", b"quiet", b".initrd\0", b"files")
    parts = [(".initrd", b"files", 5), (".text", b"code", 4), (".cmdline", b"quiet...", 5), (".linux", b"kernel", 600)]
    assert pcr.kernel_register(program(parts)) == expected
    # A signature of policies is not measured; another profile's sections are not, which the menu starts on demand.
    assert pcr.kernel_register(program([*parts, (".pcrsig", b"signed", 6)])) == expected
    main = [*parts, (".profile", b"ID=main", 7)]
    first = pcr.kernel_register(program(main))
    assert first == after(*kernel, b".cmdline\0", b"quiet", b".initrd\0", b"files", b".profile\0", b"ID=main")
    rescue = [(".profile", b"ID=rescue", 9), (".cmdline", b"rescue", 6)]
    assert pcr.kernel_register(program([*main, *rescue])) == first
    # What the first profile has of its own counts instead of the common one.
    own = program([*main, (".cmdline", b"own", 3), *rescue])
    assert pcr.kernel_register(own) == after(
        *kernel, b".cmdline\0", b"own", b".initrd\0", b"files", b".profile\0", b"ID=main"
    )
    with pytest.raises(ValueError, match="depends on the board"):
        pcr.kernel_register(program([*parts, (".dtbauto", b"tree", 4)]))
    with pytest.raises(ValueError, match="no kernel"):
        pcr.kernel_register(program(parts[:3]))


@given(st.binary(max_size=120), st.integers(0, 320), st.integers(0, 40))
@settings(max_examples=300)
def test_damaged_kernel_images_are_refused_in_words(noise: bytes, at: int, cut: int) -> None:
    good = program([(".linux", b"kernel", 6), (".cmdline", b"quiet", 5)])
    for data in (noise, b"MZ" + noise, good[:at] + noise + good[at + cut :]):
        try:
            assert len(pcr.kernel_register(data)) == 32
        except ValueError:
            continue


@given(st.lists(st.tuples(st.lists(st.integers(0, 23), max_size=3), st.binary(min_size=32, max_size=32), blobs), max_size=4))
def test_signature_files_are_read_as_written(rows: list[tuple[list[int], bytes, bytes]]) -> None:
    policies = tuple(pcr.Policy(tuple(some), one, one, signature) for some, one, signature in rows)
    assert pcr.parse(pcr.serialize(policies)) == policies


VALUES = st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@given(st.binary(max_size=200), VALUES)
def test_foreign_signature_files_are_refused_in_words(noise: bytes, value: object) -> None:
    wrapped = (value, {"sha256": value}, {"sha256": [value]})
    for data in (noise, *(json.dumps(one).encode() for one in wrapped)):
        try:
            pcr.parse(data)
        except ValueError:
            continue
    with pytest.raises(ValueError, match="larger"):
        pcr.parse(b" " * (pcr.MAX_SIGNATURE_FILE + 1))


# A machine without a TPM


@pytest.fixture
def bench(tmp_path: Path, keys: Path) -> Bench:
    return Bench(Lab(tmp_path / "lab"), keys)


def test_the_key_of_a_locked_machine_signs_for_it(bench: Bench) -> None:
    der = bench.lock()
    opened = device_key.open_signer(bench.machine, standing())
    assert opened.certificate_der() == der
    document = opened.sign_document(b"a manifest")
    assert verify_document(b"a manifest", document, keychain=bench.machine.keychain, role="device", machine=ID).ok
    # Four consumers: documents above; PKCS#7 with the leaf embedded for files, policies and modules.
    assert der in opened.sign_verity(bytes(32), embed_certificate=True)
    places = bench.machine.places
    assert (places.key.stat().st_mode & 0o777, places.secret.stat().st_mode & 0o777) == (0o600, 0o700)
    assert not places.waiting.exists()
    facts = device_key.facts(places)
    assert facts is not None
    assert (facts.keeper, facts.sha256) == ("file", hashlib.sha256(der).hexdigest())
    with pytest.raises(FreeholdError, match="not given to programs"), opened.lend():
        pass


def off(bench: Bench) -> None:
    bench.secure_boot(on=False)


def own_ring(bench: Bench) -> None:
    bench.record(keychain_source="image")


def rescue(bench: Bench) -> None:
    bench.record(keychain_source="firmware", rescue=True)


def unverified(bench: Bench) -> None:
    (bench.lab.sysroot.system / "proc/cmdline").write_text("quiet ro\n")


def guard_open(bench: Bench) -> None:
    bench.guard("open")


def gone(bench: Bench) -> None:
    bench.machine.places.key.unlink()


def nothing(_: Bench) -> None:
    """The boot is as it should be."""


@pytest.mark.parametrize(
    ("change", "intent", "said"),
    [
        (off, LOCKED, "^Secure Boot is off: the device key is not used$"),
        (own_ring, LOCKED, "not believed by the firmware's certificates"),
        (rescue, LOCKED, "this is a rescue: "),
        (unverified, LOCKED, "not the one that the early step verified"),
        (guard_open, LOCKED, "not locked"),
        (nothing, None, "no valid intent of the owner stands .it is damaged"),
        (nothing, replace(LOCKED, strict=True), "strict"),
        (nothing, replace(LOCKED, lock="audit"), "not locked"),
        (nothing, replace(LOCKED, lock="open"), "not locked"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_boots_that_may_not_use_it(bench: Bench, change: Callable[[Bench], None], intent: Intent | None, said: str) -> None:
    bench.lock()
    assert device_key.open_signer(bench.machine, standing())
    change(bench)
    with pytest.raises(DeviceKeyError, match=said) as caught:
        device_key.open_signer(bench.machine, standing(intent))
    assert "\n" not in caught.value.message


def test_a_machine_without_a_key_says_so(bench: Bench) -> None:
    bench.lock()
    gone(bench)
    with pytest.raises(NotHereError, match="has no device key"):
        device_key.open_signer(bench.machine, standing())


def test_no_key_is_made_with_secure_boot_off(bench: Bench) -> None:
    bench.secure_boot(on=False)
    with pytest.raises(DeviceKeyError, match="Secure Boot is off: no device key is made"):
        device_key.make(bench.machine)
    assert not bench.machine.places.secret.exists()


def test_a_second_lock_overwrites_the_first_key(bench: Bench) -> None:
    bench.lock()
    private = device.read_key(bench.machine.places.key.read_bytes()).secret
    with bench.machine.places.key.open("rb") as old:
        second = bench.lock()
        assert base64.b64encode(private)[:64] not in old.read()
    assert device_key.open_signer(bench.machine, standing()).certificate_der() == second


def test_what_an_open_boot_leaves_is_no_key(bench: Bench) -> None:
    """The early step removes key and facts; the certificate stays behind, for nothing."""
    bench.lock()
    bench.machine.places.key.unlink()
    bench.machine.places.facts.unlink()
    with pytest.raises(NotHereError, match="has no device key"):
        device_key.renewal(bench.machine)
    assert "device key" not in text(gather(bench.lab.sysroot))
    assert upgrade._allow_device_key(bench.lab.sysroot, bench.lab.running.id, NullMonitor()) is False


def test_the_running_deployment_may_be_this_machines_own(bench: Bench) -> None:
    bench.lock()
    opened = device_key.open_signer(bench.machine, standing())
    sysroot = bench.lab.sysroot
    (sysroot.keychain / "owner-real.der").write_bytes(signer(bench.keys).certificate_der())
    directory = sysroot.deployments / bench.lab.running.id
    # A device signs what it derived, never a release.
    own = bench.lab.running._replace(derived=Derived("ab" * 32, "cd" * 32, "1.0", "ef" * 32))
    data = serialize_manifest(own)
    (directory / "manifest.json").write_bytes(data)
    (directory / "manifest.json.sig").write_bytes(opened.sign_document(data))
    for identity, good in ((ID, True), (OTHER, False), (None, False)):
        path = sysroot.root / "owner/id"
        path.unlink(missing_ok=True)
        if identity is not None:
            path.write_text(identity + "\n")
        if good:
            assert stage.running_manifest(sysroot).signer == ID
        else:
            with pytest.raises(VerificationError, match="not genuine"):
                stage.running_manifest(sysroot)


@pytest.mark.parametrize(
    ("by", "machine", "said"), [("stranger", ID, "issued by no owner"), ("me", OTHER, "another machine")]
)
def test_certificates_that_do_not_fit_are_not_installed(bench: Bench, by: str, machine: str, said: str) -> None:
    with pytest.raises(VerificationError, match=said):
        bench.lock(by, machine)
    assert bench.machine.places.waiting.exists()
    assert not bench.machine.places.key.exists()


def test_a_certificate_of_another_key_is_not_installed(bench: Bench, certificate: tuple[rsa.RSAPrivateKey, bytes]) -> None:
    device_key.make(bench.machine)
    with pytest.raises(VerificationError, match="not of this machine's device key"):
        device_key.install(bench.machine, certificate[1])
    bench.machine.places.waiting.unlink()
    with pytest.raises(VerificationError, match="waits for a certificate"):
        device_key.install(bench.machine, certificate[1])


def test_a_changed_file_is_not_used(bench: Bench) -> None:
    bench.lock()
    path = bench.machine.places.key
    good = device.read_key(path.read_bytes())
    other = rsa.generate_private_key(65537, 2048)
    swapped = device.write_bundle(device.Bundle(device_key._private_der(other)))
    for value, said in (
        (good._replace(secret=swapped), "not the one that its file names"),
        (good._replace(machine=OTHER), "another machine's"),
        (good._replace(public=device_key._public_der(other)), "no certificate that counts"),
        (good._replace(secret=b"rubbish\n"), "lacks the line"),
    ):
        path.write_bytes(device.write_key(value))
        with pytest.raises(VerificationError, match=said):
            device_key.open_signer(bench.machine, standing())
    path.write_bytes(device.write_key(good))
    assert device_key.open_signer(bench.machine, standing())


def test_destroying_leaves_no_key_and_a_certificate_aside(bench: Bench) -> None:
    der = bench.lock()
    private = device.read_key(bench.machine.places.key.read_bytes()).secret
    fd = bench.machine.places.key.open("rb")
    assert device_key.destroy(bench.machine.places)
    # The same inode, still open: its content is gone, not only its name.
    assert base64.b64encode(private)[:64] not in fd.read()
    fd.close()
    left = sorted(path.name for path in bench.machine.places.owner.rglob("*") if path.is_file())
    assert [name.startswith("device-") for name in left] == [True]
    assert (bench.machine.places.owner / left[0]).read_bytes() == der
    assert device_key.facts(bench.machine.places) is None
    assert not device_key.destroy(bench.machine.places)


def test_a_certificate_is_renewed_for_the_same_key(bench: Bench, keys: Path) -> None:
    bench.lock()
    request = device_key.renewal(bench.machine)
    machine, new = device_key_verbs.recertify(request, signer(keys), 2000)
    assert machine == ID
    until = device_key.renew(bench.machine, new)
    assert until > datetime.now(UTC).timestamp() + 1900 * 86400
    assert device_key.open_signer(bench.machine, standing()).certificate_der() == new
    # Root can write where it lies. What does not verify is passed over, and the old one counts again.
    public = cast(RSAPublicKey, cx509.load_der_x509_certificate(new).public_key())
    stranger = issue.device_certificate(public, ID, signer(keys, "stranger"))
    for bad in (stranger, b"rubbish", b""):
        bench.machine.places.renewed.write_bytes(bad)
        assert device_key.open_signer(bench.machine, standing()).certificate_der() != new
        with pytest.raises(VerificationError):
            device_key.renew(bench.machine, bad)


def test_only_keys_that_the_owner_certified_get_another_certificate(
    keys: Path, certificate: tuple[rsa.RSAPrivateKey, bytes]
) -> None:
    good = device.Request(ID, certificate[1])
    assert device_key_verbs.recertify(device.write_request(good), signer(keys), None)[0] == ID
    for request, by in ((good._replace(machine=OTHER), "me"), (good, "stranger"), (good._replace(certificate=b"x"), "me")):
        with pytest.raises(InputError, match="gets no certificate"):
            device_key_verbs.recertify(device.write_request(request), signer(keys, by), None)


def test_status_shows_the_key(bench: Bench) -> None:
    before = gather(bench.lab.sysroot)
    assert "device key" not in text(before)
    der = bench.lock()
    data = gather(bench.lab.sysroot)
    lock = data["lock"]
    assert isinstance(lock, dict)
    row = lock["keychain"][-1]
    assert (row["role"], row["keeper"], row["sha256"]) == ("device", "file", hashlib.sha256(der).hexdigest())
    assert not row["revoked"]
    assert "2 keys; device key in a file, until 20" in text(data)
    bench.machine.places.facts.write_bytes(b"rubbish\n")
    assert text(gather(bench.lab.sysroot)) == text(before)


# The owner's side


def lock_request(asked: bytes | None, **more: object) -> bytes:
    return device.attach(intents.serialize(replace(LOCKED, **more)), device.REQUEST_LINE, asked)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def asked(certificate: tuple[rsa.RSAPrivateKey, bytes]) -> bytes:
    return issue.request_der(certificate[0], ID)


def test_an_answer_carries_intent_and_certificate(
    keys: Path, asked: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lock.request").write_bytes(lock_request(asked))
    assert main(["sign", str(tmp_path / "lock.request"), "--key", f"file:{keys}/me.key", "--days", "30", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["device_key"] is True
    assert "certificate for its device key" in shown.err
    answer = (tmp_path / "lock.request.signed").read_bytes()
    signed, der = device.detach(answer, device.CERTIFICATE_LINE)
    assert der is not None
    assert judge_leaf(der, keychain(keys), "device", ID) == (ID, "me")
    assert intents.judge(signed, keychain=keychain(keys), machine=ID).intent == LOCKED
    read = cx509.load_der_x509_certificate(der)
    assert (read.not_valid_after_utc - datetime.now(UTC)).days in (29, 30)


@pytest.mark.parametrize("strict", [False, True])
def test_requests_without_a_device_key_are_answered_as_before(keys: Path, tmp_path: Path, strict: bool) -> None:
    (tmp_path / "r").write_bytes(lock_request(None, strict=strict))
    assert main(["sign", str(tmp_path / "r"), "--key", f"file:{keys}/me.key"]) == 0
    answer = (tmp_path / "r.signed").read_bytes()
    assert device.detach(answer, device.CERTIFICATE_LINE) == (answer, None)
    # What the early step reads is the whole file.
    assert intents.judge(answer, keychain=keychain(keys), machine=ID).intent == replace(LOCKED, strict=strict)


def test_the_owner_may_sign_the_lock_without_the_key(keys: Path, asked: bytes, tmp_path: Path) -> None:
    (tmp_path / "r").write_bytes(lock_request(asked))
    assert main(["sign", str(tmp_path / "r"), "--key", f"file:{keys}/me.key", "--no-device-key"]) == 0
    answer = (tmp_path / "r.signed").read_bytes()
    assert device.detach(answer, device.CERTIFICATE_LINE) == (answer, None)


@pytest.mark.parametrize("more", [{"strict": True}, {"lock": "open"}, {"lock": "audit"}])
def test_requests_that_want_a_key_their_intent_forbids_are_refused(
    keys: Path, asked: bytes, tmp_path: Path, more: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r").write_bytes(lock_request(asked, **more))
    assert main(["sign", str(tmp_path / "r"), "--key", f"file:{keys}/me.key"]) == 2
    assert "does not allow" in capsys.readouterr().err
    assert not (tmp_path / "r.signed").exists()


def test_a_request_by_somebody_without_the_key_is_refused(keys: Path, asked: bytes, tmp_path: Path) -> None:
    """Its signature proves that who asks has the private key."""
    changed = asked[:-1] + bytes([asked[-1] ^ 1])
    for bad in (changed, b"rubbish"):
        (tmp_path / "r").write_bytes(lock_request(bad))
        assert main(["sign", str(tmp_path / "r"), "--key", f"file:{keys}/me.key"]) == 2
    assert not (tmp_path / "r.signed").exists()


def test_a_renewal_is_signed_by_the_same_verb(
    keys: Path, certificate: tuple[rsa.RSAPrivateKey, bytes], tmp_path: Path
) -> None:
    (tmp_path / "r").write_bytes(device.write_request(device.Request(ID, certificate[1])))
    assert main(["sign", str(tmp_path / "r"), "--key", f"file:{keys}/me.key"]) == 0
    der = device.read_answer((tmp_path / "r.signed").read_bytes())
    assert judge_leaf(der, keychain(keys), "device", ID) == (ID, "me")
    assert der != certificate[1]


# Locking


def test_what_a_lock_keeps_and_destroys(bench: Bench, keys: Path) -> None:
    monitor = NullMonitor()
    strict, audit = replace(LOCKED, strict=True), replace(LOCKED, lock="audit")
    assert device_key_verbs.ask_for(strict, bench.machine, monitor) is None
    assert device_key_verbs.ask_for(audit, bench.machine, monitor) is None
    assert not bench.machine.places.secret.exists()
    asked = device_key_verbs.ask_for(LOCKED, bench.machine, monitor)
    assert asked is not None
    der = device_key_verbs.certify(asked, LOCKED, signer(keys), None)
    facts = device_key_verbs.keep(LOCKED, der, bench.machine, monitor)
    assert facts is not None
    assert bench.machine.places.key.exists()
    assert device_key_verbs.keep(audit, None, bench.machine, monitor) is None
    assert bench.machine.places.key.exists()
    # Strict: destroyed, whatever the answer has.
    assert device_key_verbs.keep(strict, der, bench.machine, monitor) is None
    assert not bench.machine.places.key.exists()


def test_a_lock_goes_on_where_no_key_can_be_made(bench: Bench) -> None:
    said: list[str] = []

    class Listening(NullMonitor):
        def message(self, text: str) -> None:
            said.append(text)

    bench.secure_boot(on=False)
    assert device_key_verbs.ask_for(LOCKED, bench.machine, Listening()) is None
    assert said[0].startswith("no device key: Secure Boot is off")


def test_an_owner_out_of_date_still_locks(bench: Bench, keys: Path) -> None:
    asked = device_key_verbs.ask_for(LOCKED, bench.machine, NullMonitor())
    assert asked is not None
    expired = x509.Signer(signer(keys).private_key, _expired(signer(keys)))
    assert lock_verbs._certified(asked, LOCKED, expired, NullMonitor()) is None
    assert lock_verbs._certified(asked, LOCKED, signer(keys), NullMonitor()) is not None


def _expired(of: x509.Signer) -> cx509.Certificate:
    begin = datetime(2020, 1, 1, tzinfo=UTC)
    return (
        cx509.CertificateBuilder().subject_name(of.certificate.subject).issuer_name(of.certificate.subject)
        .public_key(of.private_key.public_key()).serial_number(5).not_valid_before(begin)
        .not_valid_after(datetime(2021, 1, 1, tzinfo=UTC))
        .add_extension(cx509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(of.private_key, hashes.SHA256())
    )  # fmt: skip


def test_an_upgrade_without_a_device_key_asks_for_none(bench: Bench) -> None:
    assert upgrade._allow_device_key(bench.lab.sysroot, bench.lab.running.id, NullMonitor()) is False


def test_a_policy_is_signed_for_each_state_and_phase() -> None:
    private = rsa.generate_private_key(65537, 2048)
    made = pcr.allow(
        digest(b"kernel"), [digest(b"a"), digest(b"b")], digest(b"key"),
        lambda data: private.sign(data, padding.PKCS1v15(), hashes.SHA256()),
    )  # fmt: skip
    assert len({policy.digest for policy in made}) == 2 * len(pcr.PHASES)
    assert {policy.pcrs for policy in made} == {(7, 11)}
    words = {word for phase in pcr.PHASES for word in phase}
    assert all(phase[0] == "freehold-locked" for phase in pcr.PHASES)
    assert words == {"freehold-locked", "sysinit", "ready"}


def test_key_issue_can_name_the_machine(keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--ca", f"file:{keys}/me.key", "--out", str(tmp_path), "--no-passphrase"]
    assert main(["key", "issue", "box", "--role", "device", "--machine", ID, *options]) == 0
    assert judge_leaf((tmp_path / "box.der").read_bytes(), keychain(keys), "device", ID) == ("box", "me")
    assert main(["key", "issue", "other", "--role", "device", "--machine", "nonsense", *options]) == 2
    assert "32 lower-case hex digits" in capsys.readouterr().err


def test_an_upgrade_asks_the_updater_and_goes_on_without(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Listening(NullMonitor):
        def message(self, text: str) -> None:
            said.append(text)

    launcher, sysroot = tmp_path / "updater", bench.lab.sysroot
    monkeypatch.setattr(handover, "UPDATER", launcher)
    bench.lock()
    assert not upgrade._allow_device_key(sysroot, "a" * 16, Listening())
    refusing = 'test "$2" = aaaaaaaaaaaaaaaa || { echo "updater: it is not" >&2; exit 1; }'
    launcher.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/asked\n{refusing}\n')
    launcher.chmod(0o755)
    assert upgrade._allow_device_key(sysroot, "a" * 16, Listening())
    assert (tmp_path / "asked").read_text() == f"allow {'a' * 16}\n"
    assert not upgrade._allow_device_key(sysroot, "b" * 16, Listening())
    assert [line.partition(": ")[0] for line in said] == ["the device key will not be there after the reboot"] * 2
    assert said[-1].endswith("updater: it is not")


@pytest.mark.parametrize("arguments", [[], ["../../etc"], ["a" * 16, "more"], ["A" * 16]])
def test_the_updater_allows_deployments_only(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert updater.main(["allow", *arguments]) == 2
    assert "which deployment?" in capfd.readouterr().err
