# SPDX-License-Identifier: Apache-2.0
"""Names of keys in tokens and TPMs, and what OpenSSL's providers read to reach them. All pure.

``pkcs11:`` is a subset of RFC 7512. The forms of a key as a file are those of the providers themselves: pkcs11-provider
decodes a PEM block that holds a URI, tpm2-openssl one that holds a wrapped key ("TSS2 PRIVATE KEY"). A key that a TPM keeps at a
persistent handle has no such form: OpenSSL takes its number in the place of a file (``handle:``).
"""

from __future__ import annotations

import base64
import re
from pathlib import PurePosixPath
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from freehold.errors import InputError
from freehold.keys import der

#: Smart cards and sticks; a path inside the tools tree.
DEFAULT_MODULE = "/usr/lib/x86_64-linux-gnu/opensc-pkcs11.so"
TPM_KEY_MARK = b"-----BEGIN TSS2 PRIVATE KEY-----"
#: Where pkcs11-provider reads that a PEM block is one of its own.
_PEM_LABEL = "PKCS#11 PROVIDER URI"
_PEM_VERSION = b"PKCS#11 Provider URI v1.0"
_MODULE = re.compile(r"/[A-Za-z0-9._/+-]{1,200}\.so(?:\.[0-9]+)*")
_HANDLE = re.compile(r"0[xX][0-9A-Fa-f]+")
#: Handles of keys that stay in the TPM (TPM 2.0 Library, part 2, 7.5: TPM_HT_PERSISTENT).
PERSISTENT = range(0x81000000, 0x82000000)
_TPM2_FORMS = "it looks like tpm2:PATH/NAME.tss, or tpm2:0x81000005?certificate=FILE"
_MAX_VALUE = 255  # bytes

_CONFIGURATION = """\
openssl_conf = init
[init]
providers = providers
[providers]
default = default_provider
{name} = key_provider
[default_provider]
activate = 1
[key_provider]
module = {name}.so
{lines}activate = 1
"""


class Pkcs11(NamedTuple):
    """A key in a PKCS#11 token. ``object`` or ``id`` (or both) say which; ``pin_source`` is a file with the PIN."""

    token: str
    object: str | None
    id: bytes | None
    module: str
    pin_source: PurePosixPath | None
    certificate: PurePosixPath | None

    def uri(self, pin_file: PurePosixPath | None) -> str:
        """The RFC 7512 URI for the provider; every byte that is no letter or digit is escaped."""
        parts = [f"token={quote(self.token, safe='')}"]
        if self.object is not None:
            parts.append(f"object={quote(self.object, safe='')}")
        if self.id is not None:
            parts.append("id=" + "".join(f"%{byte:02x}" for byte in self.id))
        query = f"?pin-source=file:{quote(str(pin_file))}" if pin_file else ""
        return f"pkcs11:{';'.join(parts)};type=private{query}"


class Tpm2(NamedTuple):
    """A key that only one TPM can use: wrapped in the file ``path``, or at a persistent ``handle``; the other is ``None``."""

    path: PurePosixPath | None
    handle: int | None
    certificate: PurePosixPath | None

    @property
    def handle_uri(self) -> str:
        """What tpm2-openssl calls the key, when it is at a handle."""
        return f"handle:{self.handle:#010x}"


def parse_pkcs11(rest: str) -> Pkcs11:
    """What follows ``pkcs11:``. :class:`InputError` lists every fault."""
    path, _, query = rest.partition("?")
    faults: list[str] = []
    values = _attributes(path, ";", ("token", "object", "id"), faults)
    options = _attributes(query, "&", ("module-path", "pin-source", "certificate"), faults)
    texts: dict[str, str] = {}
    for name, value in {**values, **options}.items():
        try:
            texts[name] = value.decode() if name != "id" else ""
        except UnicodeDecodeError:
            faults.append(f"{name}: not UTF-8")
            continue
        if not texts[name].isprintable():
            faults.append(f"{name}: has characters that cannot be printed")
    if "token" not in values:
        faults.append("token: is missing")
    if not {"object", "id"} & values.keys():
        faults.append("object: is missing (or id)")
    module = texts.get("module-path", DEFAULT_MODULE)
    if not _MODULE.fullmatch(module) or ".." in module:
        faults.append("module-path: must be the absolute path of a .so file")
    pin = texts.get("pin-source", "").removeprefix("file:")
    if "pin-source" in options and not pin.startswith("/"):
        faults.append("pin-source: must be the absolute path of a file with the PIN, as file:/PATH")
    if faults:
        raise InputError(
            "this pkcs11: URI cannot be used", faults=faults,
            hint="it looks like pkcs11:token=NAME;object=KEY?pin-source=file:/PATH&certificate=FILE",
        )  # fmt: skip
    certificate = texts.get("certificate")
    return Pkcs11(
        texts["token"], texts.get("object"), values.get("id"), module, PurePosixPath(pin) if pin else None,
        PurePosixPath(certificate) if certificate else None,
    )  # fmt: skip


def parse_tpm2(rest: str) -> Tpm2:
    """What follows ``tpm2:``: ``PATH[?certificate=FILE]``, or ``0xHANDLE[?certificate=FILE]``.

    The certificate lies beside a key's file unless told otherwise; beside a handle lies nothing. :class:`InputError`.
    """
    text, _, query = rest.partition("?")
    faults: list[str] = []
    options = _attributes(query, "&", ("certificate",), faults)
    path, handle = None, int(text, 16) if _HANDLE.fullmatch(text) else None
    try:
        certificate = PurePosixPath(options["certificate"].decode()) if "certificate" in options else None
        if handle is None:
            path = PurePosixPath(unquote_to_bytes(text).decode())
            certificate = certificate or path.with_suffix(".crt")
    except (UnicodeDecodeError, ValueError):
        raise InputError("this tpm2: URI names no file and no handle", hint=_TPM2_FORMS) from None
    if handle is not None and handle not in PERSISTENT:
        faults.append(f"{text[:20]}: is no persistent handle; those are 0x{PERSISTENT.start:08x} to 0x{PERSISTENT.stop - 1:08x}")
    if faults:
        raise InputError("this tpm2: URI cannot be used", faults=faults, hint=_TPM2_FORMS)
    return Tpm2(path, handle, certificate)


def key_pem(uri: str) -> bytes:
    """A PKCS#11 URI as the PEM block that pkcs11-provider decodes, so that programs can read it as a key file."""
    block = der.wrap(der.SEQUENCE, der.wrap(0x1A, _PEM_VERSION) + der.wrap(0x0C, uri.encode()))
    text = base64.b64encode(block).decode()
    lines = "\n".join(text[start : start + 64] for start in range(0, len(text), 64))
    return f"-----BEGIN {_PEM_LABEL}-----\n{lines}\n-----END {_PEM_LABEL}-----\n".encode()


def pkcs11_configuration(module: str) -> str:
    """OpenSSL's configuration for keys in tokens. ``no-deinit``: SoftHSM's module crashes when it is unloaded at exit."""
    return _CONFIGURATION.format(
        name="pkcs11", lines=f"pkcs11-module-path = {module}\npkcs11-module-quirks = no-deinit\n"
    )


def tpm2_configuration() -> str:
    """OpenSSL's configuration for keys of a TPM."""
    return _CONFIGURATION.format(name="tpm2", lines="")


def _attributes(text: str, separator: str, known: tuple[str, ...], faults: list[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for part in text.split(separator) if text else ():
        name, equals, value = part.partition("=")
        if name == "pin-value":
            faults.append("pin-value: a PIN in an argument can be read by every user: name a file by pin-source")
        elif name not in known:
            faults.append(f"{name[:40]!r}: is not known here; known: {', '.join(known)}")
        elif name in found:
            faults.append(f"{name}: is there twice")
        else:
            found[name] = unquote_to_bytes(value)
            if not equals or not 1 <= len(found[name]) <= _MAX_VALUE:
                faults.append(f"{name}: must have a value of 1 to {_MAX_VALUE} bytes")
    return found

