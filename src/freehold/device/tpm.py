# SPDX-License-Identifier: Apache-2.0
"""Sealing a secret by the machine's TPM to policies that a key signs, through ``systemd-creds``.

The TPM object's policy is TPM2_PolicyAuthorize by that key over the registers 7 and 11 (:mod:`freehold.keys.pcr`). What goes
through ``systemd-creds`` is a key that encrypts, never what is encrypted: root can look into the pipes of
programs that are not the updater's own.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

from freehold.device.sysroot import read_text
from freehold.errors import FreeholdError, NotHereError
from freehold.files import read_bytes
from freehold.keys.eventlog import MAX_LOG_BYTES
from freehold.keys.pcr import KERNEL_PCR, SECURE_BOOT_PCR

#: Goes into the sealed credential, and must be the same where it is opened.
NAME = "freehold-device-key"
#: Seconds. A TPM answers within one; some hardware takes several to make its storage key, once.
TIMEOUT = 90
#: What systemd-creds or the TPM library say (seen with systemd 257, tpm2-tss 4.1 and swtpm), in words, with what to do.
_FAULTS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("(0x00000921)", "No locks available"),
        "the TPM is in lockout after failed tries of somebody",
        "wait (often minutes to hours, with the machine on), or reset the lockout in the firmware's settings",
    ),
    (
        ("(0x000001df)", "(0x000001db)"),
        "this is not the TPM that the device key was sealed by (another board?), or it was cleared, or the file is damaged",
        "`freehold unlock`, reboot and `freehold lock` make a new key, with the owner's answer",
    ),
    (
        ("Failed to open specified TCTI device", "Cannot connect to swtpm"),
        "there is no TPM",
        "switch it on in the firmware's settings; for good without one: `freehold unlock`, reboot and `freehold lock`",
    ),
    (
        ("TPM2 support is not", "TPM2 libraries", "libtss2"),
        "this image has no libraries for the TPM",
        "put libtss2-esys-3.0.2-0t64, libtss2-mu-4.0.1-0t64 and libtss2-rc0t64 into the recipe",
    ),
)


class RegistersError(FreeholdError):
    """The TPM refuses: its registers are in no state that a signed policy allows."""


class Tpm(NamedTuple):
    """A TPM 2.0: ``device`` as systemd's ``--tpm2-device=`` has it; where the kernel shows its registers and event log.

    ``command`` is how ``systemd-creds`` begins, ``scratch`` a directory in memory for public keys and signatures.
    """

    device: str = "auto"
    directory: Path = Path("/sys/class/tpm/tpm0")
    event_log: Path = Path("/sys/kernel/security/tpm0/binary_bios_measurements")
    command: tuple[str, ...] = ("systemd-creds",)
    scratch: Path = Path("/run/freehold")

    def present(self) -> bool:
        """Whether there is one, version 2."""
        return read_text(self.directory / "tpm_version_major", 16).strip() == "2"

    def register(self, number: int) -> bytes | None:
        """A register of the SHA-256 bank, ``None`` when the TPM does not keep that bank."""
        text = read_text(self.directory / "pcr-sha256" / str(number), 256).strip()
        try:
            value = bytes.fromhex(text)
        except ValueError:
            return None
        return value if len(value) == 32 else None

    def log(self) -> bytes:
        """The firmware's event log. Raises :class:`NotHereError` when there is none."""
        try:
            return read_bytes(self.event_log, MAX_LOG_BYTES)
        except OSError as error:
            raise NotHereError(f"the firmware's event log cannot be read: {error.strerror}") from None

    def seal(self, secret: bytes, public_pem: bytes) -> bytes:
        """``secret`` so that only this TPM opens it, in states that the key of ``public_pem`` signs for.

        Raises :class:`FreeholdError`, :class:`NotHereError`.
        """
        with tempfile.TemporaryDirectory(dir=self.scratch, prefix="tpm-") as private:
            path = Path(private) / "public.pem"
            path.write_bytes(public_pem)
            return self._creds(
                "encrypt", "--with-key=tpm2-with-public-key", "--tpm2-pcrs=", f"--tpm2-public-key={path}",
                f"--tpm2-public-key-pcrs={SECURE_BOOT_PCR}+{KERNEL_PCR}", text=secret,
            )  # fmt: skip

    def unseal(self, sealed: bytes, signatures: bytes) -> bytes:
        """What :meth:`seal` sealed, by a file of signed policies (:func:`freehold.keys.pcr.serialize`).

        Raises :class:`RegistersError` when none of them fits the TPM's registers, else :class:`FreeholdError`.
        """
        with tempfile.TemporaryDirectory(dir=self.scratch, prefix="tpm-") as private:
            path = Path(private) / "signatures.json"
            path.write_bytes(signatures)
            return self._creds("decrypt", f"--tpm2-signature={path}", text=sealed)

    def _creds(self, verb: str, *options: str, text: bytes) -> bytes:
        from freehold.run import run

        done = run(
            [*self.command, verb, f"--tpm2-device={self.device}", f"--name={NAME}", *options, "-", "-"],
            stdin=text, check=False, timeout=TIMEOUT,
        )  # fmt: skip
        if done.status == 0:
            return done.stdout
        said = done.stderr[-4096:].decode(errors="replace")
        for marks, message, hint in _FAULTS:
            if any(mark in said for mark in marks):
                raise FreeholdError(message, hint=hint, details=said)
        if "No such device or address" in said:
            raise RegistersError("the TPM refuses the device key in this boot", details=said)
        last = next((line for line in reversed(said.splitlines()) if line.strip()), "no message")
        raise FreeholdError(
            f"the TPM did not {'seal' if verb == 'encrypt' else 'open'} the device key: {last}", details=said
        )
