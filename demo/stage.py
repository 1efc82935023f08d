# SPDX-License-Identifier: Apache-2.0
"""What the demo plays on: its directory, its machine, and how a step is told."""

from __future__ import annotations

import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from freehold import run
from freehold.build.store import cache_directory
from freehold.errors import CommandError, FreeholdError
from freehold.run import Completed

#: The guest sees the host's loopback here (QEMU's user-mode network).
HOST_IN_GUEST = "10.0.2.2"


class DemoError(FreeholdError):
    """A step did not go as it must."""


def want(condition: bool, what: str) -> None:
    """Fail the step unless ``condition``."""
    if not condition:
        raise DemoError(what)


@dataclass
class Stage:
    """Paths, the machine's name, and a log of every command."""

    name: str = "demo"
    port: int = 18645
    #: Whose keys and releases are used; empty: its own.
    library: str = ""
    server: int | None = None

    @property
    def root(self) -> Path:
        """Where everything of this run is kept."""
        return cache_directory() / self.name

    @property
    def keys(self) -> Path:
        """The demo's own keys."""
        return cache_directory() / (self.library or self.name) / "keys"

    @property
    def store(self) -> Path:
        """The demo's own store."""
        return cache_directory() / (self.library or self.name) / "store"

    def path(self, name: str) -> Path:
        """A file of this run."""
        return self.root / name

    def note(self, text: str) -> None:
        """Add lines to the log of commands."""
        self.root.mkdir(parents=True, exist_ok=True)
        with self.path("commands.log").open("a") as log:
            log.write(f"{text}\n")

    def freehold(self, *arguments: str | Path, check: bool = True, stdin: bytes | None = None, timeout: float = 900) -> Completed:
        """Run a ``freehold`` command as a person would."""
        command = [os.fspath(argument) for argument in arguments]
        self.note(f"freehold {shlex.join(command)}")
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
            if name in os.environ:
                environment[name] = os.environ[name]
        done = run.run(
            [sys.executable, "-m", "freehold", *command], stdin=stdin, check=False, timeout=timeout, env=environment
        )
        if check and done.status != 0:
            raise CommandError(
                f"`freehold {command[0]}` failed: {done.stderr.decode(errors='replace').strip()[-1500:]}",
                argv=done.argv, status=done.status, output="",
            )  # fmt: skip
        return done

    def guest(self, *command: str, user: str | None = None, check: bool = True, timeout: float = 180) -> Completed:
        """Run a command in the machine."""
        who = ["--user", user] if user else []
        return self.freehold("vm", "exec", self.name, *who, "--", *command, check=check, timeout=timeout)

    def shell(self, script: str, *, user: str | None = None, check: bool = True) -> str:
        """Run shell text in the machine; returns what it printed."""
        return self.guest("sh", "-c", script, user=user, check=check).text.strip()

    def copy(self, source: Path, target: str, *, executable: bool = False) -> None:
        """Put a file into the machine."""
        self.freehold("vm", "copy", self.name, source, f":{target}")
        if executable:
            self.guest("chmod", "755", target)

    def reboot(self) -> None:
        """Restart the machine and wait for its answer."""
        self.freehold("vm", "reboot", self.name, "--timeout", "240", timeout=300)

    def signed(self, verb: str, *options: str) -> None:
        """``lock`` or ``unlock`` with a key that the machine never sees: request there, signature here, answer there."""
        request = self.path(f"{verb}.request")
        self.guest("freehold", verb, *options, "--request", f"/run/{verb}.request")
        self.freehold("vm", "copy", self.name, f":/run/{verb}.request", request)
        self.freehold("sign", request, "--key", f"file:{self.keys / 'owner.key'}")
        self.copy(request.with_name(request.name + ".signed"), f"/run/{verb}.signed")
        self.guest("freehold", verb, "--answer", f"/run/{verb}.signed")


Step = Callable[[Stage], str]


def end(stage: Stage) -> None:
    """Stop the machine and the server."""
    try:
        stage.freehold("vm", "stop", stage.name, "--hard", check=False)
    finally:
        if stage.server is not None:
            run.run(["kill", str(stage.server)], check=False)
            stage.server = None


def paint(text: str, code: str) -> str:
    """``text`` in colour where somebody looks at a terminal."""
    plain = not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain else f"\x1b[{code}m{text}\x1b[0m"


def tell(stage: Stage, steps: Sequence[tuple[str, Step]]) -> bool:
    """Play the steps in order, each with what happened and its time; stops at the first that fails."""
    width = max(len(title) for title, _ in steps)
    begun = time.monotonic()
    for number, (title, step) in enumerate(steps, start=1):
        head = f"{number:2}  {title:{width}}"
        terminal = sys.stdout.isatty()
        print(head, end="" if terminal else "\n", flush=True)
        started = time.monotonic()
        try:
            happened = step(stage)
        except Exception as error:
            # A machine that answers nonsense is a failed step as well; how it came about is in the log.
            stage.note(traceback.format_exc())
            told = error.message if isinstance(error, FreeholdError) else f"{type(error).__name__}: {error}"
            print(f"\n    {paint('FAILED', '31')}: {told}")
            print(f"demo: step {number} of {len(steps)} failed: {title}", flush=True)
            return False
        seconds = time.monotonic() - started
        first, *more = happened.splitlines()
        margin = "\r" + head if terminal else "   "
        print(f"{margin} {paint('ok', '32')} {seconds:6.1f} s  {first}")
        for line in more:
            print(f"{'':{width + 16}}{line}")
        sys.stdout.flush()
    print(f"({time.monotonic() - begun:.0f} s)")
    print(f"demo: {len(steps)} of {len(steps)} steps passed", flush=True)
    return True
