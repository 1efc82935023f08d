/* SPDX-License-Identifier: Apache-2.0 */
/*
 * /init of the unsealed comparison: the same modules, the same partition, nothing verified. It mounts
 * the root partition, which holds the plain tree, and starts systemd in it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "disk.h"
#include "modules.h"
#include "util.h"

int main(void)
{
	static const struct {
		const char *type, *target, *options;
		unsigned long flags;
	} table[] = {
		{ "proc", "/proc", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC },
		{ "sysfs", "/sys", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC },
		{ "devtmpfs", "/dev", "mode=755", MS_NOSUID },
		{ "tmpfs", "/run", "mode=755,size=20%", MS_NOSUID | MS_NODEV },
	};
	const size_t count = sizeof(table) / sizeof(table[0]);

	umask(022);
	for (size_t i = 0; i < count; i++) {
		make_directory(table[i].target, 0755);
		if (mount(table[i].type, table[i].target, table[i].type, table[i].flags, table[i].options) < 0)
			die("%s cannot be mounted: %s", table[i].target, strerror(errno));
	}
	if (modules_load_always() != 0)
		say("not every module could be loaded");
	/* Here the boot partition is named for the unit that mounts it: the twin starts the same units. */
	make_directory("/run/freehold", 0755);
	make_directory(DISK, 0755);
	disk_mount();
	for (size_t i = 0; i < count; i++) {
		char target[64];
		snprintf(target, sizeof(target), DISK "%s", table[i].target);
		if (mount_at(table[i].target, target, NULL, MS_MOVE, NULL))
			die("%s cannot be moved", table[i].target);
	}
	if (chdir(DISK) < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
		die("the root cannot be switched: %s", strerror(errno));
	execl("/usr/lib/systemd/systemd", "/sbin/init", NULL);
	die("systemd cannot be started: %s", strerror(errno));
}
