# SPDX-License-Identifier: Apache-2.0
"""The files of emergency ssh: keys in the owner's directory, the host key among its secrets, what is said of it.

``OWNER/emergency/HEX.pub``: a key that an intent may name, by SHA-256 of its blob. ``OWNER/emergency/key``: the one in
force, as sshd reads it; the early step writes it at each boot, or takes it away. Nobody writes there while locked.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from freehold import atomic, run
from freehold.errors import InputError, NotHereError, VerificationError
from freehold.files import read_bytes, read_given
from freehold.lock import emergency
from freehold.lock.emergency import Key
from freehold.lock.intent import Intent

SSHD = Path("/usr/sbin/sshd")
SERVICE = "freehold-emergency-ssh.service"
DIRECTORY = "emergency"
IN_FORCE = "key"
HOST_KEY = "secret/emergency-host-key"
HOST_PUBLIC = "host.pub"
#: sshd's options before the key: no forwarding of any kind, a terminal.
OPTIONS = "restrict,pty"
#: The login prompt and the message of the day, below /run.
NOTICES = ("issue.d/freehold-emergency.issue", "motd.d/freehold-emergency")


def given(word: str) -> Key:
    """The key that a command line names: a file, or the line itself. Raises :class:`InputError`."""
    text = word if " " in word.strip() else read_given(Path(word), emergency.MAX_BYTES).decode("latin-1")
    return emergency.parse(text)


def _own(directory: Path) -> Path:
    """``directory`` itself, and no link to a place that the guard does not close."""
    if directory.is_symlink():
        directory.unlink()
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory


def store(owner: Path, key: Key) -> None:
    """Keep ``key`` below ``owner`` for intents that name it, and make this machine's host key for it unless there is one."""
    if not SSHD.is_file():
        raise NotHereError("this image has no ssh server", hint="its recipe, or `freehold install`, names openssh-server")
    directory = _own(owner / DIRECTORY)
    atomic.write(directory / key.name, key.line, mode=0o600)
    private = owner / HOST_KEY
    if private.is_file() and (directory / HOST_PUBLIC).is_file():
        return
    _own(private.parent)
    new = private.with_name("emergency-host-key.new")
    for path in (new, new.with_name(f"{new.name}.pub")):
        path.unlink(missing_ok=True)
    run.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", new])
    public = new.with_name(f"{new.name}.pub")
    atomic.write(directory / HOST_PUBLIC, read_bytes(public, emergency.MAX_BYTES), mode=0o644)
    public.unlink()
    new.rename(private)
    atomic.fsync_directory(private.parent)


def host_key(owner: Path) -> str | None:
    """The fingerprint by which a client knows the emergency sshd; ``None`` where there is none."""
    try:
        words = read_bytes(owner / DIRECTORY / HOST_PUBLIC, emergency.MAX_BYTES).decode("latin-1")
        return emergency.fingerprint(emergency.parse(words).digest)
    except (OSError, InputError):
        return None


def load(owner: Path, digest: str) -> Key:
    """The stored key that an intent names by ``digest``. Raises :class:`VerificationError` unless it is there and is that one."""
    try:
        key = emergency.parse(read_bytes(owner / DIRECTORY / emergency.file_name(digest), emergency.MAX_LINE).decode("latin-1"))
    except (OSError, InputError):
        key = None
    if key is None or key.digest != digest:
        raise VerificationError(
            f"the signed intent names the ssh key {emergency.fingerprint(digest)}, which this machine does not have",
            hint="make a new request here, with `freehold lock --emergency-ssh KEY --request FILE`",
        )
    return key


def enforce(owner: Path, running: Path, wanted: Intent) -> None:
    """Put the key of ``wanted`` into force, or none, and say so above every login below ``running`` (``/run``)."""
    if os.path.lexists(owner / DIRECTORY):
        _own(owner / DIRECTORY)
    path = owner / DIRECTORY / IN_FORCE
    if wanted.emergency_ssh is None or wanted.lock != "locked":
        for stale in (path, *(running / name for name in NOTICES)):
            stale.unlink(missing_ok=True)
        return
    key = load(owner, wanted.emergency_ssh)
    line = f"{OPTIONS} {key.line.rstrip()} {emergency.fingerprint(key.digest)}\n"
    atomic.write(path, line, mode=0o600)
    for name in NOTICES:
        notice = running / name
        notice.parent.mkdir(exist_ok=True)
        atomic.write(notice, f"freehold: {emergency.sentence(key.digest)}\n")


def start_or_stop(wanted: Intent) -> None:
    """Have systemd start the emergency sshd where a key is in force: anew, since one of before the lock has no exemption."""
    verb = "restart" if wanted.emergency_ssh is not None and wanted.lock == "locked" else "stop"
    with contextlib.suppress(OSError):
        run.run(["systemctl", "--no-block", verb, SERVICE], check=False)
