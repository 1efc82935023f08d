# SPDX-License-Identifier: Apache-2.0
"""``freehold vm`` against a real guest: a small Debian with the guest agent, built once into the cache.

``FREEHOLD_TEST_GUEST`` names another disk whose guest has the agent and a user ``alice``.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import shutil
import string
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from freehold import run
from freehold.build.tools import Tools, ensure
from freehold.monitor import NullMonitor
from freehold.vm import BootError, Machine, accel, attach, start

pytestmark = pytest.mark.vm

PACKAGES = (
    "linux-image-cloud-amd64", "systemd-sysv", "udev", "dbus", "libpam-systemd", "qemu-guest-agent",
    "initramfs-tools", "systemd-boot-efi", "kmod",
)  # fmt: skip
#: Runs in the new root, $1. A list of modules keeps the initrd small, and minutes out of a test run.
BEFORE = 'mkdir -p "$1/etc/initramfs-tools/conf.d"; echo MODULES=list >"$1/etc/initramfs-tools/conf.d/modules"'
AFTER = (
    'echo virtio_blk >>"$1/etc/initramfs-tools/modules"; chroot "$1" update-initramfs -u; '
    'chroot "$1" useradd -m -s /bin/bash alice; echo guest >"$1/etc/hostname"; '
    'mkdir -p "$1/boot/efi"; '
    'cp "$1"/boot/vmlinuz-* "$1/boot/efi/linux.efi"; cp "$1"/boot/initrd.img-* "$1/boot/efi/initrd"'
)
KERNEL_OPTIONS = "root=/dev/vda2 rw console=ttyS0 quiet systemd.show_status=0 net.ifnames=0 panic=5"
ENTRY = f"title guest\nlinux /linux.efi\ninitrd /initrd\noptions {KERNEL_OPTIONS}\n"
MIB = 1 << 20
ESP_MIB, ROOT_MIB = 96, 1024
#: Kinds of partition in an MBR, which is enough here and takes no program to write.
ESP_TYPE, LINUX_TYPE = 0xEF, 0x83


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "freehold"


def guest_disk() -> Path:
    """The guest's disk, raw; built when this recipe of it is not in the cache yet."""
    if given := os.environ.get("FREEHOLD_TEST_GUEST"):
        return Path(given)
    recipe = repr((PACKAGES, BEFORE, AFTER, ENTRY, ESP_MIB, ROOT_MIB))
    disk = cache() / f"test-guest-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.raw"
    if not disk.exists():
        work = disk.with_suffix(".work")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            build_guest(work).rename(disk)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return disk


def build_guest(work: Path) -> Path:
    """A disk with two partitions: systemd-boot and a kernel on an ESP, a root file system beside it."""
    tree, esp, root, disk = work / "tree", work / "esp", work / "root", work / "disk"
    run.run(
        ["mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}",
         *(f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "man", "locale")),
         f"--essential-hook={BEFORE}", f"--customize-hook={AFTER}", "trixie", tree],
        timeout=900,
    )  # fmt: skip
    (work / "entry").write_text(ENTRY)
    (work / "loader.conf").write_text("timeout 0\n")
    esp.touch()
    os.truncate(esp, ESP_MIB * MIB)
    tree_tools = tools()
    tree_tools.run(["mkfs.vfat", "-n", "ESP", esp], binds=[work])
    tree_tools.run(["mmd", "-i", esp, "::EFI", "::EFI/BOOT", "::loader", "::loader/entries"], binds=[work])
    for source, target in (
        (tree / "usr/lib/systemd/boot/efi/systemd-bootx64.efi", "EFI/BOOT/BOOTX64.EFI"),
        (tree / "boot/efi/linux.efi", "linux.efi"),
        (tree / "boot/efi/initrd", "initrd"),
        (work / "entry", "loader/entries/guest.conf"),
        (work / "loader.conf", "loader/loader.conf"),
    ):
        tree_tools.run(["mcopy", "-i", esp, source, f"::{target}"], binds=[work])
    root.touch()
    os.truncate(root, ROOT_MIB * MIB)
    tree_tools.run(["mkfs.ext4", "-q", "-F", "-d", tree, root], binds=[work])
    disk.touch()
    os.truncate(disk, (ESP_MIB + ROOT_MIB + 4) * MIB)
    entries = ((1, ESP_MIB, ESP_TYPE), (ESP_MIB + 1, ROOT_MIB, LINUX_TYPE))
    table = b"".join(struct.pack("<4xB3xII", kind, at * MIB // 512, size * MIB // 512) for at, size, kind in entries)
    with disk.open("r+b") as image:
        image.write(table.rjust(446 + len(table), b"\0").ljust(510, b"\0") + b"\x55\xaa")
    for part, offset in ((esp, 1), (root, ESP_MIB + 1)):
        run.run(["dd", f"if={part}", f"of={disk}", "bs=1M", f"seek={offset}", "conv=notrunc,sparse", "status=none"])
    return disk


def vm(*argv: str | Path, stdin: bytes | None = None) -> run.Completed:
    """``freehold vm ARGV``, in a process of its own."""
    environment = {"XDG_STATE_HOME": os.environ["XDG_STATE_HOME"], "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "freehold", "vm", *argv]
    return run.run(command, stdin=stdin, env=environment, check=False, timeout=600)


def answer(verb: str, *argv: str | Path) -> dict[str, object]:
    """What a verb that works reports under ``--json``."""
    done = vm(verb, "--json", *argv)
    assert done.status == 0, done.stderr.decode()
    data = json.loads(done.stdout)
    assert isinstance(data, dict)
    return data


@pytest.fixture(scope="module", autouse=True)
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A registry of this module's own, so that nobody's machines are touched."""
    place = tmp_path_factory.mktemp("vm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(place))
        yield place


@pytest.fixture(scope="module")
def guest(registry: Path) -> Iterator[str]:
    """The name of a running guest with a TPM and an Ignition configuration."""
    ignition = registry / "config, with a comma.ign"
    ignition.write_text('{"ignition":{"version":"3.3.0"}}')
    done = vm("start", guest_disk(), "--name", "one", "--tpm", "--snapshot", "--memory", "1G", "--ignition", ignition)
    assert done.status == 0, done.stderr.decode()
    yield "one"
    vm("stop", "one", "--hard")


def test_list_shows_it_and_the_name_is_taken(guest: str) -> None:
    rows = answer("list")["machines"]
    assert isinstance(rows, list)
    assert [(row["name"], row["state"], row["disk"]) for row in rows] == [(guest, "running", str(guest_disk()))]
    again = vm("start", guest_disk(), "--name", guest)
    assert again.status == 1
    assert b"running already" in again.stderr


def test_exec_passes_everything(guest: str) -> None:
    script = 'cat; printf "%s|" "$@"; id -un >&2; exit 7'
    arguments = ["two words", "$HOME", "'quoted'", "", "--", "--user", "ünï"]
    for user in ("root", "alice"):
        done = vm("exec", guest, "--user", user, "--", "sh", "-c", script, "sh", *arguments, stdin=b"\x00\xff in\n")
        assert done.stdout == b"\x00\xff in\n" + "".join(f"{one}|" for one in arguments).encode()
        assert (done.stderr, done.status) == (f"{user}\n".encode(), 7)


def test_exec_status_of_signals_and_missing_programs(guest: str) -> None:
    for user in ("root", "alice"):
        assert vm("exec", guest, "--user", user, "--", "sh", "-c", "kill -TERM $$").status == 128 + 15
        assert vm("exec", guest, "--user", user, "--", "no-such-program").status == 127
    assert vm("exec", guest, "--user", "nobody-here", "--", "true").status != 0


def test_exec_large_input(guest: str) -> None:
    data = os.urandom(3 << 20)
    done = vm("exec", guest, "--user", "alice", "--", "sha256sum", stdin=data)
    assert done.text.split()[0] == hashlib.sha256(data).hexdigest()
    left = vm("exec", guest, "--", "ls", "-a", "/var/tmp")
    assert left.status == 0
    assert b"freehold-stdin" not in left.stdout


def test_user_has_a_login_session(guest: str) -> None:
    """What rootless podman needs: a runtime directory, a session scope, the user's own service manager."""
    script = 'd=$XDG_RUNTIME_DIR; echo "$d"; cat /proc/self/cgroup; systemctl --user is-system-running; stat -c %U "$d"'
    lines = vm("exec", guest, "--user", "alice", "--", "sh", "-c", script).text.split("\n")
    assert lines[0].startswith("/run/user/")
    assert "/user.slice/" in lines[1]
    assert lines[2:4] == ["running", "alice"]


@pytest.mark.parametrize("user", ["root", "alice"])
def test_exec_timeout_ends_the_command(guest: str, user: str) -> None:
    done = vm("exec", guest, "--user", user, "--timeout", "2", "--", "sleep", "4321")
    assert done.status == 1
    assert b"did not finish within 2 s" in done.stderr
    script = 'for one in /proc/[0-9]*/cmdline; do tr "\\0" " " <"$one"; echo; done'
    # A login session takes its time to end, on a busy host more of it; far less than the command would have.
    deadline = time.monotonic() + 30
    while True:
        left = vm("exec", guest, "--", "sh", "-c", script)
        assert b"qemu-ga" in left.stdout
        if b"sleep 4321" not in left.stdout:
            break
        assert time.monotonic() < deadline
        time.sleep(1)


def test_parallel_commands(guest: str) -> None:
    """A long command does not keep the agent's channel to itself."""
    import concurrent.futures

    with concurrent.futures.ThreadPoolExecutor() as pool:
        slow = pool.submit(vm, "exec", guest, "--", "sh", "-c", "sleep 4; echo slow")
        time.sleep(1)
        assert vm("exec", guest, "--", "echo", "quick").stdout == b"quick\n"
        assert not slow.done()
        assert slow.result().stdout == b"slow\n"


def test_copy_there_and_back(guest: str, tmp_path: Path) -> None:
    source = tmp_path / "a file"
    source.write_bytes(os.urandom(1_300_000))
    source.chmod(0o741)
    assert answer("copy", guest, source, "/root")["target"] == "/root/a file"
    assert vm("exec", guest, "--", "stat", "-c", "%a %s", "/root/a file").text.split() == ["741", "1300000"]
    back = tmp_path / "back"
    answer("copy", guest, ":/root/a file", back)
    assert back.read_bytes() == source.read_bytes()
    assert back.stat().st_mode & 0o7777 == 0o741
    assert vm("copy", guest, tmp_path / "none", "/root").status == 2
    assert vm("copy", guest, ":/root/none", back).status == 2
    assert sorted(tmp_path.iterdir()) == [source, back]
    assert vm("exec", guest, "--", "sh", "-c", "ls -A /root | grep freehold").status == 1


def test_devices(guest: str) -> None:
    """The TPM answers, and Ignition would find its configuration."""
    item = "/sys/firmware/qemu_fw_cfg/by_name/opt/com.coreos/config/raw"
    script = f"modprobe -a tpm_tis qemu_fw_cfg; test -c /dev/tpm0 && cat {item}"
    assert json.loads(vm("exec", guest, "--", "sh", "-c", script).stdout) == {"ignition": {"version": "3.3.0"}}


def test_typing_reaches_the_console(guest: str, tmp_path: Path) -> None:
    """Every character of the keyboard arrives as itself, and shows on the screen."""
    text = string.ascii_letters + string.digits + string.punctuation + " ."
    reader = 'IFS= read -r line; printf %s "$line" >/run/typed.new; mv /run/typed.new /run/typed'
    properties = ["StandardInput=tty-force", "StandardOutput=tty", "TTYPath=/dev/tty1"]
    vm("exec", guest, "--", "systemctl", "stop", "getty@tty1.service")
    before = tmp_path / "before.png"
    answer("screenshot", guest, before)
    wrapped = [f"--property={one}" for one in properties]
    assert vm("exec", guest, "--", "systemd-run", *wrapped, "/bin/sh", "-c", reader).status == 0
    time.sleep(2)
    answer("type", guest, text, "--enter")
    time.sleep(2)
    assert vm("exec", guest, "--", "cat", "/run/typed").text == text
    after = tmp_path / "after.png"
    answer("screenshot", guest, after)
    assert before.read_bytes()[:8] == after.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert before.read_bytes() != after.read_bytes()


def test_control_alt_delete_reboots(guest: str) -> None:
    machine = attach(guest)
    before = machine.guest.boot_id()
    answer("key", guest, "ctrl-alt-delete")
    assert machine.wait_answer(other_than=before) != before


def test_hard_reboot_is_a_power_cut(guest: str) -> None:
    """What was flushed is there, what was not is not."""
    machine = attach(guest)
    before = machine.guest.boot_id()
    machine.exec(["sh", "-c", "echo kept >/root/kept; sync; echo lost >/root/lost"])
    answer("reboot", guest, "--hard")
    assert machine.guest.boot_id() != before
    assert machine.read_file("/root/kept") == b"kept\n"
    assert machine.exec(["test", "-e", "/root/lost"], check=False).status == 1


def test_orderly_stop_and_what_it_leaves(guest: str, registry: Path) -> None:
    machine = attach(guest)
    assert answer("stop", guest)["state"] == "stopped"
    assert not machine.alive
    assert answer("list")["machines"] == []
    assert vm("exec", guest, "--", "true").status == 1
    home = registry / "freehold/vm" / guest
    assert sorted(entry.name for entry in home.iterdir()) == ["keep", "qemu.log", "serial.log"]


def names() -> list[str]:
    rows = answer("list")["machines"]
    assert isinstance(rows, list)
    return [row["name"] for row in rows]


def test_a_boot_that_fails_shows_the_console(tmp_path: Path) -> None:
    """An empty disk: status 1, the end of the console, and nothing left running. Then a death nobody announced."""
    disk = tmp_path / "empty.raw"
    disk.touch()
    os.truncate(disk, MIB)
    done = vm("start", disk, "--name", "empty", "--timeout", "8", "--memory", "512M")
    assert done.status == 1
    assert b"did not answer within 8 s" in done.stderr
    assert b"| BdsDxe" in done.stderr
    assert "empty" not in names()
    machine = start(Machine("empty", disk, memory_mib=512), NullMonitor(), wait=False)
    os.kill(machine.record.pid, 9)
    assert machine.wait_gone(10)
    assert "empty" not in names()


def test_broken_kvm_is_noticed(tmp_path: Path) -> None:
    """A host may offer /dev/kvm on which nothing lives: the probe says so, and so does a start that insists."""
    if not os.access(accel.KVM, os.R_OK | os.W_OK) or accel.usable(tools()):
        pytest.skip("KVM works here, or is not there")
    disk = tmp_path / "empty.raw"
    disk.touch()
    os.truncate(disk, MIB)
    with pytest.raises(BootError) as caught:
        start(Machine("insists", disk, accelerator="kvm", memory_mib=512, timeout=20), NullMonitor())
    assert caught.value.status in ("internal-error", "failed")
    # The memory is wrong: the start itself finds out, and goes on without KVM.
    accel.remember(works=True)
    with pytest.raises(BootError) as caught:
        start(Machine("falls-back", disk, memory_mib=512, timeout=8), NullMonitor())
    assert caught.value.status == "silent"
    assert any("BdsDxe" in line for line in caught.value.console)
    assert not accel.usable(tools())


def tools() -> Tools:
    """The tools tree; ``FREEHOLD_TEST_TOOLS`` names another one."""
    if given := os.environ.get("FREEHOLD_TEST_TOOLS"):
        return Tools(Path(given), "given")
    return ensure(cache(), NullMonitor())


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A new key and its self-signed certificate, PEM."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(30))
    files = folder / f"{name}.key", folder / f"{name}.pem"
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    files[0].write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    files[1].write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(pem))
    return files


def test_secure_boot(tmp_path: Path) -> None:
    """A disk signed by an enrolled key boots with Secure Boot on; the same disk under another key does not."""
    tree = tools()
    key, owner = certificate(tmp_path, "owner-one")
    _, stranger = certificate(tmp_path, "stranger")
    disk = tmp_path / "signed.raw"
    run.run(["cp", "--sparse=always", guest_disk(), disk])
    for name in ("EFI/BOOT/BOOTX64.EFI", "linux.efi"):
        plain, signed = tmp_path / "plain.efi", tmp_path / "signed.efi"
        tree.run(["mcopy", "-o", "-i", f"{disk}@@1M", f"::{name}", plain], binds=[tmp_path])
        tree.run(["sbsign", "--key", key, "--cert", owner, "--output", signed, plain], binds=[tmp_path])
        tree.run(["mcopy", "-o", "-i", f"{disk}@@1M", signed, f"::{name}"], binds=[tmp_path])
    machine = Machine("secure", disk, secure_boot=True, snapshot=True, keys=(owner,), memory_mib=1024)
    running = start(machine, NullMonitor())
    try:
        variable = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
        assert running.read_file(variable)[-1] == 1
    finally:
        running.stop(hard=True)
    refused = Machine("refused", disk, secure_boot=True, snapshot=True, keys=(stranger,), memory_mib=1024)
    running = start(refused, NullMonitor(), wait=False)
    try:
        deadline = time.monotonic() + 120
        while b"Access Denied" not in running.serial() and b"Security Violation" not in running.serial():
            assert time.monotonic() < deadline, running.serial_tail()
            time.sleep(0.5)
        assert not running.has_agent()
    finally:
        running.stop(hard=True)
