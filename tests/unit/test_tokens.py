# SPDX-License-Identifier: Apache-2.0
"""Keys in a PKCS#11 token (SoftHSM 2) and in a TPM (swtpm), by the real programs of the tools tree."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.hashes import SHA256, SHA512
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from freehold.build import token_uri, tokens, uki
from freehold.build.store import cache_directory
from freehold.build.tools import Tools, ensure
from freehold.cli import main
from freehold.errors import FreeholdError, InputError
from freehold.keys import dbx, issue, pe, x509
from freehold.keys.verify import Certificate, Keychain, verify, verify_document
from freehold.monitor import NullMonitor
from freehold.run import Argument, start

pytestmark = pytest.mark.build
MONITOR = NullMonitor()
LOADER = Path("/usr/lib/systemd/boot/efi/systemd-bootx64.efi")
MODULE = "module-path=/usr/lib/softhsm/libsofthsm2.so"
#: Passes every call on to SoftHSM, and writes it down.
SPY = "module-path=/usr/lib/x86_64-linux-gnu/pkcs11-spy.so"
TEXT = b"a document"
#: Where the TPM keeps an RSA key, and one of another kind.
HANDLE, CURVE = "0x81000005", "0x81000006"


@pytest.fixture(scope="module")
def tree() -> Tools:
    return ensure(cache_directory(), MONITOR)


def unasked(prompt: str) -> bytes:
    raise AssertionError(prompt)


@pytest.fixture(scope="module")
def token(tree: Tools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A SoftHSM with the token ``test`` (PIN 1234), which holds an RSA key ``key`` and an EC key ``ec``."""
    work = tmp_path_factory.mktemp("token")
    (work / "tokens").mkdir()
    (work / "softhsm.conf").write_text(f"directories.tokendir = {work}/tokens\nobjectstore.backend = file\n")
    (work / "pin").write_text("1234\n")
    (work / "wrong").write_text("9999\n")
    issue.create("seed", "release", work, None)
    inside = (
        "softhsm2-util --init-token --free --label test --pin 1234 --so-pin 4321 && "
        "softhsm2-util --import seed.key --token test --label key --id 01 --pin 1234 && "
        "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out ec.key && "
        "softhsm2-util --import ec.key --token test --label ec --id 02 --pin 1234"
    )
    tree.run(["sh", "-c", inside], binds=[work], cwd=work, env={"SOFTHSM2_CONF": str(work / "softhsm.conf")})
    before = os.environ.get("SOFTHSM2_CONF")
    os.environ["SOFTHSM2_CONF"] = str(work / "softhsm.conf")
    yield work
    if before is None:
        del os.environ["SOFTHSM2_CONF"]
    else:
        os.environ["SOFTHSM2_CONF"] = before


def uri(work: Path, name: str = "object=key", pin: str = "pin", certificate: str = "", module: str = MODULE) -> str:
    tail = f"&certificate={certificate}" if certificate else ""
    return f"pkcs11:token=test;{name}?{module}&pin-source=file:{work}/{pin}{tail}"


def test_a_vendor_in_a_token_and_a_release_key_in_another(token: Path, tree: Tools, tmp_path: Path) -> None:
    """The whole chain without a private key on disk: CA in a token, request and release key in a token, UKI signed."""
    schemes = tokens.schemes(MONITOR)
    opened = x509.load_key(uri(token), unasked, schemes)
    issue.create_for(opened.key, "ca", "vendor", tmp_path)
    authority = x509.load_signer(uri(token, certificate=f"{tmp_path}/ca.crt"), unasked, schemes)
    made = x509.load_certificate(issue.issue("plain", "release", tmp_path, None, authority).certificate)
    made.verify_directly_issued_by(authority.certificate)
    # By id instead of by name, and the other way round: a file issues for a token.
    issue.request(x509.load_key(uri(token, "id=%01"), unasked, schemes).key, "r", tmp_path)
    issue.create("filed", "vendor", tmp_path, None)
    filed = x509.load_signer(f"file:{tmp_path}/filed.key", unasked)
    issue.issue_for(issue.requested_key(tmp_path / "r.csr"), "r", "release", tmp_path, filed)
    signer = x509.load_signer(uri(token, certificate=f"{tmp_path}/r.crt"), unasked, schemes)
    keychain = Keychain((Certificate("vendor", "filed", filed.certificate_der()),))
    assert verify_document(TEXT, signer.sign_document(TEXT), keychain=keychain).key == "r"
    sign_and_check_efi(tree, signer, tmp_path)
    with pytest.raises(FreeholdError, match="does not leave"):
        signer.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(FreeholdError, match="SHA-256 only"):
        signer.private_key.sign(TEXT, padding.PKCS1v15(), SHA512())


def sign_and_check_efi(tree: Tools, signer: x509.Signer, work: Path) -> None:
    """sbsign signs with the key; sbverify, which is not ours, agrees."""
    source = work / "unsigned.efi"
    source.write_bytes((tree.root / LOADER.relative_to("/")).read_bytes())
    uki.sign_efi(tree, source, work / "signed.efi", signer)
    (work / "signer.pem").write_bytes(signer.certificate_pem())
    issue.create("other", "release", work, None)
    assert tree.run(["sbverify", "--cert", work / "signer.pem", work / "signed.efi"], ro_binds=[work], check=False).status == 0
    assert tree.run(["sbverify", "--cert", work / "other.crt", work / "signed.efi"], ro_binds=[work], check=False).status != 0


def test_the_verbs_with_a_token(token: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ("--out", str(tmp_path))
    assert main(["key", "new", "ca", "--role", "vendor", "--key", uri(token), *place, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["key"], made["role"], made["authority"]) == (None, "vendor", True)
    ca = uri(token, certificate=f"{tmp_path}/ca.crt")
    assert main(["key", "issue", "leaf", "--role", "release", "--ca", ca, "--no-passphrase", *place]) == 0
    assert main(["key", "request", "r", "--key", uri(token), *place]) == 0
    capsys.readouterr()
    refused = ["key", "issue", "x", "--role", "release", "--ca", uri(token, pin="wrong", certificate=f"{tmp_path}/ca.crt")]
    assert main([*refused, "--no-passphrase", *place]) == 2
    assert capsys.readouterr().err.splitlines()[0] == "freehold: the key 'key' in the token 'test': the PIN was refused"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ca.crt", "ca.der", "leaf.crt", "leaf.der", "leaf.key", "r.csr",
    ]  # fmt: skip


def test_a_wrong_answer_of_a_token_is_not_used(token: Path, tree: Tools, tmp_path: Path) -> None:
    lend = x509.load_key(uri(token), unasked, tokens.schemes(MONITOR)).lend
    wrong = x509.load_certificate(issue.create("other", "release", tmp_path, None).certificate)
    right = x509.load_certificate(token / "seed.crt")
    keys = [tokens.TokenKey(tree, lend, x509.rsa_public(one.public_key(), "it"), "it") for one in (right, wrong)]
    assert len(keys[0].sign(TEXT, padding.PKCS1v15(), SHA256())) == 256
    with pytest.raises(FreeholdError, match="not its signature"):
        keys[1].sign(TEXT, padding.PKCS1v15(), SHA256())


def test_an_intent_and_a_file_by_a_token(token: Path, tmp_path: Path) -> None:
    schemes = tokens.schemes(MONITOR)
    issue.create_for(x509.load_key(uri(token), unasked, schemes).key, "me", "owner", tmp_path)
    signer = x509.load_signer(uri(token, certificate=f"{tmp_path}/me.crt"), unasked, schemes)
    keychain = Keychain((Certificate("owner", "me", signer.certificate_der()),))
    assert verify(TEXT, signer.sign(TEXT), keychain=keychain, role="owner").ok
    assert signer.certificate_der() in signer.sign_verity(bytes(32), embed_certificate=True)


def test_a_file_key_signs_boot_images_as_before(tree: Tools, tmp_path: Path) -> None:
    vendor = issue.create("v", "vendor", tmp_path, None)
    issue.issue("leaf", "release", tmp_path, None, x509.load_signer(f"file:{vendor.key}", unasked))
    sign_and_check_efi(tree, x509.load_signer(f"file:{tmp_path}/leaf.key", unasked), tmp_path)


def test_a_pin_is_asked_for_and_tried_once(
    token: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: Tools
) -> None:
    schemes = tokens.schemes(MONITOR)
    bare = f"pkcs11:token=test;object=key?{MODULE}"
    prompts: list[str] = []

    def answer(prompt: str) -> bytes:
        prompts.append(prompt)
        return b"1234"

    assert x509.load_key(bare, answer, schemes).key.key_size == 2048
    assert prompts == ["PIN of the token test: "]
    with pytest.raises(InputError, match="the PIN was refused"):
        x509.load_key(bare, lambda _: b"9999", schemes)
    # How often, the spy tells.
    monkeypatch.setattr(
        Tools, "run", spying(Tools.run, {"PKCS11SPY": MODULE.partition("=")[2], "PKCS11SPY_OUTPUT": str(token / "log")})
    )
    for pin, expected in (("pin", (1, 0)), ("wrong", (1, 1))):
        (token / "log").write_text("")
        monkeypatch.setattr(tokens, "_softhsm", lambda: ({"SOFTHSM2_CONF": os.environ["SOFTHSM2_CONF"]}, (token,)))
        try:
            x509.load_key(uri(token, pin=pin, module=SPY), unasked, schemes)
        except InputError as error:
            assert "refused" in error.message
        log = (token / "log").read_text()
        assert (log.count("C_Login\n"), log.count("CKR_PIN_INCORRECT")) == expected


def spying(run: object, more: dict[str, str]) -> object:
    def wrapped(self: Tools, command: object, *, env: dict[str, str] | None = None, **rest: object) -> object:
        return run(self, command, env={**(env or {}), **more}, **rest)  # type: ignore[operator]

    return wrapped


@pytest.mark.parametrize(
    ("name", "said"),
    [("object=none", "cannot be opened"), ("object=ec", "not an RSA key"), ("id=%07", "cannot be opened")],
)
def test_keys_of_a_token_that_are_refused(token: Path, name: str, said: str) -> None:
    schemes = tokens.schemes(MONITOR)
    assert x509.load_key(uri(token), unasked, schemes).key.key_size == 2048
    with pytest.raises(InputError, match=said):
        x509.load_key(uri(token, name), unasked, schemes)


def test_uris_without_what_they_need(token: Path, tmp_path: Path) -> None:
    schemes = tokens.schemes(MONITOR)
    with pytest.raises(InputError, match="does not say where its certificate is"):
        x509.load_signer(uri(token), unasked, schemes)
    issue.create("other", "release", tmp_path, None)
    with pytest.raises(InputError, match="is not the certificate of"):
        x509.load_signer(uri(token, certificate=f"{tmp_path}/other.crt"), unasked, schemes)
    assert x509.load_signer(uri(token, certificate=f"{token}/seed.crt"), unasked, schemes).role == "release"
    with pytest.raises(InputError, match="there is no module"):
        x509.load_key(uri(token, module="module-path=/nowhere.so"), unasked, schemes)


@pytest.fixture(scope="module")
def tpm(tree: Tools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A software TPM, ``release.tss``, a key that it alone can use, and one at :data:`HANDLE`; made as docs/keys.md says."""
    # A socket's path has at most 107 bytes.
    work = tmp_path_factory.mktemp("tpm")
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
        tcti = f"swtpm:path={work}/sock"
        (work / "tpm.cnf").write_text(token_uri.tpm2_configuration())
        making = (
            f"for i in $(seq 100); do test -S {work}/sock && break; sleep 0.1; done; "
            "openssl genpkey -propquery '?provider=tpm2' -algorithm RSA -pkeyopt bits:2048 -out release.tss"
        )
        settings = {"TPM2OPENSSL_TCTI": tcti, "OPENSSL_CONF": str(work / "tpm.cnf")}
        tree.run(["sh", "-c", making], binds=[work], cwd=work, env=settings)
        (work / "release.tss").chmod(0o600)
        # A simulator has no resource manager: what a program leaves in the TPM's memory has to be taken out.
        keeping = (
            "tpm2_createprimary -Q -C o -c primary && tpm2_flushcontext -t && "
            "tpm2_create -Q -C primary -G rsa2048 -a 'fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign' "
            f"-u public -r wrapped -c key && tpm2_flushcontext -t && tpm2_evictcontrol -Q -C o -c key {HANDLE} && "
            "tpm2_flushcontext -t && tpm2_createprimary -Q -C o -G ecc256:null:null -a "
            "'fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign' -c curve && tpm2_flushcontext -t && "
            f"tpm2_evictcontrol -Q -C o -c curve {CURVE} && tpm2_flushcontext -t"
        )
        tree.run(["sh", "-c", keeping], binds=[work], cwd=work, env={"TPM2TOOLS_TCTI": tcti})
        os.environ["TPM2OPENSSL_TCTI"] = tcti
        yield work
    finally:
        os.environ.pop("TPM2OPENSSL_TCTI", None)
        process.terminate()
        process.wait()


def test_a_release_key_in_a_tpm(tpm: Path, tree: Tools, tmp_path: Path) -> None:
    schemes = tokens.schemes(MONITOR)
    assert b"TSS2 PRIVATE KEY" in (tpm / "release.tss").read_bytes()
    issue.create("v", "vendor", tmp_path, None)
    vendor = x509.load_signer(f"file:{tmp_path}/v.key", unasked)
    issue.request(x509.load_key(f"tpm2:{tpm}/release.tss", unasked, schemes).key, "release", tmp_path)
    issue.issue_for(issue.requested_key(tmp_path / "release.csr"), "release", "release", tpm, vendor)
    signer = x509.load_signer(f"tpm2:{tpm}/release.tss", unasked, schemes)
    keychain = Keychain((Certificate("vendor", "v", vendor.certificate_der()),))
    assert verify_document(TEXT, signer.sign_document(TEXT), keychain=keychain).key == "release"
    sign_and_check_efi(tree, signer, tmp_path)


def test_a_key_at_a_handle_signs_everything(tpm: Path, tree: Tools, tmp_path: Path) -> None:
    """CA, request, document, variable update and boot image: all by a key that no file stands for."""
    schemes = tokens.schemes(MONITOR)
    opened = x509.load_key(f"tpm2:{HANDLE}", unasked, schemes)
    issue.create_for(opened.key, "v", "vendor", tmp_path)
    uri = f"tpm2:{HANDLE}?certificate={tmp_path}/v.crt"
    vendor = x509.load_signer(uri, unasked, schemes)
    made = x509.load_certificate(issue.issue("leaf", "release", tmp_path, None, vendor).certificate)
    made.verify_directly_issued_by(vendor.certificate)
    issue.request(opened.key, "r", tmp_path)
    assert issue.requested_key(tmp_path / "r.csr").public_numbers() == opened.key.public_key().public_numbers()
    issue.create_for(opened.key, "r", "release", tmp_path)
    signer = x509.load_signer(f"tpm2:{HANDLE}?certificate={tmp_path}/r.crt", unasked, schemes)
    keychain = Keychain((Certificate("release", "r", signer.certificate_der()),))
    assert verify_document(TEXT, signer.sign_document(TEXT), keychain=keychain).ok
    assert signer.certificate_der() in signer.sign_pkcs7(TEXT)
    sign_and_check_efi(tree, signer, tmp_path)
    with signer.lend() as lent:
        assert (lent.path, lent.name) == (None, f"handle:{HANDLE}")
        assert b"PRIVATE" not in b"".join(path.read_bytes() for path in lent.directory.iterdir())


@pytest.mark.parametrize("more", [0, 3])
def test_a_signature_of_ours_is_as_sbsigns(tree: Tools, tmp_path: Path, more: int) -> None:
    """For keys that sbsign cannot read; of a program whose end is no multiple of eight, too."""
    vendor = issue.create("v", "vendor", tmp_path, None)
    issue.issue("leaf", "release", tmp_path, None, x509.load_signer(f"file:{vendor.key}", unasked))
    leaf = x509.load_signer(f"file:{tmp_path}/leaf.key", unasked)
    (tmp_path / "unsigned").write_bytes((tree.root / LOADER.relative_to("/")).read_bytes() + bytes(range(more)))
    uki.sign_efi(tree, tmp_path / "unsigned", tmp_path / "theirs", leaf)
    (tmp_path / "ours").write_bytes(uki._signed((tmp_path / "unsigned").read_bytes(), leaf))
    for name in ("theirs", "ours"):
        check: list[Argument] = ["sbverify", "--cert", tmp_path / "leaf.crt", tmp_path / name]
        assert tree.run(check, ro_binds=[tmp_path], check=False).status == 0, name
    # What is before the signature is the same, but for the check sum, which nothing covers.
    sizes = [pe.parse((tmp_path / name).read_bytes()).certificates[0] for name in ("theirs", "ours")]
    assert sizes[0] == sizes[1]


def test_the_verbs_with_a_handle(tpm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = f"tpm2:{HANDLE}"
    assert main(["key", "new", "me", "--role", "owner", "--key", uri, "--out", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["key"] is None
    ca = f"{uri}?certificate={tmp_path}/me.crt"
    # There is no file beside a handle where the certificate could be.
    arguments = ["key", "issue", "d", "--role", "device", "--no-passphrase", "--out", str(tmp_path)]
    assert main([*arguments, "--ca", uri]) == 2
    assert "does not say where its certificate is" in capsys.readouterr().err
    assert main([*arguments, "--ca", ca]) == 0
    assert main(["key", "show", str(tmp_path / "d.crt")]) == 0
    assert "issued by    CN=me" in capsys.readouterr().out
    (tmp_path / "none").mkdir()
    arguments = ["key", "dbx", str(tmp_path / "d.crt"), "--key", ca, "--keys", str(tmp_path / "none")]
    assert main([*arguments, "-o", str(tmp_path / "dbx.auth")]) == 0
    update = dbx.verify((tmp_path / "dbx.auth").read_bytes(), [(tmp_path / "me.der").read_bytes()])
    assert update.entries[0].data == (tmp_path / "d.der").read_bytes()


@pytest.mark.parametrize(
    ("handle", "said"),
    [("0x81000009", "key at 0x81000009 cannot be opened"), (CURVE, "is not an RSA key"), ("0x80000000", "cannot be used")],
)
def test_handles_without_a_key_of_ours(tpm: Path, handle: str, said: str) -> None:
    schemes = tokens.schemes(MONITOR)
    assert x509.load_key(f"tpm2:{HANDLE}", unasked, schemes).key.key_size == 2048
    with pytest.raises(InputError, match=said):
        x509.load_key(f"tpm2:{handle}", unasked, schemes)


def test_files_that_are_no_tpm_keys(tpm: Path, tmp_path: Path) -> None:
    schemes = tokens.schemes(MONITOR)
    issue.create("plain", "release", tmp_path, None)
    with pytest.raises(InputError, match="not a key wrapped by a TPM"):
        x509.load_key(f"tpm2:{tmp_path}/plain.key", unasked, schemes)
    damaged = tmp_path / "damaged.tss"
    content = bytearray((tpm / "release.tss").read_bytes())
    content[-120] ^= 3
    damaged.write_bytes(content)
    damaged.chmod(0o600)
    with pytest.raises(InputError, match="cannot be opened"):
        x509.load_key(f"tpm2:{damaged}", unasked, schemes)
    assert x509.load_key(f"tpm2:{tpm}/release.tss", unasked, schemes).key.key_size == 2048
