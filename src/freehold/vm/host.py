# SPDX-License-Identifier: Apache-2.0
"""What a machine is run with: QEMU, its firmware and its TPM, out of the builder's tools tree.

Not the host's own: emulation of QEMU 7.2 (Debian 12) was seen to stand still for up to a minute while a restarted
guest writes over old code, and to lose a race with a kernel that patches itself; the tree's release does neither.
"""

from __future__ import annotations

from pathlib import Path

from freehold.build.store import cache_directory
from freehold.build.tools import Tools, ensure
from freehold.monitor import Monitor
from freehold.run import Argument

#: Where QEMU finds the screen's ROM and its own.
DATA = ("usr/share/qemu", "usr/share/seabios")
FIRMWARE = Path("usr/share/OVMF")


def tools_tree(monitor: Monitor) -> Tools:
    """The tools tree, made when it is not cached yet."""
    return ensure(cache_directory(), monitor)


def qemu(tools: Tools) -> list[Argument]:
    """The begin of a QEMU command line."""
    return [*tools.beside("qemu-system-x86_64"), *(part for place in DATA for part in ("-L", tools.root / place))]


def swtpm(tools: Tools) -> list[Argument]:
    """The begin of a command line of the TPM emulator."""
    return tools.beside("swtpm")


def firmware_folder(tools: Tools) -> Path:
    """The directory of the UEFI firmware's files."""
    return tools.root / FIRMWARE
