# SPDX-License-Identifier: Apache-2.0
"""What the image does so that an ordinary login of root's is refused nothing under the lock."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold import run
from freehold.build.recipe import load

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("watched", "kept"), [(True, []), (False, ["remembered"])])
def test_roots_shells_read_no_history_while_watched(watched: bool, kept: list[str], tmp_path: Path) -> None:
    """Else each login of root's under the lock, but the first, would be a refusal: the file is one that root wrote."""
    text = (ROOT / "data/etc/profile.d/freehold.sh").read_text()
    assert text.count("/sys/fs/bpf/freehold/gd_denials") == 1
    (tmp_path / "profile").write_text(text.replace("/sys/fs/bpf/freehold/gd_denials", str(tmp_path / "pin")))
    (tmp_path / ".bash_history").write_text("echo remembered\n")
    if watched:
        (tmp_path / "pin").touch()
    done = run.run(
        ["sh", "-c", f". {tmp_path}/profile; exec bash --norc -i"], stdin=b"history\nexit\n", check=False,
        env={"HOME": str(tmp_path)},
    )  # fmt: skip
    assert [word for word in done.text.split() if word == "remembered"] == kept
    assert ("history" in (tmp_path / ".bash_history").read_text().split()) is not watched


def test_no_login_starts_a_program_below_etc() -> None:
    """The lock refuses it to root, who is the one that makes the message of the day."""
    recipe = load(ROOT / "recipes/server.toml")
    [item] = [item for item in recipe.files if item.path == "/etc/update-motd.d/10-uname"]
    assert not item.mode & 0o111
