# SPDX-License-Identifier: Apache-2.0
"""``freehold key …``: make keys, list them, say in words what one may do."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from datetime import UTC, datetime
from getpass import getpass
from pathlib import Path
from typing import TYPE_CHECKING

from freehold.errors import InputError
from freehold.keys.verify import ROLES, role_of
from freehold.monitor import Monitor
from freehold.report import Report

if TYPE_CHECKING:
    from cryptography import x509

MEANING = {
    "release": "sign releases: manifests of updates, and boot images that firmware with this certificate starts",
    "owner": "say for a machine whether it is locked, and commit its /etc",
}
NO_ROLE = "nothing by itself: it names no role, the keychain's file name decides (ROLE-NAME.der)"

Adder = Callable[[argparse.ArgumentParser], None]
Handler = Callable[[argparse.Namespace, Monitor], Report]


def default_directory() -> Path:
    """Where keys are kept unless told otherwise: ``$XDG_CONFIG_HOME/freehold/keys``."""
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "freehold" / "keys"


def new_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``key new``."""
    parser.add_argument("name", metavar="NAME", help="name of the key and its files")
    parser.add_argument("--role", required=True, choices=ROLES, help="what it may sign")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"where to write it (default {default_directory()})")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--passphrase-file", type=Path, metavar="FILE", help="take the passphrase from its first line")
    how.add_argument("--no-passphrase", action="store_true", help="leave the key unencrypted")


def new(arguments: argparse.Namespace, monitor: Monitor) -> Report:
    """Make a key and its certificate."""
    from freehold.keys import x509

    if arguments.no_passphrase:
        passphrase = None
    elif arguments.passphrase_file:
        passphrase = x509.read_passphrase(arguments.passphrase_file)
    else:
        passphrase = _new_passphrase()
    files = x509.create(arguments.name, arguments.role, arguments.out or default_directory(), passphrase)
    facts = describe(x509.load_certificate(files.certificate))
    data: dict[str, object] = {
        "key": str(files.key), "certificate": str(files.certificate), "der": str(files.der),
        "encrypted": passphrase is not None, **facts,
    }  # fmt: skip
    return Report(data, f"{files.key}   keep it secret\n{files.certificate}\n{files.der}\nIt may {facts['may']}.\n")


def _new_passphrase() -> bytes:
    try:
        first = getpass("passphrase for the new key: ")
        if first != getpass("again: "):
            raise InputError("the two passphrases differ")
    except EOFError:
        raise InputError("nobody is there to type a passphrase", hint="--passphrase-file or --no-passphrase") from None
    return first.encode()


def list_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``key list``."""
    parser.add_argument("directory", nargs="?", type=Path, metavar="DIR", help=f"default {default_directory()}")


def list_(arguments: argparse.Namespace, monitor: Monitor) -> Report:
    """Every certificate of a directory, and whether its private key lies beside it."""
    from freehold.keys import x509

    directory = arguments.directory or default_directory()
    if not directory.is_dir():
        if arguments.directory:
            raise InputError(f"{directory} is not a directory")
        return Report({"keys": []}, "No keys yet. `freehold key new NAME --role ROLE` makes one.\n")
    rows: list[dict[str, object]] = []
    for path in sorted(directory.glob("*.crt")):
        facts = describe(x509.load_certificate(path))
        rows.append({"name": path.stem, "private": path.with_suffix(".key").is_file(), **facts})
    lines = [
        f"{row['name']}  {row['role'] or 'no role'}  until {row['not_after']}  "
        f"{'with private key' if row['private'] else 'certificate only'}\n"
        for row in rows
    ]
    return Report({"keys": rows}, "".join(lines) or f"No keys in {directory}.\n")


def show_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``key show``."""
    parser.add_argument("name", metavar="NAME|FILE", help="a key's name, or a certificate (PEM or DER)")


def show(arguments: argparse.Namespace, monitor: Monitor) -> Report:
    """What one certificate may do, in words."""
    from freehold.keys import x509

    path = Path(arguments.name)
    if "/" not in arguments.name and not path.is_file():
        path = default_directory() / f"{arguments.name}.crt"
    elif path.suffix == ".key":
        path = path.with_suffix(".crt")
    facts = describe(x509.load_certificate(path))
    text = (
        f"{facts['subject']}\n"
        f"  role         {facts['role'] or 'none'}\n"
        f"  may          {facts['may']}\n"
        f"  key          {facts['algorithm']}\n"
        f"  fingerprint  sha256 {facts['fingerprint']}\n"
        f"  valid        {facts['not_before']} to {facts['not_after']}{'' if facts['current'] else '  (not now)'}\n"
        "               (kernel and lock do not look at the dates: take a key out of the keychain to revoke it)\n"
    )
    return Report({"file": str(path), **facts}, text)


def describe(certificate: x509.Certificate) -> dict[str, object]:
    """A certificate's facts, as JSON has them. Pure but for the clock (``current``)."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import Encoding

    role = role_of(certificate.public_bytes(Encoding.DER))
    public = certificate.public_key()
    usable = isinstance(public, rsa.RSAPublicKey) and 2048 <= public.key_size <= 4096
    may = MEANING[role] if role else NO_ROLE
    return {
        "subject": certificate.subject.rfc4514_string(),
        "role": role,
        "may": may if usable else "nothing here: only RSA keys of 2048 to 4096 bits count",
        "algorithm": f"RSA-{public.key_size}" if isinstance(public, rsa.RSAPublicKey) else type(public).__name__,
        "fingerprint": certificate.fingerprint(hashes.SHA256()).hex(),
        "not_before": f"{certificate.not_valid_before_utc:%Y-%m-%d}",
        "not_after": f"{certificate.not_valid_after_utc:%Y-%m-%d}",
        "current": certificate.not_valid_before_utc <= datetime.now(UTC) <= certificate.not_valid_after_utc,
    }


VERBS: tuple[tuple[str, str, Adder, Handler], ...] = (
    ("new", "make a key and its certificate", new_arguments, new),
    ("list", "show the keys of a directory", list_arguments, list_),
    ("show", "say what a certificate may do", show_arguments, show),
)
