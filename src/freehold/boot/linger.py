# SPDX-License-Identifier: Apache-2.0
"""Whose services start at boot: under the lock those of ordinary users only.

``loginctl enable-linger USER`` leaves a file with the user's name, which root can write as well. A system account's home may
hold what an intruder left: its services start when signed configuration says so.
"""

from __future__ import annotations

import os

# Not `typing`'s: every locked boot waits for this module, see freehold.lock.machine.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

#: Below /var.
LINGER = "lib/systemd/linger"


def settle(var: str | Path, ordinary: Collection[str] | None, say: Callable[[str], None]) -> None:
    """Leave the marks of ``ordinary`` users alone of those in :data:`LINGER`; with None (a rescue), or where that fails, none.

    The login manager takes names by number and escaped as well, so that only a name that is one to the letter stays.
    """
    target = f"{var}/{LINGER}"
    if os.path.realpath(target) != f"{os.path.realpath(var)}/{LINGER}" or not os.path.isdir(target):
        # A link of root's on the way, or nothing there. Other boots need not import it.
        from pathlib import Path

        from freehold.boot import covers

        covers.own_directory(Path(var), LINGER)
    strange = []
    try:
        with os.scandir(target) as found:
            # It looks at no directory.
            marks = [one for one in found if not one.is_dir(follow_symlinks=False)]
        for one in marks:
            if ordinary is not None and one.name not in ordinary:
                strange.append(ascii(one.name)[:60])
                os.unlink(one.path)
    except OSError:
        # Nobody keeps a machine from booting by a file that cannot be removed.
        ordinary = None
    if ordinary is None:
        from pathlib import Path

        from freehold.boot import covers

        covers.cover(Path(target))
    for name in strange[:4]:
        say(f"machine state not believed: services of {name} at boot (linger): no ordinary user")
