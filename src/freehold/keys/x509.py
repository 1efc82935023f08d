# SPDX-License-Identifier: Apache-2.0
"""Signing keys: making them, opening them by URI, signing with them.

A key is three files: ``NAME.key`` (PKCS#8 PEM, mode 0600), ``NAME.crt`` and ``NAME.der`` (the same
self-signed certificate). The role stands in the certificate's subject, OU=freehold-ROLE.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote

from freehold import atomic
from freehold.errors import FreeholdError, InputError, NotHereError
from freehold.keys.verify import MAX_CERTIFICATE_BYTES, Role, role_of
from freehold.keys.verity import formatted_digest

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

KEY_BITS = 2048  # what every firmware's Secure Boot takes
YEARS_VALID = 20
MAX_KEY_BYTES = 32768
MAX_PASSPHRASE_BYTES = 1024
#: Asks a person for a secret: prompt in, secret out.
Ask = Callable[[str], bytes]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True)
class KeyFiles:
    """Where a new key was written."""

    key: Path
    certificate: Path
    der: Path


class Signer:
    """An opened private key with its certificate."""

    def __init__(self, key: RSAPrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self.certificate = certificate
        self.role: Role | None = role_of(self.certificate_der())

    def certificate_der(self) -> bytes:
        """The certificate, DER."""
        from cryptography.hazmat.primitives.serialization import Encoding

        return self.certificate.public_bytes(Encoding.DER)

    def certificate_pem(self) -> bytes:
        """The certificate, PEM."""
        from cryptography.hazmat.primitives.serialization import Encoding

        return self.certificate.public_bytes(Encoding.PEM)

    def sign(self, data: bytes) -> bytes:
        """Raw RSA PKCS#1 v1.5 signature with SHA-256 over ``data``."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import padding

        return self._key.sign(data, padding.PKCS1v15(), hashes.SHA256())

    def sign_verity(self, digest: bytes, *, embed_certificate: bool = False) -> bytes:
        """Built-in fs-verity signature (PKCS#7, detached) for a file's 32-byte ``digest``.

        ``embed_certificate`` is for a key whose issuer, not itself, is in the kernel's ring.
        """
        return self.sign_pkcs7(formatted_digest(digest), embed_certificate=embed_certificate)

    def sign_pkcs7(self, data: bytes, *, embed_certificate: bool = True) -> bytes:
        """PKCS#7 signature of ``data``, DER: detached, binary, no attributes (so no date either), SHA-256."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

        options = [pkcs7.PKCS7Options.DetachedSignature, pkcs7.PKCS7Options.Binary, pkcs7.PKCS7Options.NoAttributes]
        if not embed_certificate:
            options.append(pkcs7.PKCS7Options.NoCerts)
        builder = pkcs7.PKCS7SignatureBuilder().set_data(data)
        return builder.add_signer(self.certificate, self._key, hashes.SHA256()).sign(Encoding.DER, options)

    @contextlib.contextmanager
    def private_pem_path(self, directory: Path | None = None) -> Iterator[Path]:
        """An unencrypted copy of the key, for programs that take a path; removed with its directory after.

        It lies alone in a private directory below ``directory``, by default one that is memory only.
        """
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        private = Path(tempfile.mkdtemp(prefix="freehold-key-", dir=directory or _memory_directory()))
        try:
            path = private / "private.pem"
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as sink:
                sink.write(self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            yield path
        finally:
            shutil.rmtree(private)


def create(name: str, role: Role, directory: Path, passphrase: bytes | None) -> KeyFiles:
    """Make an RSA key and its self-signed certificate in ``directory``; ``None``: unencrypted.

    Raises :class:`InputError` for a bad name or an empty passphrase, and when any of the files exists.
    """
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        KeySerializationEncryption,
        NoEncryption,
        PrivateFormat,
    )

    if not NAME.fullmatch(name):
        raise InputError(f"{name[:80]!r} is no name for a key", hint="letters, digits, '.', '_' and '-'; at most 63")
    if passphrase is not None and not 1 <= len(passphrase) <= MAX_PASSPHRASE_BYTES:
        raise InputError(f"a passphrase has 1 to {MAX_PASSPHRASE_BYTES} bytes", hint="or use --no-passphrase")
    files = KeyFiles(*(directory / f"{name}{suffix}" for suffix in (".key", ".crt", ".der")))
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (files.certificate, files.der):
            if os.path.lexists(path):
                raise FileExistsError(17, "File exists", str(path))
        # Claims the name: two commands at once cannot both believe that it was free.
        os.close(os.open(files.key, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError as error:
        raise InputError(f"{error.filename} exists; keys are never overwritten", hint="choose another name") from None
    except OSError as error:
        raise InputError(f"{directory}: {error.strerror}") from None
    try:
        key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
        certificate = _self_signed(key, name, role)
        how: KeySerializationEncryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
        atomic.write(files.key, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how), mode=0o600)
        atomic.write(files.certificate, certificate.public_bytes(Encoding.PEM))
        atomic.write(files.der, certificate.public_bytes(Encoding.DER))
    except BaseException:
        for path in (files.key, files.certificate, files.der):
            path.unlink(missing_ok=True)
        raise
    return files


def _self_signed(key: RSAPrivateKey, name: str, role: Role) -> x509.Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import NameOID

    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, f"freehold-{role}"),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )
    # A day early: the clock of a machine that was just unpacked is often behind.
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
    # A certificate authority, so that it can stand in kernel rings for the device keys that it issues.
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=YEARS_VALID * 365 + YEARS_VALID // 4))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )


def load_signer(uri: str, ask: Ask) -> Signer:
    """Open the private key that ``uri`` names; ``ask`` is called only when it needs a passphrase.

    Raises :class:`InputError` for an unknown scheme, a wrong passphrase, a key that others can read,
    a key and certificate that do not belong together, and a key that is not RSA of 2048 to 4096 bits.
    """
    scheme, separator, rest = uri.partition(":")
    opener = SCHEMES.get(scheme)
    if not separator or opener is None:
        known = ", ".join(f"{name}:" for name in SCHEMES)
        hint = f"file:{uri}" if not separator else None
        raise InputError(f"{uri[:80]!r} names no key that can be opened; known schemes: {known}", hint=hint)
    return opener(rest, ask)


def _open_file(rest: str, ask: Ask) -> Signer:
    """``PATH[?passphrase-file=PATH]``; the certificate lies beside the key, suffix .crt."""
    text, _, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := options.keys() - {"passphrase-file"}:
        raise InputError(f"file: URIs have no option {min(unknown)!r}", hint="known: passphrase-file")
    path = Path(unquote(text)).expanduser()
    pem = _read_private(path)
    secret = options.get("passphrase-file")
    key = _decode_key(path, pem, lambda: read_passphrase(Path(secret)) if secret else ask(f"passphrase of {path}: "))
    certificate = load_certificate(path.with_suffix(".crt"))
    if certificate.public_key() != key.public_key():
        raise InputError(f"{path.with_suffix('.crt')} is not the certificate of {path}")
    return Signer(key, certificate)


#: Ways to reach a private key. Others register here.
SCHEMES: dict[str, Callable[[str, Ask], Signer]] = {"file": _open_file}


def _read_private(path: Path) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as source:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{path} is not a key file")
            if status.st_mode & 0o077:
                raise InputError(f"{path} can be read or changed by others", hint=f"chmod 600 {path}")
            return source.read(MAX_KEY_BYTES)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def _decode_key(path: Path, pem: bytes, secret: Callable[[], bytes]) -> RSAPrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        try:
            key = load_pem_private_key(pem, None)
        except TypeError:  # it is encrypted
            passphrase = secret()
            try:
                key = load_pem_private_key(pem, passphrase)
            except (ValueError, TypeError):
                raise InputError(f"that is not the passphrase of {path}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise InputError(f"{path} is not a private key in PEM") from None
    if not isinstance(key, RSAPrivateKey) or not 2048 <= key.key_size <= 4096:
        raise InputError(
            f"{path} is not an RSA key of 2048 to 4096 bits", hint="`freehold key new` makes one that firmware accepts"
        )
    return key


def read_passphrase(path: Path) -> bytes:
    """The first line of a passphrase file; :class:`InputError` when it is empty or cannot be read."""
    try:
        with path.open("rb") as source:
            secret = source.readline(MAX_PASSPHRASE_BYTES + 2).rstrip(b"\r\n")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    if not 1 <= len(secret) <= MAX_PASSPHRASE_BYTES:
        raise InputError(f"{path}: the first line has to be a passphrase of 1 to {MAX_PASSPHRASE_BYTES} bytes")
    return secret


def load_certificate(path: Path) -> x509.Certificate:
    """The X.509 certificate in ``path``, PEM or DER; :class:`InputError` when it is none."""
    from cryptography import x509

    try:
        with path.open("rb") as source:
            content = source.read(2 * MAX_CERTIFICATE_BYTES)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    load = x509.load_pem_x509_certificate if b"-----BEGIN" in content else x509.load_der_x509_certificate
    try:
        return load(content)
    except ValueError:
        raise InputError(f"{path} is not an X.509 certificate") from None


def _memory_directory() -> Path:
    """A directory whose files never reach a disk."""
    for candidate in (os.environ.get("XDG_RUNTIME_DIR", ""), "/dev/shm"):  # noqa: S108 - a private directory is made in it
        with contextlib.suppress(OSError):
            if candidate and os.access(candidate, os.W_OK | os.X_OK) and _is_tmpfs(Path(candidate)):
                return Path(candidate)
    raise NotHereError("there is no directory in memory for the opened key", hint="mount a tmpfs at /dev/shm")


def _is_tmpfs(path: Path) -> bool:
    """Whether the file system that ``path`` lies on is a tmpfs."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError as error:
        raise FreeholdError(f"the mounted file systems cannot be listed: {error.strerror}") from None
    return any(line.split()[2] == wanted and " - tmpfs " in line for line in lines)
