# SPDX-License-Identifier: Apache-2.0
"""``freehold key …``: make keys, certificates and requests, revoke (also in firmware), list, say in words what one may do;
sign kernel modules.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from getpass import getpass
from pathlib import Path
from typing import TYPE_CHECKING

from freehold.errors import InputError
from freehold.keys.device import MACHINE
from freehold.keys.formats import REVOKED_NAME
from freehold.keys.verify import Keychain
from freehold.monitor import Monitor
from freehold.report import Report

if TYPE_CHECKING:
    from freehold.keys.issue import KeyFiles

#: Roles of keys that vouch for themselves, and of those that another issues.
SELF_SIGNED, ISSUED = ("vendor", "owner", "release"), ("release", "device")

Adder = Callable[[argparse.ArgumentParser], None]
Handler = Callable[[argparse.Namespace, Monitor], Report]


def default_directory() -> Path:
    """Where keys are kept unless told otherwise: ``$XDG_CONFIG_HOME/freehold/keys``."""
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "freehold" / "keys"


def new_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``key new``."""
    parser.add_argument("name", metavar="NAME", help="name of the key and its files")
    parser.add_argument("--role", required=True, choices=SELF_SIGNED, help="what it may sign; vendor and owner are CAs")
    how = _output_arguments(parser)
    how.add_argument("--key", metavar="URI", help="certify this key in a token (pkcs11:) or TPM (tpm2:), make none")


def new(arguments: argparse.Namespace, monitor: Monitor) -> Report:
    """Make a key and its self-signed certificate."""
    from freehold.build import tokens
    from freehold.keys import issue, x509

    out = arguments.out or default_directory()
    if arguments.key:
        opened = x509.load_key(arguments.key, _ask, tokens.schemes(monitor))
        return _made("new", issue.create_for(opened.key, arguments.name, arguments.role, out), encrypted=None)
    passphrase = _passphrase(arguments)
    return _made("new", issue.create(arguments.name, arguments.role, out, passphrase), encrypted=passphrase is not None)


def issue_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``key issue``."""
    parser.add_argument("name", metavar="NAME", help="name of the key and its files")
    parser.add_argument("--role", required=True, choices=ISSUED, help="release: by a vendor; device: by an owner")
    parser.add_argument("--ca", required=True, metavar="URI", help="the issuing key: file:, pkcs11: or tpm2:")
    parser.add_argument("--days", type=int, metavar="N", help="how long it is valid (default 730; never longer than the CA)")
    parser.add_argument("--machine", metavar="ID", help="for a device: the machine that it is for, 32 hex digits")
    how = _output_arguments(parser)
    how.add_argument("--request", type=Path, metavar="FILE", help="certify the key of this request (PEM), make none")


def issue(arguments: argparse.Namespace, monitor: Monitor) -> Report:
    """Make a key and a certificate for it, or a certificate for the key of a request."""
    from freehold.build import tokens
    from freehold.keys import issue as work
    from freehold.keys import x509

    out = arguments.out or default_directory()
    days = work.DAYS_ISSUED if arguments.days is None else arguments.days
    machine = arguments.machine
    if machine is not None and (arguments.role != "device" or not MACHINE.fullmatch(machine)):
        hint = "it is /etc/machine-id of that machine"
        raise InputError("--machine is for the role device, and 32 lower-case hex digits", hint=hint)
    public = work.requested_key(arguments.request) if arguments.request else None
    authority = x509.load_signer(arguments.ca, _ask, tokens.schemes(monitor))
    if public is not None:
        files = work.issue_for(public, arguments.name, arguments.role, out, authority, days, machine)
        return _made("issue", files, encrypted=None)
    work.check_authority(authority, arguments.role, days)
    passphrase = _passphrase(arguments)
    files = work.issue(arguments.name, arguments.role, out, passphrase, authority, days, machine)
    return _made("issue", files, encrypted=passphrase is not None)


def request_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``key request``."""
    parser.add_argument("name", metavar="NAME", help="name of the request's file")
    parser.add_argument("--key", required=True, metavar="URI", help="the key: file:, pkcs11: or tpm2:")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"where to write it (default {default_directory()})")


def request(arguments: argparse.Namespace, monitor: Monitor) -> Report:
    """Write a certificate request for a key, to be answered where the CA's key is."""
    from freehold.build import tokens
    from freehold.keys import issue as work
    from freehold.keys import x509

    opened = x509.load_key(arguments.key, _ask, tokens.schemes(monitor))
    path = work.request(opened.key, arguments.name, arguments.out or default_directory())
    answer = f"freehold key issue {arguments.name} --role ROLE --ca URI --request {path.name}"
    text = f"{path}\nNext, where the CA's key is: {answer}\n"
    return Report({"schema": "freehold-key-request-1", "request": str(path)}, text)


def revoke_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``key revoke``."""
    parser.add_argument("certificate", type=Path, metavar="CERT", help="the certificate (PEM or DER)")
    parser.add_argument("--reason", required=True, metavar="TEXT", help="why, in one line; machines show it")
    parser.add_argument("--keys", type=Path, metavar="DIR", help=f"whose list (default {default_directory()})")


def revoke(arguments: argparse.Namespace, monitor: Monitor) -> Report:
    """Note that a certificate no longer counts; releases built from now on carry the note."""
    from freehold.keys import issue as work
    from freehold.keys import x509
    from freehold.keys.describe import describe

    directory = arguments.keys or default_directory()
    certificate = x509.load_certificate(arguments.certificate)
    changed = work.revoke(x509.der_of(certificate), arguments.reason, directory)
    path = directory / REVOKED_NAME
    facts = describe(certificate, Keychain(revoked=work.read_revoked(path)))
    what = "is revoked" if changed else "was revoked already"
    text = (
        f"{facts['subject']} {what}: {facts['revoked']}\nMachines honour {path} after their next update from here.\n"
        f"Next: build and publish; then, for their firmware: freehold key dbx {arguments.certificate} --key URI --dry-run\n"
    )
    return Report({"schema": "freehold-key-revoke-1", "changed": changed, "list": str(path), **facts}, text)


def dbx_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``key dbx``."""
    parser.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help="what firmware shall refuse: a certificate, or an EFI program"
    )
    parser.add_argument(
        "--sha256", action="append", default=[], metavar="HEX", help="an EFI program, by its Authenticode digest (repeatable)"
    )
    parser.add_argument("--key", metavar="URI", help="the owner's key, which signs it (default: owner.key of --keys)")
    parser.add_argument("--keys", type=Path, metavar="DIR", help=f"keys that are in use (default {default_directory()})")
    parser.add_argument(
        "--boots", action="append", default=[], metavar="WHAT",
        help="a release, a boot partition, or an EFI program that has to go on starting (repeatable)",
    )  # fmt: skip
    parser.add_argument("--store", type=Path, metavar="DIR", help="where releases are kept")
    parser.add_argument("-o", "--output", type=Path, default=Path("dbx.auth"), metavar="FILE", help="default: dbx.auth")
    parser.add_argument("--force", action="store_true", help="also when it revokes what is in use")
    parser.add_argument("-n", "--dry-run", action="store_true", help="only show what would be revoked")


def dbx(arguments: argparse.Namespace, monitor: Monitor) -> Report:
    """Make a signed update that adds to what the firmware of the owner's machines refuses."""
    import time

    from freehold.build import dbx as work
    from freehold.build.keys import KeyDirectory
    from freehold.build.store import Store, default_store

    revoked = work.gather(arguments.files, arguments.sha256)
    keys = KeyDirectory(arguments.keys or default_directory())
    owner = keys.owner(arguments.key, monitor)
    boots = work.programs(arguments.boots, Store((arguments.store or default_store()).absolute()))
    faults = work.in_the_way([one.entry for one in revoked], owner, keys, boots)
    made = work.sign(revoked, owner, int(time.time()))
    refused = bool(faults) and not arguments.force
    if refused and not arguments.dry_run:
        raise InputError(
            "this would revoke what your own machines boot with", faults=faults,
            hint="put another in its place first, and note the old one by `freehold key revoke`; --force does it all the same",
        )  # fmt: skip
    if not arguments.dry_run:
        work.write(arguments.output, made)
    name = arguments.output
    data: dict[str, object] = {
        "schema": "freehold-key-dbx-1", "file": str(name), "written": not arguments.dry_run, "size": len(made),
        "signed_by": owner.certificate.subject.rfc4514_string(), "in_use": list(faults),
        "entries": [one.data() for one in revoked],
    }  # fmt: skip
    lines = [f"{name}: {len(made):,} bytes, to be signed by {data['signed_by']}" if arguments.dry_run else
             f"{name}: {len(made):,} bytes, signed by {data['signed_by']}"]  # fmt: skip
    lines += ["It adds to what the firmware of your machines refuses (dbx), for good:", *(one.text() for one in revoked)]
    lines += [f"! {fault}" for fault in faults]
    if not arguments.boots:
        lines.append("Not looked at: who signed the machines' boot loaders (--boots). `freehold dbx apply` looks itself.")
    if arguments.dry_run:
        lines.append("Nothing was written." + (" It would not be, without --force." if refused else ""))
    else:
        lines.append(f"Next, on each machine, as root: freehold dbx apply {name.name}     (in a rescue: dbx {name.name})")
        lines.append(f"      for machines that are not enrolled yet: freehold disk RELEASE -o DISK --enrol force --dbx {name}")
    return Report(data, "\n".join(lines) + "\n", 1 if refused else 0)


def list_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``key list``."""
    parser.add_argument("directory", nargs="?", type=Path, metavar="DIR", help=f"default {default_directory()}")


def list_(arguments: argparse.Namespace, monitor: Monitor) -> Report:
    """Every certificate of a directory, and whether its private key lies beside it."""
    from freehold.keys import issue as work
    from freehold.keys import x509
    from freehold.keys.describe import describe, one_line

    directory = arguments.directory or default_directory()
    if not directory.is_dir():
        if arguments.directory:
            raise InputError(f"{directory} is not a directory")
        return Report(
            {"schema": "freehold-key-list-1", "keys": []}, "No keys yet. `freehold key new NAME --role ROLE` makes one.\n"
        )
    keychain = Keychain(revoked=work.read_revoked(directory / REVOKED_NAME))
    rows: list[dict[str, object]] = []
    for path in sorted(directory.glob("*.crt")):
        private = any(path.with_suffix(suffix).is_file() for suffix in (".key", ".tss"))
        rows.append({"name": path.stem, "private": private, **describe(x509.load_certificate(path), keychain)})
    text = "".join(one_line(row) for row in rows) or f"No keys in {directory}.\n"
    return Report({"schema": "freehold-key-list-1", "keys": rows}, text)


def show_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``key show``."""
    parser.add_argument("name", metavar="NAME|FILE", help="a key's name, or a certificate (PEM or DER)")
    parser.add_argument("--keys", type=Path, metavar="DIR", help="whose list of revoked ones (default: the certificate's)")


def show(arguments: argparse.Namespace, monitor: Monitor) -> Report:
    """What one certificate may do, in words."""
    from freehold.keys import issue as work
    from freehold.keys import x509
    from freehold.keys.describe import describe, in_words

    path = Path(arguments.name)
    if "/" not in arguments.name and not path.is_file():
        path = (arguments.keys or default_directory()) / f"{arguments.name}.crt"
    elif path.suffix in (".key", ".tss"):
        path = path.with_suffix(".crt")
    revoked = work.read_revoked((arguments.keys or path.parent) / REVOKED_NAME)
    facts = describe(x509.load_certificate(path), Keychain(revoked=revoked))
    return Report({"schema": "freehold-key-show-1", "file": str(path), **facts}, in_words(facts))


def sign_module_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``key sign-module``."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="kernel modules, .ko or .ko.xz; changed in place")
    parser.add_argument("--key", required=True, metavar="URI", help="the key: file:, pkcs11: or tpm2:")
    parser.add_argument(
        "--chain", action="append", default=[], type=Path, metavar="CERT",
        help="a certificate between the key's own and one that machines know (repeatable)",
    )  # fmt: skip


def sign_module(arguments: argparse.Namespace, monitor: Monitor) -> Report:
    """Sign kernel modules, so that locked machines whose firmware knows the key load them. All of them, or none."""
    from freehold import atomic
    from freehold.build import tokens
    from freehold.keys import module, x509

    contents = {path: module.unpacked(_module(path), path.name) for path in arguments.files}
    chain = [x509.der_of(x509.load_certificate(path)) for path in arguments.chain]
    signer = x509.load_signer(arguments.key, _ask, tokens.schemes(monitor))
    if signer.role not in SELF_SIGNED:
        hint = f"one of the roles {', '.join(SELF_SIGNED)}: freehold key show"
        raise InputError("a key of this kind signs no modules", hint=hint)
    signed = {}
    for path, content in contents.items():
        try:
            signed[path] = module.packed(module.sign(content, signer, chain), path.name)
        except InputError as error:
            raise InputError(f"{path}: {error.message}", hint=error.hint) from None
    for path, data in signed.items():
        atomic.write(path, data, mode=path.stat().st_mode & 0o777)
    rows = [{"file": str(path), "kernel": module.kernel_of(contents[path]), "bytes": len(data)} for path, data in signed.items()]
    text = "".join(f"{row['file']}: signed, for kernel {row['kernel'] or 'unknown'}\n" for row in rows)
    text += "Next: `[modules] files` of the recipe, or on the machine: freehold denials says how a file is allowed.\n"
    by = {"signer": signer.certificate.subject.rfc4514_string(), "role": signer.role}
    return Report({"schema": "freehold-key-sign-module-1", "modules": rows, **by}, text)


def _module(path: Path) -> bytes:
    from freehold.files import read_given
    from freehold.keys import module

    return read_given(path, module.MAX_BYTES)


def _output_arguments(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """Where to, and how the private key is kept: one of these."""
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"where to write it (default {default_directory()})")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--passphrase-file", type=Path, metavar="FILE", help="take the passphrase from its first line")
    how.add_argument("--no-passphrase", action="store_true", help="leave the key unencrypted")
    return how


def _passphrase(arguments: argparse.Namespace) -> bytes | None:
    from freehold.keys import x509

    if arguments.no_passphrase:
        return None
    if arguments.passphrase_file:
        return x509.read_passphrase(arguments.passphrase_file)
    first = _ask("passphrase for the new key: ")
    if first != _ask("again: "):
        raise InputError("the two passphrases differ")
    return first


def _ask(prompt: str) -> bytes:
    try:
        return getpass(prompt).encode()
    except EOFError:
        hint = "--passphrase-file or --no-passphrase; passphrase-file= or pin-source= in a URI"
        raise InputError("nobody is there to type a secret", hint=hint) from None


def _made(verb: str, files: KeyFiles, *, encrypted: bool | None) -> Report:
    """The report on new files; ``encrypted`` is ``None`` when the private key lies elsewhere."""
    from freehold.keys import x509
    from freehold.keys.describe import describe

    facts = describe(x509.load_certificate(files.certificate), Keychain())
    data: dict[str, object] = {
        "schema": f"freehold-key-{verb}-1", "key": str(files.key) if files.key else None,
        "certificate": str(files.certificate), "der": str(files.der), "encrypted": encrypted, **facts,
    }  # fmt: skip
    secret = f"{files.key}   keep it secret\n" if files.key else ""
    return Report(data, f"{secret}{files.certificate}\n{files.der}\nUntil {facts['not_after']} it may {facts['may']}.\n")


VERBS: tuple[tuple[str, str, Adder, Handler], ...] = (
    ("new", "make a key that vouches for itself", new_arguments, new),
    ("issue", "make a key, or certify one, by a CA", issue_arguments, issue),
    ("request", "ask a CA elsewhere to certify a key", request_arguments, request),
    ("revoke", "note that a certificate no longer counts", revoke_arguments, revoke),
    ("dbx", "have firmware refuse certificates and programs", dbx_arguments, dbx),
    ("list", "show the keys of a directory", list_arguments, list_),
    ("show", "say what a certificate may do", show_arguments, show),
    ("sign-module", "sign kernel modules for locked machines", sign_module_arguments, sign_module),
)
