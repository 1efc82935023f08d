# SPDX-License-Identifier: Apache-2.0
"""Putting an addition to dbx together: from certificates and programs in files, checked against what machines boot with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from freehold import atomic
from freehold.build.keys import KeyDirectory
from freehold.build.store import Store
from freehold.errors import InputError, VerificationError
from freehold.keys import dbx, pe, x509
from freehold.keys.dbx import Program
from freehold.keys.efi import CERT_X509, OWNER, Signature
from freehold.keys.verify import Keychain
from freehold.keys.x509 import Signer

#: Programs of one directory (a boot partition, a release) that are looked at.
MAX_PROGRAMS = 256
_PROGRAM_MARK = b"MZ"


@dataclass(frozen=True)
class Revoked:
    """One thing to refuse, and what people call it."""

    entry: Signature
    name: str

    def data(self) -> dict[str, object]:
        """For programs."""
        return {**dbx.describe(self.entry), "name": self.name}

    def text(self) -> str:
        """For people."""
        facts = dbx.describe(self.entry)
        if facts["kind"] == "certificate":
            return (
                f"  certificate  {facts['subject']} ({self.name})\n               sha256 {facts['sha256']}\n"
                "               what it signed, and what certificates that it issued signed, does not start, and is not believed"
            )
        return f"  program      {self.name}\n               Authenticode sha256 {facts['sha256']}\n               does not start"


def gather(files: Sequence[Path], digests: Sequence[str]) -> tuple[Revoked, ...]:
    """What ``files`` (certificates in PEM or DER, EFI programs) and ``digests`` (Authenticode, hex) name.

    Raises :class:`InputError` with every fault.
    """
    found: list[Revoked] = []
    faults: list[str] = []
    for path in files:
        try:
            found.append(_revoked(path))
        except OSError as error:
            faults.append(f"{path}: {error.strerror}")
        except (ValueError, InputError) as error:
            faults.append(f"{path}: {error}")
    for digest in digests:
        try:
            found.append(Revoked(dbx.program_entry(bytes.fromhex(digest)), "given by its digest"))
        except ValueError:
            faults.append(f"--sha256 {digest[:80]}: an Authenticode digest is 64 hex digits")
    if not files and not digests:
        faults.append("nothing: name certificates and EFI programs, or --sha256")
    if faults:
        raise InputError("these cannot be revoked", faults=faults, hint="a certificate (PEM or DER), or an EFI program")
    first: dict[Signature, Revoked] = {}
    for one in found:
        first.setdefault(one.entry, one)
    return tuple(first.values())


def _revoked(path: Path) -> Revoked:
    with path.open("rb") as source:
        if source.read(len(_PROGRAM_MARK)) == _PROGRAM_MARK:
            content = _PROGRAM_MARK + source.read(pe.MAX_BYTES)
            return Revoked(dbx.program_entry(pe.parse(content).authenticode()), str(path))
    return Revoked(dbx.certificate_entry(x509.der_of(x509.load_certificate(path))), str(path))


def in_the_way(entries: Sequence[Signature], owner: Signer, keys: KeyDirectory, boots: Iterable[Program]) -> tuple[str, ...]:
    """Why machines of this owner would no longer start, or no longer believe their owner; nothing when they would.

    In use are: the owner whose key signs the update, each certificate of ``keys`` that its list of revoked ones does not
    have, and what ``boots`` are.
    """
    used = {owner.certificate_der(): "the owner's, who signs this update"}
    standing = Keychain(revoked=keys.revoked())
    for path in sorted(keys.path.glob("*.crt")):
        der = x509.der_of(x509.load_certificate(path))
        if standing.why_revoked(der) is None:
            used.setdefault(der, str(path))
    said = []
    for entry in entries:
        for der, name in used.items():
            if dbx.reaches(entry, der):
                why = "is in use" if der == entry.data else "is in use, and was issued by what would be revoked"
                said.append(f"{name}: {dbx.describe(Signature(CERT_X509, OWNER, der))['subject']} {why}")
    for program in boots:
        refusal = dbx.refusing(entries, program)
        if refusal is not None:
            facts = dbx.describe(refusal)
            said.append(f"{program.name}: would not start (revoked: {facts['subject'] or 'this very program'})")
    return tuple(dict.fromkeys(said))


def programs(places: Sequence[str], store: Store) -> Iterator[Program]:
    """The EFI programs that ``places`` name: files, directories with ``*.efi`` in them, releases of ``store``.

    One at a time, since a boot image is large. Raises :class:`InputError` for what is none.
    """
    for place in places:
        top = Path(place) if Path(place).exists() else store.release(place)
        if top.is_dir():
            found = sorted(path for path in top.rglob("*") if path.suffix.lower() == ".efi" and path.is_file())
            if not 1 <= len(found) <= MAX_PROGRAMS:
                raise InputError(f"{top} has {len(found)} EFI programs", hint=f"1 to {MAX_PROGRAMS} are looked at")
        else:
            found = [top]
        for path in found:
            yield _program(path)


def _program(path: Path) -> Program:
    try:
        with path.open("rb") as source:
            return dbx.program(str(path), source.read(pe.MAX_BYTES + 1))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def sign(revoked: Sequence[Revoked], owner: Signer, timestamp: int) -> bytes:
    """The signed update; :class:`InputError` when firmware could not take it in one piece."""
    try:
        return dbx.make([one.entry for one in revoked], timestamp, owner.sign_pkcs7)
    except ValueError as error:
        raise InputError(f"the update would be {error}", hint="make several, each of a part") from None


def write(path: Path, data: bytes) -> None:
    """Write the update; :class:`InputError` when there is a file of that name."""
    if path.exists():
        raise InputError(f"{path} exists already", hint="-o FILE names another")
    atomic.write(path, data)


def read_updates(files: Sequence[Path], authorities: Sequence[bytes]) -> tuple[Signature, ...]:
    """The entries of updates in ``files``, each signed by one of ``authorities`` (DER). :class:`InputError` with every fault."""
    found: dict[Signature, None] = {}
    faults: list[str] = []
    for path in files:
        try:
            with path.open("rb") as source:
                update = dbx.verify(source.read(dbx.MAX_UPDATE_BYTES + 1), authorities)
            found.update(dict.fromkeys(update.entries))
        except OSError as error:
            faults.append(f"{path}: {error.strerror}")
        except VerificationError as error:
            faults.append(f"{path}: {error}")
    if faults:
        raise InputError("--dbx: not usable", faults=faults, hint="`freehold key dbx` makes such files, with this owner's key")
    return tuple(found)

