// SPDX-License-Identifier: Apache-2.0
/* See refusals.h. Names in records are bytes of anybody's choice: whatever is not printable ASCII is written \xNN. */
#define _GNU_SOURCE
#include "refusals.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "refusal_words.h"

#define ESCAPED(size) (4 * (size) + 1)
#define PATH_SIZE ESCAPED(GUARD_NAMES * (GUARD_NAME + 1))
#define OTHER (sizeof(WORDS) / sizeof(WORDS[0]) - 1)

static const char *const RULES[RULE_COUNT] = GUARD_RULE_NAMES;
/* Of another size: another reporter's. */
static const char MAGIC[16] = "freehold-told-1";

static const struct words *words_of(__u32 rule)
{
	for (size_t i = 0; rule < RULE_COUNT && i < OTHER; i++)
		if (strcmp(WORDS[i].rule, RULES[rule]) == 0)
			return &WORDS[i];
	return &WORDS[OTHER];
}

static void escape(char *out, const char *text, size_t size)
{
	for (size_t i = 0; i < size && text[i]; i++) {
		unsigned char byte = text[i];

		out += sprintf(out, byte < 0x20 || byte > 0x7e || byte == '\\' ? "\\x%02x" : "%c", byte);
	}
	*out = 0;
}

/* The record's path; `shown`: with "..." for what the guard did not keep. */
static void path_of(char *out, const struct guard_denial_key *key, bool shown)
{
	int parts = 0;

	*out = 0;
	for (int i = 0; i < GUARD_NAMES; i++)
		parts += key->name[i][0] != 0;
	if (shown && parts && (parts == GUARD_NAMES || key->name[parts - 1][0] == '/'))
		out = stpcpy(out, key->name[parts - 1][0] == '/' ? "..." : ".../");
	for (int i = GUARD_NAMES - 1; i >= 0; i--) {
		if (!key->name[i][0])
			continue;
		escape(out, key->name[i], GUARD_NAME);
		out += strlen(out);
		if (i && out[-1] != '/')
			out = stpcpy(out, "/");
	}
}

__attribute__((format(printf, 3, 4))) static void add(char *out, size_t *length, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	int size = vsnprintf(out + *length, REFUSALS_MESSAGE - *length, format, arguments);
	va_end(arguments);
	*length += size < 0 ? 0 : (size_t)size;
	if (*length >= REFUSALS_MESSAGE)
		*length = REFUSALS_MESSAGE - 1;
}

size_t refusals_message(char *out, const struct guard_denial_key *key, const struct guard_denial *denial, __u64 fresh)
{
	char program[ESCAPED(GUARD_COMM)], path[PATH_SIZE], shown[PATH_SIZE + 8];
	const struct words *words = words_of(key->rule);
	size_t length = 0;

	escape(program, key->comm, GUARD_COMM);
	path_of(path, key, false);
	path_of(shown, key, true);
	add(out, &length, "MESSAGE=");
	if (program[0] == '(') {
		/* systemd before it starts a service's program; the closing bracket may be cut off. */
		size_t size = strlen(program);

		add(out, &length, "systemd, which was to start %.*s,",
		    (int)(size > 1 && program[size - 1] == ')' ? size - 2 : size - 1), program + 1);
	} else if (denial->uid) {
		add(out, &length, "user %u's %s", denial->uid, program[0] ? program : "process");
	} else {
		add(out, &length, "root's %s", program[0] ? program : "process");
	}
	add(out, &length, " %s allowed to ", denial->mode == GUARD_AUDIT	 ? "would not be"
				       : denial->mode == GUARD_EXEMPTED ? "was, in an emergency session,"
									: "was not");
	for (const char *at = words->act; *at;) {
		if (strncmp(at, "{path}", 6) == 0) {
			add(out, &length, "%s", shown[0] ? shown : "something without a name");
			at += 6;
		} else if (strncmp(at, "{detail}", 8) == 0) {
			add(out, &length, "%u", denial->detail);
			at += 8;
		} else {
			add(out, &length, "%c", *at++);
		}
	}
	if (fresh > 1)
		add(out, &length, " (%llu times)", fresh);
	add(out, &length,
	    "\nPRIORITY=4\nSYSLOG_IDENTIFIER=freehold\nMESSAGE_ID=%s\nFREEHOLD_RULE=%s\nFREEHOLD_PROGRAM=%s\n"
	    "FREEHOLD_PATH=%s\nFREEHOLD_COUNT=%llu\nFREEHOLD_MODE=%s\nFREEHOLD_UID=%u\nFREEHOLD_PID=%u\n",
	    words->id, key->rule < RULE_COUNT ? RULES[key->rule] : "other", program, path, fresh,
	    denial->mode == GUARD_AUDIT ? "audit" : denial->mode == GUARD_EXEMPTED ? "exempt" : "locked", denial->uid, denial->pid);
	return length;
}

static struct refusals_known *find(struct refusals *all, const struct guard_denial_key *key)
{
	for (__u32 i = 0; i < all->count; i++)
		if (memcmp(&all->known[i].key, key, sizeof(*key)) == 0)
			return &all->known[i];
	if (all->count == REFUSALS_LIMIT)
		return NULL;
	all->known[all->count] = (struct refusals_known){ .key = *key };
	return &all->known[all->count++];
}

void refusals_begin(struct refusals *all)
{
	all->lines = 0;
	all->flood = all->flood_kinds = 0;
	all->waiting = false;
	for (__u32 i = 0; i < all->count; i++)
		all->known[i].seen = 0;
}

void refusals_show(struct refusals *all, const struct guard_denial_key *key, const struct guard_denial *denial, __u64 now,
		   bool last)
{
	struct refusals_known *known = find(all, key);
	char message[REFUSALS_MESSAGE];

	if (!known)
		return;
	known->seen = 1;
	if (denial->count < known->told) /* the guard forgot it, and began anew */
		known->told = 0;
	if (denial->count == known->told)
		return;
	if (!last && known->told_at && now - known->told_at < REFUSALS_PAUSE) {
		all->waiting = true;
		return;
	}
	if (all->lines < REFUSALS_LINES) {
		if (!all->send(message, refusals_message(message, key, denial, denial->count - known->told))) {
			all->waiting = true;
			return;
		}
		all->lines++;
	} else {
		all->flood += denial->count - known->told;
		all->flood_kinds++;
	}
	known->told = denial->count;
	known->told_at = now ? now : 1;
}

void refusals_end(struct refusals *all)
{
	char message[REFUSALS_MESSAGE];
	size_t length = 0;
	__u32 kept = 0;

	if (all->flood) {
		add(message, &length,
		    "MESSAGE=%llu more refusals of %llu other kinds: `freehold denials` lists them\nPRIORITY=4\n"
		    "SYSLOG_IDENTIFIER=freehold\nMESSAGE_ID=" FLOOD_ID "\nFREEHOLD_COUNT=%llu\n",
		    all->flood, all->flood_kinds, all->flood);
		all->send(message, length);
	}
	for (__u32 i = 0; i < all->count; i++)
		if (all->known[i].seen)
			all->known[kept++] = all->known[i];
	all->count = kept;
}

int refusals_save(const struct refusals *all, const char *path)
{
	size_t size = all->count * sizeof(all->known[0]);
	char scratch[4096];
	int fd, error = 0;

	if ((size_t)snprintf(scratch, sizeof(scratch), "%s.new", path) >= sizeof(scratch))
		return -ENAMETOOLONG;
	fd = open(scratch, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return -errno;
	if (write(fd, MAGIC, sizeof(MAGIC)) != (ssize_t)sizeof(MAGIC) || write(fd, all->known, size) != (ssize_t)size)
		error = -EIO;
	close(fd);
	if (!error && rename(scratch, path) != 0)
		error = -errno;
	return error;
}

int refusals_load(struct refusals *all, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	char magic[sizeof(MAGIC)];
	ssize_t size;

	all->count = 0;
	if (fd < 0)
		return errno == ENOENT ? 0 : -errno;
	if (read(fd, magic, sizeof(magic)) == (ssize_t)sizeof(magic) && memcmp(magic, MAGIC, sizeof(magic)) == 0) {
		size = read(fd, all->known, sizeof(all->known));
		if (size > 0 && size % sizeof(all->known[0]) == 0)
			all->count = size / sizeof(all->known[0]);
	}
	close(fd);
	return 0;
}
