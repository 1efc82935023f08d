/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "measure.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "sha256.h"
#include "util.h"

#define TPM "/dev/tpm0"
#define TRIES 3

/* TPM 2.0 library specification, part 3, TPM2_PCR_Extend: PCR 11 authorized by an empty password, one digest. */
#define COMMAND_SIZE 65
#define RESPONSE_HEAD 10
static const unsigned char command_head[] = {
	0x80, 0x02,		/* with sessions */
	0, 0, 0, COMMAND_SIZE,
	0, 0, 0x01, 0x82,	/* TPM2_PCR_Extend */
	0, 0, 0, 11,		/* the register */
	0, 0, 0, 9,		/* size of what authorizes */
	0x40, 0, 0, 0x09,	/* a password, */
	0, 0, 0, 0, 0,		/* no nonce, no attributes, empty */
	0, 0, 0, 1,		/* digests */
	0x00, 0x0b,		/* SHA-256 */
};
_Static_assert(sizeof(command_head) + SHA256_SIZE == COMMAND_SIZE, "size of the command");

int measure_word(int fd, const char *word)
{
	unsigned char command[COMMAND_SIZE], response[256];

	memcpy(command, command_head, sizeof(command_head));
	sha256((const unsigned char *)word, strlen(word), command + sizeof(command_head));
	ssize_t done = write(fd, command, sizeof(command));
	if (done != (ssize_t)sizeof(command))
		return done < 0 ? -errno : -EIO;
	done = read(fd, response, sizeof(response));
	if (done < 0)
		return -errno;
	/* Bytes 6 to 9 are the response code: 0 is success. */
	if (done < RESPONSE_HEAD || response[6] || response[7] || response[8] || response[9])
		return -EIO;
	return 0;
}

void measure_intent(bool device_key)
{
	const char *word = device_key ? MEASURE_LOCKED : MEASURE_NOT_LOCKED;
	int error = 0;

	for (int i = 0; i < TRIES; i++) {
		int fd = open(TPM, O_RDWR | O_CLOEXEC);
		if (fd < 0 && errno == ENOENT)
			return;
		error = fd < 0 ? -errno : measure_word(fd, word);
		if (fd >= 0)
			close(fd);
		if (!error)
			return;
	}
	say("the TPM was not told whether this boot is locked (%s): the device key may not be had", strerror(-error));
}
