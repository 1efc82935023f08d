# SPDX-License-Identifier: Apache-2.0
"""The rows of the persistence table: their shape, their shell and Python, and what they write in a sandbox."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from attack.persistence import payload, play
from attack.persistence.kinds import live
from attack.persistence.model import CLASSES, NATIVE, Live, Row, canaries_of
from attack.persistence.table import COLLATERAL, LIVE, ROWS, chosen
from attack.table import ROWS as TAMPER
from lab_persistence import Box

from freehold import run

#: Techniques of our list that have rows; what is not in it was merged into another of its lines.
TECHNIQUES = [
    *(1, 2, 4, 6, 7, 8, 9, 10, 11, 12, 14, 15, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 28, 29, 31, 32, 33, 35, 36, 38, 39, 40),
    *(41, 42, 43, 45, 46, 47, 49, 50, 51, 52, 54, 55, 56, 57, 58, 59, 60, 61, 62, 64, 65, 67, 68, 69, 70, 71, 72, 74, 75, 78, 80),
    *(81, 82, 84, 86, 88, 89, 90, 91, 92, 93, 94, 95, 96, 97, 98, 99, 100, 102, 103, 105, 106, 108, 110, 111, 112, 113, 114),
]
#: Plants that need more than files: a bus, firmware, users, device nodes, a program that is not everywhere.
NEED_A_MACHINE = {
    "a28-transient", "b14-hardware", "b23-preset", "b29-users-directory", "a106-node", "a09-hibernation", "a111-options",
    "a112-object", "a113-keychain", "a69-package", "b49-system-account",
}  # fmt: skip


EVERYTHING: tuple[Row | Live, ...] = (*ROWS, *LIVE, *COLLATERAL)


def scripts() -> Mapping[str, str]:
    found = {"equip": payload.EQUIP, "fire": payload.FIRE}
    for row in ROWS:
        parts = {"plant": row.plant, "trigger": row.trigger, "look": row.look, "absence": row.absence}
        found |= {f"{row.id}.{name}": text for name, text in parts.items() if text}
    return found | {f"{one.id}.act": one.act for one in (*LIVE, *COLLATERAL)}


def test_every_id_is_there_once_and_every_technique_has_a_row() -> None:
    ids = [one.id for one in EVERYTHING]
    assert sorted(set(ids)) == sorted(ids)
    numbers = {int(one[1:].partition("-")[0]) for one in ids if one.startswith("a")}
    assert sorted(numbers) == TECHNIQUES
    assert sum(one.startswith("b") for one in ids) >= 40
    assert {one.kind for one in EVERYTHING} == set(CLASSES)


def test_every_row_has_a_control_and_somebody_who_sees_it() -> None:
    for row in ROWS:
        assert row.canaries or row.look or row.absence or row.control == "closed", row.id
        for name in row.canaries:
            # A library's canary has the library's name.
            assert name.removesuffix(NATIVE) in (row.id, "libnss_b30"), row.id
            assert name.removesuffix(NATIVE).removeprefix("lib") in (row.plant + row.trigger), row.id
        assert row.control != "elsewhere" or row.canaries or row.look, row.id
        assert row.kind != "O" or row.control in ("fires", "absent", "elsewhere"), row.id


def test_most_places_are_tried_by_text_and_by_a_program() -> None:
    fires = [row for row in ROWS if row.control == "fires" and row.canaries]
    both = [row for row in fires if any(name.endswith(NATIVE) for name in row.canaries) and len(row.canaries) == 2]
    assert len(both) > 2 / 3 * len(fires)


def test_rows_of_the_other_table_are_there() -> None:
    known = {row.id for row in TAMPER}
    for row in ROWS:
        assert set(row.covered_by) <= known, row.id


def test_every_row_has_a_sentence_that_fits() -> None:
    for one in EVERYTHING:
        assert 6 <= len(one.title) < 90, one.id
        assert not one.title.endswith("."), one.id


def test_a_preload_is_planted_last() -> None:
    late = ["/etc/ld.so.preload" in row.plant for row in ROWS]
    assert late == sorted(late)
    assert any(late)


def test_nothing_is_fetched() -> None:
    for name, text in scripts().items():
        assert not re.search(r"https?://(?!192\.0\.2\.)|\b(curl|wget|nc|git)\b", text), name


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_scripts_parse(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    for name, text in scripts().items():
        done = run.run([shell, "-n"], stdin=text.encode(), check=False)
        assert (done.status, done.stderr) == (0, b""), name


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_no_error(tmp_path: Path) -> None:
    for name, text in scripts().items():
        (tmp_path / f"{name}.sh").write_text(text)
    done = run.run(["shellcheck", "-s", "sh", "-S", "error", *sorted(tmp_path.iterdir())], check=False)
    assert done.status == 0, done.text


def test_python_in_scripts_parses() -> None:
    found = 0
    for name, text in scripts().items():
        for code in re.findall(r"^python3 -IS - <<'\w+'\n(.*?)^(?:ACT|PLANTED)$", text, re.DOTALL | re.MULTILINE):
            compile(code, name, "exec")
            found += 1
    assert found > 8
    for code in (live.TYPED, live.STRIP, play.EACH, play.READ % ("x",)):
        compile(code, "text", "exec")


def test_choosing_rows() -> None:
    assert chosen([]) == (list(ROWS), list(LIVE))
    assert [row.id for row in chosen(["a24-unit"])[0]] == ["a24-unit"]
    planted, tried = chosen(["a04"])
    assert {name[:4] for name in [*(row.id for row in planted), *(one.id for one in tried)]} == {"a04-"}
    assert planted
    assert tried
    assert {row.kind for row in chosen(["U"])[0]} == {"U"}
    with pytest.raises(KeyError, match="nothing"):
        chosen(["nothing"])


#: Rows whose trigger needs no machine, with the program that it needs.
HERE = {
    "a60-profile": "bash", "a60-bashrc": "bash", "a70-kernel-hook": "run-parts", "a81-path": "bash", "b20-fsfreeze": "run-parts",
    "b27-ssh-client": "ssh", "b30-name-service": "ldconfig", "b31-openssl": "openssl", "b46-dpkg": "dpkg", "b47-perl": "perl",
}  # fmt: skip


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Box:
    for program in ("bwrap", "gcc", "ssh-keygen"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    made = Box(tmp_path_factory.mktemp("box"))
    if made.run("true").status != 0:
        pytest.skip("no sandbox can be made here")
    assert made.each([("equip", payload.EQUIP)])["equip"] == (0, "")
    return made


def test_plants_write_what_they_say(box: Box) -> None:
    """Where nothing is sealed but /usr; what is called closed says the words that it is expected to say."""
    found = box.each([(row.id, row.plant) for row in ROWS if row.id not in NEED_A_MACHINE])
    for row in ROWS:
        if row.id in NEED_A_MACHINE:
            continue
        status, text = found[row.id]
        if row.control == "closed":
            assert status != 0, row.id
            assert re.search(row.reason, text), (row.id, text)
        else:
            assert status == 0, (row.id, text)
    planted = box.top / "etc/systemd/system"
    assert (planted / "multi-user.target.wants/a24-unit.service").is_symlink()
    assert "ExecStart=-/bin/sh /var/lib/plant/fire a24-unit" in (planted / "a24-unit.service").read_text()
    assert "lock open\n" in (box.top / "sysroot/inbox/intent").read_text()
    accounts = json.loads((box.top / "sysroot/state/machine.json").read_text())["accounts"]
    assert [(one["name"], one["uid"]) for one in accounts] == [("a49zero", 0), ("a50new", 5150)]
    assert "disk:x:6:alice" in (box.top / "etc/group").read_text()
    assert f"root:{'$6$planted'}" in (box.top / "etc/shadow").read_text()
    assert "efi /EFI/Linux/freehold-3-abc.efi\n" in (box.top / "efi/loader/entries/a10.conf").read_text()


def test_triggers_make_plants_fire_where_they_need_no_machine(tmp_path: Path, box: Box) -> None:
    fresh = Box(tmp_path)
    (tmp_path / "etc/profile").write_text("for i in /etc/profile.d/*.sh; do . $i; done\n")
    (tmp_path / "etc/ssh/ssh_config").write_text("Include /etc/ssh/ssh_config.d/*.conf\n")
    (tmp_path / "etc/ld.so.conf").write_text("include /etc/ld.so.conf.d/*.conf\n")
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
    chosen_rows = [row for row in ROWS if row.id in HERE and shutil.which(HERE[row.id], path=path)]
    assert len(chosen_rows) > 5
    fresh.each([("equip", payload.EQUIP), *((row.id, row.plant) for row in chosen_rows)])

    def grown() -> set[str]:
        done = fresh.run("python3", "-IS", "-c", play.READ % (payload.DIRECTORIES,))
        return set(canaries_of(json.loads(done.text)))

    # Its own trigger and nothing else: that one plant fires by another's says little.
    assert grown() == set()
    for row in chosen_rows:
        said = fresh.each([(row.id, row.trigger)])
        assert set(row.canaries) <= grown(), (row.id, said)


def test_payloads_note_who_and_when(box: Box) -> None:
    library = f"LD_PRELOAD={payload.BENCH}/library.so /usr/bin/true\n"
    act = "rm -rf /var/canary /run/canary\nmkdir /var/canary\n"
    act += f"{payload.text('a24-unit')}\n{payload.native('a24-unit')}\n{library}{library}"
    generator = f"cp {payload.BENCH}/native /run/a29-native\n/run/a29-native /run/one /run/two\n"
    # As in a generator, which may write below /run only.
    spare = f"mv /var/canary /var/gone\n{payload.text('a29-text')}\n{generator}mv /var/gone /var/canary\n"
    (box.top / "etc/ld.so.preload").unlink(missing_ok=True)
    found = box.each([("act", act), ("spare", spare)])
    assert {name: status for name, (status, _) in found.items()} == {"act": 0, "spare": 0}, found
    done = box.run("python3", "-IS", "-c", play.READ % (payload.DIRECTORIES,))
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
    names = ("a24-unit", "a24-unit.native", "library.native", "a29-text", "a29-native.native")
    assert canaries_of(json.loads(done.text)) == dict.fromkeys(names, ((0, boot),))
    # Once in each boot, however often.
    assert (box.top / "var/canary/library.native").read_text().count("\n") == 1


def test_scripts_that_hang_or_leave_something_hold_nobody_up(box: Box) -> None:
    data = {"scripts": [("hangs", "echo before; sleep 60"), ("leaves", "sleep 60 & echo done"), ("fails", "false; echo after")],
            "options": ["-e"], "limit": 1, "most": 100}  # fmt: skip
    done = box.run("python3", "-IS", "-c", play.EACH, stdin=json.dumps(data).encode())
    found = json.loads(done.text.strip().splitlines()[-1])
    assert found == {"hangs": [-1, "before\n"], "leaves": [0, "done\n"], "fails": [1, ""]}


def test_absence_checks_name_what_is_there(box: Box) -> None:
    there = payload.no_program("no-such-program", "sh")
    found = box.each([("there", there), ("absent", payload.no_program("no-such-program"))])
    assert found["there"][0] != 0
    assert found["there"][1].strip().endswith("/sh")
    assert found["absent"] == (0, "")
