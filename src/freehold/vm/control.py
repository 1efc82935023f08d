# SPDX-License-Identifier: Apache-2.0
"""Running machines: start, wait for an answer, reboot, stop, look at the screen, press keys."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator, Sequence

from freehold import atomic
from freehold.build.tools import Tools
from freehold.errors import BusyError, FreeholdError
from freehold.monitor import Monitor, step
from freehold.run import Argument, Completed
from freehold.vm import accel, host, keyboard, qmp, state
from freehold.vm.agent import Agent, AgentGoneError
from freehold.vm.guest import Guest
from freehold.vm.launch import launch
from freehold.vm.machine import AGENT_LABEL, BOOT_TIMEOUT, Machine

#: Seconds for a guest to shut down in order.
STOP_TIMEOUT = {"kvm": 90.0, "tcg": 240.0}
#: Lines of the console that a failed boot shows.
CONSOLE_LINES = 30
_PAUSE = 0.3
#: What QEMU calls a machine whose processor cannot go on.
_BROKEN = ("internal-error", "io-error", "guest-panicked")


class BootError(FreeholdError):
    """A machine did not come to answer. ``console`` has its last lines, ``status`` QEMU's word for its state.

    Where QEMU is gone, that is ``failed`` when it said why, and ``ended`` when the guest switched itself off.
    """

    def __init__(self, message: str, *, console: Sequence[str], hint: str | None = None, status: str = "") -> None:
        super().__init__(message, hint=hint, details="\n".join(console))
        self.console = tuple(console)
        self.status = status


class VirtualMachine:
    """A machine that was started, by this process or another one."""

    def __init__(self, record: state.Record, process: subprocess.Popen[bytes] | None = None) -> None:
        self.record = record
        self.places = state.paths(record.name)
        self.guest = Guest(Agent(self.places.agent))
        self._process = process

    @property
    def name(self) -> str:
        """The machine's name."""
        return self.record.name

    @property
    def alive(self) -> bool:
        """Whether its QEMU runs."""
        return self.record.alive

    def exec(
        self,
        argv: Sequence[Argument],
        *,
        user: str | None = None,
        stdin: bytes | None = None,
        timeout: float | None = None,
        check: bool = True,
    ) -> Completed:
        """Run ``argv`` in the guest; see :meth:`freehold.vm.guest.Guest.exec`."""
        return self.guest.exec(argv, user=user, stdin=stdin, timeout=timeout, check=check)

    def write_file(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Replace the guest's file ``path``."""
        self.guest.write_file(path, data, mode=mode)

    def read_file(self, path: str) -> bytes:
        """The contents of the guest's file ``path``."""
        return self.guest.read_file(path)

    def serial_tail(self, lines: int = CONSOLE_LINES) -> list[str]:
        """The last lines that this start printed on the serial console."""
        return state.tail(self.places.serial, lines, offset=self.record.serial_offset)

    def serial(self) -> bytes:
        """Everything that this start printed on the serial console."""
        with self.places.serial.open("rb") as log:
            log.seek(self.record.serial_offset)
            return log.read()

    def status(self) -> str:
        """QEMU's word for the machine's state: ``running``, ``paused``, ``internal-error``, …; ``ended``."""
        try:
            with qmp.connected(self.places.qmp) as client:
                answer = client.execute("query-status")
        except qmp.QmpError:
            return "unknown" if self.alive else "ended"
        return str(answer.get("status")) if isinstance(answer, dict) else "unknown"

    def has_agent(self) -> bool:
        """Whether an agent in the guest holds its end of the channel open."""
        with qmp.connected(self.places.qmp) as client:
            answer = client.execute("query-chardev")
        devices = [one for one in answer if isinstance(one, dict)] if isinstance(answer, list) else []
        return any(one.get("label") == AGENT_LABEL and one.get("frontend-open") is True for one in devices)

    def wait_answer(self, timeout: float | None = None, *, other_than: str | None = None) -> str:
        """Wait until the guest answers and return its boot id; one ``other_than`` that of a boot that goes away.

        Raises :class:`BootError` after ``timeout`` seconds, and as soon as the machine ends or breaks.
        """
        limit = timeout if timeout is not None else BOOT_TIMEOUT[self.record.accelerator]
        deadline = time.monotonic() + limit
        while True:
            if not self.alive:
                self._reap()
                raise self._ended()
            with contextlib.suppress(qmp.QmpError, AgentGoneError):
                if self.has_agent() and (found := self.guest.boot_id(timeout=15.0)) != other_than:
                    return found
            if (word := self.status()) in _BROKEN:
                raise BootError(f"{self.name} broke down: QEMU says {word}", console=self.serial_tail(), status=word)
            if time.monotonic() > deadline:
                raise self._silent(limit)
            time.sleep(_PAUSE)

    def reboot(self, *, hard: bool = False, timeout: float | None = None) -> str:
        """Restart the guest, in order or (``hard``) as if by the reset button, wait for it, return its boot id."""
        before: str | None = None
        try:
            before = self.guest.boot_id()
        except AgentGoneError:
            if not hard:
                raise
        if hard:
            with qmp.connected(self.places.qmp) as client:
                client.execute("system_reset")
        else:
            self.guest.shutdown("reboot")
        time.sleep(_PAUSE)
        return self.wait_answer(timeout, other_than=before)

    def stop(self, *, hard: bool = False, timeout: float | None = None) -> None:
        """Switch the machine off, in order or (``hard``) as if by pulling the plug, and clean up after it.

        Raises :class:`FreeholdError` when the guest does not shut down within ``timeout`` seconds;
        it goes on running then.
        """
        limit = timeout if timeout is not None else STOP_TIMEOUT[self.record.accelerator]
        if hard:
            state.kill(self.record.pid, self.record.ticks)
        elif self.alive:
            try:
                self.guest.shutdown("powerdown")
            except FreeholdError:
                # No agent: press the power button, and leave the answer to the guest.
                with contextlib.suppress(qmp.QmpError), qmp.connected(self.places.qmp) as client:
                    client.execute("system_powerdown")
        if not self.wait_gone(limit):
            raise FreeholdError(
                f"{self.name} did not shut down within {limit:g} s, it is still running", hint="`--hard` pulls the plug"
            )

    def wait_gone(self, timeout: float | None = None) -> bool:
        """Wait until the machine has ended and clean up after it; ``False`` if it has not after ``timeout`` seconds."""
        if not state.wait(self.record.pid, self.record.ticks, timeout):
            return False
        self._reap()
        state.sweep(self.record)
        return True

    def press(self, strokes: Sequence[Sequence[str]]) -> None:
        """Press groups of keys, one after the other."""
        with qmp.connected(self.places.qmp) as client:
            client.press(strokes)

    def key(self, chord: str) -> None:
        """Press a combination such as ``ctrl-alt-delete``."""
        self.press([keyboard.chord(chord)])

    def type(self, text: str) -> None:
        """Type ``text`` on a US keyboard."""
        self.press(keyboard.strokes(text))

    def screenshot(self) -> bytes:
        """The screen, as PNG."""
        shot = self.places.run / f"screen-{time.monotonic_ns()}.png"
        try:
            with qmp.connected(self.places.qmp) as client:
                client.execute("screendump", {"filename": str(shot), "format": "png"})
            return shot.read_bytes()
        finally:
            shot.unlink(missing_ok=True)

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait()

    def _ended(self) -> BootError:
        said = state.tail(self.places.qemu_log, 1)
        why = f"QEMU: {said[0]}" if said else "the guest switched itself off"
        status = "failed" if said else "ended"
        return BootError(f"{self.name} ended before it answered: {why}", console=self.serial_tail(), status=status)

    def _silent(self, limit: float) -> BootError:
        console = self.serial_tail()
        hint = "`--timeout` allows for more; the serial console is in " + str(self.places.serial)
        if any("login:" in line for line in console):
            hint = "it booted to a login prompt: its image lacks the package qemu-guest-agent"
        return BootError(f"{self.name} did not answer within {limit:g} s", console=console, hint=hint, status="silent")


def start(machine: Machine, monitor: Monitor, *, wait: bool = True) -> VirtualMachine:
    """Start ``machine`` and (``wait``) return when its guest answers.

    Raises :class:`BusyError` when one of that name runs, :class:`BootError` when it does not come to
    answer (it is switched off then), and what :func:`freehold.vm.launch.launch` raises. Where KVM
    was chosen for the machine and turns out to be broken, it is started again emulated.
    """
    tools = host.tools_tree(monitor)
    chosen = machine.accelerator or accel.choose(monitor, tools)
    running = _locked_launch(machine, chosen, monitor, tools)
    if not wait:
        return running
    try:
        with step(monitor, f"starting {machine.name}"), _off_on_failure(running):
            running.wait_answer(machine.timeout)
    except BootError as error:
        if chosen != "kvm" or machine.accelerator is not None or error.status not in ("internal-error", "failed"):
            raise
        accel.remember(works=False)
        monitor.message("KVM broke down under this guest: emulating, expect it to be slow")
        running = _locked_launch(machine, "tcg", monitor, tools)
        with step(monitor, f"starting {machine.name} again"), _off_on_failure(running):
            running.wait_answer(machine.timeout)
    return running


def attach(name: str) -> VirtualMachine:
    """The running machine ``name``; :class:`NotHereError` when there is none."""
    return VirtualMachine(state.required(name))


def _locked_launch(machine: Machine, chosen: str, monitor: Monitor, tools: Tools) -> VirtualMachine:
    with atomic.exclusive(state.paths(machine.name).lock, f"the machine {machine.name}"):
        present = state.read(machine.name)
        if present is not None and present.alive:
            raise BusyError(
                f"a machine named {machine.name!r} is running already (process {present.pid})",
                hint=f"`freehold vm stop {machine.name}`, or choose another --name",
            )
        if present is not None:
            state.clean(present)
        return VirtualMachine(*launch(machine, chosen, monitor, tools))


@contextlib.contextmanager
def _off_on_failure(machine: VirtualMachine) -> Iterator[None]:
    try:
        yield
    except BaseException:
        machine.stop(hard=True)
        raise
