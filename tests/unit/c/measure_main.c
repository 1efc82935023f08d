/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Test program: measures the word of its second argument through the Unix socket of its first, where a
 * software TPM listens; prints what measure_word returned. With "-" the TPM is standard input: its answer is read from there.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "measure.h"
#include "util.h"

void say(const char *format, ...)
{
	(void)format;
}

int write_file_durably(const char *directory, const char *name, const void *data, size_t size)
{
	(void)directory;
	(void)name;
	(void)data;
	return (int)size;
}

static ssize_t exchange(void *argument, const unsigned char *command, size_t length, unsigned char *answer, size_t size)
{
	int fd = *(int *)argument;

	if (write(fd, command, length) != (ssize_t)length)
		return -EIO;
	ssize_t got = read(fd, answer, size);
	return got < 0 ? -errno : got;
}

int main(int argc, char **argv)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int pair[2];
	char answer[512];
	int fd;
	const struct tpm tpm = { exchange, &fd };

	if (argc != 3)
		return 2;
	if (strcmp(argv[1], "-") == 0) {
		size_t length = fread(answer, 1, sizeof(answer), stdin);
		if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) < 0 || send(pair[1], answer, length, 0) < 0)
			return 2;
		fd = pair[0];
		printf("%d\n", measure_word(&tpm, argv[2]));
		return 0;
	}
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", argv[1]);
	if (fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0)
		return 2;
	printf("%d\n", measure_word(&tpm, argv[2]));
	return 0;
}
