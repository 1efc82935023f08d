/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Target: what the reporter makes of the guard's records (names are bytes of anybody's choice) and of its own state file. Every
 * message is lines of known fields in printable ASCII, each once: no name can add a field, or end one.
 */
#define _GNU_SOURCE
#include "fuzz.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "refusals.h"

const char *const fuzz_words[] = { "freehold-told-1", "\nMESSAGE=", "(systemd)", "/", "{path}", "%s%n", "\\", "bash", NULL };
const size_t fuzz_most = 4096;

static bool check_message(const char *message, size_t length)
{
	static const char *const fields[] = { "MESSAGE=", "PRIORITY=4\n", "SYSLOG_IDENTIFIER=freehold\n", "MESSAGE_ID=",
					      "FREEHOLD_RULE=", "FREEHOLD_PROGRAM=", "FREEHOLD_PATH=", "FREEHOLD_COUNT=",
					      "FREEHOLD_MODE=", "FREEHOLD_UID=", "FREEHOLD_PID=" };
	const char *end = message + length;
	unsigned seen = 0;

	fuzz_must(length < REFUSALS_MESSAGE && length && message[length - 1] == '\n', "a message fits, and ends");
	for (size_t i = 0; i < length; i++)
		fuzz_must(message[i] == '\n' || (message[i] >= ' ' && message[i] < 0x7f), "a message is printable");
	for (const char *at = message; at < end; at = memchr(at, '\n', (size_t)(end - at)) + 1) {
		unsigned field = 0;
		while (field < sizeof(fields) / sizeof(fields[0]) && strncmp(at, fields[field], strlen(fields[field])) != 0)
			field++;
		fuzz_must(field < sizeof(fields) / sizeof(fields[0]), "no name adds a field");
		fuzz_must(!(seen & 1u << field), "a field is there once");
		seen |= 1u << field;
	}
	fuzz_must(seen & 1, "every message has a sentence");
	return true;
}

static const char *state_path(void)
{
	static char path[64];

	if (!path[0]) {
		strcpy(path, "/dev/shm/freehold-fuzz-XXXXXX");
		int fd = mkstemp(path);
		fuzz_must(fd >= 0, "there is /dev/shm");
		close(fd);
	}
	return path;
}

static void remove_state(void)
{
	unlink(state_path());
}

static void load_state(struct refusals *all, const unsigned char *data, size_t length)
{
	static bool registered;
	int fd = open(state_path(), O_WRONLY | O_TRUNC | O_CREAT | O_CLOEXEC, 0600);

	if (!registered)
		atexit(remove_state);
	registered = true;
	fuzz_must(write(fd, data, length) == (ssize_t)length && close(fd) == 0, "the state file can be written");
	fuzz_must(refusals_load(all, state_path()) == 0 && all->count <= REFUSALS_LIMIT, "any state file can be read");
}

/* A mode (state file or not, last look or not), the length of the state file, that, then records. */
void fuzz_one(const unsigned char *data, size_t length)
{
	struct refusals *all = calloc(1, sizeof(*all));
	struct guard_denial_key key;
	struct guard_denial denial;
	size_t at = 0;

	all->send = check_message;
	if (length > 3 && data[0] & 1) {
		size_t state = data[1] | (size_t)data[2] << 8;
		at = 3;
		if (state > length - at)
			state = length - at;
		load_state(all, data + at, state);
		at += state;
	}
	refusals_begin(all);
	while (at < length) {
		size_t some = length - at < sizeof(key) + sizeof(denial) ? length - at : sizeof(key) + sizeof(denial);
		unsigned char bytes[sizeof(key) + sizeof(denial)] = { 0 };
		memcpy(bytes, data + at, some);
		memcpy(&key, bytes, sizeof(key));
		memcpy(&denial, bytes + sizeof(key), sizeof(denial));
		key.rule %= RULE_COUNT + 2;
		refusals_show(all, &key, &denial, at, data[0] & 2);
		at += some;
	}
	refusals_end(all);
	free(all);
}
