# SPDX-License-Identifier: Apache-2.0
"""The chain of trust: who may issue what, what counts on a machine, rotation, revocation; and the verbs for it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509 as cx509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from lab_release import Lab

from freehold.build.keys import KeyDirectory, ask, with_keychain
from freehold.build.recipe import Certificate as Member
from freehold.build.recipe import Recipe, load
from freehold.cli import main
from freehold.device import stage
from freehold.errors import InputError, VerificationError
from freehold.keys import issue, x509
from freehold.keys.formats import DocumentSignature, Revocation, parse_signature, serialize_revoked, serialize_signature
from freehold.keys.verify import Certificate, Keychain, keychain_entry, role_of, verify, verify_document
from freehold.server.serve import Server
from freehold.update import fetch

ROOT = Path(__file__).parents[2]
TEXT = b"a document"
CAST: tuple[tuple[str, str, str | None], ...] = (
    ("vendor", "vendor", None), ("stranger", "vendor", None), ("owner", "owner", None), ("pinned", "release", None),
    ("first", "release", "vendor"), ("second", "release", "vendor"), ("foreign", "release", "stranger"),
    ("device", "device", "owner"),
)  # fmt: skip


def unasked(prompt: str) -> bytes:
    raise AssertionError(prompt)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the whole cast."""
    directory = tmp_path_factory.mktemp("chain")
    for name, role, by in CAST:
        if by is None:
            issue.create(name, role, directory, None)  # type: ignore[arg-type]
        else:
            issue.issue(name, role, directory, None, signer(directory, by))  # type: ignore[arg-type]
    return directory


def signer(keys: Path, name: str) -> x509.Signer:
    return x509.load_signer(f"file:{keys}/{name}.key", unasked)


def der(keys: Path, name: str) -> bytes:
    return (keys / f"{name}.der").read_bytes()


def chain(keys: Path, *names: str, revoked: tuple[str, ...] = ("",)) -> Keychain:
    roles = {name: role for name, role, _ in CAST}
    listed = tuple(Revocation(hashlib.sha256(der(keys, name)).hexdigest(), f"{name} was lost") for name in revoked if name)
    return Keychain(tuple(Certificate(roles[name], name, der(keys, name)) for name in names), listed)  # type: ignore[arg-type]


def certificate(keys: Path, name: str) -> cx509.Certificate:
    return cx509.load_der_x509_certificate(der(keys, name))


def test_what_is_issued(keys: Path) -> None:
    for name, role, by in CAST:
        made = certificate(keys, name)
        assert role_of(der(keys, name)) == role
        assert stat.S_IMODE((keys / f"{name}.key").stat().st_mode) == 0o600
        extensions = made.extensions
        usage = extensions.get_extension_for_class(cx509.KeyUsage).value
        own = extensions.get_extension_for_class(cx509.SubjectKeyIdentifier).value.digest
        issuer = extensions.get_extension_for_class(cx509.AuthorityKeyIdentifier).value.key_identifier
        assert isinstance(made.signature_hash_algorithm, hashes.SHA256)
        assert usage.digital_signature
        assert (usage.key_cert_sign, usage.crl_sign) == (by is None, by is None)
        assert extensions.get_extension_for_class(cx509.BasicConstraints).value.ca is (by is None)
        if by is None:
            assert issuer == own
            continue
        made.verify_directly_issued_by(certificate(keys, by))
        purposes = extensions.get_extension_for_class(cx509.ExtendedKeyUsage).value
        assert list(purposes) == [ExtendedKeyUsageOID.CODE_SIGNING]
        assert issuer == certificate(keys, by).extensions.get_extension_for_class(cx509.SubjectKeyIdentifier).value.digest


def test_an_issued_certificate_does_not_outlive_its_issuer(keys: Path, tmp_path: Path) -> None:
    vendor = signer(keys, "vendor")
    short = issue.issue("short", "release", tmp_path, None, vendor, 10)
    long = issue.issue("long", "release", tmp_path, None, vendor, issue.MAX_DAYS)
    left = x509.load_certificate(short.certificate).not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=9, hours=23) < left <= timedelta(days=10)
    assert x509.load_certificate(long.certificate).not_valid_after_utc == vendor.certificate.not_valid_after_utc


def test_what_counts(keys: Path) -> None:
    signed = {name: signer(keys, name).sign_document(TEXT) for name, _, _ in CAST}
    assert parse_signature(signed["pinned"]).certificate is None
    assert parse_signature(signed["first"]).certificate == der(keys, "first")
    whole = chain(keys, "vendor", "owner", "pinned")
    good = {
        "pinned": verify_document(TEXT, signed["pinned"], keychain=whole),
        "first": verify_document(TEXT, signed["first"], keychain=whole),
        "second": verify_document(TEXT, signed["second"], keychain=chain(keys, "vendor")),
        "foreign": verify_document(TEXT, signed["foreign"], keychain=chain(keys, "vendor", "stranger")),
    }
    assert {name: (verdict.ok, verdict.key) for name, verdict in good.items()} == {name: (True, name) for name in good}
    assert "issued by vendor" in good["first"].reason
    # A leaf may be pinned like any release key.
    assert verify_document(TEXT, signed["first"], keychain=chain(keys, "first")).ok
    bad = {
        "another document": (b"other", signed["first"], whole, "did not make"),
        "no keychain": (TEXT, signed["first"], Keychain(), "issued by no vendor"),
        "vendor gone": (TEXT, signed["first"], chain(keys, "owner", "pinned"), "issued by no vendor"),
        "foreign vendor": (TEXT, signed["foreign"], whole, "issued by no vendor"),
        "owner": (TEXT, signed["owner"], whole, "no certificate of role release"),
        "device": (TEXT, signed["device"], whole, "not of role release"),
        "vendor itself": (TEXT, signed["vendor"], whole, "no certificate of role release"),
        "revoked leaf": (TEXT, signed["first"], chain(keys, "vendor", revoked=("first",)), "first was lost"),
        "revoked vendor": (TEXT, signed["first"], chain(keys, "vendor", revoked=("vendor",)), "vendor was lost"),
        "revoked pinned": (TEXT, signed["pinned"], chain(keys, "pinned", revoked=("pinned",)), "pinned was lost"),
        "revoked pinned leaf": (TEXT, signed["first"], chain(keys, "first", "vendor", revoked=("first",)), "first was lost"),
        "raw": (TEXT, signer(keys, "pinned").sign(TEXT), whole, "must begin|not UTF-8"),
        "empty": (TEXT, b"", whole, "there is no signature"),
    }
    for name, (data, signature, keychain, said) in bad.items():
        verdict = verify_document(data, signature, keychain=keychain)
        assert not verdict.ok, name
        assert not verdict.key, name
        assert any(part in verdict.reason for part in said.split("|")), (name, verdict.reason)
    # Revoking one leaf leaves the other.
    assert verify_document(TEXT, signed["second"], keychain=chain(keys, "vendor", revoked=("first",))).ok


def test_a_revoked_owner_signs_no_intent(keys: Path) -> None:
    signature = signer(keys, "owner").sign(TEXT)
    assert verify(TEXT, signature, keychain=chain(keys, "owner"), role="owner").ok
    verdict = verify(TEXT, signature, keychain=chain(keys, "owner", revoked=("owner",)), role="owner")
    assert (verdict.ok, verdict.reason) == (False, "signed by owner (owner), which is revoked: owner was lost")


def built(
    keys: Path, by: str, *, role: str = "release", authority: bool = False, algorithm: hashes.SHA512 | None = None,
    issuer: cx509.Name | None = None,
) -> bytes:  # fmt: skip
    """A document signature by a key whose certificate is made as `freehold key issue` would not."""
    ca = signer(keys, by)
    key = rsa.generate_private_key(65537, 2048)
    start = datetime.now(UTC) - timedelta(days=1)
    names = [
        cx509.NameAttribute(cx509.NameOID.ORGANIZATIONAL_UNIT_NAME, f"freehold-{role}"),
        cx509.NameAttribute(cx509.NameOID.COMMON_NAME, "odd"),
    ]
    made = (
        cx509.CertificateBuilder(issuer or ca.certificate.subject, cx509.Name(names), key.public_key(), 7, start,
                                 start + timedelta(days=9))
        .add_extension(cx509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .sign(ca.private_key, algorithm or hashes.SHA256())
    )  # fmt: skip
    return x509.Signer(key, made).sign_document(TEXT)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"role": "owner"}, "not of role release"),
        ({"role": "nothing"}, "not of role release"),
        ({"authority": True}, "is a certificate authority"),
        ({"algorithm": hashes.SHA512()}, "issued by no vendor"),
        ({"by": "owner"}, "issued by no vendor"),
        ({"by": "first"}, "issued by no vendor"),
        ({"issuer": cx509.Name([cx509.NameAttribute(cx509.NameOID.COMMON_NAME, "vendor")])}, "issued by no vendor"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_odd_certificates_do_not_count(keys: Path, how: dict[str, object], said: str) -> None:
    keychain = chain(keys, "vendor", "owner", "first")
    assert verify_document(TEXT, built(keys, "vendor"), keychain=keychain).ok
    verdict = verify_document(TEXT, built(keys, **{"by": "vendor", **how}), keychain=keychain)  # type: ignore[arg-type]
    assert not verdict.ok
    assert said in verdict.reason


def test_a_device_counts_by_its_owner_and_for_nothing_else(keys: Path, tmp_path: Path) -> None:
    keychain, machine = chain(keys, "vendor", "owner"), "ab" * 16
    issue.issue("mine", "device", tmp_path, None, signer(keys, "owner"), machine=machine)
    document = signer(tmp_path, "mine").sign_document(TEXT)
    assert verify_document(TEXT, document, keychain=keychain, role="device", machine=machine).key == "mine"
    for role in ("release", "owner"):
        assert not verify_document(TEXT, document, keychain=keychain, role=role, machine=machine).ok
    for role in ("device", "owner"):
        # A vendor issues releases' keys. One that issued an owner's or a device's would own every machine.
        forged = built(keys, "vendor", role=role)
        assert not verify_document(TEXT, forged, keychain=keychain, role=role, machine=machine).ok  # type: ignore[arg-type]
    assert not verify_document(TEXT, document, keychain=chain(keys, "vendor"), role="device", machine=machine).ok


def test_a_vendor_that_is_no_authority_issues_nothing(keys: Path) -> None:
    """A leaf's key can sign certificates; placed as a vendor by a careless hand it still does not count as one."""
    keychain = Keychain((Certificate("vendor", "first", der(keys, "first")),))
    assert not verify_document(TEXT, built(keys, "first"), keychain=keychain).ok
    with pytest.raises(ValueError, match="role release"):
        keychain_entry("vendor-first.der", der(keys, "first"))
    assert keychain_entry("vendor-x.der", der(keys, "vendor")).role == "vendor"


def test_another_spelling_of_a_revoked_certificate(keys: Path, tmp_path: Path) -> None:
    """The outer part is signed by nobody: unused bits of its last element could be counted differently."""
    vendor = signer(keys, "vendor")
    for number in range(40):
        files = issue.issue(f"leaf{number}", "release", tmp_path, None, vendor)
        original = files.der.read_bytes()
        if original[-1] & 1 == 0:
            break
    raw = x509.load_certificate(files.certificate).signature
    assert original.endswith(b"\0" + raw)
    other = original[: -len(raw) - 1] + b"\1" + raw
    respelt = cx509.load_der_x509_certificate(other)
    respelt.verify_directly_issued_by(vendor.certificate)  # the library takes it, so the rule has to be ours
    leaf = signer(tmp_path, f"leaf{number}")
    keychain = chain(keys, "vendor")
    assert verify_document(TEXT, serialize_signature(DocumentSignature(leaf.sign(TEXT), original)), keychain=keychain).ok
    verdict = verify_document(TEXT, serialize_signature(DocumentSignature(leaf.sign(TEXT), other)), keychain=keychain)
    assert not verdict.ok
    assert "not spelt" in verdict.reason


def test_a_keychain_directory_with_a_list(keys: Path, tmp_path: Path) -> None:
    (tmp_path / "vendor-v.der").write_bytes(der(keys, "vendor"))
    (tmp_path / "release-p.der").write_bytes(der(keys, "pinned"))
    assert len(Keychain.from_directory(tmp_path).of_role("release")) == 1
    listed = (Revocation(hashlib.sha256(der(keys, "pinned")).hexdigest(), "lost"),)
    (tmp_path / "revoked").write_bytes(serialize_revoked(listed))
    read = Keychain.from_directory(tmp_path)
    assert read.revoked == listed
    assert read.of_role("release") == ()
    (tmp_path / "revoked").write_bytes(b"freehold-revoked 1\nrubbish\n")
    (tmp_path / "device-d.der").write_bytes(der(keys, "device"))
    with pytest.raises(InputError) as caught:
        Keychain.from_directory(tmp_path)
    assert [fault.split(":")[0] for fault in caught.value.faults] == ["revoked", "device-d.der"]


class By:
    """Signs documents as the key ``name``."""

    def __init__(self, keys: Path, name: str) -> None:
        self.signer = signer(keys, name)

    def sign(self, data: bytes) -> bytes:
        return self.signer.sign_document(data)


@contextmanager
def web(lab: Lab) -> Iterator[str]:
    with Server(lab.web, ("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def offered(lab: Lab) -> fetch.Offer:
    with web(lab) as url:
        return fetch.offer(url, "stable", Keychain.from_directory(lab.sysroot.keychain), limits=fetch.Limits(again=0))


def test_rotation_and_revocation_on_a_machine(keys: Path, tmp_path: Path) -> None:
    """A machine that knows only the vendor follows from key to key, until its sealed tree says that one is revoked."""
    lab = Lab(tmp_path / "lab")
    keychain = lab.sysroot.keychain
    for old in keychain.iterdir():
        old.unlink()
    (keychain / "vendor-v.der").write_bytes(der(keys, "vendor"))
    for version, timestamp, name in (("2.0", 2000, "first"), ("3.0", 3000, "second")):
        lab.release(version, timestamp, signer=By(keys, name))
        found = offered(lab)
        assert (found.manifest.version, found.signer) == (version, name)
    lab.release("4.0", 4000, signer=By(keys, "foreign"))
    with pytest.raises(VerificationError, match="issued by no vendor"):
        offered(lab)
    # The next update brings the list, in the sealed tree.
    work = tmp_path / "list"
    work.mkdir()
    assert issue.revoke(der(keys, "first"), "left on a train", work)
    (keychain / "revoked").write_bytes((work / "revoked").read_bytes())
    lab.release("5.0", 5000, signer=By(keys, "first"))
    with pytest.raises(VerificationError, match=r"first is revoked: left on a train"):
        offered(lab)
    lab.release("6.0", 6000, signer=By(keys, "second"))
    assert offered(lab).manifest.version == "6.0"


def test_the_running_release_may_be_signed_by_a_leaf(keys: Path, tmp_path: Path) -> None:
    lab = Lab(tmp_path / "lab")
    directory = lab.sysroot.deployments / lab.running.id
    document = (directory / "manifest.json").read_bytes()
    (directory / "manifest.json.sig").write_bytes(signer(keys, "first").sign_document(document))
    with pytest.raises(VerificationError, match="not genuine"):
        stage.running_manifest(lab.sysroot)
    (lab.sysroot.keychain / "vendor-v.der").write_bytes(der(keys, "vendor"))
    assert stage.running_manifest(lab.sysroot).signer == "first"


def test_revoking(keys: Path, tmp_path: Path) -> None:
    assert issue.revoke(der(keys, "first"), "lost", tmp_path)
    before = (tmp_path / "revoked").read_bytes()
    assert not issue.revoke(der(keys, "first"), "another reason", tmp_path)
    assert (tmp_path / "revoked").read_bytes() == before
    assert issue.revoke(der(keys, "second"), "lost too", tmp_path)
    assert [entry.reason for entry in issue.read_revoked(tmp_path / "revoked")] == ["lost", "lost too"]
    for reason in ("", " x", "a\nb", "\x1b[0m", "x" * 201):
        with pytest.raises(InputError, match="reason"):
            issue.revoke(der(keys, "vendor"), reason, tmp_path)
    (tmp_path / "revoked").write_bytes(b"damaged")
    with pytest.raises(InputError, match="revoked: the list must begin"):
        issue.revoke(der(keys, "vendor"), "x", tmp_path)
    assert (tmp_path / "revoked").read_bytes() == b"damaged"


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return dataclasses.replace(load(ROOT / "recipes" / "server.toml"), keychain=(), revoked=())


def copy(keys: Path, to: Path, *names: str) -> KeyDirectory:
    for name in names:
        for suffix in (".key", ".crt", ".der"):
            (to / f"{name}{suffix}").write_bytes((keys / f"{name}{suffix}").read_bytes())
            (to / f"{name}{suffix}").chmod(0o600)
    return KeyDirectory(to)


def test_a_builders_keychain(keys: Path, tmp_path: Path, recipe: Recipe) -> None:
    directory = copy(keys, tmp_path, "vendor", "owner", "pinned", "first", "second", "device")
    made = with_keychain(recipe, directory, signer(keys, "first"))
    assert [one.filename for one in made.keychain] == ["owner-owner.der", "release-pinned.der", "vendor-vendor.der"]
    assert [name for name, _ in made.keychain_files()] == [one.filename for one in made.keychain]
    for path, suffix in ((tmp_path / "vendor", ".der"), (tmp_path / "owner", ".crt")):
        path.with_suffix(suffix).unlink()
    assert with_keychain(recipe, directory, signer(keys, "first")) == made, "either form of a certificate is enough"
    # Equal but for the signing key: rotation changes nothing on machines.
    assert with_keychain(recipe, directory, signer(keys, "second")) == made
    assert with_keychain(recipe, directory, signer(keys, "pinned")) == made
    with pytest.raises(InputError, match=r"would refuse the release: .*issued by no vendor"):
        with_keychain(recipe, directory, signer(keys, "foreign"))
    with pytest.raises(InputError, match="not the role 'release'"):
        with_keychain(recipe, directory, signer(keys, "owner"))
    issue.revoke(der(keys, "first"), "lost", tmp_path)
    issue.revoke(der(keys, "pinned"), "old", tmp_path)
    for name in ("first", "pinned"):
        with pytest.raises(InputError, match="is revoked: "):
            with_keychain(recipe, directory, signer(keys, name))
    later = with_keychain(recipe, directory, signer(keys, "second"))
    assert [name for name, _ in later.keychain_files()] == ["owner-owner.der", "revoked", "vendor-vendor.der"]
    assert later.id != made.id


def test_a_command_asks_once_for_each_key(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(prompt: str) -> str:
        asked.append(prompt)
        return "secret"

    monkeypatch.setattr("getpass.getpass", answer)
    ask.cache_clear()
    assert [ask("passphrase of a: "), ask("passphrase of b: "), ask("passphrase of a: ")] == [b"secret"] * 3
    assert asked == ["passphrase of a: ", "passphrase of b: "]
    ask.cache_clear()


def test_a_recipes_keychain(keys: Path, tmp_path: Path, recipe: Recipe) -> None:
    directory = copy(keys, tmp_path, "pinned")
    own = dataclasses.replace(recipe, keychain=(Member("vendor", "v", der(keys, "vendor")),))
    assert with_keychain(own, directory, signer(keys, "first")).keychain == own.keychain
    with pytest.raises(InputError, match="would refuse the release"):
        with_keychain(own, directory, signer(keys, "pinned"))
    listed = (Revocation(hashlib.sha256(der(keys, "second")).hexdigest(), "by the recipe"),)
    with pytest.raises(InputError, match="by the recipe"):
        with_keychain(dataclasses.replace(own, revoked=listed), directory, signer(keys, "second"))
    wrong = dataclasses.replace(recipe, keychain=(*own.keychain, Member("vendor", "x", der(keys, "first"))))
    with pytest.raises(InputError) as caught:
        with_keychain(wrong, directory, signer(keys, "first"))
    assert caught.value.faults == ("vendor-x.der: is a certificate of role release",)


def test_a_recipe_names_vendors_and_a_list(keys: Path, tmp_path: Path) -> None:
    (tmp_path / "v.crt").write_bytes((keys / "vendor.crt").read_bytes())
    issue.revoke(der(keys, "first"), "lost", tmp_path)
    (tmp_path / "base.toml").write_text('name = "a"\n[keychain]\nvendor = ["v.crt"]\nrevoked = "revoked"\n')
    found = load(tmp_path / "base.toml")
    assert [name for name, _ in found.keychain_files()] == ["revoked", "vendor-v.der"]
    (tmp_path / "more").mkdir()
    issue.revoke(der(keys, "second"), "lost too", tmp_path / "more")
    (tmp_path / "more/a.toml").write_text('inherit = "../base.toml"\nname = "a"\n[keychain]\nrevoked = "revoked"\n')
    assert [entry.reason for entry in load(tmp_path / "more/a.toml").revoked] == ["lost", "lost too"]
    (tmp_path / "revoked").write_text("nonsense\n")
    with pytest.raises(InputError) as caught:
        load(tmp_path / "base.toml")
    assert "keychain.revoked: 'revoked': the list must begin" in caught.value.faults[0]


Verb = Callable[..., tuple[int, dict[str, object], str]]


@pytest.fixture
def verb(capsys: pytest.CaptureFixture[str]) -> Verb:
    """``freehold key … --json``: status, data, complaint."""

    def run(*arguments: str | Path) -> tuple[int, dict[str, object], str]:
        status = main(["key", *map(str, arguments), "--json"])
        captured = capsys.readouterr()
        return status, json.loads(captured.out) if captured.out else {}, captured.err

    return run


def test_the_verbs_from_ca_to_revocation(verb: Verb, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ca, build = tmp_path / "ca", tmp_path / "build"
    (tmp_path / "pass").write_text("secret\n")
    status, data, _ = verb("new", "acme", "--role", "vendor", "--out", ca, "--passphrase-file", tmp_path / "pass")
    assert (status, data["schema"], data["role"], data["authority"], data["encrypted"]) == (
        0, "freehold-key-new-1", "vendor", True, True,
    )  # fmt: skip
    uri = f"file:{ca}/acme.key?passphrase-file={tmp_path}/pass"
    status, data, _ = verb("issue", "r1", "--role", "release", "--ca", uri, "--out", build, "--no-passphrase", "--days", "30")
    assert (status, data["schema"], data["role"], data["self_signed"]) == (0, "freehold-key-issue-1", "release", False)
    # A key that stays where it is: request there, answer here.
    issue.create("r2", "release", build, None)
    status, data, _ = verb("request", "r2", "--key", f"file:{build}/r2.key", "--out", build)
    assert (status, data["request"]) == (0, str(build / "r2.csr"))
    status, data, _ = verb("issue", "r2", "--role", "release", "--ca", uri, "--request", build / "r2.csr", "--out", ca)
    assert (status, data["key"], data["encrypted"]) == (0, None, None)
    assert x509.load_certificate(ca / "r2.crt").public_key() == x509.load_certificate(build / "r2.crt").public_key()
    (build / "r2.crt").write_bytes((ca / "r2.crt").read_bytes())
    vendor = Keychain((Certificate("vendor", "acme", (ca / "acme.der").read_bytes()),))
    for name in ("r1", "r2"):
        assert verify_document(TEXT, signer(build, name).sign_document(TEXT), keychain=vendor).key == name
    status, data, _ = verb("revoke", build / "r1.crt", "--reason", "laptop stolen", "--keys", build)
    assert (status, data["changed"], data["revoked"]) == (0, True, "laptop stolen")
    assert verb("revoke", build / "r1.der", "--reason", "again", "--keys", build)[1]["changed"] is False
    listed = {str(row["name"]): row["revoked"] for row in verb("list", build)[1]["keys"]}  # type: ignore[attr-defined]
    assert listed == {"r1": "laptop stolen", "r2": None}
    assert verb("show", build / "r1.crt")[1]["revoked"] == "laptop stolen"
    assert main(["key", "show", str(build / "r2.crt")]) == 0
    text = capsys.readouterr().out
    expected = ("sign releases", "OU=freehold-vendor", "not at dates, purposes", "revoked      no", "also believes certificates")
    for said in expected:
        assert said in text
    assert main(["key", "list", str(build)]) == 0
    assert "REVOKED: laptop stolen" in capsys.readouterr().out


def expired(keys: Path, directory: Path, name: str, *, future: bool = False) -> str:
    """A vendor whose certificate is out of date; its key's URI."""
    now = datetime.now(UTC)
    start = now + timedelta(days=5) if future else now - timedelta(days=30)
    made = (
        cx509.CertificateBuilder(
            *(certificate(keys, "vendor").subject,) * 2, signer(keys, "vendor").private_key.public_key(), 9, start,
            start + timedelta(days=20),
        )
        .add_extension(cx509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(signer(keys, "vendor").private_key, hashes.SHA256())
    )  # fmt: skip
    (directory / f"{name}.key").write_bytes((keys / "vendor.key").read_bytes())
    (directory / f"{name}.key").chmod(0o600)
    (directory / f"{name}.crt").write_bytes(made.public_bytes(Encoding.PEM))
    return f"file:{directory}/{name}.key"


def test_what_key_issue_refuses(keys: Path, tmp_path: Path, verb: Verb) -> None:
    """Each with one line and what to do; the same with good input works."""
    out = tmp_path / "out"
    good = f"file:{keys}/vendor.key"
    issue.create("locked", "vendor", tmp_path, b"secret")
    (tmp_path / "wrong").write_text("wrong\n")
    (tmp_path / "right").write_text("secret\n")
    issue.request(signer(keys, "first").private_key, "good", tmp_path)
    request = (tmp_path / "good.csr").read_bytes()
    body = bytearray(cx509.load_pem_x509_csr(request).public_bytes(Encoding.DER))
    body[-1] ^= 1
    broken = cx509.load_der_x509_csr(bytes(body)).public_bytes(Encoding.PEM)
    (tmp_path / "broken.csr").write_bytes(broken)
    (tmp_path / "junk.csr").write_text("junk")
    subject = cx509.Name([cx509.NameAttribute(cx509.NameOID.COMMON_NAME, "x")])
    builder = cx509.CertificateSigningRequestBuilder().subject_name(subject)
    weak = rsa.generate_private_key(65537, 1024)  # noqa: S505 (to be refused)
    elliptic = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "weak.csr").write_bytes(builder.sign(weak, hashes.SHA256()).public_bytes(Encoding.PEM))
    (tmp_path / "ec.csr").write_bytes(builder.sign(elliptic, hashes.SHA256()).public_bytes(Encoding.PEM))
    (tmp_path / "ec.key").write_bytes(elliptic.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "ec.key").chmod(0o600)

    def asked(ca: str, *more: str | Path, role: str = "release", name: str = "x") -> tuple[int, str]:
        how = [] if "--request" in more else ["--no-passphrase"]
        status, _, complaint = verb("issue", name, "--role", role, "--ca", ca, "--out", out, *how, *more)
        return status, complaint

    locked = f"file:{tmp_path}/locked.key?passphrase-file={tmp_path}"
    refused = {
        "wrong passphrase": (asked(f"{locked}/wrong"), "that is not the passphrase of"),
        "expired": (asked(expired(keys, tmp_path, "old")), "expired on"),
        "not yet": (asked(expired(keys, tmp_path, "new", future=True)), "not valid before"),
        "a leaf": (asked(f"file:{keys}/first.key"), "is no certificate authority"),
        "wrong CA": (asked(f"file:{keys}/owner.key"), "issued by a key of role vendor, not by one of role owner"),
        "wrong CA for a device": (asked(good, role="device"), "issued by a key of role owner"),
        "EC key": (asked(f"file:{tmp_path}/ec.key"), "not an RSA key of 2048"),
        "weak request": (asked(good, "--request", tmp_path / "weak.csr"), "not an RSA key of 2048"),
        "EC request": (asked(good, "--request", tmp_path / "ec.csr"), "not an RSA key of 2048"),
        "broken request": (asked(good, "--request", tmp_path / "broken.csr"), "not signed by the key that it names"),
        "junk request": (asked(good, "--request", tmp_path / "junk.csr"), "not a certificate request"),
        "no request": (asked(good, "--request", tmp_path / "none.csr"), "No such file"),
        "no days": (asked(good, "--days", "0"), "1 to 36525 days"),
        "bad name": (asked(good, name="../x"), "is no name for a key"),
        "no CA": (asked("file:/nowhere.key"), "No such file"),
        "not a URI": (asked("vendor.key"), "known schemes: file:, pkcs11:, tpm2:"),
    }
    for name, ((status, complaint), said) in refused.items():
        assert status == 2, (name, complaint)
        lines = complaint.strip().splitlines()
        assert said in lines[0], (name, complaint)
        assert len(lines) <= 2, (name, complaint)
    assert not any(out.iterdir()) if out.exists() else True
    assert asked(f"{locked}/right") == (0, "")
    assert asked(good, "--request", tmp_path / "good.csr", name="y") == (0, "")
    assert asked(f"file:{keys}/owner.key", role="device", name="z") == (0, "")
    again = asked(good)
    assert again[0] == 2
    assert "keys are never overwritten" in again[1]


def test_signing_refuses_a_certificate_out_of_date(keys: Path, tmp_path: Path) -> None:
    assert signer(keys, "vendor").sign_document(TEXT)
    for future, said in ((False, "expired on"), (True, "not valid before")):
        old = x509.load_signer(expired(keys, tmp_path, f"k{future}", future=future), unasked)
        with pytest.raises(InputError, match=said) as caught:
            old.sign_document(TEXT)
        assert "freehold key issue" in (caught.value.hint or "")


def test_a_certificate_of_another_key(keys: Path, tmp_path: Path) -> None:
    copy(keys, tmp_path, "first")
    assert signer(tmp_path, "first").role == "release"
    (tmp_path / "first.crt").write_bytes((keys / "second.crt").read_bytes())
    with pytest.raises(InputError, match="is not the certificate of"):
        signer(tmp_path, "first")
