# SPDX-License-Identifier: Apache-2.0
"""The device's ostree repository: pull one commit, verity on its objects, refs, prune.

The repository's own configuration lies on the disk, where root can edit it: it is rewritten before each use. What
ostree then brings is named by content: objects by the commit id in the signed manifest (libostree
checks each one's SHA-256), and at run time by the fs-verity digests in the signed metadata image, which the
kernel checks again at each read. So ostree's own signatures (GPG) are off: they would add another root of trust,
and no safety.
"""

from __future__ import annotations

import re
from pathlib import Path

from freehold import atomic
from freehold.device.sysroot import REF_PREFIX, Sysroot
from freehold.errors import CommandError, FreeholdError
from freehold.run import Completed, run
from freehold.update.fetch import UNCHANGED

REMOTE = "freehold"
#: Seconds for one pull; a slower line than this continues at the next try, where it stopped.
PULL_TIMEOUT = 6 * 3600
_FILE_LINE = re.compile(r"-\d+ +\d+ +\d+ +\d+ ([0-9a-f]{64}) /")


def repository_config(*, verity: bool) -> str:
    """The configuration of ``/sysroot/repo``. The remote's address is given at each pull, never read from here."""
    return "\n".join(
        [
            "[core]",
            "repo_version=1",
            "mode=bare",
            "[ex-integrity]",
            f"fsverity={'maybe' if not verity else 'yes'}",
            f'[remote "{REMOTE}"]',
            "url=http://unset.invalid/",
            "gpg-verify=false",
            "gpg-verify-summary=false",
            "",
        ]
    )


def file_objects(listing: str) -> list[str]:
    """The checksums of regular files in the output of ``ostree ls -R -C``, each once."""
    return sorted({match[1] for line in listing.splitlines() if (match := _FILE_LINE.match(line))})


def _ostree(sysroot: Sysroot, *arguments: str, timeout: float | None = None) -> Completed:
    return run([*sysroot.ostree, f"--repo={sysroot.repo}", *arguments], timeout=timeout)


def prepare(sysroot: Sysroot, *, verity: bool = True) -> None:
    """Give the repository the configuration that we mean, whatever it says now."""
    path = sysroot.repo / "config"
    wanted = repository_config(verity=verity)
    if not path.is_file() or path.read_text(errors="replace") != wanted:
        atomic.write(path, wanted)


def pull(sysroot: Sysroot, url: str, commit: str, identity: str) -> None:
    """Fetch ``commit`` from the archive repository at ``url`` and name it for deployment ``identity``.

    An interrupted pull continues. :class:`FreeholdError` when it cannot be had.
    """
    prepare(sysroot, verity=sysroot.kernel_verity)
    try:
        _ostree(
            sysroot, "pull", "--depth=0", "--disable-static-deltas", "--network-retries=2",
            f"--url={url}", REMOTE, commit, timeout=PULL_TIMEOUT,
        )  # fmt: skip
    except CommandError as error:
        raise FreeholdError(
            f"{url}: the content of {identity} could not be fetched: {error.message}",
            hint=UNCHANGED,
            details=error.details,
        ) from None
    reference(sysroot, identity, commit)


def pull_local(sysroot: Sysroot, source: Path, commit: str, identity: str) -> None:
    """Copy ``commit`` from the repository ``source`` of another disk and name it for deployment ``identity``.

    libostree checks each object against its name; what an interrupted copy brought is not brought again.
    """
    prepare(sysroot, verity=sysroot.kernel_verity)
    _ostree(sysroot, "pull-local", f"{source}", commit, timeout=PULL_TIMEOUT)
    reference(sysroot, identity, commit)


def reference(sysroot: Sysroot, identity: str, commit: str) -> None:
    """Keep ``commit`` as long as deployment ``identity`` exists."""
    _ostree(sysroot, "refs", "--force", f"--create={REF_PREFIX}{identity}", commit)


def references(sysroot: Sysroot) -> set[str]:
    """The ids of deployments that have a ref."""
    lines = _ostree(sysroot, "refs").text.split()
    return {line.removeprefix(REF_PREFIX) for line in lines if line.startswith(REF_PREFIX)}


def release(sysroot: Sysroot, identity: str) -> None:
    """Drop the ref of deployment ``identity``; its objects go at the next :func:`prune`."""
    _ostree(sysroot, "refs", f"--delete={REF_PREFIX}{identity}")


def prune(sysroot: Sysroot) -> None:
    """Delete every object that no ref needs."""
    _ostree(sysroot, "prune", "--refs-only", "--depth=0")


def objects(sysroot: Sysroot, commit: str) -> list[str]:
    """The checksums of the file objects of ``commit``."""
    return file_objects(_ostree(sysroot, "ls", "-R", "-C", commit).text)


def verify_objects(sysroot: Sysroot, commit: str) -> int:
    """Switch fs-verity on for each object of ``commit`` that lacks it; how many did.

    An object without it would read as an error in the sealed tree (``verity=require``). libostree enables
    verity as it writes; a power cut or an older tool may have left some without.
    """
    enabled = 0
    for checksum in objects(sysroot, commit):
        path = object_path(sysroot.repo, checksum)
        if sysroot.verity.measure(path) is None:
            sysroot.verity.enable(path)
            enabled += 1
    return enabled


def object_path(repo: Path, checksum: str) -> Path:
    """Where a bare repository keeps the file object ``checksum``."""
    return repo / "objects" / checksum[:2] / f"{checksum[2:]}.file"
