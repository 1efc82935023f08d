# SPDX-License-Identifier: Apache-2.0
"""What the early step runs in the new root before systemd, when /etc is fresh: first boot, each locked boot, a new intent.

Under the lock the guard is latched already, so this runs as sealed code among nothing else. It reads the
machine's typed state, which root could have written: every value is checked, what does not fit is named and
left out. It fails only for what makes a machine other than the one specified.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path

from freehold import run
from freehold.boot import machine_files, provision
from freehold.errors import FreeholdError
from freehold.lock import machine
from freehold.lock.machine import MachineState

ETC = Path("/etc")
FACTORY = Path("/usr/etc")
STATE = Path("/sysroot/state")
MACHINE_ID = Path("/sysroot/owner/id")
BOOT_RECORD = Path("/run/freehold/boot.json")
#: Root-owned state that could make signed programs act for whoever wrote it: empty and in memory while locked.
#: The list ships in the sealed tree.
UNBELIEVED = Path("/usr/lib/freehold/unbelieved.list")
#: Below /var: a file with a user's name has the login manager start that user's own services at boot.
LINGER = "lib/systemd/linger"


def say(text: str) -> None:
    """One line on the console and in the kernel log."""
    with Path("/dev/kmsg").open("w") as log:
        log.write(f"<4>freehold: {text[:900]}\n")


def own_directory(top: Path, relative: str) -> Path:
    """``top/relative`` as real directories all the way: what else root put there, a link elsewhere, is removed."""
    path = top
    for part in Path(relative).parts:
        path /= part
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            path.unlink()
        path.mkdir(exist_ok=True)
    return path


def cover_unbelieved(var: Path) -> None:
    """Mount an empty file system over each listed directory below /var."""
    for line in UNBELIEVED.read_text().splitlines():
        path = line.strip()
        if path and not path.startswith("#"):
            _cover(own_directory(var, path.removeprefix("/var/")))


def _cover(target: Path) -> None:
    run.run(["mount", "-t", "tmpfs", "-o", "mode=0755,nosuid,nodev,size=5%", "freehold-empty", target])


def settle_linger(var: Path, ordinary: Collection[str] | None) -> None:
    """Leave the marks of ``ordinary`` users alone of those in :data:`LINGER`; with None (a rescue), or where that fails, none.

    A system account's home may hold what an intruder left: its services start when signed configuration says so. The
    login manager takes names by number and escaped as well, so that only a name that is one to the letter stays.
    """
    target = own_directory(var, LINGER)
    strange = []
    try:
        with os.scandir(target) as found:
            # It looks at no directory.
            marks = [one for one in found if not one.is_dir(follow_symlinks=False)]
        for one in marks:
            if ordinary is not None and one.name not in ordinary:
                strange.append(ascii(one.name)[:60])
                Path(one.path).unlink()
    except OSError:
        # Nobody keeps a machine from booting by a file that cannot be removed.
        ordinary = None
    if ordinary is None:
        _cover(target)
    for name in strange[:4]:
        say(f"machine state not believed: services of {name} at boot (linger): no ordinary user")


def main() -> int:
    """Prepare this boot; returns the exit status. Messages go to the console."""
    try:
        boot = json.loads(BOOT_RECORD.read_text())
        # The rescue entry: locked, nothing of the machine's own, and never the boot that provisions.
        rescue = boot.get("rescue") is True
        locked = rescue or boot["intent"]["lock"] == "locked"
        state, dropped = (MachineState(), []) if rescue else machine_files.load(STATE)
        for line in dropped:
            say(f"machine state not believed: {line}")
        machine_files.apply(state, MACHINE_ID.read_text().strip(), FACTORY, ETC)
        if locked:
            cover_unbelieved(Path("/var"))
            settle_linger(Path("/var"), None if rescue else machine.ordinary((ETC / "passwd").read_text(errors="replace")))
        if boot["first_boot"] and not rescue:
            # The owner signs an intent on a machine that runs: one that has any was provisioned before. A record that is
            # missing all the same was removed from outside, and what a new configuration says is nobody's word.
            say(provision.provision() if boot["intent"]["state"] == "absent" else provision.refuse())
    except OSError as error:
        say(f"{error.strerror} ({error.filename})")
        return 1
    except FreeholdError as error:
        say(error.message)
        for line in error.diagnostics().splitlines()[-20:]:
            say(f"  {line}")
        return 1
    return 0
