# SPDX-License-Identifier: Apache-2.0
"""``freehold attest``: on the machine, an answer to a nonce and an identity; elsewhere, the verdict on an answer."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from freehold.errors import EXIT_FAILED, InputError
from freehold.files import read_given
from freehold.monitor import Monitor, step
from freehold.report import Report

if TYPE_CHECKING:
    from freehold.attest.document import Identity
    from freehold.attest.judge import Release
    from freehold.keys.verify import Keychain


def attest_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``freehold attest``."""
    here = parser.add_argument_group("on the machine (root, TPM 2.0)")
    here.add_argument("-o", "--output", type=Path, metavar="FILE", help="where to write the attestation or identity")
    parser.add_argument("--nonce", metavar="HEX", help="16 to 64 fresh random bytes in hex, chosen by who asks")
    parser.add_argument(
        "--identity", nargs="?", const="", metavar="FILE",
        help="on the machine: write its identity; with --check: the identity that you took when you trusted it",
    )  # fmt: skip
    there = parser.add_argument_group("on another machine")
    there.add_argument("--check", type=Path, metavar="FILE", help="judge this attestation")
    there.add_argument(
        "--keychain", type=Path, metavar="DIR", help="ROLE-NAME.der files to believe instead of the identity's"
    )
    there.add_argument(
        "--release", type=Path, metavar="RELEASE", help="a release's directory or UKI that has to be running"
    )


def attest(options: argparse.Namespace, monitor: Monitor) -> Report:
    """Answer a nonce, write an identity, or judge an answer."""
    if options.check is not None:
        return _check(options)
    if options.keychain or options.release or options.identity:
        raise InputError("--keychain, --release and --identity FILE belong to --check FILE")
    if options.output is None:
        raise InputError("say where to write it: -o FILE", hint="`freehold attest -h` has examples")
    return _identity(options.output, monitor) if options.identity is not None else _attest(options, monitor)


def _attest(options: argparse.Namespace, monitor: Monitor) -> Report:
    from freehold import atomic
    from freehold.attest import document
    from freehold.device import attest as work
    from freehold.device.sysroot import Sysroot

    if options.nonce is None:
        raise InputError("--nonce HEX is missing", hint="who asks makes one: openssl rand -hex 32")
    nonce = document.parse_nonce(options.nonce)
    tpm = work.Tpm()
    work.check_here(tpm)
    with step(monitor, "ask the TPM"):
        data = document.serialize_attestation(work.attest(Sysroot(), nonce, tpm))
    atomic.write(options.output, data)
    next_step = f"freehold attest --check {options.output.name} --nonce {nonce.hex()} --identity IDENTITY"
    return Report(
        {"schema": "freehold-attest-1", "attestation": str(options.output), "nonce": nonce.hex(), "bytes": len(data)},
        f"{options.output}: {len(data)} bytes\nNext, where the nonce was made: {next_step}",
    )


def _identity(output: Path, monitor: Monitor) -> Report:
    from freehold import atomic
    from freehold.attest import document, tpm
    from freehold.device import attest as work
    from freehold.device.sysroot import Sysroot

    place = work.Tpm()
    work.check_here(place)
    with step(monitor, "ask the TPM"):
        identity = work.identity(Sysroot(), place)
    atomic.write(output, document.serialize_identity(identity))
    fingerprint = tpm.parse_public(identity.key).fingerprint
    return Report(
        {
            "schema": "freehold-attest-identity-1",
            "identity": str(output),
            "machine": identity.machine,
            "key": fingerprint,
        },
        f"{output}: machine {identity.machine}, key {fingerprint}\n"
        "Next: copy it to where you check, by a way that you trust; it is worth what the machine was worth when it was taken",
    )


def _check(options: argparse.Namespace) -> Report:
    from freehold.attest import document
    from freehold.attest.judge import judge
    from freehold.keys.verify import Keychain

    if options.nonce is None:
        raise InputError("--nonce HEX is missing", hint="give the nonce that you sent to the machine")
    if options.identity == "":
        raise InputError("--identity needs the identity's file here")
    if options.output is not None:
        raise InputError("--check writes no file", hint="--json prints the verdict for programs")
    nonce = document.parse_nonce(options.nonce)
    attestation = document.parse_attestation(read_given(options.check, document.MAX_ATTESTATION_BYTES))
    identity: Identity | None = None
    keychain: Keychain | None = None
    if options.identity:
        identity = document.parse_identity(read_given(Path(options.identity), document.MAX_IDENTITY_BYTES))
        keychain = Keychain.from_files(identity.keychain, f"in {options.identity}")
    if options.keychain is not None:
        keychain = Keychain.from_directory(options.keychain)
    release = load_release(options.release) if options.release is not None else None
    verdict = judge(attestation, nonce=nonce, identity=identity, keychain=keychain, release=release)
    return Report(verdict.data(), verdict.text(), 0 if verdict.good else EXIT_FAILED)


def load_release(path: Path) -> Release:
    """The release in directory ``path``, or the UKI ``path``. :class:`InputError` when it is none."""
    from freehold.attest.judge import Release
    from freehold.keys import pe
    from freehold.update.manifest import UKI_LIMIT

    file = path / "uki.efi" if path.is_dir() else path
    data = read_given(file, UKI_LIMIT)
    try:
        return Release(pe.parse(data), hashlib.sha256(data).hexdigest())
    except ValueError as error:
        raise InputError(f"{file}: {error}") from None


VERBS = (("attest", "prove what runs here, or judge such a proof", attest_arguments, attest),)
