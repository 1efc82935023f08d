# SPDX-License-Identifier: Apache-2.0
"""Every row's change, made on a small disk of the reference disk's shape with the real tools: no machine is started."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from attack import gpt, pe, signer
from attack.base import copy
from attack.kinds import controls, disks, firmware, loader, owner, tree, uki, var
from attack.model import Row
from attack.table import ROWS, batches, chosen
from attack.target import ESP_NAME, ROOT_NAME, Target
from attack.variables import GLOBAL
from lab_attack import IMAGE, TRUTH, VERITY, pe_file, signed_intent, small_disk, target_of

from freehold.build.store import cache_directory
from freehold.build.tools import Tools, ensure
from freehold.errors import FreeholdError
from freehold.keys import verity
from freehold.keys.pe import parse
from freehold.keys.verify import Keychain
from freehold.lock import intent
from freehold.monitor import NullMonitor

pytestmark = pytest.mark.build
#: Needs a word that only releases with a floor have.
NOT_HERE = {"floor-older-release"}


@pytest.fixture(scope="module")
def tools() -> Tools:
    return ensure(cache_directory(), NullMonitor())


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("keys")
    for role in ("owner", "release"):
        signer.stranger(directory, role)
    return directory


@pytest.fixture(scope="module")
def original(tools: Tools, keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_disk(tools, tmp_path_factory.mktemp("disk"), signed_intent("c" * 32, signer.signer(keys, "owner")))


@pytest.fixture
def fresh(tools: Tools, keys: Path, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    disk = tmp_path / "disk.raw"
    copy(original, disk)
    target = target_of(tools, tmp_path, disk, keys)
    shutil.copyfile(tools.root / "usr/share/OVMF/OVMF_VARS_4M.fd", target.store)
    monkeypatch.setattr(Target, "object_of", lambda _self, path: f"/repo/objects/ee/{path.rpartition('/')[2]}.file")
    return target


@pytest.mark.parametrize("row", [row for row in ROWS if row.id not in NOT_HERE], ids=lambda row: row.id)
def test_every_row_changes_something(row: Row, fresh: Target, original: Path) -> None:
    store = fresh.store.read_bytes()
    row.change(fresh)
    changed = fresh.disk.read_bytes() != original.read_bytes()
    assert changed or fresh.extra or fresh.store.read_bytes() != store
    # What a person would plug in is at hand.
    for word in fresh.extra:
        if ",file=" in word:
            assert Path(word.rpartition(",file=")[2]).is_file()


def test_untouched_leaves_the_files_as_they_were(fresh: Target) -> None:
    before = fresh.uki(), fresh.standing(), fresh.root.read(fresh.image("2"))
    controls.untouched(fresh)
    assert (fresh.uki(), fresh.standing(), fresh.root.read(fresh.image("2"))) == before
    assert not fresh.root.exists("/var/scratch")
    assert fresh.root.flags(fresh.image("2")) & 0x100000


def test_one_bit_of_a_file(fresh: Target) -> None:
    tree.image_flipped(fresh)
    data = fresh.root.read(fresh.image("2"))
    assert [at for at, (a, b) in enumerate(zip(data, VERITY, strict=True)) if a != b] == [1200]
    assert data[1200] == VERITY[1200] ^ 1
    assert fresh.root.read(fresh.image("1")) == VERITY


@pytest.mark.parametrize("change", [tree.image_merkle, tree.object_merkle, tree.object_descriptor])
def test_verity_metadata_is_changed_and_nothing_else(change: Callable[[Target], None], fresh: Target) -> None:
    measured = verity.measure(VERITY)
    start = verity.metadata_offset(len(VERITY))
    names = [fresh.image("2"), *(fresh.object_of(path) for path in (tree.BIG, tree.DESCRIPTOR))]

    def metadata(path: str) -> bytes:
        blocks = -(-len(verity.metadata_bytes(measured)) // 4096)
        data = b""
        with fresh.disk.open("rb") as disk:
            for block in range(blocks):
                disk.seek(fresh.root.place(path, start + 4096 * block))
                data += disk.read(4096)
        return data

    good = verity.metadata_bytes(measured)
    assert all(metadata(name)[: len(good)] == good for name in names)
    change(fresh)
    bad = [name for name in names if metadata(name)[: len(good)] != good]
    assert len(bad) == 1
    at = next(i for i, (a, b) in enumerate(zip(metadata(bad[0]), good, strict=False)) if a != b)
    if change is tree.object_descriptor:
        # The root hash lies 16 bytes into the descriptor.
        assert good[at : at + 8] == measured.descriptor[16:24]
    else:
        assert at == 8
    assert fresh.root.read(bad[0]) == VERITY


def test_verity_can_be_taken_off(fresh: Target) -> None:
    path = fresh.object_of(tree.UNPROTECTED)
    tree.object_unprotected(fresh)
    assert not fresh.root.flags(path) & 0x100000
    assert fresh.root.read(path) != VERITY


def test_another_file_takes_a_name(fresh: Target) -> None:
    tree.image_other_deployment(fresh)
    assert (
        fresh.root.ask(f"stat {fresh.image('2')}").split()[1] == fresh.root.ask(f"stat {fresh.image('1')}").split()[1]
    )


def test_images_swapped_by_name(fresh: Target) -> None:
    path = fresh.esp.uki("1")
    fresh.esp.write(path, pe_file()[:-1] + b"1")
    one, two = fresh.esp.read(path), fresh.uki()
    uki.swapped(fresh)
    assert (fresh.uki(), fresh.esp.read(path)) == (one, two) != (two, one)


def test_intents_are_what_their_rows_say(fresh: Target, keys: Path) -> None:
    chain = Keychain.from_files({"owner-me.der": signer.signer(keys, "owner").certificate_der()}, "of the test")

    def judged() -> intent.Standing:
        return intent.judge(fresh.standing(), keychain=chain, machine=TRUTH.machine)

    assert judged().state == "locked"
    for change in (owner.intent_garbage, owner.intent_edited, owner.intent_other_machine, owner.intent_other_owner):
        good = fresh.standing()
        change(fresh)
        assert (judged().state, judged().intent) == ("locked", None), change.__name__
        fresh.root.write(owner.INTENT, good)
    # This one is the owner's own word, only older: nothing in it is wrong.
    owner.intent_older(fresh)
    found = judged()
    assert found.intent is not None
    assert (found.state, found.intent.serial) == ("open", 2)


def test_the_control_of_the_intents_would_open(fresh: Target, keys: Path) -> None:
    chain = Keychain.from_files({"owner-me.der": signer.signer(keys, "owner").certificate_der()}, "of the test")
    standing = intent.judge(fresh.standing(), keychain=chain, machine=TRUTH.machine)

    def accepted() -> bool:
        offered = fresh.root.read("/inbox/intent")
        return intent.judge_offer(standing, offered, keychain=chain, machine=TRUTH.machine).accepted

    owner.inbox_newer(fresh)
    assert accepted()
    for change in (owner.inbox_older, owner.inbox_other_owner):
        change(fresh)
        assert not accepted(), change.__name__


def test_the_owners_directory_elsewhere_is_whole(fresh: Target) -> None:
    owner.owner_elsewhere(fresh)
    assert "Type: symlink" in fresh.root.ask("stat /owner")
    assert fresh.root.read("/var/lib/owner/intent").startswith(b"freehold-intent 1\n")


def test_a_planted_unit_is_enabled(fresh: Target) -> None:
    owner.etc_planted(fresh)
    upper = "/owner/etc/3/upper/systemd/system"
    assert b"/var/canary/etc-upper" in fresh.root.read(f"{upper}/etc-upper.service")
    assert "etc-upper.service" in fresh.root.names(f"{upper}/multi-user.target.wants")
    assert "Type: symlink" in fresh.root.ask(f"stat {upper}/multi-user.target.wants/etc-upper.service")


def test_files_of_root_belong_to_root(fresh: Target) -> None:
    var.set_uid(fresh)
    told = fresh.root.ask("stat /var/lib/suid-sh")
    assert "Mode:  04755" in told
    assert "User:     0   Group:     0" in told


def test_the_boot_order_is_changed(fresh: Target) -> None:
    firmware.boot_entry(fresh)
    found = fresh.variables.all()
    number = int.from_bytes(found["BootOrder"][:2], "little")
    assert "\\EFI\\evil.efi".encode("utf-16-le") in found[f"Boot{number:04X}"]
    fresh.variables.set("BootOrder", GLOBAL, b"\x07\x00")
    assert fresh.variables.all()["BootOrder"] == b"\x07\x00"


def test_counters_are_changed_in_the_name(fresh: Target) -> None:
    firmware.counters_all_exhausted(fresh)
    assert fresh.esp.names("EFI/Linux") == [
        *(f"freehold-{version}-{IMAGE[version][:16]}+0-3.efi" for version in ("1", "2")),
        *(f"freehold-rescue-{version}-{IMAGE[version][:16]}.efi" for version in ("1", "2")),
    ]


def test_the_rescue_image_gets_a_newer_name(fresh: Target) -> None:
    data = fresh.esp.read(fresh.esp.rescue("2"))
    uki.rescue_renamed(fresh)
    assert fresh.esp.read(f"EFI/Linux/freehold-999-{IMAGE['2'][:16]}.efi") == data
    assert fresh.esp.names("EFI/Linux")[-1] == f"freehold-rescue-1-{IMAGE['1'][:16]}.efi"


def test_partitions_reordered_are_the_same_ones(fresh: Target) -> None:
    before = gpt.load(fresh.disk)
    disks.reordered(fresh)
    after = gpt.load(fresh.disk)
    assert {name: (one.start, one.size) for name, one in before.items()} == {
        name: (one.start, one.size) for name, one in after.items()
    }
    assert [before[name].number for name in (ESP_NAME, ROOT_NAME)] == [
        after[name].number for name in (ROOT_NAME, ESP_NAME)
    ]


def test_partitions_are_added_behind_the_others(fresh: Target) -> None:
    before = gpt.load(fresh.disk)
    disks.discoverable(fresh)
    after = gpt.load(fresh.disk)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"evil-home", "evil-usr", "evil-root", "evil-swap"}


def test_side_files_lie_beside_the_newest_image(fresh: Target) -> None:
    loader.addon_foreign(fresh)
    folder = f"{fresh.esp.uki('2')}.extra.d"
    assert fresh.esp.names(folder) == ["foreign.addon.efi"]
    data = fresh.esp.read(f"{folder}/foreign.addon.efi")
    assert loader.MARK.encode() in pe.content(data, ".cmdline").replace(b"\0", b"")
    assert parse(data).certificates[1] > 0


def test_debugfs_complaints_are_heard(fresh: Target) -> None:
    for wrong in (
        ["unlink /nothing"],
        ["set_inode_field /nothing flags 1"],
        ["write /nothing /x"],
        ["mkdir /owner"],
        ["nonsense"],
    ):
        with pytest.raises(FreeholdError, match="debugfs"):
            fresh.root.do(wrong)
    with pytest.raises(FreeholdError):
        fresh.root.read("/nothing")


def test_the_table_is_what_the_issue_asks_for() -> None:
    ids = [row.id for row in ROWS]
    assert len(ids) == len(set(ids))
    attacks = [row for row in ROWS if not row.control]
    assert len(attacks) >= 25
    for row in attacks:
        assert set(row.controls) <= {one.id for one in ROWS if one.control}, row.id
        assert "untouched" in row.controls, row.id
        assert "effective" not in row.ends, row.id
    for row in ROWS:
        assert row.probes or row.ends != ("effective",), row.id
        assert row.base == "locked" or row.control, row.id


def test_batches_keep_every_row_once() -> None:
    found = batches(list(ROWS))
    assert sorted(row.id for batch in found for row in batch) == sorted(row.id for row in ROWS)
    for batch in found:
        assert len({(row.base, row.secure_boot, row.together) for row in batch}) == 1
        assert len(batch) == 1 or all(row.together and not row.reason for row in batch)
    assert len(found) < len(ROWS) - 20  # or the table takes hours


def test_rows_of_one_boot_do_not_undo_each_other(fresh: Target) -> None:
    for batch in batches(list(ROWS)):
        if len(batch) > 1:
            for row in batch:
                row.change(fresh)


def test_choosing_rows() -> None:
    assert [row.id for row in chosen(["intent-older"])] == ["intent-older"]
    assert {row.area for row in chosen(["tree", "uki"])} == {"tree", "uki"}
    with pytest.raises(KeyError, match="nothing"):
        chosen(["nothing"])
