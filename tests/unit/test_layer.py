# SPDX-License-Identifier: Apache-2.0
"""Requested packages over a release: what apt and dpkg say, an overlay's upper directory, and real packages in the box."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from lab_derive import MACHINE, MemoryVerity, keys, tools_or_skip

from freehold.build.store import cache_directory
from freehold.device import apply, layer, loader, sandbox, wanted
from freehold.device.sysroot import Sysroot
from freehold.errors import FreeholdError, InputError
from freehold.keys.verity import digest_bytes
from freehold.lock import requests
from freehold.lock.requests import File, Package, Requests
from freehold.monitor import NullMonitor
from freehold.seal import accounts, dpkg, erofs, ids
from freehold.seal.headerball import Entry
from freehold.seal.walk import CAPABILITY, file_capability, walk
from freehold.update.manifest import canonical, parse_manifest

MONITOR = NullMonitor()
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes devices and mounts")


def test_a_plan_is_understood() -> None:
    text = (
        "Reading package lists...\nRemv dash [0.5-1]\nInst fish-common (4.0-1 Debian:13 [all])\n"
        "Inst less [600-1] (668-1 Debian:13 [amd64])\nInst fish (4.0-1 Debian:13 [amd64]) []\n"
        "Conf fish (4.0-1 Debian:13 [amd64])\n"
    )
    found = dpkg.plan(text)
    assert found.added == (("fish", "4.0-1"), ("fish-common", "4.0-1"))
    assert found.removed == (("dash", "0.5-1"),)
    assert found.replaced == (("less", "600-1", "668-1"),)


@pytest.mark.parametrize(("text", "wanted_words"), [
    ("a\nx: oops\ndpkg: error processing package hello (--configure):\n installed hello package post-installation script"
     " subprocess returned error exit status 3\n", "the post-installation script of hello failed"),
    ("dpkg: error processing archive /run/files/x.deb (--unpack):\n corrupt\n", "/run/files/x.deb could not be installed"),
    ("Reading...\nE: Unable to locate package fihs\n", "Unable to locate package fihs"),
    ("", "no message"),
])  # fmt: skip
def test_a_failure_is_said_in_one_line(text: str, wanted_words: str) -> None:
    why, lines = dpkg.failure(text)
    assert why == wanted_words
    assert len(lines) <= 12


def test_half_installed_packages_are_found() -> None:
    rows = ("install ok installed", "deinstall ok config-files", "install ok half-configured", "install ok triggers-pending")
    text = "\n\n".join(f"Package: p{n}\nStatus: {row}\nVersion: 1\nArchitecture: all" for n, row in enumerate(rows))
    assert dpkg.unsettled(text) == ["p2 is half-configured", "p3 is triggers-pending"]
    assert dpkg.unsettled("Package: a\nStatus: install reinstreq installed\n") == ["a is installed"]


def test_numbers_never_change_hands() -> None:
    own = ids.IdLock({"mine": 990, "old": 989}, {"mine": 990})
    joined = accounts.joined(ids.IdLock({"sshd": 991}, {}), own)
    assert joined.users == {"mine": 990, "old": 989, "sshd": 991}
    with pytest.raises(InputError, match="taken"):
        accounts.joined(ids.IdLock({"new": 990}, {}), own)


def entry(path: str, kind: int = stat.S_IFREG, data: bytes = b"") -> Entry:
    mode = kind | (0o755 if kind == stat.S_IFDIR else 0o644)
    return Entry(path, mode, 0, 0, len(data), redirect="/aa/b.file" if data else "", digest=digest_bytes(data) if data else b"")


@needs_root
@needs_root
def test_a_layer_brings_no_privileges(tmp_path: Path) -> None:
    """Capabilities of files count as set-uid bits do; what the signed tree below has stays."""
    (tmp_path / "usr/bin").mkdir(parents=True)
    strong = file_capability(21)
    for name in ("tool", "signed", "newuidmap"):
        (tmp_path / "usr/bin" / name).touch()
        (tmp_path / "usr/bin" / name).chmod(0o4755)
        os.setxattr(tmp_path / "usr/bin" / name, CAPABILITY, strong)
    layer._clean(tmp_path, 0, {("/usr/bin/signed", strong)})
    found = {entry.path[9:]: entry for entry in walk(tmp_path) if entry.path.startswith("/usr/bin/")}
    assert {stat.S_IMODE(entry.mode) for entry in found.values()} == {0o755}
    assert {name: entry.xattrs for name, entry in found.items()} == {
        "tool": (), "signed": ((CAPABILITY, strong),), "newuidmap": ((CAPABILITY, file_capability(7)),),
    }  # fmt: skip


def test_an_upper_directory_becomes_entries(tmp_path: Path) -> None:
    base = {one.path: one for one in (
        entry("/", stat.S_IFDIR), entry("/usr", stat.S_IFDIR), entry("/usr/gone", data=b"x"), entry("/usr/same", data=b"same"),
        entry("/usr/other", data=b"other"), entry("/usr/d", stat.S_IFDIR), entry("/usr/d/old", data=b"old"),
        entry("/usr/d/kept", data=b"kept"), entry("/usr/d/sub", stat.S_IFDIR), entry("/usr/d/sub/deep", data=b"deep"),
    )}  # fmt: skip
    upper = tmp_path / "upper"
    (upper / "usr/d").mkdir(parents=True, mode=0o755)
    os.mknod(upper / "usr/gone", stat.S_IFCHR | 0o600, os.makedev(0, 0))
    os.mknod(upper / "usr/never", stat.S_IFCHR | 0o600, os.makedev(0, 0))
    os.setxattr(upper / "usr/d", "trusted.overlay.opaque", b"y")
    for name, data in (("same", "same"), ("other", "changed"), ("new", "new"), ("d/kept", "kept")):
        (upper / "usr" / name).write_text(data)
    os.setxattr(upper / "usr/other", "trusted.overlay.origin", b"junk")
    entries, removed = layer.scan(upper, base)
    found = {one.path: one for one in entries}
    assert sorted(found) == ["/usr", "/usr/d", "/usr/new", "/usr/other"]
    assert removed == ["/usr/d/old", "/usr/d/sub", "/usr/d/sub/deep", "/usr/gone"]
    assert found["/usr/other"].xattrs == ()
    assert sorted(path.name for path in upper.rglob("*")) == ["d", "new", "other", "usr"]
    (upper / "usr/d").rmdir()
    (upper / "usr/d").write_text("a file now")
    with pytest.raises(FreeholdError, match="between file and directory"):
        layer.scan(upper, base)


def reference() -> Path:
    """A builder's store with a finished release, from the cache."""
    for found in sorted(cache_directory().glob("*/store/releases/*/manifest.json")):
        store = found.parents[2]
        parts = ("image", "uki.efi", "manifest.json.sig")
        if all((found.parent / name).is_file() for name in parts) and (store / "repo/objects").is_dir():
            return found.parent
    pytest.skip("no built release in the cache")


@pytest.fixture
def machine(tmp_path: Path) -> Sysroot:
    """A machine with the reference release; the store's objects are linked, never written."""
    release, tools, verity = reference(), tools_or_skip(), MemoryVerity()
    root = tmp_path / "sysroot"
    for name in ("images", "owner/etc/0/upper", "deployments"):
        (root / name).mkdir(parents=True)
    copied = subprocess.run(["cp", "-al", release.parents[1] / "repo", root / "repo"], check=False)
    if copied.returncode:
        pytest.skip("the cache is on another file system")
    for name in ("config", ".lock"):
        path = root / "repo" / name
        if path.exists():
            kept = path.read_bytes()
            path.unlink()
            path.write_bytes(kept)
    # Signed anew below; a store of an earlier version may have no number and no rescue image.
    named = json.loads((release / "manifest.json").read_bytes())
    data = canonical({"number": 0, "rescue": named["uki"], **named})
    manifest = parse_manifest(data)
    prefix = [str(part) for part in tools.argv([], binds=[tmp_path])]
    sysroot = Sysroot(
        root=root, esp=tmp_path / "esp", system=tmp_path / "system", ostree=(*prefix, "ostree"), mkfs=(*prefix, "mkfs.erofs"),
        verity=verity, kernel_verity=False,
    )  # fmt: skip
    for path in (sysroot.esp / "EFI/Linux", sysroot.keychain, sysroot.system / "run/freehold", sysroot.system / "proc"):
        path.mkdir(parents=True)
    (root / "owner/id").write_text(MACHINE + "\n")
    (sysroot.keychain / "release-vendor.der").write_bytes(keys()["vendor"].certificate_der())
    (sysroot.keychain / "owner-me.der").write_bytes(keys()["me"].certificate_der())
    directory = sysroot.deployments / manifest.id
    directory.mkdir()
    (directory / "manifest.json").write_bytes(data)
    (directory / "manifest.json.sig").write_bytes(keys()["vendor"].sign_document(data))
    shutil.copyfile(release / "image", sysroot.images / manifest.image_digest)
    saving = release / "rescue.efi" if "rescue" in named else release / "uki.efi"
    shutil.copyfile(saving, directory / "rescue.efi")
    shutil.copyfile(release / "uki.efi", sysroot.esp / f"EFI/Linux/freehold-{manifest.version}-{manifest.id}.efi")
    (sysroot.system / "proc/cmdline").write_text(f"freehold.image={manifest.image_digest}\n")
    return sysroot


def package(sysroot: Sysroot, script: str, *, name: str = "hello-local", version: str = "1.0", more: str = "") -> File:
    """A package of our own with a postinst, made by dpkg-deb and kept as a requested file."""
    top = sysroot.root.parent
    deb = top / f"deb-{name}"
    shutil.rmtree(deb, ignore_errors=True)
    for path in ("DEBIAN", "usr/bin", "usr/lib/python3/dist-packages", "var/lib/hello", "etc"):
        (deb / path).mkdir(parents=True, exist_ok=True)
    fields = f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: A <a@example.org>\n{more}Description: x\n"
    (deb / "DEBIAN/control").write_text(fields)
    if name == "hello-local":
        (deb / "DEBIAN/conffiles").write_text("/etc/hello.conf\n")
        (deb / "etc/hello.conf").write_text("a=1\n")
        (deb / "var/lib/hello/data").write_text("content\n")
    (deb / "DEBIAN/postinst").write_text(f"#!/bin/sh\nset -e\n{script}\n")
    (deb / "DEBIAN/postinst").chmod(0o755)
    (deb / "usr/bin" / name).write_text("#!/bin/sh\n")
    (deb / "usr/bin" / name).chmod(0o4755)
    target = top / f"{name}_{version}_all.deb"
    tools_or_skip().run(["dpkg-deb", "--root-owner-group", "-b", deb, target], binds=[top])
    return wanted.store_file(sysroot, target)


def go(sysroot: Sysroot, *files: File, serial: int = 7, names: tuple[Package, ...] = ()) -> apply.Outcome:
    text = requests.serialize(Requests(packages=names, files=tuple(sorted(files))))
    return apply.transact(sysroot, text, serial, keys()["machine"], MONITOR)


def tree(sysroot: Sysroot, digest: str) -> dict[str, Entry]:
    return {one.path: one for one in erofs.read((sysroot.images / digest).read_bytes()).entries}


SCRIPT = """
adduser --system --group --home /var/lib/hello --no-create-home hello >/dev/null
mkdir /var/lib/hello/made && chown hello:hello /var/lib/hello/made
test -z "$(ls /sysroot)"
test ! -e /run/freehold
test ! -e /tmp/from-outside
python3 -c 'import socket; assert [name for _, name in socket.if_nameindex()] == ["lo"]'
python3 -c 'import os; assert not {"PLANTED", "APT_CONFIG", "http_proxy"} & set(os.environ); assert os.environ["HOME"] == "/root"'
python3 -c 'caps = [l for l in open("/proc/self/status") if "CapEff" in l]; assert not int(caps[0].split()[1], 16) >> 21 & 1'
touch /run/trace /tmp/trace
if /usr/sbin/policy-rc.d ssh start; then exit 9; fi
rm /usr/share/doc/less/copyright 2>/dev/null || true
"""


@pytest.mark.build
@needs_root
def test_a_package_file_from_end_to_end(machine: Sysroot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED", "yes")
    monkeypatch.setenv("APT_CONFIG", "/tmp/evil")
    monkeypatch.setenv("http_proxy", "http://evil.invalid/")
    base = loader.listing(machine.esp)[0]
    before = tree(machine, next(one.name for one in machine.images.iterdir()))
    made = go(machine, package(machine, SCRIPT)).manifest
    after = tree(machine, made.image_digest)
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert all(path.startswith("/usr/") for path in changed)
    for path in ("/usr/bin/hello-local", "/usr/etc/hello.conf", "/usr/etc/passwd", "/usr/share/freehold/var/lib/hello/data",
                 "/usr/lib/tmpfiles.d/freehold-layer.conf", "/usr/share/dpkg-db/status"):  # fmt: skip
        assert path in changed
    # No set-uid, no leftovers, no traces of the box.
    assert stat.S_IMODE(after["/usr/bin/hello-local"].mode) == 0o755
    for path in ("lock", "status-old", "triggers/Lock"):
        assert f"/usr/share/dpkg-db/{path}" not in after
    assert not [path for path in changed if "policy-rc.d" in path or path.endswith(("passwd-", "trace"))]

    def content(path: str) -> str:
        return (machine.repo / "objects" / after[path].redirect[1:]).read_text()

    rules = content("/usr/lib/tmpfiles.d/freehold-layer.conf")
    assert "C /var/lib/hello/data 0644 root root - /usr/share/freehold/var/lib/hello/data" in rules
    assert "d /var/lib/hello/made 0755 hello hello - -" in rules
    assert [one for one in made.packages if one[0] == "hello-local"] == [("hello-local", "1.0", "all")]
    number = ids.parse_lock(content("/usr/share/freehold/ids")).users["hello"]
    assert not (machine.root / "layer").exists()
    assert not [line for line in Path("/proc/mounts").read_text().splitlines() if str(machine.root) in line]
    # Made again with another package first: the account keeps its number.
    other = package(machine, "adduser --system --group --no-create-home --home /nonexistent aaa", name="aaa-local")
    second = go(machine, package(machine, SCRIPT), other, serial=8).manifest
    after = tree(machine, second.image_digest)
    assert ids.parse_lock(content("/usr/share/freehold/ids")).users["hello"] == number
    assert loader.listing(machine.esp)[-1].id == base.id


@pytest.mark.build
@needs_root
@pytest.mark.parametrize(("script", "more", "words"), [
    ("echo oops >&2; exit 3", "", "post-installation script of hello-local failed"),
    ("true", "Depends: no-such-package\n", "no-such-package|unmet|held"),
    ("true", "Conflicts: less\n", "release's own"),
    ("sleep 60", "", "did not finish"),
])  # fmt: skip
def test_what_fails_deploys_nothing(
    machine: Sysroot, monkeypatch: pytest.MonkeyPatch, script: str, more: str, words: str
) -> None:
    monkeypatch.setattr(sandbox, "TIMEOUT", 8 if "sleep" in script else 600)
    before = sorted(path.name for path in (machine.esp / "EFI/Linux").iterdir())
    with pytest.raises(FreeholdError) as error:
        go(machine, package(machine, script, more=more))
    said = "\n".join([error.value.message, *getattr(error.value, "faults", ())])
    assert any(word in said for word in words.split("|")), said
    assert sorted(path.name for path in (machine.esp / "EFI/Linux").iterdir()) == before
    assert not (machine.root / "layer").exists()
    assert not [line for line in Path("/proc/mounts").read_text().splitlines() if str(machine.root) in line]


@pytest.mark.build
@needs_root
def test_a_package_of_the_release_is_not_replaced(machine: Sysroot) -> None:
    with pytest.raises(InputError, match="release's own") as error:
        go(machine, package(machine, "true", name="less", version="9999"))
    assert any("less" in fault for fault in error.value.faults)


@pytest.mark.build
@needs_root
def test_a_changed_package_file_is_refused(machine: Sysroot) -> None:
    file = package(machine, "true")
    path = wanted.file_path(machine, file)
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(InputError, match="not the package file"):
        go(machine, file)


@pytest.mark.build
@needs_root
def test_a_package_from_the_archive(machine: Sysroot) -> None:
    """Needs the network, as the builder does."""
    try:
        made = go(machine, names=(Package("fish"),)).manifest
    except InputError as error:
        if any("resolve" in fault or "connect" in fault for fault in error.faults):
            pytest.skip("no network")
        raise
    after = tree(machine, made.image_digest)
    assert "/usr/bin/fish" in after
    assert "fish" in {name for name, _, _ in made.packages}
    with pytest.raises(InputError, match="no-such-thing-at-all"):
        go(machine, names=(Package("no-such-thing-at-all"),), serial=8)
