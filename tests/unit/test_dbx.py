# SPDX-License-Identifier: Apache-2.0
"""``freehold key dbx``: updates of dbx against efitools, sbsigntool, openssl and virt-firmware; what they reach."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from pathlib import Path

import pytest
from cryptography import x509 as crypto
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st
from lab_dbx import ADDON, LOADER, TIME, openssl_believes, signed, signer, tools, unsigned
from test_efi import damage, offer, readers  # noqa: F401 (a fixture)

from freehold.build import dbx as work
from freehold.build.keys import KeyDirectory
from freehold.cli import main
from freehold.errors import InputError, VerificationError
from freehold.keys import dbx, efi, pe, pkcs7
from freehold.keys.issue import create, issue
from freehold.run import Argument, run

pytestmark = pytest.mark.build
ROOT_OF_TIME = "2026-09-21 14:13:20"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Owners ``me`` and ``other``; a vendor ``v`` with release keys ``r1`` and ``r2``; ``alone``, a release key by itself."""
    directory = tmp_path_factory.mktemp("keys")
    create("me", "owner", directory, None)
    create("other", "owner", directory, None)
    create("v", "vendor", directory, None)
    create("alone", "release", directory, None)
    for name in ("r1", "r2"):
        issue(name, "release", directory, None, signer(directory, "v"))
    return directory


def der(keys: Path, name: str) -> bytes:
    return (keys / f"{name}.der").read_bytes()


def update(keys: Path, *names: str, by: str = "me", programs: tuple[bytes, ...] = ()) -> bytes:
    entries = [dbx.certificate_entry(der(keys, name)) for name in names]
    return dbx.make([*entries, *map(dbx.program_entry, programs)], TIME, signer(keys, by).sign_pkcs7)


needs_efitools = pytest.mark.skipif(shutil.which("sign-efi-sig-list") is None, reason="needs efitools")


@needs_efitools
def test_every_byte_is_as_efitools_writes_it(keys: Path, tmp_path: Path) -> None:
    """Two certificates, and two programs whose digests efitools counts itself."""
    parts = []
    for name in ("r1", "v"):
        run(["cert-to-efi-sig-list", "-g", str(efi.OWNER), keys / f"{name}.crt", tmp_path / "one"])
        parts.append((tmp_path / "one").read_bytes())
    (tmp_path / "unsigned").write_bytes(unsigned(ADDON))
    programs: list[Argument] = [signed(keys, "r1", tmp_path / "loader"), tmp_path / "unsigned"]
    run(["hash-to-efi-sig-list", *programs, tmp_path / "hashes"])
    digests = [one.data for one in efi.parse_lists((tmp_path / "hashes").read_bytes())]
    parts.append(efi.signature_list(efi.CERT_SHA256, [(efi.OWNER, one) for one in digests]))
    (tmp_path / "lists").write_bytes(b"".join(parts))
    command: list[Argument] = ["sign-efi-sig-list", "-a", "-t", ROOT_OF_TIME, "-k", keys / "me.key", "-c", keys / "me.crt"]
    run([*command, "dbx", tmp_path / "lists", tmp_path / "theirs"], env={"TZ": "UTC"})
    revoked = work.gather([keys / "r1.crt", keys / "v.der", *map(Path, programs)], [])
    assert work.sign(revoked, signer(keys, "me"), TIME) == (tmp_path / "theirs").read_bytes()
    # Signed or not, a program has one digest.
    assert digests == [pe.parse(unsigned(which)).authenticode() for which in (LOADER, ADDON)]


def test_others_read_and_believe_it(keys: Path, tmp_path: Path) -> None:
    made = update(keys, "r1", programs=(b"\7" * 32,))
    when, signature, lists = efi.split_update(made)
    covered = "dbx".encode("utf-16-le") + bytes.fromhex("cbb219d73a3d9645a3bcdad00e67656f") + b"\x67\0\0\0" + when + lists
    assert openssl_believes(signature, covered, keys / "me.crt", tmp_path)
    assert not openssl_believes(signature, covered, keys / "other.crt", tmp_path)
    assert not openssl_believes(signature, covered.replace(b"\x67\0\0\0", b"\x27\0\0\0"), keys / "me.crt", tmp_path)
    (tmp_path / "dbx.auth").write_bytes(made)
    shutil.copyfile(tools().root / "usr/share/OVMF/OVMF_VARS_4M.fd", tmp_path / "template")
    inside = "virt-fw-vars -i template --set-dbx dbx.auth --output-json out.json"
    tools().run(["sh", "-c", inside], binds=[tmp_path], cwd=tmp_path)
    found = [one for one in json.loads((tmp_path / "out.json").read_text())["variables"] if one["name"] == "dbx"]
    assert [(one["guid"], one["data"]) for one in found] == [(str(efi.IMAGE_SECURITY_DATABASE), lists.hex())]


@pytest.mark.skipif(shutil.which("sbvarsign") is None, reason="needs sbsigntool")
def test_another_writers_update_is_read(keys: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").write_bytes(dbx.to_lists([dbx.certificate_entry(der(keys, "r1"))]))
    command: list[Argument] = ["sbvarsign", "--key", keys / "me.key", "--cert", keys / "me.crt"]
    attributes = "NON_VOLATILE,BOOTSERVICE_ACCESS,RUNTIME_ACCESS,TIME_BASED_AUTHENTICATED_WRITE_ACCESS"
    for extra, output in ((",APPEND_WRITE", "adds"), ("", "replaces")):
        run([*command, "--attr", attributes + extra, "--output", tmp_path / output, "dbx", tmp_path / "lists"])
    me = [der(keys, "me")]
    assert dbx.verify((tmp_path / "adds").read_bytes(), me).entries == (dbx.certificate_entry(der(keys, "r1")),)
    with pytest.raises(VerificationError, match="would replace dbx"):
        dbx.verify((tmp_path / "replaces").read_bytes(), me)
    # It has attributes, which name the digest of what is signed.
    longer = (tmp_path / "adds").read_bytes() + dbx.to_lists([dbx.program_entry(bytes(32))])
    with pytest.raises(VerificationError, match="signed for something else"):
        dbx.verify(longer, me)


def test_who_may_sign(keys: Path) -> None:
    made = update(keys, "r1")
    assert dbx.verify(made, [der(keys, "other"), der(keys, "me")]).entries[0].data == der(keys, "r1")
    for authorities in ([der(keys, "other")], [], [der(keys, "r1")]):
        with pytest.raises(VerificationError, match="signed by nobody whose word counts here") as caught:
            dbx.verify(made, authorities)
        assert caught.value.hint is not None
        assert "KEK" in caught.value.hint
    # A certificate that one in KEK issued, as firmware's makers have it.
    assert dbx.verify(update(keys, "r1", by="r2"), [der(keys, "v")])
    with pytest.raises(VerificationError, match="nobody"):
        dbx.verify(update(keys, "r1", by="r2"), [der(keys, "r1")])


def test_it_is_for_dbx_and_for_adding(keys: Path) -> None:
    me = signer(keys, "me")
    lists = dbx.to_lists([dbx.certificate_entry(der(keys, "r1"))])
    for name, attributes, said in (("db", dbx.ATTRIBUTES, "something else"), ("dbx", efi.ATTRIBUTES, "would replace")):
        made = efi.variable_update(name, lists, TIME, me.sign_pkcs7, attributes)
        with pytest.raises(VerificationError, match=said):
            dbx.verify(made, [me.certificate_der()])


def test_what_an_update_may_hold(keys: Path) -> None:
    me = signer(keys, "me")
    good = efi.certificate_list(der(keys, "r1"))

    def made(lists: bytes, time: int = TIME) -> bytes:
        return efi.variable_update("dbx", lists, time, me.sign_pkcs7, dbx.ATTRIBUTES)

    assert dbx.read(made(good)).lists == good
    by_part = efi.signature_list(efi.CERT_X509_SHA256, [(efi.OWNER, efi.signed_part_sha256(der(keys, "r1")) + bytes(16))])
    assert dbx.read(made(by_part)).entries[0].type == efi.CERT_X509_SHA256
    hash_list = efi.signature_list(efi.CERT_SHA256, [(efi.OWNER, bytes(32))])
    refused = {
        "adds nothing": b"",
        "a kind that is not known": efi.signature_list(efi.OWNER, [(efi.OWNER, bytes(32))]),
        "a hash of 20 bytes": efi.signature_list(efi.CERT_SHA256, [(efi.OWNER, bytes(20))]),
        "a hash of 32 bytes": efi.signature_list(efi.CERT_X509_SHA256, [(efi.OWNER, bytes(32))]),
        "DER": efi.signature_list(efi.CERT_X509, [(efi.OWNER, b"certificate")]),
        "sizes": good[:-1],
        "larger than 65536": hash_list * 1000,
    }
    for said, lists in refused.items():
        with pytest.raises(ValueError, match=said):
            dbx.read(made(lists))
    with pytest.raises(ValueError, match="larger"):
        dbx.make([dbx.program_entry(number.to_bytes(32, "big")) for number in range(1400)], TIME, me.sign_pkcs7)
    dbx.make([dbx.program_entry(number.to_bytes(32, "big")) for number in range(1300)], TIME, me.sign_pkcs7)
    whole = bytearray(made(good))
    for at, value in ((2, 13), (2, 0), (3, 0), (4, 24), (5, 60), (7, 1), (8, 1), (12, 1), (14, 1)):
        broken = whole.copy()
        broken[at] = value
        with pytest.raises(ValueError, match="time"):
            dbx.read(bytes(broken))


@given(st.binary(max_size=400), st.integers(0, 1 << 32))
@settings(max_examples=300, deadline=None)
def test_readers_only_ever_say_value_error(noise: bytes, seed: int) -> None:
    for read in (dbx.read, pkcs7.parse, dbx.enclosed):
        try:
            read(noise)
        except ValueError:
            continue


@pytest.fixture(scope="module")
def sample(keys: Path) -> tuple[bytes, bytes]:
    return update(keys, "r1", "v", programs=(b"\1" * 32,)), der(keys, "me")


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_a_damaged_update_is_refused_or_says_the_same(sample: tuple[bytes, bytes], data: st.DataObject) -> None:
    """Near misses: a byte changed, put in or removed, the end cut off. Nothing that nobody signed gets through."""
    import random

    good, me = sample
    dice = random.Random(data.draw(st.integers(0, 1 << 32)))  # noqa: S311 - test data
    broken = damage(good, dice)
    for _ in range(dice.randrange(3)):
        broken = damage(broken, dice)
    try:
        found = dbx.verify(broken, [me])
    except VerificationError as error:
        assert "\n" not in error.message
    else:
        assert (found.when, found.lists) == (dbx.read(good).when, dbx.read(good).lists)


def test_the_early_step_honours_it(keys: Path, readers: Path) -> None:  # noqa: F811 (a fixture)
    """``early/revoked.c``, with the sanitizers on: what the update lists is left out of the ring, and nothing else."""
    names = ("me", "r1", "v")
    db = b"".join(efi.certificate_list(der(keys, name)) for name in names)
    prints = {name: hashlib.sha256(der(keys, name)).hexdigest() for name in names}
    for out in ((), ("r1",), ("v",), ("me", "r1"), names):
        lists = dbx.read(update(keys, *out, programs=(hashlib.sha256(der(keys, "me")).digest(),))).lists
        taken = [prints[name] for name in names if name not in out]
        assert offer(readers, db, lists) == (taken, len(out), 0), out


def test_it_stays_readable_for_the_early_step(keys: Path, readers: Path) -> None:  # noqa: F811 (a fixture)
    """The judgement before the write agrees with the reader after it, at its very limits."""
    mine = dbx.certificate_entry(der(keys, "r1"))
    small = [efi.Signature(efi.CERT_X509, efi.OWNER, b"\x30\x05\x30\x03" + number.to_bytes(3, "big")) for number in range(1024)]
    part = [efi.Signature(efi.CERT_X509_SHA256, efi.OWNER, number.to_bytes(48, "big")) for number in range(1025)]
    text = b"freehold-revoked 1\n" + b"%064x lost\n" % 1
    hashes_256k = [dbx.program_entry(number.to_bytes(32, "big")) for number in range((256 << 10) // 48 - 1)]
    cases = [(small[:1023], 0), (small, 0), (small[:1022], 1), (small[:1023], 1), (part[:1024], 0), (part, 0), (hashes_256k, 0)]
    verdicts = []
    for standing, listed in cases:
        lists = dbx.to_lists(standing)
        try:
            dbx.check_room(standing, len(lists), [mine], listed)
            verdicts.append(True)
        except ValueError:
            verdicts.append(False)
        if len(lists) < efi.MAX_LIST_BYTES - 2000:
            read = offer(readers, b"", lists + dbx.to_lists([mine]), listed=text if listed else b"")
            assert (read is not None) == verdicts[-1], (len(standing), listed)
    assert verdicts == [True, False, True, False, True, False, False]


@pytest.fixture(scope="module")
def boot(keys: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A real boot loader, signed by each release key."""
    place = tmp_path_factory.mktemp("boot")
    return {name: signed(keys, name, place / f"{name}.efi") for name in ("r1", "r2", "alone")}


def program_of(path: Path) -> dbx.Program:
    (found,) = work.programs([str(path)], None)  # type: ignore[arg-type]
    return found


def test_what_an_entry_reaches_is_what_a_chain_leads_to(keys: Path, boot: dict[str, Path]) -> None:
    """Firmware takes a listed certificate as an anchor; so does sbverify with the one that it is given."""
    for by, path in boot.items():
        for listed in ("me", "v", "r1", "r2", "alone"):
            check: list[Argument] = ["sbverify", "--cert", keys / f"{listed}.crt", path]
            believed = tools().run(check, ro_binds=[keys, path.parent], check=False).status == 0
            refused = dbx.refusing([dbx.certificate_entry(der(keys, listed))], program_of(path))
            assert (refused is not None) == believed, (by, listed)
            assert believed == (listed == by or (listed == "v" and by != "alone"))


def test_an_entry_by_hash_reaches_the_signer_and_what_db_has(keys: Path, boot: dict[str, Path]) -> None:
    def by_part(name: str) -> efi.Signature:
        return efi.Signature(efi.CERT_X509_SHA256, efi.OWNER, efi.signed_part_sha256(der(keys, name)) + bytes(16))

    one = program_of(boot["r1"])
    assert dbx.refusing([by_part("r1")], one)
    assert dbx.refusing([by_part("r2")], one) is None
    assert dbx.refusing([by_part("v")], one) is None
    assert dbx.refusing([by_part("v")], one, [der(keys, "v")])


def test_a_program_by_its_digest(keys: Path, boot: dict[str, Path]) -> None:
    mine = dbx.program_entry(pe.parse(unsigned()).authenticode())
    assert all(dbx.refusing([mine], program_of(path)) == mine for path in boot.values())
    assert dbx.refusing([dbx.program_entry(pe.parse(unsigned(ADDON)).authenticode())], program_of(boot["r1"])) is None


def test_tables_of_signatures_that_do_not_fit(boot: dict[str, Path]) -> None:
    parsed = pe.parse(boot["r1"].read_bytes())
    offset, length = parsed.certificates
    table = parsed.data[offset : offset + length]
    assert len(dbx.enclosed(table * 2)) == 2
    # One of another kind is passed over.
    assert dbx.enclosed(struct.pack("<IHH", 16, 0x200, 1) + bytes(8)) == ()
    short, empty = struct.pack("<IHH", 7, 0x200, 2), struct.pack("<IHH", 9, 0x200, 2) + b"\0"
    for wrong in (table[:-9], table[:7], short, empty, table[:8] * 2):
        with pytest.raises(ValueError, match=r"table|DER|PKCS"):
            dbx.enclosed(wrong)


def verb(*arguments: object) -> int:
    return main(["key", "dbx", *map(str, arguments)])


def test_a_dry_run_says_it_in_words_and_writes_nothing(keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("me.key", "me.crt", "r1.crt"):
        shutil.copyfile(keys / name, mine / name)
    (mine / "me.key").chmod(0o600)
    (tmp_path / "addon.efi").write_bytes(unsigned(ADDON))
    what = (mine / "r1.crt", tmp_path / "addon.efi", "--key", f"file:{mine}/me.key", "--keys", mine, "-o", tmp_path / "out.auth")
    before = sorted(tmp_path.rglob("*"))
    # It is in use: nobody has noted that it is not.
    assert verb(*what, "--dry-run") == 1
    said = capsys.readouterr().out
    assert f"certificate  CN=r1,OU=freehold-release ({mine}/r1.crt)" in said
    assert hashlib.sha256(der(keys, "r1")).hexdigest() in said
    assert pe.parse(unsigned(ADDON)).authenticode().hex() in said
    assert f"! {mine}/r1.crt: CN=r1,OU=freehold-release is in use" in said
    assert "It would not be, without --force" in said
    assert verb(*what) == 2
    captured = capsys.readouterr()
    assert "your own machines boot with" in captured.err
    assert "freehold key revoke" in captured.err
    assert main(["key", "revoke", str(mine / "r1.crt"), "--reason", "stolen", "--keys", str(mine)]) == 0
    assert "freehold key dbx" in capsys.readouterr().out
    assert verb(*what, "--dry-run", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["written"], facts["in_use"]) == (False, [])
    assert [(one["kind"], one["subject"]) for one in facts["entries"]] == [
        ("certificate", "CN=r1,OU=freehold-release"), ("program", None),
    ]  # fmt: skip
    assert sorted(path for path in tmp_path.rglob("*") if "revoked" not in path.name) == before
    assert verb(*what) == 0
    said = capsys.readouterr().out
    assert "Next, on each machine, as root: freehold dbx apply out.auth" in said
    found = dbx.verify((tmp_path / "out.auth").read_bytes(), [der(keys, "me")])
    assert [one.type for one in found.entries] == [efi.CERT_X509, efi.CERT_SHA256]
    # Nothing is overwritten.
    assert verb(*what) == 2
    assert "exists already" in capsys.readouterr().err


def in_use(keys: Path, revoked: str, boots: list[str], own: Path) -> tuple[str, ...]:
    entries = [dbx.certificate_entry(der(keys, revoked))]
    programs = work.programs(boots, None)  # type: ignore[arg-type]
    return work.in_the_way(entries, signer(keys, "me"), KeyDirectory(own), programs)


def test_what_is_in_use_is_not_revoked(keys: Path, boot: dict[str, Path], tmp_path: Path) -> None:
    """The owner that signs, certificates that nobody revoked and their issuers, what machines start."""
    assert in_use(keys, "other", [], tmp_path) == ()
    assert "the owner's, who signs this update" in in_use(keys, "me", [], tmp_path)[0]
    shutil.copyfile(keys / "r2.crt", tmp_path / "r2.crt")
    assert in_use(keys, "r1", [], tmp_path) == ()
    assert len(in_use(keys, "r2", [], tmp_path)) == 1
    assert "was issued by what would be revoked" in in_use(keys, "v", [], tmp_path)[0]
    # A boot partition: its boot loader is one that r1 signed long ago.
    esp = tmp_path / "esp/EFI/BOOT"
    esp.mkdir(parents=True)
    shutil.copyfile(boot["r1"], esp / "BOOTX64.EFI")
    assert in_use(keys, "alone", [str(tmp_path / "esp")], tmp_path) == ()
    for name in ("r1", "v"):
        said = in_use(keys, name, [str(tmp_path / "esp")], tmp_path)[-1]
        assert f"{esp}/BOOTX64.EFI: would not start (revoked: CN={name}," in said
    (tmp_path / "esp/junk.efi").write_bytes(b"MZ junk")
    with pytest.raises(InputError, match=r"junk\.efi"):
        in_use(keys, "r1", [str(tmp_path / "esp")], tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="0 EFI programs"):
        in_use(keys, "r1", [str(tmp_path / "none")], tmp_path)


def test_force_and_releases(keys: Path, boot: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release = tmp_path / "store/releases/server-1"
    release.mkdir(parents=True)
    (release / "manifest.json").write_text("{}")
    shutil.copyfile(boot["r1"], release / "uki.efi")
    what = [keys / "r1.crt", "--key", f"file:{keys}/me.key", "--keys", tmp_path, "-o", tmp_path / "out.auth"]
    what += ["--store", tmp_path / "store", "--boots", "server-1"]
    assert verb(*what) == 2
    assert "uki.efi: would not start" in capsys.readouterr().err
    assert not (tmp_path / "out.auth").exists()
    assert verb(*what, "--force") == 0
    assert "! " in capsys.readouterr().out
    assert dbx.verify((tmp_path / "out.auth").read_bytes(), [der(keys, "me")])
    assert verb(*what[:-1], "server-2") == 2
    assert "no release 'server-2'" in capsys.readouterr().err


def test_every_fault_is_named(keys: Path, tmp_path: Path) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    like = crypto.load_der_x509_certificate(der(keys, "r1"))
    builder = crypto.CertificateBuilder(like.subject, like.subject, private.public_key(), 5)
    builder = builder.not_valid_before(like.not_valid_before_utc).not_valid_after(like.not_valid_after_utc)
    (tmp_path / "curve.der").write_bytes(builder.sign(private, hashes.SHA256()).public_bytes(Encoding.DER))
    (tmp_path / "junk.efi").write_bytes(b"MZ" + bytes(100))
    (tmp_path / "junk").write_bytes(b"junk")
    files = [keys / "r1.crt", tmp_path / "curve.der", tmp_path / "junk.efi", tmp_path / "junk", tmp_path / "none", tmp_path]
    with pytest.raises(InputError) as caught:
        work.gather(files, ["ab", "g" * 64])
    faults = caught.value.faults
    assert len(faults) == 7
    assert "no RSA key" in faults[0]
    with pytest.raises(InputError) as caught:
        work.gather([], [])
    assert "nothing" in caught.value.faults[0]
    twice = work.gather([keys / "r1.crt", keys / "r1.der"], ["ab" * 32, "AB" * 32])
    assert [one.name for one in twice] == [str(keys / "r1.crt"), "given by its digest"]


def test_only_owners_sign(keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verb(keys / "r1.crt", "--key", f"file:{keys}/r2.key", "--keys", tmp_path, "-o", tmp_path / "x") == 2
    assert "role is release, not owner" in capsys.readouterr().err
    assert verb(keys / "r1.crt", "--keys", tmp_path, "-o", tmp_path / "x") == 2
    assert "no owner's key" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
