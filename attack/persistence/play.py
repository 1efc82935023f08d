# SPDX-License-Identifier: Apache-2.0
"""Playing all rows on one machine: equip it, plant everything, try everything, switch it off, and look at its next boot."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from attack import base as bases
from attack import boot
from attack.model import BaseName
from attack.persistence import payload
from attack.persistence.model import MAX_TEXT, OPEN, Canaries, Done, Live, Row, Runs, Sight, canaries_of
from attack.play import RECOVERY, Player
from freehold.errors import CommandError, FreeholdError
from freehold.vm import Machine, VirtualMachine
from freehold.vm.launch import adopt

#: Seconds for one script in the machine.
EACH_LIMIT = 150
#: So many of them for one way into the machine: where it breaks down, the culprit is one of these.
BATCH = 12
#: Seconds for what starts a little later: timers, units of users, events.
LATER = 15.0
SETTLE = 420.0
VERIFY_LIMIT = 900.0
#: Runs scripts one after the other, each on its own and for a while only, and says how each ended. Output goes to a file,
#: so that what a script leaves running holds nobody up.
EACH = """
import json, os, signal, subprocess, sys, tempfile
given = json.load(sys.stdin)
found = {}
for name, script in given["scripts"]:
    with tempfile.TemporaryFile() as out:
        one = subprocess.Popen(["/bin/sh", *given["options"], "-c", script], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                               start_new_session=True)
        try:
            status = one.wait(given["limit"])
        except subprocess.TimeoutExpired:
            os.killpg(one.pid, signal.SIGKILL)
            one.wait()
            status = -1
        size = out.seek(0, 2)
        out.seek(max(0, size - given["most"]))
        found[name] = [status, out.read().decode(errors="replace")]
print("\\n" + json.dumps(found))
"""
READ = """
import json, os
found = {}
for top in %r:
    for name in os.listdir(top) if os.path.isdir(top) else ():
        if not name.startswith("."):
            with open(os.path.join(top, name), errors="replace") as file:
                found[name] = found.get(name, "") + file.read(65536) + "\\n"
print(json.dumps(found))
"""


def each(
    vm: VirtualMachine, scripts: Sequence[tuple[str, str]], *, strict: bool = False, user: str | None = None,
    limit: int = EACH_LIMIT,
) -> dict[str, Done]:  # fmt: skip
    """Run scripts in the machine, in order; ``strict`` ends one at its first command that fails."""
    found: dict[str, Done] = {}
    for start in range(0, len(scripts), BATCH):
        some = scripts[start : start + BATCH]
        given = {"scripts": some, "options": ["-e"] if strict else [], "limit": limit, "most": MAX_TEXT}
        try:
            done = vm.exec(
                ["python3", "-IS", "-c", EACH], user=user, stdin=json.dumps(given).encode(), timeout=limit * len(some) + 60
            )
            # A start-up file of the user's own may have printed something before.
            ended = json.loads(done.text.strip().splitlines()[-1])
        except (FreeholdError, ValueError, IndexError) as error:
            told = error.message if isinstance(error, FreeholdError) else f"{type(error).__name__}: {error}"
            raise FreeholdError(f"the machine did not survive one of {', '.join(name for name, _ in some)}: {told}") from None
        found |= {name: Done(int(status), str(text)) for name, (status, text) in ended.items()}
    return found


def equip(player: Player, vm: VirtualMachine) -> None:
    """Compile the payloads and bring them into the machine, in its root's own hands."""
    work = player.stage.path("persistence-work")
    work.mkdir(parents=True, exist_ok=True)
    source = work / "payload.c"
    source.write_text(payload.SOURCE)
    kinds: dict[str, Sequence[str]] = {
        "native": ("-static",), "dynamic": (), "library.so": ("-shared", "-fPIC", "-DLIBRARY"),
    }  # fmt: skip
    vm.exec(["mkdir", "-p", payload.BENCH])
    for name, options in kinds.items():
        player.tools.run(["gcc", "-O1", *options, "-o", work / name, source], binds=[work])
        _copy(vm, work / name, f"{payload.BENCH}/{name}")
    vm.exec(["sh", "-e", "-c", payload.EQUIP], timeout=EACH_LIMIT)


def _copy(vm: VirtualMachine, source: Path, target: str) -> None:
    vm.write_file(target, source.read_bytes(), mode=0o755)


def machine(player: Player, name: BaseName, *, fresh: bool) -> VirtualMachine:
    """Start the base ``name``: a copy of it (``fresh``), or the very disk, variables and TPM as the last boot left them."""
    disk = bases.working_disk(player.stage)
    made = Machine(player.stage.name, disk, secure_boot=True, tpm=player.base.tpm, timeout=RECOVERY)
    if fresh:
        bases.copy(player.base.disk(name), disk)
        adopt(made, player.base.variables(name), player.base.tpm_state(name) if player.base.tpm else None, player.tools)
    vm = boot.run(made)
    try:
        vm.wait_answer(RECOVERY)
    except BaseException:
        player.stage.note("\n".join(vm.serial_tail()))
        vm.stop(hard=True)
        raise
    return vm


def settle(vm: VirtualMachine) -> str:
    """Wait until its units have started, and return systemd's word for how they did."""
    with contextlib.suppress(CommandError):
        return vm.exec(["systemctl", "is-system-running", "--wait"], check=False, timeout=SETTLE).text.strip()
    return "it did not settle"


def play(
    player: Player, name: BaseName, rows: Sequence[Row], live: Sequence[Live], collateral: Sequence[Live],
    say: Callable[[str], None],
) -> Sight:  # fmt: skip
    """Play everything on a copy of the base ``name``: two boots. The machine is off before and after."""
    player.off()
    began = time.monotonic()
    vm = machine(player, name, fresh=True)
    try:
        say(f"{name}: it runs after {time.monotonic() - began:.0f} s; planting {len(rows)}, trying {len(live)}")
        settle(vm)
        equip(player, vm)
        first = _boot_id(vm)
        # First what is tried at once: a planted preload has every later program complain, in words that would count as a refusal.
        tried = each(vm, [(one.id, one.act) for one in live], strict=True)
        planted = each(vm, [(row.id, row.plant) for row in rows], strict=True)
        # What is planted has to be on the disk.
        vm.exec(["sync"], check=False, timeout=EACH_LIMIT)
    finally:
        vm.stop(hard=True)
    say(f"{name}: planted after {time.monotonic() - began:.0f} s, {sum(not one.good for one in planted.values())} of them "
        "refused; cold reboot")  # fmt: skip
    vm = machine(player, name, fresh=False)
    try:
        target = settle(vm)
        say(f"{name}: it runs again after {time.monotonic() - began:.0f} s: {target}")
        return _look(vm, name, rows, collateral, first, target, planted, tried, began)
    finally:
        _keep_console(player, name, vm)
        vm.stop(hard=True)


def _look(
    vm: VirtualMachine, name: BaseName, rows: Sequence[Row], collateral: Sequence[Live], first: str, target: str,
    planted: Runs, tried: Runs, began: float,
) -> Sight:  # fmt: skip
    second = _boot_id(vm)
    failed = vm.exec(["systemctl", "--failed", "--no-legend", "--plain"], check=False).text.strip()
    absence = each(vm, [(row.id, row.absence) for row in rows if row.absence], strict=True)
    looks = each(vm, [(row.id, row.look) for row in rows if row.look])
    trace, lock = _trace(vm) if name != OPEN else ("", _lock(vm))
    # Each distinct trigger once, for all rows that wait for it.
    scripts = list(dict.fromkeys(row.trigger for row in rows if row.trigger))
    pulled = each(vm, [(str(number), script) for number, script in enumerate(scripts)])
    triggers = {row.id: pulled[str(scripts.index(row.trigger))] for row in rows if row.trigger}
    # A machine that is no longer sound may not even do this; then that is what is seen.
    works: dict[str, Done] = {}
    try:
        works = each(vm, [(one.id, one.act) for one in collateral], user="alice")
    except FreeholdError as error:
        works = {one.id: Done(-1, error.message[:MAX_TEXT]) for one in collateral}
    time.sleep(LATER)
    return Sight(
        first, second, planted, tried, absence, looks, triggers, works, canaries(vm), target, failed[:MAX_TEXT], lock, trace,
        round(time.monotonic() - began, 1),
    )  # fmt: skip


def canaries(vm: VirtualMachine) -> Canaries:
    """What lies in the canaries' directories."""
    done = vm.exec(["python3", "-IS", "-c", READ % (payload.DIRECTORIES,)])
    files: Mapping[str, str] = json.loads(done.text)
    return canaries_of(files)


def _boot_id(vm: VirtualMachine) -> str:
    return vm.guest.boot_id().replace("-", "")


def _lock(vm: VirtualMachine) -> str:
    status = json.loads(vm.exec(["freehold", "status", "--json"], timeout=60).stdout)
    return str(status["lock"]["state"])


def _trace(vm: VirtualMachine) -> tuple[str, str]:
    """(what status, verify and the kernel's log say, the lock's state)."""
    status = vm.exec(["freehold", "status", "--json"], check=False, timeout=EACH_LIMIT).text
    verify = vm.exec(["freehold", "verify", "--quick", "--json"], check=False, timeout=VERIFY_LIMIT).text
    log = vm.exec(["sh", "-c", "dmesg | grep freehold"], check=False).text
    return f"{status}\n{verify}\n{log}", str(json.loads(status)["lock"]["state"])


def _keep_console(player: Player, name: BaseName, vm: VirtualMachine) -> None:
    folder = player.stage.path("consoles")
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        (folder / f"persistence-{name}.log").write_text(boot.console_of(vm))
