# SPDX-License-Identifier: Apache-2.0
"""The builder's keys: which one signs a release, which certificates go into it."""

from __future__ import annotations

import dataclasses
import getpass
from dataclasses import dataclass
from pathlib import Path

from freehold.build.recipe import Certificate, Recipe
from freehold.errors import InputError
from freehold.keys.verbs import default_directory
from freehold.keys.verify import Role, role_of
from freehold.keys.x509 import Signer, create, load_signer
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

    def signer(self, uri: str | None) -> Signer:
        """The release key: ``uri``, else ``release.key`` of this directory.

        Raises :class:`InputError` with the command that makes one when there is none.
        """
        if uri is None and not (self.path / f"{RELEASE_KEY}.key").is_file():
            raise InputError(
                f"there is no release key in {self.path}",
                hint=f"make one: freehold key new {RELEASE_KEY} --role release --out {self.path}",
            )
        return load_signer(uri or f"file:{self.path / RELEASE_KEY}.key", ask=ask)

    def owner(self, uri: str | None) -> Signer:
        """The owner's key: ``uri``, else ``owner.key`` of this directory.

        Raises :class:`InputError` when there is none, or when it has another role.
        """
        if uri is None and not (self.path / f"{OWNER_KEY}.key").is_file():
            raise InputError(f"there is no owner's key in {self.path}", hint="--owner-key file:/media/stick/owner.key names one")
        signer = load_signer(uri or f"file:{self.path / OWNER_KEY}.key", ask=ask)
        if signer.role not in (None, "owner"):
            raise InputError(f"that key's role is {signer.role}, not owner", hint="freehold key show explains a key")
        return signer

    def certificates(self) -> tuple[Certificate, ...]:
        """Every certificate here that has a role, as keychain members."""
        found = []
        for path in sorted(self.path.glob("*.der")):
            role = role_of(path.read_bytes())
            if role is not None:
                found.append(Certificate(role, path.stem, path.read_bytes()))
        return tuple(found)


def ask(prompt: str) -> bytes:
    """Ask the terminal for a passphrase."""
    return getpass.getpass(f"{prompt}: ").encode()


def with_keychain(recipe: Recipe, keys: KeyDirectory, signer: Signer) -> Recipe:
    """The recipe with its keychain: its own certificates, else all of ``keys``; the signer's always.

    A release that its own machines would refuse is never built.
    """
    chain = {one.filename: one for one in (recipe.keychain or keys.certificates())}
    der = signer.certificate_der()
    if der in [one.data for one in recipe.revoked]:
        raise InputError("the recipe revokes the key that signs this release", hint="--key names another release key")
    if signer.role != "release":
        raise InputError("the signing key has not the role 'release'", hint="freehold key show explains a key")
    if der not in [one.data for one in chain.values()]:
        own = Certificate("release", RELEASE_KEY, der)
        if own.filename in chain:
            raise InputError("the recipe's keychain has another certificate named release")
        chain[own.filename] = own
    return dataclasses.replace(recipe, keychain=tuple(chain[name] for name in sorted(chain)))

