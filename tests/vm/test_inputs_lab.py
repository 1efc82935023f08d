# SPDX-License-Identifier: Apache-2.0
"""The stock kernel judges kernel inputs: our policy, our signatures of modules, our certificates in its firmware's db.

A small guest with UEFI variables that have the vendor's and the owner's certificates (Secure Boot itself is off: the kernel
that boots is Debian's alone).
"""

from __future__ import annotations

import errno
import lzma
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.vm.test_guard_lab import REPOSITORY, kernel_tree, tools_tree

from freehold import run
from freehold.keys import cms, efi, issue, module, verity
from freehold.keys.x509 import Signer, load_signer
from freehold.lock import kernel_log
from freehold.seal import cpio, kernel_inputs
from freehold.seal.headerball import Entry
from freehold.vm import firmware, host

pytestmark = pytest.mark.vm

KERNEL_OPTIONS = "console=ttyS0 quiet loglevel=1 panic=-1 lsm=landlock,lockdown,yama,apparmor,bpf,ipe"
TIMEOUT = 240.0


@dataclass(frozen=True)
class Lab:
    """What the guest said, name to value, and what its console showed."""

    said: dict[str, str]
    console: str

    def __getitem__(self, name: str) -> int:
        return int(self.said[name])


def signers(directory: Path) -> dict[str, Signer]:
    """An owner and a vendor, whom the firmware knows; a release key by the vendor; a stranger."""
    issue.create("owner", "owner", directory, None)
    issue.create("vendor", "vendor", directory, None)
    issue.create("stranger", "owner", directory, None)
    vendor = load_signer(f"file:{directory}/vendor.key", lambda _: b"")
    issue.issue("release", "release", directory, None, vendor, 30)
    return {name: load_signer(f"file:{directory}/{name}.key", lambda _: b"") for name in ("owner", "release", "stranger")}


def packed_module(kernel: Path, name: str) -> bytes:
    return next(kernel.glob(f"usr/lib/modules/*/kernel/**/{name}.ko.xz")).read_bytes()


def objects(kernel: Path, keys: dict[str, Signer]) -> dict[str, bytes]:
    """The sealed files. The kernel's own signature is taken off what others sign, or nobody."""

    def bare(name: str) -> bytes:
        parts = module.split(lzma.decompress(packed_module(kernel, name)))
        assert parts.signature is not None
        return parts.module

    return {
        "listed.ko.xz": packed_module(kernel, "dummy"),
        "unlisted.ko.xz": packed_module(kernel, "ifb"),
        "owner.ko": module.sign(bare("nlmon"), keys["owner"]),
        "unsigned.ko": bare("macvlan"),
        "foreign.ko": module.sign(bare("loop"), keys["stranger"]),
    }


def policy(contents: list[bytes]) -> bytes:
    entries = [
        Entry(f"/usr/lib/modules/6/{number}.ko", 0o100644, 0, 0, len(data), redirect="/x", digest=verity.digest_bytes(data))
        for number, data in enumerate(contents)
    ]
    return kernel_inputs.policy(kernel_inputs.rules(entries))


def signed(data: bytes, by: Signer) -> bytes:
    """As a release carries it: a detached signature, to which the machine puts the text."""
    return kernel_inputs.attach(cms.sign(data, by.certificate_der(), by.sign, attached=False), data)


def write_disk(work: Path, files: dict[str, bytes], plain: dict[str, bytes]) -> None:
    directory = work / "disk-files"
    (directory / "objects").mkdir(parents=True)
    commands = []
    for name, data in files.items():
        measured = verity.measure(data)
        with (directory / "objects" / name).open("wb") as target:
            target.write(data)
            target.seek(verity.metadata_offset(measured.size))
            target.write(verity.metadata_bytes(measured))
        commands += [f"set_inode_field /objects/{name} flags 0x180000", f"set_inode_field /objects/{name} size {measured.size}"]
    for name, data in plain.items():
        (directory / name).write_bytes(data)
    (work / "debugfs").write_text("\n".join(commands) + "\n")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    tools = tools_tree()
    kernel = kernel_tree(tools)
    work = tmp_path_factory.mktemp("inputs-lab")
    keys = signers(work / "keys")
    sealed = objects(kernel, keys)
    wanted = policy([data for name, data in sealed.items() if name != "unlisted.ko.xz"])
    older = policy([sealed["listed.ko.xz"]])
    by_file = module.sign(module.split(lzma.decompress(packed_module(kernel, "veth"))).module, keys["owner"])
    changed = bytearray(sealed["owner.ko"])
    changed[len(changed) // 2] ^= 1
    write_disk(work, sealed, {"signed.ko": by_file})
    tools.run(["sh", "tests/vm/keyring_lab/build.sh", work, "inputs_lab"], binds=[work], ro_binds=[REPOSITORY], cwd=REPOSITORY)
    release, good = keys["release"], signed(wanted, keys["release"])
    files = {
        "virtio_blk.ko.xz": packed_module(kernel, "virtio_blk"), "overlay.ko.xz": packed_module(kernel, "overlay"),
        "keychain/owner-me.der": keys["owner"].certificate_der(),
        "policy.p7": good,
        "older.p7": signed(older, release),
        "foreign.p7": signed(wanted, keys["stranger"]),
        "tampered.p7": good.replace(b"op=KMODULE action=DENY", b"op=KMODULE action=DEN1"),
        "detached.p7": cms.sign(wanted, release.certificate_der(), release.sign, attached=False),
        "changed.ko": bytes(changed),
        "signed.p7": keys["owner"].sign_verity(verity.digest_bytes(by_file)),
    }  # fmt: skip
    members = {name: cpio.Member(cpio.REGULAR, data) for name, data in files.items()}
    members["init"] = cpio.Member(cpio.EXECUTABLE, (work / "init").read_bytes())
    (work / "initrd").write_bytes(cpio.archive(members))
    variables(tools, work)
    names = f"{kernel_inputs.word(kernel_inputs.check(wanted))} older={kernel_inputs.check(older)}"
    code = firmware.find(host.firmware_folder(tools), secure=False).code
    done = run.run(
        [
            *host.qemu(tools), "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-machine", "q35",
            "-m", "768", "-nographic", "-no-reboot", "-net", "none",
            "-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={code}",
            "-drive", f"if=pflash,format=raw,unit=1,file={work / 'variables'}",
            "-kernel", next((kernel / "boot").glob("vmlinuz-*")), "-initrd", work / "initrd",
            "-drive", f"file={work / 'disk'},if=virtio,format=raw", "-append", f"{KERNEL_OPTIONS} {names}",
        ],
        timeout=TIMEOUT,
    )  # fmt: skip
    console = done.text.replace("\r", "")
    assert "@end" in console, console[-4000:]
    yield Lab(dict(line[2:].split(" ", 1) for line in console.splitlines() if line.startswith("@ ")), console)
    shutil.rmtree(work, ignore_errors=True)


def variables(tools: object, work: Path) -> None:
    """The firmware's variables with the owner's and the vendor's certificates in db; nobody's as platform key."""
    from freehold.build.tools import Tools

    assert isinstance(tools, Tools)
    shutil.copy(firmware.find(host.firmware_folder(tools), secure=False).variables, work / "template")
    added: list[str | Path] = []
    for name in ("owner", "vendor"):
        shutil.copy(work / "keys" / f"{name}.crt", work / f"{name}.pem")
        added += ["--add-db", str(efi.OWNER), work / f"{name}.pem"]
    tools.run(["virt-fw-vars", "--input", work / "template", "--output", work / "variables", *added], binds=[work])


@pytest.mark.parametrize("name", ["modules", "ring", "mount", "layer", "overlay", "self", "copies", "lockdown", "signing"])
def test_the_laboratory_stands(lab: Lab, name: str) -> None:
    assert lab[name] == 0, lab.console[-3000:]


def test_a_policy_of_the_firmware_s_keys_is_in_force(lab: Lab) -> None:
    assert (lab["policy"], lab["again"]) == (0, 0)


def test_every_other_policy_is_refused(lab: Lab) -> None:
    assert lab["no-file"] == errno.ENOENT
    assert lab["no-name"] == lab["older"] == errno.EBADMSG
    assert lab["foreign"] == errno.ENOKEY
    assert lab["tampered"] == errno.EKEYREJECTED
    assert lab["detached"] != 0
    # and none of them was in force; the older one is, under its own name
    assert (lab["unlisted-yet"], lab["unload"]) == (0, 0)
    assert lab["older-by-name"] == 0


def test_listed_modules_load_by_the_object_s_digest(lab: Lab) -> None:
    assert lab["listed-by-older"] == 0
    assert lab["listed"] == errno.EEXIST
    assert lab["listed-object"] == 0


def test_others_do_not(lab: Lab) -> None:
    assert lab["unlisted"] == errno.EACCES
    assert lab["listed-elsewhere"] == errno.EACCES
    assert lab["listed-buffer"] == errno.EACCES


def test_programs_are_left_alone(lab: Lab) -> None:
    assert lab["program"] == 0


def test_the_lock_wants_a_module_s_own_signature_too(lab: Lab) -> None:
    assert [lab[name] for name in ("unsigned-open", "foreign-open", "unload-unsigned", "unload-foreign")] == [0] * 4
    assert (lab["unsigned"], lab["foreign-module"]) == (errno.EPERM, errno.EPERM)
    assert lab["owner"] == 0
    assert lab["changed"] == errno.EACCES


def test_the_kernel_s_own_words_are_understood(lab: Lab) -> None:
    """`freehold denials` reads them."""
    records = [line.removeprefix("@log ") for line in lab.console.splitlines() if line.startswith("@log ")]
    found = kernel_log.find(records, booted=0)
    told = {(one.kind, one.path): one.count for one in found}
    assert told["module-signature", None] == 2, records
    assert told["kernel-inputs", "/tree/unlisted.ko.xz"] == told["kernel-inputs", "/mnt/signed.ko"] == 1, records
    assert ("kernel-inputs", None) in told
    assert all(one.program == "init" for one in found)


def test_a_module_of_the_owner_s_outside_of_the_tree(lab: Lab) -> None:
    assert lab["not-sealed"] == errno.EACCES
    assert lab["signed-file"] == 0
