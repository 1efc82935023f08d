# SPDX-License-Identifier: Apache-2.0
"""Linters and type checker are tests: what they say, fails."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from freehold import run

ROOT = Path(__file__).parents[2]
SCRIPTS = (path for path in (ROOT / "data").rglob("*") if path.is_file() and path.read_bytes().startswith(b"#!/bin/sh"))
SHELL = [
    ".ci/run",
    ".ci/prepare",
    *(str(path.relative_to(ROOT)) for path in sorted([*(ROOT / "tests").rglob("*.sh"), *SCRIPTS])),
]
TREES = [name for name in ("src", "tests", "demo", "bench", "attack", "fuzz") if any((ROOT / name).rglob("*.py"))]


def complain(done: run.Completed) -> None:
    assert done.status == 0, (done.stdout + done.stderr).decode()


def test_ruff() -> None:
    complain(run.run([sys.executable, "-m", "ruff", "check", "--no-cache", "."], cwd=ROOT, check=False))


def test_mypy_strict() -> None:
    complain(run.run([sys.executable, "-m", "mypy", *TREES], cwd=ROOT, check=False))


@pytest.mark.parametrize("script", SHELL)
def test_shell_scripts_parse(script: str) -> None:
    complain(run.run(["bash", "-n", ROOT / script], check=False))


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck() -> None:
    complain(run.run(["shellcheck", *SHELL], cwd=ROOT, check=False))


@pytest.mark.parametrize("script", [".ci/run", ".ci/prepare"])
def test_scripts_stop_at_the_first_failure(script: str) -> None:
    assert "set -euo pipefail" in (ROOT / script).read_text()


def test_ci_runs_what_people_run() -> None:
    lines = [
        line
        for line in (ROOT / ".ci/run").read_text().splitlines()
        if line and not line.startswith(("#", "set ", "cd "))
    ]
    assert lines == ["exec make test"]
    assert (ROOT / ".ci/run").stat().st_mode & 0o111
