# SPDX-License-Identifier: Apache-2.0
"""The judgements of ``freehold verify``: images, the boot partition, mounts, keys, modules. No I/O."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab_release import key
from lab_verify import MOUNTS

from freehold.device import verify_esp, verify_image, verify_keys, verify_machine
from freehold.device.verify_findings import Checked, Finding, Result, clean, data, deviation, note, text, verdict
from freehold.keys import efi
from freehold.keys.formats import Revocation
from freehold.keys.verify import Certificate, Keychain
from freehold.seal.headerball import METACOPY_PREFIX

LINE = f"freehold.image={'a' * 64} ro quiet"


def checks(findings: list[Finding]) -> list[tuple[str, str]]:
    """Check and object of each deviation."""
    return [(one.check, one.object) for one in findings if one.severity == "deviation"]


# --- images


DIGEST = hashlib.sha256(b"object").digest()
REDIRECT = b"/0b/" + b"d" * 62 + b".file"


def test_a_file_of_an_image() -> None:
    one = verify_image.pointer("/usr/a", 8, REDIRECT, METACOPY_PREFIX + DIGEST)
    assert one == verify_image.Pointer("/usr/a", f"0b/{'d' * 62}.file", DIGEST, 8)
    assert verify_image.pointer("/usr/inline", 8, None, None) is None


@pytest.mark.parametrize(
    ("redirect", "metacopy", "fault"),
    [
        (REDIRECT, None, "demands no digest"),
        (None, METACOPY_PREFIX + DIGEST, "names no object"),
        (REDIRECT, b"", "demands no digest"),
        (REDIRECT, bytes((0, 4, 0, 1)), "demands no digest"),
        (REDIRECT, bytes((0, 4, 0, 0)), "demands no digest"),
        (REDIRECT, bytes((1, 36, 0, 1)) + DIGEST, "malformed"),
        (REDIRECT, bytes((0, 36, 1, 1)) + DIGEST, "malformed"),
        (REDIRECT, bytes((0, 36, 0, 1)) + DIGEST[:-1], "malformed"),
        (REDIRECT, bytes((0, 36, 0, 2)) + DIGEST, "algorithm 2"),
        (REDIRECT, bytes((0, 37, 0, 1)) + DIGEST + b"x", "algorithm"),
        (b"/../../etc/shadow", METACOPY_PREFIX + DIGEST, "names no object"),
        (REDIRECT[1:], METACOPY_PREFIX + DIGEST, "names no object"),
        (REDIRECT + b"\n", METACOPY_PREFIX + DIGEST, "names no object"),
    ],
)
def test_files_that_overlayfs_would_not_follow(redirect: bytes | None, metacopy: bytes | None, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        verify_image.pointer("/usr/a", 8, redirect, metacopy)


@given(st.binary(max_size=40), st.binary(max_size=80))
def test_any_attributes_are_read_or_refused(metacopy: bytes, redirect: bytes) -> None:
    try:
        digest = verify_image.parse_metacopy(metacopy)
    except ValueError:
        pass
    else:
        assert METACOPY_PREFIX + digest == metacopy
    try:
        name = verify_image.parse_redirect(redirect)
    except ValueError:
        return
    assert f"/{name}".encode() == redirect and ".." not in name.split("/")


# --- boot partition


OURS = f"freehold-1.0-{'0' * 16}.efi"
GOOD = [
    "EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi", f"EFI/Linux/{OURS}", "loader/loader.conf", "loader/entries.srel",
    "loader/random-seed", "loader/keys/auto/PK.auth", "loader/keys/auto/KEK.auth", "loader/keys/auto/db.auth",
]  # fmt: skip


def test_a_boot_partition_as_it_should_be() -> None:
    assert verify_esp.judge_files(GOOD, [OURS]) == []
    # FAT does not tell cases apart.
    assert verify_esp.judge_files([path.upper() for path in GOOD], [OURS]) == []


@pytest.mark.parametrize(
    ("path", "check"),
    [
        ("EFI/Linux/evil.efi", "foreign-entry"),
        ("EFI/Linux/freehold-9-zz.efi", "foreign-entry"),
        (f"EFI/Linux/{OURS}.extra.d/x.addon.efi", "add-on"),
        (f"efi/linux/{OURS}.EXTRA.D/x.cred", "add-on"),
        ("EFI/Linux/notes.txt", "foreign-file"),
        ("loader/addons/x.addon.efi", "add-on"),
        ("loader/credentials/x.cred", "credential"),
        ("loader/entries/evil.conf", "entry"),
        ("loader/keys/other/db.auth", "keys"),
        ("loader/keys/auto/x.auth", "keys"),
        ("loader/devicetree.dtb", "foreign-file"),
        ("EFI/systemd/drivers/x.efi", "driver"),
        ("EFI/systemd/x", "foreign-file"),
        ("EFI/BOOT/grubx64.efi", "foreign-file"),
        ("EFI/Microsoft/Boot/bootmgfw.efi", "foreign-program"),
        ("shellx64.efi", "foreign-program"),
        ("startup.nsh", "foreign-program"),
    ],
)
def test_what_does_not_belong_on_the_boot_partition(path: str, check: str) -> None:
    assert checks(verify_esp.judge_files([*GOOD, path], [OURS])) == [(check, path)]


def test_what_does_no_harm_on_the_boot_partition() -> None:
    found = verify_esp.judge_files([*GOOD, "README.txt", "EFI/freehold/0.tmp"], [OURS])
    assert [(one.severity, one.check) for one in found] == [("note", "leftover"), ("note", "foreign-file")]


ODD = "characters that no setting has"


@pytest.mark.parametrize(
    ("conf", "said"),
    [
        (b"timeout 0\neditor no\nconsole-mode keep\n", []),
        (b"# note\n\ntimeout 5\neditor  no \nsecure-boot-enroll force\n", []),
        (b"timeout 0\neditor yes\n", ["editor yes"]),
        (b"editor no\neditor yes\n", ["editor yes"]),
        (b"timeout 0\n", ["the line is missing: the editor is on"]),
        (b"editor no\ndefault freehold-0.9*\n", ["default freehold-0.9*"]),
        (b"editor no\npreferred x\n", ["preferred x"]),
        (b"editor no\nsecure-boot-enroll evil\n", ["secure-boot-enroll evil"]),
        (b"editor no\n\xff\xfe\x1b[2J\n", [ODD]),
        (b"x" * 70_000, ["70000 bytes"]),
        # What ends a line for us has to end it for the boot loader: it would see a comment, or nothing behind a NUL.
        *((b"timeout 0\n#" + end + b"editor no\n", [ODD]) for end in (b"\f", b"\v", b"\x1c", b"\xc2\x85", b"\xe2\x80\xa8")),
        (b"timeout 0\n\0\neditor no\n", [ODD]),
        (b"timeout 0\r\n\teditor\tno\r\n", []),
        (None, ["missing: the loader's editor is on by default"]),
    ],
)
def test_loader_conf(conf: bytes | None, said: list[str]) -> None:
    assert [one.found for one in verify_esp.judge_loader_conf(conf)] == said


def test_loader_copies() -> None:
    assert verify_esp.judge_loaders([("a", "11"), ("b", "11")], "x", "x") == []
    assert verify_esp.judge_loaders([("a", "11"), ("b", "11")], "x", "") == []
    assert checks(verify_esp.judge_loaders([("a", "11"), ("b", "22")], "x", "x")) == [("loader-copies", "a, b")]
    assert checks(verify_esp.judge_loaders([("a", "11"), ("b", "")], "x", "x")) == [("loader-missing", "b")]
    (other,) = verify_esp.judge_loaders([("a", "11"), ("b", "11")], "x", "y")
    assert (other.severity, other.check) == ("note", "loader-version")


# --- mounts


def judged(text: str, *, locked: bool = True, config: bool = False) -> list[Finding]:
    mounts = verify_machine.parse_mountinfo(text)
    return [*verify_machine.judge_root(mounts), *verify_machine.judge_etc(mounts, locked=locked, config=config)]


def test_mounts_of_a_locked_machine() -> None:
    assert judged(MOUNTS) == []


def test_mounts_of_an_open_machine() -> None:
    disk = MOUNTS.replace("upperdir=/run/freehold/etc/upper", "upperdir=/disk/owner/etc/0/upper")
    assert [one.check for one in judged(disk, locked=False)] == ["etc-open"]
    assert checks(judged(disk, locked=False)) == []
    assert checks(judged(disk)) == [("etc-upper", "/etc")]


def test_mounts_of_an_open_machine_after_a_commit() -> None:
    """The intent names an image at once, or none any more; what is mounted below /etc is the boot's."""
    disk = MOUNTS.replace("upperdir=/run/freehold/etc/upper", "upperdir=/disk/owner/etc/0/upper")
    with_image = disk.replace("lowerdir=/newroot/usr/etc", "lowerdir=/config:/newroot/usr/etc")
    for mounted, config in ((disk, True), (with_image, False)):
        assert [one.check for one in judged(mounted, locked=False, config=config)] == ["etc-older", "etc-open"]
        assert checks(judged(mounted, locked=False, config=config)) == []
        assert ("etc-layers", "/etc") in checks(judged(mounted, config=config))
    assert [one.check for one in judged(with_image, locked=False, config=True)] == ["etc-open"]
    evil = disk.replace("lowerdir=/newroot/usr/etc", "lowerdir=/tmp/evil:/newroot/usr/etc")
    for config in (True, False):
        assert checks(judged(evil, locked=False, config=config)) == [("etc-layers", "/etc")]


def test_mounts_after_locking_a_running_machine() -> None:
    open_etc = MOUNTS.replace("upperdir=/run/freehold/etc/upper", "upperdir=/disk/owner/etc/0/upper")
    layers = "lowerdir=/run/freehold/config:/usr/etc,upperdir=/run/freehold/etc/upper,workdir=w"
    fresh = f"90 31 0:50 / /etc rw,nosuid,nodev - overlay etc rw,{layers}\n"
    assert judged(open_etc + fresh, config=True) == []
    # The same over an /etc that is in memory already is somebody else's.
    assert checks(judged(MOUNTS + fresh, config=True)) == [("mount-over", "/etc")]
    third = "95 90 0:51 / /etc rw - tmpfs evil rw\n"
    assert ("mount-over", "/etc") in checks(judged(open_etc + fresh + third, config=True))


ROOT = MOUNTS.splitlines()[0]


@pytest.mark.parametrize(
    ("change", "check", "subject"),
    [
        (("verity=require,", ""), "root", "/"),
        (("verity=require", "verity=on"), "root", "/"),
        (("metacopy=on", "metacopy=on,upperdir=/x"), "root", "/"),
        (("/ / ro,nodev", "/ / rw,nodev"), "root-writable", "/"),
        (("freehold ro,", "freehold rw,"), "root-writable", "/"),
        (("- overlay freehold", "- ext4 /dev/vda2"), "root", "/"),
        ((ROOT + "\n", ""), "root", "/"),
        (("/usr/etc,upper", "/tmp/etc,upper"), "etc-layers", "/etc"),
        (("/newroot/usr/etc,upper", "/var/evil/usr/etc,upper"), "etc-layers", "/etc"),
        (("/newroot/usr/etc", "/tmp/x:/newroot/usr/etc"), "etc-layers", "/etc"),
    ],
)
def test_a_root_or_etc_that_is_not_the_sealed_one(change: tuple[str, str], check: str, subject: str) -> None:
    assert change[0] in MOUNTS
    assert (check, subject) in checks(judged(MOUNTS.replace(*change)))


@pytest.mark.parametrize(
    "point",
    ["/usr", "/usr/bin", "/usr/lib/x\\040y", "/etc/ssh", "/sysroot/owner", "/sysroot/repo/objects", "/sysroot/images",
     "/proc/cmdline", "/proc/sys", "/sys/kernel/security/lockdown", "/efi/EFI/Linux"],
)  # fmt: skip
def test_a_mount_over_the_sealed_tree(point: str) -> None:
    evil = f"99 30 0:60 / {point} rw shared:5 master:2 - tmpfs evil\\040one rw\n"
    found = [one for one in judged(MOUNTS + evil) if one.severity == "deviation"]
    assert [(one.check, one.object) for one in found] == [("mount-over", point.replace("\\040", " "))]
    assert found[0].found == "tmpfs from evil one"


@pytest.mark.parametrize("point", ["/sysroot", "/proc", "/sys", "/efi"])
def test_a_second_mount_where_one_belongs(point: str) -> None:
    """Whoever asks there would be shown another disk, or another kernel's answers."""
    below = next(one.id for one in verify_machine.parse_mountinfo(MOUNTS) if one.point == point)
    evil = f"99 {below} 0:60 / {point} rw - tmpfs evil rw\n"
    assert checks(judged(evil + MOUNTS)) == [("mount-over", point)]


def test_what_systemd_mounts_in_places_of_the_kernel_is_fine() -> None:
    kinds = {
        "/proc/sys/fs/binfmt_misc": "autofs", "/sys/kernel/security": "securityfs", "/sys/fs/cgroup": "cgroup2",
        "/sys/firmware/efi/efivars": "efivarfs", "/sys/fs/bpf": "bpf", "/sys/kernel/tracing": "tracefs",
    }  # fmt: skip
    mine = "".join(f"{90 + at} 35 0:6{at} / {point} rw - {kinds[point]} x rw\n" for at, point in enumerate(kinds))
    partition = "98 38 254:1 / /efi rw,nosuid,nodev - vfat /dev/vda1 rw\n"
    assert judged(MOUNTS + mine + partition) == []


def test_a_mount_over_the_root() -> None:
    evil = "99 30 0:60 / / rw - tmpfs evil rw\n"
    # The order of the lines says nothing.
    for lines in (MOUNTS + evil, evil + MOUNTS):
        assert checks(judged(lines)) == [("mount-over", "/")]


def test_mounts_elsewhere_are_everybodys() -> None:
    assert judged(MOUNTS + "99 30 0:60 / /usrlocal rw - tmpfs x rw\n98 30 0:60 / /etcetera rw - tmpfs x rw\n") == []


@pytest.mark.parametrize("line", ["x", "1 2 3 4 5 6", "a b 0:1 / / ro - x y z", "1 2 0:1 / / ro - x"])
def test_lines_that_are_no_mounts(line: str) -> None:
    with pytest.raises(ValueError, match="mountinfo"):
        verify_machine.parse_mountinfo(line)


@given(st.text(max_size=300))
def test_any_mountinfo_is_read_or_refused(text: str) -> None:
    try:
        mounts = verify_machine.parse_mountinfo(text)
    except ValueError:
        return
    verify_machine.judge_root(mounts)
    verify_machine.judge_etc(mounts, locked=True, config=True)


def test_circles_of_mounts_end() -> None:
    circle = "5 6 0:1 / / ro - tmpfs a ro\n6 5 0:1 / / ro - tmpfs b ro\n"
    assert len(verify_machine.stack(verify_machine.parse_mountinfo(circle), "/")) == 2


# --- kernel


@pytest.mark.parametrize(
    ("value", "deviations", "notes"),
    [(0, 0, 0), (1 << 12, 1, 0), (1 << 13, 1, 0), (3 << 12, 2, 0), (1 << 9, 0, 1), (1 << 15 | 1 << 7, 1, 1), (1 << 40, 0, 1)],
)
def test_taint_in_words(value: int, deviations: int, notes: int) -> None:
    found = verify_machine.judge_taint(value)
    assert [sum(one.severity == kind for one in found) for kind in ("deviation", "note")] == [deviations, notes]
    assert all(one.found for one in found)


DEP = "kernel/fs/erofs/erofs.ko.xz: kernel/lib/x-y.ko.xz\nkernel/lib/x-y.ko.xz:\nkernel/net/plain.ko:\n"


def test_modules() -> None:
    sealed = verify_machine.sealed_modules(DEP)
    assert sealed == {"erofs", "x_y", "plain"}
    good = "erofs 100 1 - Live 0x0000000000000000\nx_y 5 0 [permanent], Live 0x0\n"
    assert verify_machine.judge_modules(good, sealed) == []
    evil = good + "rootkit 10 0 - Live 0x0 (OE)\nplain 1 0 - Live 0x0 (E)\n"
    assert checks(verify_machine.judge_modules(evil, sealed)) == [("module", "rootkit"), ("module", "plain")]


def test_sysctls_of_the_command_line() -> None:
    line = "ro sysctl.kernel.core_pattern=core sysctl.net/ipv4/x=1 sysctl.../etc/shadow=1 sysctl.a=1 sysctl.a=2"
    wanted = verify_machine.sealed_sysctls(line)
    assert wanted == {"kernel.core_pattern": "core", "net.ipv4.x": "1", "a": "2"}
    assert verify_machine.judge_sysctls(wanted, {"kernel.core_pattern": "core", "net.ipv4.x": " 1", "a": "2"}) == []
    found = verify_machine.judge_sysctls(wanted, {"kernel.core_pattern": "|/bin/evil", "net.ipv4.x": "1", "a": None})
    assert checks(found) == [("sysctl", "kernel.core_pattern"), ("sysctl", "a")]


def test_the_command_line_must_be_the_sealed_one() -> None:
    assert verify_machine.judge_command_line("a  b\n", "a b") == []
    assert verify_machine.judge_command_line("a b", None) == []
    (found,) = verify_machine.judge_command_line("a b init=/bin/sh", "a b c")
    assert found.found == "added: init=/bin/sh; missing: c"
    assert verify_machine.judge_command_line("b a", "a b")[0].found == "another order"


@pytest.mark.parametrize(
    ("text", "locked", "count"),
    [("none [integrity] confidentiality", True, 0), ("none integrity [confidentiality]", True, 0),
     ("[none] integrity confidentiality", True, 1), ("", True, 1), ("[none] integrity confidentiality", False, 0)],
)  # fmt: skip
def test_lockdown(text: str, locked: bool, count: int) -> None:
    assert len(verify_machine.judge_lockdown(text, locked=locked)) == count


@pytest.mark.parametrize(
    ("guard", "state", "said"),
    [
        ({"loaded": True, "mode": "locked"}, "locked", []),
        ({"loaded": True, "mode": "open"}, "open", []),
        ({"loaded": True, "mode": "open"}, "locked", [("deviation", "guard-mode")]),
        ({"loaded": True, "mode": "audit"}, "locked", [("deviation", "guard-mode")]),
        ({"loaded": True, "mode": "locked"}, "open", [("deviation", "guard-mode")]),
        ({"loaded": False, "mode": "locked"}, "locked", [("deviation", "guard-mode")]),
        ({"loaded": "yes"}, "audit", [("deviation", "guard-mode")]),
        ({"loaded": False}, "open", []),
        ({"loaded": False, "mode": "audit"}, "open", []),
    ],
)
def test_the_guard_does_what_the_intent_says(guard: dict[str, object], state: str, said: list[tuple[str, str]]) -> None:
    assert [(one.severity, one.check) for one in verify_machine.judge_guard(guard, state, "serial 3")] == said


# --- keys


KEYS = """\
00f3e1a2 I------     2 perm 1f0b0000     0     0 keyring   .builtin_trusted_keys: 3
1aa4d2b1 I------     1 perm 0f0b0000  1000     0 keyring   .fs-verity: 9
2c6c1b9a IR-----     1 perm 0f0b0000     0     0 keyring   .fs-verity: 9
2f3a7b01 I------     1 perm 0f0b0000     0     0 keyring   .fs-verity: 1
30b1a001 I------     1 perm 1f030000     0     0 asymmetri me: 00ff: X509.rsa 0000aaff []
nonsense
"""


def test_the_kernels_ring_is_found() -> None:
    assert verify_keys.find_ring(KEYS) == 0x2F3A7B01
    assert verify_keys.find_ring(KEYS.replace("2f3a7b01 I", "2f3a7b01 ID")) is None
    assert verify_keys.ring_keys(KEYS, [0x30B1A001, 7]) == ("me: 00ff: X509.rsa 0000aaff []", "key 00000007")


def ring(*names: str, sealed: bool | None = True) -> verify_keys.Ring:
    return verify_keys.Ring(True, sealed, tuple(f"x: {name}: X509.rsa 00aa []" for name in names))


def test_the_ring() -> None:
    wanted = {"00ff": "owner-me.der", "11aa": "release-vendor.der"}
    assert verify_keys.judge_ring(ring("00ff", "11aa"), wanted, "image") == []
    assert checks(verify_keys.judge_ring(ring("00ff", "11aa", sealed=False), wanted, "image")) == [("ring-open", ".fs-verity")]
    (unsure,) = verify_keys.judge_ring(ring("00ff", "11aa", sealed=None), wanted, "image")
    assert unsure.severity == "note"
    (foreign,) = verify_keys.judge_ring(ring("00ff", "11aa", "2200"), wanted, "image")
    assert (foreign.check, foreign.object) == ("ring-key", "x: 2200: X509.rsa 00aa []")
    assert checks(verify_keys.judge_ring(ring("00ff"), wanted, "image")) == [("ring-missing", ".fs-verity")]
    assert checks(verify_keys.judge_ring(ring("00ff"), wanted, "firmware")) == []
    assert checks(verify_keys.judge_ring(verify_keys.Ring(False, None, ()), wanted, "image")) == [("ring", ".fs-verity")]


def test_a_subject_cannot_play_another_key() -> None:
    liar = verify_keys.Ring(True, True, ("a: 00ff: X509.rsa 1 []: 2200: X509.rsa 00bb []",))
    assert ("ring-key", liar.keys[0]) in checks(verify_keys.judge_ring(liar, {"00ff": "owner-me.der"}, "image"))


def test_certificates_of_keychain_and_firmware() -> None:
    me, lost, vendor = (key("owner", "me").certificate, key("owner", "lost").certificate, key("release", "vendor").certificate)
    revoked = (Revocation(hashlib.sha256(lost).hexdigest(), "lost"),)
    keychain = Keychain((Certificate("owner", "me", me), Certificate("owner", "lost", lost)), revoked)
    assert verify_keys.keychain_certificates(keychain) == {verify_keys.name_of(me): "owner-me.der"}
    db = b"".join(
        [
            *(efi.certificate_list(der) for der in (me, lost)),
            efi.certificate_list(vendor, verify_keys.MICROSOFT),
            efi.signature_list(efi.CERT_SHA256, [(efi.OWNER, bytes(32))]),
        ]
    )
    firmware = verify_keys.Firmware(db=db, mok=efi.certificate_list(key("release", "mok").certificate))
    names = {verify_keys.name_of(me), verify_keys.name_of(key("release", "mok").certificate)}
    assert set(verify_keys.firmware_certificates(firmware, [revoked[0].fingerprint])) == names
    by_part = efi.signature_list(efi.CERT_X509_SHA256, [(efi.OWNER, efi.signed_part_sha256(me) + bytes(16))])
    assert verify_keys.name_of(me) not in verify_keys.firmware_certificates(firmware._replace(dbx=by_part), [])
    whole = efi.certificate_list(me)
    assert verify_keys.name_of(me) not in verify_keys.firmware_certificates(firmware._replace(mokx=whole), [])
    with pytest.raises(ValueError, match="sizes"):
        verify_keys.firmware_certificates(verify_keys.Firmware(db=db[:-1]), [])


# --- report


def result(*findings: Finding) -> Result:
    return Result(findings, (Checked("0" * 16, "1.0", True, "good", "vendor", 3, 5 << 20),), 5, 6 << 30, 12.5, False, 2)


def test_the_last_line() -> None:
    assert verdict(result()) == "5 files, 1 deployment, 6.00 GiB verified in 12.5 s; no deviation"
    bad = result(deviation("module", "machine", "x", "a", "b", "do it"), note("leftover", "0" * 16, "y", "", "c"))
    assert text(bad).splitlines() == [
        f"Deployment 1.0  {'0' * 16}  booted, good, signed by vendor: 3 files, 5 MiB",
        "  - leftover: y: c",
        "This machine",
        "  ! module: x: b (expected: a)",
        "      do it",
        "5 files, 1 deployment, 6.00 GiB verified in 12.5 s; 1 deviation",
    ]
    assert data(bad)["verdict"] == "deviation" and data(result())["verdict"] == "ok"
    assert data(bad)["schema"] == "freehold-verify-1"


def test_people_are_not_flooded() -> None:
    many = result(*(deviation("object-missing", "0" * 16, f"/usr/{number}", "a", "b", "hint") for number in range(500)))
    lines = text(many).splitlines()
    assert len(lines) < 20
    assert "  … 488 more of object-missing; --json lists them" in lines
    assert lines[-1].endswith("500 deviations")


@given(st.text())
def test_nothing_steers_the_terminal(said: str) -> None:
    assert clean(said).isprintable()
    assert len(clean(said)) <= 300 * 10
