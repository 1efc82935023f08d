# SPDX-License-Identifier: Apache-2.0
"""``freehold verify``: is everything on this machine what somebody with the right to do so has signed?

Looks at the running machine, at the boot partition, and at every deployment down to the last file's content. It changes
nothing. The list of deployments is held meanwhile, so that no update or cleanup moves what is being read.
"""

from __future__ import annotations

import os
import time
from typing import NamedTuple

from freehold import atomic
from freehold.device import verify_content, verify_deployments, verify_running
from freehold.device.sysroot import Sysroot
from freehold.device.verify_findings import MACHINE, STORE, Checked, Finding, Result, data, deviation, text
from freehold.device.verify_image import Listing
from freehold.device.verify_kernel import KERNEL, Probe, store_objects
from freehold.errors import EXIT_DONE, EXIT_FAILED, InputError
from freehold.keys.verify import Keychain
from freehold.monitor import Monitor, step
from freehold.report import Report

#: Threads that read; two keep a disk busy while one of them is between files.
JOBS = 2
MAX_JOBS = 64


class Options(NamedTuple):
    """``quick``: measure, but do not read content. ``jobs``: reading threads."""

    quick: bool = False
    jobs: int = JOBS


def verify(sysroot: Sysroot, options: Options, monitor: Monitor, probe: Probe = KERNEL) -> Report:
    """Check everything; the report's exit status is 1 when anything deviates.

    Raises :class:`NotHereError` elsewhere than on a Freehold machine, :class:`BusyError` while deployments change.
    """
    sysroot.booted_id()
    with atomic.exclusive(sysroot.lock_file, "the list of deployments"):
        result = check(sysroot, options, monitor, probe)
    return Report(data(result), text(result), EXIT_FAILED if result.deviations else EXIT_DONE)


def check(sysroot: Sysroot, options: Options, monitor: Monitor, probe: Probe) -> Result:
    """Everything that :func:`verify` looks at, in seconds from here on."""
    started = time.monotonic()
    booted = sysroot.booted_id()
    findings: list[Finding] = []
    try:
        keychain = Keychain.from_directory(sysroot.keychain)
    except InputError as error:
        keychain = Keychain()
        findings.append(
            deviation(
                "keychain",
                MACHINE,
                str(sysroot.keychain),
                "the sealed keychain",
                "; ".join([error.message, *error.faults]),
            )
        )
    with step(monitor, "looking at deployments and boot entries"):
        boot = verify_deployments.open_esp(sysroot)
        findings += boot.findings
        found, faults = verify_deployments.deployments(sysroot, boot, keychain)
        findings += faults
        jobs: list[tuple[int, verify_deployments.Job]] = []
        sealed = verify_deployments.Sealed()
        for one in found:
            said, more, line = verify_deployments.kernel_images(sysroot, one, booted=one.id == booted)
            findings += [*said, *verify_deployments.kernel_inputs(sysroot, one)]
            jobs += more
            if one.id == booted:
                sealed = line
    with step(monitor, "looking at the running machine"):
        # Before the images are mounted where only this process sees them.
        kernel = next((one.manifest.kernel for one in found if one.id == booted and one.manifest is not None), "")
        findings += verify_running.judge(sysroot, keychain, sealed, kernel, probe)
    with step(monitor, "reading images"):
        wanted = [(one.id, one.manifest) for one in found if one.manifest is not None]
        listings, said, more = verify_content.images(sysroot, wanted, probe, quick=options.quick)
        findings += said
        jobs += more
    more_findings, files, read = _content(sysroot, listings, jobs, options, monitor, probe)
    findings += [*more_findings, *verify_content.unreferenced_images(sysroot, {one.image_digest for _, one in wanted})]
    checked = tuple(_checked(one, listings.get(one.id), booted=one.id == booted) for one in found)
    return Result(_ordered(findings), checked, files, read, time.monotonic() - started, options.quick, options.jobs)


def _content(
    sysroot: Sysroot, listings: dict[str, Listing], jobs: list[tuple[int, verify_deployments.Job]], options: Options,
    monitor: Monitor, probe: Probe,
) -> tuple[list[Finding], int, int]:  # fmt: skip
    """Findings about the store and its objects, how many files were looked at, and how many bytes read."""
    directory = sysroot.repo / "objects"
    objects = verify_content.objects_of((identity, one.pointers) for identity, one in listings.items())
    try:
        order = store_objects(directory)
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        fault = deviation("store", STORE, str(directory), "the object store", error.strerror or str(error))
        return [fault], 0, 0
    try:
        jobs = [*jobs, *verify_content.object_jobs(fd, objects, order, probe, quick=options.quick)]
        with step(monitor, "reading content" if not options.quick else "measuring content"):
            found, read = verify_content.run_jobs(jobs, options.jobs, monitor)
    finally:
        os.close(fd)
    return [*found, *verify_content.unreferenced_objects(sysroot, order, objects)], len(jobs), read


def _checked(one: verify_deployments.Found, listing: Listing | None, *, booted: bool) -> Checked:
    pointers = listing.pointers if listing is not None else ()
    version = one.manifest.version if one.manifest is not None else "unknown"
    state = one.entries[0].state if one.entries else "no boot entry"
    return Checked(one.id, version, booted, state, one.signer, len(pointers), sum(pointer.size for pointer in pointers))


def _ordered(findings: list[Finding]) -> tuple[Finding, ...]:
    """Threads end in any order; equal machines give equal reports."""
    return tuple(sorted(findings, key=lambda one: (one.where, one.severity, one.check, one.object)))
