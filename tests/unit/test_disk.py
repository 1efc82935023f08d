# SPDX-License-Identifier: Apache-2.0
"""What a disk is made of, and the plain twin that its boot is measured against."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from bench.boots import plain_init

from freehold.build import disk
from freehold.build.store import Store, cache_directory
from freehold.build.tools import Tools, ensure
from freehold.errors import InputError
from freehold.keys.issue import create
from freehold.keys.x509 import load_signer
from freehold.monitor import NullMonitor


@pytest.mark.parametrize("lost", disk.PARTS)
def test_a_release_that_lacks_a_part_is_named(tmp_path: Path, lost: str) -> None:
    """An interrupted or older release: one line, before anything is written."""
    create("release", "release", tmp_path, None)
    signer = load_signer(f"file:{tmp_path / 'release.key'}", ask=lambda _: b"")
    release = tmp_path / "server-1"
    release.mkdir()
    for name in disk.PARTS:
        (release / name).write_text("{}")
    (release / lost).unlink()
    # No tools: nothing may be started before the release was looked at.
    tools, store = Tools(tmp_path / "none", "id"), Store(tmp_path / "store")
    with pytest.raises(InputError, match=f"server-1 is no whole release: no {lost}") as raised:
        disk.make_disk(tools, store, release, tmp_path / "out.raw", signer=signer, monitor=NullMonitor())
    assert "build it again" in (raised.value.hint or "")
    assert not (tmp_path / "out.raw").exists()


@pytest.mark.build
def test_the_twin_has_an_init(tmp_path: Path) -> None:
    target = tmp_path / "init"
    plain_init(ensure(cache_directory(), NullMonitor()), target)
    assert os.access(target, os.X_OK)
