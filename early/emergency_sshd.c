/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The emergency sshd's launcher, static: /usr/lib/freehold/emergency-sshd
 *
 * On a locked machine the guard lets the session of one key bypass the lock. It knows the session by where it comes from:
 * this program, in surroundings that nobody prepared; the sealed sshd that it executes; emergency-shell at the end. So what
 * lies between must be out of root's reach. This program takes nothing of its caller's but two descriptors to write to, and
 * gives sshd a root directory of its own: the sealed /usr, an /etc with five files made here, and in memory whatever else
 * it needs. The key in force and the host key are copied there: root can change neither where they come from.
 * What the launcher cannot see or undo the guard judges itself when this program is executed (docs/emergency-ssh.md).
 *
 * Exit status: 1 when something failed or no key is in force; else sshd's.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "launcher.h"

#ifndef SEALED /* the tests have another tree */
#define SEALED ""
#define PLACE "/tmp" /* of the sealed root; the new root is mounted there and moved away at once */
#endif
#define SSHD "/usr/sbin/sshd"
#define SETTINGS "/usr/lib/freehold/emergency-sshd.conf"
#define SHELL "/usr/lib/freehold/emergency-shell"
#define FACTORY_ACCOUNTS SEALED "/usr/etc/passwd"
#define KEY SEALED "/sysroot/owner/emergency/key"
#define HOST_KEY SEALED "/sysroot/owner/secret/emergency-host-key"
#define MAX_FILE 8192
#define TTY_GROUP 5 /* Debian's */

static void fail(const char *what)
{
	fprintf(stderr, "emergency-sshd: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void check(bool bad, const char *what)
{
	if (bad)
		fail(what);
}

/* ---- what the caller left ---- */

static void settle(void)
{
	struct rlimit none = { 0, 0 };

	check(empty_input() != 0, "descriptors");
	check(forget_signals() != 0, "signals");
	check(setgroups(0, NULL) != 0 || setresgid(0, 0, 0) != 0 || setresuid(0, 0, 0) != 0, "groups");
	check(chdir("/") != 0, "/");
	umask(022);
	check(setrlimit(RLIMIT_CORE, &none) != 0, "core dumps");
	check(prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0) != 0 || personality(PER_LINUX) < 0, "personality");
}

/* ---- files ---- */

struct file {
	size_t length;
	char data[MAX_FILE];
};

static void take(const char *path, struct file *file)
{
	int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	ssize_t got;

	check(fd < 0, path);
	file->length = 0;
	while (file->length < MAX_FILE && (got = read(fd, file->data + file->length, MAX_FILE - file->length)) != 0) {
		check(got < 0, path);
		file->length += (size_t)got;
	}
	close(fd);
	errno = EFBIG;
	check(file->length == MAX_FILE || file->length == 0, path);
}

static void put(const char *path, const char *data, size_t length, mode_t mode)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);

	check(fd < 0 || write(fd, data, length) != (ssize_t)length, path);
	close(fd);
}

__attribute__((format(printf, 2, 3))) static void put_text(const char *path, const char *format, ...)
{
	char text[1024];
	va_list arguments;

	va_start(arguments, format);
	int length = vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	errno = EFBIG;
	check(length < 0 || (size_t)length >= sizeof(text), path);
	put(path, text, (size_t)length, 0644);
}

/* Whom sshd becomes before a client has proved anything, by the image's own list of accounts. */
static void find_sshd(uid_t *uid, gid_t *gid)
{
	FILE *list = fopen(FACTORY_ACCOUNTS, "re");
	struct passwd *entry;

	check(!list, FACTORY_ACCOUNTS);
	while ((entry = fgetpwent(list)) && strcmp(entry->pw_name, "sshd") != 0)
		;
	errno = ENOENT;
	check(!entry || !entry->pw_uid, "the account sshd");
	*uid = entry->pw_uid;
	*gid = entry->pw_gid;
	fclose(list);
}

/* ---- a root directory of its own; its /dev is the session's as well ---- */

static void make_devices(void)
{
	static const struct {
		const char *path;
		unsigned minor, major;
	} nodes[] = {
		{ PLACE "/dev/null", 3, 1 },   { PLACE "/dev/zero", 5, 1 },	  { PLACE "/dev/full", 7, 1 },
		{ PLACE "/dev/random", 8, 1 }, { PLACE "/dev/urandom", 9, 1 }, { PLACE "/dev/tty", 0, 5 },
	};

	static const struct {
		const char *path, *target;
	} links[] = {
		{ PLACE "/dev/ptmx", "pts/ptmx" },	{ PLACE "/dev/fd", "/proc/self/fd" },	     { PLACE "/dev/stdin", "fd/0" },
		{ PLACE "/dev/stdout", "fd/1" }, { PLACE "/dev/stderr", "fd/2" },
	};

	for (size_t i = 0; i < sizeof(nodes) / sizeof(nodes[0]); i++)
		check(mknod(nodes[i].path, S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)) != 0 ||
			      chmod(nodes[i].path, 0666) != 0, nodes[i].path);
	for (size_t i = 0; i < sizeof(links) / sizeof(links[0]); i++)
		check(symlink(links[i].target, links[i].path) != 0, links[i].path);
	/* Terminals that nobody outside has a name for. */
	check(mount("devpts", PLACE "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "ptmxmode=0666,mode=0620,gid=5") != 0, "devpts");
}

static void build_root(const struct file *key, const struct file *host_key)
{
	static const char *const directories[] = { "usr", "etc", "etc/ssh", "dev", "dev/pts", "dev/shm", "proc", "root", "run", "run/sshd" };
	static const char *const links[] = { "bin", "sbin", "lib", "lib64" };
	char path[sizeof(PLACE) + 32], target[32];
	uid_t uid;
	gid_t gid;

	find_sshd(&uid, &gid);
	check(unshare(CLONE_NEWNS) != 0, "a mount namespace");
	/* From here on nobody's mounts come in. */
	check(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0, "private mounts");
	check(mount("emergency", PLACE, "tmpfs", MS_NOSUID, "mode=0755,size=4m") != 0, PLACE);
	for (size_t i = 0; i < sizeof(directories) / sizeof(directories[0]); i++) {
		snprintf(path, sizeof(path), PLACE "/%s", directories[i]);
		check(mkdir(path, 0755) != 0, path);
	}
	for (size_t i = 0; i < sizeof(links) / sizeof(links[0]); i++) {
		snprintf(path, sizeof(path), PLACE "/%s", links[i]);
		snprintf(target, sizeof(target), "usr/%s", links[i]);
		check(symlink(target, path) != 0, path);
	}
	check(mount(SEALED "/usr", PLACE "/usr", NULL, MS_BIND, NULL) != 0, "/usr");
	check(mount("proc", PLACE "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) != 0, "/proc");
	make_devices();
	put_text(PLACE "/etc/passwd", "root:*:0:0:root:/root:%s\nsshd:*:%u:%u:sshd:/run/sshd:/usr/sbin/nologin\n", SHELL, uid, gid);
	put_text(PLACE "/etc/group", "root:*:0:\ntty:*:%d:\nsshd:*:%u:\n", TTY_GROUP, gid);
	put_text(PLACE "/etc/nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files\n");
	put(PLACE "/etc/ssh/emergency-key", key->data, key->length, 0600);
	put(PLACE "/etc/ssh/emergency-host-key", host_key->data, host_key->length, 0600);
	check(chdir(PLACE) != 0 || syscall(SYS_pivot_root, ".", ".") != 0, "the new root");
	/* The old one lies over the new one; without it nothing of the machine's is left in here. */
	check(umount2(".", MNT_DETACH) != 0 || chdir("/") != 0, "the old root");
}

int main(void)
{
	static char *const environment[] = { "PATH=/usr/sbin:/usr/bin", "LANG=C.UTF-8", "HOME=/root", "TZ=UTC", NULL };
	static char *const command[] = { SSHD, "-D", "-e", "-f", SETTINGS, NULL };
	static struct file key, host_key;

	if (fcntl(STDOUT_FILENO, F_GETFD) < 0 || fcntl(STDERR_FILENO, F_GETFD) < 0)
		return 1; /* or a file that is opened later would be written to */
	settle();
	take(KEY, &key);
	take(HOST_KEY, &host_key);
	build_root(&key, &host_key);
	execve(SSHD, command, environment);
	fail(SSHD);
}
