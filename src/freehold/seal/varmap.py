# SPDX-License-Identifier: Apache-2.0
"""What packages put into /var, and what becomes of it. Pure.

/var belongs to the machine: an image ships it empty. So each path that installing packages left there
gets one verdict, and a path without one fails the build, because dropping it silently would break its
package on the first boot:

* ``tmpfiles``: systemd-tmpfiles makes it at boot (directories, links, empty files);
* ``discard``: left out (caches, logs, what its service makes by itself);
* ``seed``: copied from the image at the first boot, then the machine's own;
* relocated (built in): state of the package manager belongs to the image, lives in /usr, and is linked.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from freehold.errors import InputError

Verdict = Literal["tmpfiles", "discard", "seed"]
SEED_DIRECTORY = "usr/share/freehold/var"
_STATE = "usr/share/freehold/package-state"
#: Moved by the builder before anything else; the link back is remade at every boot.
RELOCATED = {
    "var/lib/dpkg": "usr/share/dpkg-db",
    "var/lib/apt/extended_states": f"{_STATE}/extended_states",
    "var/lib/pam": f"{_STATE}/pam",
    "var/lib/ucf": f"{_STATE}/ucf",
    "var/lib/python": f"{_STATE}/python",
    "var/lib/shells.state": f"{_STATE}/shells.state",
    "var/cache/debconf": f"{_STATE}/debconf",
}

#: (patterns, verdict); the first match wins, the recipe's rules come before these.
#: ``*`` stays within one path component, ``**`` does not.
_TABLE: tuple[tuple[str, Verdict], ...] = (
    # Base layout.
    ("var/backups var/cache var/lib var/lib/misc var/local var/log var/mail var/opt var/spool var/tmp", "tmpfiles"),
    ("var/lock var/run var/spool/mail", "tmpfiles"),
    ("var/backups/** var/tmp/** var/lib/misc/**", "discard"),
    # Logs begin on the machine; the accounting files must exist to be written.
    ("var/log/btmp var/log/lastlog var/log/wtmp var/log/README var/log/private var/log/journal", "tmpfiles"),
    ("var/log/apt var/lib/wtmpdb var/lib/wtmpdb/wtmp.db", "tmpfiles"),
    ("var/log/apt/* var/log/alternatives.log var/log/dpkg.log var/log/bootstrap.log var/log/faillog", "discard"),
    ("var/log/fontconfig.log var/log/journal/** var/log/runit var/log/runit/**", "discard"),
    # apt: directories must exist, contents are fetched.
    ("var/lib/apt var/lib/apt/lists var/lib/apt/lists/partial var/lib/apt/lists/auxfiles", "tmpfiles"),
    ("var/lib/apt/mirrors var/lib/apt/mirrors/partial var/lib/apt/periodic", "tmpfiles"),
    ("var/cache/apt var/cache/apt/archives var/cache/apt/archives/partial", "tmpfiles"),
    ("var/lib/apt/** var/cache/apt/**", "discard"),
    # Caches that their programs make again.
    ("var/cache/adduser var/cache/ldconfig var/cache/private var/cache/man var/cache/fontconfig", "tmpfiles"),
    ("var/cache/ldconfig/** var/cache/man/** var/cache/fontconfig/**", "discard"),
    ("var/cache/apparmor var/cache/apparmor/**", "discard"),
    ("var/cache/dictionaries-common var/cache/dictionaries-common/**", "discard"),
    # systemd: its own tmpfiles.d or its services make the files; enablement lives in /usr/etc.
    ("var/lib/private var/lib/systemd var/lib/systemd/catalog var/lib/systemd/coredump", "tmpfiles"),
    ("var/lib/systemd/ephemeral-trees var/lib/systemd/network var/lib/systemd/pstore", "tmpfiles"),
    ("var/lib/systemd/linger var/lib/systemd/timesync var/lib/systemd/backlight var/lib/systemd/rfkill", "tmpfiles"),
    ("var/lib/systemd/catalog/database var/lib/systemd/timesync/clock", "discard"),
    ("var/lib/systemd/deb-systemd-helper-* var/lib/systemd/deb-systemd-helper-*/**", "discard"),
    ("var/lib/systemd/deb-systemd-user-helper-* var/lib/systemd/deb-systemd-user-helper-*/**", "discard"),
    ("var/lib/dbus", "tmpfiles"),
    # The machine's identity is never part of an image.
    ("var/lib/dbus/machine-id var/lib/systemd/random-seed var/lib/systemd/credential.secret", "discard"),
    # Kernel and initramfs hooks leave records; images build their initrd themselves.
    ("var/lib/initramfs-tools var/lib/initramfs-tools/** var/lib/kernel var/lib/kernel/**", "discard"),
    # Containers, networks, virtual machines.
    ("var/lib/containers var/lib/containers/storage var/lib/containers/sigstore var/lib/cni", "tmpfiles"),
    ("var/cache/containers var/lib/qemu var/log/qemu-ga", "tmpfiles"),
    ("var/lib/dhcp var/lib/dhcpcd var/lib/chrony var/log/chrony var/lib/nftables var/lib/iptables", "tmpfiles"),
    ("var/lib/ostree var/lib/sshd var/lib/ignition", "tmpfiles"),
    # What larger systems add.
    ("var/lib/polkit-1 var/lib/NetworkManager var/lib/bluetooth var/lib/upower var/lib/colord", "tmpfiles"),
    ("var/lib/logrotate var/lib/sudo var/lib/sudo/lectured var/lib/tpm2-tss var/lib/tpm2-tss/**", "tmpfiles"),
    ("var/lib/vim var/lib/vim/addons var/spool/cron var/spool/cron/crontabs var/spool/rsyslog", "tmpfiles"),
    ("var/lib/xml-core var/lib/xml-core/** var/lib/sgml-base var/lib/sgml-base/**", "discard"),
    ("var/lib/update-rc.d var/lib/update-rc.d/** var/lib/locales var/lib/locales/**", "discard"),
)
BUILT_IN: tuple[tuple[str, Verdict], ...] = tuple(
    (pattern, verdict) for patterns, verdict in _TABLE for pattern in patterns.split()
)
#: Line types of tmpfiles.d(5) that make a path.
_MAKERS = frozenset("dDqQvLfFCpbcw") - {"w"}


@dataclass(frozen=True)
class Entry:
    """One path that packages left in /var. ``path`` has no leading slash; ``kind`` is d, f or l (else unusable)."""

    path: str
    kind: str
    mode: int
    user: str = "root"
    group: str = "root"
    package: str | None = None
    target: str = ""
    size: int = 0


@dataclass(frozen=True)
class VarMap:
    """The result: ``tmpfiles`` is tmpfiles.d text; ``seeds`` are (path in /var, its copy in /usr);
    ``moves`` likewise for relocated state; ``unused`` are recipe patterns that matched nothing.
    """

    tmpfiles: str
    seeds: tuple[tuple[str, str], ...]
    discards: tuple[str, ...]
    moves: tuple[tuple[str, str], ...]
    unused: tuple[str, ...]


@lru_cache(maxsize=1024)
def _compile(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*|\*|\?)", pattern)
    wild = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(wild.get(part, re.escape(part)) for part in parts), re.DOTALL)


def matches(pattern: str, path: str) -> bool:
    """Whether ``pattern`` covers ``path``: ``*`` and ``?`` stay within a component, ``**`` crosses them."""
    return _compile(pattern).fullmatch(path) is not None


def made_by(tmpfiles: str) -> frozenset[str]:
    """Paths below var/ (no leading slash) that a tmpfiles.d(5) text makes, so that they need no second line."""
    found = set()
    for line in tmpfiles.splitlines():
        parts = line.split()
        if len(parts) >= 2 and parts[0][0] in _MAKERS and parts[1].startswith("/var/"):
            found.add(parts[1].strip("/"))
    return frozenset(found)


def _relocation(path: str) -> str | None:
    for origin in RELOCATED:
        if path == origin or path.startswith(origin + "/"):
            return origin
    return None


def _quote(text: str) -> str:
    """``text`` as one tmpfiles.d(5) field: specifiers and white space neutralised."""
    text = text.replace("%", "%%")
    if not re.search(r"[\s\"'\\]", text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub(r"\s", lambda match: f"\\x{ord(match.group()):02x}", escaped) + '"'


def _line(entry: Entry, verdict: Verdict) -> str:
    path, owner = _quote("/" + entry.path), f"{entry.user} {entry.group}"
    if entry.kind == "l":
        return f"L {path} - - - - {_quote(entry.target)}"
    mode = f"{entry.mode & 0o7777:04o}"
    if entry.kind == "d":
        return f"d {path} {mode} {owner} - -"
    if verdict == "seed":
        return f"C {path} {mode} {owner} - {_quote('/' + seed_path(entry.path))}"
    return f"f {path} {mode} {owner} - -"


def seed_path(path: str) -> str:
    """Where in the image the seed of ``path`` (as var/lib/x) lies."""
    return f"{SEED_DIRECTORY}/{path.removeprefix('var/')}"


def classify(
    entries: Iterable[Entry], *, rules: Sequence[tuple[str, Verdict]] = (), made: Collection[str] = ()
) -> VarMap:
    """Give every entry its verdict; ``rules`` are the recipe's, ``made`` the paths that packages' own tmpfiles.d make.

    Raises :class:`InputError` listing each path without a verdict, with the package that put it there
    and what to add to the recipe.
    """
    lines: list[str] = []
    seeds: list[tuple[str, str]] = []
    discards: list[str] = []
    faults: list[str] = []
    used: set[str] = set()
    moved: dict[str, str] = {}
    for entry in sorted(entries, key=lambda one: one.path):
        if entry.path == "var":
            continue
        origin = _relocation(entry.path)
        if origin is not None:
            moved[origin] = RELOCATED[origin]
            continue
        rule = next((one for one in (*rules, *BUILT_IN) if matches(one[0], entry.path)), None)
        problem = _problem(entry, rule)
        if problem or rule is None:
            faults.append(f"/{entry.path} ({_origin(entry)}): {problem}")
            continue
        used.add(rule[0])
        if rule[1] == "discard":
            discards.append(entry.path)
            continue
        if rule[1] == "seed" and entry.kind == "f":
            seeds.append((entry.path, seed_path(entry.path)))
        if entry.path not in made:
            lines.append(_line(entry, rule[1]))
    if faults:
        raise InputError(
            "packages put something into /var that nothing has a rule for",
            faults=faults,
            hint="/var is empty in an image; the recipe's [var] table says what each path becomes (see docs/recipe.md)",
        )
    # The link must follow the image, also over something that an earlier system left there.
    links = [
        f"L+ /{origin} - - - - {'../' * origin.count('/')}{target}" for origin, target in sorted(RELOCATED.items())
        if origin in moved
    ]  # fmt: skip
    return VarMap(
        tmpfiles="\n".join(["# Made by the image build from what packages put into /var.", *lines, *links]) + "\n",
        seeds=tuple(seeds), discards=tuple(discards), moves=tuple(sorted(moved.items())),
        unused=tuple(pattern for pattern, _ in rules if pattern not in used),
    )  # fmt: skip


def _origin(entry: Entry) -> str:
    return f"package {entry.package}" if entry.package else "made by a maintainer script"


def _problem(entry: Entry, rule: tuple[str, Verdict] | None) -> str | None:
    """Why ``entry`` cannot have what ``rule`` says; None when it can."""
    if rule is None:
        if entry.kind == "f" and entry.size:
            return f"add it to the recipe: [var] seed = [{entry.path!r}] to keep it, or discard = [...] to drop it"
        return f"add it to the recipe: [var] tmpfiles = [{entry.path!r}] to have it, or discard = [...] to drop it"
    if rule[1] == "discard":
        return None
    if entry.kind not in "dfl":
        return "is neither directory, file nor link; only 'discard' is possible"
    if rule[1] == "tmpfiles" and entry.kind == "f" and entry.size:
        # Accounting files that the build itself wrote to are logs, not content.
        return None if entry.path.startswith("var/log/") else f"has content: needs 'seed', not {rule[0]!r} (tmpfiles)"
    return None
