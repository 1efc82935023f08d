/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Target: what the early step reads of firmware and disk before it believes anything: signature lists (db, dbx), certificates'
 * signed parts, the keychain's list of revoked ones, flags, GPT. The first byte says which.
 */
#define _GNU_SOURCE
#include "fuzz.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "firmware.h"
#include "gpt.h"
#include "revoked.h"
#include "sha256.h"
#include "signatures.h"

const char *const fuzz_words[] = {
	"freehold-revoked 1\n", "EFI PART", "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef lost\n",
	"\xa1\x59\xc0\xa5\xe4\x94\xa7\x4a\x87\xb5\xab\x15\x5c\x2b\xf0\x72",
	"\x92\xa4\xd2\x3b\xc0\x96\x79\x40\xb4\x20\xfc\xf9\x8e\xf1\x03\xed", "\x30\x82", "\x30\x81\x80", "\x30\x03\x30\x01\x01",
	NULL,
};
const size_t fuzz_most = 16384;

static struct revoked revoked;

struct walk {
	const unsigned char *begin, *end;
	size_t entries, taken;
};

static int look(const struct signature *entry, void *argument)
{
	struct walk *walk = argument;

	fuzz_must(entry->type >= walk->begin && entry->type + GUID_SIZE <= walk->end && entry->owner > entry->type &&
			  entry->owner + GUID_SIZE == entry->data && entry->data + entry->length <= walk->end && entry->length,
		  "an entry lies in its list");
	walk->entries++;
	return 0;
}

static void walk_lists(const unsigned char *data, size_t length)
{
	struct walk walk = { data, data + length, 0, 0 }, twice = walk;
	int error = signatures_walk(data, length, NULL, NULL);

	if (error)
		return;
	fuzz_must(signatures_walk(data, length, look, &walk) == 0 && signatures_walk(data, length, look, &twice) == 0,
		  "lists that were found good are good");
	fuzz_must(walk.entries == twice.entries && (walk.entries > 0) == (length > 0), "the same, read again");
}

static bool take(const unsigned char *certificate, size_t length, void *argument)
{
	struct walk *walk = argument;
	unsigned char digest[SHA256_SIZE];
	const unsigned char *part;
	size_t part_length;

	if (revoked_has(&revoked, certificate, length))
		return false;
	fuzz_must(certificate_signed_part(certificate, length, &part, &part_length), "what is taken is a certificate");
	for (int whole = 0; whole < 2; whole++) {
		const struct digests *list = whole ? &revoked.whole : &revoked.signed_part;
		sha256(whole ? certificate : part, whole ? length : part_length, digest);
		for (size_t i = 0; i < list->count; i++)
			fuzz_must(memcmp(list->digest[i], digest, SHA256_SIZE) != 0, "what is revoked is not taken");
	}
	walk->taken++;
	return true;
}

/* Two lists of one input: what is revoked, then what is believed. */
static void offer(const unsigned char *data, size_t length)
{
	size_t first = length ? data[0] * length / 256 : 0, unknown = 0;
	struct firmware firmware = { .secure_boot = true };
	struct walk walk = { data, data + length, 0, 0 };
	int taken = 0, skipped = 0;

	if (!length || revoked_add_lists(&revoked, data + 1, first > 1 ? first - 1 : 0, &unknown))
		return;
	if (first < 1)
		first = 1;
	if (signatures_walk(data + first, length - first, NULL, NULL) == 0)
		firmware.db = (struct lists){ data + first, length - first };
	firmware_offer(&firmware, take, &walk, &taken, &skipped);
	fuzz_must(taken >= 0 && (size_t)taken == walk.taken && skipped >= 0, "they are counted");
}

static void signed_part(const unsigned char *data, size_t length)
{
	const unsigned char *part;
	size_t part_length;

	if (!certificate_signed_part(data, length, &part, &part_length))
		return;
	fuzz_must(part > data && part_length && part + part_length <= data + length, "the signed part lies in the certificate");
	fuzz_must(!certificate_signed_part(data, length - 1, &part, &part_length), "a certificate does not end early");
}

static void revoked_text(const unsigned char *data, size_t length)
{
	static const char heading[] = "freehold-revoked 1\n";
	const unsigned char *at = data + sizeof(heading) - 1;
	char hex[2 * SHA256_SIZE + 1];

	if (revoked_add_text(&revoked, data, length))
		return;
	for (size_t i = 0; i < revoked.whole.count; i++) {
		for (int j = 0; j < SHA256_SIZE; j++)
			sprintf(hex + 2 * j, "%02x", revoked.whole.digest[i][j]);
		fuzz_must(memcmp(at, hex, 2 * SHA256_SIZE) == 0, "every line is in the list, as it stands there");
		at = (const unsigned char *)memchr(at, '\n', (size_t)(data + length - at)) + 1;
	}
	fuzz_must(at == data + length, "no line is left out");
}

static void partition_table(const unsigned char *data, size_t length)
{
	static const char uuid[] = "00112233-4455-6677-8899-aabbccddeeff";
	static const unsigned char guid[] = { 0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66,
					      0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff };

	if (gpt_has(data, length, uuid))
		fuzz_must(memmem(data, length, guid, sizeof(guid)) && memmem(data, length, "EFI PART", 8),
			  "a partition that is found is in the table");
	char *text = malloc(length + 1);
	memcpy(text, data, length);
	text[length] = '\0';
	gpt_has(guid, sizeof(guid), text);
	free(text);
}

void fuzz_one(const unsigned char *data, size_t length)
{
	if (!length)
		return;
	memset(&revoked.whole.count, 0, sizeof(revoked.whole.count));
	memset(&revoked.signed_part.count, 0, sizeof(revoked.signed_part.count));
	switch (data[0] % 6) {
	case 0:
		walk_lists(data + 1, length - 1);
		break;
	case 1:
		offer(data + 1, length - 1);
		break;
	case 2:
		signed_part(data + 1, length - 1);
		break;
	case 3:
		revoked_text(data + 1, length - 1);
		break;
	case 4:
		partition_table(data + 1, length - 1);
		break;
	default:
		if (firmware_flag(data + 1, length - 1))
			fuzz_must(length == 6 && !(data[1] & 1) && data[5] == 1, "a flag is on when firmware says so, and nobody else");
	}
}
