# SPDX-License-Identifier: Apache-2.0
"""fs-verity by the kernel: switch it on for a file, ask for a file's digest."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from array import array

from freehold.errors import FreeholdError, InputError, NotHereError, VerificationError
from freehold.keys.verity import BLOCK, DIGEST_BYTES, MAX_SIGNATURE_BYTES

#: _IOW('f', 133, struct fsverity_enable_arg) and _IOWR('f', 134, struct fsverity_digest).
FS_IOC_ENABLE_VERITY = 0x40806685
FS_IOC_MEASURE_VERITY = 0xC0046686

_SHA256 = 1
#: version, algorithm, block size, salt size, salt, signature size, reserved, signature, reserved (11 × 8).
_ENABLE = struct.Struct("=IIIIQIIQ88x")
_MEASURE = struct.Struct(f"=HH{DIGEST_BYTES}s")

#: The file has no verity, its file system keeps none, or it cannot answer (overlayfs).
_UNMEASURED = (errno.ENODATA, errno.ENOTTY, errno.EOPNOTSUPP)
#: What the kernel's answers to a signature mean.
_SIGNATURE_FAULTS = {
    errno.ENOKEY: "no certificate in the kernel's .fs-verity ring matches its signature",
    errno.EKEYREJECTED: "its signature is not over this file's digest",
    errno.EBADMSG: "its signature is malformed",
    errno.ENOPKG: "its signature uses an algorithm that this kernel lacks",
}


def enable_verity(path: str | os.PathLike[str], signature: bytes | None = None) -> None:
    """Make the file ``path`` immutable and verified, with a built-in ``signature`` (PKCS#7) if given.

    A file that has verity already is left alone. Raises :class:`VerificationError` when the kernel
    refuses the signature, :class:`NotHereError` when the file system has no verity,
    :class:`FreeholdError` for a file that is open for writing, else :class:`OSError`.
    """
    blob = array("B", signature or b"")
    if len(blob) > MAX_SIGNATURE_BYTES:
        raise InputError(f"a built-in signature has at most {MAX_SIGNATURE_BYTES} bytes, not {len(blob)}")
    # The kernel reads the signature through this address during the call; ``blob`` outlives it.
    address = blob.buffer_info()[0] if blob else 0
    argument = _ENABLE.pack(1, _SHA256, BLOCK, 0, 0, len(blob), 0, address)
    name = os.fspath(path)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.ioctl(fd, FS_IOC_ENABLE_VERITY, argument)
    except OSError as error:
        if error.errno == errno.EEXIST:
            return
        if blob and error.errno in _SIGNATURE_FAULTS:
            raise VerificationError(f"{name}: {_SIGNATURE_FAULTS[error.errno]}") from error
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP):
            raise NotHereError(
                f"{name}: this file system keeps no fs-verity",
                hint="on ext4 it is a feature: tune2fs -O verity DEVICE",
            ) from error
        if error.errno == errno.ETXTBSY:
            raise FreeholdError(f"{name} is open for writing somewhere", hint="close it, then try again") from error
        raise
    finally:
        os.close(fd)


def measure_verity(path: str | os.PathLike[str]) -> bytes | None:
    """The SHA-256 fs-verity digest that the kernel enforces for ``path``; ``None`` when it enforces none.

    Raises :class:`OSError` when the file cannot be opened, and :class:`FreeholdError` for a digest
    by another algorithm, which must not be mistaken for one of ours.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return measure_descriptor(fd, os.fspath(path))
    finally:
        os.close(fd)


def measure_descriptor(fd: int, name: str) -> bytes | None:
    """As :func:`measure_verity`, of an open file; ``name`` is what errors call it."""
    try:
        answer = fcntl.ioctl(fd, FS_IOC_MEASURE_VERITY, _MEASURE.pack(0, DIGEST_BYTES, b""))
    except OSError as error:
        if error.errno in _UNMEASURED:
            return None
        if error.errno == errno.EOVERFLOW:
            raise FreeholdError(f"{name} has an fs-verity digest that is longer than SHA-256's") from error
        raise
    algorithm, size, digest = _MEASURE.unpack(answer)
    if algorithm != _SHA256 or size != DIGEST_BYTES:
        raise FreeholdError(f"{name} has an fs-verity digest by algorithm {algorithm}, not by SHA-256")
    return bytes(digest)
