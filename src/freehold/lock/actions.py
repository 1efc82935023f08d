# SPDX-License-Identifier: Apache-2.0
"""Locking and unlocking a running machine.

Lock, in this order, each step harmless if the power goes after it:

1. /etc's changes become an image named by its digest, the machine's own state is stored as typed data;
2. the owner's signature over the new intent, which names that image, is checked;
3. a fresh /etc, put together as every locked boot does it, goes over the running one; root's home and what
   root could have left for later are covered;
4. the intent is written: from here on every boot is locked;
5. kernel lockdown is raised and the guard latched: from here on this boot is.

Before 3 the kernel is given the release's list of kernel inputs, which costs an open machine nothing but unsealed modules.

Unlock writes a newer intent into the inbox. The early boot step is the only one that can put it into force.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from freehold import atomic, run
from freehold.boot import covers, machine_files
from freehold.device.sysroot import Sysroot
from freehold.errors import FreeholdError, InputError, NotHereError, VerificationError
from freehold.files import read_bytes
from freehold.keys.kernel import measure_verity
from freehold.keys.verify import Keychain
from freehold.lock import boot_record, commits, emergency_key, etc, floor, guard, inputs, intent, memory, mounts
from freehold.lock.covered import IGNORED
from freehold.lock.drift import Change, drift
from freehold.lock.intent import Intent
from freehold.lock.trees import Directory, Stack

ETC = Path("/etc")
FACTORY = Path("/usr/etc")
KEYCHAIN = Path("/usr/lib/freehold/keychain")
OWNER = Path("/sysroot/owner")
INBOX = Path("/sysroot/inbox")
STATE = Path("/sysroot/state")
RUN = Path("/run/freehold")
MOUNTS = Path("/proc/self/mountinfo")
#: What the image was built for, one word; `[lock] tier` of its recipe.
PROFILE = Path("/usr/lib/freehold/lock-tier")
CMDLINE = Path("/proc/cmdline")
LOCK_FILE = RUN / "lock.lock"
SYSROOT = Sysroot()


@dataclass(frozen=True)
class Captured:
    """What of /etc the next intent will carry."""

    changes: tuple[Change, ...]
    config: str | None
    left_out: tuple[str, ...]


def machine_id() -> str:
    """This machine's name in intents; :class:`NotHereError` elsewhere than on a Freehold machine."""
    try:
        return (OWNER / "id").read_text().strip()
    except FileNotFoundError:
        raise NotHereError("this is not a Freehold machine") from None
    except PermissionError:
        raise FreeholdError("only root may look at the lock", hint="use the console, or ssh as root") from None


def keychain() -> Keychain:
    """The keychain of the sealed tree."""
    return Keychain.from_directory(KEYCHAIN)


def standing() -> intent.Standing:
    """The intent in force on the disk, verified, as far as the TPM's memory allows."""
    path = OWNER / "intent"
    signed = path.read_bytes()[: intent.MAX_SIGNED_BYTES + 1] if path.exists() else None
    judged = intent.judge(signed, keychain=keychain(), machine=machine_id())
    return memory.judge(judged, signed, memory.load(OWNER))


def waiting() -> tuple[Intent | None, bool]:
    """The newest believed intent, and whether it still waits for the next boot."""
    path = INBOX / "intent"
    offered = path.read_bytes()[: intent.MAX_SIGNED_BYTES + 1] if path.exists() else None
    return intent.newest(standing(), offered, keychain=keychain(), machine=machine_id())


def changes() -> tuple[Change, ...]:
    """How the running /etc differs from the factory's, machine state apart."""
    return tuple(drift(Directory(FACTORY), Directory(ETC), ignore=IGNORED))


def capture() -> Captured:
    """Commit the running /etc to an image and the machine's own state to typed data."""
    state, left_out = machine_files.collect(ETC)
    machine_files.save(state, STATE)
    found = changes()
    config = None
    current, _ = waiting()
    if current is not None and current.config is not None and _is_committed(current.config):
        config = current.config
    elif found:
        with tempfile.TemporaryDirectory(dir=RUN, prefix="config-") as scratch:
            staging = Path(scratch) / "etc"
            etc.stage(found, Directory(ETC), staging)
            config = etc.write_image(staging, OWNER / "config")
    return Captured(found, config, tuple(left_out))


def _is_committed(config: str) -> bool:
    """Whether the running /etc is the committed ``config``: then the lock keeps that, and its place in the history."""
    from freehold.device import committed, etc_image

    try:
        image = etc_image.Image(read_bytes(OWNER / "config" / config, committed.MAX_IMAGE))
        measured = measure_verity(OWNER / "config" / config)
    except (OSError, FreeholdError):
        return False
    base = Stack(image, Directory(FACTORY))
    return measured == bytes.fromhex(config) and not any(drift(base, Directory(ETC), ignore=IGNORED))


def drop_links(layers: Path, serial: int) -> None:
    """Forget the layers of /etc above ``serial`` that were promised to intents which did not come into force.

    A change of requests makes such promises. A lock commits /etc, so what opens after it begins a fresh layer and must not
    find the old one under its number.
    """
    for path in layers.iterdir() if layers.is_dir() else ():
        if path.is_symlink() and path.name.isdigit() and int(path.name) > serial:
            path.unlink()
    if layers.is_dir():
        atomic.fsync_directory(layers)


def known_floor() -> floor.Known:
    """The rollback floor of this machine."""
    return floor.known(OWNER, KEYCHAIN)


def profile_scripts() -> intent.Scripts:
    """The tier of scripts that the running image was built for, which `freehold lock` proposes."""
    return "s2" if PROFILE.is_file() and PROFILE.read_text().strip() == "S2" else "s1"


def running_release() -> int:
    """The number of the release that runs, 0 when it has none."""
    return floor.release_of(CMDLINE.read_text(errors="replace"))


def next_serial() -> int:
    """A serial that no intent of this machine has had, as far as it knows."""
    known = known_floor()
    if known.serial:
        pending, _ = waiting()
        return max(known.serial, pending.serial if pending else 0) + 1
    # The owner's directory lost its intents: the TPM may remember one. Root can write this file, but on such a
    # machine nothing is locked.
    seen = boot_floor().get("serial")
    return seen + 1 if isinstance(seen, int) and 0 < seen < intent.MAX_NUMBER else 1


def boot_floor() -> dict[str, object]:
    """What the early step noted of the rollback floor at this boot (informational)."""
    try:
        found = json.loads((RUN / "boot.json").read_text()).get("floor")
    except (OSError, ValueError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}


def propose(
    lock: Literal["open", "audit", "locked"], config: str | None, *, wanted_floor: int | None = None, strict: bool = False,
    tier: intent.Tier = "privileged", scripts: intent.Scripts = "s1", emergency_ssh: str | None = None,
) -> Intent:  # fmt: skip
    """The intent that would follow the newest believed one, whose requests stay; ``strict``: no device key.

    ``emergency_ssh``: the digest of the key that may bypass the lock; it is said anew each time, or there is none.

    Without ``wanted_floor`` the rollback floor stays what it is, but the owner signs it anew.
    """
    kept = known_floor().floor or None
    if kept is not None and kept > running_release():
        # An older release runs while open. What it could not boot with is not signed; what is kept stays.
        kept = None
    current, _ = waiting()
    return Intent(
        machine=machine_id(), serial=next_serial(), lock=lock, since=int(time.time()), config=config,
        floor=kept if wanted_floor is None else wanted_floor, strict=strict, tier=tier, scripts=scripts,
        emergency_ssh=emergency_ssh,
        requests=current.requests if current else None,
    )  # fmt: skip


def lower_floor(number: int) -> Intent:
    """The newest believed intent with another rollback floor. Raises :class:`InputError` for one that would not lower it."""
    (current, _), now = waiting(), known_floor()
    if current is None:
        raise FreeholdError("this machine has no intent of the owner's, and so no rollback floor", hint="`freehold lock` sets it")
    if not 0 <= number < now.floor:
        raise InputError(
            f"{number} is not below the rollback floor {now.floor}", hint="it rises by itself, when an update proves healthy"
        )
    return dataclasses.replace(current, serial=next_serial(), floor=number)


def check_answer(signed: bytes) -> Intent:
    """The intent of a signed answer. Raises :class:`VerificationError` unless it may follow the standing one."""
    offer = intent.judge_offer(standing(), signed, keychain=keychain(), machine=machine_id())
    if not offer.accepted or offer.intent is None:
        raise VerificationError(f"the signed intent is refused: {offer.reason}", hint="make a new request on this machine")
    pending, is_pending = waiting()
    if is_pending and pending is not None and offer.intent.serial < pending.serial:
        # The next boot would take the other one, and undo this.
        raise VerificationError("the signed intent is refused: a newer one waits for the next boot")
    running = running_release()
    if (offer.intent.floor or 0) > running:
        raise VerificationError(
            f"the signed intent sets the rollback floor to {offer.intent.floor}, above the running release {running}",
            hint="this machine would not boot again; make a new request on it",
        )
    if offer.intent.emergency_ssh is not None:
        emergency_key.load(OWNER, offer.intent.emergency_ssh)
    config = offer.intent.config
    if config is not None:
        # Under the lock a commit waits in the inbox, with its image.
        image = next((path for top in (OWNER, INBOX) if (path := top / "config" / config).is_file()), None)
        # Its name is only a name: what is mounted over /etc is what the kernel measures.
        if image is None or measure_verity(image) != bytes.fromhex(config):
            raise VerificationError("the signed intent names a configuration that this machine does not have")
    return offer.intent


def ready(tier: intent.Tier) -> None:
    """Refuse to lock a machine on which something unsigned runs already that the lock would refuse to start.

    Raises :class:`FreeholdError` naming the processes, or what is mounted over the sealed tree.
    """
    hidden = mounts.over("/usr", MOUNTS.read_text(errors="surrogateescape"))
    if hidden:
        raise FreeholdError(
            f"something is mounted over the sealed tree, at {ascii(hidden[0])[1:-1]}: no program there is a signed one",
            hint="`systemd-sysext unmerge` where it is an extension, `umount` else, or reboot",
        )
    findings = guard.preflight(tier)
    if findings:
        named = sorted({f"{row.get('comm', '?')} (process {row.get('pid', '?')})" for row in findings})
        what, words = ("unsigned code", "preflight all-code") if tier == "all-code" else ("unsigned privileged code", "preflight")
        raise FreeholdError(
            f"{what} is running: {', '.join(named[:6])}",
            hint=f"end it, or reboot first; `/usr/lib/freehold/guardctl {words}` has the details",
        )
    for path in OWNER.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.lstat().st_nlink > 1 and path.parent.name != "work":
            raise FreeholdError(f"{path} has a second name elsewhere", hint="remove the other hard link first")


def bind_inputs() -> str:
    """Have the kernel itself enforce which modules and firmware it reads, as locked boots do.

    Returns ``enforced``, ``none`` (the release has no such list) or ``unknown`` (the firmware does not know its signer: the
    guard alone judges). Raises :class:`FreeholdError` when it fails where the next boot would end for it.
    """
    from freehold.device import inputs as files
    from freehold.seal import kernel_inputs

    name = kernel_inputs.named(CMDLINE.read_text(errors="replace"))
    if not name:
        return "none"
    # The kernel asks the signature, and the sealed command line has said the name: nothing else is believed here.
    whole = files.of_running(SYSROOT, name)
    error = inputs.enforce(whole, name, SYSROOT.system) if whole else errno.ENOENT
    if error and boot_own_certificates():
        why = inputs.FAULTS.get(error, os.strerror(error)) if whole else "the file is lost, and cannot be made again"
        raise FreeholdError(
            f"the kernel does not take this release's list of kernel inputs: {why}",
            hint="a locked boot would end here; `freehold upgrade` brings a release that it takes",
        )
    return "unknown" if error else "enforced"


def boot_own_certificates() -> bool:
    """Whether the firmware had certificates of the keychain at this boot: then a locked boot insists on kernel inputs."""
    try:
        return bool(json.loads((RUN / "boot.json").read_text()).get("keychain_own"))
    except (OSError, ValueError, AttributeError):
        return False


def enter(wanted: Intent, signed: bytes) -> None:
    """Put a checked, signed intent into force on a machine that is not locked yet."""
    bound = None
    with atomic.exclusive(LOCK_FILE, "the lock"):
        if wanted.lock == "locked":
            ready(wanted.tier)
            bound = bind_inputs()
            if wanted.config is not None:
                commits.adopt(OWNER.parent, wanted.config)
            renew_etc(wanted.config)
        atomic.write(OWNER / "intent", signed, mode=0o600)
        commits.keep(OWNER, signed)
        emergency_key.enforce(OWNER, RUN.parent, wanted)
        drop_links(OWNER / "etc", wanted.serial - 1)
        boot_record.note(RUN / "boot.json", wanted, bound)
        if wanted.lock != "open" and guard.mode() != wanted.lock:
            guard.latch(wanted)
        emergency_key.start_or_stop(wanted)


def leave(signed: bytes) -> None:
    """Drop a checked, signed intent where the next boot takes it up."""
    INBOX.mkdir(mode=0o700, exist_ok=True)
    atomic.write(INBOX / "intent", signed, mode=0o600)


def renew_etc(config: str | None) -> None:
    """Cover the running /etc with what every locked boot has: verified layers, typed state, changes in memory."""
    lower = [FACTORY]
    image = RUN / "config"
    if config is not None:
        image.mkdir(exist_ok=True)
        mounts.mount(OWNER / "config" / config, image, "erofs", mounts.MS_RDONLY | mounts.MS_NODEV)
        lower.insert(0, image)
    base, fresh = RUN / "etc", RUN / "etc.new"
    for path, mode in ((base, 0o700), (base / "upper", 0o755), (base / "work", 0o700), (fresh, 0o755)):
        path.mkdir(mode=mode, exist_ok=True)
    options = (
        f"lowerdir={':'.join(map(str, lower))},upperdir={base / 'upper'},workdir={base / 'work'},"
        "redirect_dir=off,metacopy=off,index=off,xino=off"
    )
    mounts.mount("etc", fresh, "overlay", mounts.MS_NODEV | mounts.MS_NOSUID, options)
    state, _ = machine_files.load(STATE)
    machine_files.apply(state, machine_id(), FACTORY, fresh)
    # /run is shared with every service's mount namespace; a bind of the finished /etc reaches them all.
    run.run(["mount", "--bind", fresh, ETC])
    run.run(["umount", fresh])
    fresh.rmdir()
    run.run(["mount", "-t", "tmpfs", "-o", "mode=700,nosuid,nodev", "roothome", "/var/roothome"])
    covers.cover_unbelieved(Path("/var"))
    run.run(["systemd-tmpfiles", "--create", "--prefix=/etc"], check=False)
    run.run(["systemctl", "daemon-reload"], check=False)
