# SPDX-License-Identifier: Apache-2.0
"""Freehold as a Debian package: built from this repository, in the tools tree, cached by content."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from freehold import __version__, atomic
from freehold.build.tools import Tools
from freehold.errors import NotHereError
from freehold.monitor import Monitor, step

#: What the package is made of; anything else in the repository does not change it.
PARTS = ("src", "early", "bpf", "debian", "data", "pyproject.toml", "Makefile.c", "README.md", "LICENSE")
IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info")


@dataclass(frozen=True)
class SourcePackage:
    """The built ``.deb``; ``id`` is the hash of the sources it was made from."""

    deb: Path
    id: str


def repository_root() -> Path:
    """The checkout that this module runs from; :class:`NotHereError` from an installed package."""
    root = Path(__file__).resolve().parents[3]
    if not (root / "debian" / "control").is_file():
        raise NotHereError("building needs a checkout of Freehold's sources", hint="run `freehold` from its repository")
    return root


def source_id(root: Path) -> str:
    """Hash over names, modes and contents of the package's sources."""
    digest = hashlib.sha256()
    for part in PARTS:
        top = root / part
        paths = [top] if top.is_file() else sorted(path for path in top.rglob("*") if path.is_file())
        for path in paths:
            if "__pycache__" in path.parts or path.suffix == ".pyc" or any(p.endswith(".egg-info") for p in path.parts):
                continue
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(root)} {path.stat().st_mode & 0o111:o} {content}\n".encode())
    return digest.hexdigest()[:16]


def build_package(tools: Tools, cache: Path, epoch: int, monitor: Monitor) -> SourcePackage:
    """The ``.deb`` of this checkout, from the cache when its sources did not change."""
    root = repository_root()
    identity = source_id(root)
    target = cache / "package" / f"{identity}-{tools.id}"
    found = sorted(target.glob("freehold_*.deb"))
    if found:
        return SourcePackage(found[0], identity)
    with step(monitor, "package freehold"):
        scratch = cache / "package" / f".{identity}.partial"
        if scratch.exists():
            shutil.rmtree(scratch)
        tree = scratch / "freehold"
        tree.mkdir(parents=True)
        for part in PARTS:
            if (root / part).is_dir():
                shutil.copytree(root / part, tree / part, ignore=IGNORED, symlinks=True)
            elif (root / part).is_file():
                shutil.copy2(root / part, tree / part)
        changelog = (root / "debian" / "changelog").read_text()
        _, _, rest = changelog.partition("\n")
        (tree / "debian" / "changelog").write_text(f"freehold ({__version__}+g{identity}) trixie; urgency=medium\n{rest}")
        tools.run(
            ["dpkg-buildpackage", "-us", "-uc", "-b", "--no-check-builddeps"],
            binds=[scratch],
            cwd=tree,
            env={"SOURCE_DATE_EPOCH": str(epoch), "DEB_BUILD_OPTIONS": "nocheck", "HOME": "/tmp"},  # noqa: S108
        )
        shutil.rmtree(tree)
        # A flat apt repository: our package is resolved and installed like any other.
        (scratch / "Packages").write_bytes(tools.run(["dpkg-scanpackages", "."], binds=[scratch], cwd=scratch).stdout)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            shutil.rmtree(target)
        atomic.publish(scratch, target)
    return SourcePackage(sorted(target.glob("freehold_*.deb"))[0], identity)
