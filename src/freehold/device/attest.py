# SPDX-License-Identifier: Apache-2.0
"""The machine's side of an attestation: ask the TPM, gather the evidence.

The attestation key is the primary key of the endorsement hierarchy for one fixed template. The TPM makes the same key
from its own seed every time, so that there is nothing to store, to lose, or to carry to another TPM ([ADR 0010]). It is
made anew for each command and never leaves the TPM's memory. Nothing on the disk changes.

[ADR 0010]: docs/adr/0010-attestation-key.md
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from freehold import run
from freehold.attest import boot, document, measured, tpm, userlog
from freehold.attest.document import Attestation, Endorsement, Evidence, Identity
from freehold.device.sysroot import Sysroot, read_text
from freehold.errors import CommandError, FreeholdError, InputError, NotHereError
from freehold.files import read_bytes
from freehold.keys import eventlog, pcr
from freehold.keys.formats import MAX_REVOKED_BYTES, REVOKED_NAME
from freehold.keys.verify import MAX_CERTIFICATE_BYTES
from freehold.lock.intent import MAX_SIGNED_BYTES
from freehold.run import Argument
from freehold.update.manifest import MANIFEST_LIMIT, SIGNATURE_LIMIT

FIRMWARE_LOG = Path("sys/kernel/security/tpm0/binary_bios_measurements")
IMA_LOG = Path("sys/kernel/security/ima/binary_runtime_measurements_sha256")
SYSTEM_LOG = Path("run/log/systemd/tpm2-measure.log")
#: What the early step measured of this boot.
MEASURED = Path("run/freehold/measured")
DEVICE = Path("/dev/tpmrm0")
#: Seconds that one TPM command may take; some TPMs think for long about an RSA key.
TIMEOUT = 120
#: The running system measures as well; between reading and quoting it may.
ATTEMPTS = 5
_ATTRIBUTES = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign"
_SELECTION = f"sha256:{','.join(map(str, document.PCRS))}"
#: Where makers store certificates of their endorsement keys (TCG EK Credential Profile 2.5, section 2.2.1.4).
_CERTIFICATES = {"rsa": "0x01c00002", "ecc": "0x01c0000a"}


class Tpm(NamedTuple):
    """How to reach the TPM. ``prefix`` comes before each command; ``scratch`` is a directory in memory."""

    prefix: tuple[Argument, ...] = ()
    tcti: str = f"device:{DEVICE}"
    scratch: Path = Path("/run/freehold")

    def run(self, program: str, *arguments: Argument) -> None:
        """Run one of tpm2-tools. :class:`FreeholdError` in one line when the TPM refuses."""
        try:
            run.run([*self.prefix, program, "-T", self.tcti, *arguments], timeout=TIMEOUT)
        except NotHereError:
            raise NotHereError(
                "this image has no tpm2-tools", hint="build it with them: recipes/server.toml does"
            ) from None
        except CommandError as error:
            said = next((line for line in error.output.splitlines() if "0x" in line or "ERROR" in line), error.message)
            raise FreeholdError(
                f"the TPM refused ({program}): {said.strip()[:200]}",
                hint="a password on the endorsement hierarchy, or a TPM in lockout, are the usual reasons",
                details=error.details,
            ) from None


def check_here(tpm_: Tpm) -> None:
    """:class:`NotHereError` when there is no TPM 2.0, :class:`FreeholdError` when we are not root."""
    if os.geteuid() != 0:
        raise FreeholdError("only root may ask the TPM", hint="use the console, or ssh as root")
    if tpm_.tcti == f"device:{DEVICE}" and not DEVICE.exists():
        raise NotHereError("this machine has no TPM 2.0", hint="firmware settings may have one switched off")


@contextmanager
def _key(tpm_: Tpm) -> Iterator[Path]:
    """A directory with the key's context (``ak.ctx``) and public area (``ak.pub``); in memory, gone afterwards."""
    with tempfile.TemporaryDirectory(dir=tpm_.scratch, prefix="attest-") as name:
        work = Path(name)
        tpm_.run(
            "tpm2_createprimary", "-Q", "-C", "e", "-G", "ecc256:ecdsa-sha256:null", "-g", "sha256", "-a", _ATTRIBUTES,
            "-c", work / "ak.ctx",
        )  # fmt: skip
        tpm_.run("tpm2_readpublic", "-Q", "-c", work / "ak.ctx", "-f", "tss", "-o", work / "ak.pub")
        yield work


def _pcrs(tpm_: Tpm, work: Path) -> tuple[bytes, ...]:
    tpm_.run("tpm2_pcrread", "-Q", "-o", work / "pcrs", _SELECTION)
    values = read_bytes(work / "pcrs", 4096)
    if len(values) != 32 * len(document.PCRS):
        raise FreeholdError("the TPM has no SHA-256 bank of PCRs", hint="firmware settings choose a TPM's banks")
    return tuple(values[at : at + 32] for at in range(0, len(values), 32))


def attest(sysroot: Sysroot, nonce: bytes, tpm_: Tpm) -> Attestation:
    """The answer of this machine to ``nonce``. :class:`FreeholdError` when the TPM or the evidence cannot be had."""
    with _key(tpm_) as work:
        for _ in range(ATTEMPTS):
            pcrs = _pcrs(tpm_, work)
            evidence = document.serialize_evidence(gather(sysroot))
            tpm_.run(
                "tpm2_quote", "-Q", "-c", work / "ak.ctx", "-l", _SELECTION, "-g", "sha256", "-f", "tss",
                "-q", document.qualifying(nonce, evidence).hex(), "-m", work / "quote", "-s", work / "signature",
            )  # fmt: skip
            quote = read_bytes(work / "quote", tpm.MAX_QUOTE_BYTES)
            # Anything measured since the PCRs were read is not in this evidence: again, with both.
            if tpm.parse_quote(quote).digest == hashlib.sha256(b"".join(pcrs)).digest():
                return Attestation(
                    nonce, read_bytes(work / "ak.pub", tpm.MAX_PUBLIC_BYTES), quote,
                    read_bytes(work / "signature", tpm.MAX_SIGNATURE_BYTES), pcrs, evidence,
                )  # fmt: skip
    raise FreeholdError("the PCRs changed each time they were quoted", hint="try again when the machine has booted")


def gather(sysroot: Sysroot) -> Evidence:
    """What this machine has to say beside the quote. :class:`FreeholdError` without the firmware's log."""
    booted = sysroot.deployments / sysroot.booted_id()
    intent = sysroot.root / "owner/intent"
    return Evidence(
        time=int(time.time()),
        machine=read_text(sysroot.root / "owner/id", 64).strip(),
        command_line=read_text(sysroot.system / "proc/cmdline", document.MAX_COMMAND_LINE).rstrip("\n"),
        firmware_log=firmware_log(sysroot),
        system_log=_optional(sysroot.system / SYSTEM_LOG, userlog.MAX_LOG_BYTES),
        ima_log=_optional(sysroot.system / IMA_LOG, userlog.MAX_LOG_BYTES),
        manifest=_optional(booted / "manifest.json", MANIFEST_LIMIT),
        manifest_signature=_optional(booted / "manifest.json.sig", SIGNATURE_LIMIT),
        intent=_optional(intent, MAX_SIGNED_BYTES) if intent.exists() else None,
        boot=sysroot.boot_record(),
        guard=sysroot.guard(),
        measured=_measured(sysroot),
    )


def _measured(sysroot: Sysroot) -> bytes | None:
    return _optional(sysroot.system / MEASURED, measured.MAX_BYTES) or None


def firmware_log(sysroot: Sysroot) -> bytes:
    """The firmware's log of measurements; :class:`NotHereError` when the kernel shows none."""
    try:
        return read_bytes(sysroot.system / FIRMWARE_LOG, eventlog.MAX_LOG_BYTES)
    except FileNotFoundError:
        raise NotHereError(
            "the firmware left no log of its measurements", hint="it needs a TPM 2.0 that the firmware uses"
        ) from None


def _optional(path: Path, most: int) -> bytes:
    """The file, empty when it is missing."""
    try:
        return read_bytes(path, most)
    except FileNotFoundError:
        return b""


def identity(sysroot: Sysroot, tpm_: Tpm) -> Identity:
    """This machine as it is now, for the owner to keep. :class:`FreeholdError` when it cannot be had."""
    try:
        events, _ = eventlog.parse(firmware_log(sysroot))
        variables = boot.variables(events)
    except ValueError as error:
        raise FreeholdError(f"the firmware's log cannot be used: {error}") from None
    with _key(tpm_) as work:
        pcrs = _pcrs(tpm_, work)
        return Identity(
            machine=read_text(sysroot.root / "owner/id", 64).strip(),
            time=int(time.time()),
            key=read_bytes(work / "ak.pub", tpm.MAX_PUBLIC_BYTES),
            endorsements=tuple(_endorsements(tpm_, work)),
            firmware={number: pcrs[number] for number in document.FIRMWARE_PCRS},
            programs=tuple(dict.fromkeys(boot.started(events))),
            variables={name: hashlib.sha256(variables[name]).digest() for name in document.VARIABLES},
            keychain=_keychain(sysroot),
            measures=_begins_with(pcrs[measured.PCR], _measured(sysroot), sysroot),
        )


def _begins_with(value: bytes, text: bytes | None, sysroot: Sysroot) -> bool:
    """Whether the TPM's value of PCR 15 is ``text``, then what systemd measured."""
    if text is None:
        return False
    digests = [measured.digest(text)]
    try:
        records = userlog.parse_systemd(_optional(sysroot.system / SYSTEM_LOG, userlog.MAX_LOG_BYTES))
    except ValueError:
        return False
    digests += [one.digest for one in records if one.pcr == measured.PCR]
    return pcr.replay(digests) == value


def _endorsements(tpm_: Tpm, work: Path) -> Iterator[Endorsement]:
    """The endorsement keys for which the maker stored a certificate; else the P-256 one, which is quickly made."""
    certificates: dict[str, bytes] = {}
    for kind, index in _CERTIFICATES.items():
        try:
            tpm_.run("tpm2_nvread", "-Q", "-C", "o", "-o", work / f"{kind}.crt", index)
        except FreeholdError:
            continue  # there is none
        certificates[kind] = read_bytes(work / f"{kind}.crt", MAX_CERTIFICATE_BYTES)
    for kind in certificates or ("ecc",):
        tpm_.run("tpm2_createek", "-Q", "-G", kind, "-c", work / f"{kind}.ctx", "-u", work / f"{kind}.pub", "-f", "tss")
        public = read_bytes(work / f"{kind}.pub", tpm.MAX_PUBLIC_BYTES)
        yield Endorsement(kind, public, certificates.get(kind))


def _keychain(sysroot: Sysroot) -> dict[str, bytes]:
    try:
        paths = sorted(
            path for path in sysroot.keychain.iterdir() if path.suffix == ".der" or path.name == REVOKED_NAME
        )
    except FileNotFoundError:
        raise InputError("this machine has no keychain") from None
    return {path.name: read_bytes(path, MAX_REVOKED_BYTES) for path in paths}
