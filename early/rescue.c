/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "rescue.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "util.h"

#define WORD "freehold.rescue"
#define LOG "rescue.log"
#define MAX_NEW (64 << 10)
#define MAX_LOG (256 << 10)

static char text[MAX_LOG + MAX_NEW];

bool rescue_word(const char *line)
{
	const size_t length = strlen(WORD);

	for (const char *at = line; *at;) {
		size_t word = strcspn(at, " \t\n");
		if (word == length && memcmp(at, WORD, length) == 0)
			return true;
		at += word;
		at += strspn(at, " \t\n");
	}
	return false;
}

bool rescue_asked(void)
{
	char line[4096];
	ssize_t length = read_file("/proc/cmdline", line, sizeof(line) - 1);

	if (length < 0)
		return false;
	line[length] = '\0';
	bool asked = rescue_word(line);
	if (asked)
		say("rescue: locked, with factory settings, whatever the owner's intent says");
	return asked;
}

void rescue_keep_log(const char *inbox, const char *owner)
{
	char from[512], to[512];

	snprintf(from, sizeof(from), "%s/" LOG, inbox);
	snprintf(to, sizeof(to), "%s/" LOG, owner);
	if (access(from, F_OK) < 0)
		return;
	ssize_t old = read_file(to, text, MAX_LOG);
	/* One that is too long, or cannot be read, begins anew: it is we who wrote it. */
	size_t used = old > 0 ? (size_t)old : 0;
	ssize_t added = read_file(from, text + used, MAX_NEW);
	if (added < 0) {
		say("the log of a rescue cannot be kept: %s", strerror((int)-added));
		unlink(from);
		return;
	}
	for (size_t i = used; i < used + (size_t)added; i++)
		if (text[i] != '\n' && (text[i] < ' ' || text[i] > '~'))
			text[i] = '?';
	used += (size_t)added;
	size_t start = 0;
	if (used > MAX_LOG) {
		/* The newer half, from the begin of a line. */
		const char *line = memchr(text + used - MAX_LOG / 2, '\n', MAX_LOG / 2);
		start = line ? (size_t)(line - text) + 1 : used - MAX_LOG / 2;
	}
	int error = write_file_durably(owner, LOG, text + start, used - start);
	if (error)
		say("the log of a rescue cannot be kept: %s", strerror(-error));
	else
		unlink(from);
}
