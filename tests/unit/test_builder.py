# SPDX-License-Identifier: Apache-2.0
"""The builder's pure parts, and its work on small trees."""

from __future__ import annotations

import dataclasses
import os
import stat
import struct
from pathlib import Path

import pytest

from freehold import atomic
from freehold.build import commit as commits
from freehold.build import disk, image, packages, pipeline, rootfs, state, tools, tree, uki, verbs
from freehold.build.keys import KeyDirectory
from freehold.build.recipe import File, Recipe, User, load
from freehold.build.store import Store, cache_directory
from freehold.errors import BusyError, FreeholdError, InputError
from freehold.keys import verity
from freehold.keys.issue import create
from freehold.monitor import NullMonitor
from freehold.seal import accounts, ids
from freehold.seal.dpkg import installed
from freehold.seal.headerball import Entry
from freehold.seal.walk import file_capability, stamp_bytecode, strip_privileges, walk

ROOT = Path(__file__).parents[2]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes owners")


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load(ROOT / "recipes" / "server.toml")


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """A tree with accounts as packages leave them."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/bash\nsshd:x:100:100::/run/sshd:/usr/sbin/nologin\n")
    (tmp_path / "etc/group").write_text("root:x:0:\nsshd:x:100:\nadm:x:4:\n")
    (tmp_path / "etc/shadow").write_text("root:*:1::::::\nsshd:!:1::::::\n")
    (tmp_path / "etc/gshadow").write_text("root:*::\nsshd:!::\nadm:*::\n")
    return tmp_path


ANNA = User("anna", None, ("adm",), "/bin/bash", "/home/anna", "Anna")


SOURCES = """# made by hand
deb http://mirror.invalid/debian trixie main
deb http://mirror.invalid/debian trixie-updates main
deb http://mirror.invalid/debian-security trixie-security main
"""


def test_sources_of_pockets() -> None:
    lines = SOURCES.splitlines()[1:]
    assert tools.source_lines(SOURCES, ()).splitlines() == lines[:1]
    assert tools.source_lines(SOURCES, ("security", "updates")).splitlines() == lines
    # mmdebstrap names no backports; an image that asked for them must not be built without.
    backports = "deb http://mirror.invalid/debian trixie-backports main"
    assert tools.source_lines(SOURCES, ("backports",)).splitlines() == [lines[0], backports]
    assert tools.source_lines(f"{SOURCES}{backports}\n", ("backports",)).splitlines() == [lines[0], backports]
    with pytest.raises(InputError, match="trixie-security"):
        tools.source_lines(lines[0], ("security",))


def test_apt_plan_is_read_and_named() -> None:
    text = (
        "'http://mirror/one_1%3a2_amd64.deb' one_1%3a2_amd64.deb 1000 SHA256:aa\n"
        "Reading lists...\n'copy:/x/two.deb' two.deb 24 \n"
    )
    plan = packages.parse_uris(text)
    assert plan.files == (("one_1%3a2_amd64.deb", 1000, "SHA256:aa"), ("two.deb", 24, ""))
    assert plan.bytes == 1024
    assert packages.PackagePlan(plan.files[::-1]).id == plan.id
    assert packages.PackagePlan((("one", 1000, "SHA256:ab"),)).id != packages.PackagePlan((("one", 1000, "SHA256:aa"),)).id


def test_apt_faults_are_said_once() -> None:
    output = "Reading...\nE: Unable to locate package nonesuch\nE: Unable to locate package nonesuch\n a : Depends: b (>= 2)\n"
    assert packages.explain_apt(output) == ["Unable to locate package nonesuch", "a : Depends: b (>= 2)"]
    assert packages.explain_apt("") == []


def test_listing_keeps_spaces_in_names() -> None:
    one, two = "a" * 64, "b" * 64
    listing = f"d00755 0 0 0 {one} {two} /\n-00644 0 0 5 {one} /usr/a b\nl00777 0 0 0 {two} /bin -> usr/bin\n"
    assert commits.parse_listing(listing) == {"/usr/a b": one}


def test_walk_sees_every_file_with_its_digest(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/file").write_bytes(b"data")
    (tmp_path / "empty").touch()
    (tmp_path / "link").symlink_to("d//./file")
    (tmp_path / "dirlink").symlink_to("d")
    found = {one.path: one for one in walk(tmp_path)}
    assert set(found) == {"/", "/d", "/d/file", "/empty", "/link", "/dirlink"}
    assert found["/d/file"].digest == verity.digest_bytes(b"data")
    assert found["/empty"].digest == b""
    assert found["/link"].target == "d//./file"
    assert stat.S_ISLNK(found["/dirlink"].mode)


@pytest.mark.parametrize("name", ["pipe", "a\nb"])
def test_walk_refuses_what_no_image_can_hold(name: str, tmp_path: Path) -> None:
    if name == "pipe":
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).touch()
    with pytest.raises(FreeholdError, match="cannot be part of an image"):
        list(walk(tmp_path))


def test_image_entries_point_at_their_objects() -> None:
    entry = Entry("/f", stat.S_IFREG | 0o644, 0, 0, 4, digest=b"d" * 32)
    empty = Entry("/e", stat.S_IFREG | 0o644, 0, 0)
    resolved = image.resolve([entry, empty], commits.Commit("c", {"/f": "ab" + "c" * 62, "/e": "f" * 64}))
    assert [one.redirect for one in resolved] == [f"/ab/{'c' * 62}.file", ""]
    with pytest.raises(FreeholdError, match="/f is not in commit"):
        image.resolve([entry], commits.Commit("c", {}))


@pytest.mark.parametrize("size", [1, 4096, 4097, 300_000])
def test_protected_files_carry_their_tree_behind_the_data(size: int, tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(os.urandom(size))
    source.chmod(0o751)
    os.setxattr(source, "user.mark", b"1")
    assert rootfs.protect(source, target) == size
    data = target.read_bytes()
    assert data[:size] == source.read_bytes()
    assert data[verity.metadata_offset(size) :] == verity.metadata_bytes(verity.measure(source))
    assert not any(data[size : verity.metadata_offset(size)])
    assert target.stat().st_mode & 0o7777 == 0o751
    assert os.getxattr(target, "user.mark") == b"1"


def test_objects_are_staged_once_and_counted(tmp_path: Path) -> None:
    name = "ab" + "c" * 62
    (tmp_path / "repo/objects/ab").mkdir(parents=True)
    (tmp_path / f"repo/objects/ab/{'c' * 62}.file").write_bytes(b"x" * 10)
    done = rootfs.stage_objects(tmp_path / "repo", tmp_path / "to", [name, name], NullMonitor())
    assert done == [rootfs.Protected(f"/repo/objects/ab/{'c' * 62}.file", 10)]
    assert rootfs.debugfs_script(done) == (
        f"set_inode_field {done[0].path} flags 0x180000\nset_inode_field {done[0].path} size 10\n"
    )


def test_partitions_fill_the_disk_without_overlap() -> None:
    size = 8 << 30
    rows = [row for row in disk.partition_table(size, "d" * 64).splitlines() if row.startswith("start=")]
    parts = [dict(field.strip().split("=") for field in row.split(",")) for row in rows]
    esp, root = ((int(one["start"]), int(one["size"])) for one in parts)
    assert esp[0] * 512 == disk.ALIGNMENT
    assert sum(esp) == root[0]
    assert sum(root) * 512 == size - disk.ALIGNMENT
    assert parts[0]["uuid"] != parts[1]["uuid"]
    assert disk.partition_table(size, "d" * 64) != disk.partition_table(size, "e" * 64)


def test_names_on_the_boot_partition() -> None:
    assert disk.uki_name("server", "1.2", "a" * 64) == f"freehold-1.2-{'a' * 16}+3.efi"
    assert disk.uki_name("server", "1.2", "a" * 64, tries=None) == f"freehold-1.2-{'a' * 16}.efi"
    assert disk.derived_uuid("a", "b") == disk.derived_uuid("a", "b") != disk.derived_uuid("ab")
    assert "editor no" in disk.loader_conf(3).splitlines()
    assert "timeout 3" in disk.loader_conf(3).splitlines()


def test_sealed_command_line() -> None:
    words = uki.command_line("f" * 64, 1_790_000_000, ["tty0", "ttyS0"], ["quiet"]).split(" ")
    assert words[:2] == [f"freehold.image={'f' * 64}", "freehold.release=1790000000"]
    assert {"systemd.import_credentials=no", "proc_mem.force_override=never", "bdev_allow_write_mounted=0", "ro"} <= set(words)
    assert words[-3:] == ["console=tty0", "console=ttyS0", "quiet"]


def test_installed_packages_only() -> None:
    status = (
        "Package: b\nStatus: install ok installed\nVersion: 2\nArchitecture: all\nDescription: x\n more: y\n\n"
        "Package: c\nStatus: deinstall ok config-files\nVersion: 2\nArchitecture: all\n\n"
        "Package: a\nStatus: hold ok installed\nVersion: 1:1-1\nArchitecture: amd64\n"
    )
    assert installed(status) == (("a", "1:1-1", "amd64"), ("b", "2", "all"))
    assert installed("") == ()


def test_archive_date_is_the_newest(tmp_path: Path) -> None:
    assert pipeline.archive_date(tmp_path) == 0
    (tmp_path / "m_InRelease").write_text("-----BEGIN\nDate: Thu, 01 Jan 1970 00:01:00 UTC\n")
    (tmp_path / "n_InRelease").write_text("Date: Thu, 01 Jan 1970 01:00:00 +0000\nDate: x\n")
    assert pipeline.archive_date(tmp_path) == 3600


def test_next_version_skips_what_exists(tmp_path: Path, recipe: Recipe) -> None:
    store = Store.open(tmp_path)
    dated = dataclasses.replace(recipe, version="{date}.{serial}")
    assert pipeline.next_version(dated, store, 0.0) == "19700101.0"
    (store.releases / f"{recipe.name}-19700101.0").mkdir()
    assert pipeline.next_version(dated, store, 0.0) == "19700101.1"
    fixed = dataclasses.replace(recipe, version="7")
    (store.releases / f"{recipe.name}-7").mkdir()
    assert pipeline.next_version(fixed, store, 0.0) == "7"


def test_store_finds_releases_and_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(tmp_path / "store")
    with pytest.raises(InputError) as caught:
        store.release("server-1")
    assert caught.value.hint == "build one with `freehold build RECIPE`"
    (store.releases / "server-1").mkdir()
    (store.releases / "server-1/manifest.json").touch()
    assert store.release("server-1") == store.release(str(store.releases / "server-1"))
    with pytest.raises(InputError) as caught:
        store.release("server-2")
    assert caught.value.hint == "known: server-1"
    (store.scratch("build") / "left").touch()
    assert list(store.scratch("build").iterdir()) == []
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_directory() == Path("/elsewhere/freehold")


@pytest.mark.parametrize(("text", "size"), [("8G", 8 << 30), ("8192M", 8 << 30), ("512k", 512 << 10), ("7", 7)])
def test_sizes(text: str, size: int) -> None:
    assert verbs.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "8 G", "-1G", "8GB", "1.5G", "8G\n"])
def test_not_sizes(text: str) -> None:
    with pytest.raises(InputError):
        verbs.parse_size(text)


def test_users_are_added_without_a_password(etc: Path, recipe: Recipe) -> None:
    state.add_users(etc, dataclasses.replace(recipe, users=(ANNA, dataclasses.replace(ANNA, name="bob", groups=()))))
    assert (etc / "etc/passwd").read_text().splitlines()[-2:] == [
        "anna:x:1000:1000:Anna:/home/anna:/bin/bash", "bob:x:1001:1001:Anna:/home/anna:/bin/bash",
    ]  # fmt: skip
    assert (etc / "etc/shadow").read_text().splitlines()[-1] == "bob:!:1::::::"
    assert "adm:x:4:anna" in (etc / "etc/group").read_text().splitlines()
    assert "adm:*::anna" in (etc / "etc/gshadow").read_text().splitlines()
    assert (etc / "etc/subuid").read_text() == "anna:100000:65536\nbob:165536:65536\n"


@pytest.mark.parametrize("change", [{"name": "sshd"}, {"uid": 100}, {"groups": ("nonesuch",)}])
def test_users_that_clash_are_refused(change: dict[str, object], etc: Path, recipe: Recipe) -> None:
    user = dataclasses.replace(ANNA, **change)  # type: ignore[arg-type]
    with pytest.raises(InputError) as caught:
        state.add_users(etc, dataclasses.replace(recipe, users=(user,)))
    assert caught.value.faults


@needs_root
def test_ids_follow_the_lock_on_disk_too(etc: Path) -> None:
    file, link = etc / "file", etc / "link"
    file.touch()
    link.symlink_to("/nowhere")
    for path in (file, link):
        os.chown(path, 100, 100, follow_symlinks=False)
    file.chmod(0o4755)
    lock = accounts.fix_ids(etc, ids.parse_lock("freehold-ids 1\nuser sshd 300\ngroup sshd 301\n"))
    assert (file.stat().st_uid, file.stat().st_gid, file.stat().st_mode & 0o7777) == (300, 301, 0o4755)
    assert (link.lstat().st_uid, link.lstat().st_gid) == (300, 301)
    assert "sshd:x:300:301:" in (etc / "etc/passwd").read_text()
    assert (lock.users["sshd"], lock.groups["sshd"]) == (300, 301)
    assert ids.parse_lock((etc / accounts.ID_COPY).read_text()) == lock


def test_owners_below_var(tmp_path: Path) -> None:
    info = tmp_path / "var/lib/dpkg/info"
    info.mkdir(parents=True)
    (info / "one:amd64.list").write_text("/.\n/var/lib/one\n/usr/x\n")
    assert state.owners_below_var(tmp_path) == {"var/lib/one": "one"}


def test_secrets_and_leftovers_go(tmp_path: Path) -> None:
    gone = ["etc/ssh/ssh_host_rsa_key", "etc/machine-id", "etc/passwd-", "root/.bash_history", "var/log/dpkg.log", "vmlinuz.old"]
    gone.append("etc/.resolv.conf.systemd-resolved.bak")
    kept = ["etc/ssh/sshd_config", "etc/passwd"]
    for name in (*gone, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "var/lib/apt/lists/partial").mkdir(parents=True)
    tree.remove_leftovers(tmp_path)
    assert [name for name in gone if (tmp_path / name).exists()] == []
    assert all((tmp_path / name).exists() for name in kept)
    assert not (tmp_path / "var/lib/apt/lists").exists()


@pytest.mark.parametrize("versions", [[], ["6.1", "6.2"]])
def test_an_image_has_exactly_one_kernel(versions: list[str], tmp_path: Path) -> None:
    for version in versions:
        (tmp_path / "usr/lib/modules" / version / "kernel").mkdir(parents=True)
    with pytest.raises(FreeholdError, match=f"has {len(versions)} kernels"):
        tree.settle_kernel(tmp_path)


def test_the_kernel_moves_to_its_modules(tmp_path: Path) -> None:
    (tmp_path / "usr/lib/modules/6.1/kernel").mkdir(parents=True)
    (tmp_path / "boot").mkdir()
    with pytest.raises(FreeholdError, match="brought no vmlinuz"):
        tree.settle_kernel(tmp_path)
    for name in ("vmlinuz-6.1", "System.map-6.1"):
        (tmp_path / "boot" / name).write_text("k")
    assert tree.settle_kernel(tmp_path) == "6.1"
    assert (tmp_path / "usr/lib/modules/6.1/vmlinuz").read_text() == "k"
    assert list((tmp_path / "boot").iterdir()) == []


@needs_root
def test_set_uid_bits_are_taken(tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    modes = {"su": 0o4755, "wall": 0o2755, "ls": 0o755, "newuidmap": 0o4755, "kept": 0o4755}
    for name, mode in modes.items():
        (tmp_path / "usr/bin" / name).touch()
        (tmp_path / "usr/bin" / name).chmod(mode)
    assert strip_privileges(tmp_path, keep_all=["/usr/bin/kept"]) == ["/usr/bin/newuidmap", "/usr/bin/su", "/usr/bin/wall"]
    left = {name: (tmp_path / "usr/bin" / name).stat().st_mode & 0o7777 for name in modes}
    assert left == {**dict.fromkeys(modes, 0o755), "kept": 0o4755}
    assert os.getxattr(tmp_path / "usr/bin/newuidmap", "security.capability") == file_capability(7)
    assert "security.capability" not in os.listxattr(tmp_path / "usr/bin/su")


@needs_root
def test_file_capabilities_are_taken(tmp_path: Path) -> None:
    """A program with CAP_SYS_ADMIN is as good as a set-uid one."""
    (tmp_path / "usr/bin").mkdir(parents=True)
    strong = file_capability(21)
    names = ("tool", "kept", "signed", "other", "newuidmap", "newgidmap")
    for name in names:
        (tmp_path / "usr/bin" / name).touch()
        os.setxattr(tmp_path / "usr/bin" / name, "security.capability", file_capability(6) if name == "newgidmap" else strong)
    signed = {("/usr/bin/signed", strong), ("/usr/bin/other", file_capability(13))}
    assert strip_privileges(tmp_path, signed, ["/usr/bin/kept"]) == ["/usr/bin/newuidmap", "/usr/bin/other", "/usr/bin/tool"]
    left = {}
    for name in names:
        path = tmp_path / "usr/bin" / name
        left[name] = os.getxattr(path, "security.capability") if os.listxattr(path) else b""
    assert left == {
        "tool": b"", "kept": strong, "signed": strong, "other": b"",
        "newuidmap": file_capability(7), "newgidmap": file_capability(6),
    }  # fmt: skip
    assert strip_privileges(tmp_path, signed, ["/usr/bin/kept"]) == []


def test_capability_value() -> None:
    assert struct.unpack("<5I", file_capability(7)) == (0x02000001, 1 << 7, 0, 0, 0)


def test_bytecode_is_valid_for_the_epoch(tmp_path: Path) -> None:
    (tmp_path / "usr").mkdir()
    (tmp_path / "usr/a.pyc").write_bytes(b"mgic" + struct.pack("<III", 0, 999, 5) + b"code")
    hashed = b"mgic" + struct.pack("<I", 1) + b"12345678code"
    (tmp_path / "usr/b.pyc").write_bytes(hashed)
    stamp_bytecode(tmp_path, 1234)
    assert (tmp_path / "usr/a.pyc").read_bytes() == b"mgic" + struct.pack("<III", 0, 1234, 5) + b"code"
    assert (tmp_path / "usr/b.pyc").read_bytes() == hashed


def test_release_is_named_once(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/os-release").write_text("ID=debian\nIMAGE_ID=old\n")
    for version in ("1", "2"):
        tree.name_release(tmp_path, recipe, version)
    lines = (tmp_path / "usr/lib/os-release").read_text().splitlines()
    assert lines == ["ID=debian", "IMAGE_ID=server", "IMAGE_VERSION=2"]


def test_layout_is_a_fixed_set(tmp_path: Path) -> None:
    for name in ("etc/x", "usr/bin", "home", "root", "srv", "opt", "mnt", "media", "boot", "var"):
        (tmp_path / name).mkdir(parents=True)
    tree.settle_layout(tmp_path)
    assert (tmp_path / "usr/etc/x").is_dir()
    assert list((tmp_path / "etc").iterdir()) == []
    assert (tmp_path / "root").readlink() == Path("var/roothome")


def test_a_strange_top_level_directory_is_refused(tmp_path: Path) -> None:
    for name in ("etc", "usr", "home", "root", "srv", "opt", "mnt", "media", "nix"):
        (tmp_path / name).mkdir()
    with pytest.raises(FreeholdError, match="/nix"):
        tree.settle_layout(tmp_path)


@needs_root
def test_recipe_files_have_mode_and_owner(etc: Path, recipe: Recipe) -> None:
    own = dataclasses.replace(recipe, files=(File("/usr/x/y", b"1", 0o640, "sshd:adm"),))
    tree.write_files(etc, own)
    tree.own_files(etc, own)
    status = (etc / "usr/x/y").stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o640, 100, 4)
    with pytest.raises(InputError, match="unknown owner"):
        tree.own_files(etc, dataclasses.replace(recipe, files=(File("/usr/x/y", b"1", 0o640, "who:adm"),)))


def test_one_build_at_a_time_in_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Package lists lie in the cache, which builds into different stores share."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    create("release", "release", tmp_path / "keys", None)
    create("owner", "owner", tmp_path / "keys", None)
    with atomic.exclusive(cache_directory() / "build.lock", "it"), pytest.raises(BusyError, match=r"the cache .* is in use"):
        pipeline.build(
            ROOT / "recipes" / "server.toml", Store(tmp_path / "store"), KeyDirectory(tmp_path / "keys"), NullMonitor()
        )
