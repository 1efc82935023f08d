# SPDX-License-Identifier: Apache-2.0
"""The machine that every row starts from: its own keys enrolled, two good releases, locked by its owner. Made once.

``base-ID/`` holds for the names ``open`` (just before the lock) and ``locked``: ``NAME.raw``, ``NAME.fd`` (the
firmware's variables) and ``NAME.tpm``; and ``truth.json``, what an unchanged machine looks like, which appears last.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from demo import story
from demo.stage import Stage

from attack import gpt, pe
from attack.esp import Esp
from attack.model import BaseName, Truth
from attack.target import ESP_NAME, ROOT_NAME
from freehold import atomic, run
from freehold.build.tools import Tools
from freehold.errors import FreeholdError
from freehold.vm import state

REPOSITORY = Path(__file__).resolve().parents[1]

#: Raised when a base is made differently.
FORMAT = 1
#: Two builds of one recipe on one day: the same number, so that a rollback floor at the newer one lets the older one boot.
OLD, NEW = "2", "3"
RECIPE = REPOSITORY / "recipes/server.toml"
RELEASE = "server-{version}"
SETTLE_SECONDS = 240.0
BASES: tuple[BaseName, ...] = ("open", "locked")


@dataclass(frozen=True)
class Base:
    """A prepared machine."""

    directory: Path
    id: str
    truth: Truth
    tpm: bool

    def disk(self, name: BaseName) -> Path:
        """The disk as it was."""
        return self.directory / f"{name}.raw"

    def variables(self, name: BaseName) -> Path:
        """The firmware's variables as they were."""
        return self.directory / f"{name}.fd"

    def tpm_state(self, name: BaseName) -> Path:
        """The TPM's directory as it was."""
        return self.directory / f"{name}.tpm"


def commit_of(library: Path, version: str) -> str:
    """The commit of a release in the store ``library``."""
    manifest = json.loads((library / "releases" / RELEASE.format(version=version) / "manifest.json").read_text())
    return str(manifest["commit"])


def identity(manifests: list[bytes], *, tpm: bool) -> str:
    """A base's name: what it is made of. Pure."""
    parts = [hashlib.sha256(one).digest() for one in manifests]
    return hashlib.sha256(b"".join([f"{FORMAT} {tpm} ".encode(), *parts])).hexdigest()[:16]


def truth_of(stage: Stage, tools: Tools, disk: Path, facts: dict[str, object]) -> Truth:
    """What an unchanged machine is, from the kernel images on its disk and what it said when it was sound."""
    esp = Esp(tools, disk, gpt.load(disk)[ESP_NAME].start, stage.root)
    lines = {
        version: pe.content(esp.read(esp.uki(version)), ".cmdline").decode().strip("\0 \n") for version in (NEW, OLD)
    }
    images = {
        version: next(word.partition("=")[2] for word in line.split() if word.startswith("freehold.image="))
        for version, line in lines.items()
    }
    return Truth(
        (NEW, OLD), images, lines, str(facts["machine"]), str(facts["config"]), int(str(facts["keychain_loaded"]))
    )


def read_truth(path: Path) -> Truth:
    """A truth that was written down."""
    data = json.loads(path.read_text())
    return Truth(**{**data, "versions": tuple(data["versions"])})


def prepare(stage: Stage, tools: Tools, *, tpm: bool) -> Base:
    """The base for the releases of ``stage``'s library, made when it is not there yet (about five boots)."""
    story.keys(stage)
    for version in (OLD, NEW):
        stage.note(story.build(stage, RECIPE, version))
    manifests = [
        (stage.store / "releases" / RELEASE.format(version=version) / "manifest.json").read_bytes()
        for version in (OLD, NEW)
    ]
    name = identity(manifests, tpm=tpm)
    directory = stage.path(f"base-{name}")
    if not (directory / "truth.json").exists():
        for other in stage.root.glob("base-*"):
            shutil.rmtree(other)
        directory.mkdir(parents=True)
        _make(stage, tools, directory, tpm=tpm)
    return Base(directory, name, read_truth(directory / "truth.json"), tpm)


def _make(stage: Stage, tools: Tools, directory: Path, *, tpm: bool) -> None:
    disk = working_disk(stage)
    _publish(stage)
    stage.freehold("vm", "stop", stage.name, "--hard", check=False)
    disk.unlink(missing_ok=True)
    ignition = stage.path("first-boot.ign")
    ignition.write_text(story.ignition(stage.port))
    stage.freehold(
        "disk",
        RELEASE.format(version=OLD),
        "-o",
        disk,
        "--store",
        stage.store,
        "--keys",
        stage.keys,
        "--enrol",
        "force",
    )
    _start(stage, disk, "--ignition", ignition, tpm=tpm)
    _healthy(stage, OLD)
    stage.copy(story.marker(stage), "/var/lib/marker", executable=True)
    stage.guest("freehold", "upgrade", timeout=600)
    stage.reboot()
    _healthy(stage, NEW)
    _off(stage)
    _keep(stage, tools, directory, "open", tpm=tpm)
    _start(stage, disk, tpm=tpm)
    # Twice, so that there can be an older intent: first audit, then locked.
    stage.signed("lock", "--audit")
    stage.signed("lock")
    stage.reboot()
    _healthy(stage, NEW)
    facts = json.loads(stage.shell("cat /run/freehold/boot.json"))
    if facts["intent"]["lock"] != "locked" or not facts["secure_boot"] or facts["intent"]["serial"] < 2:
        raise FreeholdError(f"the base is not what it has to be: {json.dumps(facts)[:300]}")
    _off(stage)
    _keep(stage, tools, directory, "locked", tpm=tpm)
    truth = truth_of(stage, tools, directory / "locked.raw", facts)
    atomic.write(directory / "truth.json", json.dumps(asdict(truth), indent=1) + "\n")


def _publish(stage: Stage) -> None:
    """The newer release on a web server, until the stage ends."""
    shutil.rmtree(stage.path("www"), ignore_errors=True)
    release, key = RELEASE.format(version=NEW), f"file:{stage.keys / 'release.key'}"
    stage.freehold("publish", release, "--to", stage.path("www"), "--store", stage.store, "--key", key)
    stage.server = run.start(
        [sys.executable, "-m", "freehold", "serve", stage.path("www"), "--port", str(stage.port)],
        log=stage.path("serve.log"), env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ).pid  # fmt: skip


def working_disk(stage: Stage) -> Path:
    """The one disk that machines of this stage start from; its variables belong to it."""
    return stage.path("attack.raw")


def _start(stage: Stage, disk: Path, *options: str | Path, tpm: bool) -> None:
    more = ["--tpm"] if tpm else []
    stage.freehold(
        "vm", "start", disk, "--name", stage.name, "--secure-boot", *more, "--timeout", "500", *options, timeout=600
    )


def _healthy(stage: Stage, version: str) -> None:
    """Wait until ``version`` runs and its boot entry is a good one."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        status = json.loads(stage.guest("freehold", "status", "--json").stdout)
        rows = [one for one in status["deployments"] if one["booted"]]
        if rows and rows[0]["version"] != version:
            raise FreeholdError(f"release {rows[0]['version']} runs, not {version}")
        if rows and rows[0]["health"] == "good":
            return
        if time.monotonic() > deadline:
            raise FreeholdError(f"release {version} does not become good: {rows}")
        time.sleep(3)


def _off(stage: Stage) -> None:
    stage.guest("sync")
    stage.freehold("vm", "stop", stage.name, timeout=300)


def _keep(stage: Stage, tools: Tools, directory: Path, name: BaseName, *, tpm: bool) -> None:
    disk = working_disk(stage)
    start = gpt.load(disk)[ROOT_NAME].start
    # Whatever the journal still holds: debugfs would not see it. 1: something was put right.
    done = tools.run(["e2fsck", "-p", f"{disk}?offset={start}"], binds=[disk.parent], check=False)
    if done.status > 1:
        raise FreeholdError(f"the base's root file system is damaged: {done.text.strip()[-300:]}")
    copy(disk, directory / f"{name}.raw")
    kept = state.paths(stage.name).keep
    shutil.copyfile(kept / "variables.fd", directory / f"{name}.fd")
    if tpm:
        shutil.copytree(kept / "tpm", directory / f"{name}.tpm")


def copy(source: Path, target: Path) -> None:
    """Copy a disk, holes as holes. An existing ``target`` keeps its inode."""
    run.run(["cp", "--sparse=always", "--reflink=auto", source, target])
