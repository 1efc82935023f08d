# SPDX-License-Identifier: Apache-2.0
"""The updater's launcher, built and started as a program from hostile surroundings; and the process it starts.

What the launcher executes is a program of this test's that writes down what it was given.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lab_child import in_a_child

from freehold import run
from freehold.device import handover, private
from freehold.device import updater as device_updater
from freehold.errors import FreeholdError, InputError
from freehold.lock import mounts, updater

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "early" / "updater.c"
ADDR_NO_RANDOMIZE = 0x0040000
COMPILER = shutil.which("gcc") or shutil.which("cc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler")

#: Started in place of Python: prints as JSON what it was given, exits with status 7.
TARGET = Path(__file__).with_name("launcher_target.c")


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("launcher")
    target = work / "target"
    flags = ["-O1", "-Wall", "-Wextra", "-std=gnu17"]
    run.run([COMPILER or "cc", *flags, TARGET, "-o", target])
    run.run([COMPILER or "cc", *flags, "-Werror", f'-DPYTHON="{target}"', SOURCE, "-o", work / "updater"])
    return work / "updater"


def start(launcher: Path, *arguments: str | bytes, **how: object) -> subprocess.CompletedProcess[bytes]:
    """Start it as an attacker may: the house's own runner is too tidy for that."""
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 20, "check": False} | how
    return subprocess.run([launcher, *arguments], **given)  # type: ignore[call-overload,no-any-return]


def answer(done: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    assert done.returncode == 7, done
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@needs_compiler
def test_the_command_and_the_environment_are_constant(launcher: Path) -> None:
    hostile = {
        "PYTHONPATH": "/tmp",
        "LD_PRELOAD": "",
        "PATH": "/tmp",
        "OPENSSL_CONF": "/tmp/x",
        "GCONV_PATH": "/tmp",
        "": "x",
    }
    said = answer(start(launcher, "self-check", env=hostile))
    assert said["argv"] == ["python3", "-I", "-S", "-B", "/usr/lib/freehold/updater.py", "self-check"]
    assert said["env"] == [
        "PATH=/usr/sbin:/usr/bin", "LANG=C.UTF-8", "HOME=/", "TZ=UTC", "OPENSSL_CONF=/usr/lib/freehold/openssl.cnf",
    ]  # fmt: skip


@needs_compiler
def test_two_descriptors_go_on_and_the_input_is_empty(launcher: Path, tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(b"believe me")
    leaked = os.open(tmp_path, os.O_RDONLY)
    high = os.dup2(leaked, 900)
    with (tmp_path / "input").open("rb") as given:
        said = answer(start(launcher, "self-check", stdin=given, pass_fds=(leaked, high)))
    os.close(leaked)
    os.close(high)
    assert said["fds"] == [0, 1, 2]
    assert said["input"] == 0


@needs_compiler
@pytest.mark.parametrize("closed", [1, 2])
def test_without_its_outputs_it_does_not_start(launcher: Path, closed: int) -> None:
    assert start(launcher, "self-check", preexec_fn=lambda: os.close(closed)).returncode == 2


@needs_compiler
def test_without_an_input_it_makes_one(launcher: Path) -> None:
    said = answer(start(launcher, "self-check", preexec_fn=lambda: os.close(0)))
    assert (said["fds"], said["input"]) == ([0, 1, 2], 0)


def unsettle() -> None:
    """What a child inherits and should not."""
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    signal.setitimer(signal.ITIMER_REAL, 1000)
    resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
    os.umask(0)
    os.chdir("/proc")
    ctypes.CDLL(None).personality(ADDR_NO_RANDOMIZE)


@needs_compiler
def test_nothing_else_is_inherited(launcher: Path) -> None:
    said = answer(start(launcher, "self-check", preexec_fn=unsettle))
    assert (said["signals"], said["timer"], said["core"], said["umask"]) == (0, 0, 0, 0o077)
    assert (said["personality"], said["cwd"]) == (0, "/")


@needs_compiler
@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("",),
        ("-c",),
        ("self-chec",),
        ("self-check ",),
        ("self-check", ""),
        ("self-check", "x"),
        ("upgrade",),
        ("apply", "--json"),
        ("apply", "release=1.0^7"),
        ("apply", *"abcdefgh"),
        ("SELF-CHECK",),
        ("--help",),
    ],
)
def test_other_command_lines_are_refused(launcher: Path, arguments: tuple[str, ...]) -> None:
    done = start(launcher, *arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"usage: updater self-check | allow | apply | upgrade\n"


@pytest.fixture(scope="module")
def grammar(launcher: Path) -> Path:
    """The same source with a verb that takes arguments: the real list has none yet."""
    work = launcher.parent
    text = SOURCE.read_text()
    changed = text.replace('{ "self-check", 0, 0 },', '{ "self-check", 0, 0 }, { "probe", 1, 2 },')
    assert changed != text
    (work / "grammar.c").write_text(changed)
    run.run(
        [
            COMPILER or "cc", "-std=gnu17", f'-DPYTHON="{work / "target"}"', f"-I{SOURCE.parent}", work / "grammar.c",
            "-o", work / "grammar",
        ]
    )  # fmt: skip
    return work / "grammar"


@needs_compiler
def test_arguments_are_counted(grammar: Path) -> None:
    assert [start(grammar, "probe", *["a"] * count).returncode for count in range(5)] == [2, 7, 7, 2, 2]


@needs_compiler
@pytest.mark.parametrize("text", ["-x", "--", "..", "a/../b", "/..", "x..y", "a b", "a\n", "é", "a;b", "$a", "", "a" * 129])
def test_other_arguments_are_refused(grammar: Path, text: str) -> None:
    assert start(grammar, "probe", text).returncode == 2
    assert start(grammar, "probe", "good", text).returncode == 2


@needs_compiler
@pytest.mark.parametrize("text", ["a", "/a/b.c", "a" * 128, "sha256:0f", "a.b-c_d=e+f"])
def test_plain_arguments_go_on(grammar: Path, text: str) -> None:
    assert answer(start(grammar, "probe", "a-b", text))["argv"][-2:] == ["a-b", text]


@needs_compiler
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.one_of(st.binary(min_size=1, max_size=140), st.from_regex(rb"[-a-zA-Z0-9._+:=/]{1,130}", fullmatch=True))
)
def test_arguments_are_plain_words(grammar: Path, text: bytes) -> None:
    text = text.replace(b"\0", b"x")
    plain = re.fullmatch(rb"(?!-)[A-Za-z0-9._+:=/-]{1,128}", text) is not None and b".." not in text
    done = start(grammar, "probe", text)
    assert (done.returncode == 7) == plain
    if plain:
        assert json.loads(done.stdout)["argv"][-1] == text.decode()


def test_both_lists_of_verbs_agree() -> None:
    table = re.search(r"VERBS\[\] = \{(.*?)\n\};", SOURCE.read_text(), re.DOTALL)
    assert table is not None
    assert re.findall(r'\{ "([a-z-]+)",', table[1]) == list(device_updater.VERBS)


WORDS = st.builds(
    handover.Words, *[st.booleans()] * 5, progress=st.sampled_from([0, 1, 2]),
    release=st.sampled_from(["", "0123456789abcdef"]),
)  # fmt: skip


@needs_compiler
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=WORDS)
def test_what_a_command_says_arrives(launcher: Path, words: handover.Words) -> None:
    said = answer(start(launcher, "apply", *words.spelt()))["argv"]
    assert said[5] == "apply"
    assert handover.read(said[6:]) == words
    assert start(launcher, "upgrade", *words.spelt()).returncode == (7 if words.spelt() else 2)


@pytest.mark.parametrize(
    "text", ["x", "json json", "quiet json", "progress=0", "progress=3", "progress=", "release=", "release=0123456789ABCDEF",
             "release=../../../../etc", "json=1", "release=0123456789abcdef json"],
)  # fmt: skip
def test_words_have_one_spelling(text: str) -> None:
    with pytest.raises(InputError):
        handover.read(text.split())


def test_a_command_says_how_it_is_to_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    options = argparse.Namespace(json=True, quiet=False, progress_fd=2)
    assert handover.how(options, {}).spelt() == ["json", "progress=2"]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    # Another descriptor does not go along; then there are lines.
    assert handover.how(argparse.Namespace(progress_fd=9), {"TERM": "xterm"}).spelt() == ["terminal"]
    assert handover.how(argparse.Namespace(progress_fd=9), {"TERM": "dumb"}).spelt() == []


@needs_compiler
def test_a_command_becomes_the_updater(launcher: Path) -> None:
    """Its outputs and its exit status are the command's."""
    script = (
        "import sys; from pathlib import Path; from freehold.device import handover\n"
        f"handover.UPDATER = Path({str(launcher)!r}); print('before')\n"
        "handover.start('upgrade', handover.Words(quiet=True, release='0123456789abcdef'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, env={"PYTHONPATH": str(ROOT / "src")}, timeout=60, check=False
    )
    assert done.returncode == 7, done
    first, second = done.stdout.splitlines()
    assert first == b"before"
    assert json.loads(second)["argv"][5:] == ["upgrade", "quiet", "release=0123456789abcdef"]


# ---- the process that it starts ----


@pytest.fixture
def secrets(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "secret"
    directory.mkdir(0o700)
    (directory / "key").write_bytes(b"0123456789")
    yield directory


def may_lock_memory() -> bool:
    return in_a_child(updater.shield) == "None"


needs_lock = pytest.mark.skipif(not may_lock_memory(), reason="this process may not lock memory")


@needs_lock
def test_a_secret_is_read_behind_the_shield(secrets: Path) -> None:
    def work() -> tuple[bytes, int, bool]:
        data = updater.read_secret("key", directory=secrets)
        locked = re.search(r"VmLck:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return data, ctypes.CDLL(None).prctl(updater.PR_GET_DUMPABLE, 0, 0, 0, 0), bool(locked and int(locked[1]) > 0)

    assert in_a_child(work) == repr((b"0123456789", 0, True))


@needs_lock
@pytest.mark.parametrize("name", ["", ".", "..", "../key", "a/b", ".hidden", "absent", "link", "long"])
def test_what_is_no_secret(secrets: Path, name: str) -> None:
    (secrets / "link").symlink_to("key")
    (secrets / "long").write_bytes(b"x" * 11)

    def work() -> bytes:
        try:
            return updater.read_secret(name, directory=secrets, limit=10)
        except OSError as error:  # a link
            raise FreeholdError(str(error)) from error

    assert in_a_child(work).startswith("FreeholdError: ")


def test_no_secret_without_the_shield(secrets: Path) -> None:
    """Whoever starts us may leave us no memory to lock; then nothing is read."""

    def work() -> bytes:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
        libc = ctypes.CDLL(None)
        # Without CAP_IPC_LOCK (14), dropped here from every set where we have it.
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        data = (ctypes.c_uint32 * 6)()
        libc.capget(header, data)
        for word in (0, 1, 2):
            data[word] &= ~(1 << 14)
        libc.capset(header, data)
        return updater.read_secret("key", directory=secrets)

    assert in_a_child(work).startswith("FreeholdError: the updater's memory cannot be kept out of swap")


@needs_lock
def test_self_check_says_what_it_may(secrets: Path) -> None:
    good = {"schema": "freehold-updater-1", "reads": True, "fault": ""}
    assert in_a_child(lambda: updater.self_check(secrets)) == repr(good)
    assert "No such file" in in_a_child(lambda: updater.self_check(secrets / "nowhere"))


def test_the_entry_runs_isolated_and_refuses_other_verbs() -> None:
    script = (ROOT / "data/usr/lib/freehold/updater.py").read_text()
    assert '"/usr/lib/python3/dist-packages"' in script
    text = script.replace("/usr/lib/python3/dist-packages", str(ROOT / "src"))
    done = run.run([sys.executable, "-I", "-S", "-B", "-c", text, "sign"], check=False)
    assert (done.status, done.stdout) == (2, b"")
    assert done.stderr == b"usage: updater self-check | allow | apply | upgrade\n"


def test_a_fault_tells_its_kind_only(capfd: pytest.CaptureFixture[str]) -> None:
    """Root chose the files that were read: one of them may have been a mount over a secret."""

    def fail(_: object) -> int:
        raise ValueError("c2VjcmV0")

    assert updater.main(["apply"], {"apply": fail}) == 1
    assert capfd.readouterr().err == "updater: it failed: ValueError\n"


def test_who_holds_a_secret_starts_nothing() -> None:
    def work() -> str:
        run.run(["true"])
        run.end_programs("the device key is open")
        try:
            run.run(["true"])
        except RuntimeError as error:
            return str(error)
        return "it ran"

    assert "no program is started any more (the device key is open): true" in in_a_child(work)


def may_mount() -> bool:
    def work() -> str:
        try:
            mounts.private_namespace(follow=False)
        except OSError:
            return "no"
        return "yes"

    return in_a_child(work) == repr("yes")


@pytest.mark.skipif(not may_mount(), reason="this process may not have a mount namespace")
def test_the_place_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "before").write_text("seen by all")

    def work() -> tuple[object, ...]:
        sysroot = private.enter(tmp_path)
        (sysroot.work / "ball").write_bytes(b"x")
        seen = Path(f"/proc/{os.getppid()}/root/{tmp_path}")
        return (
            sysroot.booted(), (sysroot.system / "usr").readlink(), (sysroot.system / "etc").exists(), sysroot.secure_boot(),
            (sysroot.system / "proc/cmdline").read_text() == Path("/proc/cmdline").read_text(),
            sorted(path.name for path in tmp_path.iterdir()), sorted(path.name for path in seen.iterdir()),
            tmp_path.stat().st_mode & 0o777, sysroot.root,
        )  # fmt: skip

    expected = (
        "", Path("/usr"), False, False, True, ["scratch", "system"], ["before"], 0o700, Path("/sysroot"),
    )  # fmt: skip
    assert in_a_child(work) == repr(expected)
    assert [path.name for path in tmp_path.iterdir()] == ["before"]
