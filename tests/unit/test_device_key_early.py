# SPDX-License-Identifier: Apache-2.0
"""What the early step does to the device key on a boot that is not locked, by its own C code in a directory of ours."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from freehold.run import run

EARLY = Path(__file__).parents[2] / "early"
SECRET = b"-----the device key-----\n" * 300


@pytest.fixture
def owner(tmp_path: Path) -> Path:
    """The owner's directory of a disk, with a device key; ``forget`` in it does the work."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    directory = tmp_path / "owner"
    (directory / "secret").mkdir(parents=True)
    (directory / "secret/device.key").write_bytes(SECRET)
    (directory / "secret/device.key.new").write_bytes(SECRET)
    (directory / "device.facts").write_bytes(b"keeper file\n")
    (directory / "intent").write_bytes(b"intent")
    sources = [Path(__file__).parent / "c/forget_main.c", EARLY / "device_key.c", EARLY / "util.c"]
    flags = ["-std=gnu17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]
    run(["cc", *flags, "-fno-sanitize-recover=all", f'-DDISK="{tmp_path}"', f"-I{EARLY}", "-o", tmp_path / "forget", *sources])
    return directory


def test_an_open_boot_destroys_the_key_and_nothing_else(owner: Path) -> None:
    with (owner / "secret/device.key").open("rb") as still_open:
        run([owner.parent / "forget"])
        # The blocks, not only the name.
        assert still_open.read() == bytes(len(SECRET))
    assert sorted(str(path.relative_to(owner)) for path in owner.rglob("*")) == ["intent", "secret", "secret/device.key.new"]
    # A key that waits for its certificate stays: a lock in two steps goes on after a reboot.
    assert (owner / "secret/device.key.new").read_bytes() == SECRET
    run([owner.parent / "forget"])


@pytest.mark.parametrize("kind", ["link", "directory", "fifo"])
def test_what_lies_there_instead_does_no_harm(owner: Path, kind: str) -> None:
    path = owner / "secret/device.key"
    path.unlink()
    if kind == "link":
        path.symlink_to(owner / "intent")
    elif kind == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)
    run([owner.parent / "forget"], timeout=10)
    assert (owner / "intent").read_bytes() == b"intent"
    assert os.path.lexists(path) == (kind == "directory")


def test_the_word_is_said_before_the_disks_programs_run() -> None:
    """The early step's source, in order: whoever runs first of the disk finds the register decided."""
    text = (EARLY / "main.c").read_text()
    locked = "!rescue && valid && owner.intent.lock == INTENT_LOCKED && !owner.intent.strict"
    assert f"bool device_key = {locked};\n\tmeasure_intent(tpm, device_key);" in text
    gone = "!rescue && !device_key && owner.standing != STANDING_INVALID"
    assert f"if ({gone})\n\t\tdevice_key_forget();" in text
    order = ["measure_intent(tpm, device_key)", "\tmeasure_boot(tpm,", "\tswitch_root();", "execl("]
    places = [text.index(words) for words in order]
    assert places == sorted(places)
