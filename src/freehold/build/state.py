# SPDX-License-Identifier: Apache-2.0
"""A tree's accounts and its /var, on disk: the rules of :mod:`ids` and :mod:`varmap` carried out."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from freehold.build.recipe import Recipe
from freehold.errors import FreeholdError, InputError
from freehold.seal import ids, varmap
from freehold.seal.accounts import paths

TMPFILES = "usr/lib/tmpfiles.d/freehold-var.conf"


def add_users(tree: Path, recipe: Recipe) -> None:
    """Append the recipe's accounts to the tree's databases, without a password. Raises :class:`InputError` on a clash."""
    passwd, group = tree / "etc/passwd", tree / "etc/group"
    known = {one.name for one in ids.parse_passwd(passwd.read_text())}
    numbers = {one.uid for one in ids.parse_passwd(passwd.read_text())}
    for user in recipe.users:
        uid = user.uid if user.uid is not None else next(n for n in range(1000, 60000) if n not in numbers)
        if user.name in known or uid in numbers:
            raise InputError("the recipe's users clash with the packages'", faults=[f"users: {user.name} ({uid})"])
        numbers.add(uid)
        _append(passwd, f"{user.name}:x:{uid}:{uid}:{user.gecos}:{user.home}:{user.shell}")
        _append(group, f"{user.name}:x:{uid}:")
        _append(tree / "etc/shadow", f"{user.name}:!:1::::::")
        _append(tree / "etc/gshadow", f"{user.name}:!::")
        start = 100_000 + 65_536 * (uid - 1000)
        for name in ("subuid", "subgid"):
            _append(tree / "etc" / name, f"{user.name}:{start}:65536")
    rows = ids.parse_group(group.read_text())
    wanted = {(one, user.name) for user in recipe.users for one in user.groups}
    missing = sorted({one for one, _ in wanted} - {row.name for row in rows})
    if missing:
        raise InputError("the recipe names groups that no package makes", faults=[f"users: group {one}" for one in missing])
    for file, index in ((group, 3), (tree / "etc/gshadow", 3)):
        lines = []
        for line in file.read_text().splitlines():
            fields = line.split(":")
            members = [name for name in fields[index].split(",") if name]
            members += sorted(user for one, user in wanted if one == fields[0] and user not in members)
            fields[index] = ",".join(members)
            lines.append(":".join(fields))
        file.write_text("\n".join(lines) + "\n")


def _append(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line + "\n")


def owners_below_var(tree: Path) -> dict[str, str]:
    """Path below var/ (no leading slash) → the package that ships it, by dpkg's file lists."""
    owners: dict[str, str] = {}
    for path in sorted((tree / "var/lib/dpkg/info").glob("*.list")):
        for line in path.read_text().splitlines():
            if line.startswith("/var/"):
                owners.setdefault(line[1:], path.name.removesuffix(".list").partition(":")[0])
    return owners


def _kind(mode: int) -> str:
    return {stat.S_IFDIR: "d", stat.S_IFREG: "f", stat.S_IFLNK: "l"}.get(stat.S_IFMT(mode), "?")


def settle_var(tree: Path, recipe: Recipe) -> None:
    """Empty the tree's /var: each path becomes a tmpfiles.d line, a seed, state in /usr, or nothing.

    Raises :class:`InputError` naming every path that no rule covers and the package that put it there.
    """
    users = {one.uid: one.name for one in ids.parse_passwd((tree / "etc/passwd").read_text())}
    groups = {one.gid: one.name for one in ids.parse_group((tree / "etc/group").read_text())}
    owners = owners_below_var(tree)
    entries = []
    for path in paths(tree / "var"):
        status = path.lstat()
        name = str(path.relative_to(tree))
        entries.append(
            varmap.Entry(
                path=name, kind=_kind(status.st_mode), mode=stat.S_IMODE(status.st_mode),
                user=users.get(status.st_uid, str(status.st_uid)), group=groups.get(status.st_gid, str(status.st_gid)),
                package=owners.get(name), size=status.st_size if stat.S_ISREG(status.st_mode) else 0,
                target=os.readlink(path) if path.is_symlink() else "",
            )
        )  # fmt: skip
    made = [varmap.made_by(path.read_text()) for path in sorted((tree / "usr/lib/tmpfiles.d").glob("*.conf"))]
    rules: list[tuple[str, varmap.Verdict]] = [
        *((pattern, "tmpfiles") for pattern in recipe.var_tmpfiles),
        *((pattern, "discard") for pattern in recipe.var_discard),
        *((pattern, "seed") for pattern in recipe.var_seed),
    ]
    result = varmap.classify(entries, rules=rules, made=frozenset().union(*made))
    for origin, target in (*result.moves, *result.seeds):
        destination = tree / target
        if os.path.lexists(destination):
            raise FreeholdError(f"/{target} exists already; /{origin} has no place in the image")
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(tree / origin, destination)
    (tree / TMPFILES).write_text(result.tmpfiles + MACHINE_DIRECTORIES)


#: What the links of the image's top level point to.
MACHINE_DIRECTORIES = """\
d /var/home 0755 root root - -
d /var/roothome 0700 root root - -
d /var/srv 0755 root root - -
d /var/opt 0755 root root - -
d /var/mnt 0755 root root - -
d /run/media 0755 root root - -
d /sysroot/state 0700 root root - -
"""
