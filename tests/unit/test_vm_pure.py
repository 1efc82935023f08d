# SPDX-License-Identifier: Apache-2.0
"""The pure parts of freehold.vm: command lines, names, keys, records, console text, certificates."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.errors import FreeholdError, InputError
from freehold.keys.efi import OWNER
from freehold.vm import firmware, guest, keyboard, machine, state, verbs
from freehold.vm.machine import Forward, Machine, Wiring

WIRING = Wiring(
    code=Path("/f/code.fd"),
    variables=Path("/s/vars.fd"),
    disk_format="raw",
    accelerator="tcg",
    qmp=Path("/s/qmp"),
    human=Path("/s/human"),
    agent=Path("/s/agent"),
    serial=Path("/s/serial"),
    tpm=Path("/s/tpm"),
)


def options(argv: list[str], name: str) -> list[str]:
    return [value for option, value in itertools.pairwise(argv) if option == name]


def test_plain_machine() -> None:
    argv = machine.arguments(Machine("one", Path("/d/a,b.raw")), WIRING)
    assert options(argv, "-accel") == ["tcg,thread=multi"]
    assert options(argv, "-machine") == ["q35,smm=off"]
    disk = next(value for value in options(argv, "-drive") if "id=disk0" in value)
    assert "file=/d/a,,b.raw" in disk
    assert "cache=writeback" in disk
    assert "snapshot=off" in disk
    assert not any("secure" in value for value in options(argv, "-global"))
    assert not options(argv, "-tpmdev")
    assert not options(argv, "-fw_cfg")


def test_machine_with_everything() -> None:
    wanted = Machine(
        "one", Path("/d/x"), secure_boot=True, tpm=True, snapshot=True, memory_mib=4096, cpus=4,
        ignition=Path("/i,j"), forwards=(Forward(8080, 80),), extra=("-smbios", "type=11"),
    )  # fmt: skip
    argv = machine.arguments(wanted, dataclasses.replace(WIRING, accelerator="kvm", disk_format="qcow2"))
    assert options(argv, "-accel") == ["kvm"]
    assert options(argv, "-cpu") == ["host"]
    assert options(argv, "-machine") == ["q35,smm=on"]
    assert "driver=cfi.pflash01,property=secure,value=on" in options(argv, "-global")
    assert any("format=qcow2" in value and "snapshot=on" in value for value in options(argv, "-drive"))
    assert options(argv, "-netdev") == ["user,id=net0,hostfwd=tcp:127.0.0.1:8080-:80"]
    assert options(argv, "-fw_cfg") == ["name=opt/com.coreos/config,file=/i,,j"]
    assert options(argv, "-m") == ["4096"]
    assert argv[-2:] == ["-smbios", "type=11"]


@pytest.mark.parametrize("name", ["", "-x", ".x", "a b", "a/b", "..", "a" * 33, "ä", "a\n"])
def test_bad_names(name: str) -> None:
    with pytest.raises(InputError):
        Machine(name, Path("x"))


@pytest.mark.parametrize(
    ("faulty"), [{"memory_mib": 255}, {"memory_mib": 1 << 21}, {"cpus": 0}, {"cpus": 256}, {"accelerator": "xen"}]
)
def test_bad_machines(faulty: dict[str, object]) -> None:
    with pytest.raises(InputError):
        dataclasses.replace(Machine("one", Path("x")), **faulty)  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "mib"), [("512", 512), ("512M", 512), ("2G", 2048), ("2GiB", 2048), ("3gb", 3072)])
def test_memory(text: str, mib: int) -> None:
    assert machine.parse_memory(text) == mib


@pytest.mark.parametrize("text", ["", "2T", "-1", "1.5G", "G", "1 G 2"])
def test_bad_memory(text: str) -> None:
    with pytest.raises(InputError):
        machine.parse_memory(text)


def test_forwards() -> None:
    assert machine.parse_forward("8080:80") == Forward(8080, 80)
    for text in ("80", "0:80", "80:65536", "a:b", "1:2:3", "80:"):
        with pytest.raises(InputError):
            machine.parse_forward(text)


def test_disk_format() -> None:
    assert machine.disk_format(b"QFI\xfb\0\0\0\3") == "qcow2"
    assert machine.disk_format(b"") == machine.disk_format(b"\xeb\x63\x90") == "raw"


def test_every_printable_character_can_be_typed() -> None:
    typed = [
        keyboard.strokes(character)[0]
        for character in string.digits + string.ascii_letters + string.punctuation + " \n\t"
    ]
    assert len(set(typed)) == len(typed)
    for keys in typed:
        assert len(keys) <= 2
        assert keyboard.chord(keys[-1]) == (keys[-1],)
    assert keyboard.strokes("aA!") == [("a",), ("shift", "a"), ("shift", "1")]


def test_what_cannot_be_typed() -> None:
    for text in ("ä", "\x1b", "a" * (keyboard.MAX_TEXT + 1)):
        with pytest.raises(InputError):
            keyboard.strokes(text)


def test_chords() -> None:
    assert keyboard.chord("ctrl-alt-delete") == ("ctrl", "alt", "delete")
    assert keyboard.chord("Control-Alt-Del") == ("ctrl", "alt", "delete")
    assert keyboard.chord("alt-F2") == ("alt", "f2")
    for text in ("", "ctrl-", "hyper-x", "ctrl alt"):
        with pytest.raises(InputError):
            keyboard.chord(text)


RECORD = state.Record(
    name="one", disk="/d", accelerator="tcg", pid=12, ticks=34, host_boot="b", started=1.5, serial_offset=7,
    snapshot=False, secure_boot=True, tpm=False,
)  # fmt: skip


def test_record_round_trip() -> None:
    assert state.parse(state.dump(RECORD)) == RECORD


@pytest.mark.parametrize(
    "change", [{"version": 2}, {"pid": "12"}, {"pid": True}, {"name": "../x"}, {"more": 1}, {"started": None}]
)
def test_damaged_records(change: dict[str, object]) -> None:
    with pytest.raises(FreeholdError, match="damaged"):
        state.parse(json.dumps({**json.loads(state.dump(RECORD)), **change}))


@given(st.text())
def test_record_parser_never_breaks(text: str) -> None:
    with pytest.raises(FreeholdError):
        state.parse(text)


def test_console_text() -> None:
    raw = b"\x1b[2J\x1b[01;01HBdsDxe: loading\r\n\x1b[0;32m  OK  \x1b[0m done\x07\r\n\r\n\xff\x1b]0;title\x07login:"
    assert state.printable(raw) == ["BdsDxe: loading", "OK   done", "\ufffdlogin:"]


@given(st.binary())
def test_console_text_has_no_control_characters(data: bytes) -> None:
    assert all(line and line.isprintable() for line in state.printable(data))


def test_tail(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"old\n" + b"\n".join(b"%d" % number for number in range(100)) + b"\n")
    assert state.tail(log, 2) == ["98", "99"]
    assert state.tail(log, 200, offset=4)[0] == "0"
    assert state.tail(tmp_path / "none", 2) == []


DER = b"\x30\x03abc"


def test_certificates_in_files_and_directories(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "release-a.der").write_bytes(DER + b"1")
    (folder / "owner-b.pem").write_text("text before\n" + firmware.pem(DER + b"2") + firmware.pem(DER + b"3"))
    (folder / "notes.txt").write_text("no certificate")
    found = firmware.certificates([folder])
    assert [one.der for one in found] == [DER + b"2", DER + b"3", DER + b"1"]
    assert [one.owner for one in found] == [True, True, False]
    (folder / "KEK.crt").write_bytes(DER)
    assert [one.role for one in firmware.certificates([folder / "KEK.crt", folder / "release-a.der"])] == ["kek", "db"]


def test_bad_certificates(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "text.pem").write_text("hello")
    (tmp_path / "large.der").write_bytes(b"\x30" * (firmware.MAX_CERTIFICATE + 1))
    for place in (empty, tmp_path / "none", tmp_path / "text.pem", tmp_path / "large.der"):
        with pytest.raises(InputError):
            firmware.certificates([place])


def test_pem_is_parsed_back() -> None:
    der = DER * 50
    assert firmware.parse(firmware.pem(der).encode()) == [der]
    assert max(map(len, firmware.pem(der).splitlines())) <= 64


def test_variables_command() -> None:
    template, output, one, two, own = (Path(name) for name in ("t", "o", "one", "two", "pk"))
    argv = firmware.variables_command(template, output, [("db", one), ("db", two)])
    text = " ".join(argv).replace(f"{OWNER} ", "")
    assert text.endswith("--secure-boot --set-pk one --add-kek one --add-db one --add-db two")
    argv = firmware.variables_command(template, output, [("pk", own), ("db", one)])
    text = " ".join(argv).replace(f"{OWNER} ", "")
    assert text.endswith("--set-pk pk --add-kek one --add-db one")


def test_as_user_keeps_arguments() -> None:
    words = ["podman", "a b", "$HOME", "", "--", "-c"]
    assert guest.as_user("alice", words)[-len(words) - 2 :] == ["--", "alice", *words]
    for name in ("", "-x", "a b", "a;b", "a/b"):
        with pytest.raises(InputError):
            guest.as_user(name, words)


@pytest.mark.parametrize(
    ("rest", "options", "command"),
    [
        (["--", "ls", "--", "-l"], {}, ["ls", "--", "-l"]),
        (["ls", "--user", "x"], {}, ["ls", "--user", "x"]),
        (["--user", "u", "--", "--user", "x"], {"--user": "u"}, ["--user", "x"]),
        (["--user=u", "--timeout", "3", "ls"], {"--user": "u", "--timeout": "3"}, ["ls"]),
        (["--stdin", "--", "cat"], {"--stdin": ""}, ["cat"]),
        ([], {}, []),
    ],
)
def test_split_command(rest: list[str], options: dict[str, str], command: list[str]) -> None:
    assert verbs.split_command(rest) == (options, command)


@pytest.mark.parametrize("rest", [["--user"], ["--nope", "--", "ls"], ["--timeout", "soon", "--", "ls"]])
def test_split_command_refuses(rest: list[str]) -> None:
    with pytest.raises(InputError):
        verbs.split_command(rest)


def test_table() -> None:
    row: dict[str, object] = {
        "name": "one", "state": "running", "pid": 7, "uptime": 3725, "accelerator": "tcg", "disk": "/d",
    }  # fmt: skip
    assert [line.split() for line in verbs.table([row]).splitlines()] == [
        ["NAME", "STATE", "PID", "UPTIME", "ACCEL", "DISK"],
        ["one", "running", "7", "1:02:05", "tcg", "/d"],
    ]
    assert verbs.table([]) == "no machine is running"


def test_base64_of_certificates_is_strict_enough() -> None:
    text = b"-----BEGIN CERTIFICATE-----\n" + base64.b64encode(b"no sequence") + b"\n-----END CERTIFICATE-----\n"
    with pytest.raises(ValueError, match="no certificate"):
        firmware.parse(text)


def test_further_disks_are_not_started_from() -> None:
    wanted = Machine("try", Path("/d/stick.raw"), disks=(Path("/d/a,b.qcow2"), Path("/d/c.raw")))
    argv = machine.arguments(wanted, dataclasses.replace(WIRING, disk_formats=("qcow2", "raw")))
    devices = [argv[at + 1] for at, word in enumerate(argv) if word == "-device" and "virtio-blk" in argv[at + 1]]
    assert devices == [
        "virtio-blk-pci,drive=disk0,bootindex=1", "virtio-blk-pci,drive=disk1", "virtio-blk-pci,drive=disk2",
    ]  # fmt: skip
    drives = [argv[at + 1] for at, word in enumerate(argv) if word == "-drive" and "id=disk" in argv[at + 1]]
    assert drives[1].endswith("file=/d/a,,b.qcow2")
    assert "format=qcow2" in drives[1]
    assert "format=raw" in drives[2]
