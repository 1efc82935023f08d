# SPDX-License-Identifier: Apache-2.0
"""The builder's keys: which one signs a release, which certificates go into it."""

from __future__ import annotations

import dataclasses
import functools
import getpass
from dataclasses import dataclass
from pathlib import Path

from freehold.build import tokens
from freehold.build.recipe import Certificate, Recipe
from freehold.errors import InputError
from freehold.keys.formats import REVOKED_NAME, Revocation, merge_revoked, serialize_revoked
from freehold.keys.issue import create, read_revoked
from freehold.keys.verbs import default_directory
from freehold.keys.verify import (
    KEYCHAIN_ROLES,
    Keychain,
    Role,
    issued_by,
    keychain_entry,
    role_of,
    verify_document,
)
from freehold.keys.x509 import Signer, der_of, load_certificate, load_signer
from freehold.monitor import Monitor

RELEASE_KEY = "release"
OWNER_KEY = "owner"
FIRST_KEYS: tuple[tuple[str, Role], ...] = ((RELEASE_KEY, "release"), (OWNER_KEY, "owner"))


@dataclass(frozen=True)
class KeyDirectory:
    """A directory of keys as ``freehold key new`` fills it (``NAME.key``, ``NAME.crt``, ``NAME.der``)."""

    path: Path

    @classmethod
    def choose(cls, given: Path | None, monitor: Monitor) -> KeyDirectory:
        """The one given, else the user's, which gets a first pair of keys when it has none.

        A first build should not fail for want of a key; it says that they are unprotected, and how to do better.
        """
        if given is not None:
            return cls(given)
        chosen = cls(default_directory())
        if not any(chosen.path.glob("*.key")):
            for name, role in FIRST_KEYS:
                create(name, role, chosen.path, None)
            monitor.message(
                f"made release.key and owner.key in {chosen.path}, without passphrases; `freehold key new` makes others"
            )
        return chosen

    def signer(self, uri: str | None, monitor: Monitor) -> Signer:
        """The release key: ``uri``, else ``release.key`` of this directory.

        Raises :class:`InputError` with the command that makes one when there is none.
        """
        if uri is None and not (self.path / f"{RELEASE_KEY}.key").is_file():
            raise InputError(
                f"there is no release key in {self.path}",
                hint=f"make one: freehold key new {RELEASE_KEY} --role release --out {self.path}",
            )
        return load_signer(uri or f"file:{self.path / RELEASE_KEY}.key", ask, tokens.schemes(monitor))

    def owner(self, uri: str | None, monitor: Monitor) -> Signer:
        """The owner's key: ``uri``, else ``owner.key`` of this directory.

        Raises :class:`InputError` when there is none, or when it has another role.
        """
        if uri is None and not (self.path / f"{OWNER_KEY}.key").is_file():
            raise InputError(f"there is no owner's key in {self.path}", hint="--owner-key file:/media/stick/owner.key names one")
        signer = load_signer(uri or f"file:{self.path / OWNER_KEY}.key", ask, tokens.schemes(monitor))
        if signer.role not in (None, "owner"):
            raise InputError(f"that key's role is {signer.role}, not owner", hint="freehold key show explains a key")
        return signer

    def certificates(self) -> tuple[Certificate, ...]:
        """The certificates here that machines have to know beforehand, as keychain members.

        Those are vendors, owners, and release keys that vouch for themselves: an issued one comes with its signature.
        """
        found = []
        # One of a pair is enough: who copies certificates for a builder may take either.
        paths = {path.stem: path for pattern in ("*.crt", "*.der") for path in self.path.glob(pattern)}
        for name, path in sorted(paths.items()):
            certificate = load_certificate(path)
            der = der_of(certificate)
            role = role_of(der)
            if role in KEYCHAIN_ROLES and (role != "release" or issued_by(certificate, certificate)):
                found.append(Certificate(role, name, der))
        return tuple(found)

    def revoked(self) -> tuple[Revocation, ...]:
        """What ``freehold key revoke`` has noted here."""
        return read_revoked(self.path / REVOKED_NAME)


@functools.cache
def ask(prompt: str) -> bytes:
    """Ask the terminal for a passphrase or a PIN: one command asks once for each key, however often it needs it."""
    return getpass.getpass(prompt).encode()


def with_keychain(recipe: Recipe, keys: KeyDirectory, signer: Signer | None) -> Recipe:
    """The recipe with its keychain: its own certificates, else those of ``keys``, less the revoked ones.

    What is revoked is that of the recipe and of ``keys`` together. A release that its own machines would refuse is
    never built: raises :class:`InputError` when ``signer`` is neither pinned nor issued by a vendor in the keychain.
    Without a ``signer`` that is asked where it is signed.
    """
    if signer is not None and signer.role != "release":
        raise InputError("the signing key has not the role 'release'", hint="freehold key show explains a key")
    revoked = merge_revoked(recipe.revoked, keys.revoked())
    try:
        serialize_revoked(revoked)
    except ValueError as error:
        raise InputError(f"recipe and {keys.path} together revoke too much: {error}") from None
    entries, members, faults = [], [], []
    for one in recipe.keychain or keys.certificates():
        try:
            entry = keychain_entry(one.filename, one.data)
        except ValueError as error:
            faults.append(f"{one.filename}: {error}")
            continue
        entries.append(entry)
        # Nobody needs to know a certificate that counts for nothing.
        if Keychain(revoked=revoked).why_revoked(one.data) is None:
            members.append(one)
    if faults:
        raise InputError("the keychain is not usable", faults=faults)
    members.sort(key=lambda one: one.filename)
    done = dataclasses.replace(recipe, keychain=tuple(members), revoked=revoked)
    if signer is None:
        if not any(one.role in ("vendor", "release") for one in members):
            raise InputError("nothing could vouch for this release", hint="put a vendor's certificate, or the key's, into --keys")
        return done
    verdict = verify_document(b"", signer.sign_document(b""), keychain=Keychain(tuple(entries), revoked))
    if not verdict.ok:
        raise InputError(
            f"machines with this keychain would refuse the release: {verdict.reason}",
            hint="the signing key's certificate, or its vendor's, belongs into the recipe's [keychain] or into --keys",
        )
    return done
