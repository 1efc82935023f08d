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
from freehold.build import image, initrd, packages, source, tree, uki
from freehold.build.keys import KeyDirectory, with_keychain
from freehold.build.packages import Archive
from freehold.build.recipe import Recipe, load
from freehold.build.store import Store, cache_directory
from freehold.build.tools import Tools, ensure
from freehold.errors import InputError
from freehold.keys.x509 import Signer
from freehold.monitor import Monitor, step
from freehold.seal import headerball, ids
from freehold.seal.dpkg import installed
from freehold.seal.walk import walk
from freehold.update.manifest import Manifest, Uki, parse_manifest, serialize_manifest, version_valid

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

    def data(self) -> dict[str, object]:
        """The JSON report (schema ``freehold-build-1``)."""
        return {
            "schema": "freehold-build-1", "name": self.manifest.name, "version": self.manifest.version,
            "commit": self.manifest.commit, "image_digest": self.manifest.image_digest, "uki": str(self.release / "uki.efi"),
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
    version: str | None
    lock: str
    key: str


def archive_date(lists: Path) -> int:
    """The newest ``Date`` of the signed package lists, seconds since 1970: the epoch of a recipe that says "auto"."""
    dates = [0]
    for path in lists.glob("*InRelease"):
        match = re.search(r"^Date: (.+)$", path.read_text(errors="replace"), re.MULTILINE)
        if match:
            dates.append(int(parsedate_to_datetime(match[1]).timestamp()))
    return max(dates)


def gather(
    recipe: Recipe, store: Store, tools: Tools, version: str | None, sources: Path | None, signer: Signer, monitor: Monitor
) -> Inputs:
    """Resolve the recipe against today's archive. Cheap when nothing changed."""
    cache = cache_directory()
    own = source.build_package(tools, cache, recipe.epoch or 0, monitor)
    lines = sources.read_text() if sources else tools.sources(recipe.pockets)
    archive = Archive(tools, cache, lines, own.deb.parent, recipe.recommends)
    archive.refresh()
    plan = archive.plan([recipe.kernel, *recipe.packages])
    epoch = recipe.epoch if recipe.epoch is not None else archive_date(archive.directory / "lists")
    lock_path = store.locks / f"{recipe.name}.ids"
    lock = lock_path.read_text() if lock_path.exists() else ""
    parts = [recipe.id, plan.id, own.id, tools.id, signer.certificate_der().hex(), version or "", str(recipe.epoch)]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return Inputs(recipe, archive, plan, epoch, version, lock, key)


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
    sources: Path | None = None,
) -> BuildResult:  # fmt: skip
    """Build the recipe at ``path``. A build with equal inputs returns the release it gave before.

    The release's directory appears under its name when it is complete; what an interrupted build left
    is in ``store.work`` and is removed by the next. Raises :class:`InputError` for a faulty recipe, nothing built.
    """
    if version is not None and not version_valid(version):
        raise InputError(f"{version!r} is not a version", hint="letters, digits, dots and dashes, at most 64")
    recipe = load(path)
    signer = keys.signer(key_uri, monitor)
    recipe = with_keychain(recipe, keys, signer)
    with atomic.exclusive(store.root / "lock", f"the store {store.root}"):
        tools = ensure(cache_directory(), monitor, sources=sources)
        inputs = gather(recipe, store, tools, version, sources, signer, monitor)
        known = store.builds / inputs.key
        if known.is_file() and (store.releases / known.read_text() / "manifest.json").is_file():
            return _result(store.releases / known.read_text(), dict.fromkeys(STEPS, 0.0), unchanged=True)
        chosen = version or next_version(recipe, store, time.time())
        release = store.releases / f"{recipe.name}-{chosen}"
        if release.exists():
            raise InputError(f"release {release.name} exists and is something else", hint="choose another --version")
        clock = _Clock()
        _make(inputs, chosen, store, tools, signer, release, clock, monitor)
        atomic.write(known, release.name)
        return _result(release, clock.seconds, unchanged=False)


def _make(
    inputs: Inputs, version: str, store: Store, tools: Tools, signer: Signer, release: Path, clock: _Clock, monitor: Monitor
) -> None:
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
        packed = initrd.members(root, kernel, recipe.keychain_files())
        vmlinuz = work / "vmlinuz"
        shutil.copy(root / "usr/lib/modules" / kernel / "vmlinuz", vmlinuz)
    with clock.time("commit", monitor):
        commit = commits.commit_tree(tools, store.repo, root, name=recipe.name, version=version, epoch=epoch)
    with clock.time("seal", monitor):
        sealed = work / "release"
        sealed.mkdir()
        metadata = image.write_image(tools, entries, commit, sealed / "image", epoch)
        initrd.write_initrd(tools, packed, work / "initrd")
        unsigned = uki.write_uki(
            tools, work, kernel=vmlinuz, uname=kernel, initrd=work / "initrd",
            line=uki.command_line(metadata.digest, recipe.console, recipe.cmdline),
            release=uki.os_release(recipe.name, version),
        )  # fmt: skip
        uki.sign_efi(tools, unsigned, sealed / "uki.efi", signer)
        manifest = _manifest(inputs, version, kernel, commit.id, metadata, sealed / "uki.efi", found)
        data = serialize_manifest(manifest)
        (sealed / "manifest.json").write_bytes(data)
        (sealed / "manifest.json.sig").write_bytes(signer.sign_document(data))
        (sealed / "build.json").write_text(json.dumps(_measures(entries, clock, inputs)) + "\n")
    atomic.write(store.locks / f"{recipe.name}.ids", lock.text())
    atomic.publish(sealed, release)
    shutil.rmtree(work, ignore_errors=True)


def _manifest(
    inputs: Inputs, version: str, kernel: str, commit: str, metadata: image.Image, efi: Path,
    found: Sequence[tuple[str, str, str]],
) -> Manifest:  # fmt: skip
    content = efi.read_bytes()
    recipe = inputs.recipe
    return Manifest(
        name=recipe.name, version=version, commit=commit, image_digest=metadata.digest, image_size=metadata.size,
        uki=Uki(f"freehold-{version}-{metadata.digest[:16]}.efi", hashlib.sha256(content).hexdigest(), len(content)),
        timestamp=int(time.time()), architecture=recipe.architecture, kernel=kernel, suite=recipe.suite,
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
    manifest = parse_manifest((release / "manifest.json").read_bytes())
    return BuildResult(manifest, release, measures["files"], measures["bytes"], seconds, unchanged)
