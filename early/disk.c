/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "disk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fsverity.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <time.h>
#include <unistd.h>

#include "modules.h"
#include "util.h"

#define PARTITION_LINE "PARTNAME=freehold-root\n"
#define WAIT_STEP_MS 20
#define WAIT_STEPS (30 * 1000 / WAIT_STEP_MS)

bool is_digest(const char *text)
{
	return strlen(text) == DIGEST_HEX && strspn(text, "0123456789abcdef") == DIGEST_HEX;
}

static bool find_partition(char *device, size_t size)
{
	DIR *blocks = opendir("/sys/class/block");
	bool found = false;

	if (!blocks)
		return false;
	for (struct dirent *entry; !found && (entry = readdir(blocks));) {
		char path[512], text[1024];
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/sys/class/block/%s/uevent", entry->d_name);
		ssize_t length = read_file(path, text, sizeof(text) - 1);
		if (length <= 0)
			continue;
		text[length] = '\0';
		if (strstr(text, PARTITION_LINE)) {
			snprintf(device, size, "/dev/%s", entry->d_name);
			found = true;
		}
	}
	closedir(blocks);
	return found;
}

void disk_mount(void)
{
	char device[300];

	modules_load_present();
	for (int step = 0;; step++) {
		if (find_partition(device, sizeof(device)))
			break;
		if (step == WAIT_STEPS)
			die("no partition is named freehold-root: is the disk attached?");
		modules_load_present();
		nanosleep(&(struct timespec){ .tv_nsec = WAIT_STEP_MS * 1000000L }, NULL);
	}
	int error = mount_at(device, DISK, "ext4", MS_NOATIME | MS_NODEV | MS_NOSUID, NULL);
	if (error)
		die("the root partition %s cannot be mounted: %s", device, strerror(-error));
}

static int measured(int fd, char hex[DIGEST_HEX + 1])
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

int mount_verified_image(const char *directory, const char *digest, const char *target)
{
	char path[512], source[64], hex[DIGEST_HEX + 1];

	if (!is_digest(digest))
		return -EINVAL;
	snprintf(path, sizeof(path), "%s/%s", directory, digest);
	int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	int error = measured(fd, hex);
	if (!error && strcmp(hex, digest) != 0)
		error = -EBADMSG;
	if (!error) {
		/* Mount the very file that was measured, whatever its name refers to by now. */
		snprintf(source, sizeof(source), "/proc/self/fd/%d", fd);
		error = mount_at(source, target, "erofs", MS_RDONLY | MS_NODEV, NULL);
	}
	close(fd);
	return error;
}

int mount_sealed_tree(void)
{
	return mount_at("freehold", NEWROOT, "overlay", MS_RDONLY | MS_NODEV,
			"metacopy=on,redirect_dir=on,verity=require,lowerdir=" IMAGE "::" DISK "/repo/objects");
}
