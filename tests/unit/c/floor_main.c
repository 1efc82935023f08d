/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Test program for the rollback floor and the TPM commands below it. The first argument says what:
 *   judge    lines of numbers from standard input (see read_facts): raised serial effective refused risen set
 *   text     records (32-bit little-endian length, bytes): the file's numbers, or "refused"
 *   answers  records: what each reader makes of these bytes as a TPM's answer
 *   settle OWNER INBOX SOCKET STANDING LOCK FLOOR SERIAL RELEASE DIGEST MACHINE   FLOOR may be "-", SOCKET too
 *   takes FLOOR RELEASE: whether a boot of that release takes an intent with that floor; "-" for none
 *   number TEXT, write SOCKET RAISED SERIAL MACHINE, undefine SOCKET, define SOCKET SIZE, extend SOCKET PCR HEX,
 *   garbage SOCKET: write what nobody writes,
 *   show SOCKET: what the index holds; memory: records, what each is as the index's bytes
 * What would be said on the console comes in brackets.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "floor.h"
#include "memory.h"
#include "util.h"
#include "say.h"

/* swtpm's server socket takes raw commands and gives raw answers. */
static ssize_t socket_exchange(void *argument, const unsigned char *command, size_t length, unsigned char *answer, size_t size)
{
	int fd = *(int *)argument;

	if (write(fd, command, length) != (ssize_t)length)
		return -EIO;
	ssize_t got = read(fd, answer, size);
	return got < 0 ? -errno : got;
}

static int connect_to(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		exit(3);
	return fd;
}

struct canned {
	const unsigned char *bytes;
	size_t length;
};

static ssize_t canned_exchange(void *argument, const unsigned char *command, size_t length, unsigned char *answer, size_t size)
{
	const struct canned *canned = argument;

	(void)command;
	(void)length;
	memcpy(answer, canned->bytes, canned->length < size ? canned->length : size);
	return (ssize_t)(canned->length < size ? canned->length : size);
}

static void print_answers(const unsigned char *bytes, size_t length)
{
	struct canned canned = { bytes, length };
	struct tpm tpm = { canned_exchange, &canned };
	unsigned char data[MEMORY_NV_SIZE], digest[SHA256_SIZE] = { 0 };

	printf("%d ", tpm_nv_check(&tpm, MEMORY_INDEX, sizeof(data)));
	int error = tpm_nv_read(&tpm, MEMORY_INDEX, data, sizeof(data));
	printf("%d %d %d", error, tpm_nv_write(&tpm, MEMORY_INDEX, data, error ? 0 : sizeof(data)),
	       tpm_pcr_extend(&tpm, 15, digest));
	for (size_t i = 0; !error && i < sizeof(data); i++)
		printf("%s%02x", i ? "" : " ", data[i]);
	printf("\n");
}

static bool read_facts(struct floor_facts *facts, struct intent *intent)
{
	unsigned long long n[14];

	for (size_t i = 0; i < 14; i++)
		if (scanf("%llu", &n[i]) != 1)
			return false;
	*intent = (struct intent){ .lock = (enum intent_lock)n[1], .has_floor = n[2] != 0, .floor = n[3], .serial = n[4] };
	*facts = (struct floor_facts){
		.standing = (enum standing)n[0], .intent = intent, .release = n[5], .confirmed = n[6] != 0,
		.file = { .present = n[7] != 0, .raised = n[8], .serial = n[9] },
		.tpm = { .present = n[10] != 0, .foreign = n[11] != 0, .raised = n[12], .serial = n[13] },
	};
	return true;
}

static void print_floor(const struct floor *floor)
{
	printf("%" PRIu64 " %" PRIu64 " %" PRIu64 " %d %d %d", floor->raised, floor->serial, floor->effective, floor->refused,
	       floor->risen, floor->set);
}

static void settle(char **argument)
{
	struct owner owner = { .standing = (enum standing)atoi(argument[3]) };
	struct floor floor;
	int fd = strcmp(argument[2], "-") == 0 ? -1 : connect_to(argument[2]);
	struct tpm tpm = { socket_exchange, &fd };
	struct memory memory;

	owner.intent.lock = (enum intent_lock)atoi(argument[4]);
	owner.intent.has_floor = strcmp(argument[5], "-") != 0;
	owner.intent.floor = floor_number(argument[5]);
	owner.intent.serial = floor_number(argument[6]);
	memset(owner.text, (int)owner.intent.serial, sizeof(owner.text));
	/* As owner_read() does it. */
	memory_read(fd < 0 ? NULL : &tpm, &memory);
	struct floor_places places = { argument[0], argument[1], fd < 0 ? NULL : &tpm, &memory };
	const char *known = memory_machine(&memory);
	memcpy(owner.machine, known ? known : argument[9], MACHINE_HEX);
	owner.forgotten = memory_fault(&memory, owner.standing, &owner.intent, owner.text);
	if (owner.forgotten) {
		printf("[%s]\n", owner.forgotten);
		owner.standing = STANDING_INVALID;
	}
	enum floor_tpm kept = floor_settle_at(&places, &owner, floor_number(argument[7]), argument[8], &floor);
	print_floor(&floor);
	printf(" %s\n", floor_tpm_name(kept));
}

static void records(void (*use)(const unsigned char *, size_t))
{
	unsigned char head[4];

	while (fread(head, 1, 4, stdin) == 4) {
		size_t length = head[0] | (size_t)head[1] << 8 | (size_t)head[2] << 16 | (size_t)head[3] << 24;
		/* Exactly as large as the input, so that the sanitizer sees one byte too many. */
		unsigned char *data = malloc(length);
		if (fread(data, 1, length, stdin) != length)
			exit(2);
		use(data, length);
		free(data);
	}
}

static void print_text(const unsigned char *bytes, size_t length)
{
	struct floor_copy copy;

	if (floor_read_text((const char *)bytes, length, &copy))
		printf("%" PRIu64 " %" PRIu64 "\n", copy.raised, copy.serial);
	else
		printf("refused\n");
}

static void print_remembered(const struct memory *memory)
{
	printf("%d %s %" PRIu64 " %" PRIu64 " %" PRIu64 " %s ", memory->state, memory_lock_name(memory->lock), memory->serial,
	       memory->floor.raised, memory->floor.serial, memory->machine[0] ? memory->machine : "-");
	for (size_t i = 0; i < MEMORY_TEXT; i++)
		printf("%02x", memory->text[i]);
	printf("\n");
}

static void print_memory(const unsigned char *bytes, size_t length)
{
	struct memory memory;

	if (length != MEMORY_NV_SIZE)
		exit(2);
	memory_unpack(bytes, &memory);
	print_remembered(&memory);
}

static int nv(int argc, char **argv)
{
	int fd = connect_to(argv[2]);
	struct tpm tpm = { socket_exchange, &fd };
	unsigned char data[MEMORY_NV_SIZE], digest[SHA256_SIZE] = { 0 };
	struct memory memory = { .lock = REMEMBERED_LOCKED, .serial = 1 };

	if (strcmp(argv[1], "undefine") == 0)
		return printf("%d\n", tpm_nv_undefine(&tpm, MEMORY_INDEX)) < 0;
	if (strcmp(argv[1], "define") == 0 && argc == 4)
		return printf("%d\n", tpm_nv_define(&tpm, MEMORY_INDEX, (size_t)atoi(argv[3]))) < 0;
	if (strcmp(argv[1], "show") == 0) {
		memory_read(&tpm, &memory);
		print_remembered(&memory);
		return 0;
	}
	if (strcmp(argv[1], "garbage") == 0) {
		memset(data, 0x77, sizeof(data));
		return printf("%d\n", tpm_nv_write(&tpm, MEMORY_INDEX, data, sizeof(data))) < 0;
	}
	if (strcmp(argv[1], "extend") == 0 && argc == 5) {
		for (size_t i = 0; i < sizeof(digest); i++)
			sscanf(argv[4] + 2 * i, "%2hhx", &digest[i]);
		return printf("%d\n", tpm_pcr_extend(&tpm, (uint32_t)atoi(argv[3]), digest)) < 0;
	}
	if (argc != 6)
		return 2;
	memory.floor.raised = floor_number(argv[3]);
	memory.floor.serial = floor_number(argv[4]);
	memcpy(memory.machine, argv[5], MACHINE_HEX);
	memset(memory.text, 1, sizeof(memory.text)); /* as settle has it for intent 1 */
	memory_pack(&memory, data);
	return printf("%d\n", tpm_nv_write(&tpm, MEMORY_INDEX, data, sizeof(data))) < 0;
}

int main(int argc, char **argv)
{
	struct floor_facts facts;
	struct intent intent;
	struct floor floor;
	const char *what = argc > 1 ? argv[1] : "";

	if (strcmp(what, "judge") == 0)
		while (read_facts(&facts, &intent)) {
			floor_judge(&facts, &floor);
			print_floor(&floor);
			printf("\n");
		}
	else if (strcmp(what, "text") == 0)
		records(print_text);
	else if (strcmp(what, "answers") == 0)
		records(print_answers);
	else if (strcmp(what, "memory") == 0)
		records(print_memory);
	else if (strcmp(what, "settle") == 0 && argc == 12)
		settle(argv + 2);
	else if (strcmp(what, "takes") == 0 && argc == 4) {
		intent = (struct intent){ .has_floor = strcmp(argv[2], "-") != 0, .floor = floor_number(argv[2]) };
		printf("%d\n", floor_may_take(&intent, floor_number(argv[3])));
	} else if (strcmp(what, "number") == 0 && argc == 3)
		printf("%" PRIu64 "\n", floor_number(argv[2]));
	else
		return argc > 2 ? nv(argc, argv) : 2;
	return 0;
}
