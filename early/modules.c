/* SPDX-License-Identifier: Apache-2.0 */
/*
 * /modules/load in the initrd, written by the builder from the kernel's own modules.dep and modules.alias:
 *   ! a.ko b.ko            load these, in this order, always
 *   PATTERN a.ko b.ko      load these, in this order, for a device whose modalias matches PATTERN
 */
#define _GNU_SOURCE
#include "modules.h"

#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "util.h"

#define DIRECTORY "/modules"
#define MAX_LIST (1 << 20)
#define MAX_RULES 8192

struct rule {
	const char *pattern;
	char *modules;
	bool done;
};

static struct rule rules[MAX_RULES];
static size_t rule_count;

static int load_one(const char *name)
{
	char path[256];

	snprintf(path, sizeof(path), DIRECTORY "/%s", name);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	long result = syscall(SYS_finit_module, fd, "", 0);
	int error = result < 0 && errno != EEXIST ? -errno : 0;
	close(fd);
	return error;
}

static int load_list(const char *list)
{
	char copy[1024];
	int failed = 0;

	snprintf(copy, sizeof(copy), "%s", list);
	for (char *save = NULL, *name = strtok_r(copy, " ", &save); name; name = strtok_r(NULL, " ", &save)) {
		int error = load_one(name);
		if (error) {
			/* A driver without its device says ENODEV: not a fault. */
			if (error != -ENODEV)
				say("module %s: %s", name, strerror(-error));
			failed++;
		}
	}
	return failed;
}

static void read_rules(void)
{
	char *text = malloc(MAX_LIST + 1);

	if (!text)
		return;
	ssize_t length = read_file(DIRECTORY "/load", text, MAX_LIST);
	if (length < 0) {
		free(text);
		return;
	}
	text[length] = '\0';
	/* The rules point into `text`, which lives as long as this program. */
	for (char *save = NULL, *line = strtok_r(text, "\n", &save); line && rule_count < MAX_RULES;
	     line = strtok_r(NULL, "\n", &save)) {
		char *space = strchr(line, ' ');
		if (!space)
			continue;
		*space = '\0';
		rules[rule_count++] = (struct rule){ .pattern = line, .modules = space + 1 };
	}
}

int modules_load_always(void)
{
	int failed = 0;

	read_rules();
	for (size_t i = 0; i < rule_count; i++)
		if (strcmp(rules[i].pattern, "!") == 0) {
			rules[i].done = true;
			failed += load_list(rules[i].modules);
		}
	return failed;
}

static int visit(const char *path, const struct stat *status, int kind, struct FTW *where)
{
	char alias[4096]; /* a page: what sysfs gives at most; a processor names each of its features */

	(void)status;
	if (kind != FTW_F || strcmp(path + where->base, "modalias") != 0)
		return 0;
	ssize_t length = read_file(path, alias, sizeof(alias) - 1);
	if (length <= 0)
		return 0;
	alias[length] = '\0';
	alias[strcspn(alias, "\n")] = '\0';
	for (size_t i = 0; i < rule_count; i++)
		if (!rules[i].done && fnmatch(rules[i].pattern, alias, 0) == 0) {
			rules[i].done = true;
			load_list(rules[i].modules);
		}
	return 0;
}

void modules_load_present(void)
{
	nftw("/sys/devices", visit, 16, FTW_PHYS);
}
