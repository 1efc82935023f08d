# SPDX-License-Identifier: Apache-2.0
"""``freehold publish``: a release becomes static files that any web server can carry.

The rescue image is published as what it has that the normal one has not: they share kernel and initrd.

Order: objects, then the release's files, then the stream's pointer, so that whoever reads the pointer finds all it
leads to. Running it again is harmless and completes what was interrupted. Published releases never change.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from freehold import atomic
from freehold.errors import InputError
from freehold.files import read_given
from freehold.keys.formats import parse_signature
from freehold.monitor import Monitor, step
from freehold.run import Argument, Completed
from freehold.seal import kernel_inputs
from freehold.update import parts, rescue_entry
from freehold.update.manifest import (
    MANIFEST_LIMIT,
    SIGNATURE_LIMIT,
    STREAM_LIMIT,
    UKI_LIMIT,
    Manifest,
    Stream,
    parse_manifest,
    parse_stream,
    serialize_stream,
    sha256,
    stream_valid,
)

#: What a release consists of.
FILES = ("manifest.json", "manifest.json.sig", "image", "uki.efi", rescue_entry.FILE)
#: What is published of it.
PUBLISHED = ("manifest.json", "manifest.json.sig", "image", "uki.efi", rescue_entry.PARTS)
#: Objects are compressed once, on the publisher's machine; level 1 is nearly as small and much faster.
ZLIB_LEVEL = 1


class Runner(Protocol):
    """Runs a command of the tools tree; ``binds`` are visible and writable inside under their own paths."""

    def __call__(self, command: Sequence[Argument], /, *, binds: Sequence[Path] = ()) -> Completed:
        """As :meth:`freehold.build.tools.Tools.run`."""


@dataclass(frozen=True)
class Release:
    """A sealed release in a builder's store, checked: its files are what its manifest says."""

    directory: Path
    manifest: Manifest
    manifest_bytes: bytes
    rescue_parts: bytes

    def content(self, name: str) -> bytes:
        """What is published as ``name``."""
        return self.rescue_parts if name == rescue_entry.PARTS else (self.directory / name).read_bytes()


@dataclass(frozen=True)
class Published:
    """What :func:`publish` did."""

    version: str
    stream: str
    changed: bool


def load_release(directory: Path) -> Release:
    """Read and check the release in ``directory``; :class:`InputError` lists what is wrong with it."""
    from freehold.keys.verity import digest_file

    missing = [name for name in FILES if not (directory / name).is_file()]
    if missing:
        raise InputError(f"{directory} is not a release: {', '.join(missing)} missing")
    data = read_given(directory / "manifest.json", MANIFEST_LIMIT)
    manifest = parse_manifest(data)
    faults: list[str] = []
    if (directory / "image").stat().st_size != manifest.image_size:
        faults.append(f"image: not {manifest.image_size} bytes")
    elif digest_file(directory / "image").hex() != manifest.image_digest:
        faults.append("image: another digest than the manifest says")
    for name, wanted in (("uki.efi", manifest.uki), (rescue_entry.FILE, manifest.rescue)):
        if (directory / name).stat().st_size != wanted.size:
            faults.append(f"{name}: not {wanted.size} bytes")
        elif sha256(read_given(directory / name, wanted.size)) != wanted.sha256:
            faults.append(f"{name}: another digest than the manifest says")
    if not faults and manifest.inputs is not None:
        policy = kernel_inputs.of_image((directory / "image").read_bytes())
        if kernel_inputs.check(policy) != manifest.inputs.name:
            faults.append("image: has other kernel inputs than the manifest says")
    try:
        parse_signature(read_given(directory / "manifest.json.sig", SIGNATURE_LIMIT))
    except (ValueError, InputError) as error:
        faults.append(f"manifest.json.sig: {error}")
    if faults:
        raise InputError(f"the release in {directory} is damaged: {faults[0]}", faults=faults, hint="build it again")
    normal, rescue = (read_given(directory / name, UKI_LIMIT) for name in ("uki.efi", rescue_entry.FILE))
    described = parts.describe(normal, rescue)
    if len(described) > parts.LIMIT or parts.rebuild(normal, described, len(rescue)) != rescue:
        raise InputError(f"the rescue image in {directory} is not made from its uki.efi", hint="build it again")
    return Release(directory, manifest, data, described)


def publish(
    release: Release,
    target: Path,
    *,
    stream: str,
    repo: Path,
    sign: Callable[[bytes], bytes],
    runner: Runner,
    monitor: Monitor,
) -> Published:
    """Publish ``release`` (its content in the ostree repository ``repo``) to the directory ``target``.

    ``sign`` makes the content of a ``.sig`` file, by a key of role release. Raises :class:`InputError` when the
    stream is ahead, or when another release was published under this version; :class:`BusyError` during another publish.
    """
    if not stream_valid(stream):
        raise InputError(f"{stream[:80]!r} is not a stream's name", hint="lower-case letters, digits and ._-")
    for directory in (target / "streams", target / "releases"):
        directory.mkdir(parents=True, exist_ok=True)
    target = target.absolute()
    with atomic.exclusive(target / ".publish.lock", "the published directory"):
        pointer, changed = _pointer(release, target, stream)
        with step(monitor, "publishing content"):
            _objects(release.manifest.commit, repo.absolute(), target / "repo", runner)
        with step(monitor, "publishing release"):
            changed |= _files(release, target / "releases" / release.manifest.version)
        with step(monitor, "publishing stream"):
            changed |= _write_pointer(target / "streams" / f"{stream}.json", pointer, sign(pointer))
    return Published(release.manifest.version, stream, changed)


def _pointer(release: Release, target: Path, stream: str) -> tuple[bytes, bool]:
    """The pointer's bytes (those published already when they say the same), and whether they are new."""
    manifest, digest = release.manifest, sha256(release.manifest_bytes)
    path = target / "streams" / f"{stream}.json"
    if path.is_file():
        data = read_given(path, STREAM_LIMIT)
        standing = parse_stream(data)
        if (standing.version, standing.manifest_sha256) == (manifest.version, digest):
            return data, False
        ahead = target / "releases" / standing.version / "manifest.json"
        if ahead.is_file():
            other = parse_manifest(read_given(ahead, MANIFEST_LIMIT))
            if other.timestamp >= manifest.timestamp:
                raise InputError(
                    f"the stream {stream} is at {other.version}, which is not older than {manifest.version}",
                    hint="devices refuse to go back; build a newer release, or publish to another stream",
                )
    return serialize_stream(Stream(stream, manifest.version, digest, int(time.time()))), True


def _objects(commit: str, source: Path, repo: Path, runner: Runner) -> None:
    binds = (source, repo.parent)
    if not (repo / "config").is_file():
        runner(["ostree", f"--repo={repo}", "init", "--mode=archive"], binds=binds)
        runner(["ostree", f"--repo={repo}", "config", "set", "archive.zlib-level", str(ZLIB_LEVEL)], binds=binds)
    runner(["ostree", f"--repo={repo}", "pull-local", source, commit], binds=binds)
    # A ref keeps the commit when somebody prunes the published repository.
    runner(["ostree", f"--repo={repo}", "refs", "--force", f"--create=releases/{commit}", commit], binds=binds)


def _files(release: Release, directory: Path) -> bool:
    if directory.is_dir():
        for name in PUBLISHED:
            if sha256((directory / name).read_bytes()) != sha256(release.content(name)):
                raise InputError(
                    f"another release was published as {release.manifest.version} ({directory / name} differs)",
                    hint="published releases never change: build with a higher version",
                )
        return False
    temporary = directory.with_name(f"{atomic.TEMPORARY_PREFIX}{directory.name}")
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir()
    for name in PUBLISHED:
        (temporary / name).write_bytes(release.content(name))
        (temporary / name).chmod(0o644)
        atomic.flush(temporary / name)
    atomic.fsync_directory(temporary)
    atomic.publish(temporary, directory)
    return True


def _write_pointer(path: Path, data: bytes, signature: bytes) -> bool:
    signed = path.with_name(f"{path.name}.sig")
    # The signature is compared too: an interrupted run may have replaced only one of the two.
    if path.is_file() and signed.is_file() and path.read_bytes() == data and signed.read_bytes() == signature:
        return False
    atomic.write(path, data)
    atomic.write(signed, signature)
    return True
