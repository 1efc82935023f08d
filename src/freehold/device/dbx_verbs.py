# SPDX-License-Identifier: Apache-2.0
"""``freehold dbx …``: what this machine's firmware does not start, and adding to it what the owner signed."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from freehold.device import efivars
from freehold.device.efivars import Append
from freehold.monitor import Monitor, step
from freehold.report import Report

if TYPE_CHECKING:
    from freehold.device.sysroot import Sysroot
    from freehold.keys.efi import Signature

Adder = Callable[[argparse.ArgumentParser], None]
Handler = Callable[[argparse.Namespace, Monitor], Report]

#: Hashes that are shown one by one.
SHOWN = 8


def show_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""


def show(_options: argparse.Namespace, _monitor: Monitor) -> Report:
    """What the firmware does not start."""
    from freehold.device import dbx as work
    from freehold.device.sysroot import Sysroot
    from freehold.keys import dbx

    here = work.look(Sysroot())
    data: dict[str, object] = {
        "schema": "freehold-dbx-1", "secure_boot": here.secure_boot, "setup_mode": here.setup_mode, "size": here.size,
        "entries": [dbx.describe(one) for one in here.refused],
    }  # fmt: skip
    lines = [f"The firmware refuses {len(here.refused)} certificates and programs ({here.size:,} bytes).", *listed(here.refused)]
    if here.setup_mode or not here.secure_boot:
        lines.append("! Secure Boot is off: it refuses nothing")
    return Report(data, "\n".join(lines) + "\n")


def listed(entries: Sequence[Signature]) -> list[str]:
    """Lines for ``entries``: certificates by name, the others by number, which can be hundreds."""
    from freehold.keys import dbx

    facts = [dbx.describe(one) for one in entries]
    lines = [f"  {one['subject']}\n    sha256 {one['sha256']}" for one in facts if one["kind"] == "certificate"]
    hashes = [one for one in facts if one["kind"] != "certificate"]
    lines += [f"  {one['kind']} {one['sha256']}" for one in hashes[:SHOWN]]
    if len(hashes) > SHOWN:
        lines.append(f"  and {len(hashes) - SHOWN} more by hash (--json lists them)")
    return lines


def apply_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``dbx apply``."""
    parser.add_argument("file", type=Path, metavar="FILE", help="the update, as `freehold key dbx` made it")
    parser.add_argument("-n", "--dry-run", action="store_true", help="say what it would do here, change nothing")
    parser.add_argument("--force", action="store_true", help="also when the machine would not start as it does")


def apply(options: argparse.Namespace, monitor: Monitor) -> Report:
    """Have the firmware refuse what the owner revoked."""
    from freehold.device.sysroot import Sysroot
    from freehold.files import read_given
    from freehold.keys.dbx import MAX_UPDATE_BYTES

    data = read_given(options.file, MAX_UPDATE_BYTES)
    with step(monitor, "asking the firmware"):
        return carry_out(Sysroot(), data, dry_run=options.dry_run, force=options.force)


def carry_out(
    sysroot: Sysroot, data: bytes, *, dry_run: bool = False, force: bool = False, append: Append = efivars.append
) -> Report:
    """Plan and, unless ``dry_run``, do it with ``append``.

    Raises as :func:`freehold.device.dbx.plan` and :func:`freehold.device.dbx.apply`.
    """
    from freehold.device import dbx as work
    from freehold.keys import dbx
    from freehold.keys.verify import Keychain

    keychain = Keychain.from_directory(sysroot.keychain)
    if dry_run:
        wanted, changed = work.plan(sysroot, data, keychain), False
    else:
        wanted, changed = work.apply(sysroot, data, keychain, force=force, append=append)
    lost = bool(wanted.new) and _device_key_goes(sysroot)
    report: dict[str, object] = {
        "schema": "freehold-dbx-apply-1", "changed": changed, "entries": [dbx.describe(one) for one in wanted.new],
        "vital": list(wanted.vital), "stops": list(wanted.stops), "device_key_lost": lost,
    }  # fmt: skip
    if not wanted.new:
        return Report(report, "The firmware refuses all of that already.\n")
    lines = [f"The firmware {'refuses' if changed else 'would refuse'} from now on, for good:", *listed(wanted.new)]
    lines += [f"! {said}" for said in (*wanted.vital, *wanted.stops)]
    if lost:
        lines.append("! the device key is lost with the next boot (the TPM keeps it for today's lists): unlock, reboot, lock")
    if not sysroot.secure_boot():
        lines.append("! Secure Boot is off: nothing is refused until it is switched on")
    if changed:
        lines.append("Next: reboot. From then on nothing that they signed is believed here, files and intents included.")
    else:
        lines.append("Nothing was written." + (" It would not be, without --force." if wanted.vital else ""))
    return Report(report, "\n".join(lines) + "\n", 1 if wanted.vital and not changed and not force else 0)


def _device_key_goes(sysroot: Sysroot) -> bool:
    """Whether a TPM keeps a device key for what the firmware's lists are now (docs/device-key.md, PCR 7)."""
    from freehold.device import device_key

    known = device_key.facts(device_key.Places(sysroot.root / "owner", sysroot.state))
    return known is not None and known.keeper == "tpm2"


VERBS: tuple[tuple[str, str, Adder, Handler], ...] = (
    ("show", "what this machine's firmware refuses to start", show_arguments, show),
    ("apply", "add what a signed update revokes", apply_arguments, apply),
)
