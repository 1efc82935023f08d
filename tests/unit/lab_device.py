# SPDX-License-Identifier: Apache-2.0
"""A locked machine with Secure Boot on, its owner's keys, and a firmware's event log, for tests of the device key."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import lab_attest
from lab_release import Lab, key

from freehold.device import device_key
from freehold.device.device_key import Machine, Places
from freehold.device.tpm import Tpm
from freehold.keys import issue, x509
from freehold.keys.efi import certificate_list
from freehold.keys.formats import Revocation
from freehold.keys.verify import Certificate, Keychain
from freehold.lock.intent import Intent, Standing

ID, OTHER = "1" * 32, "2" * 32
LOCKED = Intent(machine=ID, serial=3, lock="locked", since=5)
SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


def unasked(prompt: str) -> bytes:
    raise AssertionError(prompt)


def signer(keys: Path, name: str = "me") -> x509.Signer:
    return x509.load_signer(f"file:{keys}/{name}.key", unasked)


def keychain(keys: Path, revoked: tuple[Revocation, ...] = ()) -> Keychain:
    release = Certificate("release", "vendor", key("release", "vendor").certificate)
    return Keychain(
        (Certificate("owner", "me", signer(keys).certificate_der()), release,
         Certificate("vendor", "vendor", signer(keys, "vendor").certificate_der())), revoked,
    )  # fmt: skip


def event(register: int, kind: int, digest: bytes, data: bytes = b"data") -> lab_attest.Made:
    return lab_attest.event(register, kind, data, digest)


def log(*events: lab_attest.Made) -> bytes:
    """A crypto agile log with a SHA-1 and a SHA-256 bank, as OVMF writes them."""
    return lab_attest.log_of(list(events))


def digest(word: bytes) -> bytes:
    return hashlib.sha256(word).digest()


class Bench:
    """A locked machine with Secure Boot on and no TPM; ``machine`` is what the functions take."""

    def __init__(self, lab: Lab, keys: Path) -> None:
        self.lab, self.keys = lab, keys
        system = lab.sysroot.system
        (system / SECURE_BOOT).parent.mkdir(parents=True)
        (system / SECURE_BOOT).write_bytes(b"\6\0\0\0\1")
        db = certificate_list(signer(keys).certificate_der())
        (system / device_key._DB).write_bytes(b"\6\0\0\0" + db)
        self.record(keychain_source="firmware")
        self.guard("locked")
        owner = lab.sysroot.root / "owner"
        owner.mkdir()
        lab.sysroot.state.mkdir(exist_ok=True)
        (system / "run/freehold").mkdir(parents=True, exist_ok=True)
        tpm = Tpm(directory=system / "sys/class/tpm/tpm0", scratch=system / "run/freehold")
        self.machine = Machine(ID, lab.sysroot, keychain(keys), Places(owner, lab.sysroot.state), tpm)

    def record(self, **values: object) -> None:
        """What the early step wrote about this boot, all good but for ``values``."""
        good = {"schema": "freehold-boot-1", "image": self.lab.sysroot.booted(), "secure_boot": True, "rescue": False}
        (self.lab.sysroot.system / "run/freehold/boot.json").write_text(json.dumps({**good, **values}))

    def guard(self, mode: str) -> None:
        path = self.lab.sysroot.system / "usr/lib/freehold/guardctl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/bin/sh\necho \'{{"loaded": true, "mode": "{mode}"}}\'\n')
        path.chmod(0o755)

    def secure_boot(self, on: bool) -> None:
        (self.lab.sysroot.system / SECURE_BOOT).write_bytes(b"\6\0\0\0" + bytes([on]))

    def lock(self, by: str = "me", machine: str = ID) -> bytes:
        """Make a key and put it in place with a certificate; the certificate."""
        made = device_key.make(self.machine)
        public = issue.requested_key_der(made.request, "it")
        der = issue.device_certificate(public, machine, signer(self.keys, by))
        device_key.install(self.machine, der)
        return der


def standing(value: Intent | None = LOCKED) -> Standing:
    return Standing(value.lock if value else "locked", value, "me", "it is damaged")
