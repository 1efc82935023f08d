# SPDX-License-Identifier: Apache-2.0
"""Signed kernel modules: what the verb writes, read by OpenSSL and by our own reader; what it refuses."""

from __future__ import annotations

import lzma
import shutil
import stat
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.build import recipe, tree
from freehold.cli import main
from freehold.errors import InputError
from freehold.keys import cms, issue, module, x509

#: The head of a relocatable ELF file of 64 bits, a little-endian one, and what modinfo finds.
ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x01\x00\x3e\x00" + bytes(44)
MODULE = ELF + b"\0license=GPL\0vermagic=6.12.1+deb13-amd64 SMP preempt mod_unload \0" + bytes(range(256)) * 20


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An owner; a vendor, and a release key by it; a foreigner."""
    directory = tmp_path_factory.mktemp("keys")
    issue.create("owner", "owner", directory, None)
    issue.create("vendor", "vendor", directory, None)
    issue.create("other", "owner", directory, None)
    issue.issue("release", "release", directory, None, signer(directory, "vendor"), 30)
    issue.issue("box", "device", directory, None, signer(directory, "owner"), 30, "0" * 32)
    return directory


def signer(keys: Path, name: str) -> x509.Signer:
    return x509.load_signer(f"file:{keys / name}.key", lambda prompt: b"")


def der(keys: Path, name: str) -> bytes:
    return (keys / f"{name}.der").read_bytes()


def openssl(work: Path, signature: bytes, content: bytes | None, keys: Path, ca: str) -> subprocess.CompletedProcess[bytes]:
    """What OpenSSL says of a signature; ``content``: ``None`` when it is inside."""
    (work / "signature").write_bytes(signature)
    command = ["openssl", "cms", "-verify", "-binary", "-inform", "DER", "-in", str(work / "signature"), "-purpose", "any"]
    command += ["-CAfile", str(keys / f"{ca}.crt")]
    if content is not None:
        (work / "content").write_bytes(content)
        command += ["-content", str(work / "content")]
    return subprocess.run(command, capture_output=True, check=False, timeout=60)


def test_openssl_reads_the_signature_where_the_kernel_looks_for_it(keys: Path, tmp_path: Path) -> None:
    signed = module.sign(MODULE, signer(keys, "release"))
    assert signed.startswith(MODULE)
    assert signed.endswith(b"~Module signature appended~\n")
    trailer = signed[-len(module.MAGIC) - 12 : -len(module.MAGIC)]
    length = struct.unpack(">I", trailer[8:])[0]
    assert trailer[:8] == b"\0\0\x02\0\0\0\0\0"
    assert len(signed) == len(MODULE) + length + 12 + len(module.MAGIC)
    signature = signed[len(MODULE) : len(MODULE) + length]
    done = openssl(tmp_path, signature, MODULE, keys, "vendor")
    assert (done.returncode, done.stdout) == (0, MODULE), done.stderr
    assert openssl(tmp_path, signature, MODULE + b"x", keys, "vendor").returncode != 0
    assert openssl(tmp_path, signature, MODULE, keys, "other").returncode != 0


def test_content_inside(keys: Path, tmp_path: Path) -> None:
    owner = signer(keys, "owner")
    signature = cms.sign(b"a policy\n", owner.certificate_der(), owner.sign, attached=True)
    done = openssl(tmp_path, signature, None, keys, "owner")
    assert (done.returncode, done.stdout) == (0, b"a policy\n"), done.stderr
    changed = signature.replace(b"a policy", b"b policy")
    assert openssl(tmp_path, changed, None, keys, "owner").returncode != 0


def test_a_raw_signature_that_is_there_already_gives_the_same(keys: Path) -> None:
    owner = signer(keys, "owner")
    raw = owner.sign(b"text")
    signed = cms.sign(b"text", owner.certificate_der(), owner.sign, attached=True)
    assert cms.wrapped(b"text", owner.certificate_der(), raw) == signed


def test_who_counts(keys: Path) -> None:
    by_release = module.sign(MODULE, signer(keys, "release"), [der(keys, "vendor")])
    assert module.verify(by_release, [der(keys, "vendor")]) == der(keys, "release")
    with pytest.raises(ValueError, match="nobody whose word counts"):
        module.verify(by_release, [der(keys, "other")])
    with pytest.raises(ValueError, match="no signature"):
        module.verify(MODULE, [der(keys, "vendor")])


@given(st.integers(0, len(MODULE) - 1), st.integers(1, 255))
def test_a_changed_module_is_not_believed(keys: Path, at: int, flip: int) -> None:
    signed = bytearray(SIGNED.setdefault("it", module.sign(MODULE, signer(keys, "owner"))))
    assert module.verify(bytes(signed), [der(keys, "owner")])
    signed[at] ^= flip
    with pytest.raises(ValueError, match="changed"):
        module.verify(bytes(signed), [der(keys, "owner")])


SIGNED: dict[str, bytes] = {}


def test_signing_again_replaces(keys: Path) -> None:
    once = module.sign(MODULE, signer(keys, "other"))
    again = module.sign(once, signer(keys, "owner"))
    assert module.split(again).module == MODULE
    assert module.sign(again, signer(keys, "owner")) == again
    assert module.verify(again, [der(keys, "owner")]) == der(keys, "owner")


@pytest.mark.parametrize(("kind", "length"), [(0, 0), (2, 0xFFFFFFFF), (2, 0), (1, 16)])
def test_a_damaged_signature_is_no_part_of_the_module(kind: int, length: int) -> None:
    tail = struct.pack(">8BI", 0, 0, kind, 0, 0, 0, 0, 0, length)
    with pytest.raises(InputError, match="damaged"):
        module.split(MODULE + tail + module.MAGIC)


def test_what_is_no_module(keys: Path) -> None:
    for content in (b"", b"#!/bin/sh\n", ELF[:16] + b"\x03\x00" + ELF[18:]):
        with pytest.raises(InputError, match="not a kernel module"):
            module.sign(content, signer(keys, "owner"))


def test_which_kernel() -> None:
    assert module.kernel_of(MODULE) == "6.12.1+deb13-amd64"
    assert module.kernel_of(ELF) == ""


def test_the_verb_signs_in_place(keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, packed = tmp_path / "one.ko", tmp_path / "two.ko.xz"
    plain.write_bytes(MODULE)
    plain.chmod(0o640)
    packed.write_bytes(lzma.compress(MODULE, check=lzma.CHECK_CRC64))
    assert main(["key", "sign-module", str(plain), str(packed), "--key", f"file:{keys}/owner.key"]) == 0
    assert "6.12.1+deb13-amd64" in capsys.readouterr().out
    assert module.verify(plain.read_bytes(), [der(keys, "owner")]) == der(keys, "owner")
    assert stat.S_IMODE(plain.stat().st_mode) == 0o640
    assert lzma.decompress(packed.read_bytes()) == plain.read_bytes()
    # Stream flags: check 1, CRC32. The kernel knows no CRC64.
    assert packed.read_bytes()[6:8] == b"\x00\x01"


def test_the_verb_signs_all_or_nothing(keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.ko", tmp_path / "bad.ko"
    good.write_bytes(MODULE)
    bad.write_bytes(b"text")
    assert main(["key", "sign-module", str(good), str(bad), "--key", f"file:{keys}/owner.key"]) == 2
    assert "bad.ko: this is not a kernel module" in capsys.readouterr().err
    assert good.read_bytes() == MODULE
    shutil.copy(good, tmp_path / "good.ko.zst")
    assert main(["key", "sign-module", str(tmp_path / "good.ko.zst"), "--key", f"file:{keys}/owner.key"]) == 2
    (tmp_path / "cut.ko.xz").write_bytes(lzma.compress(MODULE)[:-20])
    assert main(["key", "sign-module", str(tmp_path / "cut.ko.xz"), "--key", f"file:{keys}/owner.key"]) == 2
    assert main(["key", "sign-module", str(good), "--key", f"file:{keys}/box.key"]) == 2
    assert "signs no modules" in capsys.readouterr().err
    assert good.read_bytes() == MODULE


def recipe_of(directory: Path, files: str) -> recipe.Recipe:
    path = directory / "r.toml"
    path.write_text(f'name = "box"\n[modules]\nfiles = [{files}]\n')
    return recipe.load(path)


def test_a_recipe_takes_signed_modules_only(keys: Path, tmp_path: Path) -> None:
    (tmp_path / "plain.ko").write_bytes(MODULE)
    (tmp_path / "text.ko").write_bytes(b"text")
    signed = module.sign(MODULE, signer(keys, "owner"))
    (tmp_path / "mine.ko").write_bytes(signed)
    (tmp_path / "mine.ko.xz").write_bytes(lzma.compress(signed, check=lzma.CHECK_CRC32))
    with pytest.raises(InputError) as caught:
        recipe_of(tmp_path, '"plain.ko", "text.ko", "absent.ko", "mine.ko"')
    assert [fault.partition("modules.files")[2] for fault in caught.value.faults] == [
        "[0]: 'plain.ko': is not signed: freehold key sign-module plain.ko --key URI",
        "[1]: 'text.ko': this is not a kernel module",
        "[2]: 'absent.ko': No such file or directory",
    ]
    with pytest.raises(InputError) as caught:
        recipe_of(tmp_path, '"mine.ko", "mine.ko.xz"')
    assert caught.value.faults[0].endswith("modules: two files are called mine")
    found = recipe_of(tmp_path, '"mine.ko"')
    assert found.modules == (recipe.Module("mine.ko", signed),)
    (tmp_path / "mine.ko").write_bytes(module.sign(MODULE, signer(keys, "other")))
    assert recipe_of(tmp_path, '"mine.ko"').id != found.id


def test_modules_of_a_recipe_go_where_modprobe_looks_first(
    keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.ko").write_bytes(module.sign(MODULE, signer(keys, "owner")))
    found, ran = recipe_of(tmp_path, '"mine.ko"'), []
    monkeypatch.setattr(tree, "enter", lambda where, command: ran.append((where, command)))
    tree.install_modules(tmp_path, found, "6.12.1+deb13-amd64")
    assert (tmp_path / "usr/lib/modules/6.12.1+deb13-amd64/updates/mine.ko").read_bytes() == found.modules[0].content
    assert ran == [(tmp_path, ["depmod", "-a", "6.12.1+deb13-amd64"])]
    with pytest.raises(InputError) as caught:
        tree.install_modules(tmp_path, found, "6.12.2+deb13-amd64")
    assert caught.value.faults == ("modules: mine.ko: for kernel 6.12.1+deb13-amd64, the image has 6.12.2+deb13-amd64",)
    assert len(ran) == 1
