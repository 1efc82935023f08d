# SPDX-License-Identifier: Apache-2.0
"""Starting the processes of a machine: its firmware's variables, its TPM, QEMU."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import subprocess
import time
from pathlib import Path

from freehold import atomic, run
from freehold.build.tools import Tools
from freehold.errors import FreeholdError, InputError
from freehold.monitor import Monitor
from freehold.vm import firmware, host, state
from freehold.vm.machine import QCOW2_MAGIC, Machine, Wiring, arguments, disk_format

#: Seconds until a started program has made its socket.
SOCKET_SECONDS = 15.0


def launch(
    machine: Machine, accelerator: str, monitor: Monitor, tools: Tools
) -> tuple[state.Record, subprocess.Popen[bytes]]:
    """Start ``machine`` and write its record. The caller holds the machine's lock.

    Raises :class:`InputError` for files that are not there, :class:`FreeholdError` when QEMU does
    not start; nothing is left running then.
    """
    places = state.paths(machine.name)
    kind, *others = [_disk_kind(disk) for disk in (machine.disk, *machine.disks)]
    if machine.ignition is not None and not machine.ignition.exists():
        raise InputError(f"{machine.ignition}: no such file")
    files = firmware.find(host.firmware_folder(tools), secure=machine.secure_boot)
    shutil.rmtree(places.run, ignore_errors=True)
    for folder in (places.run, places.keep):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    places.qemu_log.write_bytes(b"")
    offset = _mark(places.serial, machine.name)
    try:
        variables, tpm = _firmware_state(machine, places, files, monitor, tools)
        wiring = Wiring(
            code=files.code, variables=variables, disk_format=kind, accelerator=accelerator,
            qmp=places.qmp, human=places.human, agent=places.agent, serial=places.serial, tpm=places.tpm,
            disk_formats=tuple(others),
        )  # fmt: skip
        with contextlib.ExitStack() as undo:
            helper = _start_tpm(tpm, places, tools) if machine.tpm else None
            if helper is not None:
                undo.callback(_end, helper)
            # A snapshot's changes go to a file without a name: not in /tmp, which may be memory.
            process = run.start(
                [*host.qemu(tools), *arguments(machine, wiring)], log=places.qemu_log, env={"TMPDIR": str(places.run)}
            )
            undo.callback(_end, process)
            record = state.Record(
                name=machine.name, disk=str(machine.disk), accelerator=accelerator, pid=process.pid,
                ticks=state.process_ticks(process.pid), host_boot=state.host_boot(), started=time.time(),
                serial_offset=offset, snapshot=machine.snapshot, secure_boot=machine.secure_boot, tpm=machine.tpm,
                tpm_pid=helper.pid if helper else 0, tpm_ticks=state.process_ticks(helper.pid) if helper else 0,
            )  # fmt: skip
            state.save(record)
            undo.callback(places.record.unlink, missing_ok=True)
            _await(places.qmp, process, places.qemu_log, "QEMU")
            undo.pop_all()
    except BaseException:
        shutil.rmtree(places.run, ignore_errors=True)
        raise
    return record, process


def _disk_kind(disk: Path) -> str:
    if not disk.exists():
        raise InputError(f"{disk}: no such file")
    try:
        with disk.open("rb") as source:
            return disk_format(source.read(len(QCOW2_MAGIC)))
    except OSError as error:
        raise InputError(f"{disk}: {error.strerror}") from None


def _mark(serial: Path, name: str) -> int:
    """Begin a new part of the console's log and return where it begins."""
    with serial.open("ab") as log:
        log.write(f"\n--- {name}: started {time.strftime('%Y-%m-%d %H:%M:%S %z')} ---\n".encode())
        return log.tell()


def _firmware_state(
    machine: Machine, places: state.Paths, files: firmware.Firmware, monitor: Monitor, tools: Tools
) -> tuple[Path, Path]:
    """The machine's variables and TPM directory: kept ones of the same disk, else new ones; a snapshot gets copies."""
    found = firmware.certificates(machine.keys) if machine.secure_boot else []
    identity = _identity(machine, files, found)
    kept, kept_tpm, note = places.keep / "variables.fd", places.keep / "tpm", places.keep / "identity.json"
    try:
        same = json.loads(note.read_text()) == identity and kept.exists()
    except (OSError, ValueError):
        same = False
    if not same:
        # Another disk under this name is another machine: boot entries, keys and TPM start empty.
        note.unlink(missing_ok=True)
        shutil.rmtree(kept_tpm, ignore_errors=True)
        fresh = places.run / "fresh.fd"
        if found:
            firmware.prepare(files.variables, fresh, found, tools.run)
        else:
            shutil.copyfile(files.variables, fresh)
            if machine.secure_boot:
                monitor.message("no keys given: Secure Boot is in setup mode until the disk enrols its own")
        atomic.publish(fresh, kept)
        kept_tpm.mkdir(mode=0o700)
        atomic.write(note, json.dumps(identity) + "\n")
    if not machine.snapshot:
        return kept, kept_tpm
    shutil.copyfile(kept, places.run / "variables.fd")
    shutil.copytree(kept_tpm, places.run / "tpm")
    return places.run / "variables.fd", places.run / "tpm"


def adopt(machine: Machine, variables: Path, tpm: Path | None, tools: Tools) -> None:
    """Have ``machine`` start with copies of these firmware variables and this TPM state, as if it had left them itself.

    The machine is off. For who keeps a prepared machine and starts from it again and again.
    """
    places = state.paths(machine.name)
    files = firmware.find(host.firmware_folder(tools), secure=machine.secure_boot)
    places.keep.mkdir(parents=True, exist_ok=True, mode=0o700)
    note, kept = places.keep / "identity.json", places.keep / "tpm"
    note.unlink(missing_ok=True)
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copyfile(variables, places.keep / "variables.fd")
    if tpm is None:
        kept.mkdir(mode=0o700)
    else:
        shutil.copytree(tpm, kept)
    found = firmware.certificates(machine.keys) if machine.secure_boot else []
    atomic.write(note, json.dumps(_identity(machine, files, found)) + "\n")


def _identity(machine: Machine, files: firmware.Firmware, found: list[firmware.Certificate]) -> dict[str, object]:
    facts = machine.disk.stat()
    keys = hashlib.sha256(b"".join(hashlib.sha256(one.role.encode() + one.der).digest() for one in found)).hexdigest()
    return {"disk": [facts.st_dev, facts.st_ino], "code": str(files.code), "keys": keys}


def _start_tpm(folder: Path, places: state.Paths, tools: Tools) -> subprocess.Popen[bytes]:
    argv = [
        *host.swtpm(tools), "socket", "--tpm2", "--tpmstate", f"dir={folder}", "--ctrl", f"type=unixio,path={places.tpm}",
        "--terminate", "--flags", "startup-clear",
    ]  # fmt: skip
    process = run.start(argv, log=places.qemu_log)
    try:
        _await(places.tpm, process, places.qemu_log, "swtpm")
    except BaseException:
        _end(process)
        raise
    return process


def _await(socket: Path, process: subprocess.Popen[bytes], log: Path, program: str) -> None:
    """Wait until ``process``, which is ``program``, has made ``socket``."""
    deadline = time.monotonic() + SOCKET_SECONDS
    while not socket.exists():
        if process.poll() is not None:
            said = state.tail(log, 1)
            hint = "another machine may have the disk open" if said and "lock" in said[0] else None
            raise FreeholdError(f"{program} did not start: {said[0] if said else 'it said nothing'}", hint=hint)
        if time.monotonic() > deadline:
            raise FreeholdError(f"{program} started and made no socket within {SOCKET_SECONDS:g} s")
        time.sleep(0.02)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
