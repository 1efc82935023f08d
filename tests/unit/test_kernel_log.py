# SPDX-License-Identifier: Apache-2.0
"""What the kernel refused by itself, out of its log; the lines are those of `tests/vm/test_inputs_lab.py`'s guest."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_denials import fake_guard

from freehold.cli import main
from freehold.lock import guard, kernel_log

LOCKDOWN = "Lockdown: modprobe: unsigned module loading is restricted; see man kernel_lockdown.7"
IPE = (
    "audit: type=1420 audit(1764320000.123:7): ipe_op=KMODULE ipe_hook=KERNEL_READ enforcing=1 pid=80 "
    'comm="insmod" path="/root/x.ko" dev="vda2" ino=17 rule="DEFAULT op=KMODULE action=DENY"'
)


def record(message: str, *, priority: int = 5, at: int = 2_000_000) -> str:
    return f"{priority},100,{at},-;{message}\n SUBSYSTEM=x\n"


@pytest.mark.parametrize("message", [
    "Loading of unsigned module is rejected", "module: Loading of unsigned module is rejected",
    "Loading of module with unavailable key is rejected", "Loading of module with unsupported crypto is rejected",
])  # fmt: skip
def test_with_secure_boot_the_kernel_says_it_in_other_words(message: str) -> None:
    (one,) = kernel_log.find([record(message), record(f"{message} not"), record(f"x {message}")], booted=0)
    assert (one.kind, one.program, one.count) == ("module-signature", "", 1)
    assert one.sentence.startswith("the kernel did not load a module: nobody signed it")
    assert one.ways[0].command is not None and one.ways[0].command.startswith("freehold key sign-module")


def test_a_module_that_nobody_signed_names_the_command() -> None:
    found = kernel_log.find([record(LOCKDOWN), record("usb 1-1: new device"), record(LOCKDOWN, at=9_000_000)], booted=1000.0)
    (one,) = found
    assert (one.kind, one.program, one.path, one.count, one.last) == ("module-signature", "modprobe", None, 2, 1009)
    text = kernel_log.text(found)
    assert text.startswith("the kernel did not let modprobe load a module: nobody signed it")
    assert "freehold key sign-module FILE --key file:owner.key" in text


def test_what_the_list_lacks() -> None:
    firmware = IPE.replace("KMODULE", "FIRMWARE").replace('path="/root/x.ko"', "path=2F746D702F0A")
    buffered = IPE.replace(' path="/root/x.ko" dev="vda2" ino=17', "")
    found = kernel_log.find([record(IPE), record(firmware), record(buffered)], booted=0)
    assert {one.sentence for one in found} == {
        "the kernel did not let insmod read the module /root/x.ko: it is not on this release's list of kernel inputs",
        r"the kernel did not let insmod read the firmware /tmp/\x0a: it is not on this release's list of kernel inputs",
        "the kernel did not let insmod read the module from memory: it is not on this release's list of kernel inputs",
    }
    commands = {one.path: [way.command for way in one.ways if way.command] for one in found}
    assert commands["/root/x.ko"][0].startswith("freehold key sign-module")
    assert not any("sign-module" in one for one in commands["/tmp/\n"])


def test_lines_of_others_do_not_count() -> None:
    """What user space writes to the log has another facility; a policy that is only watched refuses nothing."""
    forged = [record(LOCKDOWN, priority=13), record(IPE, priority=8 + 5), record(IPE.replace("enforcing=1", "enforcing=0"))]
    assert kernel_log.find([*forged, record(f"x: {LOCKDOWN}"), record("user: " + IPE), "nonsense", ""], booted=0) == []
    assert kernel_log.text([]) == ""


@given(st.text(max_size=200))
def test_any_text_stays_on_its_line(noise: str) -> None:
    ipe = IPE.replace("comm=\"insmod\"", "comm=" + (noise.encode().hex().upper() or "00"))
    for one in kernel_log.find([record(noise), record(ipe), noise], booted=0):
        assert one.sentence.isprintable()


def test_the_verb_tells_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answers: dict[str, object] = {"status": {"loaded": True, "mode": "locked"}, "denials": {"denials": []}}
    monkeypatch.setattr(guard, "GUARDCTL", fake_guard(tmp_path, answers))
    monkeypatch.setattr(guard, "kernel_records", lambda: [record(IPE)])
    assert main(["denials"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("the kernel did not let insmod read the module /root/x.ko")
    assert "nothing was refused" not in out
    assert main(["denials", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["kernel"]
    assert set(row) == {"kind", "program", "path", "count", "last", "sentence", "ways"}
    monkeypatch.setattr(guard, "kernel_records", list)
    assert main(["denials"]) == 0
    assert "nothing was refused, since this boot began" in capsys.readouterr().out


def test_records_are_read_to_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe gives what is there and then, like the log, that there is no more for now."""
    pipe = tmp_path / "kmsg"
    os.mkfifo(pipe)
    holder = os.open(pipe, os.O_RDWR)
    os.write(holder, record(LOCKDOWN).encode())
    monkeypatch.setattr(guard, "KMSG", pipe)
    assert guard.kernel_records() == [record(LOCKDOWN)]
    os.close(holder)
    monkeypatch.setattr(guard, "KMSG", tmp_path / "absent")
    assert guard.kernel_records() == []
