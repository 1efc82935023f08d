# SPDX-License-Identifier: Apache-2.0
"""``freehold verify``: metadata images and the objects they point to, read at the speed of the disk.

The kernel does the hashing: fs-verity compares each block with the file's Merkle tree as it is read, and the tree's root is
the digest that is measured here. So Python only opens, asks, and reads into a buffer that nobody looks at; threads wait for
the disk, not for each other. Objects are taken in the order of their inodes, which is about the order on the disk.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from freehold.device.sysroot import Sysroot
from freehold.device.verify_deployments import Job
from freehold.device.verify_findings import STORE, Finding, deviation, note
from freehold.device.verify_image import Listing, Pointer
from freehold.device.verify_kernel import BUFFER_BYTES, Probe
from freehold.errors import FreeholdError
from freehold.monitor import REFRESH_HZ, Monitor
from freehold.update.manifest import Manifest

_REPAIR = "the kernel refuses to read it; `freehold rollback`, or write the disk anew"
_CLEANUP = "`freehold cleanup` removes what nothing needs"
_FETCH = "`freehold upgrade` brings a newer release; `freehold rollback` leads to another deployment"


class Object(NamedTuple):
    """One object that somebody points to. ``users``: (deployment id, path in its tree), one for each deployment."""

    name: str
    digest: bytes
    size: int
    users: tuple[tuple[str, str], ...]


def images(
    sysroot: Sysroot, wanted: Sequence[tuple[str, Manifest]], probe: Probe, *, quick: bool
) -> tuple[dict[str, Listing], list[Finding], list[tuple[int, Job]]]:
    """Measure and list the metadata image of each (deployment id, manifest): listings by id, findings, jobs."""
    listings: dict[str, Listing] = {}
    found: list[Finding] = []
    jobs: list[tuple[int, Job]] = []
    probe.isolate()
    place = sysroot.system / f"run/freehold/verify-{os.getpid()}"
    for identity, manifest in wanted:
        name = f"images/{manifest.image_digest}"
        path = sysroot.images / manifest.image_digest
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            kind = "image-missing" if error.errno == errno.ENOENT else "image-unreadable"
            found.append(deviation(kind, identity, name, "the metadata image", _said(error), _FETCH))
            continue
        try:
            fault = _measured(fd, name, bytes.fromhex(manifest.image_digest), probe, "image")
            if fault is not None:
                found.append(deviation(fault[0], identity, name, fault[1], fault[2], _FETCH))
            else:
                # What it says counts only when it is the one that was signed.
                listings[identity] = probe.list_image(fd, place)
                found += [
                    deviation("image-entry", identity, file, "an object and its digest", said)
                    for file, said in listings[identity].faults
                ]
                if not quick:
                    jobs.append((os.fstat(fd).st_size, partial(_read_image, path, identity, name, probe)))
        except OSError as error:
            found.append(deviation("image-unreadable", identity, name, "a metadata image", _said(error), _FETCH))
        except FreeholdError as error:
            found.append(deviation("image-unreadable", identity, name, "a metadata image", error.message, _FETCH))
        finally:
            os.close(fd)
    return listings, found, jobs


def _said(error: OSError) -> str:
    return error.strerror or str(error)


def _measured(fd: int, name: str, digest: bytes, probe: Probe, kind: str) -> tuple[str, str, str] | None:
    """(check, expected, found) when the kernel does not enforce ``digest`` for the open file."""
    try:
        measured = probe.measure(fd, name)
    except FreeholdError as error:
        return f"{kind}-digest", digest.hex(), error.message
    if measured is None:
        return f"{kind}-unmeasured", "fs-verity", "none: nothing guards it against changes"
    if measured != digest:
        return f"{kind}-digest", digest.hex(), measured.hex()
    return None


def _read_image(path: Path, identity: str, name: str, probe: Probe, buffer: bytearray) -> tuple[list[Finding], int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return [], probe.read(fd, buffer)
        finally:
            os.close(fd)
    except OSError as error:
        return [deviation("image-damaged", identity, name, "content that matches its digest", _said(error), _REPAIR)], 0


def objects_of(listings: Iterable[tuple[str, Iterable[Pointer]]]) -> list[Object]:
    """Each object that the listings (deployment id, pointers) name, once, with who uses it. Pure.

    Two images that want different digests of one object give two: at most one of them can be content.
    """
    users: dict[tuple[str, bytes], dict[str, str]] = {}
    sizes: dict[tuple[str, bytes], int] = {}
    for identity, pointers in listings:
        for one in pointers:
            key = (one.name, one.digest)
            users.setdefault(key, {}).setdefault(identity, one.path)
            sizes.setdefault(key, one.size)
    return [Object(name, digest, sizes[name, digest], tuple(by.items())) for (name, digest), by in users.items()]


def check_object(
    directory: int, one: Object, probe: Probe, quick: bool, buffer: bytearray
) -> tuple[list[Finding], int]:
    """The object ``one`` in the store that is open as ``directory``: there, enforced, readable. Findings and bytes read."""
    try:
        fd = os.open(one.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return _blame(one, "object-missing", "an object of the store", _said(error), _FETCH), 0
        return _blame(one, "object-damaged", "a readable object", _said(error), _REPAIR), 0
    try:
        fault = _measured(fd, one.name, one.digest, probe, "object")
        if fault is not None:
            return _blame(one, *fault, _FETCH), 0
        if quick:
            return [], 0
        return [], probe.read(fd, buffer)
    except OSError as error:
        return _blame(one, "object-damaged", "content that matches its digest", _said(error), _REPAIR), 0
    finally:
        os.close(fd)


def _blame(one: Object, check: str, expected: str, found: str, hint: str) -> list[Finding]:
    return [deviation(check, identity, f"{path} ({one.name})", expected, found, hint) for identity, path in one.users]


def object_jobs(
    directory: int, objects: Sequence[Object], order: Mapping[str, int], probe: Probe, *, quick: bool
) -> list[tuple[int, Job]]:
    """One job for each object, in the order in which they probably lie on the disk."""
    ordered = sorted(objects, key=lambda one: order.get(one.name, 0))
    return [(0 if quick else one.size, partial(check_object, directory, one, probe, quick)) for one in ordered]


def unreferenced_objects(sysroot: Sysroot, order: Iterable[str], objects: Iterable[Object]) -> list[Finding]:
    """A note about the objects that no deployment needs."""
    count = size = 0
    for name in set(order) - {one.name for one in objects}:
        try:
            status = (sysroot.repo / "objects" / name).lstat()
        except OSError:
            continue
        # Links and empty files are in the images themselves; ostree keeps objects for them all the same.
        if status.st_size and stat.S_ISREG(status.st_mode):
            count, size = count + 1, size + status.st_size
    if not count:
        return []
    said = f"{count:,} objects, {size / (1 << 20):,.1f} MiB, that no deployment points to"
    return [note("unreferenced", STORE, "repo/objects", "", said, _CLEANUP)]


def unreferenced_images(sysroot: Sysroot, wanted: Collection[str]) -> list[Finding]:
    """A note about each image that no deployment needs."""
    names = sorted(os.listdir(sysroot.images)) if sysroot.images.is_dir() else []
    return [
        note("unreferenced", STORE, f"images/{name}", "", "an image of no deployment", _CLEANUP)
        for name in names
        if name not in wanted
    ]  # fmt: skip


def run_jobs(jobs: Sequence[tuple[int, Job]], threads: int, monitor: Monitor) -> tuple[list[Finding], int]:
    """Run every job on ``threads`` threads, each with a buffer of its own; all findings, and the bytes read.

    An exception that is no finding ends all of them, and is raised here.
    """
    total = sum(size for size, _ in jobs)
    waiting: Iterator[tuple[int, Job]] = iter(jobs)
    lock = threading.Lock()
    stop = threading.Event()
    found: list[Finding] = []
    failures: list[BaseException] = []
    done = [0] * threads

    def work(number: int) -> None:
        buffer = bytearray(BUFFER_BYTES)
        try:
            while not stop.is_set():
                with lock:
                    item = next(waiting, None)
                if item is None:
                    return
                findings, count = item[1](buffer)
                done[number] += count
                if findings:
                    with lock:
                        found.extend(findings)
        except BaseException as error:
            failures.append(error)
            stop.set()

    workers = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(threads)]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            while worker.is_alive():
                worker.join(1 / REFRESH_HZ)
                monitor.progress(sum(done), total, "bytes")
    finally:
        # Interrupted: each thread finishes the file that it reads.
        stop.set()
        for worker in workers:
            worker.join()
    if failures:
        raise failures[0]
    return found, sum(done)
