# SPDX-License-Identifier: Apache-2.0
"""The emergency sshd's launcher, built and started as a program from hostile surroundings; what it starts is ours.

It makes a mount namespace and a root directory of its own, which takes root; the mounts of who runs the tests stay as they are.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from freehold import run

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "early" / "emergency_sshd.c"
TARGET = Path(__file__).parent / "c" / "emergency_target.c"
COMPILER = shutil.which("gcc") or shutil.which("cc")


def may_mount() -> bool:
    return os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(COMPILER is None or not may_mount(), reason="needs a C compiler, and root that may mount")


@pytest.fixture
def launcher(tmp_path: Path) -> Path:
    """A tree in the place of the sealed one and of the owner's directory; the launcher lies at its top."""
    tree = tmp_path / "tree"
    for directory in ("usr/sbin", "usr/etc", "usr/lib", "sysroot/owner/emergency", "sysroot/owner/secret"):
        (tree / directory).mkdir(parents=True)
    (tree / "usr/etc/passwd").write_text("root:x:0:0::/root:/bin/bash\nsshd:x:987:65534::/run/sshd:/usr/sbin/nologin\n")
    (tree / "sysroot/owner/emergency/key").write_text("restrict,pty ssh-ed25519 AAAA SHA256:x\n")
    (tree / "sysroot/owner/secret/emergency-host-key").write_text("the host key\n")
    flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-std=gnu17"]
    run.run([COMPILER or "cc", *flags, "-static", TARGET, "-o", tree / "usr/sbin/sshd"])
    place = tmp_path / "place"
    place.mkdir()
    run.run([COMPILER or "cc", *flags, f'-DSEALED="{tree}"', f'-DPLACE="{place}"', SOURCE, "-o", tree / "launcher"])
    return tree / "launcher"


def start(launcher: Path, **how: object) -> subprocess.CompletedProcess[bytes]:
    """Start it as an attacker may: the house's own runner is too tidy for that."""
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 20, "check": False} | how
    return subprocess.run([launcher], **given)  # type: ignore[call-overload,no-any-return]


def answer(done: subprocess.CompletedProcess[bytes]) -> dict[str, list[str]]:
    assert done.returncode == 7, done
    found: dict[str, list[str]] = {}
    for line in done.stdout.decode().splitlines():
        word, _, rest = line.partition(" ")
        found.setdefault(word, []).append(rest)
    return found


def test_nothing_of_the_callers_goes_on(launcher: Path) -> None:
    def prepare() -> None:
        os.umask(0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])

    read_end, write_end = os.pipe()
    os.write(write_end, b"words")
    hostile = {"LD_PRELOAD": "", "PATH": "/tmp", "SSHD_OPTS": "-o x", "BASH_ENV": "/tmp/x", "MALLOC_CONF": "x"}
    done = start(launcher, env=hostile, stdin=read_end, pass_fds=(read_end, write_end), preexec_fn=prepare, cwd="/tmp")
    os.close(read_end)
    os.close(write_end)
    said = answer(done)
    assert said["argument"] == ["/usr/sbin/sshd", "-D", "-e", "-f", "/usr/lib/freehold/emergency-sshd.conf"]
    assert said["environment"] == ["PATH=/usr/sbin:/usr/bin", "LANG=C.UTF-8", "HOME=/root", "TZ=UTC"]
    assert said["descriptor"] == ["0", "1", "2"]
    assert (said["signals"], said["input"]) == (["0"], ["0"])


def test_the_root_directory_is_its_own(launcher: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    said = answer(start(launcher))
    assert {row.split()[0] for row in said["file"] if row.count("/") == 1} == {
        "/bin", "/dev", "/etc", "/lib", "/lib64", "/proc", "/root", "/run", "/sbin", "/usr",
    }  # fmt: skip
    files = {row.split()[0]: row.split()[1] for row in said["file"]}
    assert {path for path in files if path.startswith("/etc/")} == {
        "/etc/group", "/etc/nsswitch.conf", "/etc/passwd", "/etc/ssh", "/etc/ssh/emergency-host-key", "/etc/ssh/emergency-key",
    }  # fmt: skip
    assert files["/etc/ssh/emergency-host-key"] == "100600"
    texts = {row.split()[0]: row.partition(" ")[2] for row in reversed(said["text"])}
    assert texts["/etc/passwd"] == "root:*:0:0:root:/root:/usr/lib/freehold/emergency-shell"
    assert "/etc/passwd sshd:*:987:65534:sshd:/run/sshd:/usr/sbin/nologin" in said["text"]
    assert texts["/etc/ssh/emergency-key"] == "restrict,pty ssh-ed25519 AAAA SHA256:x"
    assert texts["/etc/ssh/emergency-host-key"] == "the host key"
    mounts = [row.partition(" ")[2].split() for row in said["text"] if row.startswith("/proc/self/mountinfo")]
    assert sorted(row[4] for row in mounts) == ["/", "/dev/pts", "/proc", "/usr"]
    # No word of any mount elsewhere goes in or out.
    assert not any(word.startswith(("shared:", "master:")) for row in mounts for word in row)
    assert Path("/proc/self/mountinfo").read_text() == before


def test_mounts_that_spread_stay_out(launcher: Path) -> None:
    """systemd's mounts are shared; among such the root directory could not even be changed."""
    done = run.run(["unshare", "-m", "--propagation", "shared", launcher], check=False)
    assert done.status == 7, done
    assert b" shared:" not in done.stdout


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda tree: (tree / "sysroot/owner/emergency/key").unlink(), b"emergency/key: No such file"),
        (lambda tree: (tree / "sysroot/owner/emergency/key").write_text(""), b"emergency/key: File too large"),
        (lambda tree: (tree / "sysroot/owner/emergency/key").write_text("x" * 9000), b"emergency/key: File too large"),
        (lambda tree: (tree / "sysroot/owner/secret/emergency-host-key").unlink(), b"emergency-host-key: No such file"),
        (lambda tree: (tree / "usr/etc/passwd").write_text("root:x:0:0::/root:/bin/bash\n"), b"the account sshd"),
        (lambda tree: (tree / "usr/etc/passwd").write_text("sshd:x:0:0::/root:/bin/bash\n"), b"the account sshd"),
    ],
)  # fmt: skip
def test_it_starts_nothing_without_all_it_needs(launcher: Path, spoil: Callable[[Path], object], why: bytes) -> None:
    spoil(launcher.parent)
    done = start(launcher)
    assert (done.returncode, done.stdout) == (1, b"")
    assert why in done.stderr


def test_a_link_is_not_followed(launcher: Path) -> None:
    key = launcher.parent / "sysroot/owner/emergency/key"
    key.rename(key.with_name("other"))
    key.symlink_to("other")
    assert start(launcher).returncode == 1


def test_it_starts_only_with_outputs(launcher: Path) -> None:
    done = start(launcher, stdout=None, stderr=None, preexec_fn=lambda: os.close(1))
    assert done.returncode == 1


def test_the_server_reads_what_the_launcher_writes() -> None:
    """The sealed settings name the launcher's files, the port is the one that is told, and nothing lets a client steer."""
    lines = (ROOT / "data/usr/lib/freehold/emergency-sshd.conf").read_text().splitlines()
    settings = dict(line.split(" ", 1) for line in lines if line and not line.startswith("#"))
    from freehold.lock import emergency

    assert settings["Port"] == str(emergency.PORT)
    assert f"#define EMERGENCY_PORT {emergency.PORT}\n" in (ROOT / "early/emergency.h").read_text()
    source = SOURCE.read_text()
    assert f'"{settings["HostKey"]}"'.replace('"/', 'PLACE "/') in source
    assert f'"{settings["AuthorizedKeysFile"]}"'.replace('"/', 'PLACE "/') in source
    no = ("PasswordAuthentication", "KbdInteractiveAuthentication", "HostbasedAuthentication", "UsePAM", "PermitUserRC",
          "PermitUserEnvironment", "PermitTunnel")  # fmt: skip
    assert {name: settings[name] for name in no} == dict.fromkeys(no, "no")
    assert (settings["DisableForwarding"], settings["MaxSessions"]) == ("yes", "1")
    assert {"AcceptEnv", "Subsystem", "ForceCommand", "TrustedUserCAKeys", "Include"}.isdisjoint(settings)
