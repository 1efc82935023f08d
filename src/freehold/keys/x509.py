# SPDX-License-Identifier: Apache-2.0
"""Signing keys: opening them by URI, signing with them.

A key is three files: ``NAME.key`` (PKCS#8 PEM, mode 0600), ``NAME.crt`` and ``NAME.der`` (the same
certificate), or a key elsewhere and those two. The role stands in the certificate's subject, OU=freehold-ROLE.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qsl, unquote

from freehold.errors import FreeholdError, InputError, NotHereError
from freehold.keys.formats import DocumentSignature, serialize_signature
from freehold.keys.verify import MAX_CERTIFICATE_BYTES, Role, issued_by, role_of
from freehold.keys.verity import formatted_digest

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

MAX_KEY_BYTES = 32768
MAX_PASSPHRASE_BYTES = 1024
#: Asks a person for a secret: prompt in, secret out.
Ask = Callable[[str], bytes]


class KeyFile(NamedTuple):
    """A key as programs that use OpenSSL take it: a file, and what they need beside it (variables, visible places).

    ``directory`` is private, and all of it is removed after. ``path`` is ``None`` for a key that no file can stand for; OpenSSL's
    own program takes ``name`` in any case.
    """

    directory: Path
    path: Path | None
    name: str
    environment: Mapping[str, str] = MappingProxyType({})
    places: tuple[Path, ...] = ()


class OpenedKey(NamedTuple):
    """A private key that can sign.

    ``key`` asks a token when it lies in one. ``lend`` gives it to programs while the block runs. ``certificate`` is
    where its certificate is looked for, if the URI says so.
    """

    key: RSAPrivateKey
    lend: Callable[[], AbstractContextManager[KeyFile]]
    certificate: Path | None


Opener = Callable[[str, Ask], OpenedKey]


class Signer:
    """An opened private key with its certificate."""

    def __init__(
        self, key: RSAPrivateKey, certificate: x509.Certificate, lend: Callable[[], AbstractContextManager[KeyFile]] | None = None
    ) -> None:
        self.private_key = key
        self.certificate = certificate
        self.role: Role | None = role_of(self.certificate_der())
        #: The key as a file, for programs, while the block runs.
        self.lend = lend or (lambda: unencrypted(key))

    @property
    def self_signed(self) -> bool:
        """Whether the certificate vouches for itself, and so has to be known beforehand."""
        return issued_by(self.certificate, self.certificate)

    def check_dates(self) -> None:
        """Raise :class:`InputError` unless the certificate is valid now.

        Machines do not look at dates; people who sign releases should not learn of an old key from those who do.
        """
        now, subject = datetime.now(UTC), self.certificate.subject.rfc4514_string()
        if now > self.certificate.not_valid_after_utc:
            raise InputError(
                f"the certificate {subject} expired on {self.certificate.not_valid_after_utc:%Y-%m-%d}",
                hint="`freehold key issue NAME --role ROLE --ca URI` makes another one, `freehold key new` a new CA",
            )
        if now < self.certificate.not_valid_before_utc:
            raise InputError(
                f"the certificate {subject} is not valid before {self.certificate.not_valid_before_utc:%Y-%m-%d}",
                hint="see that this computer's clock is right, or issue another: freehold key issue",
            )

    def certificate_der(self) -> bytes:
        """The certificate, DER."""
        return der_of(self.certificate)

    def certificate_pem(self) -> bytes:
        """The certificate, PEM."""
        from cryptography.hazmat.primitives.serialization import Encoding

        return self.certificate.public_bytes(Encoding.PEM)

    def sign(self, data: bytes) -> bytes:
        """Raw RSA PKCS#1 v1.5 signature with SHA-256 over ``data``."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import padding

        return self.private_key.sign(data, padding.PKCS1v15(), hashes.SHA256())

    def sign_document(self, data: bytes) -> bytes:
        """The content of the ``.sig`` file for ``data``, with the certificate unless it is self-signed.

        Raises :class:`InputError` when the certificate is not valid now.
        """
        self.check_dates()
        enclosed = None if self.self_signed else self.certificate_der()
        return serialize_signature(DocumentSignature(self.sign(data), enclosed))

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
        return builder.add_signer(self.certificate, self.private_key, hashes.SHA256()).sign(Encoding.DER, options)


@contextlib.contextmanager
def unencrypted(key: RSAPrivateKey, directory: Path | None = None) -> Iterator[KeyFile]:
    """An unencrypted copy of the key, for programs that take a path; removed with its directory after."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    with private_directory(directory) as private:
        path = private / "private.pem"
        write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        yield KeyFile(private, path, str(path))


@contextlib.contextmanager
def private_directory(directory: Path | None = None) -> Iterator[Path]:
    """A directory of our own below ``directory``, by default one that is memory only; removed with all in it after."""
    private = Path(tempfile.mkdtemp(prefix="freehold-key-", dir=directory or _memory_directory()))
    try:
        yield private
    finally:
        shutil.rmtree(private)


def write_private(path: Path, data: bytes) -> None:
    """Write a secret for a program of ours into a :func:`private_directory`: nothing to keep, so nothing to flush."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as sink:
        sink.write(data)


def load_signer(uri: str, ask: Ask, schemes: Mapping[str, Opener] | None = None) -> Signer:
    """Open the private key that ``uri`` names, with its certificate; ``ask`` is called only when it needs a secret.

    ``schemes`` are the ways to reach a key, by default files only; builders have more (:mod:`freehold.build.tokens`).
    Raises :class:`InputError` for an unknown scheme, a wrong passphrase, a key that others can read,
    a key and certificate that do not belong together, and a key that is not RSA of 2048 to 4096 bits.
    """
    opened = load_key(uri, ask, schemes)
    if opened.certificate is None:
        raise InputError(f"{uri[:200]} does not say where its certificate is", hint="add certificate=FILE after a '?' or '&'")
    certificate = load_certificate(opened.certificate)
    if certificate.public_key() != opened.key.public_key():
        raise InputError(f"{opened.certificate} is not the certificate of {uri[:200]}")
    return Signer(opened.key, certificate, opened.lend)


def load_key(uri: str, ask: Ask, schemes: Mapping[str, Opener] | None = None) -> OpenedKey:
    """Open the private key that ``uri`` names, whether or not it has a certificate; raises as :func:`load_signer`."""
    scheme, separator, rest = uri.partition(":")
    openers = FILES_ONLY if schemes is None else schemes
    opener = openers.get(scheme)
    if not separator or opener is None:
        known = ", ".join(f"{name}:" for name in openers)
        hint = f"file:{uri}" if not separator else None
        raise InputError(f"{uri[:80]!r} names no key that can be opened; known schemes: {known}", hint=hint)
    return opener(rest, ask)


def rsa_private(key: object, what: str) -> RSAPrivateKey:
    """``key`` when it is a private RSA key of 2048 to 4096 bits, else :class:`InputError` about ``what``."""
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    if not isinstance(key, RSAPrivateKey) or not 2048 <= key.key_size <= 4096:
        raise _no_rsa(what)
    return key


def rsa_public(key: object, what: str) -> RSAPublicKey:
    """``key`` when it is a public RSA key of 2048 to 4096 bits, else :class:`InputError` about ``what``."""
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    if not isinstance(key, RSAPublicKey) or not 2048 <= key.key_size <= 4096:
        raise _no_rsa(what)
    return key


def _no_rsa(what: str) -> InputError:
    return InputError(
        f"{what} is not an RSA key of 2048 to 4096 bits", hint="`freehold key new` makes one that firmware accepts"
    )


def _open_file(rest: str, ask: Ask) -> OpenedKey:
    """``PATH[?passphrase-file=PATH]``; the certificate lies beside the key, suffix .crt."""
    text, _, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := options.keys() - {"passphrase-file"}:
        raise InputError(f"file: URIs have no option {min(unknown)!r}", hint="known: passphrase-file")
    path = Path(unquote(text)).expanduser()
    pem = read_private(path)
    secret = options.get("passphrase-file")
    key = _decode_key(path, pem, lambda: read_passphrase(Path(secret)) if secret else ask(f"passphrase of {path}: "))
    return OpenedKey(key, lambda: unencrypted(key), path.with_suffix(".crt"))


#: Ways to reach a private key that need nothing but this module.
FILES_ONLY: Mapping[str, Opener] = MappingProxyType({"file": _open_file})


def read_private(path: Path) -> bytes:
    """The content of a key file; :class:`InputError` when it is none, or when others can read or change it."""
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
    return rsa_private(key, str(path))


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


def der_of(certificate: x509.Certificate) -> bytes:
    """The certificate as DER."""
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.DER)


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
