# SPDX-License-Identifier: Apache-2.0
"""UEFI's key formats: against efitools, against openssl, and the early step's readers against the Python ones."""

from __future__ import annotations

import calendar
import hashlib
import random
import shutil
import struct
from pathlib import Path
from uuid import UUID

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lab_dbx import openssl_believes

from freehold.errors import InputError
from freehold.keys import efi, formats
from freehold.keys.formats import Revocation, parse_revoked
from freehold.keys.issue import create
from freehold.keys.verify import Keychain
from freehold.keys.x509 import Signer, load_signer
from freehold.run import Argument, run

EARLY = Path(__file__).parents[2] / "early"
MICROSOFT = UUID("77fa9abd-0359-4d32-bd60-28f4e78f784b")
X509_SHA384 = UUID("7076876e-80c2-4ee6-aad2-28b349a6865b")
TIME = calendar.timegm((2026, 11, 24, 12, 34, 56))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("keys")
    for name, role in (("me", "owner"), ("other", "owner"), ("vendor", "release")):
        create(name, "release" if role == "release" else "owner", directory, None)
    return directory


def signer(keys: Path, name: str) -> Signer:
    return load_signer(f"file:{keys / name}.key", lambda _: b"")


@pytest.fixture(scope="module")
def ders(keys: Path) -> list[bytes]:
    return [signer(keys, name).certificate_der() for name in ("me", "other", "vendor")]


GUIDS = st.sampled_from([efi.CERT_X509, efi.CERT_SHA256, efi.CERT_X509_SHA256, MICROSOFT]) | st.uuids()
LISTS = st.integers(1, 80).flatmap(
    lambda size: st.tuples(GUIDS, st.lists(st.tuples(GUIDS, st.binary(min_size=size, max_size=size)), min_size=1, max_size=4))
)


@given(st.lists(LISTS, max_size=4))
def test_lists_round_trip(some: list[tuple[UUID, list[tuple[UUID, bytes]]]]) -> None:
    data = b"".join(efi.signature_list(kind, entries) for kind, entries in some)
    flat = [efi.Signature(kind, owner, entry) for kind, entries in some for owner, entry in entries]
    assert list(efi.parse_lists(data)) == flat


@given(st.binary(max_size=200))
def test_the_reader_only_ever_says_value_error(data: bytes) -> None:
    for reader in (efi.parse_lists, efi.split_update, efi.signed_part, efi.bare_signed_data, parse_revoked):
        try:
            reader(data)
        except ValueError:
            continue


def test_lists_have_limits() -> None:
    one = efi.signature_list(efi.CERT_SHA256, [(efi.OWNER, bytes(32))])
    assert len(efi.parse_lists(one * (efi.MAX_LIST_BYTES // len(one)))) == efi.MAX_LIST_BYTES // len(one)
    with pytest.raises(ValueError, match="more than"):
        efi.parse_lists(one * (efi.MAX_LIST_BYTES // len(one) + 1))
    for entries in ([], [(efi.OWNER, b"")], [(efi.OWNER, b"a"), (efi.OWNER, b"bc")]):
        with pytest.raises(ValueError, match="one size"):
            efi.signature_list(efi.CERT_SHA256, entries)


#: (where in a list with one entry of 32 bytes, a number that does not fit there): list, header, entry.
SIZES = (
    (16, 27), (16, 28), (16, 0), (16, 29), (16, 61), (16, 1 << 31), (20, 1), (20, 32), (20, 64), (20, (1 << 32) - 28), (24, 0),
    (24, 16), (24, 33), (24, 31), (24, 1 << 31),
)  # fmt: skip


@pytest.mark.parametrize(("at", "value"), SIZES)
def test_sizes_that_do_not_fit_are_refused(readers: Path, at: int, value: int) -> None:
    good = efi.signature_list(efi.CERT_SHA256, [(efi.OWNER, bytes(16))])
    assert len(efi.parse_lists(good)) == 1
    broken = bytearray(good)
    struct.pack_into("<I", broken, at, value)
    with pytest.raises(ValueError, match="sizes"):
        efi.parse_lists(bytes(broken))
    cuts = [good[:cut] for cut in range(1, len(good))]
    for short in cuts:
        with pytest.raises(ValueError, match=r"cut short|sizes"):
            efi.parse_lists(short)
    answers = ask(readers, "walk", [good, bytes(broken), *cuts])
    assert answers == [walked(good), *["refused"] * (1 + len(cuts))]


def test_a_header_of_the_types_own_is_skipped() -> None:
    good = efi.signature_list(efi.CERT_SHA256, [(efi.OWNER, bytes(32))])
    longer = bytearray(good[:28] + b"head" + good[28:])
    struct.pack_into("<II", longer, 16, len(longer), 4)
    assert efi.parse_lists(bytes(longer)) == efi.parse_lists(good)


@pytest.mark.skipif(shutil.which("sign-efi-sig-list") is None, reason="needs efitools")
def test_every_byte_is_as_efitools_writes_it(keys: Path, tmp_path: Path) -> None:
    me = signer(keys, "me")
    theirs, update = tmp_path / "me.esl", tmp_path / "me.auth"
    run(["cert-to-efi-sig-list", "-g", str(efi.OWNER), keys / "me.crt", theirs])
    lists = efi.certificate_list(me.certificate_der())
    assert theirs.read_bytes() == lists
    for name in efi.VARIABLES:
        command: list[Argument] = ["sign-efi-sig-list", "-t", "2026-11-24 12:34:56", "-k", keys / "me.key"]
        run([*command, "-c", keys / "me.crt", name, theirs, update], env={"TZ": "UTC"})
        assert update.read_bytes() == efi.variable_update(name, lists, TIME, me.sign_pkcs7), name


def test_an_update_is_signed_for_its_variable_and_time(keys: Path, tmp_path: Path) -> None:
    me = signer(keys, "me")
    lists = efi.certificate_list(me.certificate_der())
    when, signature, content = efi.split_update(efi.variable_update("db", lists, TIME, me.sign_pkcs7))
    assert content == lists
    assert when == struct.pack("<HBBBBBxIhBx", 2026, 11, 24, 12, 34, 56, 0, 0, 0)
    security = bytes.fromhex("cbb219d73a3d9645a3bcdad00e67656f")
    covered = "db".encode("utf-16-le") + security + bytes([0x27, 0, 0, 0]) + when + lists
    assert openssl_believes(signature, covered, keys / "me.crt", tmp_path)
    assert not openssl_believes(signature, covered, keys / "other.crt", tmp_path)
    assert not openssl_believes(signature, covered.replace(b"d\0b\0", b"K\0b\0"), keys / "me.crt", tmp_path)


def test_equal_updates_are_equal(keys: Path) -> None:
    me = signer(keys, "me")
    lists = efi.certificate_list(me.certificate_der())
    first = efi.variable_update("PK", lists, TIME, me.sign_pkcs7)
    assert first == efi.variable_update("PK", lists, TIME, me.sign_pkcs7)
    assert first != efi.variable_update("KEK", lists, TIME, me.sign_pkcs7)


def test_signed_part_is_what_cryptography_calls_tbs(ders: list[bytes]) -> None:
    for der in ders:
        tbs = x509.load_der_x509_certificate(der).tbs_certificate_bytes
        assert efi.signed_part(der) == tbs
        assert efi.signed_part_sha256(der) == hashlib.sha256(tbs).digest()
        for wrong in (der + b"\0", der[:-1], b"\x31" + der[1:], b""):
            with pytest.raises(ValueError, match=r"DER|behind"):
                efi.signed_part(wrong)


def serialized(entries: dict[str, str]) -> bytes:
    return formats.serialize_revoked([Revocation(*entry) for entry in entries.items()])


def test_revoked_round_trip_and_refusals() -> None:
    entries = {"ab" * 32: "stolen in March", "00" * 32: "x"}
    data = serialized(entries)
    assert dict(parse_revoked(data)) == entries
    assert parse_revoked(b"freehold-revoked 1\n") == ()
    for wrong in (
        b"", b"freehold-revoked 1", b"freehold-revoked 2\n", data[:-1], data + b"\n", data.replace(b"ab", b"AB"),
        data.replace(b" x", b" "), data.replace(b" x", b""), data.replace(b" x", b" \t"), data.replace(b"\n", b"\r\n"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"line|list"):
            parse_revoked(wrong)
    with pytest.raises(ValueError, match="line"):
        serialized({"ab" * 32: "two\nlines"})
    many = {f"{number:064x}": "r" for number in range(formats.MAX_REVOKED_ENTRIES + 1)}
    with pytest.raises(ValueError, match="more than"):
        serialized(many)
    del many["0" * 64]
    assert len(parse_revoked(serialized(many))) == formats.MAX_REVOKED_ENTRIES


def test_a_revoked_certificate_signs_no_document(ders: list[bytes], keys: Path, tmp_path: Path) -> None:
    from freehold.keys.verify import verify

    files = {"owner-me.der": ders[0], "owner-other.der": ders[1]}
    signature = signer(keys, "me").sign(b"text")
    assert verify(b"text", signature, keychain=Keychain.from_files(files, "here"), role="owner").ok
    listed = serialized({hashlib.sha256(ders[0]).hexdigest(): "lost"})
    for name, data in {**files, "revoked": listed}.items():
        (tmp_path / name).write_bytes(data)
    chain = Keychain.from_directory(tmp_path)
    assert [one.name for one in chain.of_role("owner")] == ["other"]
    assert not verify(b"text", signature, keychain=chain, role="owner").ok
    with pytest.raises(InputError) as caught:
        Keychain.from_files({**files, "revoked": listed[:-1]}, "here")
    assert caught.value.faults


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The early step's readers with the sanitizers on."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("c") / "firmware"
    main = Path(__file__).parent / "c" / "firmware_main.c"
    sources = [main, *(EARLY / f"{n}.c" for n in ("firmware", "revoked", "signatures", "sha256", "util"))]
    flags = ["-std=gnu17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]
    run(["cc", *flags, "-fno-sanitize-recover=all", "-Wl,--wrap=say", f"-I{EARLY}", "-o", program, *sources])
    return program


def ask(program: Path, reader: str, inputs: list[bytes]) -> list[str]:
    stdin = b"".join(struct.pack("<I", len(data)) + data for data in inputs)
    answers = [line.strip() for line in run([program, reader], stdin=stdin).text.splitlines()]
    assert len(answers) == len(inputs)
    return answers


def walked(data: bytes) -> str:
    try:
        entries = efi.parse_lists(data)
    except ValueError:
        return "refused"
    return " ".join(
        f"{one.type.bytes_le.hex()}:{one.owner.bytes_le.hex()}:{hashlib.sha256(one.data).hexdigest()}" for one in entries
    )


def part(data: bytes) -> str:
    try:
        return efi.signed_part_sha256(data).hex()
    except ValueError:
        return "refused"


def listed(data: bytes) -> list[str] | None:
    try:
        return sorted({entry.fingerprint for entry in parse_revoked(data)})
    except ValueError:
        return None


def damage(data: bytes, dice: random.Random) -> bytes:
    """A near miss: a byte changed, removed or put in, the end cut off; sizes are what most bytes here are."""
    if not data:
        return b"\0"
    at = dice.randrange(len(data)) if dice.random() < 0.4 else min(len(data) - 1, dice.choice([1, 2, 3, 16, 17, 20, 24, 25, 5]))
    byte = bytes([dice.choice([0, 1, 2, 10, 16, 17, 27, 28, 32, 48, 127, 128, 129, 130, 131, 255, dice.randrange(256)])])
    return dice.choice([
        data[:at] + byte + data[at + 1 :], data[:at] + data[at + 1 :], data[:at] + byte + data[at:], data[:at], data + byte,
    ])  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(LISTS, max_size=3), min_size=3, max_size=8), st.integers(0, 1 << 32))
def test_c_and_python_read_the_same_lists(
    readers: Path, some: list[list[tuple[UUID, list[tuple[UUID, bytes]]]]], seed: int
) -> None:
    dice = random.Random(seed)  # noqa: S311 - test data
    whole = [b"".join(efi.signature_list(kind, entries) for kind, entries in lists) for lists in some]
    inputs = [*whole, *(damage(dice.choice(whole), dice) for _ in range(200))]
    assert ask(readers, "walk", inputs) == [walked(data) for data in inputs]


def test_c_and_python_find_the_same_signed_part(readers: Path, ders: list[bytes]) -> None:
    dice = random.Random(7)  # noqa: S311 - test data
    small = [b"\x30\x02\x30\x00", b"\x30\x81\x80" + b"\x30\x7e" + bytes(126), b"\x30\x81\x02\x30\x00", b"\x30\x80\x30\x00"]
    small += [b"\x30\x82\x00\x80\x30\x7e" + bytes(126), b"\x30\x84\0\0\0\x02\x30\x00", b"\x30\x00", b"\x30", b""]
    small.append(b"\x30\x03\x30\x02\0")
    inputs = [*ders, *small, *(damage(dice.choice([*ders, *small]), dice) for _ in range(3000))]
    verdicts = ask(readers, "part", inputs)
    assert verdicts == [part(data) for data in inputs]
    assert verdicts[: len(ders)] == [
        hashlib.sha256(x509.load_der_x509_certificate(der).tbs_certificate_bytes).hexdigest() for der in ders
    ]
    assert [verdict != "refused" for verdict in verdicts[len(ders) : len(ders) + len(small)]] == [True, True, *[False] * 8]


def test_c_and_python_read_the_same_revocations(readers: Path) -> None:
    dice = random.Random(8)  # noqa: S311 - test data
    some = [{f"{dice.getrandbits(256):064x}": "r" * size for size in range(1, count + 1)} for count in range(5)]
    good = [serialized(entries) for entries in some]
    good.append(serialized({f"{number:064x}": "z" * 180 for number in range(formats.MAX_REVOKED_ENTRIES)}))
    good.append(b"freehold-revoked 1\n" + b"%064x ~\n" % 5 * 2)
    edges = [b"%s%064x %s\n" % (good[0], 1, b"y" * size) for size in (0, 1, 200, 201)]
    edges += [good[5] + b"%064x y\n" % 1, b"freehold-revoked 1\n" + b"%064x \xff\n" % 1, b"freehold-revoked 1\n" + b"\0" * 70]
    near = [damage(dice.choice(good[:5]), dice) for _ in range(1500)]
    inputs = [*good, *edges, *near]
    verdicts = [None if answer == "refused" else sorted(set(answer.split())) for answer in ask(readers, "revoked", inputs)]
    assert verdicts == [listed(data) for data in inputs]
    assert all(verdict is not None for verdict in verdicts[: len(good)])
    assert [verdict is None for verdict in verdicts[len(good) : len(good) + 4]] == [True, False, False, True]


def offer(readers: Path, db: bytes, dbx: bytes = b"", mok: bytes = b"", listed: bytes = b"") -> tuple[list[str], int, int] | None:
    """What the early step would put into its ring: hashes taken, number skipped, revocations that it cannot look up."""
    record = struct.pack("<III", len(db), len(dbx), len(mok)) + db + dbx + mok + listed
    (answer,) = ask(readers, "offer", [record])
    if answer == "refused":
        return None
    words = answer.split()
    taken = words[: words.index("=")]
    assert words[words.index("=") + 1] == str(len(taken))
    return taken, int(words[words.index("+") + 1]), int(words[-1])


def test_which_of_the_firmwares_certificates_count(readers: Path, ders: list[bytes]) -> None:
    me, other, vendor = ders
    hashes = [hashlib.sha256(der).hexdigest() for der in ders]
    when = bytes(16)
    db = efi.certificate_list(me) + efi.certificate_list(vendor)
    assert offer(readers, db) == ([hashes[0], hashes[2]], 0, 0)
    assert offer(readers, db, mok=efi.certificate_list(other)) == ([hashes[0], hashes[2], hashes[1]], 0, 0)
    # Programs by hash are in db too: nothing to skip, nothing to take.
    programs = efi.signature_list(efi.CERT_SHA256, [(efi.OWNER, bytes(32)), (efi.OWNER, bytes(32))])
    assert offer(readers, programs + db) == ([hashes[0], hashes[2]], 0, 0)
    revocations = {
        "whole": efi.certificate_list(me, MICROSOFT),
        "signed part": efi.signature_list(efi.CERT_X509_SHA256, [(MICROSOFT, efi.signed_part_sha256(me) + when)]),
        "among others": programs + efi.certificate_list(other) + efi.certificate_list(me),
    }
    for why, dbx in revocations.items():
        assert offer(readers, db, dbx) == ([hashes[2]], 1, 0), why
    text = serialized({hashes[0]: "lost"})
    assert offer(readers, db, listed=text) == ([hashes[2]], 1, 0)
    assert offer(readers, db, efi.certificate_list(other)) == ([hashes[0], hashes[2]], 0, 0)
    assert offer(readers, db, efi.certificate_list(me), listed=serialized({hashes[2]: "too"})) == ([], 2, 0)
    # The hash of a program that happens to be the certificate's says nothing about the certificate.
    by_program = efi.signature_list(efi.CERT_SHA256, [(efi.OWNER, efi.signed_part_sha256(me))])
    assert offer(readers, db, by_program) == ([hashes[0], hashes[2]], 0, 0)
    by_sha384 = efi.signature_list(X509_SHA384, [(MICROSOFT, bytes(48) + when)])
    assert offer(readers, db, by_sha384) == ([hashes[0], hashes[2]], 0, 1)
    assert offer(readers, db, db[:-1]) is None
    assert offer(readers, db, listed=text[:-1]) is None


@pytest.mark.parametrize("owner", [MICROSOFT, efi.FIRMWARE_ONLY])
def test_certificates_for_option_roms_sign_no_files(readers: Path, ders: list[bytes], owner: UUID) -> None:
    mine, theirs = hashlib.sha256(ders[0]).hexdigest(), hashlib.sha256(ders[1]).hexdigest()
    db = efi.certificate_list(ders[0])
    assert offer(readers, db + efi.certificate_list(ders[1], owner)) == ([mine], 1, 0)
    assert offer(readers, db + efi.certificate_list(ders[1])) == ([mine, theirs], 0, 0)


def test_padding_does_not_hide_a_revoked_certificate(readers: Path, ders: list[bytes]) -> None:
    padded = efi.signature_list(efi.CERT_X509, [(efi.OWNER, ders[0] + b"\0")])
    text = serialized({hashlib.sha256(ders[0]).hexdigest(): "lost"})
    assert offer(readers, padded, listed=text) == ([], 1, 0)


def test_stored_flags_are_not_the_firmwares(readers: Path) -> None:
    flags = {
        b"\6\0\0\0\1": "1", b"\6\0\0\0\0": "0", b"\7\0\0\0\1": "0", b"\6\0\0\0\2": "0", b"\6\0\0\0": "0", b"": "0",
        b"\6\0\0\0\1\1": "0",
    }  # fmt: skip
    assert ask(readers, "flag", list(flags)) == list(flags.values())


ON, OFF = b"\6\0\0\0\1", b"\6\0\0\0\0"
OWN, STORED = b"\6\0\0\0", b"\7\0\0\0"
SHIM = "605dab50-e046-4300-abb6-3dd810dd8b23"


def test_what_the_firmware_says(readers: Path, ders: list[bytes], tmp_path: Path) -> None:
    """Directories in the place of efivarfs: a good one, and what each change to it makes of it."""
    hashes = [hashlib.sha256(der).hexdigest() for der in ders]
    db = b"\x27\0\0\0" + efi.certificate_list(ders[0])
    secure, setup = f"SecureBoot-{efi.GLOBAL_VARIABLE}", f"SetupMode-{efi.GLOBAL_VARIABLE}"
    names = {name: f"{name}-{efi.IMAGE_SECURITY_DATABASE}" for name in ("db", "dbx")}
    mok, mokx = f"MokListRT-{SHIM}", f"MokListXRT-{SHIM}"
    good = {secure: ON, setup: OFF, names["db"]: db}
    other, mine = efi.certificate_list(ders[1]), efi.certificate_list(ders[0])
    big = efi.signature_list(efi.CERT_SHA256, [(efi.OWNER, bytes(32))])
    on, fault = f"on () {hashes[0]}", "cannot be read)"
    dbx_fault, mokx_fault = f"on (its list of what is revoked (dbx) {fault}", f"on (shim's list of what is revoked {fault}"
    cases: list[tuple[str, dict[str, bytes | None], str]] = [
        ("good", {}, on),
        ("off", {secure: OFF}, "off ()"),
        ("setup mode", {setup: ON}, "off ()"),
        ("no word about setup mode", {setup: None}, "off ()"),
        ("no Secure Boot", {secure: None}, "off ()"),
        ("a stored SecureBoot", {secure: STORED + b"\1"}, "off ()"),
        ("a long SecureBoot", {secure: ON + b"\0"}, "off ()"),
        ("no db", {names["db"]: None}, "on ()"),
        ("db cut short", {names["db"]: db[:-1]}, f"on (its list of certificates (db) {fault}"),
        ("db's second list cut short", {names["db"]: db + other[:-1]}, f"on (its list of certificates (db) {fault}"),
        ("db without attributes", {names["db"]: b"\x27"}, f"on (its list of certificates (db) {fault}"),
        ("db too large", {names["db"]: db + big * 900}, f"on (its list of certificates (db) {fault}"),
        ("db nearly too large", {names["db"]: db + big * 800}, on),
        ("another is revoked", {names["dbx"]: OWN + other}, on),
        ("dbx cut short", {names["dbx"]: OWN + other[:-1]}, dbx_fault),
        ("dbx too large", {names["dbx"]: OWN + big * 3500}, dbx_fault),
        ("a large dbx", {names["dbx"]: OWN + big * 3400}, on),
        ("too many revoked", {names["dbx"]: OWN + efi.certificate_list(b"\x30\x02\x30\x00") * 1025}, dbx_fault),
        ("many revoked", {names["dbx"]: OWN + efi.certificate_list(b"\x30\x02\x30\x00") * 1024}, on),
        ("shim's own", {mok: OWN + other}, f"{on} {hashes[1]}"),
        ("stored in shim's name", {mok: STORED + other}, on),
        ("shim's cut short", {mok: OWN + other[:-1]}, f"[shim's list of certificates cannot be read: ignored] {on}"),
        ("shim's, revoked by shim", {mok: OWN + other, mokx: OWN + other}, on),
        ("a revocation stored in shim's name", {mok: OWN + other, mokx: STORED + other}, f"{on} {hashes[1]}"),
        ("shim's revocations cut short", {mokx: OWN + other[:-1]}, mokx_fault),
        ("revoked by dbx", {names["dbx"]: OWN + mine}, "on ()"),
        ("revoked by a hash that nobody here can compute", {
            names["dbx"]: OWN + efi.signature_list(X509_SHA384, [(MICROSOFT, bytes(64))])
        }, f"[the firmware revokes 1 certificates by hashes that are not looked at here] {on}"),
    ]  # fmt: skip
    for number, (_, changes, _) in enumerate(cases):
        directory = tmp_path / str(number)
        directory.mkdir()
        for name, content in {**good, **changes}.items():
            if content is not None:
                (directory / name).write_bytes(content)
    answers = ask(readers, "read", [str(tmp_path / str(number)).encode() for number in range(len(cases))])
    assert dict(zip([why for why, _, _ in cases], answers, strict=True)) == {why: wanted for why, _, wanted in cases}


def test_certificates_are_der(ders: list[bytes]) -> None:
    assert efi.parse_lists(efi.certificate_list(ders[0])) == (efi.Signature(efi.CERT_X509, efi.OWNER, ders[0]),)
    pem = x509.load_der_x509_certificate(ders[0]).public_bytes(Encoding.PEM)
    for wrong in (pem, ders[0] + b"\0", b""):
        with pytest.raises(ValueError, match=r"DER|behind"):
            efi.certificate_list(wrong)
