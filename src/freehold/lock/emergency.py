# SPDX-License-Identifier: Apache-2.0
"""The key of emergency ssh: from the owner's public key file to its fingerprint in the intent. Pure (docs/emergency-ssh.md).

The intent names the key by SHA-256 of its blob, as OpenSSH does. The early step has the same reading of the stored line in
C (``early/emergency.c``).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

from freehold.errors import InputError

#: Where the emergency sshd listens, TCP (data/usr/lib/freehold/emergency-sshd.conf).
PORT = 2222
MAX_BYTES = 8192  # of a public key file
MAX_LINE = 4096  # of the stored line, as the early step reads it
RSA_BITS = 3072
_ED25519, _ECDSA = "ssh-ed25519", "ecdsa-sha2-"
_CURVES = {"nistp256": 32, "nistp384": 48, "nistp521": 66}
_DIGEST = re.compile(r"[A-Za-z0-9+/]{43}=")
_HINT = "give a file NAME.pub of `ssh-keygen -t ed25519`, or the line in it"


@dataclass(frozen=True)
class Key:
    """A public key that may have an emergency session. ``type`` as OpenSSH names it, ``blob`` in ssh's wire format."""

    type: str
    blob: bytes

    @property
    def digest(self) -> str:
        """What the intent says: base64 of SHA-256, with padding."""
        return base64.b64encode(hashlib.sha256(self.blob).digest()).decode()

    @property
    def name(self) -> str:
        """The file's name in the owner's directory."""
        return file_name(self.digest)

    @property
    def line(self) -> str:
        """The stored line: type and blob, no comment, no options."""
        return f"{self.type} {base64.b64encode(self.blob).decode()}\n"


def file_name(digest: str) -> str:
    """The name of the file that holds the key which an intent names."""
    return f"{base64.b64decode(digest).hex()}.pub"


def is_digest(text: str) -> bool:
    """Whether ``text`` is a digest as intents have it."""
    return _DIGEST.fullmatch(text) is not None


def fingerprint(digest: str) -> str:
    """An intent's ``digest`` as ``ssh-keygen -l`` shows it."""
    return f"SHA256:{digest.rstrip('=')}"


def sentence(digest: str) -> str:
    """What the console, the login prompt and ``status`` say of the key in force; ``early/emergency.c`` has the same words."""
    return f"emergency ssh: {fingerprint(digest)} may bypass the lock on port {PORT}"


def parse(text: str) -> Key:
    """The one key in ``text``, a public key file or its line; a comment is left out.

    Raises :class:`InputError`: for options, certificates, private keys, keys that are no longer strong (DSA, RSA below
    3,072 bits), and whatever ssh would not read.
    """
    if "PRIVATE KEY" in text:
        raise InputError("this is a private key: it stays with its owner", hint=_HINT)
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if len(lines) != 1 or len(text) > MAX_BYTES:
        raise InputError(f"emergency ssh takes exactly one key, and here are {len(lines)}", hint=_HINT)
    words = lines[0].split()
    reader = _READERS.get(words[0])
    if reader is None or len(words) < 2:
        raise InputError(f"no public key that emergency ssh takes: {words[0][:40]!r}", hint=_HINT)
    try:
        blob = base64.b64decode(words[1], validate=True)
    except (binascii.Error, ValueError):
        raise InputError("the public key is not base64", hint=_HINT) from None
    wire = _Wire(blob)
    if wire.string() != words[0].encode():
        raise InputError(f"the public key is not of the type {words[0]} that its line says", hint=_HINT)
    reader(wire)
    if wire.rest or base64.b64encode(blob).decode() != words[1]:
        raise InputError("the public key has bytes that do not belong to it", hint=_HINT)
    return Key(words[0], blob)


class _Wire:
    """ssh's wire format (RFC 4251): strings with their length before them."""

    def __init__(self, rest: bytes) -> None:
        self.rest = rest

    def string(self) -> bytes:
        length = int.from_bytes(self.rest[:4], "big")
        if len(self.rest) < 4 + length or len(self.rest) < 4:
            raise InputError("the public key ends too early", hint=_HINT)
        found, self.rest = self.rest[4 : 4 + length], self.rest[4 + length :]
        return found


def _ed25519(wire: _Wire) -> None:
    if len(wire.string()) != 32:
        raise InputError("the Ed25519 key has not 32 bytes", hint=_HINT)


def _ecdsa(curve: str) -> Callable[[_Wire], None]:
    def read(wire: _Wire) -> None:
        named, point = wire.string(), wire.string()
        if named != curve.encode() or len(point) != 1 + 2 * _CURVES[curve] or point[0] != 4:
            raise InputError(f"the ECDSA key is no point of {curve}", hint=_HINT)

    return read


def _rsa(wire: _Wire) -> None:
    exponent, modulus = (int.from_bytes(wire.string(), "big") for _ in range(2))
    if modulus.bit_length() < RSA_BITS or exponent < 3:
        raise InputError(
            f"the RSA key has {modulus.bit_length()} bits: emergency ssh takes {RSA_BITS} and more", hint=_HINT
        )


def _in_token(read: Callable[[_Wire], None]) -> Callable[[_Wire], None]:
    def both(wire: _Wire) -> None:
        read(wire)
        if not wire.string():
            raise InputError("the security key names no application", hint=_HINT)

    return both


_READERS: dict[str, Callable[[_Wire], None]] = {
    _ED25519: _ed25519,
    **{f"{_ECDSA}{curve}": _ecdsa(curve) for curve in _CURVES},
    f"sk-{_ED25519}@openssh.com": _in_token(_ed25519),
    f"sk-{_ECDSA}nistp256@openssh.com": _in_token(_ecdsa("nistp256")),
    "ssh-rsa": _rsa,
}
