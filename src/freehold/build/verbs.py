# SPDX-License-Identifier: Apache-2.0
"""``freehold build``, ``disk``, ``inspect`` and ``diff``: arguments in, reports out."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from freehold.build import disk as disks
from freehold.build import enrol_options, pipeline, signing
from freehold.build.keys import KeyDirectory
from freehold.build.store import Store, cache_directory, default_store
from freehold.build.tools import ensure
from freehold.errors import InputError
from freehold.keys.verbs import default_directory
from freehold.monitor import Monitor
from freehold.report import Report
from freehold.update.manifest import Manifest, parse_manifest

SIZE = re.compile(r"(\d+)([KMGT]?)", re.IGNORECASE)
UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def _store_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", type=Path, default=None, metavar="DIR", help="where releases are kept")


def _key_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keys", type=Path, metavar="DIR", help="directory of keys (default: the user's)")
    parser.add_argument("--key", metavar="URI", help="the release key: file:, pkcs11: or tpm2: (default: release.key of --keys)")


def _store(options: argparse.Namespace) -> Store:
    return Store.open(options.store or default_store())


def build_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``freehold build``."""
    parser.add_argument("recipe", type=Path, help="the recipe (TOML)")
    parser.add_argument("--version", help="version of the release (default: the recipe's pattern)")
    parser.add_argument(
        "--number", type=int, metavar="N",
        help="the release's number for the rollback floor (default: the date of the package lists, seconds since 1970)",
    )  # fmt: skip
    parser.add_argument("--sources", type=Path, metavar="FILE", help="apt source lines to use instead of the default mirror")
    parser.add_argument("--unsigned", action="store_true", help="open no key; `freehold sign RELEASE` signs later")
    _store_argument(parser)
    _key_arguments(parser)


def build(options: argparse.Namespace, monitor: Monitor) -> Report:
    """Build a release."""
    if options.unsigned and options.key:
        raise InputError("--unsigned uses no key", hint="leave --key out; `freehold sign RELEASE --key URI` comes later")
    keys = KeyDirectory(options.keys or default_directory()) if options.unsigned else KeyDirectory.choose(options.keys, monitor)
    done = pipeline.build(
        options.recipe, _store(options), keys, monitor, unsigned=options.unsigned,
        version=options.version, key_uri=options.key, sources=options.sources, number=options.number,
    )  # fmt: skip
    manifest = done.manifest
    total = sum(done.seconds.values())
    next_step = f"disk {done.release.name} -o {manifest.name}.qcow2" if done.signed else f"sign {done.release.name} --key URI"
    text = (
        f"{done.release.name}: {'unchanged' if done.unchanged else f'built in {total:.0f} s'}\n"
        f"  commit  {manifest.commit}\n  image   {manifest.image_digest}\n  number  {manifest.number}\n"
        f"  kernel  {manifest.kernel}, {len(manifest.packages)} packages, {done.files:,} files, {done.bytes >> 20} MiB\n"
        f"Next: freehold {next_step}"
    )
    return Report(done.data(), text)


def disk_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``freehold disk``."""
    parser.add_argument("release", help="a release (NAME-VERSION or its directory), or a recipe to build first")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the disk; .qcow2 or raw")
    parser.add_argument("--size", default="8G", help="size of the disk (default 8G; only what is used takes space)")
    parser.add_argument("--ignition", type=Path, metavar="FILE", help="Ignition file for the first boot")
    parser.add_argument("--stick", action="store_true", help="a stick to rescue machines from: its ids are another disk's")
    _store_argument(parser)
    _key_arguments(parser)
    enrol_options.add_arguments(parser)


def _dry_run(options: argparse.Namespace, monitor: Monitor) -> Report:
    """What ``disk`` would enrol; makes no disk, no release, no key."""
    store = Store((options.store or default_store()).absolute())
    release = store.release(options.release)
    keys = KeyDirectory(options.keys or default_directory())
    enrolment = enrol_options.chosen(options, store, keys, release, monitor).enrolment
    data = {"schema": "freehold-disk-1", "dry_run": True, "release": release.name, "enrolment": enrolment.data()}
    return Report(data, f"{enrolment.text()}\nNothing was written.")


def parse_size(text: str) -> int:
    """``8G`` → bytes. Raises :class:`InputError`."""
    match = SIZE.fullmatch(text)
    if not match:
        raise InputError(f"{text!r} is not a size", hint="for example 8G or 8192M")
    return int(match[1]) << UNITS[match[2].upper()]


def disk(options: argparse.Namespace, monitor: Monitor) -> Report:
    """Make a disk."""
    if options.dry_run:
        return _dry_run(options, monitor)
    if options.output is None:
        raise InputError("where shall the disk go?", hint="-o FILE; a name that ends in .qcow2 gives that format")
    store, keys = _store(options), KeyDirectory.choose(options.keys, monitor)
    size = parse_size(options.size)
    ignition = None
    if options.ignition:
        try:
            ignition = options.ignition.read_bytes()
            json.loads(ignition)
        except OSError as error:
            raise InputError(f"{options.ignition}: {error.strerror}") from None
        except ValueError as error:
            raise InputError(f"{options.ignition} is not JSON: {error}", hint="`ignition-validate` checks a file") from None
    if options.release.endswith(".toml") and Path(options.release).is_file():
        release = pipeline.build(Path(options.release), store, keys, monitor, key_uri=options.key).release
    else:
        release = store.release(options.release)
    firmware_keys = enrol_options.chosen(options, store, keys, release, monitor)
    tools = ensure(cache_directory(), monitor)
    measures = json.loads((release / "build.json").read_text())
    made = disks.make_disk(
        tools, store, release, options.output.absolute(), signer=keys.signer(options.key, monitor), monitor=monitor, size=size,
        ignition=ignition, timeout=int(measures.get("timeout", 0)), keys=firmware_keys, stick=options.stick,
    )  # fmt: skip
    data = {
        "schema": "freehold-disk-1", "disk": str(made.path), "release": made.release, "size": made.size, "format": made.format,
        "enrolment": firmware_keys.enrolment.data(),
    }  # fmt: skip
    text = (
        f"{made.path}: {made.format}, {made.size >> 30} GiB, release {made.release}\n"
        f"{firmware_keys.enrolment.text()}\n"
        f"Next: freehold vm start {options.output} --name try"
    )
    return Report(dict(data), text)


def _manifest(store: Store, name: str) -> Manifest:
    return parse_manifest((store.release(name) / "manifest.json").read_bytes())


def inspect_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``freehold inspect``."""
    parser.add_argument("release", help="a release (NAME-VERSION or its directory)")
    _store_argument(parser)


def inspect(options: argparse.Namespace, _monitor: Monitor) -> Report:
    """Show a release."""
    store = _store(options)
    release = store.release(options.release)
    manifest = parse_manifest((release / "manifest.json").read_bytes())
    measures = json.loads((release / "build.json").read_text())
    data = {
        "schema": "freehold-inspect-1", **json.loads((release / "manifest.json").read_bytes()),
        "files": measures["files"], "bytes": measures["bytes"], "deployment": manifest.id,
    }  # fmt: skip
    lines = [
        f"{release.name}", f"  deployment  {manifest.id}", f"  commit      {manifest.commit}",
        f"  image       {manifest.image_digest}", f"  number      {manifest.number}",
        f"  uki         {manifest.uki.sha256} ({manifest.uki.size >> 20} MiB)",
        f"  rescue      {manifest.rescue.sha256} ({manifest.rescue.size >> 20} MiB)", f"  kernel      {manifest.kernel}",
        f"  contents    {measures['files']:,} files, {measures['bytes'] >> 20} MiB, {len(manifest.packages)} packages",
    ]  # fmt: skip
    return Report(data, "\n".join(lines))


def diff_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``freehold diff``."""
    parser.add_argument("old", help="a release")
    parser.add_argument("new", help="another release")
    _store_argument(parser)


def package_changes(old: Manifest, new: Manifest) -> list[tuple[str, str | None, str | None]]:
    """(package, old version, new version) for each that differs. Pure."""
    before = {(name, architecture): version for name, version, architecture in old.packages}
    after = {(name, architecture): version for name, version, architecture in new.packages}
    keys = sorted({*before, *after})
    return [(key[0], before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]


def diff(options: argparse.Namespace, _monitor: Monitor) -> Report:
    """Compare two releases by package."""
    store = _store(options)
    old, new = _manifest(store, options.old), _manifest(store, options.new)
    changes = package_changes(old, new)
    data: dict[str, object] = {
        "schema": "freehold-diff-1", "old": old.version, "new": new.version, "same_tree": old.commit == new.commit,
        "packages": [{"name": name, "old": before, "new": after} for name, before, after in changes],
    }  # fmt: skip
    lines = [f"  {name}: {before or 'absent'} -> {after or 'removed'}" for name, before, after in changes]
    head = f"{options.old} -> {options.new}: {len(changes)} packages differ"
    return Report(data, "\n".join([head, *lines]))


def sign_release(release: Path, uri: str | None, monitor: Monitor) -> Report:
    """Sign an unsigned release with the release key ``uri`` (for ``freehold sign``)."""
    signer = KeyDirectory(default_directory()).signer(uri, monitor)
    manifest = signing.sign_release(ensure(cache_directory(), monitor), release, signer)
    data: dict[str, object] = {
        "schema": "freehold-sign-1", "release": str(release), "name": manifest.name, "version": manifest.version,
        "number": manifest.number, "uki_sha256": manifest.uki.sha256, "rescue_sha256": manifest.rescue.sha256,
    }  # fmt: skip
    return Report(data, f"{release}: signed\nNext: freehold disk or freehold publish {release.name}")


VERBS = (
    ("build", "build a sealed release from a recipe", build_arguments, build),
    ("disk", "make a bootable disk image from a release", disk_arguments, disk),
    ("inspect", "show what a release holds", inspect_arguments, inspect),
    ("diff", "the difference between two releases", diff_arguments, diff),
)
