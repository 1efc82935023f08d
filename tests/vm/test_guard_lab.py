# SPDX-License-Identifier: Apache-2.0
"""The guard in a small guest on the stock kernel: what it refuses, what it leaves alone, what it records.

``FREEHOLD_TEST_TOOLS`` names a tools tree and ``FREEHOLD_TEST_KERNEL`` an unpacked kernel package
(with ``boot/vmlinuz-*`` and ``usr/lib/modules``); both are made in the cache otherwise.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from freehold import run
from freehold.build.packages import Archive, parse_uris
from freehold.build.tools import Tools, ensure
from freehold.monitor import NullMonitor
from freehold.vm import host

pytestmark = pytest.mark.vm

REPOSITORY = Path(__file__).resolve().parents[2]
KERNEL_PACKAGE = "linux-image-cloud-amd64"
KERNEL_OPTIONS = "console=ttyS0 quiet loglevel=4 panic=-1 lsm=landlock,lockdown,yama,apparmor,bpf,ipe"
TIMEOUT = 240.0


def names(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Allowed while open and under audit, refused under the lock.
REFUSED = names(
    """
    exec_unsigned exec_script exec_verity_unsigned exec_memfd ld_so_file preload python_callback map_anonymous
    protect_anonymous map_unsigned map_sealed_writable protect_unsigned protect_sealed_writable protect_modified
    shared_memory_drop veteran_thread veteran_process module_unsigned module_buffer ptrace_init ptrace_root vm_write
    own_memory_file core_pattern
    modprobe_path ipe_enforce apparmor_remove block_write rawio mount_usr mount_etc bind_etc_file
    bind_usr_new_interface move_a_mount pivot lazy_parent pin_remove pin_rename bpffs_umount load_tracepoint
    latch_down latch_all_code
    owner_write owner_deep_write owner_truncate owner_create owner_temporary owner_link_in owner_link_out
    owner_symlink owner_mkdir owner_rmdir owner_mknod owner_unlink owner_rename_in owner_rename_out owner_rename_self
    owner_chmod owner_chown owner_setxattr owner_removexattr owner_flags owner_through_bind
    user_setuid_unsigned user_setgid_unsigned
    secret_read secret_list secret_through_bind secret_through_path_descriptor secret_through_overlay
    secret_through_mount secret_by_handle owner_by_handle secret_partition secret_partition_as_udev secret_disk
    secret_disk_by_node scsi_generic disk_unbind module_hands_out_disks perf_event tracefs_write bpf_reads_memory
    bpf_reads_memory_as_admin another_program updater_child updater_next_program updater_reads_etc
    updater_without_launcher updater_copied_launcher updater_in_namespace updater_in_pid_namespace updater_in_jail
    updater_filtered updater_shared_directories updater_looked_into updater_memory updater_attached
    mount_over_owner mount_over_owner_disk umount_owner_disk mount_usr_through_peer mount_usr_in_peer_namespace
    umount_bpffs_in_peer_namespace
    dash_script bash_script dash_source bash_source bash_source_as_input bash_source_input bash_in_subshell
    bash_child_reads dash_script_says_so dash_starts_unsigned
    bash_environment etc_changed_source python_script python_script_link python_script_options python_script_dashes
    python_import perl_script perl_options perl_import python_script_called_library python_script_called_link
    python_script_called_here bash_accounts_as_script bash_other_accounts
    emergency_owner emergency_loader_list emergency_host_key emergency_shell_alone emergency_without_launcher
    emergency_copied_launcher emergency_detour emergency_by_auth emergency_in_namespace emergency_shared_directories
    emergency_filtered emergency_second_session emergency_child_after_end emergency_while_stopped emergency_looked_into
    emergency_attached emergency_entered emergency_auth_looked_into terminal_typed
    """
)
#: Allowed in every mode: sealed and signed code, users, containers, harmless administration.
FREE = names(
    """
    exec_sealed exec_sealed_script exec_dynamic exec_signed python_ctypes jit_allowed map_sealed protect_sealed
    module_sealed harmless_sysctl block_read mount_tmp mount_usr_own_namespace remount_propagation lazy_leaf
    denials_map_read other_map_write load_socket_filter owner_read outside_write
    veteran_user user_exec_unsigned user_exec_script user_exec_memfd user_ld_so_file user_preload user_map_anonymous
    user_map_unsigned user_protect_modified user_ptrace_own user_own_memory_file
    container_exec_unsigned container_exec_script container_exec_memfd container_map_anonymous
    updater_reads others_looked_into admin_after_load
    container_map_unsigned container_protect_modified container_mount_usr_own_namespace container_ptrace_own
    sealed_shell_script sealed_source etc_source shell_reads_input dash_reads_input shell_reads_kernel shell_names_image
    shell_reads_accounts shell_pipe shell_heredoc shell_writes python_sealed_script python_sealed_link python_command perl_command
    user_dash_script user_bash_source user_python_script user_python_import user_perl_script user_bash_child_reads
    container_dash_script container_python_script container_another_program_map
    user_exec_sealed user_exec_sealed_script user_exec_dynamic user_exec_signed user_jit_allowed user_map_sealed
    user_sealed_shell_script user_sealed_source user_etc_source user_shell_reads_input user_python_sealed_script
    user_python_sealed_link user_python_command container_exec_sealed container_python_command old_script_reads_data
    veteran_script_reads_data python_sealed_directory python_sealed_here python_sealed_other_name
    dash_command dash_standard_input dash_prompt bash_plus bash_option_argument bash_init_file bash_cluster python_module
    perl_module dash_fifo dash_fifo_called_library dash_plain_options dash_by_itself dash_script_reads_fifo user_dash_command
    user_dash_standard_input user_dash_fifo container_dash_command dash_lone_dash dash_lone_dash_input
    emergency_unsigned emergency_grandchild emergency_source emergency_anonymous
    """
)
#: Of these, what all-code refuses as well: everybody's code.
ALL_CODE = names(
    """
    veteran_user user_exec_unsigned user_exec_script user_exec_memfd user_ld_so_file user_preload user_map_anonymous
    user_map_unsigned user_protect_modified user_dash_script user_bash_source user_bash_child_reads user_python_script
    user_python_import user_perl_script container_exec_unsigned container_exec_script container_exec_memfd
    container_map_anonymous container_map_unsigned container_protect_modified container_dash_script
    container_python_script container_another_program_map
    """
)
#: Refused in every mode: nobody outside the guard has a reason to open the maps that decide.
NEVER = {"mode_map_write", "mode_map_read", "inode_map_write", "denials_map_write"}
#: Tried under the lock only, since each would end the guard.
FATAL = {
    "real_pin_unlink", "real_pin_directory", "real_bpffs_umount", "real_bpffs_lazy", "real_sys_lazy", "still_refused",
}  # fmt: skip
#: Rules that the list of checks must have set off.
RULES = names(
    """
    exec gain map map-writable anonymous modified ptrace capability kernel-file block helper memory-file securityfs
    mount umount pivot pin map-fd program owner secret observe identity script terminal
    """
)


#: Of these, what the tier S2 refuses to the privileged: code that is no file.
S2 = names(
    """
    dash_command dash_standard_input dash_prompt bash_plus bash_option_argument bash_init_file bash_cluster python_module
    perl_module dash_fifo dash_fifo_called_library python_ctypes sealed_source etc_source shell_reads_input
    dash_reads_input shell_reads_kernel shell_names_image shell_reads_accounts shell_pipe shell_heredoc shell_writes
    python_sealed_here python_command
    perl_command dash_lone_dash_input
    """
)


@dataclass
class Report:
    """What the guest said: results by check and mode, guardctl's answers in order, its exit statuses, the console."""

    console: str
    got: dict[str, dict[str, int]] = field(default_factory=dict)
    said: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    status: dict[str, list[int]] = field(default_factory=dict)


def parse(console: str) -> Report:
    report = Report(console)
    for line in console.splitlines():
        word, _, rest = line.partition(" ")
        if word == "@@":
            result = json.loads(rest)
            report.got.setdefault(result["check"], {})[result["mode"]] = result["got"]
        elif word == "@exit":
            command, status = rest.split()
            report.status.setdefault(command, []).append(int(status))
        elif word.startswith("@") and rest.startswith("{"):
            report.said.setdefault(word[1:], []).append(json.loads(rest))
    return report


def tools_tree() -> Tools:
    if given := os.environ.get("FREEHOLD_TEST_TOOLS"):
        return Tools(Path(given), "given")
    return ensure(cache(), NullMonitor())


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "freehold"


def kernel_tree(tools: Tools, pocket: str = "") -> Path:
    """The stock kernel, of ``pocket`` where one is named, unpacked; downloaded once."""
    if (given := os.environ.get("FREEHOLD_TEST_KERNEL")) and not pocket:
        return Path(given)
    tree = cache() / "-".join(filter(None, ["guard-lab-kernel", pocket]))
    if not tree.is_dir():
        partial = tree.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        # The builder's own way to packages: a fresh tools tree has no package lists.
        pockets = ("security", "updates", *filter(None, [pocket]))
        archive = Archive(tools, cache(), tools.sources(pockets), partial, recommends=False)
        tools.run(["sh", "-c", "dpkg-scanpackages . /dev/null > Packages"], binds=[partial], cwd=partial)
        archive.refresh()
        release = f"/trixie-{pocket}" if pocket else ""
        install = ["apt-get", *archive.options(), "install", "--print-uris", "-y", "-qq", f"{KERNEL_PACKAGE}{release}"]
        plan = parse_uris(tools.run(install, binds=[archive.directory], ro_binds=[archive.debs, partial]).text)
        # The kernel's own packages: backports have its image and its modules in two.
        packages = [name.split("_")[0] for name, _, _ in plan.files if re.match(r"linux-(image|binary|modules)-\d", name)]
        tools.run(
            ["apt-get", *archive.options(), "download", *(f"{name}{release}" for name in packages)],
            network=True, binds=[partial, archive.directory], ro_binds=[archive.debs], cwd=partial,
        )  # fmt: skip
        for deb in partial.glob("*.deb"):
            tools.run(["dpkg-deb", "-x", deb, partial], binds=[partial])
            deb.unlink()
        partial.rename(tree)
    return tree


def vmlinuz_of(kernel: Path) -> Path:
    """Where Debian's package has it: in /boot, or beside its modules."""
    return next(path for place in ("boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz") for path in kernel.glob(place))


@dataclass(frozen=True)
class Built:
    """The laboratory's initrd and disks, for as many boots as are wanted."""

    tools: Tools
    vmlinuz: Path
    work: Path

    def boot(self, *options: str, timeout: float = TIMEOUT) -> Report:
        """One boot, with these words more on the kernel's command line; the disks are as new each time."""
        for name in ("disk", "owner"):
            shutil.copyfile(self.work / name, self.work / f"{name}.used")
        console = self.work / "console"
        with console.open("wb") as sink:
            run.run(
                [
                    *host.qemu(self.tools), "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-machine", "q35",
                    "-m", "768", "-nographic", "-no-reboot", "-net", "none", "-kernel", self.vmlinuz,
                    "-initrd", self.work / "initrd", "-drive", f"file={self.work / 'disk.used'},if=virtio,format=raw",
                    "-drive", f"file={self.work / 'owner.used'},if=virtio,format=raw",
                    "-append", " ".join([KERNEL_OPTIONS, *options]),
                ],
                timeout=timeout, stdout=sink,
            )  # fmt: skip
        report = parse(console.read_text(errors="replace").replace("\r", ""))
        assert "@end" in report.console, report.console[-4000:]
        return report


@pytest.fixture(scope="module", params=["", pytest.param("backports", marks=pytest.mark.campaign)], ids=["stock", "backports"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    tools = tools_tree()
    kernel = kernel_tree(tools, request.param)
    work = tmp_path_factory.mktemp("guard-lab")
    out = work / "out"
    commands: Sequence[Sequence[str | Path]] = (
        ["make", "-s", "-f", "bpf/guard.mk", f"GUARD_OUT={out}"],
        ["sh", "tests/vm/guard_lab/build.sh", out, kernel, work],
    )
    for command in commands:
        tools.run(command, binds=[work], ro_binds=[REPOSITORY, kernel], cwd=REPOSITORY)
    yield Built(tools, vmlinuz_of(kernel), work)
    shutil.rmtree(work, ignore_errors=True)


@pytest.fixture(scope="module")
def lab(built: Built) -> Report:
    return built.boot()


@pytest.fixture(scope="module")
def all_code(built: Built) -> Report:
    return built.boot("lab.all-code")


@pytest.fixture(scope="module")
def s2(built: Built) -> Report:
    return built.boot("lab.S2")


def test_every_check_is_judged(lab: Report) -> None:
    assert set(lab.got) == REFUSED | FREE | NEVER | FATAL


def test_controls_succeed_while_open(lab: Report) -> None:
    failed = {name: lab.got[name].get("open") for name in REFUSED | FREE if lab.got[name].get("open") != 0}
    assert not failed


def test_audit_refuses_nothing(lab: Report) -> None:
    failed = {name: lab.got[name].get("audit") for name in REFUSED | FREE if lab.got[name].get("audit") != 0}
    assert not failed


def test_locked_refuses_the_list(lab: Report) -> None:
    allowed = {name for name in REFUSED | FATAL if lab.got[name].get("locked") == 0}
    assert not allowed
    # Programs report a failed load in their own way; everything else is the guard's EPERM.
    other = {name: got["locked"] for name, got in lab.got.items() if name in REFUSED | FATAL and got["locked"] != 1}
    assert set(other) == {"ld_so_file", "dash_script_says_so"}


def test_locked_leaves_the_rest_alone(lab: Report) -> None:
    failed = {name: lab.got[name].get("locked") for name in FREE if lab.got[name].get("locked") != 0}
    assert not failed


def test_maps_are_closed_in_every_mode(lab: Report) -> None:
    assert {tuple(lab.got[name].get(mode) for mode in ("open", "audit", "locked")) for name in NEVER} == {(1, 1, 1)}


def test_mode_only_rises(lab: Report) -> None:
    assert [said["mode"] for said in lab.said["status"]] == ["open", "open", "audit", "locked", "locked"]
    assert [said["mode"] for said in lab.said["audit"]] == ["audit"]
    assert lab.status["audit"] == [0, 1]
    assert lab.status["locked"] == [0]


def test_open_records_nothing_and_the_others_everything(lab: Report) -> None:
    opened, audited, locked = lab.said["denials"]
    assert opened["denials"] == []
    assert set(lab.said["status"][1]["counters"].values()) == {0}
    # `modified` and the like need a refusal of their own kind, not of a neighbour's.
    assert {denial["rule"] for denial in audited["denials"]} == RULES
    assert {denial["rule"] for denial in locked["denials"] if denial["mode"] == "locked"} == RULES
    assert {rule for rule, count in lab.said["status"][3]["counters"].items() if count} == RULES


def test_records_name_the_file_and_the_user(lab: Report) -> None:
    denials = lab.said["denials"][2]["denials"]
    unsigned = [denial for denial in denials if denial["rule"] == "exec" and denial["path"].endswith("/setuid")]
    assert [(denial["comm"], denial["uid"], denial["mode"]) for denial in unsigned] == [("lab", 1000, "locked")]
    # A program that a shell starts is refused as a program, not as a shell's script.
    assert {denial["rule"] for denial in denials if denial["comm"] == "dash" and denial["path"] == "/lab"} == {"exec"}
    assert all(denial["count"] >= 1 and denial["last"] > 0 for denial in denials)
    assert any(denial["path"] == "owner/a/b/c/file" or denial["path"] == "b/c/file" for denial in denials)


def test_what_the_emergency_session_does_is_recorded(lab: Report) -> None:
    audited, locked = ([row for row in said["denials"] if row["path"] == "/exempt"] for said in lab.said["denials"][1:])
    # The program starts, and the kernel maps it.
    for rows, mode in ((audited, "audit"), (locked, "exempt")):
        assert {(row["rule"], row["comm"], row["mode"]) for row in rows} == {("exec", "bash", mode), ("map", "exempt", mode)}


def test_preflight_finds_what_ran_before_the_guard(lab: Report) -> None:
    # Played before the checks and after them: all others that are privileged map the sealed tree only.
    for said in lab.said["preflight"]:
        assert {row["path"] for row in said["mappings"]} == {"/init"}
        assert len({row["pid"] for row in said["mappings"]}) == 1
        assert said["writers"] == []
        assert said["readers"] == []


def test_no_complaint_of_the_kernel(lab: Report, all_code: Report, s2: Report) -> None:
    for report in (lab, all_code, s2):
        assert "BUG:" not in report.console
        assert "WARNING:" not in report.console
        assert "Oops" not in report.console


def test_all_code_binds_everybody(all_code: Report) -> None:
    allowed = {name for name in (REFUSED | FATAL | ALL_CODE) - {"latch_all_code"} if all_code.got[name].get("locked") == 0}
    assert not allowed
    failed = {name: all_code.got[name].get("locked") for name in FREE - ALL_CODE if all_code.got[name].get("locked") != 0}
    assert not failed


def test_all_code_has_its_controls_and_its_audit(all_code: Report) -> None:
    for mode in ("open", "audit"):
        failed = {name: all_code.got[name].get(mode) for name in REFUSED | FREE if all_code.got[name].get(mode) != 0}
        assert not failed, mode
    # A user's set-uid program is refused as code, before it is asked what it would gain.
    opened, audited, locked = all_code.said["denials"]
    assert opened["denials"] == []
    assert {denial["rule"] for denial in audited["denials"]} == RULES - {"gain"}
    for mode, said in (("audit", audited), ("locked", locked)):
        users = {(denial["rule"], denial["mode"]) for denial in said["denials"] if denial["uid"] == 1000}
        assert {(rule, mode) for rule in ("exec", "map", "anonymous", "modified", "script", "identity")} <= users


def test_s2_starts_privileged_interpreters_for_signed_scripts_only(s2: Report) -> None:
    allowed = {name for name in REFUSED | FATAL | S2 if s2.got[name].get("locked") == 0}
    assert not allowed
    failed = {name: s2.got[name].get("locked") for name in FREE - S2 if s2.got[name].get("locked") != 0}
    assert not failed


def test_s2_has_its_controls_and_its_audit(s2: Report) -> None:
    for mode in ("open", "audit"):
        failed = {name: s2.got[name].get(mode) for name in REFUSED | FREE if s2.got[name].get(mode) != 0}
        assert not failed, mode
    _, audited, locked = s2.said["denials"]
    for mode, said in (("audit", audited), ("locked", locked)):
        launched = [denial for denial in said["denials"] if (denial["rule"], denial["mode"]) == ("launch", mode)]
        assert {denial["path"].rpartition("/")[2] for denial in launched} >= {"dash", "bash", "python3.13", "perl"}
        assert {denial["uid"] for denial in launched} == {0}


def test_the_tier_is_said_with_the_latch(lab: Report, all_code: Report, s2: Report) -> None:
    assert {said["scripts"] for said in lab.said["status"] + all_code.said["status"]} == {"S1"}
    assert [said["scripts"] for said in s2.said["status"]] == ["S1"] * 2 + ["S2"] * 3
    assert {said["tier"] for said in lab.said["status"]} == {"privileged"}
    # Once latched it stays, also when a latch is asked for without it.
    assert [said["tier"] for said in all_code.said["status"]] == ["privileged"] * 2 + ["all-code"] * 3
    # The other way it is refused: all-code cannot be added to this lock any more.
    assert lab.got["latch_all_code"]["locked"] == 1
    assert all_code.got["latch_all_code"]["locked"] == 0


#: Tries of each race, open and under the lock: enough to see that it is one; the campaign plays 10,000 under the lock.
FEW_TRIES, MANY_TRIES = 20, 600
CAMPAIGN_TIMEOUT = 2400.0
RACE_RESULT = REPOSITORY / "fuzz/results/race.json"
#: What the kernel itself closes, guard or no guard: nothing is shown by these, and they are not counted.
VOID = names("held")


def judge_races(report: Report, tries: int) -> list[dict[str, Any]]:
    """The table of one boot: nothing was won under the lock."""
    rows = {(row["mode"], row["technique"]): row for row in report.said["race"]}
    techniques = list(dict.fromkeys(row["technique"] for row in report.said["race"]))
    assert set(rows) == {(mode, name) for mode in ("open", "locked") for name in techniques}
    assert {row["tries"] for row in rows.values()} == {tries}
    assert {name: rows["locked", name] for name in techniques if rows["locked", name]["wins"]} == {}
    assert not {"BUG:", "WARNING:", "Oops"} & set(report.console.split())
    counted = ("tries", "wins", "trusted", "refused", "other")
    return [
        {"technique": name, **{f"{mode}_{key}": rows[mode, name][key] for mode in ("open", "locked") for key in counted}}
        for name in techniques
    ]


def fires(table: Sequence[Mapping[str, Any]]) -> set[str]:
    """The techniques that won while the guard was open."""
    return {row["technique"] for row in table if row["open_wins"]}


def test_races_are_lost(built: Built) -> None:
    table = judge_races(built.boot(f"races={FEW_TRIES}"), FEW_TRIES)
    # In so few tries not each of them wins while open.
    assert len(fires(table)) >= 8
    # The trusted program has to have had its turns, or nothing was between check and use.
    assert sum(row["locked_trusted"] for row in table) > 0


@pytest.mark.campaign
def test_ten_thousand_races_are_lost(built: Built) -> None:
    table = judge_races(built.boot(f"races={MANY_TRIES}", timeout=CAMPAIGN_TIMEOUT), MANY_TRIES)
    assert {row["technique"] for row in table} - fires(table) == VOID
    counted = [row for row in table if row["technique"] not in VOID]
    tries, wins = (sum(row[f"locked_{key}"] for row in counted) for key in ("tries", "wins"))
    assert tries >= 10_000
    result = {"schema": "freehold-race-1", "tries": tries, "wins": wins, "void": sorted(VOID), "techniques": table}
    RACE_RESULT.write_text(json.dumps(result, indent=1) + "\n")
