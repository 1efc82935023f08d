# SPDX-License-Identifier: Apache-2.0
"""The registry of machines: one directory each, what runs in it, and what outlives a run.

``$XDG_STATE_HOME/freehold/vm/NAME/``: ``machine.json`` and ``run/`` (sockets, throwaway state)
while it runs; ``keep/`` (firmware variables, TPM), ``serial.log`` and ``qemu.log`` also after.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from freehold import atomic
from freehold.errors import BusyError, FreeholdError, InputError, NotHereError
from freehold.vm.machine import valid_name

RECORD_VERSION = 1
MAX_RECORD = 64 << 10
#: A unix socket's address holds 108 bytes, the last one is zero.
MAX_SOCKET_PATH = 107
#: Bytes at a log's end that are read for its last lines.
TAIL_BYTES = 64 << 10


@dataclass(frozen=True)
class Paths:
    """Where the files of one machine are."""

    base: Path

    @property
    def record(self) -> Path:
        """What runs: exists exactly while the machine is believed to."""
        return self.base / "machine.json"

    @property
    def lock(self) -> Path:
        """Held by whoever starts or stops the machine."""
        return self.base.parent / f".{self.base.name}.lock"

    @property
    def run(self) -> Path:
        """Gone after the machine."""
        return self.base / "run"

    @property
    def keep(self) -> Path:
        """Stays for the next start."""
        return self.base / "keep"

    @property
    def serial(self) -> Path:
        """The serial console, every boot appended."""
        return self.base / "serial.log"

    @property
    def qemu_log(self) -> Path:
        """What QEMU and the TPM emulator said."""
        return self.base / "qemu.log"

    @property
    def qmp(self) -> Path:
        """Our monitor."""
        return self.run / "qmp.sock"

    @property
    def human(self) -> Path:
        """A monitor for people."""
        return self.run / "monitor.sock"

    @property
    def agent(self) -> Path:
        """The guest agent's channel."""
        return self.run / "agent.sock"

    @property
    def tpm(self) -> Path:
        """The TPM emulator's control channel."""
        return self.run / "tpm.sock"


@dataclass(frozen=True)
class Record:
    """A machine that was started: its processes and what people ask about it."""

    name: str
    disk: str
    accelerator: str
    pid: int
    ticks: int
    host_boot: str
    started: float
    serial_offset: int
    snapshot: bool
    secure_boot: bool
    tpm: bool
    tpm_pid: int = 0
    tpm_ticks: int = 0

    @property
    def alive(self) -> bool:
        """Whether the QEMU process that was started still runs."""
        return self.host_boot == host_boot() and self.ticks != 0 and process_ticks(self.pid) == self.ticks


def directory() -> Path:
    """The registry: ``$XDG_STATE_HOME/freehold/vm``, by default below ``~/.local/state``."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "freehold/vm"


def paths(name: str) -> Paths:
    """The places of machine ``name``; :class:`InputError` for a bad name or too deep a registry."""
    found = Paths(directory() / valid_name(name))
    if len(os.fsencode(found.human)) > MAX_SOCKET_PATH:
        raise InputError(
            f"{found.base} is too long a path for sockets",
            hint="set XDG_STATE_HOME to a shorter one, or choose a shorter name",
        )
    return found


def host_boot() -> str:
    """The id of this host's boot: process ids mean nothing across it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def process_ticks(pid: int) -> int:
    """When process ``pid`` started, in clock ticks since boot; 0 when it is gone or a zombie.

    A process id comes round again; the pair of id and start time does not.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def dump(record: Record) -> str:
    """A record as JSON text."""
    return json.dumps({"version": RECORD_VERSION, **asdict(record)}, indent=1) + "\n"


def parse(text: str) -> Record:
    """A record from JSON text; :class:`FreeholdError` when it is none of ours."""
    try:
        fields = json.loads(text)
        if fields.pop("version") != RECORD_VERSION:
            raise ValueError("another version")
        record = Record(**fields)
        for name, kind in Record.__annotations__.items():
            if type(getattr(record, name)).__name__ != kind:
                raise ValueError(f"{name} is no {kind}")
        valid_name(record.name)
    except (ValueError, TypeError, AttributeError, KeyError, InputError) as error:
        raise FreeholdError(f"a machine's record is damaged: {error}") from None
    return record


def read(name: str) -> Record | None:
    """The record of machine ``name``, whether or not its QEMU runs."""
    places = paths(name)
    try:
        with places.record.open(encoding="utf-8", errors="replace") as source:
            text = source.read(MAX_RECORD)
    except FileNotFoundError:
        return None
    try:
        return parse(text)
    except FreeholdError as error:
        raise FreeholdError(f"{places.record}: {error.message}", hint="if its QEMU is gone, remove the file") from None


def load(name: str) -> Record | None:
    """The record of machine ``name`` while its QEMU runs; what a dead one left is cleaned."""
    record = read(name)
    if record is None or record.alive:
        return record
    sweep(record)
    return None


def sweep(record: Record) -> None:
    """Clean up after a dead machine, unless its name is being started again, which cleans up as well."""
    with (
        contextlib.suppress(BusyError),
        atomic.exclusive(paths(record.name).lock, f"the machine {record.name}"),
    ):
        if read(record.name) == record:
            clean(record)


def required(name: str) -> Record:
    """The record of machine ``name``; :class:`NotHereError` when it does not run."""
    record = load(name)
    if record is None:
        last = tail(paths(name).qemu_log, 1)
        raise NotHereError(
            f"no machine named {name!r} is running",
            hint=f"QEMU's last words: {last[0]}" if last else "`freehold vm list` shows them",
        )
    return record


def running() -> list[Record]:
    """Every running machine, by name; dead ones are cleaned on the way."""
    try:
        names = sorted(entry.name for entry in directory().iterdir() if (entry / "machine.json").exists())
    except FileNotFoundError:
        return []
    return [record for name in names if (record := load(name)) is not None]


def save(record: Record) -> None:
    """Write ``record`` down."""
    atomic.write(paths(record.name).record, dump(record), mode=0o600)


def clean(record: Record) -> None:
    """Remove what a machine that has ended leaves behind, its TPM emulator too."""
    if record.tpm_pid and record.host_boot == host_boot():
        kill(record.tpm_pid, record.tpm_ticks)
    places = paths(record.name)
    shutil.rmtree(places.run, ignore_errors=True)
    places.record.unlink(missing_ok=True)


def kill(pid: int, ticks: int) -> None:
    """End process ``pid`` at once, if it is still the one that started at ``ticks``."""
    with contextlib.suppress(ProcessLookupError), _held(pid) as fd:
        if process_ticks(pid) == ticks != 0:
            signal.pidfd_send_signal(fd, signal.SIGKILL)


def wait(pid: int, ticks: int, timeout: float | None) -> bool:
    """Wait until the process that started at ``ticks`` has ended; ``False`` after ``timeout`` seconds."""
    with contextlib.suppress(ProcessLookupError), _held(pid) as fd:
        if process_ticks(pid) == ticks != 0:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            return bool(poll.poll(None if timeout is None else max(0, round(timeout * 1000))))
    return True


@contextlib.contextmanager
def _held(pid: int) -> Iterator[int]:
    """A descriptor of a process: what is checked through it cannot become another one."""
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


def tail(log: Path, lines: int, *, offset: int = 0) -> list[str]:
    """The last ``lines`` lines with text of ``log`` after byte ``offset``, control sequences removed."""
    try:
        with log.open("rb") as source:
            end = source.seek(0, os.SEEK_END)
            source.seek(max(offset, end - TAIL_BYTES))
            return printable(source.read(TAIL_BYTES))[-lines:]
    except FileNotFoundError:
        return []


def printable(data: bytes) -> list[str]:
    """The lines of a console's output, as text without control sequences, empty ones left out."""
    # Late: few commands show a console.
    import re

    # What moves the cursor or clears begins a line, what colours is nothing.
    text = re.sub(rb"\x1b\[[0-9;]*[ABEFHJdf]", b"\n", data)
    text = re.sub(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[()][0-9A-B]|[=>c78])", b"", text)
    decoded = text.decode(errors="replace").replace("\r", "\n")
    cleaned = ("".join(char for char in line if char.isprintable()).strip() for line in decoded.split("\n"))
    return [line for line in cleaned if line]
