# SPDX-License-Identifier: Apache-2.0
"""Root tree as the packages left it → tree of an image: no mutable state, no second copies.

Each function does one thing to the tree on disk; :func:`finish` is their order.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from freehold import files, run
from freehold.build import state, unit_scripts
from freehold.build.recipe import Recipe
from freehold.errors import FreeholdError, InputError
from freehold.keys import module
from freehold.seal import accounts, ids, stubs
from freehold.seal.ids import IdLock
from freehold.seal.walk import LEFTOVERS, SECRETS, stamp_bytecode, strip_privileges

#: Top-level directories that belong to the machine live in /var.
VAR_LINKS = {"home": "var/home", "root": "var/roothome", "srv": "var/srv", "opt": "var/opt", "mnt": "var/mnt",
             "media": "run/media"}  # fmt: skip
MOUNT_POINTS = ("boot", "dev", "efi", "etc", "proc", "run", "sys", "sysroot", "tmp", "var")


def remove_leftovers(tree: Path) -> None:
    """Delete secrets, caches and what the build machine left."""
    for pattern in (*SECRETS, *LEFTOVERS):
        for path in sorted(tree.glob(pattern)):
            files.remove(path)


def settle_kernel(tree: Path) -> str:
    """Move the one kernel to ``/usr/lib/modules/VERSION/vmlinuz``; returns VERSION.

    Raises :class:`FreeholdError` unless there is exactly one: with two, which one boots would be chance.
    """
    versions = sorted(path.name for path in (tree / "usr/lib/modules").glob("*") if (path / "kernel").is_dir())
    if len(versions) != 1:
        raise FreeholdError(f"the tree has {len(versions)} kernels ({', '.join(versions)}); an image has one")
    version = versions[0]
    home = tree / "usr/lib/modules" / version
    for name, target in (("vmlinuz", "vmlinuz"), ("config", "config")):
        source = tree / "boot" / f"{name}-{version}"
        if source.is_file():
            shutil.move(source, home / target)
    for path in sorted((tree / "boot").iterdir()):
        files.remove(path)
    if not (home / "vmlinuz").is_file():
        raise FreeholdError(f"the kernel package of {version} brought no vmlinuz")
    return version


def write_files(tree: Path, recipe: Recipe) -> None:
    """Write the recipe's files with their modes."""
    for item in recipe.files:
        target = tree / item.path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(item.content)
        target.chmod(item.mode)


def install_modules(tree: Path, recipe: Recipe, kernel: str) -> None:
    """Put the recipe's modules where modprobe looks first. :class:`InputError` for one that is for another kernel."""
    if not recipe.modules:
        return
    faults = []
    directory = tree / "usr/lib/modules" / kernel / "updates"
    directory.mkdir(parents=True, exist_ok=True)
    for one in recipe.modules:
        built_for = module.kernel_of(module.unpacked(one.content, one.name))
        if built_for != kernel:
            faults.append(f"modules: {one.name}: for kernel {built_for or 'unknown'}, the image has {kernel}")
        (directory / one.name).write_bytes(one.content)
        (directory / one.name).chmod(0o644)
    if faults:
        raise InputError("the recipe's modules do not fit", faults=faults)
    enter(tree, ["depmod", "-a", kernel])


def set_units(tree: Path, recipe: Recipe) -> None:
    """Enable, disable and mask units with the tree's own systemctl."""
    for verb, units in (("disable", recipe.units.disable), ("enable", recipe.units.enable), ("mask", recipe.units.mask)):
        if units:
            enter(tree, ["systemctl", "--root=/", "--no-reload", verb, *units])


def enter(tree: Path, command: Sequence[str]) -> None:
    """Run a program of the tree inside it, without network, as a build step."""
    run.run([
        "bwrap", "--die-with-parent", "--unshare-pid", "--unshare-net", "--bind", tree, "/", "--dev", "/dev", "--proc", "/proc",
        "--perms", "1777", "--tmpfs", "/tmp", "--tmpfs", "/run", "--cap-add", "ALL", "--", *command,  # noqa: S108
    ])  # fmt: skip


def install_keychain(tree: Path, recipe: Recipe) -> None:
    """Put the keychain into the sealed tree: DER, one file per certificate, and the list of revoked ones."""
    directory = tree / "usr/lib/freehold/keychain"
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in recipe.keychain_files():
        (directory / name).write_bytes(content)
        (directory / name).chmod(0o644)


def name_release(tree: Path, recipe: Recipe, version: str) -> None:
    """Say in os-release(5) which image this is; everything else there stays Debian's."""
    path = tree / "usr/lib/os-release"
    lines = [line for line in path.read_text().splitlines() if not line.startswith(("IMAGE_ID=", "IMAGE_VERSION="))]
    path.write_text("\n".join([*lines, f"IMAGE_ID={recipe.name}", f"IMAGE_VERSION={version}", ""]))


def settle_layout(tree: Path) -> None:
    """/etc becomes the factory copy /usr/etc; machine-owned directories become links into /var."""
    shutil.move(tree / "etc", tree / "usr/etc")
    for name, target in VAR_LINKS.items():
        files.remove(tree / name)
        (tree / name).symlink_to(target)
    for name in MOUNT_POINTS:
        path = tree / name
        if path.exists():
            shutil.rmtree(path)
        path.mkdir(mode=0o755)
        path.chmod(0o755)
    for name in os.listdir(tree):
        if name not in {*MOUNT_POINTS, *VAR_LINKS, "usr", "bin", "sbin", "lib", "lib64", "lib32", "libx32"}:
            raise FreeholdError(f"a package made the top-level directory /{name}: images have a fixed set")


def finish(tree: Path, recipe: Recipe, *, version: str, epoch: int, sources: str, lock: IdLock) -> tuple[str, IdLock]:
    """Turn the tree that the packages left into the tree of an image; returns (kernel version, ids for next time)."""
    remove_leftovers(tree)
    kernel = settle_kernel(tree)
    write_files(tree, recipe)
    install_modules(tree, recipe, kernel)
    state.add_users(tree, recipe)
    lock = accounts.fix_ids(tree, lock)
    own_files(tree, recipe)
    set_units(tree, recipe)
    if recipe.lock_tier == "S2":
        unit_scripts.settle(tree)
    strip_privileges(tree, keep_all=recipe.setuid_keep)
    # What the recipe keeps, or writes itself, is the builder's own word.
    own = {*recipe.setuid_keep, *(item.path for item in recipe.files)}
    stubs.put_stubs(tree, [name for name in stubs.NAMES if name not in own])
    # What the machine's own apt would ask; the flat directory of the build is gone by then.
    (tree / "etc/apt/sources.list").write_text(sources)
    state.settle_var(tree, recipe)
    write_settings(tree, recipe)
    install_keychain(tree, recipe)
    name_release(tree, recipe, version)
    stamp_bytecode(tree, epoch)
    settle_layout(tree)
    return kernel, lock


def own_files(tree: Path, recipe: Recipe) -> None:
    """Give the recipe's files their owners, after ids are settled."""
    users = {one.name: one.uid for one in ids.parse_passwd((tree / "etc/passwd").read_text())}
    groups = {one.name: one.gid for one in ids.parse_group((tree / "etc/group").read_text())}
    for item in recipe.files:
        user, _, group = item.owner.partition(":")
        if user not in users or group not in groups:
            raise InputError("the recipe names an unknown owner", faults=[f"files: {item.path}: {item.owner}"])
        os.chown(tree / item.path.lstrip("/"), users[user], groups[group])


def write_settings(tree: Path, recipe: Recipe) -> None:
    """What the machine's own programs read: where a provisioning file comes from, and updates; what `freehold lock` proposes."""
    if recipe.lock_tier != "S1":
        (tree / "usr/lib/freehold/lock-tier").write_text(f"{recipe.lock_tier}\n")
    (tree / "usr/lib/freehold/platform").write_text(f"{recipe.platform}\n")
    if recipe.update_url:
        path = tree / "usr/lib/freehold/update.toml"
        path.write_text(f'[update]\nurl = "{recipe.update_url}"\nstream = "{recipe.update_stream}"\n')
