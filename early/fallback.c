/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "fallback.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "firmware.h"
#include "util.h"

#define LOADER "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
#define OURS "f18cf8a6-3f0e-45a1-9e53-d2c3b1b8e0a7"
#define CHAIN "FreeholdRefused-" OURS
#define PREFIX "freehold-"
#define READING_SECONDS 5
/* When nothing is left to try, somebody should find the reason on the screen. */
#define LAST_READING_SECONDS 60
/* A file of efivarfs begins with the variable's attributes: kept, for boot services, for the running system. */
#define ATTRIBUTES 4
#define STORED 7
#define MAX_ENTRIES (32 << 10)

bool fallback_next_id(const unsigned char *data, size_t length, size_t *offset, char id[FALLBACK_MAX_ID])
{
	while (*offset + 2 <= length) {
		size_t used = 0;
		bool good = true;

		for (; *offset + 2 <= length; *offset += 2) {
			unsigned unit = data[*offset] | (unsigned)data[*offset + 1] << 8;
			if (unit == 0)
				break;
			good = good && unit > ' ' && unit < 0x7f && used < FALLBACK_MAX_ID - 1;
			if (good)
				id[used++] = (char)tolower((int)unit);
		}
		if (*offset + 2 > length)
			return false; /* the last one does not end */
		*offset += 2;
		id[used] = '\0';
		if (good && used)
			return true;
	}
	return false;
}

/* The length of an id up to its boot counter, and where what follows the counter begins. */
static size_t before_counter(const char *id, const char **rest)
{
	const char *plus = strrchr(id, '+');
	const char *at = plus ? plus + 1 : id;

	*rest = id + strlen(id);
	if (!plus)
		return strlen(id);
	size_t left = strspn(at, "0123456789");
	at += left;
	if (left && *at == '-' && isdigit((unsigned char)at[1]))
		at += 1 + strspn(at + 1, "0123456789");
	if (!left || strncmp(at, ".efi", 4) != 0)
		return strlen(id);
	*rest = at;
	return (size_t)(plus - id);
}

bool fallback_same_id(const char *a, const char *b)
{
	const char *rest_a, *rest_b;
	char name_a[FALLBACK_MAX_ID], name_b[FALLBACK_MAX_ID];
	int length_a = (int)before_counter(a, &rest_a), length_b = (int)before_counter(b, &rest_b);

	snprintf(name_a, sizeof(name_a), "%.*s%s", length_a, a, rest_a);
	snprintf(name_b, sizeof(name_b), "%.*s%s", length_b, b, rest_b);
	return strcmp(name_a, name_b) == 0;
}

void fallback_pattern(const char *id, char *pattern)
{
	const char *rest;
	size_t length = before_counter(id, &rest);

	sprintf(pattern, "%.*s%s%s", (int)length, id, *rest ? "+*" : "", rest);
}

/* The next line of a chain, without its end; its id ends at the TAB. */
static bool next_line(const char *chain, size_t length, size_t *offset, const char **line, size_t *size)
{
	if (*offset >= length)
		return false;
	const char *end = memchr(chain + *offset, '\n', length - *offset);
	*line = chain + *offset;
	*size = end ? (size_t)(end - *line) : length - *offset;
	*offset += *size + 1;
	return true;
}

static bool line_is(const char *line, size_t size, const char *id)
{
	char own[FALLBACK_MAX_ID];
	const char *tab = memchr(line, '\t', size);
	size_t length = tab ? (size_t)(tab - line) : size;

	if (length == 0 || length >= sizeof(own) || memchr(line, '\0', length))
		return false;
	memcpy(own, line, length);
	own[length] = '\0';
	return fallback_same_id(own, id);
}

bool fallback_in_chain(const char *chain, size_t length, const char *id)
{
	const char *line;
	size_t size, offset = 0;

	while (next_line(chain, length, &offset, &line, &size))
		if (line_is(line, size, id))
			return true;
	return false;
}

enum fallback fallback_choose(const unsigned char *entries, size_t length, const char *selected, const char *chain,
			      size_t chain_length, char chosen[FALLBACK_MAX_ID])
{
	char id[FALLBACK_MAX_ID];
	enum fallback found = FALLBACK_NONE;
	size_t offset = 0;

	while (fallback_next_id(entries, length, &offset, id)) {
		bool rescue = strncmp(id, FALLBACK_RESCUE, strlen(FALLBACK_RESCUE)) == 0;
		if (strncmp(id, PREFIX, strlen(PREFIX)) != 0 || (rescue && found == FALLBACK_RESCUED) ||
		    fallback_same_id(id, selected) || fallback_in_chain(chain, chain_length, id))
			continue;
		strcpy(chosen, id);
		if (!rescue)
			return FALLBACK_OTHER;
		found = FALLBACK_RESCUED;
	}
	return found;
}

static size_t copy_printable(char *out, const char *text, size_t most)
{
	size_t length = strnlen(text, most);

	for (size_t i = 0; i < length; i++)
		out[i] = text[i] >= ' ' && text[i] < 0x7f ? text[i] : '?';
	return length;
}

size_t fallback_append(const char *chain, size_t length, const char *id, const char *reason, char *out)
{
	char last[FALLBACK_MAX_ID + FALLBACK_MAX_REASON + 2];
	const char *line;
	size_t size, offset = 0, used = 0;
	size_t more = copy_printable(last, id, FALLBACK_MAX_ID - 1);

	last[more++] = '\t';
	more += copy_printable(last + more, reason, FALLBACK_MAX_REASON);
	last[more++] = '\n';
	if (length > FALLBACK_MAX_CHAIN)
		length = 0;
	/* The oldest go first. */
	while (length > 0 && length - offset + more + 1 > FALLBACK_MAX_CHAIN && next_line(chain, length, &offset, &line, &size))
		;
	while (next_line(chain, length, &offset, &line, &size))
		if (size && !line_is(line, size, id)) {
			memcpy(out + used, line, size);
			used += size;
			out[used++] = '\n';
		}
	memcpy(out + used, last, more);
	return used + more;
}

/* A variable's value without its attributes; 0 when there is none, or it is larger than fits. */
static size_t read_value(const char *directory, const char *name, void *buffer, size_t size)
{
	static unsigned char raw[ATTRIBUTES + MAX_ENTRIES];
	char path[256];

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	ssize_t length = read_file(path, raw, sizeof(raw));
	if (length < ATTRIBUTES || (size_t)length - ATTRIBUTES > size)
		return 0;
	memcpy(buffer, raw + ATTRIBUTES, (size_t)length - ATTRIBUTES);
	return (size_t)length - ATTRIBUTES;
}

/* efivarfs protects variables that it does not know from being removed by accident. */
static void allow_change(const char *path)
{
	int flags, fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return;
	if (ioctl(fd, FS_IOC_GETFLAGS, &flags) == 0 && flags & FS_IMMUTABLE_FL) {
		flags &= ~FS_IMMUTABLE_FL;
		if (ioctl(fd, FS_IOC_SETFLAGS, &flags) < 0) {
			/* Then writing fails, and says so. */
		}
	}
	close(fd);
}

/* Store a variable; the firmware takes attributes and value in one write. */
static int write_value(const char *directory, const char *name, const void *value, size_t length)
{
	static unsigned char raw[ATTRIBUTES + FALLBACK_MAX_CHAIN];
	char path[256];

	if (length > sizeof(raw) - ATTRIBUTES)
		return -EFBIG;
	memcpy(raw, (unsigned char[]){ STORED, 0, 0, 0 }, ATTRIBUTES);
	memcpy(raw + ATTRIBUTES, value, length);
	snprintf(path, sizeof(path), "%s/%s", directory, name);
	allow_change(path);
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
	if (fd < 0)
		return -errno;
	ssize_t put = write(fd, raw, ATTRIBUTES + length);
	int error = put < 0 ? -errno : put != (ssize_t)(ATTRIBUTES + length) ? -EIO : 0;
	close(fd);
	return error;
}

static void remove_value(const char *directory, const char *name)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	allow_change(path);
	if (unlink(path) < 0 && errno != ENOENT)
		say("the firmware does not forget %s: %s", name, strerror(errno));
}

static int ask_for(const char *directory, const char *id)
{
	unsigned char value[2 * (FALLBACK_MAX_ID + 2)];
	char pattern[FALLBACK_MAX_ID + 2];

	fallback_pattern(id, pattern);
	size_t length = strlen(pattern) + 1;
	for (size_t i = 0; i < length; i++) {
		value[2 * i] = (unsigned char)pattern[i];
		value[2 * i + 1] = 0;
	}
	return write_value(directory, "LoaderEntryOneShot-" LOADER, value, 2 * length);
}

unsigned fallback_refuse_in(const char *directory, const char *reason)
{
	static unsigned char entries[MAX_ENTRIES];
	static char chain[FALLBACK_MAX_CHAIN], longer[FALLBACK_MAX_CHAIN];
	unsigned char name[2 * FALLBACK_MAX_ID];
	char selected[FALLBACK_MAX_ID], chosen[FALLBACK_MAX_ID];
	size_t offset = 0, length = read_value(directory, "LoaderEntrySelected-" LOADER, name, sizeof(name));

	if (!fallback_next_id(name, length, &offset, selected))
		return READING_SECONDS; /* no boot loader that could be asked */
	size_t known = read_value(directory, CHAIN, chain, sizeof(chain));
	length = fallback_append(chain, known, selected, reason, longer);
	int error = write_value(directory, CHAIN, longer, length);
	size_t listed = read_value(directory, "LoaderEntries-" LOADER, entries, sizeof(entries));
	enum fallback next = fallback_choose(entries, listed, selected, longer, length, chosen);
	if (next == FALLBACK_NONE) {
		/* The next start begins anew: somebody may have repaired something. */
		remove_value(directory, CHAIN);
		say("every deployment of this machine was refused, and no rescue entry is left");
		return LAST_READING_SECONDS;
	}
	/* Without the chain two refused entries would choose each other for ever; so the loader's own order stays. */
	if (!error)
		error = ask_for(directory, chosen);
	if (error)
		say("the boot loader cannot be asked for another deployment: %s", strerror(-error));
	else
		say("next is %s%s", chosen, next == FALLBACK_RESCUED ? ", since every deployment was refused" : "");
	return READING_SECONDS;
}

void fallback_done_in(const char *variables, const char *directory)
{
	static char chain[FALLBACK_MAX_CHAIN];
	size_t length = read_value(variables, CHAIN, chain, sizeof(chain));

	if (!length)
		return;
	say("another deployment was refused before this one; `freehold status` says why");
	if (write_file_durably(directory, "last-refusal", chain, length))
		say("the reason of the refusal cannot be kept");
	remove_value(variables, CHAIN);
}

unsigned fallback_refuse(const char *reason)
{
	return fallback_refuse_in(FIRMWARE_VARIABLES, reason);
}

void fallback_done(const char *directory)
{
	fallback_done_in(FIRMWARE_VARIABLES, directory);
}
