# SPDX-License-Identifier: Apache-2.0
"""A firmware in a directory that does with updates of dbx what the UEFI specification says, and real signed programs."""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from freehold.build import uki
from freehold.build.store import cache_directory
from freehold.build.tools import Tools, ensure
from freehold.device import efivars
from freehold.device.sysroot import Sysroot
from freehold.errors import FreeholdError
from freehold.keys import efi
from freehold.keys.x509 import Signer, load_signer
from freehold.monitor import NullMonitor
from freehold.run import Argument, run

LOADER = "usr/lib/systemd/boot/efi/systemd-bootx64.efi"
ADDON = "usr/lib/systemd/boot/efi/addonx64.efi.stub"
TIME = 1_790_000_000


@functools.cache
def tools() -> Tools:
    """The tools tree."""
    return ensure(cache_directory(), NullMonitor())


def unsigned(which: str = LOADER) -> bytes:
    """An EFI program as Debian has it."""
    return (tools().root / which).read_bytes()


def signer(keys: Path, name: str) -> Signer:
    """A key without a passphrase."""
    return load_signer(f"file:{keys / name}.key", lambda _: b"")


def signed(keys: Path, name: str, target: Path, which: str = LOADER) -> Path:
    """An EFI program signed by sbsign with the key ``name``."""
    source = target.with_name(f"{target.name}.unsigned")
    source.write_bytes(unsigned(which))
    uki.sign_efi(tools(), source, target, signer(keys, name))
    source.unlink()
    return target


def openssl_believes(signed_data: bytes, covered: bytes, certificate: Path, work: Path) -> bool:
    """Whether openssl takes a SignedData, in the ContentInfo that it wants around it, for ``covered``."""
    inner = b"\xa0\x82" + struct.pack(">H", len(signed_data)) + signed_data
    body = bytes.fromhex("06092a864886f70d010702") + inner
    (work / "p7").write_bytes(b"\x30\x82" + struct.pack(">H", len(body)) + body)
    (work / "covered").write_bytes(covered)
    command: list[Argument] = ["openssl", "smime", "-verify", "-binary", "-inform", "DER", "-in", work / "p7"]
    command += ["-content", work / "covered", "-CAfile", certificate, "-purpose", "any", "-out", os.devnull]
    return run(command, check=False).status == 0


class Board:
    """The variables below ``sysroot``. ``append`` takes updates: signature by openssl, each entry once, ``room`` bytes."""

    def __init__(self, sysroot: Sysroot, kek: Path, work: Path, db: list[bytes], *, room: int = 1 << 15) -> None:
        self.place = sysroot.system / efivars.PLACE
        self.place.mkdir(parents=True)
        self.kek, self.work, self.room = kek, work, room
        self.writes: list[bytes] = []
        self.keeps: Callable[[bytes], bytes] = lambda lists: lists
        self.flag("SetupMode", on=False)
        self.flag("SecureBoot", on=True)
        self.store("KEK", efi.GLOBAL_VARIABLE, efi.certificate_list(kek.with_suffix(".der").read_bytes()))
        self.store("db", efi.IMAGE_SECURITY_DATABASE, b"".join(map(efi.certificate_list, db)))

    def flag(self, name: str, *, on: bool) -> None:
        """What the firmware says itself, anew at each boot."""
        (self.place / f"{name}-{efi.GLOBAL_VARIABLE}").write_bytes(b"\6\0\0\0" + bytes([on]))

    def store(self, name: str, guid: UUID, value: bytes) -> None:
        """A stored variable."""
        (self.place / f"{name}-{guid}").write_bytes(struct.pack("<I", efi.ATTRIBUTES) + value)

    @property
    def dbx(self) -> bytes:
        """What dbx holds."""
        path = self.place / f"dbx-{efi.IMAGE_SECURITY_DATABASE}"
        return path.read_bytes()[4:] if path.exists() else b""

    def append(self, _sysroot: Sysroot, name: str, guid: UUID | str, attributes: int, data: bytes) -> None:
        """In the place of :func:`freehold.device.efivars.append`: the same errors, from what this firmware says."""
        self.writes.append(data)
        length = struct.unpack_from("<I", data, 16)[0]
        signature, lists = data[40 : 16 + length], data[16 + length :]
        assert isinstance(guid, UUID)
        covered = name.encode("utf-16-le") + guid.bytes_le + struct.pack("<I", attributes) + data[:16] + lists
        if attributes != 0x67 or not openssl_believes(signature, covered, self.kek, self.work):
            raise self.says("EACCES")
        here = efi.parse_lists(self.dbx)
        new = [one for one in efi.parse_lists(lists) if one not in here]
        both = self.dbx + b"".join(efi.signature_list(one.type, [(one.owner, one.data)]) for one in new)
        if len(both) > self.room:
            raise self.says("ENOSPC")
        self.store(name, guid, self.keeps(both))

    @staticmethod
    def says(name: str) -> FreeholdError:
        """The firmware's word, as the kernel has it."""
        import errno

        return efivars.answer(getattr(errno, name))
