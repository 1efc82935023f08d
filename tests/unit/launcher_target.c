/* SPDX-License-Identifier: Apache-2.0 */
/* What the launcher starts in the tests: prints as JSON what it was given, and exits with status 7. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/personality.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

static void text(const char *bytes)
{
	putchar('"');
	for (; *bytes; bytes++)
		printf("\\u%04x", (unsigned char)*bytes);
	putchar('"');
}

static void texts(const char *name, char **list)
{
	printf("\"%s\":[", name);
	for (int i = 0; list[i]; i++) {
		if (i)
			putchar(',');
		text(list[i]);
	}
	printf("],");
}

int main(int argc, char **argv)
{
	char byte, directory[4096] = "?";
	int unsettled = 0, count = 0;
	struct itimerval timer;
	struct rlimit core;
	sigset_t blocked;

	(void)argc;
	putchar('{');
	texts("argv", argv);
	texts("env", environ);
	printf("\"fds\":[");
	for (int fd = 0; fd < 4096; fd++)
		if (fcntl(fd, F_GETFD) >= 0)
			printf(count++ ? ",%d" : "%d", fd);
	sigprocmask(SIG_SETMASK, NULL, &blocked);
	for (int number = 1; number < 32; number++) {
		struct sigaction action;

		sigaction(number, NULL, &action);
		unsettled += action.sa_handler != SIG_DFL;
		unsettled += sigismember(&blocked, number);
	}
	getitimer(ITIMER_REAL, &timer);
	getrlimit(RLIMIT_CORE, &core);
	if (!getcwd(directory, sizeof(directory)))
		return 1;
	printf("],\"signals\":%d,\"timer\":%ld,\"core\":%ld,\"umask\":%d,\"personality\":%d,\"input\":%zd,\"cwd\":", unsettled,
	       (long)timer.it_value.tv_sec, (long)core.rlim_max, (int)umask(0), personality(0xffffffff), read(0, &byte, 1));
	text(directory);
	printf("}\n");
	return 7;
}
