# SPDX-License-Identifier: Apache-2.0
"""Verdicts on signed texts and documents: bytes in, verdict out.

The keychain is always an explicit argument, there is no default root of trust, and an empty one
denies. Signatures are RSA PKCS#1 v1.5 with SHA-256. A signature counts when a certificate of the keychain
made it, or, for a document, when it encloses a certificate that a vendor of the keychain issued (a release's), or
that an owner of the keychain issued for this very machine (a device's). What the keychain's list of revoked
certificates names never counts, in no place. Dates are no policy here: a machine
has no clock that it could trust, and the kernel does not look at them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from freehold.errors import InputError
from freehold.keys.formats import MAX_REVOKED_BYTES, REVOKED_NAME, Revocation, parse_revoked, parse_signature

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

Role = Literal["vendor", "owner", "release", "device"]
ROLES: tuple[Role, ...] = get_args(Role)
#: What a keychain pins. A device's certificate comes with what it signs, its issuer is what is pinned.
KEYCHAIN_ROLES: tuple[Role, ...] = ("vendor", "owner", "release")
#: Who issues the certificates that come with what they signed. No other role has such: whom nobody pinned is no owner.
ISSUER: dict[Role, Role] = {"release": "vendor", "device": "owner"}
#: How a device's certificate names its machine: a URI among its alternative names, this and 32 hex digits.
MACHINE_URI = "urn:freehold:machine:"

MAX_DATA_BYTES = 64 << 20
MAX_SIGNATURE_BYTES = 512  # RSA-4096
MAX_CERTIFICATE_BYTES = 16384
MAX_CERTIFICATES = 64

_FILE_NAME = re.compile(rf"({'|'.join(KEYCHAIN_ROLES)})-([A-Za-z0-9][A-Za-z0-9._-]*)\.der")
_MACHINE = re.compile(r"[0-9a-f]{32}")
_COMMON_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True)
class Certificate:
    """One certificate that may sign for ``role``; ``der`` is X.509."""

    role: Role
    name: str
    der: bytes

    @property
    def file_name(self) -> str:
        """Its name in a keychain directory."""
        return f"{self.role}-{self.name}.der"


@dataclass(frozen=True)
class Keychain:
    """Whose signatures count, and for what; ``revoked`` never do. Empty: nobody's."""

    certificates: tuple[Certificate, ...] = ()
    revoked: tuple[Revocation, ...] = ()

    def of_role(self, role: Role) -> tuple[Certificate, ...]:
        """The certificates that count for ``role``: revoked ones do not."""
        return tuple(entry for entry in self.certificates if entry.role == role and self.why_revoked(entry.der) is None)

    def why_revoked(self, der: bytes) -> str | None:
        """Why the certificate is revoked; ``None`` when it is not."""
        fingerprint = hashlib.sha256(der).hexdigest()
        return next((entry.reason for entry in self.revoked if entry.fingerprint == fingerprint), None)

    @classmethod
    def from_directory(cls, path: Path) -> Keychain:
        """Read every ``ROLE-NAME.der`` of the directory ``path``, and ``revoked``; other names ending in .der are faults.

        Raises :class:`InputError` with every fault. A directory that is missing is a fault as well:
        a keychain that cannot be read must not look like an empty one.
        """
        files: dict[str, bytes] = {}
        faults: list[str] = []
        try:
            entries = sorted(entry for entry in path.iterdir() if entry.suffix == ".der" or entry.name == REVOKED_NAME)
        except OSError as error:
            raise InputError(f"the keychain {path} cannot be read: {error.strerror}") from None
        for entry in entries[: MAX_CERTIFICATES + 2]:
            limit = MAX_REVOKED_BYTES if entry.name == REVOKED_NAME else MAX_CERTIFICATE_BYTES
            try:
                with entry.open("rb") as source:
                    files[entry.name] = source.read(limit + 1)
            except OSError as error:
                faults.append(f"{entry.name}: {error.strerror}")
        return cls.from_files(files, str(path), faults)

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], where: str, faults: Sequence[str] = ()) -> Keychain:
        """The keychain in ``files`` (name to content): certificates, and ``revoked``. Pure.

        Raises :class:`InputError` with every fault, ``faults`` first; ``where`` names the keychain in it.
        """
        found: list[Certificate] = []
        revoked: tuple[Revocation, ...] = ()
        problems = list(faults)
        names = sorted(name for name in files if name != REVOKED_NAME)
        for name in [*({REVOKED_NAME} & files.keys()), *names[: MAX_CERTIFICATES + 1]]:
            try:
                if name == REVOKED_NAME:
                    revoked = parse_revoked(files[name])
                else:
                    found.append(keychain_entry(name, files[name]))
            except ValueError as error:
                problems.append(f"{name}: {error}")
        if len(names) > MAX_CERTIFICATES:
            problems.append(f"more than {MAX_CERTIFICATES} certificates")
        if problems:
            raise InputError(f"the keychain {where} is not usable", faults=problems)
        return cls(tuple(found), revoked)


@dataclass(frozen=True)
class Verdict:
    """``ok`` only when a certificate that counts for the wanted role made the signature: ``key`` is its name."""

    ok: bool
    key: str
    reason: str


def keychain_entry(file_name: str, der: bytes) -> Certificate:
    """The keychain's entry for a file. Pure. :class:`ValueError` says what is wrong with it."""
    match = _FILE_NAME.fullmatch(file_name)
    if match is None:
        raise ValueError(f"is not named ROLE-NAME.der with a role out of {', '.join(KEYCHAIN_ROLES)}")
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise ValueError(f"is larger than {MAX_CERTIFICATE_BYTES} bytes")
    certificate = _load(der)
    _rsa_key(certificate)
    role = next(role for role in KEYCHAIN_ROLES if role == match[1])
    stated = role_of(der)
    if stated is not None and stated != role:
        raise ValueError(f"is a certificate of role {stated}")
    if role == "vendor" and not is_authority(certificate):
        raise ValueError("is no certificate authority, which a vendor has to be")
    return Certificate(role, match[2], der)


def role_of(der: bytes) -> Role | None:
    """The role that a certificate states in its subject (OU=freehold-ROLE), if it does. Pure."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    units = x509.load_der_x509_certificate(der).subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    stated = {role for role in ROLES for unit in units if unit.value == f"freehold-{role}"}
    return stated.pop() if len(stated) == 1 else None


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether the certificate says that it may issue others (basic constraints, CA). Pure.

    Raises :class:`ValueError` when its extensions cannot be read.
    """
    from cryptography import x509

    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False
    except Exception as error:
        raise ValueError("has extensions that cannot be read") from error


def issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether ``authority`` issued ``certificate``: name and signature, by RSA with SHA-256. Pure."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.x509.oid import SignatureAlgorithmOID

    if certificate.signature_algorithm_oid != SignatureAlgorithmOID.RSA_WITH_SHA256:
        return False
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def verify(data: bytes, signature: bytes, *, keychain: Keychain, role: Role) -> Verdict:
    """Did a certificate of ``role`` in ``keychain`` make the raw ``signature`` over ``data``?

    Pure; never raises for bad input.
    """
    if len(data) > MAX_DATA_BYTES:
        return _no(f"the document is larger than {MAX_DATA_BYTES} bytes")
    if not signature:
        return _no("there is no signature")
    if len(signature) > MAX_SIGNATURE_BYTES:
        return _no(f"the signature is longer than {MAX_SIGNATURE_BYTES} bytes")
    pinned = [entry for entry in keychain.certificates if entry.role == role]
    if not pinned:
        return _no(f"the keychain has no certificate of role {role}")
    for entry in pinned:
        if _signed(entry.der, data, signature):
            reason = keychain.why_revoked(entry.der)
            if reason is None:
                return Verdict(True, entry.name, f"signed by {entry.name} ({role})")
            return _no(f"signed by {entry.name} ({role}), which is revoked: {reason}")
    return _no(f"no certificate of role {role} made this signature (tried {', '.join(entry.name for entry in pinned)})")


def verify_document(
    data: bytes, signature_file: bytes, *, keychain: Keychain, role: Role = "release", machine: str | None = None
) -> Verdict:
    """Is the document ``data`` signed for ``role``, by the keychain or by a certificate that one of its issuers made?

    ``signature_file`` is the content of the document's ``.sig``. For the role ``device`` only a certificate counts that an
    owner issued for ``machine``. Pure; never raises for bad input.
    """
    if not signature_file:
        return _no("there is no signature")
    try:
        enclosed = parse_signature(signature_file)
    except ValueError as error:
        return _no(str(error))
    verdict = verify(data, enclosed.signature, keychain=keychain, role=role)
    if verdict.ok or enclosed.certificate is None or role not in ISSUER or len(data) > MAX_DATA_BYTES:
        return verdict
    try:
        name, issuer = judge_leaf(enclosed.certificate, keychain, role, machine)
    except ValueError as error:
        return _no(f"the enclosed certificate {error}")
    if not _signed(enclosed.certificate, data, enclosed.signature):
        return _no(f"the enclosed certificate {name} did not make this signature")
    return Verdict(True, name, f"signed by {name} ({role}), issued by {issuer} ({ISSUER[role]})")


def machine_of(certificate: x509.Certificate) -> str | None:
    """The machine that a device's certificate is for (32 hex digits); ``None`` when it names none. Pure.

    Raises :class:`ValueError` when its extensions cannot be read, or it names more than one.
    """
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    except Exception as error:
        raise ValueError("has extensions that cannot be read") from error
    uris = [uri for uri in names.get_values_for_type(x509.UniformResourceIdentifier) if uri.startswith(MACHINE_URI)]
    if len(uris) > 1:
        raise ValueError("names more than one machine")
    machine = uris[0].removeprefix(MACHINE_URI) if uris else None
    if machine is not None and not _MACHINE.fullmatch(machine):
        raise ValueError("names a machine that is none")
    return machine


def judge_leaf(der: bytes, keychain: Keychain, role: Role, machine: str | None = None) -> tuple[str, str]:
    """Name and issuer's name of a certificate that counts for ``role``; :class:`ValueError` says why one does not. Pure.

    A ``device`` counts on the machine only that it is for, and nowhere when ``machine`` is ``None``.
    """
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    certificate = _load(der)
    _rsa_key(certificate)
    # The issuer's signature covers the inner part only. The outer one has a second spelling (unused bits at its end,
    # which parsers pass over), whose fingerprint no list would have.
    if not der.endswith(b"\0" + certificate.signature):
        raise ValueError("is not spelt as its issuer wrote it")
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    stated = str(common[0].value) if common else ""
    name = stated if _COMMON_NAME.fullmatch(stated) else hashlib.sha256(der).hexdigest()[:16]
    revoked = keychain.why_revoked(der)
    if revoked is not None:
        raise ValueError(f"{name} is revoked: {revoked}")
    if role_of(der) != role:
        raise ValueError(f"{name} is not of role {role}")
    if is_authority(certificate):
        raise ValueError(f"{name} is a certificate authority, which signs no documents")
    if role == "device" and (machine is None or machine_of(certificate) != machine):
        raise ValueError(f"{name} is for another machine, or for none that it names")
    issuer = ISSUER.get(role)
    for entry in keychain.certificates:
        if entry.role != issuer:
            continue
        authority = x509.load_der_x509_certificate(entry.der)
        if is_authority(authority) and issued_by(certificate, authority):
            reason = keychain.why_revoked(entry.der)
            if reason is None:
                return name, entry.name
            raise ValueError(f"{name} was issued by {entry.name} ({issuer}), which is revoked: {reason}")
    raise ValueError(f"{name} was issued by no {issuer} of the keychain")


def _no(reason: str) -> Verdict:
    return Verdict(False, "", reason)


def _signed(der: bytes, data: bytes, signature: bytes) -> bool:
    """Whether the certificate's key made the raw signature; one that is no certificate of ours did not."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    try:
        _rsa_key(_load(der)).verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
    except (InvalidSignature, ValueError):
        return False
    return True


def _load(der: bytes) -> x509.Certificate:
    from cryptography import x509

    try:
        return x509.load_der_x509_certificate(der)
    except Exception as error:
        raise ValueError("is not an X.509 certificate") from error


def _rsa_key(certificate: x509.Certificate) -> RSAPublicKey:
    """The public key; :class:`ValueError` unless it is RSA of 2048 to 4096 bits."""
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    try:
        key = certificate.public_key()
    except Exception as error:
        raise ValueError("has a public key of an unknown kind") from error
    if not isinstance(key, RSAPublicKey) or not 2048 <= key.key_size <= 4096:
        raise ValueError("has no RSA key of 2048 to 4096 bits")
    return key
