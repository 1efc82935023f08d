/* SPDX-License-Identifier: Apache-2.0 */
#include "intent.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#define HEAD "freehold-intent 1\n"
#define MAX_VALUE 1024
#define HEX_DIGITS "0123456789abcdef"
#define BASE64_DIGITS "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
/* 32 bytes leave two bits of the 43rd digit unused; they have to be zero, so that a value has one spelling. */
#define BASE64_LAST "AEIMQUYcgkosw048"

static const char *const lock_names[] = { "open", "audit", "locked" };
static const char *const tier_names[] = { "privileged", "all-code" };
static const char *const scripts_names[] = { "s1", "s2" };
static const char *const strict_names[] = { "no", "yes" };

enum key { MACHINE, SERIAL, LOCK, TIER, SCRIPTS, CONFIG, SINCE, EMERGENCY_SSH, FLOOR, REQUESTS, STRICT, KEYS };
static const char *const key_names[KEYS] = { "machine", "serial",	 "lock",  "tier",     "scripts", "config",
					     "since",	"emergency-ssh", "floor", "requests", "strict" };
#define REQUIRED (1u << MACHINE | 1u << SERIAL | 1u << LOCK | 1u << SINCE)

/* A piece of the input; not terminated. */
struct span {
	const char *start;
	size_t length;
};

static bool equals(struct span text, const char *word)
{
	return text.length == strlen(word) && memcmp(text.start, word, text.length) == 0;
}

/* The index of `text` in `names`, or -1. */
static int find(struct span text, const char *const names[], int count)
{
	for (int i = 0; i < count; i++)
		if (equals(text, names[i]))
			return i;
	return -1;
}

static bool consists_of(struct span text, const char *digits)
{
	size_t count = strlen(digits);

	for (size_t i = 0; i < text.length; i++)
		if (!memchr(digits, text.start[i], count))
			return false;
	return true;
}

/* Copy a value of exactly `length` characters out of `digits`. */
static bool copy(struct span value, char *out, size_t length, const char *digits)
{
	if (value.length != length || !consists_of(value, digits))
		return false;
	memcpy(out, value.start, length);
	out[length] = '\0';
	return true;
}

static bool number(struct span value, uint64_t least, uint64_t *out)
{
	uint64_t sum = 0;

	/* 2^53 has 16 digits, so the sum cannot overflow 64 bits. */
	if (value.length < 1 || value.length > 16 || !consists_of(value, "0123456789"))
		return false;
	if (value.start[0] == '0' && value.length > 1)
		return false;
	for (size_t i = 0; i < value.length; i++)
		sum = sum * 10 + (uint64_t)(value.start[i] - '0');
	*out = sum;
	return sum >= least && sum <= INTENT_MAX_NUMBER;
}

static bool base64_digest(struct span value, char *out)
{
	if (value.length != 44 || value.start[43] != '=' || !memchr(BASE64_LAST, value.start[42], strlen(BASE64_LAST)))
		return false;
	if (!copy((struct span){ value.start, 43 }, out, 43, BASE64_DIGITS))
		return false;
	out[43] = '=';
	out[44] = '\0';
	return true;
}

static bool assign(enum key key, struct span value, struct intent *out)
{
	int index;

	switch (key) {
	case MACHINE:
		return copy(value, out->machine, 32, HEX_DIGITS);
	case SERIAL:
		return number(value, 1, &out->serial);
	case LOCK:
		index = find(value, lock_names, 3);
		out->lock = index < 0 ? INTENT_LOCKED : (enum intent_lock)index;
		return index >= 0;
	case TIER:
		index = find(value, tier_names, 2);
		out->tier = index < 0 ? INTENT_ALL_CODE : (enum intent_tier)index;
		return index >= 0;
	case SCRIPTS:
		index = find(value, scripts_names, 2);
		out->scripts = index < 0 ? INTENT_S2 : (enum intent_scripts)index;
		return index >= 0;
	case CONFIG:
		return copy(value, out->config, 64, HEX_DIGITS);
	case SINCE:
		return number(value, 0, &out->since);
	case EMERGENCY_SSH:
		return base64_digest(value, out->emergency_ssh);
	case FLOOR:
		out->has_floor = true;
		return number(value, 0, &out->floor);
	case REQUESTS:
		return copy(value, out->requests, 64, HEX_DIGITS);
	case STRICT:
		index = find(value, strict_names, 2);
		out->strict = index != 0;
		return index >= 0;
	case KEYS:
		break;
	}
	return false;
}

/* One line without its newline: known key, space, value; `seen` has a bit for each key. */
static bool parse_line(struct span line, unsigned *seen, struct intent *out)
{
	const char *space = memchr(line.start, ' ', line.length);

	if (!space)
		return false;
	struct span name = { line.start, (size_t)(space - line.start) };
	struct span value = { space + 1, line.length - name.length - 1 };
	int key = find(name, key_names, KEYS);
	if (key < 0 || *seen & 1u << key || value.length < 1 || value.length > MAX_VALUE)
		return false;
	*seen |= 1u << key;
	/* No value's own grammar has blanks or bytes outside printable ASCII: assign() refuses them. */
	return assign((enum key)key, value, out);
}

static bool parse(const unsigned char *data, size_t length, struct intent *out)
{
	const char *at = (const char *)data, *end = at + length;
	unsigned seen = 0;

	if (length > INTENT_MAX_BYTES || length < strlen(HEAD) || memcmp(data, HEAD, strlen(HEAD)) != 0)
		return false;
	for (at += strlen(HEAD); at < end;) {
		const char *newline = memchr(at, '\n', (size_t)(end - at));
		if (!newline || !parse_line((struct span){ at, (size_t)(newline - at) }, &seen, out))
			return false;
		at = newline + 1;
	}
	return (seen & REQUIRED) == REQUIRED;
}

int intent_parse(const unsigned char *data, size_t length, struct intent *out)
{
	memset(out, 0, sizeof(*out));
	if (parse(data, length, out))
		return 0;
	/* Half a parse must not be mistaken for an intent; zero would mean "open", so say the strictest. */
	memset(out, 0, sizeof(*out));
	out->lock = INTENT_LOCKED;
	return -EINVAL;
}

const char *intent_lock_name(enum intent_lock lock)
{
	return lock_names[lock];
}

const char *intent_tier_name(enum intent_tier tier)
{
	return tier_names[tier];
}

const char *intent_scripts_name(enum intent_scripts scripts)
{
	return scripts_names[scripts];
}
