# SPDX-License-Identifier: Apache-2.0
"""The owner's credential: a private key that belongs to an owner's certificate of the sealed keychain."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from freehold.errors import VerificationError
from freehold.keys import verify
from freehold.keys.verify import Keychain

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

#: Seconds that the console waits after a refused credential, doubled each time.
FIRST_PENALTY, LONGEST_PENALTY = 2, 60
_CHALLENGE = b"freehold-rescue-challenge "


class Owner(NamedTuple):
    """An opened credential: whose it is, and its signature (raw RSA PKCS#1 v1.5, SHA-256)."""

    name: str
    sign: Callable[[bytes], bytes]


def penalty(failures: int) -> int:
    """Seconds to wait after the ``failures``-th refused credential. Pure."""
    return min(LONGEST_PENALTY, FIRST_PENALTY << min(max(failures - 1, 0), 10))


def judge(key: RSAPrivateKey, keychain: Keychain) -> Owner:
    """The owner whose key this is. Raises :class:`VerificationError` when no owner of the keychain has it.

    The key signs something of ours and the verifier that judges intents looks at it: one rule for both.
    """
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    def sign(data: bytes) -> bytes:
        return key.sign(data, padding.PKCS1v15(), hashes.SHA256())

    challenge = _CHALLENGE + os.urandom(32)
    verdict = verify.verify(challenge, sign(challenge), keychain=keychain, role="owner")
    if not verdict.ok:
        raise VerificationError(f"this is not the owner's key: {verdict.reason}")
    return Owner(verdict.key, sign)


def open_key(path: Path, keychain: Keychain, ask: Callable[[str], bytes]) -> Owner:
    """Open the key file ``path``; ``ask`` gets its passphrase when it has one.

    Raises :class:`InputError` for a file that is no key and for a wrong passphrase,
    :class:`VerificationError` for somebody else's key.
    """
    from freehold.keys.x509 import load_key

    return judge(load_key(f"file:{quote(os.fspath(path))}", ask).key, keychain)
