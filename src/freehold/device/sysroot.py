# SPDX-License-Identifier: Apache-2.0
"""Where things are on a device, and reading them: deployments, boot record, guard, update configuration.

:class:`Sysroot` carries every path, so that tests and disk tools can point it at a directory. Loaders here
read and bound; they import processes, signatures and TOML only when asked, because ``status`` must be quick.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from pathlib import Path
from typing import NamedTuple, Protocol

from freehold.errors import FreeholdError, InputError, NotHereError
from freehold.files import read_bytes
from freehold.update.manifest import (
    ID_LENGTH,
    MANIFEST_LIMIT,
    STREAM_LIMIT,
    Manifest,
    image_of,
    parse_manifest,
    stream_valid,
)

ID = re.compile(r"[0-9a-f]{16}\Z")
#: Refs of deployments in the repository; what no ref names is pruned.
REF_PREFIX = "freehold/deployment/"
_SECURE_BOOT = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
_STREAM = re.compile(r"""^\s*stream\s*=\s*["']([^"']*)["']""", re.MULTILINE)
_RECORD_LIMIT = 1 << 20
#: Where the owner's committed configuration is mounted.
COMMITTED = "run/freehold/config"
#: history.jsonl is cut to its newer half above this many bytes.
HISTORY_LIMIT = 256 << 10


class Verity(Protocol):
    """Switching fs-verity on and asking for the digest that is enforced."""

    def enable(self, path: Path) -> None:
        """Make ``path`` immutable and verified; nothing happens when it is already."""

    def measure(self, path: Path) -> bytes | None:
        """The enforced digest, 32 bytes; ``None`` when nothing is enforced."""


class KernelVerity:
    """fs-verity of the running kernel."""

    def enable(self, path: Path) -> None:
        """As :func:`freehold.keys.kernel.enable_verity`."""
        from freehold.keys.kernel import enable_verity

        enable_verity(path)

    def measure(self, path: Path) -> bytes | None:
        """As :func:`freehold.keys.kernel.measure_verity`."""
        from freehold.keys.kernel import measure_verity

        return measure_verity(path)


KERNEL_VERITY = KernelVerity()


class Deployment(NamedTuple):
    """A deployment's directory. ``signer`` is the key that signed it, as seen when it was staged (informational)."""

    id: str
    manifest: Manifest
    signer: str
    pinned: bool


class UpdateConfig(NamedTuple):
    """Where updates come from; ``source`` is the file that said so."""

    url: str
    stream: str
    source: Path


class Sysroot(NamedTuple):
    """Paths of one machine. ``system`` prefixes /usr, /etc, /run, /proc and /sys.

    ``ostree`` and ``mkfs`` (of EROFS) are how their command lines begin.
    """

    root: Path = Path("/sysroot")
    esp: Path = Path("/efi")
    system: Path = Path("/")
    ostree: tuple[str, ...] = ("ostree",)
    mkfs: tuple[str, ...] = ("mkfs.erofs",)
    verity: Verity = KERNEL_VERITY
    #: Whether the repository's file system has fs-verity, so that ostree enables it itself.
    kernel_verity: bool = True
    #: Where derived deployments are put together, when not below ``root``: a place that nobody else reaches.
    scratch: Path | None = None

    @property
    def work(self) -> Path:
        """Where derived deployments are put together."""
        return self.root if self.scratch is None else self.scratch

    @property
    def repo(self) -> Path:
        """The ostree repository."""
        return self.root / "repo"

    @property
    def images(self) -> Path:
        """Metadata images, named by their fs-verity digest."""
        return self.root / "images"

    @property
    def deployments(self) -> Path:
        """One directory for each deployment."""
        return self.root / "deployments"

    @property
    def state(self) -> Path:
        """Typed machine state."""
        return self.root / "state"

    @property
    def keychain(self) -> Path:
        """The sealed certificates."""
        return self.system / "usr/lib/freehold/keychain"

    @property
    def lock_file(self) -> Path:
        """Held by whatever changes deployments."""
        return self.system / "run/freehold/deployments.lock"

    def booted(self) -> str:
        """The running deployment's image digest, "" when this is not a Freehold system."""
        return image_of(read_text(self.system / "proc/cmdline", 64 << 10))

    def booted_id(self) -> str:
        """The running deployment's id; :class:`NotHereError` when there is none."""
        digest = self.booted()
        if not digest:
            raise NotHereError(
                "this machine does not run a Freehold deployment", hint="run this inside the machine that you mean"
            )
        return digest[:ID_LENGTH]

    def deployment(self, identity: str) -> Deployment | None:
        """The deployment ``identity``; ``None`` when there is no readable manifest for it."""
        directory = self.deployments / identity
        try:
            manifest = parse_manifest(read_bytes(directory / "manifest.json", MANIFEST_LIMIT))
        except (OSError, FreeholdError):
            return None
        if manifest.id != identity:
            return None
        return Deployment(
            identity, manifest, read_text(directory / "signer", 256).strip(), (directory / "pinned").exists()
        )

    def all_deployments(self) -> list[Deployment]:
        """Every deployment with a readable manifest, newest first."""
        try:
            names = [path.name for path in self.deployments.iterdir() if ID.match(path.name)]
        except FileNotFoundError:
            return []
        found = [deployment for deployment in map(self.deployment, sorted(names)) if deployment is not None]
        return sorted(found, key=lambda deployment: deployment.manifest.timestamp, reverse=True)

    @property
    def machine(self) -> str | None:
        """This machine's id, by which owners and device certificates name it; ``None`` when it has none."""
        return read_text(self.root / "owner/id", 64).strip() or None

    def boot_record(self) -> dict[str, object]:
        """What the early step wrote about this boot; empty when it did not."""
        return read_json(self.system / "run/freehold/boot.json")

    def guard(self) -> dict[str, object]:
        """The guard's own account (``loaded``, ``mode``); ``loaded`` is false when nothing answers."""
        program = self.system / "usr/lib/freehold/guardctl"
        if not program.exists():
            return {"loaded": False}
        from freehold.run import run

        # Its word counts over any file: a file can be written, the kernel's programs cannot be talked away.
        done = run([program, "status"], check=False, timeout=20)
        try:
            answer = json.loads(done.text[:_RECORD_LIMIT])
        except ValueError:
            return {"loaded": False}
        return answer if isinstance(answer, dict) else {"loaded": False}

    def mode(self) -> str:
        """``open``, ``audit`` or ``locked``, as enforced now."""
        return self.mode_and_tiers()[0]

    def mode_and_tiers(self) -> tuple[str, str, str]:
        """:meth:`mode`; whom the rules about code bind, ``privileged`` or ``all-code``; the tier of scripts, ``S1`` or ``S2``."""
        guard = self.guard()
        mode = guard.get("mode")
        if guard.get("loaded") is not True or mode not in ("audit", "locked"):
            return "open", "privileged", "S1"
        tier = "all-code" if guard.get("tier") == "all-code" else "privileged"
        return str(mode), tier, "S2" if guard.get("scripts") == "S2" else "S1"

    def secure_boot(self) -> bool:
        """Whether the firmware says that it checked what it started."""
        try:
            data = read_bytes(self.system / "sys/firmware/efi/efivars" / _SECURE_BOOT, 64)
        except (OSError, FreeholdError):
            return False
        # Four bytes of attributes come before the value. A stored one (non-volatile) is not the firmware's word.
        return len(data) == 5 and data[0] & 1 == 0 and data[4] == 1

    def update_file(self, mode: str, *, committed: bool = True) -> Path | None:
        """The file that says where updates come from, for display. While ``mode`` is ``locked``, never the running /etc.

        ``committed``: look into the owner's committed configuration as well, where it is mounted.
        """
        running = [] if mode == "locked" else [self.system / "etc/freehold/update.toml"]
        candidates = [
            *([self.system / COMMITTED / "freehold/update.toml"] if committed else []),
            *running,
            self.system / "usr/etc/freehold/update.toml",
            self.system / "usr/lib/freehold/update.toml",
        ]
        return next((path for path in candidates if path.is_file()), None)

    def update_config(self, mode: str) -> UpdateConfig:
        """Where updates come from. Raises :class:`NotHereError` when nothing says so, :class:`InputError` for a
        faulty file.

        While ``mode`` is ``locked`` the owner's committed configuration is read out of its image: what lies below /run,
        where it is mounted, root can cover.
        """
        sealed = False
        if mode == "locked":
            from freehold.device import committed

            # An ordinary user may not read it, and only asks.
            with contextlib.suppress(PermissionError):
                data = committed.read(self, "freehold/update.toml")
                if data is not None:
                    return parse_update_config(data, self.system / COMMITTED / "freehold/update.toml")
                sealed = True
        path = self.update_file(mode, committed=not sealed)
        if path is None:
            raise NotHereError(
                "no update server is configured", hint='put [update] url = "https://…" into /etc/freehold/update.toml'
            )
        return parse_update_config(read_bytes(path, STREAM_LIMIT), path)


def stream_shown(text: str) -> str:
    """The stream that an ``update.toml`` names, for display: a TOML parser costs ``status`` a tenth of its time."""
    match = _STREAM.search(text)
    return match[1] if match else "stable"


def parse_update_config(data: bytes, source: Path) -> UpdateConfig:
    """Read an ``update.toml``; :class:`InputError` names the file and the fault."""
    import tomllib

    from freehold.update.fetch import check_url

    try:
        table = tomllib.loads(data.decode()).get("update")
    except ValueError as error:
        raise InputError(f"{source}: {error}") from None
    if not isinstance(table, dict):
        raise InputError(f"{source}: no [update] table")
    url, stream = table.get("url"), table.get("stream", "stable")
    if not isinstance(url, str):
        raise InputError(f"{source}: update.url: an address expected")
    if not (isinstance(stream, str) and stream_valid(stream)):
        raise InputError(f"{source}: update.stream: a stream's name expected")
    return UpdateConfig(check_url(url), stream, source)


def read_text(path: Path, limit: int) -> str:
    """The text of ``path``, "" when it is missing, unreadable or too large."""
    try:
        return read_bytes(path, limit).decode(errors="replace")
    except (OSError, FreeholdError):
        return ""


def read_json(path: Path) -> dict[str, object]:
    """The JSON object in ``path``, empty when there is none."""
    try:
        value = json.loads(read_text(path, _RECORD_LIMIT) or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def record(sysroot: Sysroot, event: str, **fields: object) -> None:
    """Append ``event`` to the machine's history (informational: root can write it)."""
    from freehold import atomic

    path = sysroot.state / "history.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"time": int(time.time()), "event": event, **fields}, sort_keys=True) + "\n"
    if path.exists() and path.stat().st_size > HISTORY_LIMIT:
        lines = path.read_bytes().splitlines(keepends=True)
        atomic.write(path, b"".join(lines[len(lines) // 2 :]))
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, line.encode())
        os.fsync(fd)
    finally:
        os.close(fd)


def history(sysroot: Sysroot) -> list[dict[str, object]]:
    """The machine's history, oldest first; lines that a power cut left half written are skipped."""
    result: list[dict[str, object]] = []
    for line in read_text(sysroot.state / "history.jsonl", HISTORY_LIMIT * 2).splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            result.append(value)
    return result
