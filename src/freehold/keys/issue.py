# SPDX-License-Identifier: Apache-2.0
"""Making keys, certificates and requests; revoking certificates.

A *vendor* and an *owner* are certificate authorities and vouch for themselves; so may a *release* key. A vendor issues
certificates to release keys, an owner to device keys. RSA and SHA-256 everywhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from freehold import atomic
from freehold.errors import InputError
from freehold.keys.formats import (
    MAX_REASON,
    MAX_REVOKED_BYTES,
    REVOKED_NAME,
    Revocation,
    merge_revoked,
    parse_revoked,
    reason_valid,
    serialize_revoked,
)
from freehold.keys.verify import ISSUER, MACHINE_URI, Role, is_authority
from freehold.keys.x509 import MAX_KEY_BYTES, MAX_PASSPHRASE_BYTES, Signer, der_of, rsa_public

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

KEY_BITS = 2048  # what every firmware's Secure Boot takes
#: Of a certificate that vouches for itself: 20 years; and of an issued one: two, since another costs one command.
DAYS_SELF_SIGNED = 20 * 365 + 5
DAYS_ISSUED = 730
#: The last year of a four-digit date is far; 100 years are a mistake.
MAX_DAYS = 36525
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True)
class KeyFiles:
    """Where a new key was written; ``key`` is ``None`` when it lies elsewhere."""

    key: Path | None
    certificate: Path
    der: Path


def create(name: str, role: Role, directory: Path, passphrase: bytes | None) -> KeyFiles:
    """Make an RSA key and its self-signed certificate in ``directory``; ``None``: unencrypted.

    Raises :class:`InputError` for a bad name or an empty passphrase, and when any of the files exists.
    """
    return _new_key(name, directory, passphrase, lambda key: self_signed(key, name, role))


def create_for(key: RSAPrivateKey, name: str, role: Role, directory: Path) -> KeyFiles:
    """Make a self-signed certificate for a ``key`` that lies elsewhere (a token); raises as :func:`create`."""
    return _write_certificate(name, directory, lambda: self_signed(key, name, role))


def issue(
    name: str, role: Role, directory: Path, passphrase: bytes | None, authority: Signer, days: int = DAYS_ISSUED,
    machine: str | None = None,
) -> KeyFiles:
    """Make an RSA key in ``directory``, and a certificate for it by ``authority``.

    Raises :class:`InputError` as :func:`create`, and when ``authority`` may not issue for ``role`` or is out of date.
    """
    check_authority(authority, role, days)
    return _new_key(name, directory, passphrase, lambda key: issued(key.public_key(), name, role, authority, days, machine))


def issue_for(
    public: RSAPublicKey, name: str, role: Role, directory: Path, authority: Signer, days: int = DAYS_ISSUED,
    machine: str | None = None,
) -> KeyFiles:
    """Write a certificate by ``authority`` for a key of which only the ``public`` part is here; raises as :func:`issue`."""
    check_authority(authority, role, days)
    return _write_certificate(name, directory, lambda: issued(public, name, role, authority, days, machine))


def check_authority(authority: Signer, role: Role, days: int) -> None:
    """Raise :class:`InputError` unless ``authority`` may issue a certificate of ``role`` for ``days`` now."""
    subject = authority.certificate.subject.rfc4514_string()
    wanted = ISSUER[role]
    try:
        able = is_authority(authority.certificate)
    except ValueError as error:
        raise InputError(f"the certificate {subject} {error}") from None
    if not able:
        raise InputError(
            f"the certificate {subject} is no certificate authority", hint=f"freehold key new NAME --role {wanted}"
        )
    if authority.role not in (wanted, None):
        raise InputError(
            f"a {role} certificate is issued by a key of role {wanted}, not by one of role {authority.role}",
            hint=f"freehold key new NAME --role {wanted}",
        )
    authority.check_dates()
    if not 1 <= days <= MAX_DAYS:
        raise InputError(f"a certificate is valid for 1 to {MAX_DAYS} days, not {days}")


def request(key: RSAPrivateKey, name: str, directory: Path) -> Path:
    """Write ``NAME.csr`` (PKCS#10, PEM) for ``key``; :class:`InputError` for a bad name and when the file exists."""
    from cryptography.hazmat.primitives.serialization import Encoding

    path = directory / f"{name}.csr"
    with _claimed(name, directory, path):
        atomic.write(path, _request(key, name).public_bytes(Encoding.PEM))
    return path


def _request(key: RSAPrivateKey, name: str) -> x509.CertificateSigningRequest:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import NameOID

    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())


def device_certificate(public: RSAPublicKey, machine: str, authority: Signer, days: int = DAYS_ISSUED) -> bytes:
    """The certificate (DER) by the owner ``authority`` for the device key of ``machine``; raises as :func:`issue_for`."""
    check_authority(authority, "device", days)
    return der_of(issued(public, machine, "device", authority, days, machine))


def request_der(key: RSAPrivateKey, name: str) -> bytes:
    """A certificate request (PKCS#10, DER) for ``key``."""
    from cryptography.hazmat.primitives.serialization import Encoding

    return _request(key, name).public_bytes(Encoding.DER)


def requested_key_der(der: bytes, what: str) -> RSAPublicKey:
    """The public key of a request in DER; as :func:`requested_key`, ``what`` names it in errors."""
    from cryptography import x509

    return _requested(lambda: x509.load_der_x509_csr(der), what)


def requested_key(path: Path) -> RSAPublicKey:
    """The public key of the request in ``path``: all of it that is used. The issuer decides name, role and dates.

    Raises :class:`InputError` when it is no request, or was not signed by the key that it names.
    """
    from cryptography import x509

    try:
        with path.open("rb") as source:
            content = source.read(MAX_KEY_BYTES)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    return _requested(lambda: x509.load_pem_x509_csr(content), str(path))


def _requested(load: Callable[[], x509.CertificateSigningRequest], what: str) -> RSAPublicKey:
    try:
        found = load()
        genuine = found.is_signature_valid
        public = found.public_key()
    except Exception as error:  # each library version has its own for what it cannot read
        raise InputError(f"{what} is not a certificate request", hint="`freehold key request` makes one in PEM") from error
    if not genuine:
        raise InputError(
            f"{what} was not signed by the key that it names", hint="have it made again: freehold key request NAME --key URI"
        )
    return rsa_public(public, f"the key in {what}")


def revoke(der: bytes, reason: str, directory: Path) -> bool:
    """Add a certificate to ``directory``'s list of revoked ones; ``False`` when it is there already.

    Raises :class:`InputError` for a reason that the format does not allow, and for a list that is damaged or full.
    """
    from hashlib import sha256

    if not reason_valid(reason):
        raise InputError(f"a reason is one line of 1 to {MAX_REASON} printable characters")
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory")
    with atomic.exclusive(directory / f".{REVOKED_NAME}.lock", "the list of revoked certificates"):
        standing = read_revoked(directory / REVOKED_NAME)
        wanted = merge_revoked(standing, [Revocation(sha256(der).hexdigest(), reason)])
        if wanted == standing:
            return False
        try:
            atomic.write(directory / REVOKED_NAME, serialize_revoked(wanted))
        except ValueError as error:
            raise InputError(f"{directory / REVOKED_NAME}: {error}", hint="drop entries of certificates that expired") from None
    return True


def read_revoked(path: Path) -> tuple[Revocation, ...]:
    """The list of revoked certificates in ``path``; none when there is no such file, :class:`InputError` for a bad one."""
    try:
        with path.open("rb") as source:
            return parse_revoked(source.read(MAX_REVOKED_BYTES + 1))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path}: {error}", hint="see docs/keys.md for the format") from None


def self_signed(key: RSAPrivateKey, name: str, role: Role) -> x509.Certificate:
    """A certificate authority's certificate by its own key. A release key's as well: it can stand in kernel rings."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    public = key.public_key()
    subject = _subject(name, role)
    return (
        _builder(public, subject, subject, DAYS_SELF_SIGNED)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )


def issued(
    public: RSAPublicKey, name: str, role: Role, authority: Signer, days: int, machine: str | None = None
) -> x509.Certificate:
    """A leaf certificate by ``authority``, which is outlived by none; for ``machine`` only, when that is given."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID

    issuer = authority.certificate
    builder = _builder(public, _subject(name, role), issuer.subject, days, issuer.not_valid_after_utc)
    if machine is not None:
        names = [x509.UniformResourceIdentifier(MACHINE_URI + machine)]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
        .add_extension(_authority_key_id(issuer), critical=False)
        .sign(authority.private_key, hashes.SHA256())
    )


def _authority_key_id(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """The issuer's own key identifier, by which the kernel finds it (without one it says ENOKEY)."""
    from cryptography import x509

    try:
        own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(rsa_public(issuer.public_key(), "the CA's key"))
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _subject(name: str, role: Role) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, f"freehold-{role}"),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def _builder(
    public: RSAPublicKey, subject: x509.Name, issuer: x509.Name, days: int, limit: datetime | None = None
) -> x509.CertificateBuilder:
    from cryptography import x509

    # A day early: the clock of a machine that was just unpacked is often behind.
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
    end = start + timedelta(days=days + 1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(min(end, limit) if limit else end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=True, key_cert_sign=authority, crl_sign=authority, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _new_key(
    name: str, directory: Path, passphrase: bytes | None, certify: Callable[[RSAPrivateKey], x509.Certificate]
) -> KeyFiles:
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        KeySerializationEncryption,
        NoEncryption,
        PrivateFormat,
    )

    if passphrase is not None and not 1 <= len(passphrase) <= MAX_PASSPHRASE_BYTES:
        raise InputError(f"a passphrase has 1 to {MAX_PASSPHRASE_BYTES} bytes", hint="or use --no-passphrase")
    path, certificate, der = (directory / f"{name}{suffix}" for suffix in (".key", ".crt", ".der"))
    with _claimed(name, directory, path, certificate, der):
        key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
        how: KeySerializationEncryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
        made = certify(key)
        atomic.write(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how), mode=0o600)
        atomic.write(certificate, made.public_bytes(Encoding.PEM))
        atomic.write(der, made.public_bytes(Encoding.DER))
    return KeyFiles(path, certificate, der)


def _write_certificate(name: str, directory: Path, certify: Callable[[], x509.Certificate]) -> KeyFiles:
    from cryptography.hazmat.primitives.serialization import Encoding

    certificate, der = (directory / f"{name}{suffix}" for suffix in (".crt", ".der"))
    with _claimed(name, directory, certificate, der):
        made = certify()
        atomic.write(certificate, made.public_bytes(Encoding.PEM))
        atomic.write(der, made.public_bytes(Encoding.DER))
    return KeyFiles(None, certificate, der)


@contextmanager
def _claimed(name: str, directory: Path, first: Path, *others: Path) -> Iterator[None]:
    """Hold the names of files that do not exist yet; what was written is removed when the block fails."""
    if not NAME.fullmatch(name):
        raise InputError(f"{name[:80]!r} is no name for a key", hint="letters, digits, '.', '_' and '-'; at most 63")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in others:
            if os.path.lexists(path):
                raise FileExistsError(17, "File exists", str(path))
        # Claims the name: two commands at once cannot both believe that it was free.
        os.close(os.open(first, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError as error:
        raise InputError(f"{error.filename} exists; keys are never overwritten", hint="choose another name") from None
    except OSError as error:
        raise InputError(f"{directory}: {error.strerror}") from None
    try:
        yield
    except BaseException:
        for path in (first, *others):
            path.unlink(missing_ok=True)
        raise
