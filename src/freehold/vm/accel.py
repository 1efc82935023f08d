# SPDX-License-Identifier: Apache-2.0
"""Whether hardware virtualisation works here, found out by trying.

A device node proves nothing: para-virtual and nested hosts offer one on which no guest lives. The
firmware is at hand wherever a machine can start, and takes the processor through real, protected and
long mode with paging: reaching its boot manager is the proof. The answer is kept until the host reboots.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from pathlib import Path

from freehold import atomic, run
from freehold.build.tools import Tools
from freehold.monitor import Monitor
from freehold.vm import firmware, host, state
from freehold.vm.machine import accelerator_options

KVM = Path("/dev/kvm")
#: Seconds for the firmware to reach its boot manager; it takes one or two where KVM works.
PROBE_SECONDS = 10.0
_REACHED = b"BdsDxe"
#: QEMU goes on, paused, after the first of these.
_BROKEN = (b"KVM internal error", b"failed to initialize kvm", b"error: kvm")


def choose(monitor: Monitor, tools: Tools) -> str:
    """``kvm`` where that works, else ``tcg``, with one line that says so."""
    if not usable(tools):
        monitor.message("no usable KVM: emulating, expect it to be slow")
        return "tcg"
    return "kvm"


def usable(tools: Tools) -> bool:
    """Whether KVM boots the firmware here, tried once a boot of the host."""
    if not os.access(KVM, os.R_OK | os.W_OK):
        return False
    with contextlib.suppress(OSError, ValueError, AttributeError):
        kept = json.loads(_memory().read_text())
        if kept.get("boot") == state.host_boot() and isinstance(kept.get("usable"), bool):
            return bool(kept["usable"])
    works = probe(tools)
    remember(works)
    return works


def remember(works: bool) -> None:
    """Keep what was found until the host reboots."""
    _memory().parent.mkdir(parents=True, exist_ok=True)
    atomic.write(_memory(), json.dumps({"boot": state.host_boot(), "usable": works}) + "\n")


def probe(tools: Tools) -> bool:
    """Start the firmware under KVM and see whether it reaches its boot manager."""
    files = firmware.find(host.firmware_folder(tools), secure=False)
    with tempfile.TemporaryDirectory(prefix="freehold-kvm-") as place:
        log, console = Path(place) / "log", Path(place) / "console"
        process = run.start(
            [
                *host.qemu(tools), "-nodefaults", "-no-user-config", "-machine", "q35", *accelerator_options("kvm"), "-m", "256",
                "-display", "none", "-no-reboot", "-serial", f"file:{console}",
                "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={files.code}",
                "-drive", f"if=pflash,unit=1,format=raw,snapshot=on,file={files.variables}",
            ],
            log=log,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + PROBE_SECONDS
            while time.monotonic() < deadline and process.poll() is None:
                if console.exists() and _REACHED in console.read_bytes():
                    return True
                said = log.read_bytes()
                if any(sign in said for sign in _BROKEN):
                    return False
                time.sleep(0.05)
            return False
        finally:
            process.kill()
            process.wait()


def _memory() -> Path:
    return state.directory() / ".kvm.json"
