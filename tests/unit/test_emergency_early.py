# SPDX-License-Identifier: Apache-2.0
"""Which key of emergency ssh a boot puts into force, by the early step's own C code in a directory of ours."""

from __future__ import annotations

import base64
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_emergency_ssh import ED25519, line

from freehold.lock import emergency, emergency_key
from freehold.lock.intent import Intent
from freehold.run import run

EARLY = Path(__file__).parents[2] / "early"
KEY = emergency.parse(ED25519)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    disk = tmp_path_factory.mktemp("disk")
    sources = [Path(__file__).parent / "c/emergency_main.c", *(EARLY / f"{name}.c" for name in ("emergency", "sha256", "util"))]
    flags = ["-std=gnu17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined", "-Wl,--wrap=say"]
    run(["cc", *flags, "-fno-sanitize-recover=all", f'-DDISK="{disk}"', f"-I{EARLY}", "-o", disk / "emergency", *sources])
    return disk / "emergency"


@pytest.fixture
def owner(program: Path) -> Path:
    """The owner's directory with one stored key."""
    shutil.rmtree(program.parent / "owner", ignore_errors=True)
    directory = program.parent / "owner/emergency"
    directory.mkdir(parents=True)
    (directory / KEY.name).write_text(KEY.line)
    return directory.parent


def settle(program: Path, digest: str) -> str:
    return run([program, "settle", digest]).stdout.decode()


def test_the_early_step_writes_what_lock_writes(program: Path, owner: Path) -> None:
    in_force = owner / "emergency/key"
    assert settle(program, KEY.digest) == "1\n"
    early = in_force.read_text()
    emergency_key.enforce(owner, owner, Intent("5" * 32, 1, "locked", 0, emergency_ssh=KEY.digest))
    assert in_force.read_text() == early
    assert in_force.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", ["ecdsa", "rsa", "ed25519"])
def test_keys_of_openssh(program: Path, owner: Path, kind: str) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("no ssh-keygen")
    made = owner / "made"
    run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", made])
    key = emergency.parse(made.with_name("made.pub").read_text())
    (owner / "emergency" / key.name).write_text(key.line)
    assert settle(program, key.digest) == "1\n"
    assert key.line.strip() in (owner / "emergency/key").read_text()


def test_none_is_in_force_unless_named(program: Path, owner: Path) -> None:
    (owner / "emergency/key").write_text("left from before")
    assert settle(program, "") == "0\n"
    assert not (owner / "emergency/key").exists()
    shutil.rmtree(owner / "emergency")
    assert settle(program, "") == "0\n"
    assert not (owner / "emergency").exists()


@pytest.mark.parametrize(
    "forged",
    [
        line("ssh-ed25519", b"x" * 32) + "\n", "", KEY.line.rstrip(), f"{KEY.line}{KEY.line}", KEY.line.replace("\n", " me\n"),
        f'command="sh" {KEY.line}', KEY.line.replace("ssh-ed25519", "ssh-rsa"), "x" * 5000, None,
    ],
)  # fmt: skip
def test_a_forged_key_file_is_not_put_into_force(program: Path, owner: Path, forged: str | None) -> None:
    path = owner / "emergency" / KEY.name
    path.unlink() if forged is None else path.write_text(forged)
    (owner / "emergency/key").write_text(KEY.line)
    said, result = settle(program, KEY.digest).splitlines()
    assert result == "0"
    assert said.startswith("[emergency ssh is off: the ")
    assert emergency.fingerprint(KEY.digest) in said
    assert not (owner / "emergency/key").exists()


def test_links_and_second_names_lead_nowhere(program: Path, owner: Path) -> None:
    elsewhere = owner.parent / "elsewhere"
    shutil.rmtree(elsewhere, ignore_errors=True)
    (owner / "emergency").rename(elsewhere)
    (owner / "emergency").symlink_to(elsewhere)
    (elsewhere / "key").write_text("mine")
    assert settle(program, KEY.digest).endswith("0\n")
    assert (elsewhere / "key").read_text() == "mine"
    assert not (owner / "emergency").is_symlink()
    # What is about to be written is nobody's already, by whatever name.
    (owner / "emergency" / KEY.name).write_text(KEY.line)
    (owner / "emergency/.tmp-key").write_text("")
    os.link(owner / "emergency/.tmp-key", elsewhere / "alias")
    assert settle(program, KEY.digest) == "1\n"
    assert (owner / "emergency/key").stat().st_nlink == 1
    assert (elsewhere / "alias").read_text() == ""


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(
    st.binary(max_size=200),
    st.tuples(st.integers(0, len(KEY.line) - 1), st.binary(min_size=1, max_size=1)).map(
        lambda at: KEY.line.encode()[: at[0]] + at[1] + KEY.line.encode()[at[0] + 1 :]),
))  # fmt: skip
def test_no_other_bytes_are_that_key(program: Path, data: bytes) -> None:
    said = run([program, "match", KEY.digest], stdin=data).stdout
    blob = data.rstrip(b"\n").partition(b" ")[2]
    try:
        same = base64.b64decode(blob, validate=True) == KEY.blob
    except ValueError:
        same = False
    assert said == (b"1\n" if same and data.startswith(b"ssh-ed25519 ") and data.endswith(b"\n") else b"0\n")


def test_the_sentence_is_the_same() -> None:
    source = (EARLY / "notice.c").read_text().partition("#define EMERGENCY_SENTENCE ")[2].split('"')[1]
    said = source.replace("SHA256:%.43s", emergency.fingerprint(KEY.digest)).replace("%d", "2222")
    assert said == emergency.sentence(KEY.digest)
