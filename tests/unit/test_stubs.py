# SPDX-License-Identifier: Apache-2.0
"""No privilege from below: the signposts, where they stand, and what no image may hold."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from freehold import run
from freehold.build import pipeline
from freehold.build.recipe import load
from freehold.device import layer
from freehold.errors import FreeholdError
from freehold.seal import stubs
from freehold.seal.headerball import Entry
from freehold.seal.walk import CAPABILITY, file_capability, walk

ROOT = Path(__file__).parents[2]
SIGNPOST = ROOT / "data" / stubs.PROGRAM.lstrip("/")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")


def tree(top: Path, *names: str) -> Path:
    """A small tree with the signpost and set-uid programs."""
    home = top / "usr/lib/freehold"
    home.mkdir(parents=True)
    (top / "usr/bin").mkdir()
    shutil.copy2(SIGNPOST, home)
    for name in names:
        (top / "usr/bin" / name).write_text("program")
        (top / "usr/bin" / name).chmod(0o4755)
    return top


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user may enter, as pytest's own is not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_every_name_leads_to_the_signpost(tmp_path: Path) -> None:
    top = tree(tmp_path, "su", "sudo", "mount")
    (top / "usr/bin/doas").symlink_to("elsewhere")
    assert stubs.put_stubs(top) == ["/usr/bin/doas", "/usr/bin/su", "/usr/bin/sudo"]
    assert {name: (top / name[1:]).readlink() for name in stubs.NAMES} == dict.fromkeys(stubs.NAMES, Path(stubs.LINK))
    assert (top / "usr/bin/sudo").resolve() == (top / stubs.PROGRAM[1:]).resolve()
    assert (top / "usr/bin/mount").read_text() == "program"
    # Root's su is there, for root, without its bit.
    assert ((top / stubs.ROOTS_SU[1:]).read_text(), (top / stubs.ROOTS_SU[1:]).stat().st_mode & 0o7777) == ("program", 0o700)
    # A second time nothing is another program's.
    assert stubs.put_stubs(top) == []


def test_what_the_recipe_keeps_stays(tmp_path: Path) -> None:
    top = tree(tmp_path, "su", "sudo")
    stubs.put_stubs(top, [name for name in stubs.NAMES if name != "/usr/bin/sudo"])
    assert (top / "usr/bin/sudo").stat().st_mode & stat.S_ISUID
    assert (top / "usr/bin/su").is_symlink()


@needs_root
@pytest.mark.parametrize("name", ["sudo", "su", "pkexec", "doas"])
def test_a_user_is_told_in_two_lines(name: str, public: Path) -> None:
    top = tree(public)
    stubs.put_stubs(top)
    done = run.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", top / f"usr/bin/{name}", "-i"], check=False
    )
    assert (done.status, done.stdout) == (1, b"")
    first, second = done.stderr.decode().splitlines()
    assert first.startswith(f"{name}: ")
    assert "ssh" in second
    assert "/etc/ssh/authorized_keys.d/root" in second
    assert '"rescue"' in second
    assert max(len(first), len(second)) < 120


@needs_root
@pytest.mark.parametrize("name", ["sudo", "pkexec", "doas"])
def test_root_is_told_too(name: str, tmp_path: Path) -> None:
    top = tree(tmp_path)
    stubs.put_stubs(top)
    done = run.run(["sh", top / f"usr/bin/{name}", "true"], check=False)
    assert (done.status, done.stdout) == (1, b"")
    first, second = done.stderr.decode().splitlines()
    assert first.startswith(f"{name}: you are root already")
    assert "runuser" in second


@needs_root
def test_roots_su_goes_on(tmp_path: Path) -> None:
    """Scripts of packages start programs as other users by it."""
    top = tree(tmp_path)
    shutil.copy(shutil.which("su") or "su", top / "usr/bin/su")
    stubs.put_stubs(top)
    signpost = top / stubs.PROGRAM[1:]
    text = signpost.read_text()
    assert text.count(stubs.ROOTS_SU) == 1
    signpost.write_text(text.replace(stubs.ROOTS_SU, f"{top}{stubs.ROOTS_SU}"))
    done = run.run(["sh", top / "usr/bin/su", "-s", "/bin/sh", "nobody", "-c", "id -un; echo $#"], check=False)
    assert (done.status, done.text.split()) == (0, ["nobody", "0"])


def entry(path: str, mode: int = 0o755, *xattrs: tuple[str, bytes], kind: int = stat.S_IFREG) -> Entry:
    return Entry(path, kind | mode, 0, 0, xattrs=xattrs)


def test_what_gives_rights_is_found() -> None:
    strong = (CAPABILITY, file_capability(21))
    entries = [
        entry("/usr/bin/ls"), entry("/usr/bin/a", 0o4755), entry("/usr/bin/b", 0o2755), entry("/usr/bin/c", 0o755, strong),
        entry("/usr/bin/kept", 0o6755, strong), entry("/usr/bin/below", 0o755, strong),
        entry("/usr/bin/newuidmap", 0o755, (CAPABILITY, file_capability(7))),
        entry("/usr/bin/newgidmap", 0o755, (CAPABILITY, file_capability(7))),
        entry("/usr/share/staff", 0o2775, kind=stat.S_IFDIR), entry("/usr/bin/d", 0o755, ("user.note", b"x")),
    ]  # fmt: skip
    found = stubs.privileged(entries, {("/usr/bin/below", strong[1])}, ["/usr/bin/kept"])
    assert [line.partition(":")[0] for line in found] == ["/usr/bin/a", "/usr/bin/b", "/usr/bin/c", "/usr/bin/newgidmap"]


def test_no_image_is_sealed_with_one(tmp_path: Path) -> None:
    """Whatever step of a build forgets: the entries of which the image is made are looked at."""
    recipe = load(ROOT / "recipes/server.toml")
    top = tree(tmp_path, "forgotten")
    with pytest.raises(FreeholdError, match="/usr/bin/forgotten: mode 4755"):
        pipeline._without_privileges(list(walk(top)), recipe)
    (top / "usr/bin/forgotten").chmod(0o755)
    pipeline._without_privileges(list(walk(top)), recipe)


@needs_root
def test_a_requested_sudo_is_the_signpost_again(tmp_path: Path) -> None:
    """apt puts the package's files over the release's; what is sealed has neither its set-uid bit nor its name."""
    upper = tmp_path / "upper"
    (upper / "usr/bin").mkdir(parents=True)
    for name in ("sudo", "doas", "other"):
        (upper / "usr/bin" / name).write_text("program")
        (upper / "usr/bin" / name).chmod(0o4755)
    link = entry("/usr/bin/sudo", 0o777, kind=stat.S_IFLNK)
    base = {"/usr/bin/sudo": Entry("/usr/bin/sudo", link.mode, 0, 0, target=stubs.LINK)}
    assert layer._clean(upper, 0, [], [one.path for one in base.values() if stubs.is_stub(one)]) == [
        "/usr/bin/doas: without its set-uid bit or capability", "/usr/bin/other: without its set-uid bit or capability",
        "/usr/bin/sudo: the release's own stays, which says how to become root here",
    ]  # fmt: skip
    entries, removed = layer.scan(upper, base)
    assert [one.path for one in entries if not stat.S_ISDIR(one.mode)] == ["/usr/bin/doas", "/usr/bin/other"]
    assert (removed, stubs.privileged(entries)) == ([], [])


def test_the_reference_system_has_what_users_need() -> None:
    recipe = tomllib.loads((ROOT / "recipes/server.toml").read_text())
    assert {"iputils-ping", "uidmap", "podman"} <= set(recipe["packages"])
    assert recipe["setuid"]["keep"] == []
    # Debian's own value for it lies in a package that is only recommended.
    assert "net.ipv4.ping_group_range = 0 2147483647" in (ROOT / "data/usr/lib/sysctl.d/50-freehold.conf").read_text()
