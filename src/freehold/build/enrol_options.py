# SPDX-License-Identifier: Apache-2.0
"""The options of ``freehold disk`` about Secure Boot: arguments in, what the disk shall enrol out."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from freehold.build import dbx
from freehold.build.disk import BOOT_LOADER
from freehold.build.enrol import (
    MODES,
    NOTHING,
    SecureBootKeys,
    check_bootable,
    extra_certificates,
    plan,
    release_keychain,
)
from freehold.build.keys import KeyDirectory
from freehold.build.store import Store, cache_directory
from freehold.build.tools import ensure
from freehold.errors import InputError
from freehold.monitor import Monitor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``freehold disk`` that decide about enrolment."""
    group = parser.add_argument_group(
        "Secure Boot",
        "A machine whose firmware is in setup mode can enrol the keychain's certificates\n"
        "from the disk, by itself, at its first start.",
    )
    group.add_argument(
        "--enrol", choices=MODES, default="off",
        help="force: on any machine in setup mode, after a countdown of 15 seconds on real hardware; if-safe: in virtual machines"
        " only, where nothing can be broken for good; off (default): never, the firmware's keys are somebody else's work",
    )  # fmt: skip
    group.add_argument(
        "--owner-key", metavar="URI", help="the owner's key, which signs what is enrolled (default: owner.key of --keys)"
    )
    group.add_argument(
        "--option-rom", choices=("drop", "keep"),
        help="drop (default): nobody but the keychain is trusted, so firmware no longer runs the signed programs on graphics,"
        " network and storage cards: a card may show no picture before the kernel's driver starts, a machine that cannot do"
        " without may not start at all; keep: those who signed them stay trusted as boot programs, with all else they signed",
    )  # fmt: skip
    group.add_argument(
        "--extra-db", type=Path, action="append", default=[], metavar="FILE",
        help="with --option-rom keep: a certificate to trust for firmware's programs, such as Microsoft's UEFI CA (repeatable)",
    )  # fmt: skip
    group.add_argument(
        "--dbx", type=Path, action="append", default=[], metavar="FILE",
        help="what the firmware shall refuse from the start: an update that `freehold key dbx` made (repeatable)",
    )  # fmt: skip
    group.add_argument(
        "--dry-run", action="store_true", help="only show which certificate would be enrolled into which variable"
    )


def chosen(
    options: argparse.Namespace, store: Store, keys: KeyDirectory, release: Path, monitor: Monitor
) -> SecureBootKeys:
    """What the disk shall enrol.

    Raises :class:`InputError` for options that do not go together, :class:`VerificationError` when the machine
    would not start this disk afterwards.
    """
    faults = []
    if options.enrol == "off":
        given = [("--owner-key", options.owner_key), ("--option-rom", options.option_rom), ("--extra-db", options.extra_db),
                 ("--dbx", options.dbx)]
        faults = [f"{name}: only with --enrol if-safe or --enrol force" for name, value in given if value]
    elif options.option_rom == "keep" and not options.extra_db:
        faults = ["--option-rom keep: whose programs? --extra-db names the certificate, Freehold brings none along"]
    elif options.extra_db and options.option_rom != "keep":
        faults = ["--extra-db: only with --option-rom keep"]
    if faults:
        raise InputError("these options do not go together", faults=faults)
    if options.enrol == "off":
        return NOTHING
    owner = keys.owner(options.owner_key, monitor)
    commit = json.loads((release / "manifest.json").read_text())["commit"]
    tools = ensure(cache_directory(), monitor)
    keychain = release_keychain(tools, store, commit)
    refused = dbx.read_updates(options.dbx, [one.der for one in keychain.of_role("owner")])
    programs = dbx.programs([str(release), str(tools.root / BOOT_LOADER.lstrip("/"))], store)
    check_bootable(release, keychain, keys.signer(options.key, monitor), refused, programs)
    extra = extra_certificates(options.extra_db)
    return SecureBootKeys(plan(options.enrol, keychain, owner.certificate_der(), extra, refused), owner)
