# SPDX-License-Identifier: Apache-2.0
"""Requested packages → what they change about a release's tree.

apt and dpkg do the work, in the box of :mod:`freehold.device.sandbox`. Three runs: fetch (network, no scripts), check the
plan (nothing of the release may be replaced or removed), install (scripts, no network). Then the layer is settled as a
build settles a tree: no secrets, no leftovers, no set-uid, /var as rules and seeds. Any failure: nothing is kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import stat
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from freehold import atomic, files
from freehold.device import base as bases
from freehold.device import prune, stage, wanted
from freehold.device.base import Base
from freehold.device.derive import Layer, fresh
from freehold.device.sandbox import Box, opened
from freehold.device.sysroot import Sysroot
from freehold.errors import CommandError, FreeholdError, InputError, NotHereError, VerificationError
from freehold.files import read_bytes
from freehold.keys import verity
from freehold.lock.requests import Requests
from freehold.monitor import Monitor, step
from freehold.seal import accounts, dpkg, ids, stubs, varmap
from freehold.seal.headerball import Entry
from freehold.seal.walk import CAPABILITY, LEFTOVERS, SECRETS, stamp_bytecode, strip_privileges, walk

STATUS = "usr/share/dpkg-db/status"
TMPFILES = "usr/lib/tmpfiles.d/freehold-layer.conf"
#: Lists and packages are fetched anew each time: apt believes what lies there without asking twice.
APT = (
    "apt-get", "-y", "-q", "--no-install-recommends", "-o", "APT::Sandbox::User=root", "-o", "Dpkg::Use-Pty=0",
    "-o", "Dpkg::Options::=--force-confold", "-o", "Acquire::Retries=2", "-o", "Acquire::AllowInsecureRepositories=false",
    "-o", "APT::Get::AllowUnauthenticated=false",
)  # fmt: skip
MAX_LOCK_BYTES = 4 << 20
#: More that the package manager leaves behind.
_TRACES = ("var/cache/debconf/tmp.ci",)
_OVERLAY = "trusted.overlay."


def build(sysroot: Sysroot, base: Base, requested: Requests, monitor: Monitor) -> Layer:
    """Install ``requested`` over ``base``; the caller removes nothing: the layer's files stay until the next one.

    Raises :class:`FreeholdError` that names package, script and last lines; :class:`InputError` for a request that apt
    cannot satisfy, or that would change the release's own packages.
    """
    below = bases.image(sysroot, base)
    work = fresh(sysroot.root / prune.LAYER_SCRATCH)
    done = False
    try:
        with opened(sysroot, base, work) as box:
            _copy_files(sysroot, requested, box.files)
            box.run(["systemd-tmpfiles", "--create", "--prefix=/var"], check=False)
            before = {path for path, _ in _below(box.var)}
            _install(box, requested, monitor)
            text = (box.tree / STATUS).read_text(errors="replace")
            _check_settled(box, text)
            with step(monitor, "settling"):
                lock = accounts.joined(_lock(sysroot, below.entries), own_lock(sysroot))
                accounts.fix_ids(box.tree, lock, etc="usr/etc", more=[box.var])
                _settle_var(box, before)
        signed = {(entry.path, value) for entry in below.entries for name, value in entry.xattrs if name == CAPABILITY}
        for line in _clean(work / "upper", below.epoch, signed, [one.path for one in below.entries if stubs.is_stub(one)]):
            monitor.message(line)
        entries, removed = scan(work / "upper", {entry.path: entry for entry in below.entries})
        if found := stubs.privileged(entries, signed):
            raise FreeholdError(f"a requested package would give its callers more rights: {found[0]}", details="\n".join(found))
        done = True
        return Layer(work / "upper", tuple(entries), tuple(removed), dpkg.installed(text))
    finally:
        if not done:
            shutil.rmtree(work, ignore_errors=True)


def _copy_files(sysroot: Sysroot, requested: Requests, files: Path) -> None:
    """Bring requested package files into the box: copied first, then compared, so that nobody can exchange them between."""
    for file in requested.files:
        target = files / f"{file.sha256[:16]}-{file.name}"
        shutil.copyfile(wanted.file_path(sysroot, file), target)
        with target.open("rb") as source:
            if hashlib.file_digest(source, "sha256").hexdigest() != file.sha256:
                raise InputError(f"{file.name} is not the package file that was requested", hint="install it again")


def _install(box: Box, requested: Requests, monitor: Monitor) -> None:
    names = [f"{one.name}={one.version}" if one.version else one.name for one in requested.packages]
    names += [f"/run/files/{one.sha256[:16]}-{one.name}" for one in requested.files]
    if requested.packages:
        with step(monitor, "package lists"):
            _apt(box, ["update", "-o", "APT::Update::Error-Mode=any"], network=True)
    plan = dpkg.plan(_apt(box, ["install", "--simulate", *names]))
    faults = [f"{name}: {old} would become {new}" for name, old, new in plan.replaced]
    faults += [f"{name} {old} would be removed" for name, old in plan.removed]
    if faults:
        raise InputError(
            "the requested packages would change the release's own",
            faults=faults,
            hint="a newer release may have what they need",
        )
    for name, version in plan.added:
        monitor.message(f"+ {name} {version}")
    if requested.packages:
        with step(monitor, "fetching packages"):
            _apt(box, ["install", "--download-only", *names], network=True)
    with step(monitor, "installing"):
        _apt(box, ["install", *names])


def _apt(box: Box, words: Sequence[str], *, network: bool = False) -> str:
    try:
        done = box.run([*APT, *words], network=network, check=False)
    except CommandError as error:
        raise FreeholdError(f"packages: {error.message}", hint="nothing was deployed", details=error.details) from None
    if done.status:
        why, lines = dpkg.failure((done.stdout + b"\n" + done.stderr).decode(errors="replace"))
        raise InputError(f"packages: {why}", faults=lines, hint="nothing was deployed; the machine is unchanged")
    return done.text


def _check_settled(box: Box, status: str) -> None:
    faults = dpkg.unsettled(status)
    audit = box.run(["dpkg", "--audit"], check=False).text.strip()
    if faults or audit:
        raise InputError(
            "packages are not completely installed",
            faults=faults or audit.splitlines()[:12],
            hint="nothing was deployed",
        )


def _lock(sysroot: Sysroot, entries: Sequence[Entry]) -> ids.IdLock:
    entry = next((one for one in entries if one.path == f"/{accounts.ID_COPY}"), None)
    if entry is None:
        return ids.IdLock()
    data = read_bytes(sysroot.repo / "objects" / entry.redirect.lstrip("/"), MAX_LOCK_BYTES) if entry.redirect else b""
    if verity.digest_bytes(data) != (entry.digest or verity.digest_bytes(b"")):
        raise VerificationError(f"{entry.path} is not as it was signed")
    return ids.parse_lock(data.decode())


def own_lock(sysroot: Sysroot) -> ids.IdLock:
    """The numbers that the newest deployment of this machine's own has given; none when there is none."""
    for entry in stage.ensure_esp(sysroot):
        with contextlib.suppress(NotHereError, VerificationError):
            found, _ = bases.read(sysroot, entry.id)
            if found.manifest.derived is not None:
                return _lock(sysroot, bases.image(sysroot, Base(found.manifest, "")).entries)
    return ids.IdLock()


def _below(top: Path) -> list[tuple[str, Path]]:
    found = []
    for directory, folders, names in os.walk(top):
        for name in sorted([*folders, *names]):
            path = Path(directory) / name
            found.append((f"var/{path.relative_to(top)}", path))
    return sorted(found)


def _settle_var(box: Box, before: set[str]) -> None:
    """What installing put into /var, beyond what the release makes there at boot: rules, seeds, state that moves to /usr.

    A build stops at a path without a rule; here content is kept (a seed), and everything else made at boot.
    """
    users = _names(box.tree / "usr/etc/passwd")
    groups = _names(box.tree / "usr/etc/group")
    new = [(name, path) for name, path in _below(box.var) if name not in before]
    entries, rules = [], []
    for name, path in new:
        status = path.lstat()
        kind = {stat.S_IFDIR: "d", stat.S_IFREG: "f", stat.S_IFLNK: "l"}.get(stat.S_IFMT(status.st_mode), "?")
        size = status.st_size if kind == "f" else 0
        entries.append(
            varmap.Entry(
                path=name, kind=kind, mode=stat.S_IMODE(status.st_mode), size=size,
                target=os.readlink(path) if kind == "l" else "",
                user=users.get(status.st_uid, str(status.st_uid)), group=groups.get(status.st_gid, str(status.st_gid)),
            )
        )  # fmt: skip
        if not any(varmap.matches(pattern, name) for pattern, _ in varmap.BUILT_IN):
            verdict: varmap.Verdict = "discard" if kind == "?" else "seed" if size else "tmpfiles"
            rules.append((name, verdict))
    made = [varmap.made_by(path.read_text()) for path in sorted((box.tree / "usr/lib/tmpfiles.d").glob("*.conf"))]
    result = varmap.classify(entries, rules=rules, made=frozenset().union(*made))
    for origin, target in (*result.moves, *result.seeds):
        source, destination = box.var / origin.removeprefix("var/"), box.tree / target
        destination.parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(destination):
            shutil.move(source, destination)
    if len(result.tmpfiles.splitlines()) > 1:
        (box.tree / TMPFILES).write_text(result.tmpfiles)


def _names(database: Path) -> dict[int, str]:
    rows = [line.split(":") for line in database.read_text().splitlines() if line.count(":") >= 2]
    return {int(row[2]): row[0] for row in rows if row[2].isdigit()}


def _clean(upper: Path, epoch: int, signed: Collection[tuple[str, bytes]], posts: Collection[str] = ()) -> list[str]:
    """No secrets, leftovers, set-uid bits, capabilities but ``signed`` ones, traces of the box; bytecode fits the epoch.

    The signposts of the release, at ``posts``, are put back. Returns a line for each program that lost something by it.
    """
    for pattern in (*SECRETS, *LEFTOVERS, *_TRACES):
        for path in upper.glob(_sealed(pattern)):
            files.remove(path)
    policy = upper / "usr/sbin/policy-rc.d"
    if policy.exists() and not policy.stat().st_size:
        policy.unlink()
    for name in os.listdir(upper):
        if name == "boot" and any((upper / name).iterdir()):
            raise InputError("a requested package brings a kernel; replacing the kernel is not a package request")
        if name != "usr":
            files.remove(upper / name)
    lost = strip_privileges(upper, signed)
    gone = stubs.put_stubs(upper, [name for name in posts if os.path.lexists(upper / name.lstrip("/"))])
    if (upper / "usr").is_dir():
        stamp_bytecode(upper, epoch)
    said = [f"{name}: without its set-uid bit or capability" for name in lost if name not in gone]
    return said + [f"{name}: the release's own stays, which says how to become root here" for name in gone]


def _sealed(pattern: str) -> str:
    """Where a pattern of the unsettled tree lies in a settled one: /etc and the package manager's state are below /usr."""
    if pattern.startswith("etc/"):
        return f"usr/{pattern}"
    for origin, target in varmap.RELOCATED.items():
        if pattern.startswith(f"{origin}/"):
            return target + pattern.removeprefix(origin)
    return pattern


def scan(upper: Path, base: Mapping[str, Entry]) -> tuple[list[Entry], list[str]]:
    """Entries and removed paths of an overlay's upper directory, which becomes an ordinary tree by it.

    Whiteouts (character device 0/0) and opaque directories turn into removed paths; files that are as the base has them
    go. :class:`FreeholdError` for what a commit on top of the base cannot say: a directory whose place a file takes.
    """
    removed: list[str] = []
    opaque: list[str] = []
    for directory, folders, names in os.walk(upper):
        for name in [*folders, *names]:
            path = Path(directory) / name
            shown = f"/{path.relative_to(upper)}"
            status = path.lstat()
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                removed.append(shown)
                path.unlink()
                continue
            for attribute in os.listxattr(path, follow_symlinks=False):
                if attribute.startswith(_OVERLAY):
                    if attribute == f"{_OVERLAY}opaque" and os.getxattr(path, attribute, follow_symlinks=False) == b"y":
                        opaque.append(shown)
                    os.removexattr(path, attribute, follow_symlinks=False)
            old = base.get(shown)
            if old is not None and stat.S_ISDIR(old.mode) != stat.S_ISDIR(status.st_mode):
                raise FreeholdError(f"{shown} changes between file and directory, which a layer cannot do")
    entries, here = [], set()
    for entry in walk(upper):
        here.add(entry.path)
        old = base.get(entry.path)
        if entry.path == "/":
            # The box's own root: the base's stays.
            continue
        if (
            old is not None
            and not stat.S_ISDIR(entry.mode)
            and old == dataclasses.replace(entry, redirect=old.redirect)
        ):
            (upper / entry.path[1:]).unlink()
            continue
        entries.append(entry)
    for shown in opaque:
        removed += [path for path in base if path.startswith(f"{shown}/") and path not in here]
    gone = [path for path in sorted({*removed}) if path in base]
    atomic.fsync_directory(upper)
    return entries, gone
