# SPDX-License-Identifier: Apache-2.0
"""Whose word about a deployment counts: a publisher's for releases, the owner's side for what this machine made itself.

A device key signs *derived* manifests only. With it nobody can make a release: a manifest that is not derived needs a
release key, one that is derived never counts by a release key.
"""

from __future__ import annotations

from typing import NamedTuple

from freehold.errors import InputError, VerificationError
from freehold.keys.verify import Keychain, Role, verify_document
from freehold.update.manifest import Manifest, parse_manifest

#: Who may sign what this machine made: its own key, issued by the owner, or the owner (strict machines).
OWN_ROLES: tuple[Role, ...] = ("device", "owner")


class Believed(NamedTuple):
    """A manifest whose signature counts; ``signer`` is the key's name."""

    manifest: Manifest
    signer: str


def manifest(data: bytes, signature: bytes, keychain: Keychain, machine: str | None, where: str) -> Believed:
    """The manifest ``data`` on the machine ``machine`` (its id).

    Raises :class:`VerificationError` unless who signed it may say what it says, and
    :class:`freehold.errors.InputError` for one that is signed, but not valid.
    """
    verdict = verify_document(data, signature, keychain=keychain)
    if verdict.ok:
        found = parse_manifest(data)
        if found.derived is not None:
            raise VerificationError(f"{where}: a release key signed what only this machine or its owner may")
        return Believed(found, verdict.key)
    reasons = [verdict.reason]
    for role in OWN_ROLES:
        verdict = verify_document(data, signature, keychain=keychain, role=role, machine=machine)
        if not verdict.ok:
            reasons.append(verdict.reason)
            continue
        found = parse_manifest(data)
        if found.derived is None:
            raise VerificationError(f"{where}: a key of role {role} signed a release, which only a release key may")
        return Believed(found, verdict.key)
    raise VerificationError(
        f"{where} is not genuine: {reasons[1] if _says_derived(data) else reasons[0]}",
        hint="somebody with root rights changed it; `freehold verify` looks for more",
    )


def _says_derived(data: bytes) -> bool:
    """Whether a manifest that nobody vouches for calls itself derived: which reason helps, nothing else."""
    try:
        return parse_manifest(data).derived is not None
    except InputError:
        return False
