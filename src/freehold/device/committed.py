# SPDX-License-Identifier: Apache-2.0
"""The owner's committed configuration, as the intent in force names it: read out of the image, whatever is mounted where."""

from __future__ import annotations

from freehold.device import wanted
from freehold.device.sysroot import Sysroot
from freehold.errors import VerificationError
from freehold.files import read_bytes
from freehold.keys import verity
from freehold.lock import etc
from freehold.seal import erofs

#: The image has the files' content, and little beside it.
MAX_IMAGE = 2 * etc.MAX_BYTES


def read(sysroot: Sysroot, path: str) -> bytes | None:
    """The file ``path`` (below /etc) of the committed configuration; ``None`` when there is no such file or configuration.

    Raises :class:`VerificationError` for an image that is not the one that the owner signed, and :class:`PermissionError` for
    an ordinary user.
    """
    try:
        (sysroot.root / "owner/intent").stat()
    except FileNotFoundError:
        return None
    intent = wanted.standing(sysroot).intent
    if intent is None or intent.config is None:
        return None  # factory settings are in force
    image = sysroot.root / "owner/config" / intent.config
    data = read_bytes(image, MAX_IMAGE)
    if verity.digest_bytes(data).hex() != intent.config:
        raise VerificationError(f"{image} is not the configuration that the owner signed")
    return erofs.content(data, path)
