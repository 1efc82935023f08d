# SPDX-License-Identifier: Apache-2.0
"""Signed kernel modules: the signature behind a module's own bytes. Pure.

Kernel ``include/linux/module_signature.h``, ``Documentation/admin-guide/module-signing.rst``: module, SignedData over it, twelve
bytes that say how long that is, a line of text. The kernel looks at the last signature only; what lies before it is the module.
"""

from __future__ import annotations

import lzma
import re
import struct
from collections.abc import Sequence
from typing import NamedTuple

from freehold.errors import InputError
from freehold.keys import cms, der, pkcs7

#: Bytes above which a file is no module.
MAX_BYTES = 256 << 20
MAGIC = b"~Module signature appended~\n"
#: algo, hash, id_type, signer_len, key_id_len, three of nothing, sig_len. With PKCS#7 all but the type are 0.
_TRAILER = struct.Struct(">BBBBB3xI")
_PKEY_ID_PKCS7 = 2
#: ELF, little endian, 64 bits; relocatable (ET_REL), as a module is.
_ELF, _ET_REL = b"\x7fELF\x02\x01", b"\x01\x00"
_VERMAGIC = re.compile(rb"\0vermagic=([!-~]{1,128})[ \0]")


class Parts(NamedTuple):
    """A module's own bytes, and the ContentInfo (DER) behind them; ``None`` without one."""

    module: bytes
    signature: bytes | None


def unpacked(data: bytes, name: str) -> bytes:
    """The module in a file called ``name``: .ko, or .ko.xz. :class:`InputError` for other kinds, and for damaged ones."""
    if name.endswith(".ko"):
        return data
    if not name.endswith(".ko.xz"):
        raise InputError(f"{name}: modules are files .ko or .ko.xz", hint="unpack it, sign it, and pack it again")
    packer = lzma.LZMADecompressor(lzma.FORMAT_XZ)
    try:
        content = packer.decompress(data, MAX_BYTES + 1)
    except lzma.LZMAError:
        raise InputError(f"{name}: the file is damaged") from None
    if not packer.eof or packer.unused_data:
        raise InputError(f"{name}: the file is damaged, or holds more than {MAX_BYTES} bytes")
    return content


def packed(content: bytes, name: str) -> bytes:
    """``content`` as a file called ``name`` has it; the kernel's own unpacker knows no other check than CRC32."""
    return lzma.compress(content, check=lzma.CHECK_CRC32) if name.endswith(".xz") else content


def split(content: bytes) -> Parts:
    """Take the last signature off. :class:`InputError` when what is there is none that the kernel would read."""
    if not content.endswith(MAGIC):
        return Parts(content, None)
    end = len(content) - len(MAGIC) - _TRAILER.size
    fields = _TRAILER.unpack_from(content, end) if end > 0 else ()
    length = fields[-1] if fields else 0
    if fields[:-1] != (0, 0, _PKEY_ID_PKCS7, 0, 0) or not 0 < length < end:
        raise InputError("the signature behind the module is damaged", hint="take the module as it was built")
    return Parts(content[: end - length], content[end - length : end])


def check(module: bytes) -> None:
    """Raise :class:`InputError` unless ``module`` begins as the kernel's modules do on x86-64."""
    if len(module) > MAX_BYTES or not module.startswith(_ELF) or module[16:18] != _ET_REL:
        raise InputError("this is not a kernel module", hint="a module is a file .ko or .ko.xz")


def kernel_of(module: bytes) -> str:
    """Which kernel the module was built for, "" when it does not say."""
    found = _VERMAGIC.search(module)
    return found[1].decode() if found else ""


def sign(content: bytes, signer: cms.Signs, chain: Sequence[bytes] = ()) -> bytes:
    """``content`` with a signature by ``signer``, in the place of one that it has; ``chain``: more certificates (DER) to enclose.

    Raises :class:`InputError` for what is no module, and for a certificate that is not valid now.
    """
    module = split(content).module
    check(module)
    signer.check_dates()
    signature = cms.sign(module, signer.certificate_der(), signer.sign, attached=False, chain=chain)
    return module + signature + _TRAILER.pack(0, 0, _PKEY_ID_PKCS7, 0, 0, len(signature)) + MAGIC


def verify(content: bytes, authorities: Sequence[bytes]) -> bytes:
    """The certificate (DER) that signed the module, which one of ``authorities`` (DER) is, or issued.

    For signatures with their signer's certificate enclosed, as :func:`sign` makes them. :class:`ValueError` says why none counts.
    """
    parts = split(content)
    if parts.signature is None:
        raise ValueError("it has no signature")
    outer = der.children(der.only(parts.signature, der.SEQUENCE))
    if len(outer) != 2 or outer[1].tag != der.EXPLICIT_0:
        raise ValueError("its signature is no SignedData")
    return pkcs7.verify(pkcs7.parse(outer[1].content), parts.module, authorities)
