/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The updater's launcher, static: /usr/lib/freehold/updater VERB [ARGUMENT...]
 *
 * On a locked machine the guard lets one kind of process read the owner directory's secrets: the program that this one
 * executes. Root may start it, with any environment, descriptors, limits and arguments; so nothing of that goes on to
 * the updater but a verb of the list below, arguments of a narrow grammar, and two descriptors to write to.
 * What the launcher cannot see or undo (mounts, another root, a parent's seccomp filter, a tracer) the guard judges
 * itself when this program is executed: then nobody is the updater, and reading is refused.
 *
 * Exit status: 2 for a refused command line, 1 when something failed; else the updater's.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "launcher.h"

#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#endif
#ifndef PYTHON /* the tests have another one */
#define PYTHON "/usr/bin/python3"
#endif
#define SCRIPT "/usr/lib/freehold/updater.py"
#define MAX_ARGUMENTS 8
#define MAX_ARGUMENT 128
#define ALPHABET "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+:=/-"

static const struct verb {
	const char *name;
	int least, most; /* arguments */
} VERBS[] = {
	{ "self-check", 0, 0 },
	{ "allow", 1, 1 }, /* a deployment's id */
	{ "apply", 0, 7 }, /* words: offered, release=ID, how to tell */
	{ "upgrade", 1, 7 }, /* words, release=ID among them */
};

static int fail(const char *what)
{
	fprintf(stderr, "updater: %s: %s\n", what, strerror(errno));
	return 1;
}

/* The updater reads what they mean; here they only have to be plain words: no option, no way up a path, no text. */
static bool is_argument(const char *text)
{
	size_t length = strnlen(text, MAX_ARGUMENT + 1);

	return length > 0 && length <= MAX_ARGUMENT && text[0] != '-' && strspn(text, ALPHABET) == length && !strstr(text, "..");
}

static bool is_command(int count, char **arguments)
{
	for (size_t i = 0; count >= 1 && i < sizeof(VERBS) / sizeof(VERBS[0]); i++) {
		if (strcmp(arguments[0], VERBS[i].name) != 0)
			continue;
		if (count - 1 < VERBS[i].least || count - 1 > VERBS[i].most || count - 1 > MAX_ARGUMENTS)
			return false;
		for (int k = 1; k < count; k++)
			if (!is_argument(arguments[k]))
				return false;
		return true;
	}
	return false;
}

int main(int argc, char **argv)
{
	static char *const environment[] = {
		"PATH=/usr/sbin:/usr/bin", "LANG=C.UTF-8", "HOME=/", "TZ=UTC",
		/* Otherwise one of /etc would name libraries to load. */
		"OPENSSL_CONF=/usr/lib/freehold/openssl.cnf", NULL,
	};
	char *command[6 + 1 + MAX_ARGUMENTS] = { "python3", "-I", "-S", "-B", SCRIPT };
	struct rlimit none = { 0, 0 };

	if (fcntl(STDOUT_FILENO, F_GETFD) < 0 || fcntl(STDERR_FILENO, F_GETFD) < 0)
		return 2; /* or a file that is opened later would be written to */
	if (!is_command(argc - 1, argv + 1)) {
		fprintf(stderr, "usage: updater self-check | allow | apply | upgrade\n");
		return 2;
	}
	memcpy(command + 5, argv + 1, (size_t)(argc - 1) * sizeof(*command));
	if (empty_input() != 0)
		return fail("descriptors");
	if (forget_signals() != 0)
		return fail("signals");
	if (geteuid() == 0 && (setgroups(0, NULL) != 0 || setresgid(0, 0, 0) != 0 || setresuid(0, 0, 0) != 0))
		return fail("groups");
	if (chdir("/") != 0)
		return fail("/");
	umask(077);
	/* No dump of ours; the updater says so for itself, since exec forgets it. The limit stays. */
	if (setrlimit(RLIMIT_CORE, &none) != 0 || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0)
		return fail("core dumps");
	prctl(PR_SET_MEMORY_MERGE, 0, 0, 0, 0); /* merged pages tell by their timing what is in them; older kernels have none */
	if (prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0) != 0 || personality(PER_LINUX) < 0)
		return fail("personality");
	execve(PYTHON, command, environment);
	return fail(PYTHON);
}
