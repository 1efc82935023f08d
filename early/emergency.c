/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "emergency.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "disk.h"
#include "owner.h"
#include "sha256.h"
#include "util.h"

#define MAX_LINE 4096
#define BASE64_DIGITS "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

/* What freehold.lock.emergency takes; there the whole key is looked at, here that it is the one that was signed for. */
static const char *const TYPES[] = {
	"ssh-ed25519",	       "ecdsa-sha2-nistp256",		     "ecdsa-sha2-nistp384",
	"ecdsa-sha2-nistp521", "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com",
	"ssh-rsa",
};

/* The bytes of base64 text, at most length / 4 * 3 of them, or -1. Unused bits may be anything: the digest decides. */
static ssize_t decode(const char *text, size_t length, unsigned char *out)
{
	unsigned sum = 0;
	ssize_t size = 0;

	if (length < 4 || length % 4)
		return -1;
	size_t padding = text[length - 1] != '=' ? 0 : text[length - 2] != '=' ? 1 : 2;
	for (size_t i = 0; i < length - padding; i++) {
		const char *digit = text[i] ? strchr(BASE64_DIGITS, text[i]) : NULL;

		if (!digit)
			return -1;
		sum = sum << 6 | (unsigned)(digit - BASE64_DIGITS);
		if (i % 4)
			out[size++] = (unsigned char)(sum >> (6 - i % 4 * 2));
	}
	return size;
}

static void encode(const unsigned char digest[SHA256_SIZE], char out[EMERGENCY_DIGEST + 1])
{
	unsigned bits = 0, count = 0;
	size_t length = 0;

	for (size_t i = 0; i < SHA256_SIZE; i++) {
		bits = bits << 8 | digest[i];
		for (count += 8; count >= 6; count -= 6)
			out[length++] = BASE64_DIGITS[bits >> (count - 6) & 63];
	}
	out[length++] = BASE64_DIGITS[bits << (6 - count) & 63];
	out[length++] = '=';
	out[length] = '\0';
}

bool emergency_matches(const char *line, size_t length, const char *digest)
{
	unsigned char blob[MAX_LINE], sum[SHA256_SIZE];
	char text[EMERGENCY_DIGEST + 1];
	const char *space = memchr(line, ' ', length);
	bool known = false;

	if (!space || length > MAX_LINE || line[length - 1] != '\n')
		return false;
	size_t type = (size_t)(space - line);
	for (size_t i = 0; i < sizeof(TYPES) / sizeof(TYPES[0]); i++)
		known = known || (strlen(TYPES[i]) == type && memcmp(TYPES[i], line, type) == 0);
	ssize_t size = known ? decode(space + 1, length - type - 2, blob) : -1;
	/* The blob begins with its type, and that with its length. */
	if (size < (ssize_t)(4 + type) || blob[0] || blob[1] || blob[2] || blob[3] != type || memcmp(blob + 4, line, type) != 0)
		return false;
	sha256(blob, (size_t)size, sum);
	encode(sum, text);
	return strcmp(text, digest) == 0;
}

bool emergency_settle(const char *digest)
{
	char path[sizeof(EMERGENCY_DIRECTORY) + 2 * SHA256_SIZE + 8], line[MAX_LINE], keys[MAX_LINE + 128];
	unsigned char sum[SHA256_SIZE + 4]; /* 33 bytes are decoded from 44 digits */
	size_t at = 0;
	int error;

	/* Who was root while open could have left a link, to where the guard does not look. */
	if (digest[0] && (error = real_directory(EMERGENCY_DIRECTORY, 0700))) {
		say("emergency ssh: " EMERGENCY_DIRECTORY ": %s", strerror(-error));
		digest = "";
	}
	if (unlink(EMERGENCY_KEY) < 0 && errno != ENOENT && errno != ENOTDIR)
		say("emergency ssh: " EMERGENCY_KEY ": %s", strerror(errno));
	if (!digest[0])
		return false;
	/* A second name of what is about to be written would be a way in. */
	unlink(EMERGENCY_DIRECTORY "/.tmp-key");
	if (decode(digest, EMERGENCY_DIGEST, sum) != SHA256_SIZE)
		return false;
	at = (size_t)sprintf(path, "%s/", EMERGENCY_DIRECTORY);
	for (size_t i = 0; i < SHA256_SIZE; i++)
		at += (size_t)sprintf(path + at, "%02x", sum[i]);
	strcpy(path + at, ".pub");
	ssize_t length = read_file(path, line, sizeof(line));
	if (length < 0) {
		say("emergency ssh is off: the key SHA256:%.43s that the owner signed for is not here (%s)", digest,
		    strerror((int)-length));
		return false;
	}
	if (!emergency_matches(line, (size_t)length, digest)) {
		say("emergency ssh is off: the stored key is not SHA256:%.43s, which the owner signed for", digest);
		return false;
	}
	int size = snprintf(keys, sizeof(keys), "restrict,pty %.*s SHA256:%.43s\n", (int)length - 1, line, digest);
	error = write_file_durably(EMERGENCY_DIRECTORY, "key", keys, (size_t)size);
	if (error)
		say("emergency ssh is off: %s", strerror(-error));
	return error == 0;
}
