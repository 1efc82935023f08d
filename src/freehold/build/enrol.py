# SPDX-License-Identifier: Apache-2.0
"""Secure Boot keys that a disk brings along: who goes into which variable, and the files that systemd-boot enrols.

systemd-boot 257, started on a machine in setup mode, writes ``loader/keys/auto/db.auth``, ``dbx.auth`` (if it is there),
``KEK.auth`` and ``PK.auth`` into the variables of those names, in this order, and restarts the machine (systemd's
src/boot/secure-boot.c). In setup mode firmware checks no signature but that of PK, which has to be PK's own (UEFI specification
2.10, section 32.3.1, and edk2's ProcessVarWithPk). All are signed by the owner all the same, for firmware that is stricter than
it has to be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from uuid import UUID

from freehold.build.recipe import certificate_der
from freehold.build.store import Store
from freehold.build.tools import Tools
from freehold.errors import InputError, VerificationError
from freehold.keys import dbx, efi
from freehold.keys.verify import MAX_CERTIFICATE_BYTES, Keychain, verify_document
from freehold.keys.x509 import Signer

MODES = ("if-safe", "force", "off")
KEYCHAIN = "/usr/lib/freehold/keychain"
#: Where systemd-boot looks, on the boot partition.
DIRECTORY = "loader/keys/auto"
FOR_FIRMWARE = "firmware"
MEANING = {
    "PK": "the platform key: may change KEK, and itself",
    "KEK": "may change db and dbx",
    "db": "their signatures make boot programs, and files with built-in signatures, count",
}


@dataclass(frozen=True)
class Entry:
    """One certificate for one variable. ``role`` is the keychain's, or ``firmware``: for firmware's own programs only."""

    variable: str
    role: str
    name: str
    der: bytes

    def data(self) -> dict[str, str]:
        """The entry for people and programs."""
        from cryptography import x509

        subject = x509.load_der_x509_certificate(self.der).subject.rfc4514_string()
        return {"role": self.role, "name": self.name, "subject": subject, "sha256": sha256(self.der).hexdigest()}

    @property
    def owner(self) -> UUID:
        """What the variable says who put it there; the early step goes by it."""
        return efi.FIRMWARE_ONLY if self.role == FOR_FIRMWARE else efi.OWNER


@dataclass(frozen=True)
class Enrolment:
    """What a machine in setup mode enrols by itself; no entries with mode ``off``."""

    mode: str
    entries: tuple[Entry, ...] = ()
    #: What the firmware shall refuse from the start (dbx).
    refused: tuple[efi.Signature, ...] = ()

    def of(self, variable: str) -> tuple[Entry, ...]:
        """The certificates of ``variable``."""
        return tuple(entry for entry in self.entries if entry.variable == variable)

    def data(self) -> dict[str, object]:
        """For reports: mode, and for each variable its certificates."""
        variables = {name: [entry.data() for entry in self.of(name)] for name in efi.VARIABLES} if self.entries else {}
        return {"mode": self.mode, "variables": variables, "dbx": [dbx.describe(one) for one in self.refused]}

    def text(self) -> str:
        """The same for people."""
        if not self.entries:
            return "Secure Boot: the disk enrols nothing; the machine's firmware stays as it is."
        lines = [f"Secure Boot: a machine in setup mode that starts this disk enrols ({self.mode})"]
        for name in efi.VARIABLES:
            lines.append(f"  {name}: {MEANING[name]}")
            for entry in self.of(name):
                shown = entry.data()
                lines.append(f"    {shown['role']:8} {shown['subject']}\n             sha256 {shown['sha256']}")
        if self.refused:
            lines.append("  dbx: what the firmware refuses, whoever signed it")
            rows = [dbx.describe(one) for one in self.refused]
            lines += [f"    {row['subject'] or row['kind']}\n             sha256 {row['sha256']}" for row in rows]
        if not any(entry.role == FOR_FIRMWARE for entry in self.entries):
            lines.append("  nobody else: option ROMs of graphics, network and storage cards do not run (--option-rom)")
        return "\n".join(lines)


@dataclass(frozen=True)
class SecureBootKeys:
    """An enrolment and the owner who signs it; without one there is nothing to sign."""

    enrolment: Enrolment
    owner: Signer | None = None

    def files(self, timestamp: int) -> dict[str, bytes]:
        """The files for :data:`DIRECTORY`; equal arguments give equal bytes."""
        if self.owner is None:
            return {}
        made = {}
        for name in efi.VARIABLES:
            lists = b"".join(efi.certificate_list(entry.der, entry.owner) for entry in self.enrolment.of(name))
            made[f"{name}.auth"] = efi.variable_update(name, lists, timestamp, self.owner.sign_pkcs7)
        if self.enrolment.refused:
            # Signed anew, for being set: the boot loader does not append.
            lists = dbx.to_lists(self.enrolment.refused)
            made[f"{efi.REFUSED}.auth"] = efi.variable_update(efi.REFUSED, lists, timestamp, self.owner.sign_pkcs7)
        return made


NOTHING = SecureBootKeys(Enrolment("off"))


def plan(
    mode: str, keychain: Keychain, platform: bytes, extra: Mapping[str, bytes], refused: Sequence[efi.Signature] = ()
) -> Enrolment:
    """Who goes into which variable: ``platform`` (DER, an owner's) alone into PK, every owner into KEK, the whole keychain into
    db, and there ``extra`` (name to DER) for firmware's own programs; ``refused`` into dbx. Pure.

    Raises :class:`InputError` when ``platform`` is no owner of the keychain, and for an extra one that is in it anyway.
    """
    owners = sorted(keychain.of_role("owner"), key=lambda one: one.der != platform)
    if not owners or owners[0].der != platform:
        raise InputError(
            "the owner's key is not of this release's keychain: the machine would not take its word later",
            hint=f"owners in it: {', '.join(one.name for one in owners) or 'none'}; --owner-key names another key",
        )
    known = {one.der for one in keychain.certificates}
    faults = [f"{name}: is in the keychain already" for name, der in extra.items() if der in known]
    if faults:
        raise InputError("--extra-db takes certificates of others", faults=faults)
    entries = [Entry("PK", "owner", owners[0].name, platform)]
    entries += [Entry("KEK", one.role, one.name, one.der) for one in owners]
    others = (*keychain.of_role("vendor"), *keychain.of_role("release"))
    entries += [Entry("db", one.role, one.name, one.der) for one in (*owners, *others)]
    entries += [Entry("db", FOR_FIRMWARE, name, der) for name, der in extra.items()]
    return Enrolment(mode, tuple(entries), tuple(refused))


def extra_certificates(files: Sequence[Path]) -> dict[str, bytes]:
    """The certificates of others (PEM or DER), by file name. :class:`InputError` with every fault."""
    found: dict[str, bytes] = {}
    faults: list[str] = []
    for path in files:
        try:
            with path.open("rb") as source:
                content = source.read(2 * MAX_CERTIFICATE_BYTES + 1)
            found[path.name] = certificate_der(content)
        except OSError as error:
            faults.append(f"{path}: {error.strerror}")
        except ValueError as error:
            faults.append(f"{path}: {error}")
    if faults:
        raise InputError("--extra-db: not usable", faults=faults, hint="one X.509 certificate in each file, DER or PEM")
    return found


def release_keychain(tools: Tools, store: Store, commit: str) -> Keychain:
    """The keychain that is sealed in a release's tree: whom the machine will believe, without the revoked."""
    listing = tools.run(["ostree", f"--repo={store.repo}", "ls", commit, KEYCHAIN], ro_binds=[store.repo]).text
    names = [line.rpartition("/")[2] for line in listing.splitlines() if line.startswith("-")]
    files = {
        name: tools.run(
            ["ostree", f"--repo={store.repo}", "cat", commit, f"{KEYCHAIN}/{name}"], ro_binds=[store.repo]
        ).stdout
        for name in names
    }  # fmt: skip
    return Keychain.from_files(files, f"of {commit[:16]}")


def check_bootable(
    release: Path, keychain: Keychain, signer: Signer, refused: Sequence[efi.Signature] = (), programs: Iterable[dbx.Program] = ()
) -> None:
    """That ``release`` and a boot loader signed by ``signer`` start on a machine whose db is ``keychain``, and dbx ``refused``.

    ``programs`` are the release's. Raises :class:`VerificationError`: once enrolled, such a machine would not start its own disk.
    """
    hint = "sign with a release key of the keychain (--key), or build the release again"
    verdict = verify_document(b"", signer.sign_document(b""), keychain=keychain)
    if not verdict.ok:
        raise VerificationError(f"the boot loader would not start once the keychain is enrolled: {verdict.reason}", hint=hint)
    data, signature = ((release / name).read_bytes() for name in ("manifest.json", "manifest.json.sig"))
    verdict = verify_document(data, signature, keychain=keychain)
    if not verdict.ok:
        raise VerificationError(f"{release.name} would not start once the keychain is enrolled: {verdict.reason}", hint=hint)
    loader = dbx.Program("the boot loader", b"", (signer.certificate_der(),))
    for one in (loader, *(programs if refused else ())):
        if dbx.refusing(refused, one) is not None:
            raise VerificationError(f"{one.name} would not start: what --dbx adds refuses it", hint=hint)
