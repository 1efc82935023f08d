# SPDX-License-Identifier: Apache-2.0
"""A place that only this process and what it starts can reach: scratch, and a view of the system that root cannot change.

A mount namespace of its own, cut off from the others, with an empty file system over ``/tmp``: a directory of the sealed
tree, which nobody can move or put a link in the place of. Everything ends with the process, however that happens. The way
through ``/proc/PID/root`` is closed for the updater itself (docs/guard.md), not for programs that it starts; so nothing that
comes back from those is signed unread.

Root can mount other things over /proc and /sys in the first namespace, and over most of /run; so the kernel's command line and
the firmware's variables are mounted anew, and there is no /etc.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from freehold.device.sysroot import Sysroot
from freehold.errors import FreeholdError
from freehold.lock import mounts

PLACE = Path("/tmp")  # noqa: S108 (covered before it is used)
_FLAGS = mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC
_VARIABLES = "sys/firmware/efi/efivars"


def enter(place: Path = PLACE, sysroot: Sysroot | None = None) -> Sysroot:
    """Make it, and give ``sysroot`` with its scratch there. Mount what has to be mounted before: later mounts do not arrive.

    Raises :class:`FreeholdError`.
    """
    try:
        mounts.private_namespace(follow=False)
        mounts.mount("freehold-updater", place, "tmpfs", _FLAGS, "mode=0700")
        system = place / "system"
        (system / "proc").mkdir(parents=True)
        (system / _VARIABLES).mkdir(parents=True)
        mounts.mount("proc", system / "proc", "proc", _FLAGS)
        with contextlib.suppress(OSError):  # firmware without variables has no Secure Boot either
            mounts.mount("efivarfs", system / _VARIABLES, "efivarfs", _FLAGS)
        for name in ("usr", "run"):
            (system / name).symlink_to(f"/{name}")
        (place / "scratch").mkdir()
    except OSError as error:
        raise FreeholdError(f"the updater has no place of its own: {error.strerror}") from None
    return (sysroot or Sysroot())._replace(system=system, scratch=place / "scratch")
