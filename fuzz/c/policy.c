/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Target: the policy parser, early/intent.c, and the reader of /proc/keys beside it. What is accepted, written in the
 * canonical form and parsed again, is the same; every value has its own grammar; what is refused says "locked" and no more.
 */
#define _GNU_SOURCE
#include "fuzz.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "intent.h"
#include "keyring.h"

const char *const fuzz_words[] = {
	"freehold-intent 1\n", "machine ", "serial ", "lock ", "tier ", "config ", "since ", "emergency-ssh ", "floor ",
	"requests ", "strict ", "scripts ", "s1\n", "s2\n", "open\n", "audit\n", "locked\n", "privileged\n", "all-code\n", "yes\n", "no\n",
	"0123456789abcdef0123456789abcdef", "9007199254740992", "9007199254740993", "18446744073709551616", " keyring ", ".fs-verity: ", "I------",
	NULL,
};
const size_t fuzz_most = 4096;

static bool made_of(const char *text, size_t length, const char *of)
{
	return strlen(text) == length && strspn(text, of) == length;
}

static size_t write_intent(const struct intent *one, char *out, size_t size)
{
	size_t used = (size_t)snprintf(out, size, "freehold-intent 1\nmachine %s\nserial %" PRIu64 "\nlock %s\n", one->machine,
				       one->serial, intent_lock_name(one->lock));
	if (one->tier != INTENT_PRIVILEGED)
		used += (size_t)snprintf(out + used, size - used, "tier %s\n", intent_tier_name(one->tier));
	if (one->config[0])
		used += (size_t)snprintf(out + used, size - used, "config %s\n", one->config);
	used += (size_t)snprintf(out + used, size - used, "since %" PRIu64 "\n", one->since);
	if (one->emergency_ssh[0])
		used += (size_t)snprintf(out + used, size - used, "emergency-ssh %s\n", one->emergency_ssh);
	if (one->has_floor)
		used += (size_t)snprintf(out + used, size - used, "floor %" PRIu64 "\n", one->floor);
	if (one->requests[0])
		used += (size_t)snprintf(out + used, size - used, "requests %s\n", one->requests);
	if (one->strict)
		used += (size_t)snprintf(out + used, size - used, "strict yes\n");
	return used;
}

static void check_accepted(const struct intent *one)
{
	static const char hex[] = "0123456789abcdef";
	char text[2048];
	struct intent again;

	fuzz_must(made_of(one->machine, 32, hex), "a machine is 32 hex digits");
	fuzz_must(!one->config[0] || made_of(one->config, 64, hex), "a configuration is a digest");
	fuzz_must(!one->requests[0] || made_of(one->requests, 64, hex), "a list of requests is a digest");
	fuzz_must(!one->emergency_ssh[0] || (strlen(one->emergency_ssh) == 44 && !strpbrk(one->emergency_ssh, " \n\t:")),
		  "a key's digest is base64");
	fuzz_must(one->serial >= 1 && one->serial <= INTENT_MAX_NUMBER && one->since <= INTENT_MAX_NUMBER &&
			  one->floor <= INTENT_MAX_NUMBER,
		  "numbers are in their range");
	size_t length = write_intent(one, text, sizeof(text));
	fuzz_must(intent_parse((const unsigned char *)text, length, &again) == 0, "the canonical form is accepted");
	fuzz_must(memcmp(one, &again, sizeof(again)) == 0, "the canonical form says the same");
	fuzz_must(intent_parse((const unsigned char *)text, length - 1, &again) != 0, "no line may be cut");
}

/* Every line is a key's, and no key has two. */
static void check_lines(const unsigned char *data, size_t length)
{
	static const char *const keys[] = { "\nmachine ", "\nserial ", "\nlock ", "\ntier ", "\nconfig ", "\nsince ",
					    "\nemergency-ssh ", "\nfloor ", "\nrequests ", "\nstrict " };
	unsigned lines = 0, found = 0;

	for (size_t i = 0; i < length; i++)
		lines += data[i] == '\n';
	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
		found += memmem(data, length, keys[i], strlen(keys[i])) != NULL;
	fuzz_must(lines == found + 1, "every line is a key's, and no key has two");
}

void fuzz_one(const unsigned char *data, size_t length)
{
	const struct intent nothing = { .lock = INTENT_LOCKED };
	struct intent one;

	if (intent_parse(data, length, &one) == 0)
		check_accepted(&one), check_lines(data, length);
	else
		fuzz_must(memcmp(&one, &nothing, sizeof(one)) == 0, "what is refused says locked, and no more");
	char *line = malloc(length + 1);
	memcpy(line, data, length);
	line[length] = '\0';
	int32_t ring = keyring_parse_line(line, ".fs-verity");
	fuzz_must(ring >= 0, "a ring's number is positive");
	fuzz_must(!ring || (strstr(line, " keyring ") && strstr(line, ".fs-verity:")), "the ring is the one that is looked for");
	free(line);
}
