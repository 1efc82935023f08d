# SPDX-License-Identifier: Apache-2.0
"""Signing keys that never leave a token (``pkcs11:``) or a TPM (``tpm2:``).

OpenSSL's providers in the tools tree do the work, by a key file that only names the key (:mod:`freehold.build.token_uri`).
So every program there that takes a key file, sbsign among them, signs with a token as well; not with a key at a TPM's handle,
which no file can name. A PIN is tried once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.padding import AsymmetricPadding
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    KeySerializationEncryption,
    PrivateFormat,
    load_pem_public_key,
)

from freehold.build import token_uri
from freehold.build.store import cache_directory
from freehold.build.tools import Tools, ensure
from freehold.errors import CommandError, FreeholdError, InputError
from freehold.keys.x509 import (
    FILES_ONLY,
    MAX_PASSPHRASE_BYTES,
    Ask,
    KeyFile,
    OpenedKey,
    Opener,
    private_directory,
    read_passphrase,
    read_private,
    rsa_public,
    write_private,
)
from freehold.monitor import Monitor

#: The provider asks for a PIN when it has tried the one that it was given.
PIN_REFUSED = "Enter PIN for PKCS#11 Token"
#: Where smart card readers are reached.
PCSCD = Path("/run/pcscd")
#: Without a controlling terminal nothing can ask behind our back: each further PIN would be one more wrong try.
NOBODY_TO_ASK = ("setsid", "--wait")

Lend = Callable[[], AbstractContextManager[KeyFile]]


def schemes(monitor: Monitor) -> Mapping[str, Opener]:
    """Every way to reach a private key on a builder, for :func:`freehold.keys.x509.load_signer`."""

    def tools() -> Tools:
        return ensure(cache_directory(), monitor)

    return MappingProxyType(
        {
            **FILES_ONLY,
            "pkcs11": lambda rest, ask: open_pkcs11(rest, ask, tools),
            "tpm2": lambda rest, _ask: open_tpm2(rest, tools),
        }
    )


class TokenKey(rsa.RSAPrivateKey):
    """A private key elsewhere, as ``cryptography`` wants one. ``lend`` gives programs the file that names it."""

    def __init__(self, tools: Tools, lend: Lend, public: rsa.RSAPublicKey, what: str) -> None:
        self._tools = tools
        self._lend = lend
        self._public = public
        self._what = what

    @property
    def key_size(self) -> int:
        """Bits of the modulus."""
        return self._public.key_size

    def public_key(self) -> rsa.RSAPublicKey:
        """The public half."""
        return self._public

    def sign(self, data: bytes, padding_: AsymmetricPadding, algorithm: Prehashed | hashes.HashAlgorithm) -> bytes:
        """RSA PKCS#1 v1.5 with SHA-256; nothing else is asked of a token. The answer is checked before it is used."""
        if not isinstance(padding_, padding.PKCS1v15) or not isinstance(algorithm, hashes.SHA256):
            raise FreeholdError(f"{self._what} signs by RSA PKCS#1 v1.5 with SHA-256 only")
        with self._lend() as lent:
            digest = lent.directory / "digest"
            write_private(digest, hashlib.sha256(data).digest())
            done = _openssl(
                self._tools, lent, self._what, "pkeyutl", "-sign", "-inkey", lent.name, "-pkeyopt", "rsa_padding_mode:pkcs1",
                "-pkeyopt", "digest:sha256", "-in", digest,
            )  # fmt: skip
        try:
            self._public.verify(done, data, padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature:
            raise FreeholdError(f"{self._what} answered with something that is not its signature") from None
        return done

    def decrypt(self, ciphertext: bytes, padding_: AsymmetricPadding) -> NoReturn:
        """Refused: these keys sign."""
        raise self._refused()

    def private_numbers(self) -> NoReturn:
        """Refused."""
        raise self._refused()

    def private_bytes(
        self, encoding: Encoding, format: PrivateFormat, encryption_algorithm: KeySerializationEncryption
    ) -> NoReturn:
        """Refused."""
        raise self._refused()

    def __copy__(self) -> TokenKey:
        """Itself: it has no state."""
        return self

    def _refused(self) -> FreeholdError:
        return FreeholdError(f"{self._what} does not leave where it is")


def open_pkcs11(rest: str, ask: Ask, tools: Callable[[], Tools]) -> OpenedKey:
    """The key that ``pkcs11:REST`` names. Raises :class:`InputError` for a bad URI, a refused PIN and a key that is not there."""
    wanted = token_uri.parse_pkcs11(rest)
    what = f"the key {wanted.object or (wanted.id or b'').hex()!r} in the token {wanted.token!r}"
    tree = tools()
    if not (tree.root / wanted.module.lstrip("/")).is_file():
        raise InputError(
            f"there is no module {wanted.module} in the tools tree",
            hint=f"{token_uri.DEFAULT_MODULE} and /usr/lib/softhsm/libsofthsm2.so are there",
        )
    pin = read_passphrase(Path(wanted.pin_source)) if wanted.pin_source else ask(f"PIN of the token {wanted.token}: ")
    if not 1 <= len(pin) <= MAX_PASSPHRASE_BYTES:
        raise InputError(f"a PIN has 1 to {MAX_PASSPHRASE_BYTES} bytes")
    environment, places = _softhsm()
    if PCSCD.is_dir():
        places = (*places, PCSCD)

    @contextmanager
    def lend() -> Iterator[KeyFile]:
        with private_directory() as private:
            write_private(private / "pin", pin)
            write_private(private / "key.pem", token_uri.key_pem(wanted.uri(PurePosixPath(private / "pin"))))
            write_private(private / "openssl.cnf", token_uri.pkcs11_configuration(wanted.module).encode())
            settings = {**environment, "OPENSSL_CONF": str(private / "openssl.cnf")}
            yield KeyFile(private, private / "key.pem", str(private / "key.pem"), settings, places)

    return _opened(tree, lend, what, Path(wanted.certificate) if wanted.certificate else None)


def open_tpm2(rest: str, tools: Callable[[], Tools]) -> OpenedKey:
    """The key that ``tpm2:REST`` names. Raises :class:`InputError` for a bad URI, and a key that this TPM cannot use."""
    wanted = token_uri.parse_tpm2(rest)
    path = Path(wanted.path).expanduser() if wanted.path is not None else None
    content = read_private(path) if path is not None else b""
    if path is not None and not content.startswith(token_uri.TPM_KEY_MARK):
        raise InputError(f"{path} is not a key wrapped by a TPM", hint="docs/keys.md shows how to make one")
    tree = tools()
    # Which TPM: tpm2-openssl's own variable. A simulator is a socket, which must be visible inside.
    tcti = os.environ.get("TPM2OPENSSL_TCTI", "")
    socket = tcti.partition("path=")[2].partition(",")[0]
    places = (Path(socket).parent,) if socket.startswith("/") else ()
    environment = {"TPM2OPENSSL_TCTI": tcti} if tcti else {}

    @contextmanager
    def lend() -> Iterator[KeyFile]:
        with private_directory() as private:
            write_private(private / "openssl.cnf", token_uri.tpm2_configuration().encode())
            settings = {**environment, "OPENSSL_CONF": str(private / "openssl.cnf")}
            if path is None:
                yield KeyFile(private, None, wanted.handle_uri, settings, places)
            else:
                write_private(private / "key.pem", content)
                yield KeyFile(private, private / "key.pem", str(private / "key.pem"), settings, places)

    what = f"the TPM key {path}" if path is not None else f"the TPM key at {wanted.handle_uri.removeprefix('handle:')}"
    return _opened(tree, lend, what, Path(wanted.certificate).expanduser() if wanted.certificate else None)


def _opened(tree: Tools, lend: Lend, what: str, certificate: Path | None) -> OpenedKey:
    with lend() as lent:
        text = _openssl(tree, lent, what, "pkey", "-in", lent.name, "-pubout")
    try:
        public: object = load_pem_public_key(text)
    except ValueError:
        public = None
    return OpenedKey(TokenKey(tree, lend, rsa_public(public, what), what), lend, certificate)


def _openssl(tree: Tools, lent: KeyFile, what: str, *arguments: str | Path) -> bytes:
    """Run openssl with a lent key; its standard output."""
    try:
        done = tree.run(
            [*NOBODY_TO_ASK, "openssl", *arguments],
            binds=lent.places, ro_binds=[lent.directory], env=lent.environment,
        )  # fmt: skip
    except CommandError as error:
        if PIN_REFUSED in error.output:
            raise InputError(f"{what}: the PIN was refused", hint="one try was used up; a token locks after a few") from None
        raise InputError(
            f"{what} cannot be opened", hint="see that the device is there, and the names are right; --debug shows more"
        ) from error
    return done.stdout


def _softhsm() -> tuple[dict[str, str], tuple[Path, ...]]:
    """The caller's SoftHSM, where SOFTHSM2_CONF names one: the variable, and the places that it needs."""
    name = os.environ.get("SOFTHSM2_CONF")
    if not name:
        return {}, ()
    path = Path(name).absolute()
    try:
        lines = [line.partition("=") for line in path.read_text(errors="replace").splitlines()]
    except OSError as error:
        raise InputError(f"{path} (SOFTHSM2_CONF): {error.strerror}") from None
    tokens = [Path(value.strip()) for key, _, value in lines if key.strip() == "directories.tokendir"]
    return {"SOFTHSM2_CONF": str(path)}, (path, *tokens)
