/* SPDX-License-Identifier: Apache-2.0 */
#include "tpm.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#define NO_SESSIONS 0x8001
#define SESSIONS 0x8002
#define OWNER 0x40000001u
#define PASSWORD 0x40000009u
#define SHA256 0x000b
#define NV_UNDEFINE 0x122
#define NV_DEFINE 0x12a
#define NV_WRITE 0x137
#define NV_WRITE_LOCK 0x138
#define NV_READ 0x14e
#define NV_READ_PUBLIC 0x169
#define PCR_EXTEND 0x182
#define DIGEST_SIZE 32
#define HEADER 10
/* Attributes that the TPM keeps by itself: locked for writing, for reading, written. */
#define STATE_BITS (1u << 11 | 1u << 28 | 1u << 29)
#define MAX_MESSAGE 256
/* A TPM may be busy testing itself. */
#define TIMEOUT_MS 10000

/* A command being written; `used` beyond the buffer means that it did not fit. */
struct command {
	unsigned char bytes[MAX_MESSAGE];
	size_t used;
};

static void put(struct command *command, uint32_t value, size_t width)
{
	for (size_t i = width; i-- > 0; command->used++)
		if (command->used < sizeof(command->bytes))
			command->bytes[command->used] = (unsigned char)(value >> (8 * i));
}

static void put_bytes(struct command *command, const unsigned char *data, size_t length)
{
	for (size_t i = 0; i < length; i++)
		put(command, data[i], 1);
}

static uint32_t get(const unsigned char *at, size_t width)
{
	uint32_t value = 0;

	for (size_t i = 0; i < width; i++)
		value = value << 8 | at[i];
	return value;
}

static void begin(struct command *command, uint32_t code, uint32_t first, uint32_t second)
{
	command->used = 0;
	put(command, code == NV_READ_PUBLIC ? NO_SESSIONS : SESSIONS, 2);
	put(command, 0, 4);
	put(command, code, 4);
	put(command, first, 4);
	if (second) /* no index is 0 */
		put(command, second, 4);
	if (code == NV_READ_PUBLIC)
		return;
	/* The authorization: an empty password. */
	put(command, 9, 4);
	put(command, PASSWORD, 4);
	put(command, 0, 2);
	put(command, 0, 1);
	put(command, 0, 2);
}

/*
 * Send it. 0: `answer` has what follows the header (and, with sessions, the length of parameters), *length bytes.
 * A response says its own length, which has to be the one that came.
 */
static int transact(const struct tpm *tpm, struct command *command, unsigned char *answer, size_t *length)
{
	unsigned char message[MAX_MESSAGE];
	size_t total = command->used;

	if (total > sizeof(command->bytes))
		return -EMSGSIZE;
	command->used = 2;
	put(command, (uint32_t)total, 4);
	ssize_t got = tpm->exchange(tpm->argument, command->bytes, total, message, sizeof(message));
	if (got < 0)
		return (int)got;
	if (got < HEADER || (size_t)got > sizeof(message) || get(message + 2, 4) != (uint32_t)got)
		return -EBADMSG;
	uint32_t tag = get(message, 2), code = get(message + 6, 4);
	if (tag != SESSIONS && tag != NO_SESSIONS)
		return -EBADMSG;
	if (code > 0xffff)
		return -EBADMSG;
	/* Format one (bit 7) says in bits 6 and 8 to 11 which handle, session or parameter it means. */
	if (code)
		return (int)(code & 0x80 ? code & ~0xf40u : code);
	size_t begin = HEADER, end = (size_t)got;
	if (tag == SESSIONS) {
		if (end < HEADER + 4 || get(message + HEADER, 4) > end - HEADER - 4)
			return -EBADMSG;
		begin = HEADER + 4;
		end = begin + get(message + HEADER, 4);
	}
	*length = end - begin;
	memcpy(answer, message + begin, *length);
	return 0;
}

int tpm_nv_check(const struct tpm *tpm, uint32_t index, size_t size)
{
	unsigned char answer[MAX_MESSAGE];
	struct command command;
	size_t length;

	begin(&command, NV_READ_PUBLIC, index, 0);
	int error = transact(tpm, &command, answer, &length);
	if (error)
		return error;
	/* Sized public area: index, name's algorithm, attributes, policy (sized), size of the data. */
	if (length < 16 || get(answer, 2) > length - 2)
		return -EBADMSG;
	if (get(answer, 2) != 14 || get(answer + 2, 4) != index || get(answer + 6, 2) != SHA256 ||
	    (get(answer + 8, 4) & ~STATE_BITS) != TPM_INDEX_ATTRIBUTES || get(answer + 12, 2) != 0 ||
	    get(answer + 14, 2) != size)
		return -EEXIST;
	return 0;
}

int tpm_nv_define(const struct tpm *tpm, uint32_t index, size_t size)
{
	unsigned char answer[MAX_MESSAGE];
	struct command command;
	size_t length;

	begin(&command, NV_DEFINE, OWNER, 0);
	put(&command, 0, 2);
	put(&command, 14, 2);
	put(&command, index, 4);
	put(&command, SHA256, 2);
	put(&command, TPM_INDEX_ATTRIBUTES, 4);
	put(&command, 0, 2);
	put(&command, (uint32_t)size, 2);
	return transact(tpm, &command, answer, &length);
}

int tpm_nv_undefine(const struct tpm *tpm, uint32_t index)
{
	unsigned char answer[MAX_MESSAGE];
	struct command command;
	size_t length;

	begin(&command, NV_UNDEFINE, OWNER, index);
	return transact(tpm, &command, answer, &length);
}

int tpm_nv_read(const struct tpm *tpm, uint32_t index, unsigned char *data, size_t size)
{
	unsigned char answer[MAX_MESSAGE];
	struct command command;
	size_t length;

	begin(&command, NV_READ, index, index);
	put(&command, (uint32_t)size, 2);
	put(&command, 0, 2);
	int error = transact(tpm, &command, answer, &length);
	if (error)
		return error;
	if (length != size + 2 || get(answer, 2) != size)
		return -EBADMSG;
	memcpy(data, answer + 2, size);
	return 0;
}

int tpm_nv_write(const struct tpm *tpm, uint32_t index, const unsigned char *data, size_t size)
{
	unsigned char answer[MAX_MESSAGE];
	struct command command;
	size_t length;

	begin(&command, NV_WRITE, index, index);
	put(&command, (uint32_t)size, 2);
	put_bytes(&command, data, size);
	put(&command, 0, 2);
	return transact(tpm, &command, answer, &length);
}

int tpm_nv_lock(const struct tpm *tpm, uint32_t index)
{
	unsigned char answer[MAX_MESSAGE];
	struct command command;
	size_t length;

	begin(&command, NV_WRITE_LOCK, index, index);
	return transact(tpm, &command, answer, &length);
}

int tpm_pcr_extend(const struct tpm *tpm, uint32_t pcr, const unsigned char digest[32])
{
	unsigned char answer[MAX_MESSAGE];
	struct command command;
	size_t length;

	/* Handles of PCRs are their numbers. Then one digest, of SHA-256. */
	begin(&command, PCR_EXTEND, pcr, 0);
	put(&command, 1, 4);
	put(&command, SHA256, 2);
	put_bytes(&command, digest, DIGEST_SIZE);
	return transact(tpm, &command, answer, &length);
}

int tpm_open(const char *path)
{
	int fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

ssize_t tpm_device_exchange(void *argument, const unsigned char *command, size_t length, unsigned char *answer, size_t size)
{
	struct pollfd ready = { .fd = *(const int *)argument, .events = POLLIN };

	ssize_t done = write(ready.fd, command, length);
	if (done != (ssize_t)length)
		return done < 0 ? -errno : -EIO;
	int count = poll(&ready, 1, TIMEOUT_MS);
	if (count <= 0)
		return count < 0 ? -errno : -ETIMEDOUT;
	done = read(ready.fd, answer, size);
	return done < 0 ? -errno : done;
}
