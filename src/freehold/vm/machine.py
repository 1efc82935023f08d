# SPDX-License-Identifier: Apache-2.0
"""What a virtual machine is, and the QEMU command line that makes it so. Pure."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from freehold.errors import InputError

AGENT_PORT = "org.qemu.guest_agent.0"
#: Label of the agent's channel, by which the monitor names it.
AGENT_LABEL = "agent"
IGNITION_ITEM = "opt/com.coreos/config"
DEFAULT_MEMORY_MIB = 2048
DEFAULT_CPUS = 2
MIN_MEMORY_MIB = 256
MAX_MEMORY_MIB = 1 << 20
#: Seconds until a guest has to answer; emulation is some ten times slower.
BOOT_TIMEOUT = {"kvm": 120.0, "tcg": 420.0}
QCOW2_MAGIC = b"QFI\xfb"

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}", re.IGNORECASE)
_SIZE = re.compile(r"(\d{1,9})([MG]?)(?:i?B)?", re.IGNORECASE)
_FORWARD = re.compile(r"(\d{1,5}):(\d{1,5})")


@dataclass(frozen=True)
class Forward:
    """TCP port ``host`` on 127.0.0.1 leads to port ``guest`` of the machine."""

    host: int
    guest: int


@dataclass(frozen=True)
class Machine:
    """A virtual machine as a person asks for it.

    ``timeout`` is in seconds (``None``: by accelerator); ``accelerator`` is ``kvm``, ``tcg`` or
    ``None`` for whatever works; ``keys`` are certificates, or directories of them, for the
    firmware's variables; ``extra`` goes to QEMU as it is (SMBIOS strings); ``disks`` are more disks,
    which firmware does not start from.
    """

    name: str
    disk: Path
    secure_boot: bool = False
    tpm: bool = False
    snapshot: bool = False
    memory_mib: int = DEFAULT_MEMORY_MIB
    cpus: int = DEFAULT_CPUS
    ignition: Path | None = None
    keys: tuple[Path, ...] = ()
    forwards: tuple[Forward, ...] = ()
    accelerator: str | None = None
    timeout: float | None = None
    extra: tuple[str, ...] = ()
    disks: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        valid_name(self.name)
        if not MIN_MEMORY_MIB <= self.memory_mib <= MAX_MEMORY_MIB:
            raise InputError(f"memory is {self.memory_mib} MiB, it must be {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB}")
        if not 1 <= self.cpus <= 255:
            raise InputError(f"a machine has 1 to 255 processors, not {self.cpus}")
        if self.accelerator not in (None, "kvm", "tcg"):
            raise InputError(f"no accelerator is called {self.accelerator!r}", hint="kvm, tcg, or leave it out")


@dataclass(frozen=True)
class Wiring:
    """Where the parts of one running machine are on the host; ``disk_formats`` are those of its further disks."""

    code: Path
    variables: Path
    disk_format: str
    accelerator: str
    qmp: Path
    human: Path
    agent: Path
    serial: Path
    tpm: Path
    disk_formats: tuple[str, ...] = ()


def valid_name(name: str) -> str:
    """``name``, when a machine may be called so; :class:`InputError` otherwise."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{name!r} is no name for a machine",
            hint="1 to 32 letters, digits, dots, dashes, underscores; a letter or digit first",
        )
    return name


def parse_memory(text: str) -> int:
    """MiB from ``2048``, ``2048M`` or ``2G``; :class:`InputError` for anything else."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InputError(f"{text!r} is no amount of memory", hint="for example 2048M or 2G")
    return int(match[1]) * (1024 if match[2].upper() == "G" else 1)


def parse_forward(text: str) -> Forward:
    """A :class:`Forward` from ``HOST:GUEST``; :class:`InputError` for anything else."""
    match = _FORWARD.fullmatch(text)
    ports = [int(part) for part in match.groups()] if match else []
    if len(ports) != 2 or not all(1 <= port <= 65535 for port in ports):
        raise InputError(f"{text!r} is no port forwarding", hint="HOST:GUEST, for example 8080:80")
    return Forward(*ports)


def disk_format(head: bytes) -> str:
    """``qcow2`` or ``raw``, from a disk's first bytes."""
    return "qcow2" if head.startswith(QCOW2_MAGIC) else "raw"


def arguments(machine: Machine, wiring: Wiring) -> list[str]:
    """The arguments of QEMU for ``machine``: no window, but a screen, a keyboard and a serial console."""
    secure = machine.secure_boot
    argv = [
        "-nodefaults", "-no-user-config",
        "-name", f"guest={_value(machine.name)}",
        "-machine", f"q35,smm={'on' if secure else 'off'}",
        *accelerator_options(wiring.accelerator),
        "-smp", str(machine.cpus),
        "-m", str(machine.memory_mib),
        # Suspend to RAM leaves SMM's lock box in a state that the emulated firmware does not restore.
        "-global", "ICH9-LPC.disable_s3=1",
        *(("-global", "driver=cfi.pflash01,property=secure,value=on") if secure else ()),
        "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={_value(wiring.code)}",
        "-drive", f"if=pflash,unit=1,format=raw,file={_value(wiring.variables)}",
        "-drive", _drive(machine, wiring),
        "-device", "virtio-blk-pci,drive=disk0,bootindex=1",
        "-netdev", _network(machine.forwards),
        "-device", "virtio-net-pci,netdev=net0,romfile=",
        "-device", "virtio-rng-pci",
        "-device", "virtio-serial-pci",
        "-chardev", f"socket,id={AGENT_LABEL},path={_value(wiring.agent)},server=on,wait=off",
        "-device", f"virtserialport,chardev={AGENT_LABEL},name={AGENT_PORT}",
        "-chardev", f"file,id=console,path={_value(wiring.serial)},append=on",
        "-serial", "chardev:console",
        "-chardev", f"socket,id=qmp,path={_value(wiring.qmp)},server=on,wait=off",
        "-mon", "chardev=qmp,mode=control",
        "-chardev", f"socket,id=human,path={_value(wiring.human)},server=on,wait=off",
        "-mon", "chardev=human,mode=readline",
        "-display", "none", "-vga", "std",
    ]  # fmt: skip
    if machine.tpm:
        argv += ["-chardev", f"socket,id=tpm,path={_value(wiring.tpm)}"]
        argv += ["-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-tis,tpmdev=tpm0"]
    if machine.ignition is not None:
        argv += ["-fw_cfg", f"name={IGNITION_ITEM},file={_value(machine.ignition)}"]
    for number, (disk, kind) in enumerate(zip(machine.disks, wiring.disk_formats, strict=True), start=1):
        argv += ["-drive", f"if=none,id=disk{number},format={kind},cache=writeback,discard=unmap,"
                           f"snapshot={'on' if machine.snapshot else 'off'},file={_value(disk)}"]  # fmt: skip
        argv += ["-device", f"virtio-blk-pci,drive=disk{number}"]
    return [*argv, *machine.extra]


def accelerator_options(accelerator: str) -> Sequence[str]:
    """QEMU options for ``kvm`` or ``tcg``."""
    if accelerator == "kvm":
        return ("-accel", "kvm", "-cpu", "host")
    return ("-accel", "tcg,thread=multi", "-cpu", "max")


def _value(text: str | os.PathLike[str]) -> str:
    """A value inside an option of QEMU's: a comma is written twice."""
    return os.fspath(text).replace(",", ",,")


def _drive(machine: Machine, wiring: Wiring) -> str:
    options = f"if=none,id=disk0,format={wiring.disk_format},cache=writeback,discard=unmap"
    return f"{options},snapshot={'on' if machine.snapshot else 'off'},file={_value(machine.disk)}"


def _network(forwards: Sequence[Forward]) -> str:
    return ",".join(["user,id=net0", *(f"hostfwd=tcp:127.0.0.1:{one.host}-:{one.guest}" for one in forwards)])
