# SPDX-License-Identifier: Apache-2.0
"""The two protocol clients against real sockets, and the registry against real processes."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from freehold.errors import InputError, NotHereError
from freehold.vm import qmp, state
from freehold.vm.agent import Agent, AgentError, AgentGoneError
from freehold.vm.guest import Guest

Peer = Callable[[socket.socket], None]


@contextlib.contextmanager
def served(path: Path, *peers: Peer) -> Iterator[Path]:
    """A socket at ``path`` whose connections, one after the other, are given to ``peers``."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            for peer in peers:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    peer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield path


def lines(connection: socket.socket) -> Iterator[bytes]:
    with connection.makefile("rb") as source:
        yield from source


def agent_peer(answers: dict[str, object], *, noise: bytes = b"") -> Peer:
    """An agent that synchronises, after ``noise``, and gives fixed answers."""

    def peer(connection: socket.socket) -> None:
        for line in lines(connection):
            request = json.loads(line.lstrip(b"\xff"))
            if request["execute"] == "guest-sync-delimited":
                token = request["arguments"]["id"]
                connection.sendall(noise + b"\xff" + json.dumps({"return": token}).encode() + b"\n")
            else:
                connection.sendall(json.dumps(answers[request["execute"]]).encode() + b"\n")

    return peer


def test_agent_skips_what_others_left(tmp_path: Path) -> None:
    noise = b'{"return": {"half": "an ans' + b'\n{"return": 1}\n\xff{"return": -5}\n'
    with served(
        tmp_path / "agent.sock", agent_peer({"guest-info": {"return": {"version": "10"}}}, noise=noise)
    ) as path:
        assert Agent(path).call("guest-info", timeout=5) == {"version": "10"}


def test_agent_refusal_is_told(tmp_path: Path) -> None:
    answer = {"error": {"class": "CommandNotFound", "desc": "has been disabled"}}
    with served(tmp_path / "agent.sock", agent_peer({"guest-exec": answer})) as path:
        with pytest.raises(AgentError, match="has been disabled") as caught:
            Agent(path).call("guest-exec", timeout=5)
        assert caught.value.kind == "CommandNotFound"


def test_silent_agent_times_out(tmp_path: Path) -> None:
    with served(tmp_path / "agent.sock", lambda connection: time.sleep(2)) as path:
        began = time.monotonic()
        with pytest.raises(AgentGoneError), Agent(path).session(timeout=0.3):
            raise AssertionError("a session with nobody")
        assert time.monotonic() - began < 1.5


def test_closed_and_absent_agents(tmp_path: Path) -> None:
    with served(tmp_path / "agent.sock", lambda connection: None) as path, pytest.raises(AgentGoneError):
        Agent(path).call("guest-ping", timeout=2)
    with pytest.raises(AgentGoneError):
        Agent(tmp_path / "none.sock").call("guest-ping", timeout=2)
    with pytest.raises(AgentGoneError):
        Agent(tmp_path / "none/none.sock").call("guest-ping", timeout=2)


def test_a_guest_without_a_message_bus_goes_down_as_well(tmp_path: Path) -> None:
    asked: list[str] = []

    def second(connection: socket.socket) -> None:
        answers: dict[str, object] = {"guest-exec": {"pid": 7}, "guest-exec-status": {"exited": True, "exitcode": 0}}
        for line in lines(connection):
            request = json.loads(line.lstrip(b"\xff"))
            if request["execute"] == "guest-exec":
                asked.append(" ".join([request["arguments"]["path"], *request["arguments"]["arg"]]))
            answer = answers.get(request["execute"], request["arguments"].get("id"))
            mark = b"\xff" if request["execute"] == "guest-sync-delimited" else b""
            connection.sendall(mark + json.dumps({"return": answer}).encode() + b"\n")

    refusal = {"error": {"class": "GenericError", "desc": "Failed to connect to system scope bus"}}
    with served(tmp_path / "agent.sock", agent_peer({"guest-shutdown": refusal}), second) as path:
        Guest(Agent(path)).shutdown("powerdown")
    assert len(asked) == 1
    assert asked[0].endswith("systemctl poweroff")


def test_agent_takes_turns(tmp_path: Path) -> None:
    peer = agent_peer({"guest-ping": {"return": {}}})
    with served(tmp_path / "agent.sock", peer, peer) as path:
        agent = Agent(path)
        with (
            agent.session(timeout=5) as first,
            pytest.raises(AgentGoneError, match="busy"),
            agent.session(timeout=0.2),
        ):
            raise AssertionError("two turns at once")
        with agent.session(timeout=5) as second:
            assert second.call("guest-ping") == {}
        assert first is not second


GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\n'


def qmp_peer(connection: socket.socket) -> None:
    connection.sendall(GREETING)
    for line in lines(connection):
        request = json.loads(line)
        connection.sendall(b'{"event": "RESET", "data": {}}\n')
        answer: dict[str, object] = {"id": request["id"], "return": {"echo": request.get("arguments")}}
        if request["execute"] == "bad":
            answer = {"id": request["id"], "error": {"class": "GenericError", "desc": "no such thing"}}
        if request["execute"] == "leave":
            return
        connection.sendall(json.dumps(answer).encode() + b"\n")


def test_qmp(tmp_path: Path) -> None:
    with served(tmp_path / "qmp.sock", qmp_peer) as path, qmp.connected(path) as client:
        assert client.execute("good", {"a": 1}) == {"echo": {"a": 1}}
        with pytest.raises(qmp.QmpError, match="no such thing"):
            client.execute("bad")
        assert client.execute("good") == {"echo": None}
        with pytest.raises(qmp.QmpError, match="went away"):
            client.execute("leave")


def test_qmp_without_qemu(tmp_path: Path) -> None:
    with pytest.raises(qmp.QmpError, match="not there"), qmp.connected(tmp_path / "none.sock"):
        raise AssertionError("connected to nothing")


def test_keys_go_down_in_order_and_up_in_reverse(tmp_path: Path) -> None:
    seen: list[tuple[str, bool]] = []

    def peer(connection: socket.socket) -> None:
        connection.sendall(GREETING)
        for line in lines(connection):
            request = json.loads(line)
            keys = [event["data"] for event in request.get("arguments", {}).get("events", [])]
            seen.extend((key["key"]["data"], key["down"]) for key in keys)
            connection.sendall(json.dumps({"id": request["id"], "return": {}}).encode() + b"\n")

    with served(tmp_path / "qmp.sock", peer) as path, qmp.connected(path) as client:
        client.press([("ctrl", "alt", "delete"), ("a",)])
    assert seen == [
        ("ctrl", True), ("alt", True), ("delete", True), ("delete", False), ("alt", False), ("ctrl", False),
        ("a", True), ("a", False),
    ]  # fmt: skip


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def recorded(pid: int, ticks: int) -> state.Record:
    record = state.Record(
        name="one", disk="/d", accelerator="tcg", pid=pid, ticks=ticks, host_boot=state.host_boot(), started=1.0,
        serial_offset=0, snapshot=False, secure_boot=False, tpm=False,
    )  # fmt: skip
    places = state.paths("one")
    places.run.mkdir(parents=True, exist_ok=True)
    places.keep.mkdir(exist_ok=True)
    state.save(record)
    return record


def test_living_and_dead_machines(registry: Path, sleeper: subprocess.Popen[bytes]) -> None:
    record = recorded(sleeper.pid, state.process_ticks(sleeper.pid))
    assert state.running() == [record]
    assert not state.wait(record.pid, record.ticks, 0.05)
    state.kill(record.pid, record.ticks)
    # Dead, but not waited for: a zombie is no machine.
    assert state.wait(record.pid, record.ticks, 10)
    assert state.load("one") is None
    assert [entry.name for entry in state.paths("one").base.iterdir()] == ["keep"]
    with pytest.raises(NotHereError):
        state.required("one")


def test_a_process_that_inherited_the_number_is_left_alone(registry: Path, sleeper: subprocess.Popen[bytes]) -> None:
    record = recorded(sleeper.pid, state.process_ticks(sleeper.pid) + 1)
    assert not record.alive
    state.kill(record.pid, record.ticks)
    assert state.running() == []
    assert sleeper.poll() is None


def test_records_of_another_boot_are_dead(registry: Path) -> None:
    record = recorded(os.getpid(), state.process_ticks(os.getpid()))
    assert record.alive
    assert not replace(record, host_boot="another").alive


def test_registry_too_deep_for_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/" + "x" * 90)
    with pytest.raises(InputError, match="too long"):
        state.paths("one")
