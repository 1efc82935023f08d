# SPDX-License-Identifier: Apache-2.0
"""Verdicts on signed documents: bytes in, verdict out.

The keychain is always an explicit argument, there is no default root of trust, and an empty one
denies. Signatures are RSA PKCS#1 v1.5 with SHA-256, raw, as the kernel checks them in the early step.
Like the kernel, this looks at keys only: a certificate's validity and purpose fields are no policy.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from freehold.errors import InputError
from freehold.keys import revoked

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

Role = Literal["release", "owner"]
ROLES: tuple[Role, ...] = get_args(Role)

MAX_DATA_BYTES = 64 << 20
MAX_SIGNATURE_BYTES = 512  # RSA-4096
MAX_CERTIFICATE_BYTES = 16384
MAX_CERTIFICATES = 64

_FILE_NAME = re.compile(rf"({'|'.join(ROLES)})-([A-Za-z0-9][A-Za-z0-9._-]*)\.der")


@dataclass(frozen=True)
class Certificate:
    """One certificate that may sign documents of ``role``; ``der`` is X.509."""

    role: Role
    name: str
    der: bytes

    @property
    def file_name(self) -> str:
        """Its name in a keychain directory."""
        return f"{self.role}-{self.name}.der"


@dataclass(frozen=True)
class Keychain:
    """Whose signatures count, and for what. Empty: nobody's."""

    certificates: tuple[Certificate, ...] = ()

    def of_role(self, role: Role) -> tuple[Certificate, ...]:
        """The certificates that may sign for ``role``."""
        return tuple(entry for entry in self.certificates if entry.role == role)

    @classmethod
    def from_directory(cls, path: Path) -> Keychain:
        """Read every ``ROLE-NAME.der`` of the directory ``path``; other names ending in .der are faults.

        Raises :class:`InputError` with every fault. A directory that is missing is a fault as well:
        a keychain that cannot be read must not look like an empty one.
        """
        files: dict[str, bytes] = {}
        faults: list[str] = []
        try:
            entries = sorted(entry for entry in path.iterdir() if entry.suffix == ".der" or entry.name == revoked.FILE_NAME)
        except OSError as error:
            raise InputError(f"the keychain {path} cannot be read: {error.strerror}") from None
        for entry in entries[: MAX_CERTIFICATES + 2]:
            limit = revoked.MAX_BYTES if entry.name == revoked.FILE_NAME else MAX_CERTIFICATE_BYTES
            try:
                with entry.open("rb") as source:
                    files[entry.name] = source.read(limit + 1)
            except OSError as error:
                faults.append(f"{entry.name}: {error.strerror}")
        return cls.from_files(files, str(path), faults)

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], where: str, faults: Sequence[str] = ()) -> Keychain:
        """The keychain in ``files`` (name to content), without the certificates that its file ``revoked`` lists. Pure.

        Raises :class:`InputError` with every fault, ``faults`` first; ``where`` names the keychain in it.
        """
        found: list[Certificate] = []
        problems = list(faults)
        certificates = {name: data for name, data in files.items() if name != revoked.FILE_NAME}
        refused: dict[str, str] = {}
        try:
            if revoked.FILE_NAME in files:
                refused = revoked.parse(files[revoked.FILE_NAME])
        except ValueError as error:
            problems.append(f"{revoked.FILE_NAME}: {error}")
        for name in sorted(certificates)[: MAX_CERTIFICATES + 1]:
            try:
                entry = keychain_entry(name, certificates[name])
            except ValueError as error:
                problems.append(f"{name}: {error}")
            else:
                if hashlib.sha256(entry.der).hexdigest() not in refused:
                    found.append(entry)
        if len(certificates) > MAX_CERTIFICATES:
            problems.append(f"more than {MAX_CERTIFICATES} certificates")
        if problems:
            raise InputError(f"the keychain {where} is not usable", faults=problems)
        return cls(tuple(found))


@dataclass(frozen=True)
class Verdict:
    """``ok`` only when a certificate of the wanted role made the signature: then ``key`` is its name."""

    ok: bool
    key: str
    reason: str


def keychain_entry(file_name: str, der: bytes) -> Certificate:
    """The keychain's entry for a file. Pure. :class:`ValueError` says what is wrong with it."""
    match = _FILE_NAME.fullmatch(file_name)
    if match is None:
        raise ValueError(f"is not named ROLE-NAME.der with a role out of {', '.join(ROLES)}")
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise ValueError(f"is larger than {MAX_CERTIFICATE_BYTES} bytes")
    _rsa_key(der)
    role: Role = "release" if match[1] == "release" else "owner"
    stated = role_of(der)
    if stated is not None and stated != role:
        raise ValueError(f"is a certificate of role {stated}")
    return Certificate(role, match[2], der)


def role_of(der: bytes) -> Role | None:
    """The role that a certificate states in its subject (OU=freehold-ROLE), if it does. Pure."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    units = x509.load_der_x509_certificate(der).subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    stated = {role for role in ROLES for unit in units if unit.value == f"freehold-{role}"}
    return stated.pop() if len(stated) == 1 else None


def verify(data: bytes, signature: bytes, *, keychain: Keychain, role: Role) -> Verdict:
    """Was ``data`` signed by a certificate of ``role`` in ``keychain``? Pure; never raises for bad input."""
    if len(data) > MAX_DATA_BYTES:
        return Verdict(False, "", f"the document is larger than {MAX_DATA_BYTES} bytes")
    if not signature:
        return Verdict(False, "", "there is no signature")
    if len(signature) > MAX_SIGNATURE_BYTES:
        return Verdict(False, "", f"the signature is longer than {MAX_SIGNATURE_BYTES} bytes")
    candidates = keychain.of_role(role)
    if not candidates:
        return Verdict(False, "", f"the keychain has no certificate of role {role}")
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    for entry in candidates:
        try:
            _rsa_key(entry.der).verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
        except (InvalidSignature, ValueError):
            continue
        return Verdict(True, entry.name, f"signed by {entry.name} ({role})")
    names = ", ".join(entry.name for entry in candidates)
    return Verdict(False, "", f"no certificate of role {role} made this signature (tried {names})")


def _rsa_key(der: bytes) -> RSAPublicKey:
    """The public key; :class:`ValueError` unless it is RSA of 2048 to 4096 bits."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    try:
        key = x509.load_der_x509_certificate(der).public_key()
    except Exception as error:
        raise ValueError("is not an X.509 certificate") from error
    if not isinstance(key, RSAPublicKey) or not 2048 <= key.key_size <= 4096:
        raise ValueError("has no RSA key of 2048 to 4096 bits")
    return key
