# SPDX-License-Identifier: Apache-2.0
"""Equal inputs give equal kernel images, and signing is a step of its own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lab_release import manifest as lab_manifest

from freehold.build import initrd, keys, pipeline, signing, uki
from freehold.build.recipe import load
from freehold.build.store import Store, cache_directory
from freehold.build.tools import Tools, ensure
from freehold.cli import main
from freehold.errors import InputError
from freehold.keys import cms, verity
from freehold.keys.issue import create
from freehold.keys.verify import Keychain, verify_document
from freehold.keys.x509 import Signer, load_signer
from freehold.monitor import NullMonitor
from freehold.run import Argument
from freehold.seal import cpio, kernel_inputs
from freehold.seal.headerball import Entry, headerball
from freehold.update.manifest import Manifest, parse_manifest, serialize_manifest

RECIPE = Path(__file__).parents[2] / "recipes/server.toml"
KERNEL = "6.12.1-amd64"
KEYCHAIN = (("owner-me.der", b"der" * 50), ("release-x.der", b"x" * 30))
LOADER = "usr/lib/systemd/boot/efi/systemd-bootx64.efi"


def make_tree(tree: Path, seed: int) -> Path:
    """What :func:`initrd.members` reads, made in an order and with times that ``seed`` decides."""
    home = tree / "usr/lib/modules" / KERNEL
    dependencies = ["kernel/fs/erofs/erofs.ko: kernel/lib/crc.ko", "kernel/lib/crc.ko:", "kernel/fs/overlay.ko:"]
    dependencies += ["kernel/drivers/virtio_blk.ko: kernel/lib/crc.ko"]
    contents = {f"{line.partition(':')[0]}": f"code of {line}".encode() * 100 for line in dependencies}
    contents["modules.dep"] = "\n".join(dependencies).encode() + b"\n"
    contents["modules.alias"] = b"alias virtio:d00000002v* virtio_blk\n"
    files = {home / name: content for name, content in contents.items()}
    files[tree / "usr/lib/freehold/early"] = b"\x7fELF early" * 1000
    names = sorted(files)
    dice = random.Random(seed)  # noqa: S311 - test data
    dice.shuffle(names)
    for path in names:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[path])
        os.utime(path, (dice.randrange(1 << 31), dice.randrange(1 << 31)))
        path.chmod(dice.choice([0o644, 0o600]))
    return tree


def test_the_initrd_depends_on_contents_only(tmp_path: Path) -> None:
    """Another directory, another order of creation, other times and modes: the same bytes."""
    first = cpio.archive(initrd.members(make_tree(tmp_path / "a", 1), KERNEL, KEYCHAIN))
    second = cpio.archive(initrd.members(make_tree(tmp_path / "elsewhere/b", 2), KERNEL, KEYCHAIN[::-1]))
    assert first == second
    assert str(tmp_path).encode() not in first
    changed = make_tree(tmp_path / "c", 1)
    (changed / "usr/lib/freehold/early").write_bytes(b"another")
    assert cpio.archive(initrd.members(changed, KERNEL, KEYCHAIN)) != first


@pytest.fixture(scope="module")
def tools() -> Tools:
    return ensure(cache_directory(), NullMonitor())


def make_ukis(tools: Tools, work: Path, seed: int, manifest: Manifest, inputs: str = "") -> tuple[Path, Path]:
    work.mkdir(parents=True)
    shutil.copy(tools.root / LOADER, work / "vmlinuz")
    os.utime(work / "vmlinuz", (seed, seed))
    initrd.write_initrd(tools, initrd.members(make_tree(work / "tree", seed), KERNEL, KEYCHAIN), work / "initrd")
    line = uki.command_line(manifest.image_digest, manifest.number, ["tty0"], ["quiet"], inputs)
    return uki.write_pair(
        tools, work, kernel=work / "vmlinuz", uname=KERNEL, initrd=work / "initrd", line=line,
        release=uki.os_release("server", "1.0"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def signers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Signer]:
    directory = tmp_path_factory.mktemp("keys")
    for name, role in (("one", "release"), ("two", "release"), ("foreign", "release"), ("me", "owner")):
        create(name, "release" if role == "release" else "owner", directory, None)
    return {
        name: load_signer(f"file:{directory}/{name}.key", lambda _: b"") for name in ("one", "two", "foreign", "me")
    }


@pytest.fixture
def unsigned(tools: Tools, signers: dict[str, Signer], tmp_path: Path) -> Callable[[str], Path]:
    """Makes unsigned releases, each built elsewhere and at another time."""
    count = iter(range(1, 100))

    def make(name: str) -> Path:
        value, image, _ = lab_manifest("1.0", 1000)
        release = tmp_path / name
        release.mkdir()
        (release / "image").write_bytes(image)
        number = next(count)
        if number > 1:
            time.sleep(1.1)  # a time stamp of seconds would show
        built = make_ukis(tools, tmp_path / f"work-{number}" / ("x" * number), number, value)
        files = [(f"release-{each}.der", signers[each].certificate_der()) for each in ("one", "two")]
        signing.write_unsigned(release, value, built, files)
        return release

    return make


@pytest.mark.build
def test_kernel_images_are_equal_apart_from_the_signature(
    tools: Tools, signers: dict[str, Signer], unsigned: Callable[[str], Path], tmp_path: Path
) -> None:
    first, second = unsigned("first"), unsigned("second")
    names = (signing.UNSIGNED_UKI, signing.UNSIGNED_RESCUE, signing.UNSIGNED, "image")
    assert [(first / name).read_bytes() for name in names] == [(second / name).read_bytes() for name in names]
    for release, signer in ((first, "one"), (second, "two")):
        manifest = signing.sign_release(tools, release, signers[signer])
        assert sorted(path.name for path in release.iterdir()) == [
            "image",
            "manifest.json",
            "manifest.json.sig",
            "rescue.efi",
            "uki.efi",
        ]
        data = (release / "manifest.json").read_bytes()
        assert parse_manifest(data) == manifest
        keychain = Keychain.from_files({f"release-{signer}.der": signers[signer].certificate_der()}, "here")
        assert verify_document(data, (release / "manifest.json.sig").read_bytes(), keychain=keychain).ok
        (tmp_path / f"{signer}.pem").write_bytes(signers[signer].certificate_pem())
        for name, said in (("uki.efi", manifest.uki), ("rescue.efi", manifest.rescue)):
            content = (release / name).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (said.size, said.sha256)
            check: list[Argument] = ["sbverify", "--cert", tmp_path / f"{signer}.pem", release / name]
            assert tools.run(check, ro_binds=[tmp_path], check=False).status == 0
    for name in ("uki.efi", "rescue.efi"):
        assert (first / name).read_bytes() != (second / name).read_bytes()
        for release in (first, second):
            tools.run(["sbattach", "--remove", release / name], binds=[release])
        assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.mark.build
def test_what_does_not_belong_together_is_not_signed(
    tools: Tools, signers: dict[str, Signer], unsigned: Callable[[str], Path]
) -> None:
    release = unsigned("release")
    good = {path.name: path.read_bytes() for path in release.iterdir() if path.is_file()}
    manifest = parse_manifest(good[signing.UNSIGNED])

    def faults(name: str, content: bytes) -> tuple[str, ...]:
        (release / name).write_bytes(content)
        with pytest.raises(InputError) as caught:
            signing.sign_release(tools, release, signers["one"])
        (release / name).write_bytes(good[name])
        assert not (release / "manifest.json").exists()
        return tuple(caught.value.faults)

    assert faults("image", good["image"] + b"x") == ("image: not the one that the manifest names",)
    other = good[signing.UNSIGNED_UKI]
    assert faults(signing.UNSIGNED_UKI, other[:-1] + b"y")[0].endswith("not the one that the manifest names")
    # The normal image in the rescue one's place, and the other way round, each with a manifest that says so.
    for file, other_file, told in (
        (signing.UNSIGNED_RESCUE, signing.UNSIGNED_UKI, manifest._replace(rescue=manifest.uki)),
        (signing.UNSIGNED_UKI, signing.UNSIGNED_RESCUE, manifest._replace(uki=manifest.rescue)),
    ):
        (release / file).write_bytes(good[other_file])
        named = faults(signing.UNSIGNED, serialize_manifest(told))
        assert any("rescue image" in one for one in named), named
        assert any("it is a rescue image" in one for one in named) == (file == signing.UNSIGNED_UKI), named
        assert not any("the one that the manifest names" in one for one in named), named
        (release / file).write_bytes(good[file])
    for number in (manifest.number + 1, 1, 100):
        assert "another number" in faults(signing.UNSIGNED, serialize_manifest(manifest._replace(number=number)))[0]
    assert faults(signing.UNSIGNED, serialize_manifest(manifest._replace(image_digest="0" * 64)))
    for name, said in (("foreign", "would refuse the release"), ("me", "has not the role")):
        with pytest.raises(InputError, match=said):
            signing.sign_release(tools, release, signers[name])
    assert sorted(path.name for path in release.iterdir()) == sorted([*good, signing.KEYCHAIN])
    # The control.
    signing.sign_release(tools, release, signers["one"])


@pytest.mark.build
def test_an_interrupted_signing_is_done_again(
    tools: Tools, signers: dict[str, Signer], unsigned: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    release = unsigned("release")
    monkeypatch.setattr(signing, "_tidy", lambda _: None)
    before = Signer.sign_document

    def cut(self: Signer, data: bytes) -> bytes:
        if data:
            raise KeyboardInterrupt
        return before(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Signer, "sign_document", cut)
        with pytest.raises(KeyboardInterrupt):
            signing.sign_release(tools, release, signers["one"])
    assert (release / "uki.efi").exists()
    assert not (release / "manifest.json").exists()
    # Cut before the leftovers went: what is signed stays as it is.
    manifest = signing.sign_release(tools, release, signers["one"])
    monkeypatch.undo()
    assert signing.sign_release(tools, release, signers["two"]) == manifest
    assert not signing.is_unsigned(release)


def write_image(tools: Tools, target: Path, digest: bytes) -> bytes:
    """A metadata image of a tree with one module, whose data has the fs-verity ``digest``."""
    entries = [Entry(path, 0o040755, 0, 0) for path in ("/", "/usr", "/usr/lib", "/usr/lib/modules")]
    entries.append(Entry("/usr/lib/modules/a.ko", 0o100644, 0, 0, 9, redirect="/aa/bb.file", digest=digest))
    target.with_suffix(".ball").write_bytes(headerball(entries))
    tools.run(["mkfs.erofs", "-d0", "--tar=headerball", "-T1", target, target.with_suffix(".ball")], binds=[target.parent])
    return kernel_inputs.policy(kernel_inputs.rules(entries))


@pytest.mark.build
def test_kernel_inputs_are_signed_as_the_image_has_them(tools: Tools, signers: dict[str, Signer], tmp_path: Path) -> None:
    policy = write_image(tools, tmp_path / "image", b"a" * 32)
    other = write_image(tools, tmp_path / "other", b"b" * 32)
    image = (tmp_path / "image").read_bytes()
    manifest = lab_manifest("1.0", 1000)[0]._replace(
        image_digest=verity.digest_bytes(image).hex(), image_size=len(image)
    )  # fmt: skip
    files = [("release-one.der", signers["one"].certificate_der())]

    def release(name: str, inputs: str) -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / "image").write_bytes(image)
        built = make_ukis(tools, tmp_path / f"work-{name}", 1, manifest, inputs)
        signing.write_unsigned(tmp_path / name, manifest, built, files)
        return tmp_path / name

    wrong = release("wrong", kernel_inputs.check(other))
    with pytest.raises(InputError) as caught:
        signing.sign_release(tools, wrong, signers["one"])
    assert "other kernel inputs" in caught.value.faults[0]
    assert not (wrong / "manifest.json").exists()

    right = release("right", kernel_inputs.check(policy))
    assert parse_manifest((right / signing.UNSIGNED).read_bytes()).inputs is None
    signed = signing.sign_release(tools, right, signers["one"])
    assert signed.inputs is not None
    assert signed.inputs.name == kernel_inputs.check(policy)
    assert parse_manifest((right / "manifest.json").read_bytes()).inputs == signed.inputs
    one = signers["one"]
    assert signing.loadable_policy(right) == cms.sign(policy, one.certificate_der(), one.sign, attached=True)

    # Before there were such lists, and machines that have one: nothing is made up.
    assert signing.sign_release(tools, release("older", ""), signers["one"]).inputs is None
    assert signing.loadable_policy(tmp_path / "older") == b""


@pytest.mark.build
def test_the_verb_finds_the_release(
    unsigned: Callable[[str], Path], signers: dict[str, Signer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store.open(tmp_path / "store")
    release = store.releases / "server-1.0"
    unsigned("made").rename(release)
    create("three", "release", tmp_path, None)
    with pytest.raises(InputError, match="is not signed"):
        store.release("server-1.0")
    words = ["sign", "server-1.0", "--store", str(store.root)]
    # The wrong key, then the right one, whose certificate the release's keychain has.
    assert main([*words, "--key", f"file:{tmp_path}/three.key"]) == 2
    (release / signing.KEYCHAIN / "release-three.der").write_bytes((tmp_path / "three.der").read_bytes())
    assert main([*words, "--key", f"file:{tmp_path}/three.key", "-o", "x"]) == 2
    assert main([*words, "--key", f"file:{tmp_path}/three.key", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["schema"], shown["name"], shown["number"]) == ("freehold-sign-1", "server", 1000)
    assert store.release("server-1.0") == release
    assert main([*words, "--key", f"file:{tmp_path}/three.key"]) == 2
    assert "signed already" in capsys.readouterr().err


def test_an_unsigned_build_needs_certificates_only(tmp_path: Path, signers: dict[str, Signer]) -> None:
    recipe = dataclasses.replace(load(RECIPE), keychain=(), revoked=())
    directory = keys.KeyDirectory(tmp_path)
    with pytest.raises(InputError, match="nothing could vouch"):
        keys.with_keychain(recipe, directory, None)
    (tmp_path / "owner.der").write_bytes(signers["me"].certificate_der())
    with pytest.raises(InputError, match="nothing could vouch"):
        keys.with_keychain(recipe, directory, None)
    (tmp_path / "one.der").write_bytes(signers["one"].certificate_der())
    without = keys.with_keychain(recipe, directory, None)
    assert [one.filename for one in without.keychain] == ["owner-owner.der", "release-one.der"]
    # What goes into the tree does not depend on who signs it later.
    assert without == keys.with_keychain(recipe, directory, signers["one"])


def test_options_that_contradict_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["build", str(RECIPE), "--store", str(tmp_path / "store")]
    assert main([*words, "--unsigned", "--key", "file:x"]) == 2
    assert "--unsigned uses no key" in capsys.readouterr().err
    assert main([*words, "--number", "-1", "--keys", str(tmp_path)]) == 2
    assert "is not a release number" in capsys.readouterr().err
    with pytest.raises(InputError, match="not a release number"):
        pipeline.build(
            RECIPE, Store.open(tmp_path / "store"), keys.KeyDirectory(tmp_path), NullMonitor(), number=2**53 + 1
        )
