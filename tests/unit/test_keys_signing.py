# SPDX-License-Identifier: Apache-2.0
"""Keys: made, opened, refused; signatures and verdicts; the verbs."""

from __future__ import annotations

import argparse
import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from freehold.errors import InputError
from freehold.keys import issue, verbs, x509
from freehold.keys.verify import Certificate, Keychain, verify
from freehold.monitor import NullMonitor


def unasked(prompt: str) -> bytes:
    raise AssertionError(prompt)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("keys")
    issue.create("me", "owner", directory, None)
    issue.create("vendor", "release", directory, b"secret")
    return directory


@pytest.fixture(scope="module")
def chain(keys: Path) -> Keychain:
    return Keychain((
        Certificate("owner", "me", (keys / "me.der").read_bytes()),
        Certificate("release", "vendor", (keys / "vendor.der").read_bytes()),
    ))  # fmt: skip


def test_a_new_key(keys: Path) -> None:
    assert stat.S_IMODE((keys / "me.key").stat().st_mode) == 0o600
    signer = x509.load_signer(f"file:{keys}/me.key", unasked)
    assert signer.role == "owner"
    assert signer.certificate_der() == (keys / "me.der").read_bytes()
    assert signer.certificate_pem() == (keys / "me.crt").read_bytes()
    assert b"ENCRYPTED" in (keys / "vendor.key").read_bytes()


def test_never_overwritten(keys: Path, tmp_path: Path) -> None:
    before = (keys / "me.key").read_bytes()
    with pytest.raises(InputError, match="exists"):
        issue.create("me", "owner", keys, None)
    assert (keys / "me.key").read_bytes() == before
    (tmp_path / "a.crt").write_text("x")
    with pytest.raises(InputError, match="exists"):
        issue.create("a", "owner", tmp_path, None)
    assert [path.name for path in tmp_path.iterdir()] == ["a.crt"]


@pytest.mark.parametrize("name", ["", "../x", "-x", "a/b", "x" * 64, "a\n"])
def test_bad_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError):
        issue.create(name, "owner", tmp_path, None)


def test_passphrases(keys: Path, tmp_path: Path) -> None:
    uri = f"file:{keys}/vendor.key"
    assert x509.load_signer(uri, lambda _: b"secret").role == "release"
    with pytest.raises(InputError, match="not the passphrase"):
        x509.load_signer(uri, lambda _: b"wrong")
    (tmp_path / "pass").write_text("secret\n")
    assert x509.load_signer(f"{uri}?passphrase-file={tmp_path}/pass", unasked).role == "release"
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(InputError):
        x509.load_signer(f"{uri}?passphrase-file={tmp_path}/empty", unasked)


@pytest.mark.parametrize(("uri", "said"), [("tpm9:x", "file:"), ("me.key", "file:"), ("file:/no/such.key", "No such")])
def test_bad_uris(uri: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        x509.load_signer(uri, unasked)


def test_keys_that_are_refused(keys: Path, tmp_path: Path) -> None:
    for name, source in (("open", "me"), ("other", "me"), ("ec", "me"), ("junk", "me")):
        (tmp_path / f"{name}.key").write_bytes((keys / f"{source}.key").read_bytes())
        (tmp_path / f"{name}.key").chmod(0o600)
        (tmp_path / f"{name}.crt").write_bytes((keys / f"{source}.crt").read_bytes())
    (tmp_path / "open.key").chmod(0o640)
    (tmp_path / "other.crt").write_bytes((keys / "vendor.crt").read_bytes())
    elliptic = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "ec.key").write_bytes(elliptic.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "junk.key").write_bytes(b"junk")
    said = {"open": "by others", "other": "not the certificate", "ec": "not an RSA key", "junk": "not a private key"}
    for name, message in said.items():
        with pytest.raises(InputError, match=message):
            x509.load_signer(f"file:{tmp_path}/{name}.key", unasked)


def test_private_copy(keys: Path) -> None:
    signer = x509.load_signer(f"file:{keys}/vendor.key", lambda _: b"secret")
    with signer.lend() as lent:
        path = lent.path
        assert path is not None
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert load_pem_private_key(path.read_bytes(), None).public_key() == signer.certificate.public_key()
    assert not os.path.lexists(path.parent)


def test_verdicts(keys: Path, chain: Keychain) -> None:
    signature = x509.load_signer(f"file:{keys}/me.key", unasked).sign(b"text")
    assert verify(b"text", signature, keychain=chain, role="owner").key == "me"
    refused = [
        verify(b"text", signature, keychain=chain, role="release"),
        verify(b"text", signature, keychain=Keychain(), role="owner"),
        verify(b"texT", signature, keychain=chain, role="owner"),
        verify(b"text", bytes([signature[0] ^ 1]) + signature[1:], keychain=chain, role="owner"),
        verify(b"text", signature[:-1], keychain=chain, role="owner"),
        verify(b"text", signature[:1], keychain=chain, role="owner"),
        verify(b"text", b"", keychain=chain, role="owner"),
        verify(b"text", signature * 3, keychain=chain, role="owner"),
        verify(b"text", signature, keychain=Keychain((Certificate("owner", "x", b"junk"),)), role="owner"),
    ]
    assert [(verdict.ok, verdict.key) for verdict in refused] == [(False, "")] * len(refused)
    assert all(verdict.reason for verdict in refused)


def test_keychain_directory(keys: Path, chain: Keychain, tmp_path: Path) -> None:
    for entry in chain.certificates:
        (tmp_path / entry.file_name).write_bytes(entry.der)
    (tmp_path / "README").write_text("not a certificate")
    assert Keychain.from_directory(tmp_path) == Keychain(tuple(sorted(chain.certificates, key=lambda e: e.file_name)))
    (tmp_path / "release-me.der").write_bytes((keys / "me.der").read_bytes())
    (tmp_path / "owner-junk.der").write_bytes(b"junk")
    (tmp_path / "stray.der").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        Keychain.from_directory(tmp_path)
    assert len(caught.value.faults) == 3
    with pytest.raises(InputError):
        Keychain.from_directory(tmp_path / "missing")


def test_built_in_signature(keys: Path) -> None:
    signer = x509.load_signer(f"file:{keys}/me.key", unasked)
    plain, embedded = signer.sign_verity(bytes(32)), signer.sign_verity(bytes(32), embed_certificate=True)
    certificate = signer.certificate_der()
    assert certificate not in plain
    assert certificate in embedded
    assert plain == signer.sign_verity(bytes(32))


def test_verbs(tmp_path: Path) -> None:
    parsers = {}
    for name, _, add, _ in verbs.VERBS:
        parsers[name] = argparse.ArgumentParser()
        add(parsers[name])
    arguments = parsers["new"].parse_args(["me", "--role", "owner", "--out", str(tmp_path), "--no-passphrase"])
    made = verbs.new(arguments, NullMonitor())
    assert made.data["role"] == "owner"
    assert made.data["encrypted"] is False
    listed = verbs.list_(parsers["list"].parse_args([str(tmp_path)]), NullMonitor())
    assert "me  owner  until" in listed.text
    shown = verbs.show(parsers["show"].parse_args([str(tmp_path / "me.der")]), NullMonitor())
    assert shown.data["fingerprint"] == made.data["fingerprint"]
    assert "whether it is locked" in shown.text
