# SPDX-License-Identifier: Apache-2.0
"""The table of targets: what each reads, and of which files it is made. What each may not do stands in its own module."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
EARLY, HARNESS, PACKAGE = REPOSITORY / "early", REPOSITORY / "fuzz/c", REPOSITORY / "src/freehold"
#: Inputs that once were findings: every run begins with them.
FOUND = REPOSITORY / "fuzz/found"


class Target(NamedTuple):
    """One target. ``parts``: early/PART.c for those in C, src/freehold/PART.py for those in Python."""

    name: str
    engine: str
    what: str
    parts: tuple[str, ...]
    #: In C: sources that the harness includes, so that they are not compiled beside it.
    included: tuple[str, ...] = ()

    @property
    def harness(self) -> Path:
        """The file with the target's oracle."""
        return HARNESS / f"{self.name}.c" if self.engine == "c" else REPOSITORY / f"fuzz/{self.name}.py"

    @property
    def sources(self) -> list[Path]:
        """The code under test."""
        if self.engine == "c":
            return [EARLY / f"{part}.c" for part in (*self.parts, *self.included)]
        return [PACKAGE / f"{part}.py" for part in self.parts]

    def digest(self) -> str:
        """What the seconds that were spent are good for: another code under test, and they count for nothing."""
        whole = hashlib.sha256()
        for path in (*sorted(self.sources), self.harness):
            whole.update(hashlib.sha256(path.read_bytes()).digest())
        return whole.hexdigest()[:16]

    def seeds(self) -> list[bytes]:
        """Inputs that are accepted, or nearly: where the search begins."""
        from fuzz import seeds

        found = [path.read_bytes() for path in sorted((FOUND / self.name).glob("*"))]
        made: Callable[[], list[bytes]] = getattr(seeds, self.name)
        return [*found, *made()]

    def module(self) -> object:
        """The target's module, for those in Python."""
        return importlib.import_module(f"fuzz.{self.name}")


def _c(name: str, what: str, parts: str, included: str = "") -> Target:
    return Target(name, "c", what, tuple(parts.split()), tuple(included.split()))


def _python(name: str, what: str, parts: str) -> Target:
    return Target(name, "python", what, tuple(parts.split()))


TARGETS = (
    _c("loader", "the guard's loader and guardctl: /proc, disks, interpreters", "", "guard guardctl"),
    _c("policy", "the owner's intent, as the early step reads it", "intent sha256 keyring firmware revoked signatures util"),
    _c("firmware", "signature lists, certificates, revocations, partition tables", "firmware revoked signatures sha256 gpt util"),
    _c(
        "records", "signature lines, kept commits, TPM answers and memory, floor, boot entries, command lines",
        "fallback floor memory rescue tpm intent sha256 util keyring firmware revoked signatures verity", "owner commits",
    ),
    _c("refusals", "the guard's records, on their way to the journal", "refusals"),
    _python("machine", "typed machine state: host name, ssh host keys, accounts", "lock/machine"),
    _python(
        "words", "the owner's words: intents (against the parser in C), requests, floor, memory, request files",
        "lock/intent lock/requests lock/floor lock/memory lock/commits device/strict keys/formats",
    ),
    _python("images", "metadata images and committed /etc from a disk", "seal/erofs"),
    _python(
        "documents", "manifests, keys, certificates, EFI programs and lists, logs, boot entries, attestations",
        "update/manifest update/parts keys/der keys/wire keys/pkcs7 keys/pe keys/efi keys/dbx keys/eventlog keys/device "
        "keys/pcr attest/userlog attest/measured attest/document attest/tpm device/loader device/sysroot lock/denials "
        "lock/etc_request rescue/media boot/provision",
    ),
)  # fmt: skip
BY_NAME = {target.name: target for target in TARGETS}
