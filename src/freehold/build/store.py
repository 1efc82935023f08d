# SPDX-License-Identifier: Apache-2.0
"""The builder's store: what was built, named by what made it.

::

    STORE/repo/                       ostree repository (bare): the content of every release
    STORE/releases/NAME-VERSION/      manifest.json(.sig), image, uki.efi, rescue.efi, build.json; unsigned: build/signing.py
    STORE/builds/KEY                  the release that the inputs KEY made last time
    STORE/locks/NAME.ids              user and group numbers, fed into the next build
    STORE/work/                       half-done work; removed at the next start
    CACHE/                            the tools tree, package files, package lists, our own .deb
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from freehold.errors import InputError


def cache_directory() -> Path:
    """The user's cache directory for Freehold (``$XDG_CACHE_HOME/freehold``)."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "freehold"


def default_store() -> Path:
    """The store used when no ``--store`` is given (``$XDG_DATA_HOME/freehold/store``)."""
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "freehold" / "store"


@dataclass(frozen=True)
class Store:
    """Paths of one store. ``open`` creates what is missing."""

    root: Path

    @property
    def repo(self) -> Path:
        """The ostree repository."""
        return self.root / "repo"

    @property
    def releases(self) -> Path:
        """The directory of sealed releases."""
        return self.root / "releases"

    @property
    def builds(self) -> Path:
        """Input keys of finished builds."""
        return self.root / "builds"

    @property
    def locks(self) -> Path:
        """Id lock files."""
        return self.root / "locks"

    @property
    def work(self) -> Path:
        """Scratch space on the same file system."""
        return self.root / "work"

    @classmethod
    def open(cls, root: Path) -> Store:
        """Create the directories of a store at ``root``."""
        store = cls(root.absolute())
        for directory in (store.releases, store.builds, store.locks, store.work):
            directory.mkdir(parents=True, exist_ok=True)
        return store

    def scratch(self, name: str) -> Path:
        """An empty directory below ``work``; what an interrupted build left there is removed."""
        path = self.work / name
        if path.exists():
            shutil.rmtree(path)
        path.mkdir(parents=True)
        return path

    def release(self, name: str) -> Path:
        """The directory of release ``name`` (``NAME-VERSION`` or a path); :class:`InputError` when there is none."""
        for candidate in (self.releases / name, Path(name)):
            if (candidate / "manifest.json").is_file():
                return candidate
        for candidate in (self.releases / name, Path(name)):
            if (candidate / "manifest.unsigned.json").is_file():
                raise InputError(f"release {name!r} is not signed", hint=f"freehold sign {name} --key URI")
        known = sorted(path.parent.name for path in self.releases.glob("*/manifest.json") if path.is_file())
        raise InputError(
            f"no release {name!r} in {self.root}",
            hint=f"known: {', '.join(known)}" if known else "build one with `freehold build RECIPE`",
        )
