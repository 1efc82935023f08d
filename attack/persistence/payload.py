# SPDX-License-Identifier: Apache-2.0
"""What is planted: a text for a signed interpreter, a native program, a library. Each notes (uid, boot) in a canary.

And shell text that plants it. Pure; :mod:`attack.persistence.play` compiles the two sources and copies them into the machine.
"""

from __future__ import annotations

import shlex

#: Where the payloads lie: it is root's, survives reboots, and nothing there is signed.
BENCH = "/var/lib/plant"
CANARIES = "/var/canary"
#: Where a payload writes when it may not write there: generators run with everything but /run read-only.
SPARE = "/run/canary"
#: Where users may write.
USERS = "/var/canary-users"
DIRECTORIES = (CANARIES, SPARE, USERS)

FIRE = f"""# Notes who ran this, and in which boot, in the canary that the first argument names.
u=$(/usr/bin/id -u)
read -r b </proc/sys/kernel/random/boot_id
if [ "$u" != 0 ]; then
	echo "$u $b" 2>/dev/null >>"{USERS}/$1"
elif ! echo "$u $b" 2>/dev/null >>"{CANARIES}/$1"; then
	/usr/bin/mkdir -p {SPARE} 2>/dev/null
	# Root of a user's own namespace may write where that user may.
	echo "$u $b" 2>/dev/null >>"{SPARE}/$1" || echo "$u $b" >>"{USERS}/$1"
fi
"""

#: One source for the program and the library. Its canary has the name of its first argument, where that looks like a row's id,
#: or its own (the library: its file's) up to the first dot.
SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void note(const char *name)
{
	char boot[64] = "", path[256], line[128], known[8192];
	const char *base = strrchr(name, '/') ? strrchr(name, '/') + 1 : name;
	int length = (int)strcspn(base, ".");
	int file = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	if (file >= 0) {
		ssize_t got = read(file, boot, sizeof(boot) - 1);
		boot[got > 0 ? got : 0] = 0;
		close(file);
	}
	boot[strcspn(boot, "\n")] = 0;
	snprintf(line, sizeof(line), "%d %s\n", (int)geteuid(), boot);
	for (int i = 0; i < 2; i++) {
		const char *top = geteuid() ? "@USERS@" : i ? "@SPARE@" : "@CANARIES@";
		if (i && !geteuid())
			mkdir(top, 0755);
		snprintf(path, sizeof(path), "%s/%.*s.native", top, length, base);
		file = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
		if (file < 0)
			continue;
		/* A library that is loaded everywhere says it once in each boot. */
		ssize_t got = read(file, known, sizeof(known) - 1);
		known[got > 0 ? got : 0] = 0;
		if (!strstr(known, line) && write(file, line, strlen(line)) < 0)
			perror(path);
		close(file);
		return;
	}
}

#ifdef LIBRARY
__attribute__((constructor)) static void loaded(void)
{
	Dl_info info;
	if (dladdr((void *)loaded, &info) && info.dli_fname)
		note(info.dli_fname);
}
#else
int main(int argc, char **argv)
{
	const char *one = argc > 1 ? argv[1] : "";
	note(one[0] >= 'a' && one[0] <= 'c' && one[1] >= '0' && one[1] <= '9' ? one : argv[0]);
	puts("ran");
	return 0;
}
#endif
""".replace("@USERS@", USERS).replace("@SPARE@", SPARE).replace("@CANARIES@", CANARIES)


def text(name: str) -> str:
    """A command, without any special character, that has a signed shell read a text: canary ``name``."""
    return f"/bin/sh {BENCH}/fire {name}"


def native(name: str) -> str:
    """A command that starts the unsigned program: canary ``name.native``."""
    return f"{BENCH}/native {name}"


def both(name: str) -> tuple[str, str]:
    """The canaries of the two payloads."""
    return name, f"{name}.native"


def put(path: str, content: str, mode: str = "644") -> str:
    """Shell text that writes ``content`` to ``path``. The directory is made."""
    quoted = shlex.quote(path)
    folder = shlex.quote(path.rpartition("/")[0])
    return f"mkdir -p {folder}\ncat >{quoted} <<'PLANTED'\n{content.rstrip()}\nPLANTED\nchmod {mode} {quoted}\n"


def copy(what: str, path: str, mode: str = "755") -> str:
    """Shell text that copies a file of the bench (``native``, ``library.so``) to ``path``."""
    quoted = shlex.quote(path)
    return f"mkdir -p {shlex.quote(path.rpartition('/')[0])}\ncp {BENCH}/{what} {quoted}\nchmod {mode} {quoted}\n"


def link(target: str, path: str) -> str:
    """Shell text that makes a link at ``path``."""
    return f"mkdir -p {shlex.quote(path.rpartition('/')[0])}\nln -sfn {shlex.quote(target)} {shlex.quote(path)}\n"


def lines(name: str) -> str:
    """Both payloads as lines of a shell script."""
    return f"{text(name)}\n{native(name)} >/dev/null 2>&1 || true\n"


def script(name: str) -> str:
    """A shell script that is both payloads."""
    return f"#!/bin/sh\n{lines(name)}"


def service(name: str, more: str = "", wanted: str = "multi-user.target") -> str:
    """A unit that is both payloads; ``more`` are further lines of its [Service]."""
    return (
        f"[Unit]\nDescription=planted {name}\n[Service]\nType=oneshot\nExecStart=-{text(name)}\nExecStart=-{native(name)}\n"
        f"{more}[Install]\nWantedBy={wanted}\n"
    )


def unit(name: str, folder: str = "/etc/systemd/system", wanted: str = "multi-user.target") -> str:
    """Shell text that plants such a unit, enabled."""
    planted = put(f"{folder}/{name}.service", service(name, wanted=wanted))
    return planted + link(f"../{name}.service", f"{folder}/{wanted}.wants/{name}.service")


def no_program(*names: str) -> str:
    """Shell text (sh -e) that fails, and names the program, where one of ``names`` is there."""
    return f"for p in {' '.join(names)}; do if command -v $p; then exit 1; fi; done\n"


def no_way_up(*names: str) -> str:
    """Shell text (sh -e) that fails where one of ``names`` is there and is another program than the image's signpost."""
    return (
        f"for p in {' '.join(names)}; do q=$(command -v $p) || continue\n"
        'test "$(readlink -f "$q")" = /usr/lib/freehold/no-privilege\ndone\n'
    )


def root_shell(command: str) -> str:
    """Shell text that runs a command as a login shell and as an interactive one of root's would."""
    return f"bash -lc {shlex.quote(command)} </dev/null\nbash -ic {shlex.quote(command)} </dev/null 2>/dev/null || true\n"


def ssh(key: str, who: str, command: str) -> str:
    """Shell text that logs in to the machine itself with a key of the bench."""
    return (
        f"ssh -F /dev/null -i {BENCH}/{key} -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null "
        f"-o ConnectTimeout=30 {who}@127.0.0.1 {shlex.quote(command)} </dev/null"
    )


#: Keys of root's, made before anything is planted.
KEYS = ("key-root", "key-etc", "key-user", "key-stranger")
EQUIP = (
    f"mkdir -p {BENCH} {CANARIES} {USERS}\nchmod 755 {BENCH} {CANARIES}\nchmod 1777 {USERS}\n"
    + put(f"{BENCH}/fire", FIRE)
    + f"for k in {' '.join(KEYS)}; do\n\t[ -e {BENCH}/$k ] || ssh-keygen -q -t ed25519 -N '' -C $k -f {BENCH}/$k\ndone\n"
    + f"mkdir -p /home/alice/rootfs\ncp {BENCH}/native /home/alice/native\ncp {BENCH}/native /home/alice/rootfs/native\n"
    + "chmod 755 /home/alice/native /home/alice/rootfs/native\nchown -R alice: /home/alice/rootfs /home/alice/native\n"
)
