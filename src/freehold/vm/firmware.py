# SPDX-License-Identifier: Apache-2.0
"""The UEFI firmware of a machine: which files, and its variables with the owner's Secure Boot keys."""

from __future__ import annotations

import base64
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from freehold.errors import InputError
from freehold.files import read_given
from freehold.keys.efi import OWNER
from freehold.run import Argument, Completed

MAX_CERTIFICATE = 64 << 10
SUFFIXES = (".der", ".pem", ".crt", ".cer")

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----\s+([A-Za-z0-9+/=\s]+?)-----END CERTIFICATE-----")
_SEQUENCE = 0x30


class ToolRunner(Protocol):
    """Runs a program of the tools tree; ``binds`` are host directories that it sees, writable."""

    def __call__(self, argv: Sequence[Argument], /, *, binds: Sequence[Path] = ()) -> Completed:
        """Run ``argv`` to its end."""


@dataclass(frozen=True)
class Firmware:
    """The firmware's code and its empty variables."""

    code: Path
    variables: Path


@dataclass(frozen=True)
class Certificate:
    """A certificate, DER, with the role that its file's name gives it (``pk``, ``kek``, ``db``)."""

    role: str
    der: bytes
    owner: bool = False


def find(folder: Path, *, secure: bool) -> Firmware:
    """The firmware in ``folder`` (the 4 MiB builds of Debian's package ovmf), with or without Secure Boot."""
    return Firmware(folder / ("OVMF_CODE_4M.secboot.fd" if secure else "OVMF_CODE_4M.fd"), folder / "OVMF_VARS_4M.fd")


def certificates(places: Sequence[Path]) -> list[Certificate]:
    """The certificates in files and directories, owner's first; :class:`InputError` for anything else."""
    files: list[Path] = []
    for place in places:
        if place.is_dir():
            inside = sorted(entry for entry in place.iterdir() if entry.suffix.lower() in SUFFIXES)
            if not inside:
                raise InputError(f"{place} has no certificates", hint=f"files named *{', *'.join(SUFFIXES)}")
            files += inside
        else:
            files.append(place)
    found = []
    for file in files:
        data = read_given(file, MAX_CERTIFICATE)
        try:
            found += [Certificate(role(file.name), der, file.name.startswith("owner-")) for der in parse(data)]
        except ValueError as error:
            raise InputError(f"{file}: {error}", hint="a certificate in DER or PEM form") from None
    # The keychain's files are called ROLE-NAME: the machine is its owner's, so the platform key is theirs.
    return sorted(found, key=lambda one: not one.owner)


def role(file: str) -> str:
    """What a certificate's file name says it is for: ``pk``, ``kek``, or else ``db``."""
    stem = re.split(r"[._-]", file.lower(), maxsplit=1)[0]
    return stem if stem in ("pk", "kek") else "db"


def parse(data: bytes) -> list[bytes]:
    """The certificates in a PEM text, or the one in a DER file, as DER. ``ValueError`` for anything else."""
    if len(data) > MAX_CERTIFICATE:
        raise ValueError(f"more than {MAX_CERTIFICATE:,} bytes")
    if data[:1] == bytes([_SEQUENCE]):
        return [data]
    found = [base64.b64decode(match, validate=False) for match in _PEM.findall(data)]
    if not found or any(der[:1] != bytes([_SEQUENCE]) for der in found):
        raise ValueError("no certificate")
    return found


def pem(der: bytes) -> str:
    """A certificate as PEM text."""
    lines = "\n".join(textwrap.wrap(base64.b64encode(der).decode(), 64))
    return f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n"


def variables_command(template: Path, output: Path, files: Sequence[tuple[str, Path]]) -> list[str]:
    """The command that writes variables with keys: the first of no role is platform key and KEK as well."""
    by_role = {name: [file for kind, file in files if kind == name] for name in ("pk", "kek", "db")}
    ordered = by_role["db"] or by_role["kek"] or by_role["pk"]
    argv = ["virt-fw-vars", "--input", str(template), "--output", str(output), "--secure-boot"]
    argv += ["--set-pk", str(OWNER), str((by_role["pk"] or ordered)[0])]
    for file in by_role["kek"] or ordered[:1]:
        argv += ["--add-kek", str(OWNER), str(file)]
    for file in ordered:
        argv += ["--add-db", str(OWNER), str(file)]
    return argv


def prepare(template: Path, output: Path, found: Sequence[Certificate], tools: ToolRunner) -> None:
    """Write ``output``: ``template``'s variables with Secure Boot on and the certificates enrolled."""
    folder = output.parent
    files = []
    for number, certificate in enumerate(found):
        file = folder / f"certificate-{number}.pem"
        file.write_text(pem(certificate.der))
        files.append((certificate.role, file))
    # The tools tree sees only the directory that it is given.
    base = folder / "template.fd"
    base.write_bytes(template.read_bytes())
    try:
        tools(variables_command(base, output, files), binds=(folder,))
    finally:
        for file in [base, *(file for _, file in files)]:
            file.unlink(missing_ok=True)
