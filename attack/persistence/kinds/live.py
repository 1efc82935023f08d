# SPDX-License-Identifier: Apache-2.0
"""What root does at once: unsigned code in every way there is, the kernel's doors, and the ways out of the guard.

Each act works on the open machine, or gets past the guard there and fails for another reason (``past``), or is closed in every
state. Where calls of the kernel are needed Python makes them, which is signed, and needs no unsigned code for it.
"""

from __future__ import annotations

from attack.persistence.model import DENIED, Live
from attack.persistence.payload import BENCH

#: Python that makes system calls: ``call(number, ...)`` ends the program with the kernel's own words where one fails.
CALLS = """import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(*args):
    got = libc.syscall(*[ctypes.c_long(a) if isinstance(a, int) else a for a in args])
    if got < 0:
        error = ctypes.get_errno()
        print(os.strerror(error))
        sys.exit(1)
    return got
"""
BPF_PROGRAM = """import struct
code = ctypes.create_string_buffer(bytes([0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0]))
name = ctypes.create_string_buffer(b"GPL")
places = ctypes.addressof(code), ctypes.addressof(name)
attributes = ctypes.create_string_buffer(struct.pack("IIQQ", {kind}, 2, *places) + bytes(104))
call(321, 5, attributes, 128)
"""
#: Every map by its number; a descriptor of each.
BPF_MAPS = """import struct
number, refused, had = 0, 0, 0
while True:
    a = ctypes.create_string_buffer(struct.pack("II", number, 0) + bytes(120))
    if libc.syscall(321, 12, a, 128) < 0:
        break
    number = struct.unpack_from("II", a)[1]
    b = ctypes.create_string_buffer(struct.pack("I", number) + bytes(124))
    if libc.syscall(321, 14, b, 128) < 0:
        refused += 1
        print(os.strerror(ctypes.get_errno()))
    else:
        had += 1
print(had, refused)
sys.exit(1 if refused else 0)
"""
CHILD = "pid = os.fork()\nif not pid:\n    import time; time.sleep(60); os._exit(0)\nimport time; time.sleep(0.3)\n"
END = "\nos.kill(pid, 9)\n"
KERNEL = "$(ls /usr/lib/modules/*/vmlinuz | head -n 1)"
GUARD = "/usr/lib/freehold/guardctl load >/dev/null 2>&1 || true\n"
#: Its canary belongs to no row: on the locked machine it must not be there.
NATIVE = f"{BENCH}/native b99-live"
TRIED = "/run/tried"
#: A module of Debian's without its signature.
STRIP = (
    'import lzma, sys; d = lzma.open(sys.argv[1]).read(); sys.stdout.buffer.write(d[: -(40 + int.from_bytes(d[-32:-28], "big"))])'
)
#: Between the partition table and the first partition, where nothing lies.
HOLE = "of=/dev/vda bs=512 count=1 seek=34 conv=notrunc"


TYPED = (
    "import fcntl, os, pty, sys, termios\nif os.fork():\n    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))\n"
    "os.setsid()\na, b = pty.openpty()\n"
    "fcntl.ioctl(b, termios.TIOCSCTTY, 0)\n"
    "try:\n    fcntl.ioctl(b, termios.TIOCSTI, b'x')\nexcept OSError as error:\n    print(error)\n    sys.exit(1)\n"
)


def python(code: str) -> str:
    """Shell text that has Python run ``code`` after :data:`CALLS`."""
    return f"python3 -IS - <<'ACT'\n{CALLS}{code}\nACT\n"


def helper(path: str, value: str) -> str:
    """Shell text that writes a path by which the kernel starts a program, and puts the old one back."""
    return f"old=$(cat {path})\necho {value} >{path}\nnew=$(cat {path})\necho \"$old\" >{path}\ntest \"$new\" = {value}\n"


CODE = (
    Live("a01-module", "K", "an unsigned kernel module",
         f"python3 -c '{STRIP}' $(find /usr/lib/modules -name 'dummy.ko*' | head -n 1) >/run/a01.ko\ninsmod /run/a01.ko\n"
         f"rmmod dummy\n",
         control="closed", reason=rf"{DENIED}|[Kk]ey was rejected|[Rr]equired key|ermission denied"),
    Live("a88-memfd", "K", "a program that is nowhere but in memory",
         f"python3 -c \"import os; f = os.memfd_create('x'); os.write(f, open('{BENCH}/native', 'rb').read()); os.execve(f, "
         f"['a88'], {{}})\""),
    Live("a89-loader", "K", "a program started by the dynamic loader", f"/lib64/ld-linux-x86-64.so.2 {BENCH}/dynamic\n"),
    Live("a90-anonymous", "X", "memory that is writable and executable", 'python3 -c "import mmap; mmap.mmap(-1, 4096, prot=7)"'),
    Live("a75-library", "K", "a library named in the environment",
         f"out=$(LD_PRELOAD={BENCH}/library.so /usr/bin/true 2>&1)\necho \"$out\"\ntest -z \"$out\""),
    Live("a93-script", "K", "an unsigned script, run directly",
         f"printf '#!/bin/sh\\necho ran\\n' >{TRIED}-script\nchmod 755 {TRIED}-script\n{TRIED}-script"),
    Live("a94-script-argument", "S", "a script given to a signed shell",
         f"printf 'echo ran\\n' >{TRIED}-text\n/bin/sh {TRIED}-text"),
    Live("a95-inline", "S", "a line of text for signed interpreters: runs while locked, and lasts as long as the boot",
         "sh -c true && python3 -c pass && perl -e 1",
         allowed=True),
    Live("a96-by-awk", "S", "an unsigned program by way of awk", f"awk 'BEGIN {{ exit system(\"{NATIVE}\") }}'"),
    Live("a96-by-find", "S", "an unsigned program by way of find",
         f"find /etc/passwd -exec {NATIVE} \\; 2>&1 | tee /dev/stderr | grep -qx ran"),
    Live("a96-by-tar", "S", "an unsigned program by way of tar",
         f"tar cf /dev/null --checkpoint=1 '--checkpoint-action=exec={NATIVE}' /etc/passwd 2>&1 | tee /dev/stderr | grep "
         f"-qx ran"),
    Live("a97-dropped", "K", "an unsigned program in /tmp and /dev/shm",
         f"for d in /tmp /dev/shm; do cp {BENCH}/native $d/a97; $d/a97 || exit 126; done"),
    Live("a99-container", "X", "a container of root's with an unsigned program",
         f"mkdir -p {BENCH}/rootfs\ncp {BENCH}/native {BENCH}/rootfs/native\n"
         f"podman run --rm --privileged --network none --rootfs {BENCH}/rootfs /native 2>&1"),
    Live("a24-by-systemd", "S", "an unsigned program by way of a transient unit", f"systemd-run --wait --pipe {NATIVE} 2>&1",
         reason=rf"{DENIED}|203"),
    Live("b50-chroot", "K", "an unsigned program after chroot", f"chroot / {NATIVE}"),
    Live("b51-namespace", "K", "an unsigned program in namespaces of root's own", f"unshare -m -p -f {NATIVE}"),
    Live("b52-user-namespace", "K", "an unsigned program of root's in a user namespace", f"unshare -U -r {NATIVE}"),
    Live("b53-file-capability", "X", "an unsigned program by a file capability",
         f"cp {BENCH}/native {BENCH}/b53\nsetcap cap_sys_admin+ep {BENCH}/b53\nmount -o remount,bind,suid /var\n"
         f"s=0; runuser -u alice -- {BENCH}/b53 || s=$?\nmount -o remount,bind,nosuid /var\nexit $s"),
    Live("b54-package", "K", "the script of a package, with a package database of one's own",
         "t=/run/b54; rm -rf $t /run/b54-db; mkdir -p $t/DEBIAN /run/b54-db/info /run/b54-db/updates; : >/run/b54-db/status\n"
         "printf 'Package: b54\\nVersion: 1\\nArchitecture: all\\nMaintainer: n <n@example.org>\\nDescription: x\\n' "
         ">$t/DEBIAN/control\n"
         "printf '#!/bin/sh\\nexit 0\\n' >$t/DEBIAN/postinst; chmod 755 $t/DEBIAN/postinst\n"
         "dpkg-deb --build --root-owner-group $t /run/b54.deb >/dev/null\n"
         "dpkg --admindir=/run/b54-db --log=/dev/null -i /run/b54.deb"),
)  # fmt: skip

KERNEL_DOORS = (
    Live("a04-core-helper", "X", "a helper of the kernel's: core dumps", helper("/proc/sys/kernel/core_pattern", "core")),
    Live("a04-module-helper", "X", "a helper of the kernel's: modules", helper("/proc/sys/kernel/modprobe", "/bin/true")),
    Live("a04-power-helper", "X", "a helper of the kernel's: switching off",
         helper("/proc/sys/kernel/poweroff_cmd", "/bin/true")),
    Live("a06-release-agent", "X", "a helper of the kernel's: empty groups of processes",
         f"mkdir -p {TRIED}-cg\nmount -t cgroup -o none,name=a06 none {TRIED}-cg\ns=0\n"
         f"echo /bin/true >{TRIED}-cg/release_agent || s=1\n"
         f"umount {TRIED}-cg\nexit $s"),
    Live("a07-kexec", "K", "another kernel", "cp " + KERNEL + " /run/a07\n" + python(
        "f = os.open('/run/a07', os.O_RDONLY)\nline = ctypes.create_string_buffer(b'x')\ncall(320, f, -1, 2, line, 4)\n"
        "call(320, -1, -1, 0, 0, 1)"),
         past="Required key not available"),
    Live("a08-memory", "K", "the kernel's memory", "head -c 1 /dev/mem >/dev/null && head -c 1 /dev/port >/dev/null",
         control="closed",
         reason=rf"{DENIED}|No such (file|device)"),
    Live("a08-ports", "K", "ports of the machine", python("call(173, 0x80, 1, 1)"), control="closed"),
    Live("a09-hibernate", "K", "hibernation", "echo disk | tee /sys/power/state", control="closed",
         reason=rf"{DENIED}|No such|Invalid argument|I/O error|Device or resource busy|write error"),
    Live("a17-disk", "X", "the raw disk, written to", f"dd if=/dev/zero {HOLE}"),
    Live("a17-read", "X", "the raw disk, read", "dd if=/dev/vda of=/dev/null bs=512 count=1"),
    Live("a17-mounted", "X", "the mounted partition, written to",
         "dd if=/dev/zero of=$(findmnt -no SOURCE /sysroot) bs=1 count=0 conv=notrunc",
         control="closed", reason=rf"{DENIED}|busy"),
    Live("a22-kprobe", "X", "a BPF program of one's own: probe", python(BPF_PROGRAM.format(kind=2))),
    Live("a22-tracepoint", "X", "a BPF program of one's own: trace point", python(BPF_PROGRAM.format(kind=5))),
    Live("b55-tracing", "X", "a place in the kernel, traced",
         "echo 'p:b55 do_exit' >/sys/kernel/tracing/kprobe_events && echo >/sys/kernel/tracing/kprobe_events"),
    Live("a91-memory-file", "X", "a privileged process' memory as a file", "python3 -c \"open('/proc/1/mem', 'r+b')\""),
    Live("a92-ptrace", "X", "a privileged process, traced",
         python(f"{CHILD}got = libc.ptrace(16, pid, 0, 0)\nerror = ctypes.get_errno(){END}if got:\n"
                f"    print(os.strerror(error))\n    sys.exit(1)")),
    Live("a92-write", "X", "memory of a privileged process, written to by another",
         python(f"{CHILD}b = ctypes.create_string_buffer(16)\nv = (ctypes.c_uint64 * 2)(ctypes.addressof(b), 8)\n"
                f"got = libc.syscall(311, pid, v, 1, v, 1, ctypes.c_long(0))\nerror = ctypes.get_errno(){END}"
                "if got < 0:\n    print(os.strerror(error))\n    sys.exit(1)")),
    Live("b56-exe-file", "X", "a process that calls itself another program",
         python("f = os.open('/usr/bin/true', os.O_RDONLY)\ncall(157, 35, 13, f, 0, 0)"), past="resource busy"),
    Live("b57-binfmt", "X", "a format that the kernel starts by an interpreter",
         "b=/proc/sys/fs/binfmt_misc; ls $b/register >/dev/null\necho ':b57:M::B57PLANTED::/bin/sh:' >$b/register\n"
         "echo -1 >$b/b57"),
    Live("b58-disk-away", "X", "the disk's driver taken from it",
         "f=/sys/bus/virtio/drivers/virtio_blk/unbind; test -e $f\nprintf nothing-of-this-name | tee $f", past="No such device"),
)  # fmt: skip

WAYS_OUT = (
    Live("a18-ipe", "X", "another verifier of the kernel's switched off",
         "f=/sys/kernel/security/ipe/enforce\ncat $f | tee $f"),
    Live("a18-apparmor", "X", "an AppArmor profile removed",
         "f=/sys/kernel/security/apparmor/.remove\nprintf a18-no-such-profile | tee $f",
         past="No such file or directory"),
    Live("a21-certificate", "X", "a certificate added to the kernel's ring",
         "keyctl padd asymmetric a21 %:.fs-verity <$(ls /usr/lib/freehold/keychain/*.der | head -n 1)", control="closed"),
    Live("b60-lockdown", "X", "the kernel's lockdown lowered", "echo none | tee /sys/kernel/security/lockdown", control="closed"),
    Live("b62-tree", "X", "the tree mounted writable", "mount -o remount,rw /", control="closed",
         reason=r"No changes allowed in reconfigure|read-only|write-protected|Invalid argument"),
    Live("a113-owner", "X", "the owner's directory, written to", "touch /sysroot/owner/a113 && rm /sysroot/owner/a113"),
    Live("a113-moved", "X", "the owner's directory moved away",
         "mv /sysroot/owner /sysroot/a113 && mv /sysroot/a113 /sysroot/owner"),
    Live("a86-over-usr", "X", "a mount over the sealed tree",
         f"mkdir -p {TRIED}-over\nmount --bind {TRIED}-over /usr/local\numount /usr/local"),
    Live("a86-over-etc", "X", "a mount over /etc", f"mkdir -p {TRIED}-etc\nmount --bind {TRIED}-etc /etc/opt\numount /etc/opt"),
    Live("a86-over-owner", "X", "a mount over the owner's directory",
         f"mkdir -p {TRIED}-own\nmount --bind {TRIED}-own /sysroot/owner/config\numount /sysroot/owner/config"),
    Live("b63-lazy", "X", "a tree of mounts taken away lazily",
         f"t={TRIED}-lazy; mkdir -p $t; mount -t tmpfs none $t; mkdir $t/b; mount -t tmpfs none $t/b\numount -l $t"),
    Live("b64-pivot", "X", "another root for everybody",
         f"t={TRIED}-root; mkdir -p $t; mount -t tmpfs none $t; mkdir -p $t/old\n"
         f"python3 -IS - <<'ACT'\n{CALLS}"
         f"call(155, ctypes.create_string_buffer(b'{TRIED}-root'), ctypes.create_string_buffer(b'{TRIED}-root/old'))\nACT\n",
         past="Invalid argument"),
    Live("a114-typed", "X", "a user who types for others at a terminal", f"runuser -u alice -- python3 -IS -c \"{TYPED}\"",
         control="closed", reason="Input/output error"),
    # From here on the open machine has the guard loaded: its file system and its pins are there.
    Live("a20-maps", "X", "the guard's maps, by number: refused in every mode", GUARD + python(BPF_MAPS), control="closed"),
    Live("b61-latch", "X", "the guard set to audit", f"{GUARD}/usr/lib/freehold/guardctl latch audit"),
    Live("a19-pin", "X", "the guard's pin removed",
         f"{GUARD}p=$(ls -d /sys/fs/bpf/freehold/link_* | head -n 1)\ntest -n \"$p\"\nrm $p"),
    Live("a19-renamed", "X", "the guard's pins moved", f"{GUARD}mv /sys/fs/bpf/freehold /sys/fs/bpf/a19"),
    Live("a19-unmount", "X", "the file system of the guard's pins unmounted", f"{GUARD}umount -l /sys/fs/bpf"),
)  # fmt: skip

ROWS: tuple[Live, ...] = (*CODE, *KERNEL_DOORS, *WAYS_OUT)
