/* SPDX-License-Identifier: Apache-2.0 */
#include "verity.h"

#include <errno.h>
#include <linux/fsverity.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

bool is_digest(const char *text)
{
	return strlen(text) == DIGEST_HEX && strspn(text, "0123456789abcdef") == DIGEST_HEX;
}

int verity_measure(int fd, char hex[DIGEST_HEX + 1])
{
	unsigned char buffer[sizeof(struct fsverity_digest) + 64];
	struct fsverity_digest *digest = (struct fsverity_digest *)buffer;

	memset(buffer, 0, sizeof(buffer));
	digest->digest_size = 64;
	if (ioctl(fd, FS_IOC_MEASURE_VERITY, digest) < 0)
		return -errno;
	if (digest->digest_algorithm != FS_VERITY_HASH_ALG_SHA256 || digest->digest_size != DIGEST_HEX / 2)
		return -EBADMSG;
	for (int i = 0; i < DIGEST_HEX / 2; i++)
		sprintf(hex + 2 * i, "%02x", digest->digest[i]);
	return 0;
}
