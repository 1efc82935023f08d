# SPDX-License-Identifier: Apache-2.0
"""Elsewhere: what a request to commit /etc would have signed, read out of the image itself. Pure."""

from __future__ import annotations

import stat

from freehold.device.etc_image import Image, changes_between
from freehold.device.etc_paths import shown
from freehold.errors import InputError
from freehold.keys import verity
from freehold.keys.verify import Certificate, Keychain
from freehold.lock import intent as intents
from freehold.lock.etc_request import Carried
from freehold.lock.intent import Intent


def check(carried: Carried, wanted: Intent) -> Image | None:
    """The image that the intent names. :class:`InputError` when the request carries another one, or one that is not ours."""
    if not carried.image:
        if wanted.config is not None:
            raise InputError("the request does not carry the /etc that its intent names")
        return None
    if verity.digest_bytes(carried.image).hex() != wanted.config:
        raise InputError("the request carries another /etc than its intent names")
    return Image(carried.image)


def describe(carried: Carried, wanted: Intent, *, whole: bool) -> list[str]:
    """What would be signed, a line each: compared with the image before it, or the ``whole`` image."""
    image = check(carried, wanted)
    before = Image(carried.before) if carried.before and not whole else None
    changes = changes_between(before, image)
    known = 0 if image is None else sum(1 for path, file in image.files.items() if path and not stat.S_ISDIR(file.mode))
    lines = [f"message: {image.message}"] if image is not None and image.message else []
    compared = "compared with the one before" if before is not None else "all of it"
    lines.append(f"the committed /etc ({known} files, links and removals), {compared}:")
    for change in changes:
        file = None if image is None else image.files.get(change.path)
        detail = ""
        if file is not None and stat.S_ISREG(file.mode):
            detail = f" ({len(file.content)} bytes, mode {stat.S_IMODE(file.mode):04o}, owner {file.uid}:{file.gid})"
        elif file is not None and stat.S_ISDIR(file.mode):
            detail = f" (a directory, mode {stat.S_IMODE(file.mode):04o}, owner {file.uid}:{file.gid})"
        elif file is not None and stat.S_ISLNK(file.mode):
            detail = f" -> {file.target!r}"
        lines.append(f"  {change.kind:8} {shown(change.path)}{detail}")
    return lines if changes else [*lines, "  nothing differs"]


def prove(carried: Carried, wanted: Intent, certificate: bytes) -> int:
    """The number of the intent by which the owner with ``certificate`` signed the image before; 0 when there is none.

    :class:`InputError` when the request compares with an image that this owner did not sign for that machine.
    """
    if not carried.before:
        return 0
    keychain = Keychain((Certificate("owner", "owner", certificate),))
    judged = intents.judge(carried.standing, keychain=keychain, machine=wanted.machine)
    digest = verity.digest_bytes(carried.before).hex()
    if judged.intent is None or judged.intent.config != digest:
        raise InputError(
            "the request compares with an /etc that this key did not sign",
            hint="--whole shows all of what is to be signed, and compares with nothing",
        )
    return judged.intent.serial
