# SPDX-License-Identifier: Apache-2.0
"""Durable writes, processes, progress, errors and the command line: what everything else stands on."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from freehold import atomic, cli, run
from freehold.cli.table import VERBS
from freehold.errors import BusyError, CommandError, FreeholdError, InputError, NotHereError
from freehold.monitor import JsonMonitor, NullMonitor, TextMonitor, step
from freehold.report import Report


def test_write_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "file"
    old = os.umask(0o077)
    try:
        atomic.write(path, "text", mode=0o664)
    finally:
        os.umask(old)
    assert path.read_text() == "text"
    assert path.stat().st_mode & 0o777 == 0o664
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


class CutError(Exception):
    """A crash."""


@pytest.mark.parametrize("call", ["write", "fsync", "fchmod", "rename"])
def test_a_failure_at_any_step_leaves_the_old_file(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    atomic.write(path, "old")

    def cut(*_: object, **__: object) -> None:
        raise CutError

    if call == "rename":
        monkeypatch.setattr(Path, "rename", cut)
        monkeypatch.setattr(os, "rename", cut)
        monkeypatch.setattr(os, "replace", cut)
    elif call == "write":
        monkeypatch.setattr(os, "fdopen", cut)
    else:
        monkeypatch.setattr(os, call, cut)
    with pytest.raises(CutError):
        atomic.write(path, "new")
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_kill_at_any_step_leaves_one_of_the_two(call: str, tmp_path: Path) -> None:
    """The process is gone before the step: no exception handler runs, as in a power cut."""
    path = tmp_path / "file"
    atomic.write(path, "old")
    code = (
        "import os, pathlib, signal, sys; from freehold import atomic\n"
        "def cut(*_, **__): os.kill(os.getpid(), signal.SIGKILL)\n"
        "if sys.argv[2] == 'rename': pathlib.Path.rename = os.rename = os.replace = cut\n"
        "else: os.fsync = cut\n"
        "atomic.write(pathlib.Path(sys.argv[1]), 'new')\n"
    )
    source = str(Path(atomic.__file__).parents[1])
    done = run.run([sys.executable, "-c", code, path, call], env={"PYTHONPATH": source}, check=False)
    assert done.status == -signal.SIGKILL
    assert path.read_text() == "old"
    atomic.write(path, "third")
    assert path.read_text() == "third"


def test_data_reaches_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    seen: list[str] = []
    really = os.fsync

    def note(fd: int) -> None:
        seen.append(os.readlink(f"/proc/self/fd/{fd}").rpartition("/")[2] + f" named={path.exists()}")
        really(fd)

    monkeypatch.setattr(os, "fsync", note)
    atomic.write(path, "x")
    assert seen == [f".tmp-file-{os.getpid()} named=False", f"{tmp_path.name} named=True"]


def test_publish_moves_a_whole_directory(tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "a").write_text("1")
    atomic.publish(tmp_path / "half", tmp_path / "whole")
    assert [one.name for one in tmp_path.iterdir()] == ["whole"]


def test_a_lock_is_held_once_and_given_back(tmp_path: Path) -> None:
    path = tmp_path / "below" / "lock"
    held = f"the store is in use by process {os.getpid()}"
    with atomic.exclusive(path, "the store"), pytest.raises(BusyError, match=held), atomic.exclusive(path, "the store"):
        raise AssertionError("held twice")
    with atomic.exclusive(path, "the store"):
        assert path.exists()


def test_who_may_wait_gets_the_lock_when_it_is_free(tmp_path: Path) -> None:
    path, order = tmp_path / "lock", []

    def second() -> None:
        with atomic.exclusive(path, "it", wait=True):
            order.append("second")

    thread = threading.Thread(target=second)
    with atomic.exclusive(path, "it"):
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_run_gives_output_and_closes_input() -> None:
    assert run.run(["cat"]).stdout == b""
    assert run.run(["cat"], stdin=b"in").text == "in"


def test_run_rebuilds_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("PYTHONPATH", "/evil")
    monkeypatch.setenv("PATH", "/evil:" + os.environ["PATH"])
    seen = dict(line.split("=", 1) for line in run.run(["env"], env={"ONE": "1"}).text.splitlines())
    assert not {"LD_PRELOAD", "PYTHONPATH"} & set(seen)
    assert seen["PATH"] == run.CLEAN_PATH
    assert (seen["ONE"], seen["LANG"]) == ("1", "C.UTF-8")


def test_run_explains_a_failure() -> None:
    with pytest.raises(CommandError) as caught:
        run.run(["sh", "-c", "echo one two >&2; exit 7"])
    assert caught.value.message == "sh failed with status 7: one two"
    assert caught.value.status == 7
    assert caught.value.diagnostics().splitlines()[0] == "+ sh -c 'echo one two >&2; exit 7'"
    assert run.run(["sh", "-c", "exit 7"], check=False).status == 7


def test_run_names_a_missing_program() -> None:
    with pytest.raises(NotHereError, match="no-such-program"):
        run.run(["no-such-program"])


def test_run_ends_what_takes_too_long() -> None:
    started = time.monotonic()
    with pytest.raises(CommandError, match="did not finish within"):
        run.run(["sleep", "60"], timeout=0.2)
    assert time.monotonic() - started < 10


def test_start_appends_to_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    process = run.start(["sh", "-c", "echo out; echo err >&2"], log=log)
    assert process.wait(20) == 0
    assert log.read_text() == "before\nout\nerr\n"


def test_steps_are_nested_and_failures_show_the_way_out() -> None:
    stream = io.StringIO()
    monitor = TextMonitor(stream, terminal=False)
    with pytest.raises(CutError), step(monitor, "outer"), step(monitor, "inner"):
        monitor.progress(1, 2, "files")
        monitor.message("hello")
        raise CutError
    lines = [line.split(" after")[0] for line in stream.getvalue().splitlines()]
    assert lines == ["outer ...", "  inner ...", "    hello", "  inner: FAILED", "outer: FAILED"]


def test_json_progress_is_versioned_and_bounded() -> None:
    reader, writer = os.pipe()
    monitor = JsonMonitor(writer)
    with step(monitor, "one"):
        for done in range(1000):
            monitor.progress(done, 1000, "files")
        monitor.message("x" * 9000)
    os.close(writer)
    with os.fdopen(reader) as file:
        events = [json.loads(line) for line in file]
    assert {event["api"] for event in events} == {1}
    assert [event["event"] for event in events] == ["begin", "progress", "message", "end"]
    assert len(events[2]["text"]) == 2000


def test_null_monitor_still_passes_errors_on() -> None:
    with pytest.raises(CutError), step(NullMonitor(), "one"):
        raise CutError


def verb(monkeypatch: pytest.MonkeyPatch, handler: Callable[..., object]) -> None:
    """Put ``handler`` behind the verb `inspect`."""
    monkeypatch.setattr(cli, "rows_of", lambda _: {"inspect": ("inspect", "summary", lambda _parser: None, handler)})


def raiser(error: BaseException) -> Callable[..., object]:
    def handler(*_: object) -> object:
        raise error

    return handler


@pytest.mark.parametrize(("error", "status", "said"), [
    (FreeholdError("it broke", hint="mend it"), 1, "freehold: it broke\n  (mend it)\n"),
    (InputError("bad", faults=["a:1: x", "b:2: y"]), 2, "freehold: bad\n  a:1: x\n  b:2: y\n"),
    (KeyboardInterrupt(), 130, "freehold: interrupted"),
    (PermissionError(13, "Permission denied", "/f"), 1, "freehold: Permission denied (/f)\n"),
])  # fmt: skip
def test_exit_status_and_one_line(
    error: BaseException, status: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verb(monkeypatch, raiser(error))
    assert cli.main(["inspect"]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(said)
    assert "Traceback" not in err


def test_json_is_data_and_nothing_else(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    verb(monkeypatch, lambda *_: Report({"b": 1, "a": [2]}, "for people", 77))
    assert cli.main(["inspect", "--json"]) == 77
    assert json.loads(capsys.readouterr().out) == {"a": [2], "b": 1}
    assert cli.main(["inspect"]) == 77
    assert capsys.readouterr().out == "for people\n"


@pytest.mark.parametrize(("arguments", "said"), [
    (["instpect"], "did you mean 'inspect'?"), (["zzz"], "unknown verb 'zzz'"), (["inspect"], "required"),
    (["inspect", "a", "--nope"], "--nope"), (["vm", "nope"], "nope"), (["key"], "required"),
])  # fmt: skip
def test_usage_errors(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err


def test_bare_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {one.name} " in text for one in VERBS)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("freehold 0.")


@pytest.mark.parametrize("name", [one.name for one in VERBS])
def test_every_verb_explains_itself_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "-h"])
    assert stop.value.code == 0
    assert f"freehold {name}" in capsys.readouterr().out.partition("examples:")[2]


def test_the_program_exits_with_the_status() -> None:
    source = str(Path(atomic.__file__).parents[1])
    done = run.run([sys.executable, "-m", "freehold", "inspekt"], env={"PYTHONPATH": source}, check=False)
    assert (done.status, done.stdout) == (2, b"")
    assert b"did you mean" in done.stderr
