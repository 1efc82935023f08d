# SPDX-License-Identifier: Apache-2.0
"""Recipe → sealed release, step by step: the order of the build, what is cached, what is written last."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path

from freehold import atomic
from freehold.build import commit as commits
from freehold.build import image, initrd, packages, signing, source, tree, uki
from freehold.build.keys import KeyDirectory, with_keychain
from freehold.build.packages import Archive
from freehold.build.recipe import Recipe, load
from freehold.build.store import Store, cache_directory
from freehold.build.tools import Tools, ensure
from freehold.errors import FreeholdError, InputError
from freehold.keys.x509 import Signer
from freehold.monitor import Monitor, step
from freehold.seal import cpio, headerball, ids, kernel_inputs, stubs
from freehold.seal.dpkg import installed
from freehold.seal.walk import walk
from freehold.update import rescue_entry
from freehold.update.manifest import ID_LENGTH, NUMBER_LIMIT, Manifest, Uki, version_valid

DPKG_STATUS = "usr/share/dpkg-db/status"
STEPS = ("packages", "tree", "commit", "seal")


@dataclass(frozen=True)
class BuildResult:
    """What ``freehold build`` reports; ``seconds`` per step; ``release`` is the directory in the store."""

    manifest: Manifest
    release: Path
    files: int
    bytes: int
    seconds: dict[str, float]
    unchanged: bool
    signed: bool = True

    def data(self) -> dict[str, object]:
        """The JSON report (schema ``freehold-build-1``)."""
        return {
            "schema": "freehold-build-1", "name": self.manifest.name, "version": self.manifest.version,
            "commit": self.manifest.commit, "image_digest": self.manifest.image_digest, "signed": self.signed,
            "uki": str(self.release / ("uki.efi" if self.signed else signing.UNSIGNED_UKI)),
            "release": str(self.release), "files": self.files, "bytes": self.bytes, "seconds": self.seconds,
            "unchanged": self.unchanged,
        }  # fmt: skip


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))

    @contextmanager
    def time(self, name: str, monitor: Monitor) -> Iterator[None]:
        started = time.monotonic()
        with step(monitor, name):
            yield
        self.seconds[name] = round(self.seconds[name] + time.monotonic() - started, 2)


@dataclass(frozen=True)
class Inputs:
    """Everything that decides what a build gives; ``key`` names it."""

    recipe: Recipe
    archive: Archive
    plan: packages.PackagePlan
    epoch: int
    number: int
    version: str | None
    lock: str
    key: str


def archive_date(lists: Path) -> int:
    """The newest ``Date`` of the signed package lists, seconds since 1970: a release's number, and the epoch of
    a recipe that says "auto".
    """
    dates = [0]
    for path in lists.glob("*InRelease"):
        match = re.search(r"^Date: (.+)$", path.read_text(errors="replace"), re.MULTILINE)
        if match:
            dates.append(int(parsedate_to_datetime(match[1]).timestamp()))
    return max(dates)


def gather(
    recipe: Recipe, store: Store, tools: Tools, version: str | None, sources: Path | None, signer: Signer | None,
    monitor: Monitor, number: int | None = None,
) -> Inputs:  # fmt: skip
    """Resolve the recipe against today's archive. Cheap when nothing changed."""
    cache = cache_directory()
    own = source.build_package(tools, cache, recipe.epoch or 0, monitor)
    lines = sources.read_text() if sources else tools.sources(recipe.pockets)
    archive = Archive(tools, cache, lines, own.deb.parent, recipe.recommends)
    archive.refresh()
    plan = archive.plan([recipe.kernel, *recipe.packages])
    date = archive_date(archive.directory / "lists")
    epoch = recipe.epoch if recipe.epoch is not None else date
    lock_path = store.locks / f"{recipe.name}.ids"
    lock = lock_path.read_text() if lock_path.exists() else ""
    by = signer.certificate_der().hex() if signer is not None else "unsigned"
    parts = [recipe.id, plan.id, own.id, tools.id, by, version or "", str(recipe.epoch)]
    # The date of the lists is no input by itself: an archive that moved on, with nothing for us, gives the same release.
    parts += [] if number is None else [f"number {number}"]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return Inputs(recipe, archive, plan, epoch, date if number is None else number, version, lock, key)


def next_version(recipe: Recipe, store: Store, now: float) -> str:
    """The recipe's version pattern for a build at ``now``, with the first serial that is free."""
    date = time.strftime("%Y%m%d", time.gmtime(now))
    serial = 0
    while (store.releases / f"{recipe.name}-{recipe.version_at(date, serial)}").exists():
        if "{serial}" not in recipe.version:
            return recipe.version_at(date, serial)
        serial += 1
    return recipe.version_at(date, serial)


def build(
    path: Path, store: Store, keys: KeyDirectory, monitor: Monitor, *, version: str | None = None, key_uri: str | None = None,
    sources: Path | None = None, number: int | None = None, unsigned: bool = False,
) -> BuildResult:  # fmt: skip
    """Build the recipe at ``path``. A build with equal inputs returns the release it gave before.

    The release's directory appears under its name when it is complete; what an interrupted build left
    is in ``store.work`` and is removed by the next. With ``unsigned`` no key is opened, and the release
    lacks the signatures of :mod:`freehold.build.signing`. Raises :class:`InputError` for a faulty recipe, nothing built.
    """
    if number is not None and not 0 <= number <= NUMBER_LIMIT:
        raise InputError(f"{number} is not a release number", hint="seconds since 1970, for example `date +%s`")
    if version is not None and not version_valid(version):
        raise InputError(f"{version!r} is not a version", hint="letters, digits, dots and dashes, at most 64")
    recipe = load(path)
    signer = None if unsigned else keys.signer(key_uri, monitor)
    recipe = with_keychain(recipe, keys, signer)
    cache = cache_directory()
    # Package lists and our own package lie in the cache, which builds into different stores share.
    with (
        atomic.exclusive(store.root / "lock", f"the store {store.root}"),
        atomic.exclusive(cache / "build.lock", f"the cache {cache}"),
    ):
        tools = ensure(cache, monitor, sources=sources)
        inputs = gather(recipe, store, tools, version, sources, signer, monitor, number)
        known = store.builds / inputs.key
        before = store.releases / known.read_text() if known.is_file() else None
        if before is not None and ((before / "manifest.json").is_file() or signing.is_unsigned(before)):
            return _result(before, dict.fromkeys(STEPS, 0.0), unchanged=True)
        chosen = version or next_version(recipe, store, time.time())
        release = store.releases / f"{recipe.name}-{chosen}"
        if release.exists():
            raise InputError(f"release {release.name} exists and is something else", hint="choose another --version")
        clock = _Clock()
        _make(inputs, chosen, store, tools, signer, release, clock, monitor)
        atomic.write(known, release.name)
        return _result(release, clock.seconds, unchanged=False)


def _make(
    inputs: Inputs, version: str, store: Store, tools: Tools, signer: Signer | None, release: Path, clock: _Clock,
    monitor: Monitor,
) -> None:  # fmt: skip
    recipe, epoch = inputs.recipe, inputs.epoch
    for left in store.work.iterdir():
        shutil.rmtree(left, ignore_errors=True)
    work = store.scratch("build")
    root = work / "tree"
    with clock.time("packages", monitor):
        monitor.message(f"{len(inputs.plan.files)} packages, {inputs.plan.bytes >> 20} MiB")
        packages.unpack(inputs.archive, [recipe.kernel, *recipe.packages], root, epoch)
    with clock.time("tree", monitor):
        kernel, lock = tree.finish(
            root, recipe, version=version, epoch=epoch, sources=inputs.archive.sources, lock=ids.parse_lock(inputs.lock)
        )
        found = installed((root / DPKG_STATUS).read_text())
        entries = list(walk(root))
        _without_privileges(entries, recipe)
        packed = initrd.members(root, kernel, recipe.keychain_files())
        vmlinuz = work / "vmlinuz"
        shutil.copy(root / "usr/lib/modules" / kernel / "vmlinuz", vmlinuz)
    with clock.time("commit", monitor):
        commit = commits.commit_tree(tools, store.repo, root, name=recipe.name, version=version, epoch=epoch)
    with clock.time("seal", monitor):
        sealed = work / "release"
        sealed.mkdir()
        metadata = image.write_image(tools, entries, commit, sealed / "image", epoch)
        policy = kernel_inputs.name_of(kernel_inputs.rules(entries))
        line = uki.command_line(metadata.digest, inputs.number, recipe.console, recipe.cmdline, policy)
        # The early step compares: what firmware or a hypervisor appends is not what was signed.
        packed["cmdline"] = cpio.Member(cpio.REGULAR, uki.sealed_lines(line))
        initrd.write_initrd(tools, packed, work / "initrd")
        unsigned = uki.write_pair(
            tools, work, kernel=vmlinuz, uname=kernel, initrd=work / "initrd",
            line=line, release=uki.os_release(recipe.name, version),
        )  # fmt: skip
        manifest = _manifest(inputs, version, kernel, commit.id, metadata, found)
        signing.write_unsigned(sealed, manifest, unsigned, recipe.keychain_files())
        if signer is not None:
            signing.sign_release(tools, sealed, signer)
        (sealed / "build.json").write_text(json.dumps(_measures(entries, clock, inputs)) + "\n")
    atomic.write(store.locks / f"{recipe.name}.ids", lock.text())
    atomic.publish(sealed, release)
    shutil.rmtree(work, ignore_errors=True)


def _without_privileges(entries: Sequence[headerball.Entry], recipe: Recipe) -> None:
    found = stubs.privileged(entries, keep_all=recipe.setuid_keep)
    if found:
        raise FreeholdError(
            f"a file of the tree gives its callers more rights: {found[0]}", details="\n".join(found),
            hint="setuid.keep in the recipe names those that are meant",
        )  # fmt: skip


def _manifest(
    inputs: Inputs, version: str, kernel: str, commit: str, metadata: image.Image, found: Sequence[tuple[str, str, str]]
) -> Manifest:
    """The manifest, but for the kernel images' digests and sizes."""
    recipe = inputs.recipe
    return Manifest(
        name=recipe.name, version=version, commit=commit, image_digest=metadata.digest, image_size=metadata.size,
        uki=Uki(f"freehold-{version}-{metadata.digest[:ID_LENGTH]}.efi", "0" * 64, 1),
        rescue=Uki(rescue_entry.name(version, metadata.digest[:ID_LENGTH]), "0" * 64, 1),
        timestamp=int(time.time()), number=inputs.number, architecture=recipe.architecture, kernel=kernel, suite=recipe.suite,
        pockets=recipe.pockets, packages=tuple(found),
    )  # fmt: skip


def _measures(entries: Sequence[headerball.Entry], clock: _Clock, inputs: Inputs) -> dict[str, object]:
    return {
        "files": len(entries), "bytes": sum(entry.size for entry in entries), "seconds": clock.seconds,
        "epoch": inputs.epoch, "recipe": json.loads(inputs.recipe.canonical()),
        "plan": [list(file) for file in sorted(inputs.plan.files)], "timeout": inputs.recipe.timeout,
    }  # fmt: skip


def _result(release: Path, seconds: dict[str, float], *, unchanged: bool) -> BuildResult:
    measures = json.loads((release / "build.json").read_text())
    manifest = signing.manifest_of(release)
    signed = not signing.is_unsigned(release)
    return BuildResult(manifest, release, measures["files"], measures["bytes"], seconds, unchanged, signed)
