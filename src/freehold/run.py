# SPDX-License-Identifier: Apache-2.0
"""The only module that starts processes.

Commands are argument lists, never strings for a shell. Standard input is closed unless given, the
environment is rebuilt from a short list, output of the child goes to our standard error or is
captured with a limit, and each command is logged in a form that can be pasted and replayed.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from freehold.errors import CommandError, NotHereError

#: Variables of the caller that a child may see: the terminal, the proxy and nothing that changes
#: what a program loads or trusts.
PASSED_ENVIRONMENT = ("TERM", "HOME", "http_proxy", "https_proxy", "no_proxy", "TMPDIR")
CLEAN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Last lines of a failed command that are kept for its error.
TAIL_LINES = 40

Argument = str | os.PathLike[str]
#: Why this process starts nothing any more; empty: it does.
_ended: list[str] = []


class Completed(NamedTuple):
    """A finished command: exit status and captured bytes (empty where not captured)."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output decoded, undecodable bytes replaced."""
        return self.stdout.decode(errors="replace")


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """A clean environment for a child, plus ``extra``."""
    clean = {name: os.environ[name] for name in PASSED_ENVIRONMENT if name in os.environ}
    clean.update(PATH=CLEAN_PATH, LANG="C.UTF-8", LC_ALL="C.UTF-8")
    clean.update(extra or {})
    return clean


def run(
    argv: Sequence[Argument],
    *,
    stdin: bytes | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    timeout: float | None = None,
    stdout: IO[bytes] | None = None,
    quiet: bool = True,
) -> Completed:
    """Run ``argv`` to its end and return what it printed.

    ``stdin`` is fed to the child (closed when ``None``); ``stdout`` takes a file to write to
    instead of capturing; ``quiet=False`` lets the child's messages through to our standard error.
    Raises :class:`CommandError` when ``check`` and the exit status is not 0, or on a timeout, and
    :class:`NotHereError` when the program is missing. The child is ended when we are interrupted.
    """
    command = tuple(os.fspath(part) for part in argv)
    _log(shlex.join(command))
    with _started(
        command,
        stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
        stdout=stdout if stdout is not None else subprocess.PIPE,
        stderr=subprocess.PIPE if quiet else None,
        cwd=cwd,
        env=environment(env),
    ) as process:
        try:
            out, err = process.communicate(stdin, timeout=timeout)
        except subprocess.TimeoutExpired:
            _end(process)
            raise CommandError(
                f"{command[0]} did not finish within {timeout:g} s", argv=command, status=-1, output=shlex.join(command)
            ) from None
        except BaseException:
            _end(process)
            raise
    done = Completed(command, process.returncode, out or b"", err or b"")
    if check and done.status != 0:
        raise failure(done)
    return done


def failure(done: Completed) -> CommandError:
    """The error for a command that ended with a status other than 0."""
    lines = (done.stderr or done.stdout).decode(errors="replace").splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "no message")
    return CommandError(
        f"{Path(done.argv[0]).name} failed with status {done.status}: {last.strip()[:300]}",
        argv=done.argv,
        status=done.status,
        output="\n".join([f"+ {shlex.join(done.argv)}", *lines[-TAIL_LINES:]]),
    )


def start(
    argv: Sequence[Argument],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a long-lived program in a session of its own, its output appended to ``log``."""
    command = tuple(os.fspath(part) for part in argv)
    _log(f"{shlex.join(command)} &")
    with log.open("ab") as sink:
        return _started(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env=environment(env),
            start_new_session=True,
            pass_fds=tuple(pass_fds),
        )


def end_programs(reason: str) -> None:
    """From now on this process starts no program: it holds what a child's memory would be a copy of.

    What tries is a bug of ours and raises :class:`RuntimeError`. :func:`replace` stays: its memory is nobody's copy.
    """
    _ended.append(reason)


def replace(argv: Sequence[Argument], *, env: Mapping[str, str] | None = None) -> None:
    """Replace this process by ``argv`` (never returns when it works)."""
    command = [os.fspath(part) for part in argv]
    try:
        os.execvpe(command[0], command, environment(env))  # noqa: S606 (an argument list, as everywhere)
    except FileNotFoundError:
        raise _missing(command[0]) from None


def _started(command: Sequence[str], **options: object) -> subprocess.Popen[bytes]:
    if _ended:
        raise RuntimeError(f"no program is started any more ({_ended[0]}): {command[0]}")
    try:
        return subprocess.Popen(command, **options)  # type: ignore[call-overload, no-any-return]
    except FileNotFoundError:
        raise _missing(command[0]) from None


def _log(text: str) -> None:
    # Who listens has imported logging; `freehold status` need not pay for it.
    if "logging" in sys.modules:
        sys.modules["logging"].getLogger("freehold.run").debug("+ %s", text)


def _missing(program: str) -> NotHereError:
    return NotHereError(f"the program {program!r} is not installed", hint="`make prepare` installs what the builder needs")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
