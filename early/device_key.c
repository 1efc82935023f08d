/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "device_key.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "disk.h"
#include "owner.h"
#include "util.h"

#define DEVICE_KEY OWNER "/secret/device.key"

void device_key_forget(void)
{
	static const unsigned char zero[4096];
	struct stat status;
	int fd = open(DEVICE_KEY, O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

	if (fd < 0 && errno == ENOENT)
		return;
	if (fd >= 0) {
		off_t left = fstat(fd, &status) == 0 && S_ISREG(status.st_mode) ? status.st_size : 0;
		/* No file of ours is larger; one that somebody made larger is not worth the time of the boot. */
		for (int i = 0; i < 16 && left > 0; i++) {
			ssize_t done = write(fd, zero, left < (off_t)sizeof(zero) ? (size_t)left : sizeof(zero));
			if (done <= 0)
				break;
			left -= done;
		}
		fsync(fd);
		close(fd);
	}
	if (unlink(DEVICE_KEY) < 0) {
		say("the device key cannot be removed: %s", strerror(errno));
		return;
	}
	unlink(OWNER "/device.facts");
	fd = open(OWNER "/secret", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd >= 0) {
		fsync(fd);
		close(fd);
	}
	say("the device key is destroyed: this boot is not one that it is for");
}
