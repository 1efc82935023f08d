/* SPDX-License-Identifier: Apache-2.0 */
#include "revoked.h"

#include <errno.h>
#include <string.h>

#include "signatures.h"

#define HEADING "freehold-revoked 1\n"
#define HEX (2 * SHA256_SIZE)
#define MAX_REASON 200

/* Certificates by the SHA-384 and SHA-512 of their signed part. */
static const unsigned char GUID_X509_SHA384[GUID_SIZE] = { 0x6e, 0x87, 0x76, 0x70, 0xc2, 0x80, 0xe6, 0x4e,
							   0xaa, 0xd2, 0x28, 0xb3, 0x49, 0xa6, 0x86, 0x5b };
static const unsigned char GUID_X509_SHA512[GUID_SIZE] = { 0x63, 0xbf, 0x6d, 0x44, 0x02, 0x25, 0xda, 0x4c,
							   0xbc, 0xfa, 0x24, 0x65, 0xd2, 0xb0, 0xfe, 0x9d };

static int add(struct digests *digests, const unsigned char digest[SHA256_SIZE])
{
	if (digests->count == MAX_REVOKED)
		return -E2BIG;
	memcpy(digests->digest[digests->count++], digest, SHA256_SIZE);
	return 0;
}

static bool has(const struct digests *digests, const void *data, size_t length)
{
	unsigned char digest[SHA256_SIZE];

	sha256(data, length, digest);
	for (size_t i = 0; i < digests->count; i++)
		if (memcmp(digests->digest[i], digest, SHA256_SIZE) == 0)
			return true;
	return false;
}

static int hex_digit(unsigned char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* One line without its end: 64 hex digits, a space, a reason in printable ASCII. */
static bool parse_line(const unsigned char *line, size_t length, unsigned char digest[SHA256_SIZE])
{
	if (length < HEX + 2 || length > HEX + 1 + MAX_REASON || line[HEX] != ' ')
		return false;
	for (size_t i = 0; i < SHA256_SIZE; i++) {
		int high = hex_digit(line[2 * i]), low = hex_digit(line[2 * i + 1]);
		if (high < 0 || low < 0)
			return false;
		digest[i] = (unsigned char)(high << 4 | low);
	}
	for (size_t i = HEX + 1; i < length; i++)
		if (line[i] < 0x20 || line[i] > 0x7e)
			return false;
	return true;
}

int revoked_add_text(struct revoked *revoked, const unsigned char *text, size_t length)
{
	unsigned char digest[SHA256_SIZE];
	size_t heading = strlen(HEADING);

	if (length < heading || length > MAX_REVOKED_TEXT || memcmp(text, HEADING, heading) != 0)
		return -EBADMSG;
	for (size_t at = heading; at < length;) {
		const unsigned char *end = memchr(text + at, '\n', length - at);
		if (!end || !parse_line(text + at, (size_t)(end - text) - at, digest))
			return -EBADMSG;
		int error = add(&revoked->whole, digest);
		if (error)
			return error;
		at = (size_t)(end - text) + 1;
	}
	return 0;
}

struct adding {
	struct revoked *revoked;
	size_t unknown;
};

static int add_signature(const struct signature *entry, void *argument)
{
	struct adding *adding = argument;
	unsigned char digest[SHA256_SIZE];

	if (memcmp(entry->type, GUID_X509, GUID_SIZE) == 0) {
		sha256(entry->data, entry->length, digest);
		return add(&adding->revoked->whole, digest);
	}
	/* Behind the hash stands from when on. What was signed before that counts as little here: nothing has a date. */
	if (memcmp(entry->type, GUID_X509_SHA256, GUID_SIZE) == 0 && entry->length >= SHA256_SIZE)
		return add(&adding->revoked->signed_part, entry->data);
	if (memcmp(entry->type, GUID_X509_SHA384, GUID_SIZE) == 0 || memcmp(entry->type, GUID_X509_SHA512, GUID_SIZE) == 0)
		adding->unknown++;
	return 0;
}

int revoked_add_lists(struct revoked *revoked, const unsigned char *lists, size_t length, size_t *unknown)
{
	struct adding adding = { .revoked = revoked };
	int error = signatures_walk(lists, length, NULL, NULL);

	if (!error)
		error = signatures_walk(lists, length, add_signature, &adding);
	*unknown += adding.unknown;
	return error;
}

bool revoked_has(const struct revoked *revoked, const unsigned char *certificate, size_t length)
{
	const unsigned char *part;
	size_t part_length;

	return !certificate_signed_part(certificate, length, &part, &part_length) ||
	       has(&revoked->whole, certificate, length) || has(&revoked->signed_part, part, part_length);
}
