# SPDX-License-Identifier: Apache-2.0
"""For ``freehold status``, which must be quick: whether a locked machine's /etc is as it was committed."""

from __future__ import annotations

import os

from freehold.device.sysroot import COMMITTED, Sysroot
from freehold.lock.covered import IGNORED
from freehold.lock.drift import drift
from freehold.lock.trees import Directory, Stack, Tree

#: Where /etc's changes are kept in memory while locked.
MEMORY = "run/freehold/etc/upper"


def count(sysroot: Sysroot) -> int | None:
    """How many paths of a locked machine's /etc differ from what was committed; ``None`` when that cannot be seen.

    Looks only at what was written since the boot, and takes the committed image as it is mounted. Root could
    mount another there; `freehold etc status` reads the image that was signed.
    """
    upper = sysroot.system / MEMORY
    try:
        os.listdir(upper)
        base: Tree = Directory(sysroot.system / "usr/etc")
        # What was mounted there before a lock without an image stays mounted.
        if sysroot.boot_record().get("config"):
            base = Stack(Directory(sysroot.system / COMMITTED), base)
        written = Directory(upper)
        found = drift(
            base, Directory(sysroot.system / "etc"), ignore=IGNORED, touched=lambda path: written.look(path) is not None
        )
        return sum(1 for _ in found)
    except OSError:
        return None
