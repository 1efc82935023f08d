# SPDX-License-Identifier: Apache-2.0
"""What we do inside a guest: run commands, read and write files, ask for its boot, shut it down."""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from freehold import atomic
from freehold.errors import CommandError, FreeholdError, InputError
from freehold.run import Argument, Completed, failure
from freehold.vm.agent import Agent, AgentError, AgentGoneError, Session

#: Bytes of standard input that travel with the command; more are staged in a file of the guest's.
INLINE_INPUT = 256 << 10
#: Bytes of a file in one command to the agent.
CHUNK = 512 << 10
#: Largest file that is read into memory; larger ones are copied to a file.
MAX_READ = 256 << 20
POLL_FIRST, POLL_MOST = 0.01, 0.25
#: Seconds of silence after which a guest that ran our command is believed to be gone.
PATIENCE = 180.0
EXIT_NOT_FOUND = 127

_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}")
ROOT_ENVIRONMENT = (
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root", "USER=root", "LOGNAME=root", "SHELL=/bin/sh", "LANG=C.UTF-8", "TERM=dumb",
)  # fmt: skip
# A login shell gives the user's own environment, the exec keeps every argument as it is. PAM sets
# XDG_RUNTIME_DIR where it opens a logind session; a session that existed before does not.
_AS_USER = (
    'd="/run/user/$(id -u)"; [ -n "$XDG_RUNTIME_DIR" ] || [ ! -d "$d" ] || export XDG_RUNTIME_DIR="$d"; '
    'unset d; exec "$0" "$@"'
)
# The name goes before the command starts: nothing is left to clean whatever becomes of it.
_FROM_FILE = 'exec 3<"$0" && rm -f "$0" && exec "$@" <&3 3<&-'
_PLACE = 'chmod "$1" "$2" && mv -fT -- "$2" "$3"'


class OutputError(FreeholdError):
    """A command's output did not fit; ``completed`` has what did."""

    def __init__(self, completed: Completed) -> None:
        super().__init__(
            f"{completed.argv[0]} in the guest printed more than its agent keeps (16 MiB), the rest is lost",
            hint="send the output to a file in the guest and copy that",
        )
        self.completed = completed


class Guest:
    """The inside of one machine, through its agent."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def boot_id(self, *, timeout: float = 20.0) -> str:
        """The id of the guest's boot: another one after each reboot."""
        with (
            self._agent.session(timeout=timeout) as session,
            _opened(session, "/proc/sys/kernel/random/boot_id", "r") as handle,
        ):
            answer = session.call("guest-file-read", {"handle": handle, "count": 64}, timeout=timeout)
            return base64.b64decode(str(_field(answer, "buf-b64"))).decode().strip()

    def exec(
        self,
        argv: Sequence[Argument],
        *,
        user: str | None = None,
        stdin: bytes | None = None,
        timeout: float | None = None,
        check: bool = True,
    ) -> Completed:
        """Run ``argv`` in the guest, as root or as ``user`` in a login session, to its end.

        The status is 128 + n for signal n, 127 for a missing program. Raises
        :class:`CommandError` when ``check`` and the status is not 0, or after ``timeout`` seconds
        (the command is ended then); :class:`AgentGoneError` when the guest goes away meanwhile;
        :class:`OutputError` for more output than the agent keeps.
        """
        command = tuple(os.fspath(part) for part in argv)
        if not command:
            raise InputError("no command to run in the guest")
        actual = as_user(user, command) if user not in (None, "root") else list(command)
        if stdin is not None and len(stdin) > INLINE_INPUT:
            staged = f"/var/tmp/.freehold-stdin-{secrets.token_hex(8)}"  # noqa: S108 (the guest's)
            self.write_chunks(staged, (stdin[at : at + CHUNK] for at in range(0, len(stdin), CHUNK)))
            actual, stdin = ["/bin/sh", "-c", _FROM_FILE, staged, *actual], None
        done = self._run(command, actual, stdin, timeout)
        if check and done.status != 0:
            raise failure(done)
        return done

    def read_file(self, path: str) -> bytes:
        """The contents of the guest's file ``path``, at most ``MAX_READ`` bytes."""
        pieces, size = [], 0
        for piece in self.read_chunks(path):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_READ:
                raise FreeholdError(f"{path} in the guest has more than {MAX_READ:,} bytes", hint="copy it to a file")
        return b"".join(pieces)

    def write_file(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Replace the guest's file ``path`` by ``data``, with ``mode``."""
        self._replace(path, (data[at : at + CHUNK] for at in range(0, len(data), CHUNK)), mode)

    def copy_in(self, source: Path, target: str) -> str:
        """Copy the host's file ``source`` to ``target`` (a file, or a directory) and return the file's path."""
        try:
            with source.open("rb") as data:
                mode = os.fstat(data.fileno()).st_mode & 0o7777
                if target.endswith("/") or self.exec(["test", "-d", target], check=False).status == 0:
                    target = f"{target.rstrip('/')}/{source.name}"
                self._replace(target, iter(lambda: data.read(CHUNK), b""), mode)
        except OSError as error:
            raise InputError(f"{source}: {error.strerror}", hint=_tar_hint(source)) from None
        return target

    def copy_out(self, source: str, target: Path) -> Path:
        """Copy the guest's file ``source`` to ``target`` (a file, or a directory) and return the file's path."""
        if target.is_dir():
            target = target / source.rstrip("/").rpartition("/")[2]
        facts = self.exec(["stat", "-L", "-c", "%a %F", "--", source], check=False)
        if facts.status != 0:
            raise InputError(f"no file {source} in the guest")
        mode, _, kind = facts.text.strip().partition(" ")
        if kind == "directory":
            raise InputError(f"{source} in the guest is a directory", hint="pack it with tar first")
        temporary = target.with_name(f"{atomic.TEMPORARY_PREFIX}{target.name}-{os.getpid()}")
        try:
            with temporary.open("wb") as sink:
                for piece in self.read_chunks(source):
                    sink.write(piece)
                os.fchmod(sink.fileno(), int(mode, 8) & 0o7777)
            atomic.publish(temporary, target)
        except OSError as error:
            raise InputError(f"{target}: {error.strerror}") from None
        finally:
            temporary.unlink(missing_ok=True)
        return target

    def read_chunks(self, path: str) -> Iterator[bytes]:
        """The contents of the guest's file ``path``, piece by piece."""
        with self._agent.session() as session:
            handle = _open(session, path, "r")
        try:
            while True:
                answer = self._agent.call("guest-file-read", {"handle": handle, "count": CHUNK})
                piece = base64.b64decode(str(_field(answer, "buf-b64")))
                if piece:
                    yield piece
                if not piece or _field(answer, "eof"):
                    return
        finally:
            with contextlib.suppress(AgentError):
                self._agent.call("guest-file-close", {"handle": handle})

    def write_chunks(self, path: str, chunks: Iterator[bytes]) -> None:
        """Write ``chunks`` to the guest's file ``path``, which is created or emptied."""
        with self._agent.session() as session:
            handle = _open(session, path, "w")
        try:
            for chunk in chunks:
                sent = 0
                while sent < len(chunk):
                    data = base64.b64encode(chunk[sent:]).decode()
                    answer = self._agent.call("guest-file-write", {"handle": handle, "buf-b64": data})
                    sent += _number(answer, "count")
        finally:
            self._agent.call("guest-file-close", {"handle": handle})

    def shutdown(self, mode: str) -> None:
        """Ask the guest to ``powerdown``, ``reboot`` or ``halt``; it does so after this returns."""
        try:
            with self._agent.session() as session:
                # No answer means that it goes down; a refusal comes at once.
                session.call("guest-shutdown", {"mode": mode}, timeout=1.0)
        except AgentGoneError:
            return
        except AgentError:
            # The agent takes shutdown(8), which needs the message bus; systemctl does without, as in a rescue system.
            with contextlib.suppress(AgentGoneError):
                self.exec(["systemctl", "poweroff" if mode == "powerdown" else mode], timeout=60)

    def _replace(self, path: str, chunks: Iterator[bytes], mode: int) -> None:
        staged = f"{path}.freehold-{secrets.token_hex(4)}"
        try:
            self.write_chunks(staged, chunks)
            self.exec(["/bin/sh", "-c", _PLACE, "sh", f"{mode:o}", staged, path])
        except BaseException:
            with contextlib.suppress(FreeholdError):
                self.exec(["rm", "-f", "--", staged], check=False)
            raise

    def _run(self, shown: tuple[str, ...], actual: list[str], stdin: bytes | None, timeout: float | None) -> Completed:
        request: dict[str, object] = {
            "path": actual[0], "arg": actual[1:], "env": list(ROOT_ENVIRONMENT), "capture-output": True,
        }  # fmt: skip
        if stdin is not None:
            request["input-data"] = base64.b64encode(stdin).decode()
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._agent.session() as session:
            try:
                pid = _number(session.call("guest-exec", request), "pid")
            except AgentGoneError:
                raise
            except AgentError as error:
                if "disabled" in error.message or error.kind == "CommandNotFound":
                    raise AgentError(f"the guest's agent runs no commands: {error.message}", kind=error.kind) from None
                return Completed(shown, EXIT_NOT_FOUND, b"", f"{error.message}\n".encode())
            time.sleep(POLL_FIRST)
            status = session.call("guest-exec-status", {"pid": pid})
        try:
            pause = POLL_FIRST
            while not _field(status, "exited"):
                if deadline is not None and time.monotonic() > deadline:
                    raise CommandError(
                        f"{shown[0]} in the guest did not finish within {timeout:g} s", argv=shown, status=-1, output=""
                    )
                time.sleep(pause)
                pause = min(pause * 1.5, POLL_MOST)
                status = self._status(pid, shown[0])
        except (CommandError, KeyboardInterrupt):
            with contextlib.suppress(FreeholdError):
                # The shell's own kill: a small image has no other.
                self._agent.call("guest-exec", {"path": "/bin/sh", "arg": ["-c", 'kill -TERM "$0"', str(pid)]})
            raise
        return _completed(shown, status)

    def _status(self, pid: int, program: str) -> object:
        """Ask how ``pid`` is, and be patient with a guest that is busy."""
        silent_since = time.monotonic()
        while True:
            try:
                return self._agent.call("guest-exec-status", {"pid": pid})
            except AgentGoneError as error:
                if "gone" in error.message or time.monotonic() - silent_since > PATIENCE:
                    raise AgentGoneError(f"the guest went away while {program!r} ran in it: {error.message}") from None
                time.sleep(POLL_MOST)
            except AgentError:
                # A new agent knows nothing of an old one's processes.
                raise AgentGoneError(f"the guest or its agent restarted while {program!r} ran") from None


def as_user(user: str | None, command: Sequence[str]) -> list[str]:
    """``command`` in a login session of ``user``, every argument passed as it is."""
    if user is None or not _USER.fullmatch(user):
        raise InputError(f"{user!r} is no user's name")
    # runuser rather than su: no account check, no password, and PAM opens a logind session all the same.
    return ["runuser", "-l", "-w", "LANG", "-s", "/bin/sh", "-c", _AS_USER, "--", user, *command]


def _completed(shown: tuple[str, ...], status: object) -> Completed:
    fields = status if isinstance(status, dict) else {}
    try:
        out, err = (base64.b64decode(str(fields.get(name, ""))) for name in ("out-data", "err-data"))
    except binascii.Error:
        raise AgentError("the guest's agent sent output that is no base64") from None
    code = 128 + _number(fields, "signal") if "signal" in fields else _number(fields, "exitcode")
    done = Completed(shown, code, out, err)
    if fields.get("out-truncated") or fields.get("err-truncated"):
        raise OutputError(done)
    return done


def _field(answer: object, name: str) -> object:
    if not isinstance(answer, dict) or name not in answer:
        raise AgentError(f"the guest's agent gave an answer without {name!r}")
    return answer[name]


def _number(answer: object, name: str) -> int:
    value = _field(answer, name)
    if not isinstance(value, int):
        raise AgentError(f"the guest's agent gave {name!r} that is no number")
    return value


def _open(session: Session, path: str, mode: str) -> int:
    try:
        handle = session.call("guest-file-open", {"path": path, "mode": mode})
    except AgentGoneError:
        raise
    except AgentError as error:
        raise InputError(f"{path} in the guest cannot be opened: {error.message}") from None
    return _number({"handle": handle}, "handle")


@contextlib.contextmanager
def _opened(session: Session, path: str, mode: str) -> Iterator[int]:
    handle = _open(session, path, mode)
    try:
        yield handle
    finally:
        session.call("guest-file-close", {"handle": handle})


def _tar_hint(source: Path) -> str | None:
    return "pack it with tar first" if source.is_dir() else None
