# SPDX-License-Identifier: Apache-2.0
"""``freehold verify``: the running machine. Reads what the kernel says and lets the pure modules judge it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from uuid import UUID

from freehold.device import efivars, verify_keys, verify_machine
from freehold.device.sysroot import Sysroot, read_text
from freehold.device.verify_deployments import Sealed
from freehold.device.verify_findings import MACHINE, Finding, deviation, note
from freehold.device.verify_kernel import Probe, read_regular
from freehold.errors import FreeholdError
from freehold.files import read_bytes
from freehold.keys.efi import GLOBAL_VARIABLE, IMAGE_SECURITY_DATABASE
from freehold.keys.verify import Keychain
from freehold.lock import inputs, intent, memory
from freehold.seal import kernel_inputs

_SHIM = "605dab50-e046-4300-abb6-3dd810dd8b23"
_SYSTEMD_BOOT = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"


def judge(sysroot: Sysroot, keychain: Keychain, lines: Sealed, kernel: str, probe: Probe) -> list[Finding]:
    """Every finding about the running machine.

    ``lines``: the command lines in the booted deployment's kernel images; ``kernel``: that kernel's release.
    """
    running = read_text(sysroot.system / "proc/cmdline", 64 << 10).strip()
    sealed = lines.of(running)
    standing = standing_of(sysroot, keychain)
    locked = standing.state == "locked"
    found = verify_machine.judge_command_line(running, sealed)
    found += _mounts(sysroot, standing)
    found += _ring(sysroot, keychain, probe)
    found += _firmware(sysroot)
    found += verify_machine.judge_lockdown(
        read_text(sysroot.system / "sys/kernel/security/lockdown", 256), locked=locked
    )
    found += _inputs(sysroot, running, locked=locked)
    found += verify_machine.judge_guard(sysroot.guard(), standing.state, standing.reason)
    found += _kernel(sysroot, kernel, sealed or running)
    found += _owner(sysroot, standing, probe)
    return found


def _inputs(sysroot: Sysroot, running: str, *, locked: bool) -> list[Finding]:
    """Whether a locked kernel enforces the list of kernel inputs that its command line names."""
    name = kernel_inputs.named(running)
    if not locked or not name:
        return []
    own = sysroot.boot_record().get("keychain_own")
    return verify_machine.judge_inputs(inputs.in_force(name, sysroot.system), name, known=bool(own))


def standing_of(sysroot: Sysroot, keychain: Keychain) -> intent.Standing:
    """The owner's standing intent, verified; one that cannot be read or is of another machine counts as invalid."""
    owner = sysroot.root / "owner"
    machine = read_text(owner / "id", 64).strip()
    try:
        signed: bytes | None = read_regular(owner / "intent", intent.MAX_SIGNED_BYTES)
    except FileNotFoundError:
        signed = None
    except (OSError, FreeholdError):
        signed = b""
    judged = intent.judge(signed, keychain=keychain, machine=machine)
    try:
        return memory.judge(judged, signed, memory.load(owner))
    except OSError:
        return judged


def _mounts(sysroot: Sysroot, standing: intent.Standing) -> list[Finding]:
    text = read_text(sysroot.system / "proc/self/mountinfo", verify_machine.TEXT_LIMIT)
    try:
        mounts = verify_machine.parse_mountinfo(text)
    except ValueError as error:
        return [deviation("mounts", MACHINE, "/proc/self/mountinfo", "the kernel's list of mounts", str(error))]
    config = standing.intent is not None and standing.intent.config is not None
    return [
        *verify_machine.judge_root(mounts),
        *verify_machine.judge_etc(mounts, locked=standing.state == "locked", config=config),
    ]


def _variable(sysroot: Sysroot, name: str, guid: UUID | str, *, own: bool = False) -> bytes:
    """A firmware variable's value, empty when there is none or it cannot be read."""
    try:
        return efivars.read(sysroot, name, guid, own=own) or b""
    except FreeholdError:
        return b""


def _ring(sysroot: Sysroot, keychain: Keychain, probe: Probe) -> list[Finding]:
    wanted, source = verify_keys.keychain_certificates(keychain), "image"
    if sysroot.secure_boot() and _variable(sysroot, "SetupMode", GLOBAL_VARIABLE, own=True) == b"\0":
        firmware = verify_keys.Firmware(
            db=_variable(sysroot, "db", IMAGE_SECURITY_DATABASE),
            mok=_variable(sysroot, "MokListRT", _SHIM, own=True),
            dbx=_variable(sysroot, "dbx", IMAGE_SECURITY_DATABASE),
            mokx=_variable(sysroot, "MokListXRT", _SHIM, own=True),
        )
        try:
            certificates = verify_keys.firmware_certificates(firmware, [one.fingerprint for one in keychain.revoked])
        except ValueError:
            # As the early step has it: lists that cannot be read are not used at all.
            certificates = {}
        if certificates:
            wanted, source = certificates, "firmware"
    try:
        ring = probe.ring(read_text(sysroot.system / "proc/keys", verify_machine.TEXT_LIMIT))
    except OSError as error:
        return [deviation("ring", MACHINE, verify_keys.RING, "a ring that can be read", error.strerror or str(error))]
    return verify_keys.judge_ring(ring, wanted, source)


def _firmware(sysroot: Sysroot) -> list[Finding]:
    found: list[Finding] = []
    if not sysroot.secure_boot():
        found.append(
            note(
                "secure-boot",
                MACHINE,
                "Secure Boot",
                "",
                "off: whoever can write the boot partition can replace the chain's beginning",
            )
        )
    boot = sysroot.boot_record()
    if isinstance(boot.get("secure_boot"), bool) and boot["secure_boot"] != sysroot.secure_boot():
        said = f"{boot['secure_boot']} at boot, {sysroot.secure_boot()} now"
        found.append(deviation("secure-boot-record", MACHINE, "Secure Boot", "the same as at boot", said))
    for name in ("LoaderEntryDefault", "LoaderEntryOneShot"):
        if value := _variable(sysroot, name, _SYSTEMD_BOOT):
            said = value.decode("utf-16-le", "replace").rstrip("\0")
            found.append(
                note(
                    "loader-choice",
                    MACHINE,
                    name,
                    "",
                    f"the boot loader is told to start {said}",
                    "`bootctl set-default ''` clears it",
                )
            )
    return found


def _kernel(sysroot: Sysroot, kernel: str, cmdline: str) -> list[Finding]:
    proc = sysroot.system / "proc"
    found: list[Finding] = []
    taint = read_text(proc / "sys/kernel/tainted", 64).strip()
    if taint.isdecimal():
        found += verify_machine.judge_taint(int(taint))
    release = read_text(proc / "sys/kernel/osrelease", 256).strip()
    if kernel and release != kernel:
        found.append(deviation("kernel", MACHINE, "kernel", kernel, release or "unknown", verify_machine.REBOOT))
    listed = read_text(
        sysroot.system / "usr/lib/modules" / (kernel or release) / "modules.dep", verify_machine.TEXT_LIMIT
    )
    loaded = read_text(proc / "modules", verify_machine.TEXT_LIMIT)
    found += verify_machine.judge_modules(loaded, verify_machine.sealed_modules(listed))
    wanted = verify_machine.sealed_sysctls(cmdline)
    values = {name: _sysctl(proc / "sys" / name.replace(".", "/")) for name in wanted}
    return found + verify_machine.judge_sysctls(wanted, values)


def _sysctl(path: Path) -> str | None:
    try:
        return read_bytes(path, 64 << 10).decode(errors="replace").strip()
    except (OSError, FreeholdError):
        return None


def _owner(sysroot: Sysroot, standing: intent.Standing, probe: Probe) -> list[Finding]:
    owner = sysroot.root / "owner"
    found: list[Finding] = []
    if standing.intent is None and standing.state == "locked":
        found.append(
            deviation(
                "intent",
                MACHINE,
                "owner/intent",
                "the owner's signed will",
                standing.reason,
                "put a newer signed intent into the inbox",
            )
        )
    if (sysroot.root / "inbox/intent").exists():
        found.append(note("inbox", MACHINE, "inbox/intent", "", "a newer intent waits for the next boot"))
    config = standing.intent.config if standing.intent is not None else None
    if config is not None:
        found += _config(owner / "config" / config, config, probe)
    return found + _links(sysroot.root, owner, closed=standing.state != "open")


def _links(root: Path, owner: Path, *, closed: bool) -> list[Finding]:
    """Files of the owner's directory that have names elsewhere: by those they could be changed.

    ``closed``: the guard lets nobody list the secrets, and records who tries.
    """
    names: dict[tuple[int, int], list[str]] = {}
    counts: dict[tuple[int, int], int] = {}
    for directory, below, files in os.walk(owner):
        if closed and directory == os.fspath(owner):
            below[:] = [name for name in below if name != "secret"]
        for name in files:
            path = Path(directory, name)
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue  # an open machine writes meanwhile
            if status.st_nlink > 1 and not stat.S_ISLNK(status.st_mode):
                key = (status.st_dev, status.st_ino)
                names.setdefault(key, []).append(str(path.relative_to(root)))
                counts[key] = status.st_nlink
    hint = "remove the other hard link"
    return [
        deviation(
            "owner-link", MACHINE, one, "no name elsewhere",
            f"{counts[key]} names, {len(here)} of them here: it can be changed by another", hint,
        )
        for key, here in names.items() if len(here) < counts[key] for one in here
    ]  # fmt: skip


def _config(path: Path, digest: str, probe: Probe) -> list[Finding]:
    name = f"owner/config/{digest}"
    hint = "factory settings are in force; lock again with the owner's key"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        return [deviation("config-image", MACHINE, name, "the owner's /etc", error.strerror or str(error), hint)]
    try:
        measured = probe.measure(fd, name)
        said = "no fs-verity" if measured is None else measured.hex()
    except (OSError, FreeholdError) as error:
        said = str(error)
    finally:
        os.close(fd)
    return [] if said == digest else [deviation("config-image", MACHINE, name, digest, said, hint)]
