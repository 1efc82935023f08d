# SPDX-License-Identifier: Apache-2.0
"""Kernel, initrd and command line → two unified kernel images, normal and rescue. Signing is a separate, last step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from freehold.build.tokens import NOBODY_TO_ASK
from freehold.build.tools import Tools
from freehold.keys.x509 import Signer
from freehold.seal import authenticode, kernel_inputs, repack
from freehold.update import rescue_entry

STUB = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"
#: Bytes; where a PE file's signatures begin is a multiple of this.
_SIGNATURE_ALIGNMENT = 8
#: Sealed into every command line. No credentials from firmware or hypervisor; no writing through
#: /proc/PID/mem past page protection; no raw writes below a mounted file system. A kernel that panics restarts,
#: so that boot counting goes on to the deployment before it.
COMMAND_LINE = (
    "ro", "rootfstype=overlay", "systemd.import_credentials=no", "proc_mem.force_override=never",
    "bdev_allow_write_mounted=0", "systemd.gpt_auto=0", "init_on_alloc=1", "panic=5",
)  # fmt: skip


def names(digest: str, number: int) -> str:
    """How the command line begins: which image, which release. Pure."""
    return f"freehold.image={digest} freehold.release={number}"


def command_line(digest: str, number: int, consoles: Sequence[str], extra: Sequence[str], inputs: str = "") -> str:
    """The sealed kernel command line; ``number`` is what the rollback floor is compared with, ``inputs`` the name of the
    policy of kernel inputs, if there is one. Pure.
    """
    named = [names(digest, number), *([kernel_inputs.word(inputs)] if inputs else [])]
    return " ".join([*named, *COMMAND_LINE, *(f"console={name}" for name in consoles), *extra])


def sealed_lines(line: str) -> bytes:
    """``/cmdline`` of the initrd: the command lines of the two images that have it, one a line. Pure."""
    return f"{line}\n{rescue_entry.line(line)}\n".encode()


def os_release(name: str, version: str) -> str:
    """What the boot menu reads: systemd-boot sorts by IMAGE_ID, then IMAGE_VERSION, newest first. Pure."""
    return f'NAME="Freehold"\nID=freehold\nPRETTY_NAME="Freehold {name} {version}"\nIMAGE_ID={name}\nIMAGE_VERSION={version}\n'


def write_uki(
    tools: Tools, work: Path, *, kernel: Path, uname: str, initrd: Path, line: str, release: str, name: str = "uki"
) -> Path:
    """Assemble ``work/NAME.unsigned.efi`` with ukify. Equal inputs give equal bytes."""
    texts = {f"{name}.cmdline": line, f"{name}.os-release": release}
    for file, text in texts.items():
        (work / file).write_text(text)
    target = work / f"{name}.unsigned.efi"
    tools.run(
        [
            "ukify", "build", f"--linux={kernel}", f"--initrd={initrd}", f"--cmdline=@{work}/{name}.cmdline",
            f"--os-release=@{work}/{name}.os-release", f"--uname={uname}", f"--stub={STUB}", f"--output={target}",
        ],
        binds=[work],
        ro_binds=[kernel.parent],
        env={"SOURCE_DATE_EPOCH": "0"},
    )  # fmt: skip
    return target


def write_pair(
    tools: Tools, work: Path, *, kernel: Path, uname: str, initrd: Path, line: str, release: str
) -> tuple[Path, Path]:
    """Assemble a deployment's two images, the normal and the rescue one: ``work/{uki,rescue}.unsigned.efi``."""
    normal = write_uki(tools, work, kernel=kernel, uname=uname, initrd=initrd, line=line, release=release)
    rescue = write_uki(
        tools, work, kernel=kernel, uname=uname, initrd=initrd, line=rescue_entry.line(line),
        release=rescue_entry.os_release(release), name="rescue",
    )  # fmt: skip
    return normal, rescue


def sign_efi(tools: Tools, source: Path, target: Path, signer: Signer) -> None:
    """Sign an EFI program (UKI or boot loader) for the firmware's db; the signer's certificate goes with the signature.

    sbsign does it, which reads the key from a file. Where no file can name the key (a TPM's handle) we do what machines do to
    the images that they derive: DER of fixed shape around the one signature that the key makes.
    """
    signer.check_dates()
    with signer.lend() as key:
        if key.path is None:
            target.write_bytes(_signed(source.read_bytes(), signer))
            return
        certificate = key.directory / "certificate.pem"
        certificate.write_bytes(signer.certificate_pem())
        tools.run(
            [*NOBODY_TO_ASK, "sbsign", f"--key={key.path}", f"--cert={certificate}", f"--output={target}", source],
            binds=[target.parent, *key.places],
            ro_binds=[*{source.parent, key.directory} - {target.parent}],
            env=key.environment,
        )


def _signed(unsigned: bytes, signer: Signer) -> bytes:
    """The program with a signature; what is signed is the program filled up to where the signature begins."""
    padded = unsigned + bytes(-len(unsigned) % _SIGNATURE_ALIGNMENT)
    digest = repack.parse(padded).authenticode()
    return repack.attach(padded, authenticode.sign(digest, signer.certificate_der(), signer.sign))
