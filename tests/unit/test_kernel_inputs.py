# SPDX-License-Identifier: Apache-2.0
"""The policy of kernel inputs: what is in it, what names it, and its way from the build to the kernel's files."""

from __future__ import annotations

import errno
import hashlib
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.errors import InputError
from freehold.keys import cms, issue, x509
from freehold.lock import inputs
from freehold.seal import kernel_inputs
from freehold.seal.headerball import Entry

A, B, C = (bytes([number]) * 32 for number in (0xAA, 0xBB, 0xCC))
#: The grammar of 6.12 and 7.x: security/ipe/policy_parser.c.
OPERATIONS = {"EXECUTE", "FIRMWARE", "KMODULE", "KEXEC_IMAGE", "KEXEC_INITRAMFS", "POLICY", "X509_CERT"}


def file(path: str, digest: bytes, mode: int = 0o100644) -> Entry:
    return Entry(path, mode, 0, 0, 5 if digest else 0, redirect="/x" if digest else "", digest=digest)


TREE = [
    file("/usr/lib/modules/6.12/kernel/b.ko.xz", B),
    file("/usr/lib/modules/6.12/updates/a.ko", A),
    file("/usr/lib/modules/6.12/kernel/again.ko.xz", B),
    file("/usr/lib/modules/6.12/vmlinuz", C),
    file("/usr/lib/modules/6.12/modules.dep", C),
    file("/usr/lib/firmware/card/one.bin", C),
    file("/usr/lib/firmware/empty", b""),
    file("/usr/bin/tool", C),
    file("/usr/lib/modules-load.d/x.ko", C),
]


def decide(text: str, operation: str, digest: bytes | None, *, signed: bool = False) -> str:
    """What IPE does, read after its documentation: the first rule that matches, else the operation's default, else the global."""
    default, own = "", ""
    for line in text.splitlines():
        words = line.split(" ")
        action = words[-1].removeprefix("action=")
        if words[0] == "DEFAULT":
            if len(words) == 2:
                default = action
            elif words[1] == f"op={operation}":
                own = action
        elif words[0] == f"op={operation}":
            key, _, value = words[1].partition("=")
            if key == "fsverity_digest" and digest is not None and value == f"sha256:{digest.hex()}":
                return action
            if key == "fsverity_signature" and (value == "TRUE") == signed:
                return action
    return own or default


def test_what_is_allowed() -> None:
    text = kernel_inputs.rules(TREE)
    for digest in (A, B):
        assert decide(text, "KMODULE", digest) == "ALLOW"
    assert decide(text, "FIRMWARE", C) == "ALLOW"
    others: tuple[tuple[str, bytes | None], ...] = (("KMODULE", C), ("KMODULE", None), ("FIRMWARE", A), ("FIRMWARE", None))
    for operation, other in others:
        assert decide(text, operation, other) == "DENY"
        assert decide(text, operation, other, signed=True) == "ALLOW"
    for operation in OPERATIONS - {"EXECUTE", "KMODULE", "FIRMWARE"}:
        assert decide(text, operation, A, signed=True) == "DENY"
    assert decide(text, "EXECUTE", None) == "ALLOW"


def test_a_list_that_the_kernel_would_not_read() -> None:
    """Its reader of CMS takes 65,535 bytes; seen on the reference image, whose kernel has more than a thousand modules."""
    many = [file(f"/usr/lib/modules/6/{number}.ko", number.to_bytes(32)) for number in range(2000)]
    text = kernel_inputs.rules([*TREE, *many])
    assert len(kernel_inputs.policy(text)) <= kernel_inputs.MAX_BYTES
    # Modules are the others' to judge then; the rest is as strict as ever.
    assert "KMODULE" not in text
    assert (decide(text, "FIRMWARE", C), decide(text, "FIRMWARE", A)) == ("ALLOW", "DENY")
    assert decide(text, "KEXEC_IMAGE", A, signed=True) == "DENY"
    few = kernel_inputs.rules([*TREE, *many[:400]])
    assert (decide(few, "KMODULE", A), decide(few, "KMODULE", C)) == ("ALLOW", "DENY")
    firmware = [file(f"/usr/lib/firmware/{number}", number.to_bytes(32)) for number in range(2000)]
    text = kernel_inputs.rules([*many, *firmware])
    assert ("KMODULE" in text, "FIRMWARE" in text) == (False, False)


digests = st.binary(min_size=32, max_size=32)
paths = st.sampled_from(["/usr/lib/modules/6/{}.ko", "/usr/lib/modules/6/{}.ko.xz", "/usr/lib/firmware/{}", "/usr/bin/{}"])


@given(st.lists(st.tuples(paths, digests), max_size=30), st.randoms(use_true_random=False))
def test_a_function_of_the_tree_alone(found: list[tuple[str, bytes]], dice: object) -> None:
    entries = [file(path.format(number), digest) for number, (path, digest) in enumerate(found)]
    shuffled = list(entries)
    dice.shuffle(shuffled)  # type: ignore[attr-defined]
    text = kernel_inputs.rules(entries)
    assert kernel_inputs.rules(shuffled) == text
    listed = {line.split("sha256:")[1][:64] for line in text.splitlines() if "sha256:" in line}
    assert listed == {one.digest.hex() for one in entries if not one.path.startswith("/usr/bin")}
    data = kernel_inputs.policy(text)
    assert kernel_inputs.check(data) == hashlib.sha256(text.encode()).hexdigest()
    for line in text.splitlines():
        assert line.startswith("DEFAULT ") or line.split(" ")[0].removeprefix("op=") in OPERATIONS


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_policy_has_another_name(at: int, flip: int) -> None:
    data = bytearray(kernel_inputs.policy(kernel_inputs.rules(TREE)))
    data[at % len(data)] ^= flip
    with pytest.raises(InputError):
        kernel_inputs.check(bytes(data))


def test_the_command_line_names_one() -> None:
    name = "ab" * 32
    assert kernel_inputs.named(f"quiet {kernel_inputs.word(name)} ro\n") == name
    assert kernel_inputs.named(f"{kernel_inputs.word(name)} {kernel_inputs.word('cd' * 32)}") == ""
    assert kernel_inputs.named(f"x{kernel_inputs.word(name)}") == ""
    assert kernel_inputs.named("quiet") == ""


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> tuple[x509.Signer, Path]:
    directory = tmp_path_factory.mktemp("keys")
    issue.create("owner", "owner", directory, None)
    return x509.load_signer(f"file:{directory}/owner.key", lambda _: b""), directory / "owner.crt"


def test_text_and_signature_put_together(owner: tuple[x509.Signer, Path], tmp_path: Path) -> None:
    signer, certificate = owner
    data = kernel_inputs.policy(kernel_inputs.rules(TREE))
    whole = kernel_inputs.attach(kernel_inputs.sign(data, signer), data)
    assert whole == cms.sign(data, signer.certificate_der(), signer.sign, attached=True)
    assert kernel_inputs.content(whole) == data
    (tmp_path / "whole").write_bytes(whole)
    command = ["openssl", "cms", "-verify", "-binary", "-inform", "DER", "-purpose", "any", "-CAfile", str(certificate)]
    done = subprocess.run([*command, "-in", str(tmp_path / "whole")], capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, data), done.stderr


@pytest.mark.parametrize("rubbish", [b"", b"0", b"\x30\x00", b"\x30\x03\x02\x01\x01", b"\x30\x04\x02\x00\xa0\x00"])
def test_what_is_no_signature(rubbish: bytes) -> None:
    with pytest.raises(InputError):
        kernel_inputs.attach(rubbish, b"x")
    with pytest.raises(InputError):
        kernel_inputs.content(rubbish)


class Kernel:
    """IPE's files in a directory. A policy appears when a test says so: what is written there goes nowhere."""

    def __init__(self, system: Path) -> None:
        self.system = system
        self.top = system / inputs.IPE
        (self.top / "policies").mkdir(parents=True)
        (self.top / "new_policy").write_bytes(b"")
        (self.top / "enforce").write_text("1\n")

    def knows(self, name: str) -> Path:
        place = self.top / "policies" / f"freehold-{name}"
        place.mkdir()
        (place / "active").write_text("0")
        return place / "active"


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def test_a_policy_is_given_to_the_kernel_and_made_active(kernel: Kernel) -> None:
    active = kernel.knows("aa")
    (kernel.top / "enforce").write_text("0")
    assert inputs.in_force("aa", kernel.system) is False
    assert inputs.enforce(b"signed", "aa", kernel.system) == 0
    assert (kernel.top / "new_policy").read_bytes() == b"signed"
    assert (active.read_text(), (kernel.top / "enforce").read_text()) == ("1", "1")
    assert inputs.in_force("aa", kernel.system) is True


def test_another_release_s_policy_is_none(kernel: Kernel) -> None:
    active = kernel.knows("bb")
    assert inputs.enforce(b"signed", "aa", kernel.system) == errno.EBADMSG
    assert active.read_text() == "0"


def test_a_kernel_without_ipe(tmp_path: Path) -> None:
    assert inputs.enforce(b"signed", "aa", tmp_path) == errno.ENOENT
    assert inputs.in_force("aa", tmp_path) is False


def test_an_active_policy_that_is_only_watched_is_not_in_force(kernel: Kernel) -> None:
    kernel.knows("aa").write_text("1\n")
    assert inputs.in_force("aa", kernel.system) is True
    (kernel.top / "enforce").write_text("0\n")
    assert inputs.in_force("aa", kernel.system) is False
