# SPDX-License-Identifier: Apache-2.0
"""``freehold dbx``: what a machine does with an update before, while and after its firmware is asked."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_child import in_a_child
from lab_dbx import ADDON, TIME, Board, signed, signer, unsigned
from lab_release import Lab, manifest

from freehold.cli import main
from freehold.device import dbx as work
from freehold.device import dbx_verbs, efivars, stage
from freehold.device.sysroot import Sysroot, history
from freehold.errors import FreeholdError, InputError, NotHereError, VerificationError
from freehold.keys import dbx, device, efi, pe
from freehold.keys.issue import create, issue
from freehold.report import Report
from freehold.rescue import media
from freehold.rescue.console import Console
from freehold.rescue.media import Medium
from freehold.rescue.session import Session
from freehold.update.manifest import Uki, sha256

pytestmark = pytest.mark.build
LOADERS = ("EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An owner, another, a vendor with three release keys: ``old`` and ``gone`` shall go, ``new`` stays."""
    directory = tmp_path_factory.mktemp("keys")
    create("me", "owner", directory, None)
    create("other", "owner", directory, None)
    create("v", "vendor", directory, None)
    for name in ("old", "gone", "new"):
        issue(name, "release", directory, None, signer(directory, "v"))
    return directory


@pytest.fixture(scope="module")
def programs(keys: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("programs")
    return {name: signed(keys, name, place / name, ADDON) for name in ("old", "gone", "new")}


@pytest.fixture
def lab(keys: Path, programs: dict[str, Path], tmp_path: Path) -> Lab:
    """A machine whose boot loader and running release are by ``new``; an older release on it is by ``old``."""
    made = Lab(tmp_path / "lab")
    made.install("0.9", 900)
    shutil.copyfile(keys / "me.der", made.sysroot.keychain / "owner-me.der")
    for path in (made.sysroot.esp / "EFI/Linux").iterdir():
        shutil.copyfile(programs["old" if "-0.9-" in path.name else "new"], path)
    for name in LOADERS:
        (made.sysroot.esp / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(programs["new"], made.sysroot.esp / name)
    return made


@pytest.fixture
def board(lab: Lab, keys: Path, tmp_path: Path) -> Board:
    return Board(lab.sysroot, keys / "me.crt", tmp_path, [(keys / f"{name}.der").read_bytes() for name in ("me", "v")])


def update(keys: Path, *names: str, by: str = "me", more: tuple[efi.Signature, ...] = ()) -> bytes:
    entries = [dbx.certificate_entry((keys / f"{name}.der").read_bytes()) for name in names]
    return dbx.make([*entries, *more], TIME, signer(keys, by).sign_pkcs7)


def carry_out(lab: Lab, board: Board, data: bytes, *, force: bool = False, dry_run: bool = False) -> Report:
    return dbx_verbs.carry_out(lab.sysroot, data, force=force, dry_run=dry_run, append=board.append)


def snapshot(lab: Lab) -> dict[str, bytes]:
    """Every file but the lock's, which says who had it last."""
    files = (path for path in lab.root.rglob("*") if path.is_file() and path != lab.sysroot.lock_file)
    return {str(path): path.read_bytes() for path in files}


def test_the_firmware_refuses_what_was_revoked(lab: Lab, board: Board, keys: Path) -> None:
    stranger = efi.signature_list(efi.CERT_SHA256, [(efi.FIRMWARE_ONLY, bytes(32))])
    board.store("dbx", efi.IMAGE_SECURITY_DATABASE, stranger)
    data = update(keys, "gone", more=(dbx.program_entry(b"\1" * 32),))
    done = carry_out(lab, board, data)
    assert (done.status, done.data["changed"], done.data["vital"], done.data["stops"]) == (0, True, [], [])
    assert "CN=gone,OU=freehold-release" in done.text
    assert "Next: reboot" in done.text
    assert board.dbx.startswith(stranger)
    assert [one.data for one in efi.parse_lists(board.dbx)[1:]] == [(keys / "gone.der").read_bytes(), b"\1" * 32]
    assert [one["event"] for one in history(lab.sysroot)] == ["dbx"]
    # The same again, and one that has something new beside something old.
    assert carry_out(lab, board, data).data["changed"] is False
    assert len(board.writes) == 1
    more = carry_out(lab, board, update(keys, "gone", "old"))
    assert isinstance(more.data["entries"], list)
    assert [one["subject"] for one in more.data["entries"]] == ["CN=old,OU=freehold-release"]
    assert len(efi.parse_lists(board.dbx)) == 4


def test_a_dry_run_asks_nobody(lab: Lab, board: Board, keys: Path) -> None:
    before = snapshot(lab)
    done = carry_out(lab, board, update(keys, "gone"), dry_run=True)
    assert (done.status, done.data["changed"]) == (0, False)
    assert "would refuse" in done.text
    assert carry_out(lab, board, update(keys, "new"), dry_run=True).status == 1
    assert (snapshot(lab), board.writes) == (before, [])


def test_older_releases_that_stop_are_named(lab: Lab, board: Board, keys: Path) -> None:
    done = carry_out(lab, board, update(keys, "old"))
    assert done.data["vital"] == []
    assert isinstance(done.data["stops"], list)
    assert len(done.data["stops"]) == 2  # the boot entry and its rescue entry
    assert "would not start: signed under CN=old," in done.text


@pytest.mark.parametrize("place", [*LOADERS, "entry", "rescue"])
def test_what_the_machine_starts_with_is_not_refused(
    lab: Lab, board: Board, keys: Path, programs: dict[str, Path], place: str
) -> None:
    """The boot loader's copies, the running release and its rescue entry: each is enough."""
    running = {"entry": f"EFI/Linux/{lab.entries()[1]}", "rescue": str(lab.rescue(lab.running).relative_to(lab.sysroot.esp))}
    name = running.get(place, place)
    shutil.copyfile(programs["gone"], lab.sysroot.esp / name)
    before = snapshot(lab)
    with pytest.raises(InputError, match="keep the machine from starting") as caught:
        carry_out(lab, board, update(keys, "gone"))
    assert caught.value.faults == (f"{name} would not start: signed under CN=gone,OU=freehold-release",)
    assert "repair-esp" in (caught.value.hint or "")
    assert (snapshot(lab), board.writes) == (before, [])
    assert carry_out(lab, board, update(keys, "gone"), force=True).data["changed"] is True


def test_a_release_that_the_firmware_would_refuse_is_not_staged(
    lab: Lab, board: Board, keys: Path, programs: dict[str, Path]
) -> None:
    """It would be tried three times and lead back. Where Secure Boot is off, or another key signed it, it is staged."""

    def stage_it(version: str, by: str) -> None:
        data = programs[by].read_bytes()
        rescue = Uki("rescue.efi", sha256(data), len(data))
        made = manifest(version, 7000)[0]._replace(uki=rescue._replace(name="uki.efi"), rescue=rescue)
        directory = lab.sysroot.deployments / made.id
        directory.mkdir(parents=True)
        for name in ("uki.efi", "rescue.efi"):
            (directory / name).write_bytes(data)
        stage.commit(lab.sysroot, made)

    carry_out(lab, board, update(keys, "gone"))
    before = lab.entries()
    with pytest.raises(VerificationError, match=r"2\.0 would not start here: the firmware refuses it: signed under CN=gone,"):
        stage_it("2.0", "gone")
    assert lab.entries() == before
    stage_it("2.1", "new")
    assert [name for name in lab.entries() if name not in before and "-2.1-" in name]
    board.flag("SecureBoot", on=False)
    stage_it("2.2", "gone")
    assert [name for name in lab.entries() if "-2.2-" in name]


def test_issuers_digests_and_owners_count_too(lab: Lab, board: Board, keys: Path) -> None:
    def faults(data: bytes) -> tuple[str, ...]:
        with pytest.raises(InputError) as caught:
            carry_out(lab, board, data)
        return caught.value.faults

    assert len(faults(update(keys, "v"))) == 4
    assert "revoked itself" in faults(update(keys, more=(dbx.program_entry(pe.parse(unsigned(ADDON)).authenticode()),)))[0]
    assert "the owner me: intents that it signed" in faults(update(keys, "me"))[0]
    by_hash = efi.signed_part_sha256((keys / "v.der").read_bytes()) + bytes(16)
    assert len(faults(update(keys, more=(efi.Signature(efi.CERT_X509_SHA256, efi.OWNER, by_hash),)))) == 4
    (lab.sysroot.esp / LOADERS[0]).write_bytes(b"not a program")
    assert "cannot be judged" in faults(update(keys, "gone"))[0]
    assert board.writes == []


def test_only_the_owners_update_reaches_the_firmware(lab: Lab, board: Board, keys: Path) -> None:
    with pytest.raises(VerificationError, match="nobody whose word counts here"):
        carry_out(lab, board, update(keys, "gone", by="other"))
    with pytest.raises(VerificationError, match="no signed update of dbx"):
        carry_out(lab, board, b"junk")
    with pytest.raises(VerificationError, match="changed"):
        carry_out(lab, board, update(keys, "gone")[:-1] + b"\0")
    assert board.writes == []
    assert carry_out(lab, board, update(keys, "gone")).data["changed"] is True


def test_a_full_store_changes_nothing(lab: Lab, board: Board, keys: Path) -> None:
    board.room = 100
    before = snapshot(lab)
    with pytest.raises(FreeholdError, match=r"^the firmware's store of variables is full$") as caught:
        carry_out(lab, board, update(keys, "gone"))
    assert "efibootmgr" in (caught.value.hint or "")
    after = snapshot(lab)
    assert before.keys() ^ after.keys() <= {str(lab.sysroot.lock_file)}
    assert all(after[path] == content for path, content in before.items())
    board.room = 10_000
    assert carry_out(lab, board, update(keys, "gone")).data["changed"] is True


def test_a_firmware_that_does_not_keep_its_word_is_told(lab: Lab, board: Board, keys: Path) -> None:
    board.keeps = lambda lists: lists[: len(efi.certificate_list((keys / "gone.der").read_bytes()))]
    with pytest.raises(FreeholdError, match="its list lacks 1 of 2 entries"):
        carry_out(lab, board, update(keys, "gone", "old"))
    board.keeps = lambda lists: b""
    with pytest.raises(FreeholdError, match="its list lacks 1 of 1 entries"):
        carry_out(lab, board, update(keys, "old"))


def test_modes_of_the_firmware(lab: Lab, board: Board, keys: Path) -> None:
    board.flag("SetupMode", on=True)
    with pytest.raises(FreeholdError, match="setup mode") as caught:
        carry_out(lab, board, update(keys, "gone"))
    assert "--enrol force --dbx" in (caught.value.hint or "")
    board.flag("SetupMode", on=False)
    board.flag("SecureBoot", on=False)
    assert "Secure Boot is off" in carry_out(lab, board, update(keys, "gone")).text
    (board.place / f"SetupMode-{efi.GLOBAL_VARIABLE}").unlink()
    with pytest.raises(NotHereError, match="no Secure Boot"):
        carry_out(lab, board, update(keys, "old"))
    assert len(board.writes) == 1


def test_a_list_that_the_early_step_could_not_read_is_not_made(lab: Lab, board: Board, keys: Path) -> None:
    many = [efi.Signature(efi.CERT_X509, efi.OWNER, b"\x30\x05\x30\x03" + number.to_bytes(3, "big")) for number in range(1023)]
    (lab.sysroot.keychain / "revoked").write_text(f"freehold-revoked 1\n{'0' * 64} lost\n")
    board.store("dbx", efi.IMAGE_SECURITY_DATABASE, dbx.to_lists(many))
    board.room = 1 << 20
    with pytest.raises(FreeholdError, match="the early step could not read the list"):
        carry_out(lab, board, update(keys, "gone"))
    board.store("dbx", efi.IMAGE_SECURITY_DATABASE, dbx.to_lists(many[:-1]))
    assert carry_out(lab, board, update(keys, "gone")).data["changed"] is True
    board.store("dbx", efi.IMAGE_SECURITY_DATABASE, b"junk")
    with pytest.raises(FreeholdError, match="the firmware's dbx cannot be read"):
        carry_out(lab, board, update(keys, "old"))


def test_the_device_keys_end_is_said(lab: Lab, board: Board, keys: Path) -> None:
    place = lab.sysroot.root / "owner/device.facts"
    place.parent.mkdir(exist_ok=True)
    for keeper, said in (("file", False), ("tpm2", True)):
        place.write_bytes(device.write_facts(device.Facts(keeper, "ab" * 32, 1, 2)))  # type: ignore[arg-type]
        done = carry_out(lab, board, update(keys, "gone"), dry_run=True)
        assert (done.data["device_key_lost"], "the device key is lost" in done.text) == (said, said)


def test_the_verbs(
    lab: Lab, board: Board, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Down to the file that the kernel would take: attributes, then the update, in one piece."""
    monkeypatch.setattr("freehold.device.sysroot.Sysroot", lambda: lab.sysroot)
    assert main(["dbx", "show"]) == 0
    assert "refuses 0 certificates" in capsys.readouterr().out
    data = update(keys, "gone", more=tuple(dbx.program_entry(bytes([number]) * 32) for number in range(9)))
    (tmp_path / "dbx.auth").write_bytes(data)
    assert main(["dbx", "apply", str(tmp_path / "none")]) == 2
    assert main(["dbx", "apply", str(tmp_path / "dbx.auth"), "--dry-run", "--json"]) == 0
    out = capsys.readouterr()
    assert "No such file" in out.err
    assert len(json.loads(out.out)["entries"]) == 10
    # No firmware stands behind this file: what was written is read back as dbx, and is none.
    assert main(["dbx", "apply", str(tmp_path / "dbx.auth")]) == 1
    assert "the firmware's dbx cannot be read" in capsys.readouterr().err
    assert (board.place / f"dbx-{efi.IMAGE_SECURITY_DATABASE}").read_bytes() == struct.pack("<I", 0x67) + data
    board.store("dbx", efi.IMAGE_SECURITY_DATABASE, dbx.read(data).lists)
    assert main(["dbx", "show"]) == 0
    said = capsys.readouterr().out
    assert "CN=gone,OU=freehold-release" in said
    assert "and 1 more by hash" in said
    assert main(["dbx", "show", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["entries"]) == 10


#: The kernel's errors, by files that give them, and what is said.
REFUSALS = {
    "/dev/full": (errno.ENOSPC, "store of variables is full"),
    "/proc/self/oom_score_adj": (errno.EINVAL, "something that it does not know"),
    "/proc/self/mem": (errno.EIO, "could not write to its store"),
}


@pytest.mark.parametrize("file", REFUSALS)
def test_the_kernels_words_are_put_into_ours(file: str, tmp_path: Path) -> None:
    """Real errors of write(2), by files that are none of a firmware's."""
    sysroot = Sysroot(system=tmp_path)
    (tmp_path / efivars.PLACE).mkdir(parents=True)
    (tmp_path / efivars.PLACE / f"dbx-{efi.IMAGE_SECURITY_DATABASE}").symlink_to(file)
    code, said = REFUSALS[file]
    with pytest.raises(FreeholdError, match=said) as caught:
        efivars.append(sysroot, "dbx", efi.IMAGE_SECURITY_DATABASE, 0x67, b"update")
    assert str(efivars.answer(code)) == caught.value.message
    assert caught.value.hint


def test_every_answer_is_one_line_with_what_to_do() -> None:
    codes = (errno.ENOSPC, errno.EINVAL, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOENT, errno.EINTR, None)
    said = [efivars.answer(code) for code in codes]
    assert all("\n" not in one.message and one.hint for one in said)
    assert len({one.message for one in said}) == len(codes)


def test_a_place_that_cannot_be_written_is_not_the_firmwares_word(tmp_path: Path) -> None:
    with pytest.raises(FreeholdError, match="No such file"):
        efivars.append(Sysroot(system=tmp_path), "dbx", efi.IMAGE_SECURITY_DATABASE, 0x67, b"update")
    if os.getuid() != 0:
        pytest.skip("needs root, to be somebody else")
    place = Path(tempfile.mkdtemp(prefix="freehold-dbx-", dir="/tmp"))
    try:
        path = place / efivars.PLACE / f"dbx-{efi.IMAGE_SECURITY_DATABASE}"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
        place.chmod(0o755)

        def as_a_user() -> None:
            os.setuid(65534)
            assert path.read_bytes() == b""
            efivars.append(Sysroot(system=place), "dbx", efi.IMAGE_SECURITY_DATABASE, 0x67, b"update")

        assert in_a_child(as_a_user) == "FreeholdError: writing the firmware's variables is not permitted here"
    finally:
        shutil.rmtree(place)


def test_the_flag_that_protects_the_file_is_taken_off(tmp_path: Path) -> None:
    path = tmp_path / efivars.PLACE / f"dbx-{efi.IMAGE_SECURITY_DATABASE}"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, efivars._FS_IOC_SETFLAGS, struct.pack("i", efivars._IMMUTABLE))
    except OSError as error:
        pytest.skip(f"no immutable files here: {error.strerror}")
    finally:
        os.close(fd)
    with pytest.raises(PermissionError):
        path.write_bytes(b"")
    efivars.append(Sysroot(system=tmp_path), "dbx", efi.IMAGE_SECURITY_DATABASE, 0x67, b"update")
    assert path.read_bytes() == b"\x67\0\0\0update"


def test_reading_variables(tmp_path: Path) -> None:
    sysroot = Sysroot(system=tmp_path)
    path = tmp_path / efivars.PLACE / f"x-{efi.GLOBAL_VARIABLE}"
    path.parent.mkdir(parents=True)
    assert efivars.read(sysroot, "x", efi.GLOBAL_VARIABLE) is None
    for content, plain, own in ((b"", None, None), (b"\7\0\0\0value", b"value", None), (b"\6\0\0\0value", b"value", b"value")):
        path.write_bytes(content)
        assert efivars.read(sysroot, "x", efi.GLOBAL_VARIABLE) == plain
        assert efivars.read(sysroot, "x", efi.GLOBAL_VARIABLE, own=True) == own
    for content, said in ((b"\7\0", "cut short"), (bytes(efi.MAX_LIST_BYTES + 5), "larger")):
        path.write_bytes(content)
        with pytest.raises(FreeholdError, match=said):
            efivars.read(sysroot, "x", efi.GLOBAL_VARIABLE)


def test_a_rescue_needs_the_owner(lab: Lab, board: Board, keys: Path) -> None:
    owner = lab.sysroot.root / "owner"
    owner.mkdir(exist_ok=True)
    (owner / "id").write_text("ab" * 16 + "\n")
    logged: list[str] = []
    session = Session(lab.sysroot, log=logged.append, console="tty1")
    with pytest.raises(FreeholdError, match="needs the owner's credential"):
        session.refuse(update(keys, "gone"), append=board.append)
    assert board.writes == []
    session.unlock_with(keys / "me.key", lambda _: b"")
    assert "CN=gone" in session.refuse(update(keys, "gone"), append=board.append)
    assert len(board.writes) == 1
    assert "dbx: added to by me" in logged[-1]
    with pytest.raises(InputError, match="keep the machine from starting"):
        session.refuse(update(keys, "new"), append=board.append)


def test_the_rescue_consoles_command(
    lab: Lab, board: Board, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the stick to the file that the kernel would take; no firmware stands behind it, and that is said."""
    owner, stick = lab.sysroot.root / "owner", tmp_path / "stick"
    owner.mkdir(exist_ok=True)
    (owner / "id").write_text("ab" * 16 + "\n")
    stick.mkdir()
    data = update(keys, "gone")
    (stick / "dbx.auth").write_bytes(data)
    shutil.copyfile(keys / "me.key", stick / "me.key")
    (stick / "me.key").chmod(0o600)

    @contextlib.contextmanager
    def mounted(_medium: Medium, *, write: bool = False) -> Iterator[Path]:
        yield stick

    monkeypatch.setattr(media, "mounted", mounted)
    session = Session(lab.sysroot, log=lambda _: None, console="tty1")
    console = Console(session, secret=lambda _: "", media_list=lambda: [Medium("/dev/sdz1", "vfat", "FREEHOLDKEY")])
    console.command("dbx")
    console.command("key me.key")
    console.command("dbx other.auth")
    assert capsys.readouterr().out.count("refused: ") == 2
    assert not (board.place / f"dbx-{efi.IMAGE_SECURITY_DATABASE}").exists()
    console.command("dbx")
    assert "refused: the firmware's dbx cannot be read" in capsys.readouterr().out
    assert (board.place / f"dbx-{efi.IMAGE_SECURITY_DATABASE}").read_bytes() == struct.pack("<I", 0x67) + data
    board.store("dbx", efi.IMAGE_SECURITY_DATABASE, dbx.read(data).lists)
    console.command("dbx dbx.auth")
    assert "refuses all of that already" in capsys.readouterr().out


def test_the_plan_says_nothing_of_what_is_there_already(lab: Lab, board: Board, keys: Path) -> None:
    """What dbx has is the firmware's, also if it hits the boot loader: nothing would get worse."""
    board.store("dbx", efi.IMAGE_SECURITY_DATABASE, dbx.to_lists([dbx.certificate_entry((keys / "new.der").read_bytes())]))
    wanted = work.plan(lab.sysroot, update(keys, "new", "gone"), Session(lab.sysroot).keychain)
    assert (len(wanted.new), wanted.vital) == (1, ())
