# SPDX-License-Identifier: Apache-2.0
"""What the early step runs in the new root before systemd, when /etc is fresh: first boot, each locked boot, a new intent.

Under the lock the guard is latched before this reads anything that root could have written: the early step starts it
while the guard is loading, since starting Python takes as long, and closes its standard input when the latch is down
(``early/prepare.c``). What it reads then is the machine's typed state: every value is checked, what does not fit is named
and left out. It fails only for what makes a machine other than the one specified.
"""

from __future__ import annotations

import os

from freehold.boot import linger, machine_files
from freehold.errors import FreeholdError
from freehold.lock.machine import MachineState, decode, ordinary

# Not `typing`'s: every locked boot waits for this module, see freehold.lock.machine.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

ETC: str | Path = "/etc"
FACTORY: str | Path = "/usr/etc"
USR: str | Path = "/usr"
VAR: str | Path = "/var"
STATE: str | Path = "/sysroot/state"
MACHINE_ID: str | Path = "/sysroot/owner/id"
BOOT_RECORD: str | Path = "/run/freehold/boot.json"
#: The owner's committed /etc: what differs from the factory's. Not there when there is none.
CONFIG: str | Path = "/run/freehold/config"
#: What systemd makes files from when /etc/.updated is older than /usr: the linker's cache, accounts, the hardware database.
SOURCES = ("ld.so.conf", "ld.so.conf.d", "sysusers.d", "udev/hwdb.d")


def say(text: str) -> None:
    """One line on the console and in the kernel log."""
    with open("/dev/kmsg", "w", encoding="utf-8") as log:
        log.write(f"<4>freehold: {text[:900]}\n")


def wait() -> None:
    """Until the early step says so: until standard input ends."""
    while os.read(0, 64):
        pass


def read(path: str | Path) -> bytes:
    """A file of the early step's, whole. Raises :class:`OSError`."""
    with open(path, "rb") as file:
        return file.read()


def as_made() -> None:
    """Note that what is generated in /etc came with the image, unless the owner's part of /etc says what it is made from.

    systemd-update-done.service says so after it was made again; under the lock that would be each boot, /etc being new each time.
    """
    if any(os.path.lexists(f"{CONFIG}/{name}") for name in SOURCES):
        return
    stamp = f"{ETC}/.updated"
    with open(stamp, "wb"):
        pass
    made = os.stat(USR).st_mtime_ns
    os.utime(stamp, ns=(made, made))


def main() -> int:
    """Prepare this boot; returns the exit status. Messages go to the console."""
    try:
        wait()
        boot = decode(read(BOOT_RECORD))
        # The rescue entry: locked, nothing of the machine's own, and never the boot that provisions.
        rescue = boot.get("rescue") is True
        locked = rescue or boot["intent"]["lock"] == "locked"
        state, dropped = (MachineState(), []) if rescue else machine_files.load(STATE)
        for line in dropped:
            say(f"machine state not believed: {line}")
        machine_files.apply(state, read(MACHINE_ID).decode().strip(), FACTORY, ETC)
        if locked:
            as_made()
            linger.settle(VAR, None if rescue else ordinary(read(f"{ETC}/passwd").decode(errors="replace")), say)
        if boot["first_boot"] and not rescue:
            # Ignition's part; other boots need not import it.
            from freehold.boot import provision

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
