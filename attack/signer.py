# SPDX-License-Identifier: Apache-2.0
"""Who signs what the attacker makes: a stranger with keys of the right form, and, for controls, the machine's own people."""

from __future__ import annotations

from pathlib import Path

from freehold.build.tools import Tools
from freehold.build.uki import sign_efi
from freehold.keys.issue import create
from freehold.keys.x509 import Signer, load_signer

ADDON_STUB = "/usr/lib/systemd/boot/efi/addonx64.efi.stub"


def signer(directory: Path, name: str) -> Signer:
    """The key ``name`` of a directory, which has no passphrase."""
    return load_signer(f"file:{directory / f'{name}.key'}", ask=lambda _: b"")


def stranger(directory: Path, role: str) -> Signer:
    """A stranger's key of ``role`` (``release`` or ``owner``): the same form, the same subject, nobody's trust."""
    name = "owner" if role == "owner" else "release"
    if not (directory / f"{name}.key").exists():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        create(name, "owner" if role == "owner" else "release", directory, None)
    return signer(directory, name)


def signed(tools: Tools, work: Path, data: bytes, by: Signer) -> bytes:
    """An EFI program with ``by``'s signature."""
    source, target = work / "unsigned.efi", work / "signed.efi"
    source.write_bytes(data)
    target.unlink(missing_ok=True)
    sign_efi(tools, source, target, by)
    return target.read_bytes()


def addon(tools: Tools, work: Path, words: str) -> bytes:
    """An unsigned add-on for a unified kernel image that adds ``words`` to its command line."""
    target = work / "addon.efi"
    target.unlink(missing_ok=True)
    tools.run(
        ["ukify", "build", f"--stub={ADDON_STUB}", f"--cmdline={words}", f"--output={target}"],
        binds=[work], env={"SOURCE_DATE_EPOCH": "0"},
    )  # fmt: skip
    return target.read_bytes()
