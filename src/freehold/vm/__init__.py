# SPDX-License-Identifier: Apache-2.0
"""Virtual machines for people and for tests: QEMU, its firmware, keyboard and screen, and the guest's inside.

>>> from freehold.vm import Machine, start
>>> machine = start(Machine(name="one", disk=Path("server.raw")), monitor)
>>> machine.exec(["uname", "-r"]).text
"""

from __future__ import annotations

from freehold.vm.control import BootError, VirtualMachine, attach, start
from freehold.vm.machine import Forward, Machine

__all__ = ["BootError", "Forward", "Machine", "VirtualMachine", "attach", "start"]
