/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Test program for owner_read() with files below the working directory (DISK is "."), for what a boot measures, and for
 * the rule of the TPM's memory. The first argument says what:
 *   read RELEASE LOCK SERIAL MACHINE TEXT   what the TPM remembers first; "-" for MACHINE: none
 *   rule      lines "LOCK SERIAL SAME STANDING INTENT-SERIAL": whether it may stand, whether one of it may be taken
 *   measured STANDING LOCK SERIAL RESCUE IMAGE MACHINE KEY
 * What would be said on the console comes in brackets. A signature of 0xaa counts, any other does not: the kernel's keys
 * are not for unit tests. What fs-verity would measure of a file is the SHA-256 of its first 4096 bytes, unless it begins with
 * "unverified": its file system may have none.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "floor.h"
#include "keyring.h"
#include "measure.h"
#include "memory.h"
#include "owner.h"
#include "util.h"
#include "verity.h"
#include "say.h"

int __wrap_keyring_verify(const char *dir, const char *role, const unsigned char *data, size_t data_length,
			  const unsigned char *signature, size_t signature_length);
void __wrap_die(const char *format, ...);

void __wrap_die(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	printf("died: ");
	vprintf(format, arguments);
	printf("\n");
	va_end(arguments);
	exit(0);
}

int __wrap_keyring_verify(const char *dir, const char *role, const unsigned char *data, size_t data_length,
			  const unsigned char *signature, size_t signature_length)
{
	(void)dir;
	(void)role;
	(void)data;
	(void)data_length;
	return signature_length > 0 && signature[0] == 0xaa;
}

int __wrap_verity_measure(int fd, char hex[DIGEST_HEX + 1]);
int __wrap_verity_measure(int fd, char hex[DIGEST_HEX + 1])
{
	unsigned char data[4096], digest[SHA256_SIZE];
	ssize_t length = pread(fd, data, sizeof(data), 0);

	if (length < 0)
		return -errno;
	if (length >= 10 && memcmp(data, "unverified", 10) == 0)
		return -ENODATA;
	sha256(data, (size_t)length, digest);
	for (size_t i = 0; i < SHA256_SIZE; i++)
		sprintf(hex + 2 * i, "%02x", digest[i]);
	return 0;
}

static enum remembered remembered(const char *name)
{
	for (int lock = REMEMBERED_NOTHING; lock <= REMEMBERED_LOCKED; lock++)
		if (strcmp(memory_lock_name((enum remembered)lock), name) == 0)
			return (enum remembered)lock;
	exit(2);
}

static void read_owner(char **argument)
{
	static const char *const standing[] = { "absent", "valid", "invalid" };
	struct memory memory = { .state = MEMORY_READ, .lock = remembered(argument[1]), .serial = floor_number(argument[2]) };
	struct owner owner;

	if (strcmp(argument[3], "-") != 0)
		memcpy(memory.machine, argument[3], MACHINE_HEX);
	for (size_t i = 0; i < MEMORY_TEXT && argument[4][2 * i]; i++)
		sscanf(argument[4] + 2 * i, "%2hhx", &memory.text[i]);
	owner_read(&owner, &memory, floor_number(argument[0]));
	struct measured measured = { "0", 0, &owner, false, false };
	char text[MEASURE_MAX];
	measure_write(&measured, text);
	const char *digest = strstr(text, "signed ") + strlen("signed ");
	printf("%s %s %" PRIu64 " %s %d %.*s\n", owner.machine, standing[owner.standing],
	       owner.standing == STANDING_VALID ? owner.intent.serial : 0, intent_lock_name(measure_lock(&owner)),
	       owner.forgotten != NULL, (int)strcspn(digest, "\n"), digest);
}

static void rule(void)
{
	int lock, same, standing;
	unsigned long long serial, own;

	while (scanf("%d %llu %d %d %llu", &lock, &serial, &same, &standing, &own) == 5) {
		struct memory memory = { .state = MEMORY_READ, .lock = (enum remembered)lock, .serial = serial };
		struct intent intent = { .serial = own };
		unsigned char digest[SHA256_SIZE] = { 0 };
		digest[MEMORY_TEXT - 1] = same ? 0 : 1;
		printf("%d %d\n", memory_fault(&memory, (enum standing)standing, &intent, digest) == NULL,
		       memory_allows(&memory, &intent, digest));
	}
}

static void print_measured(char **argument)
{
	struct owner owner = { .standing = (enum standing)atoi(argument[0]) };
	struct measured measured = { argument[4], 5, &owner, argument[3][0] == '1', argument[6][0] == '1' };
	char text[MEASURE_MAX];

	owner.intent.lock = (enum intent_lock)atoi(argument[1]);
	owner.intent.serial = floor_number(argument[2]);
	strncpy(owner.machine, argument[5], MACHINE_HEX);
	memset(owner.signed_text, 0xcd, sizeof(owner.signed_text));
	fwrite(text, 1, measure_write(&measured, text), stdout);
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (strcmp(what, "read") == 0 && argc == 7)
		read_owner(argv + 2);
	else if (strcmp(what, "rule") == 0)
		rule();
	else if (strcmp(what, "measured") == 0 && argc == 9)
		print_measured(argv + 2);
	else
		return 2;
	return 0;
}
