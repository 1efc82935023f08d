/* SPDX-License-Identifier: Apache-2.0 */
/* In the place of sshd: what the emergency sshd's launcher leaves to it, a line each. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

static void list(const char *path, int depth)
{
	DIR *directory = opendir(path[0] ? path : "/");
	struct dirent *entry;
	struct stat status;
	char inner[512];

	while (directory && (entry = readdir(directory))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(inner, sizeof(inner), "%s/%.255s", path, entry->d_name);
		if (lstat(inner, &status) != 0)
			continue;
		printf("file %s %o\n", inner, status.st_mode);
		if (S_ISDIR(status.st_mode) && depth > 0 && strcmp(inner, "/proc") != 0 && strcmp(inner, "/usr") != 0)
			list(inner, depth - 1);
	}
	if (directory)
		closedir(directory);
}

static void show(const char *path)
{
	char text[4096] = "";
	int fd = open(path, O_RDONLY);

	if (fd < 0 || read(fd, text, sizeof(text) - 1) < 0)
		snprintf(text, sizeof(text), "%s", strerror(errno));
	close(fd);
	for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
		printf("text %s %s\n", path, line);
}

int main(int argc, char **argv)
{
	int unsettled = 0;
	sigset_t blocked;
	char byte;

	for (int i = 0; i < argc; i++)
		printf("argument %s\n", argv[i]);
	for (int i = 0; environ[i]; i++)
		printf("environment %s\n", environ[i]);
	for (int fd = 0; fd < 4096; fd++)
		if (fcntl(fd, F_GETFD) >= 0)
			printf("descriptor %d\n", fd);
	sigprocmask(SIG_SETMASK, NULL, &blocked);
	for (int number = 1; number < 32; number++) {
		struct sigaction action;

		sigaction(number, NULL, &action);
		unsettled += action.sa_handler != SIG_DFL || sigismember(&blocked, number);
	}
	printf("signals %d\n", unsettled);
	printf("input %zd\n", read(0, &byte, 1));
	list("", 2);
	show("/etc/passwd");
	show("/etc/group");
	show("/etc/nsswitch.conf");
	show("/etc/ssh/emergency-key");
	show("/etc/ssh/emergency-host-key");
	printf("mount %d\n", mkdir("/usr/lib/planted", 0755) == 0);
	show("/proc/self/mountinfo");
	return 7;
}
