/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Test program: reads records (32-bit little-endian length, bytes) from standard input and prints what the early
 * step's readers of the firmware's formats make of each. The argument says which reader:
 *   walk     signature lists: TYPE:OWNER:SHA256-OF-DATA of each entry
 *   part     a certificate: sha256 of its signed part
 *   revoked  the keychain's list: the hashes
 *   flag     a boolean variable: 0 or 1
 *   offer    lengths of db, dbx and MokListRT (32 bits each), these three, the keychain's list: sha256 of each
 *            certificate taken, "+", how many were skipped
 *   read     the path of a directory with variables: "on" or "off", the fault in parentheses, sha256 of each certificate
 *            taken; what would be said on the console comes in brackets
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "firmware.h"
#include "revoked.h"
#include "sha256.h"
#include "signatures.h"

static struct revoked revoked;

static void print_hex(const unsigned char *bytes, size_t length)
{
	for (size_t i = 0; i < length; i++)
		printf("%02x", bytes[i]);
}

static void print_sha256(const unsigned char *data, size_t length)
{
	unsigned char digest[SHA256_SIZE];

	sha256(data, length, digest);
	print_hex(digest, sizeof(digest));
}

static int print_entry(const struct signature *entry, void *argument)
{
	(void)argument;
	print_hex(entry->type, GUID_SIZE);
	printf(":");
	print_hex(entry->owner, GUID_SIZE);
	printf(":");
	print_sha256(entry->data, entry->length);
	printf(" ");
	return 0;
}

static bool take(const unsigned char *certificate, size_t length, void *argument)
{
	(void)argument;
	if (revoked_has(&revoked, certificate, length))
		return false;
	print_sha256(certificate, length);
	printf(" ");
	return true;
}

static size_t number(const unsigned char *at)
{
	return at[0] | (size_t)at[1] << 8 | (size_t)at[2] << 16 | (size_t)at[3] << 24;
}

/* A copy that ends where its allocation ends, so that the sanitizer sees one byte too many. */
static unsigned char *exactly(const unsigned char *data, size_t length)
{
	unsigned char *copy = malloc(length);

	memcpy(copy, data, length);
	return copy;
}

/* In the place of util.c's, which writes to the kernel's log (-Wl,--wrap=say). */
void __wrap_say(const char *format, ...);
void __wrap_say(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	printf("[");
	vprintf(format, arguments);
	printf("] ");
	va_end(arguments);
}

static void read_directory(const unsigned char *path, size_t length)
{
	struct firmware firmware;
	char directory[256];
	int taken = 0, skipped = 0;

	snprintf(directory, sizeof(directory), "%.*s", (int)length, (const char *)path);
	firmware_read_from(directory, &firmware, &revoked);
	printf("%s (%s) ", firmware.secure_boot ? "on" : "off", firmware.fault ? firmware.fault : "");
	firmware_offer(&firmware, take, NULL, &taken, &skipped);
}

static void offer(const unsigned char *data, size_t length)
{
	struct firmware firmware = { .secure_boot = true };
	size_t sizes[4], unknown = 0, at = 12;
	unsigned char *parts[4];
	int taken = 0, skipped = 0;

	for (int i = 0; i < 3; i++)
		sizes[i] = number(data + 4 * i);
	sizes[3] = length - 12 - sizes[0] - sizes[1] - sizes[2];
	for (int i = 0; i < 4; i++) {
		parts[i] = exactly(data + at, sizes[i]);
		at += sizes[i];
	}
	firmware.db = (struct lists){ parts[0], sizes[0] };
	firmware.mok = (struct lists){ parts[2], sizes[2] };
	if (revoked_add_lists(&revoked, parts[1], sizes[1], &unknown) ||
	    (sizes[3] && revoked_add_text(&revoked, parts[3], sizes[3])))
		printf("refused");
	else
		firmware_offer(&firmware, take, NULL, &taken, &skipped), printf("= %d + %d ? %zu", taken, skipped, unknown);
	for (int i = 0; i < 4; i++)
		free(parts[i]);
}

static void answer(const char *reader, const unsigned char *data, size_t length)
{
	const unsigned char *part;
	size_t part_length;

	if (strcmp(reader, "walk") == 0) {
		if (signatures_walk(data, length, NULL, NULL))
			printf("refused");
		else
			signatures_walk(data, length, print_entry, NULL);
	} else if (strcmp(reader, "part") == 0) {
		if (certificate_signed_part(data, length, &part, &part_length))
			print_sha256(part, part_length);
		else
			printf("refused");
	} else if (strcmp(reader, "revoked") == 0) {
		if (revoked_add_text(&revoked, data, length))
			printf("refused");
		else
			for (size_t i = 0; i < revoked.whole.count; i++) {
				print_hex(revoked.whole.digest[i], SHA256_SIZE);
				printf(" ");
			}
	} else if (strcmp(reader, "flag") == 0) {
		printf("%d", firmware_flag(data, length));
	} else if (strcmp(reader, "read") == 0) {
		read_directory(data, length);
	} else {
		offer(data, length);
	}
	printf("\n");
}

int main(int argc, char **argv)
{
	unsigned char head[4];

	while (argc == 2 && fread(head, 1, 4, stdin) == 4) {
		size_t length = number(head);
		unsigned char *data = malloc(length);
		if (fread(data, 1, length, stdin) != length)
			return 2;
		memset(&revoked, 0, sizeof(revoked));
		answer(argv[1], data, length);
		free(data);
	}
	return argc == 2 ? 0 : 2;
}
