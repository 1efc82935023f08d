/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "prepare.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util.h"

#ifndef PREPARE
#define PREPARE "/usr/lib/freehold/prepare"
#endif
/* In the sealed tree: root-owned state that could make signed programs act for whoever wrote it. */
#define UNBELIEVED "/usr/lib/freehold/unbelieved.list"
#define MAX_LIST 8192

/* Covers root + name, each directory on the way a real one: what else root put there, a link elsewhere, is removed. */
static int cover(const char *root, const char *name)
{
	char path[512];
	size_t top = strlen(root);
	int length = snprintf(path, sizeof(path), "%s%s", root, name);

	if (strncmp(name, "/var/", 5) != 0 || length < 0 || (size_t)length >= sizeof(path))
		return -EINVAL;
	/* /var itself is mounted already. */
	for (char *end = path + top + 5; end; end = strchr(end, '/')) {
		if (*end == '/')
			end++;
		char *next = strchr(end, '/');
		if (next)
			*next = '\0';
		int error = real_directory(path, 0755);
		if (error)
			return error;
		if (next)
			*next = '/';
	}
	return mount_at("freehold-empty", path, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=5%");
}

int prepare_cover(const char *root)
{
	char path[512], list[MAX_LIST];
	int error = 0;

	snprintf(path, sizeof(path), "%s" UNBELIEVED, root);
	ssize_t length = read_file(path, list, sizeof(list) - 1);
	if (length < 0)
		return (int)length;
	list[length] = '\0';
	for (char *save = NULL, *line = strtok_r(list, "\n", &save); line && !error; line = strtok_r(NULL, "\n", &save)) {
		line += strspn(line, " \t");
		line[strcspn(line, " \t")] = '\0';
		if (*line && *line != '#')
			error = cover(root, line);
	}
	return error;
}

void prepare_start(struct preparation *preparation)
{
	static char *const environment[] = { "PATH=/usr/sbin:/usr/bin", "LANG=C.UTF-8", "HOME=/", NULL };
	static char *const arguments[] = { PREPARE, NULL };
	int gate[2];

	if (pipe2(gate, O_CLOEXEC) < 0)
		die("boot preparation cannot be started: %s", strerror(errno));
	preparation->child = fork();
	if (preparation->child == 0) {
		/* The first two numbers may be free, where the kernel had no console to open. */
		if (gate[0] == STDIN_FILENO ? fcntl(gate[0], F_SETFD, 0) == 0 : dup2(gate[0], STDIN_FILENO) == STDIN_FILENO)
			execve(PREPARE, arguments, environment);
		say("%s: %s", PREPARE, strerror(errno));
		_exit(127);
	}
	if (preparation->child < 0)
		die("boot preparation cannot be started");
	close(gate[0]);
	preparation->gate = gate[1];
}

void prepare_finish(struct preparation *preparation)
{
	int status = 0;

	close(preparation->gate);
	if (waitpid(preparation->child, &status, 0) != preparation->child)
		die("boot preparation cannot be waited for");
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
		die("boot preparation failed (status %d): the machine as specified, or no machine", status);
}
