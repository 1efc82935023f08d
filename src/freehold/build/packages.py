# SPDX-License-Identifier: Apache-2.0
"""Recipe → package plan → root tree as the packages leave it. apt and dpkg do all the work.

The plan (exact names, versions, hashes as apt resolves them today) is made first: it is what tells an
unchanged rebuild from a changed one, and what a release can be rebuilt from.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from freehold.build.tools import SUITE, Tools
from freehold.errors import CommandError, FreeholdError, InputError

URI_LINE = re.compile(r"^'(?P<uri>[^']+)' (?P<file>\S+) (?P<size>\d+)(?: (?P<hash>\S+))?$")
#: The essential set plus apt itself, as mmdebstrap's variant "apt" has it.
BASE_PATTERNS = ("?essential", "apt")
#: Kernel hooks must not build an initramfs: Freehold's is built once, later, from the finished tree.
QUIET_KERNEL = {"INITRD": "No"}


@dataclass(frozen=True)
class PackagePlan:
    """What apt would install: (file name, size, hash) in apt's order."""

    files: tuple[tuple[str, int, str], ...]

    @property
    def id(self) -> str:
        """Hash over the exact files."""
        lines = "\n".join(f"{name} {size} {digest}" for name, size, digest in sorted(self.files))
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def bytes(self) -> int:
        """Size of all package files."""
        return sum(size for _, size, _ in self.files)


def parse_uris(text: str) -> PackagePlan:
    """Parse ``apt-get --print-uris`` output. Pure."""
    files = []
    for line in text.splitlines():
        match = URI_LINE.match(line.strip())
        if match:
            files.append((match["file"], int(match["size"]), match["hash"] or ""))
    return PackagePlan(tuple(files))


def explain_apt(output: str) -> list[str]:
    """The lines of apt's output that say what is wrong, without its prefix. Pure."""
    faults = [line[2:].strip() for line in output.splitlines() if line.startswith("E:")]
    detail = [line.strip() for line in output.splitlines() if "Depends:" in line or "Conflicts:" in line]
    return [*dict.fromkeys([*faults, *detail])]


@dataclass(frozen=True)
class Archive:
    """An apt state of its own, outside any host's configuration, for one choice of sources."""

    tools: Tools
    cache: Path
    sources: str
    local: Path
    recommends: bool

    @property
    def directory(self) -> Path:
        """Where the package lists of these sources are kept."""
        return self.cache / "apt" / hashlib.sha256(self.sources.encode()).hexdigest()[:16]

    @property
    def all_sources(self) -> str:
        """:attr:`sources` plus ``local``, a flat directory with our own package."""
        return f"{self.sources}deb [trusted=yes] copy:{self.local} ./\n"

    @property
    def debs(self) -> Path:
        """Downloaded package files, shared by all builds."""
        return self.cache / "debs"

    def options(self) -> list[str]:
        """apt options that keep every path inside :attr:`directory`."""
        top = self.directory
        return [
            f"-oDir::Etc::SourceList={top}/sources.list", f"-oDir::Etc::SourceParts={top}/none",
            f"-oDir::State={top}", f"-oDir::State::status={top}/status", f"-oDir::Cache={top}",
            f"-oDir::Cache::archives={self.debs}", "-oAPT::Sandbox::User=root", "-oDebug::NoLocking=1",
            f"-oAPT::Install-Recommends={'true' if self.recommends else 'false'}",
        ]  # fmt: skip

    def prepare(self) -> None:
        """Create the directories that apt expects."""
        empty = self.directory / "empty" / "partial"
        for path in (self.directory / "lists" / "partial", self.directory / "none", empty, self.debs / "partial"):
            path.mkdir(parents=True, exist_ok=True)
        (self.directory / "sources.list").write_text(self.all_sources)
        (self.directory / "status").touch()

    def refresh(self) -> None:
        """Fetch the signed package lists (cheap when nothing changed)."""
        self.prepare()
        done = self.tools.run(
            ["apt-get", "update", "--error-on=any", "-q", *self.options()],
            binds=[self.directory, self.debs], ro_binds=[self.local], network=True, check=False,
        )  # fmt: skip
        if done.status != 0:
            raise FreeholdError(
                "the package lists could not be fetched",
                hint="check the network, or name a mirror with --sources FILE",
                details=(done.stdout + done.stderr).decode(errors="replace")[-4000:],
            )

    def plan(self, packages: Sequence[str]) -> PackagePlan:
        """Resolve ``packages`` against an empty system.

        Raises :class:`InputError` naming what apt cannot satisfy.
        """
        # apt leaves out what it has downloaded already; the plan must not depend on that.
        fresh = f"-oDir::Cache::archives={self.directory}/empty"
        done = self.tools.run(
            ["apt-get", "install", "--print-uris", "-y", "-qq", *self.options(), fresh, *BASE_PATTERNS, *packages],
            binds=[self.directory, self.debs],
            ro_binds=[self.local],
            check=False,
        )
        if done.status != 0:
            output = (done.stderr + done.stdout).decode(errors="replace")
            raise InputError(
                "apt cannot install what the recipe asks for",
                faults=explain_apt(output)[:20],
                hint="names are looked up in the recipe's suite and pockets",
            )
        return parse_uris(done.text)


def unpack(archive: Archive, packages: Sequence[str], tree: Path, epoch: int) -> None:
    """Install the packages into the new directory ``tree`` with mmdebstrap.

    Raises :class:`CommandError` with dpkg's last lines; the caller removes ``tree`` then.
    """
    debs = archive.debs
    archives = '"$1/var/cache/apt/archives"'
    hooks = [
        f'--setup-hook=mkdir -p {archives} && mount --bind "{debs}" {archives}',
        # Daemons do not start in a tree that is only being built.
        '--essential-hook=printf "#!/bin/sh\\nexit 101\\n" > "$1/usr/sbin/policy-rc.d" && chmod 755 "$1/usr/sbin/policy-rc.d"',
        f"--customize-hook=umount {archives}",
        '--customize-hook=rm -f "$1/usr/sbin/policy-rc.d"',
    ]
    command = [
        "mmdebstrap", "--mode=root", "--variant=apt", "--format=directory", "--dpkgopt=force-unsafe-io",
        "--skip=essential/unlink,cleanup/apt/cache,check/empty,output/mknod", *hooks,
        f'--aptopt=APT::Install-Recommends "{"true" if archive.recommends else "false"}"',
        "--include=" + ",".join(packages), SUITE, str(tree), str(archive.directory / "sources.list"),
    ]  # fmt: skip
    (debs / "lock").touch()
    try:
        archive.tools.run(
            command,
            binds=[tree.parent, debs],
            ro_binds=[archive.local, archive.directory],
            network=True,
            env={"SOURCE_DATE_EPOCH": str(epoch), "DEBIAN_FRONTEND": "noninteractive", **QUIET_KERNEL},
        )
    except CommandError as error:
        lines = [line for line in error.output.splitlines() if line.startswith(("E:", "dpkg:", " "))]
        raise FreeholdError(
            f"packages could not be installed: {lines[0].strip() if lines else error.message}",
            hint="the whole output is under --debug",
            details=error.output,
        ) from error
