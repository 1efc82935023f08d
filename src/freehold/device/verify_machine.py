# SPDX-License-Identifier: Apache-2.0
"""Is the machine that runs the one that was signed? Judgements over what the kernel says of itself. Pure.

Formats: proc_pid_mountinfo(5), proc_keys(5), kernel ``Documentation/admin-guide/tainted-kernels.rst``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from freehold.device.verify_findings import MACHINE, Finding, deviation, note

REBOOT = "a reboot starts from the sealed tree again"
#: Sizes in bytes above which the kernel's answers are cut.
TEXT_LIMIT = 4 << 20


class Mount(NamedTuple):
    """One line of mountinfo. ``options`` are the mount's, ``super`` those of its file system."""

    id: int
    parent: int
    point: str
    options: tuple[str, ...]
    kind: str
    source: str
    super: tuple[str, ...]

    def option(self, key: str) -> str | None:
        """The value of the file system's option ``key``; ``None`` when it has none."""
        return next((one.partition("=")[2] for one in self.super if one.partition("=")[0] == key), None)


_OCTAL = re.compile(r"\\([0-7]{3})")


def _unescape(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """The mounts in ``/proc/self/mountinfo``. :class:`ValueError` for a line that is none."""
    found = []
    for line in text.splitlines():
        left, separator, right = line.partition(" - ")
        before, after = left.split(" "), right.split(" ")
        if not separator or len(before) < 6 or len(after) < 3 or not (before[0].isdecimal() and before[1].isdecimal()):
            raise ValueError(f"not a line of mountinfo: {line[:80]!r}")
        found.append(
            Mount(
                int(before[0]), int(before[1]), _unescape(before[4]), tuple(before[5].split(",")),
                _unescape(after[0]), _unescape(after[1]), tuple(after[2].split(",")),
            )
        )  # fmt: skip
    return tuple(found)


def stack(mounts: Sequence[Mount], point: str) -> list[Mount]:
    """The mounts at ``point``, the lowest first: of two, the upper one is mounted on the lower."""
    here = {one.id: one for one in mounts if one.point == point}
    depths: dict[int, int] = {}
    for one in here.values():
        depth, parent = 0, one.parent
        # No longer than there are mounts, whatever the text claims.
        while parent in here and depth < len(here):
            depth, parent = depth + 1, here[parent].parent
        depths[one.id] = depth
    return sorted(here.values(), key=lambda one: depths[one.id])


def judge_root(mounts: Sequence[Mount]) -> list[Finding]:
    """Findings about ``/`` and what lies over the sealed tree."""
    found: list[Finding] = []
    at_root = stack(mounts, "/")
    if not at_root:
        return [deviation("root", MACHINE, "/", "the sealed overlay", "nothing is mounted there", REBOOT)]
    sealed = at_root[0]
    if sealed.kind != "overlay" or sealed.option("verity") != "require":
        has = f"{sealed.kind} {','.join(sealed.super)}"
        found.append(deviation("root", MACHINE, "/", "an overlay with verity=require", has, REBOOT))
    elif sealed.option("upperdir") is not None:
        found.append(
            deviation(
                "root", MACHINE, "/", "no layer that can be written", f"upperdir={sealed.option('upperdir')}", REBOOT
            )
        )
    if "ro" not in sealed.options or "ro" not in sealed.super:
        found.append(deviation("root-writable", MACHINE, "/", "read-only", "read-write", REBOOT))
    found += [_over(one) for one in at_root[1:]]
    return found + [_over(one) for one in mounts if _covers(one)] + _stacked(mounts)


#: Nothing is mounted at these places or below; below the others, what they say belongs there.
_SEALED = ("/usr", "/sysroot/repo", "/sysroot/images", "/sysroot/deployments", "/sysroot/owner")
_WHOLE = ("/etc", "/efi")
#: File systems of the kernel's own below /sys: whoever mounts them sees the kernel's answers and no others.
_KERNEL_KINDS = frozenset({
    "securityfs", "cgroup2", "pstore", "efivarfs", "bpf", "debugfs", "tracefs", "configfs", "fusectl", "autofs", "resctrl",
})  # fmt: skip
_BELOW_PROC = ("/proc/sys/fs/binfmt_misc", "/proc/fs/nfsd")
#: Kinds of the mounts at a place, the lowest first. Whoever asks there would be shown another disk, or other answers.
_STACKS = {
    "/sysroot": (("ext4",),), "/proc": (("proc",),), "/sys": (("sysfs",),), "/efi": (("autofs",), ("vfat",), ("autofs", "vfat")),
}  # fmt: skip


def _covers(one: Mount) -> bool:
    """Whether the mount hides something that is signed, or that is asked here."""
    if any(one.point == top or one.point.startswith(f"{top}/") for top in _SEALED):
        return True
    if any(one.point.startswith(f"{top}/") for top in _WHOLE):
        return True
    if one.point.startswith("/proc/"):
        return one.point not in _BELOW_PROC
    return one.point.startswith("/sys/") and one.kind not in _KERNEL_KINDS


def _stacked(mounts: Sequence[Mount]) -> list[Finding]:
    """Findings about places where something is mounted, and nothing else may be."""
    found = []
    for point, allowed in _STACKS.items():
        here = stack(mounts, point)
        if here and tuple(one.kind for one in here) not in allowed:
            found.append(_over(here[-1]))
    return found


def _over(one: Mount) -> Finding:
    return deviation(
        "mount-over",
        MACHINE,
        one.point,
        "nothing is mounted here",
        f"{one.kind} from {one.source}",
        f"`umount {one.point}`, or reboot",
    )


#: Where the early step, or `freehold lock` on a running machine, finds the sealed /etc and the owner's image.
_FACTORY = ("/newroot/usr/etc", "/usr/etc")
_CONFIG = ("/config", "/run/freehold/config")


def judge_etc(mounts: Sequence[Mount], *, locked: bool, config: bool) -> list[Finding]:
    """Findings about the layers of ``/etc``: while ``locked`` changes are in memory; ``config``: the owner has an image."""
    at_etc = stack(mounts, "/etc")
    if not at_etc:
        return [
            deviation("etc", MACHINE, "/etc", "an overlay over the sealed /usr/etc", "nothing is mounted there", REBOOT)
        ]
    # The early step mounts one. Locking a running machine puts a fresh one over it, and no other thing may.
    found = [
        _over(one)
        for number, one in enumerate(at_etc)
        if number > 1 or (number == 1 and (one.kind != "overlay" or not _in_memory(one) or _in_memory(at_etc[0])))
    ]
    top = at_etc[-1]
    if top.kind != "overlay":
        found.append(deviation("etc", MACHINE, "/etc", "an overlay over the sealed /usr/etc", top.kind, REBOOT))
        return found
    layers = (top.option("lowerdir") or "").split(":")
    wanted = "the owner's image over the sealed /usr/etc" if config else "the sealed /usr/etc alone"
    over = ([], *([one] for one in _CONFIG))
    if layers[-1] in _FACTORY and layers[:-1] in over and bool(layers[:-1]) != config and not locked:
        # Open, a commit is in force at once, and below /etc from the next boot on.
        said = "the owner committed another /etc since this boot: it lies below from the next one on"
        found.append(note("etc-older", MACHINE, "/etc", wanted, said))
    elif layers[-1] not in _FACTORY or layers[:-1] not in over or bool(layers[:-1]) != config:
        found.append(deviation("etc-layers", MACHINE, "/etc", wanted, ":".join(layers), REBOOT))
    if locked and not _in_memory(top):
        found.append(
            deviation("etc-upper", MACHINE, "/etc", "changes in memory", f"upperdir={top.option('upperdir')}", REBOOT)
        )
    if not locked:
        found.append(
            note("etc-open", MACHINE, "/etc", "", "open: changes are kept on the disk, and are nobody's signed will")
        )
    return found


def _in_memory(one: Mount) -> bool:
    return one.option("upperdir") == "/run/freehold/etc/upper"


#: Bit, meaning, whether code that nobody signed has been or can be in the kernel.
_TAINTS = (
    (0, "a module with another licence", True), (1, "a module was loaded by force", True),
    (2, "a processor out of specification", False), (3, "a module was removed by force", True),
    (4, "a machine check", False), (5, "a bad page", False), (6, "asked for by user space", False),
    (7, "an oops or BUG", False), (8, "an ACPI table was replaced", True), (9, "a warning", False),
    (10, "a staging driver", False), (11, "a workaround for firmware", False), (12, "an out-of-tree module", True),
    (13, "an unsigned module", True), (14, "a soft lockup", False), (15, "a live patch", True),
    (16, "a distribution's own mark", False), (17, "randomised structures", False), (18, "an in-kernel test", True),
    (19, "a changed debug facility", False),
)  # fmt: skip


def judge_taint(value: int) -> list[Finding]:
    """Findings about ``/proc/sys/kernel/tainted``."""
    found = []
    for bit, meaning, code in _TAINTS:
        if value >> bit & 1:
            kind = deviation if code else note
            found.append(
                kind(
                    "kernel-taint",
                    MACHINE,
                    f"kernel (taint {bit})",
                    "" if not code else "untainted",
                    meaning,
                    REBOOT if code else "",
                )
            )
    rest = value >> len(_TAINTS) << len(_TAINTS)
    if rest:
        found.append(note("kernel-taint", MACHINE, "kernel", "", f"marks that this version does not know: {rest:#x}"))
    return found


_MODULE_FILE = re.compile(r"(?:^|/)([^/\s:]+?)\.ko(?:\.(?:xz|zst|gz))?(?=:|$)", re.MULTILINE)


def sealed_modules(modules_dep: str) -> set[str]:
    """The names of the modules that a ``modules.dep`` lists, as the kernel spells them."""
    return {match[1].replace("-", "_") for line in modules_dep.splitlines() if (match := _MODULE_FILE.search(line))}


def judge_modules(loaded: str, sealed: Collection[str]) -> list[Finding]:
    """Findings about ``/proc/modules`` against the names of the sealed tree's modules."""
    found = []
    for line in loaded.splitlines():
        words = line.split()
        if len(words) < 6:
            continue
        flags = words[6].strip("()") if len(words) > 6 else ""
        if words[0] not in sealed:
            found.append(
                deviation(
                    "module", MACHINE, words[0], "a module of the sealed tree", "loaded, but not of this tree", REBOOT
                )
            )
        elif set(flags) & set("OEFP"):
            found.append(
                deviation(
                    "module", MACHINE, words[0], "a module that Debian signed", f"loaded with taint {flags}", REBOOT
                )
            )
    return found


def sealed_sysctls(cmdline: str) -> dict[str, str]:
    """What ``sysctl.NAME=VALUE`` words of a kernel command line set; the last of a name counts."""
    found = {}
    for word in cmdline.split():
        key, _, value = word.partition("=")
        name = key.removeprefix("sysctl.")
        if name != key and re.fullmatch(r"[A-Za-z0-9_./-]{1,200}", name) and ".." not in name:
            found[name.replace("/", ".")] = value.strip('"')
    return found


def judge_sysctls(wanted: Mapping[str, str], values: Mapping[str, str | None]) -> list[Finding]:
    """Findings about settings of the sealed command line; ``values`` as they are now."""
    found = []
    for name, value in wanted.items():
        now = values.get(name)
        if now is None or now.split() != value.split():
            has = "not readable" if now is None else " ".join(now.split())
            found.append(deviation("sysctl", MACHINE, name, value, has, f"`sysctl -w {name}={value}`, or reboot"))
    return found


def judge_command_line(running: str, sealed: str | None) -> list[Finding]:
    """Findings about ``/proc/cmdline`` against the booted UKI's own; ``None``: that is not known."""
    if sealed is None or running.split() == sealed.split():
        return []
    more = [word for word in running.split() if word not in sealed.split()]
    less = [word for word in sealed.split() if word not in running.split()]
    said = "; ".join(
        [*([f"added: {' '.join(more)}"] if more else []), *([f"missing: {' '.join(less)}"] if less else [])]
    )
    wanted = "the one that is sealed in the booted kernel image"
    hint = "an add-on on the boot partition, or an edited boot; remove it and reboot"
    return [deviation("command-line", MACHINE, "/proc/cmdline", wanted, said or "another order", hint)]


def judge_lockdown(text: str, *, locked: bool) -> list[Finding]:
    """Findings about ``/sys/kernel/security/lockdown``."""
    chosen = re.search(r"\[(\w+)\]", text)
    level = chosen[1] if chosen else "unknown"
    if locked and level not in ("integrity", "confidentiality"):
        return [deviation("lockdown", MACHINE, "kernel lockdown", "integrity", level, REBOOT)]
    return []


def judge_inputs(enforced: bool | None, name: str, *, known: bool) -> list[Finding]:
    """A finding when the kernel does not enforce the policy ``name`` of kernel inputs on a locked machine.

    ``known``: the firmware has a certificate of the keychain, so that the kernel would take it.
    """
    if enforced:
        return []
    said = "the guard alone judges modules and firmware"
    if known:
        return [deviation("kernel-inputs", MACHINE, "IPE", f"policy freehold-{name[:16]}… in force", said, REBOOT)]
    return [note("kernel-inputs", MACHINE, "IPE", "", f"{said}: the firmware does not know the release's signer")]


def judge_guard(guard: Mapping[str, object], state: str, reason: str) -> list[Finding]:
    """Findings about the guard (its own account) against the standing intent's ``state``. An open machine loads none."""
    mode = str(guard.get("mode")) if guard.get("loaded") is True else "open"
    if mode == state:
        return []
    said = mode if guard.get("loaded") is True else "not loaded"
    return [deviation("guard-mode", MACHINE, "guard", f"{state} ({reason})", said, REBOOT)]
