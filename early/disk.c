/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "disk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <time.h>
#include <unistd.h>

#include "gpt.h"
#include "modules.h"
#include "util.h"

#define ROOT_LINE "PARTNAME=freehold-root\n"
#define ESP_LINE "PARTNAME=freehold-esp\n"
#define ESP_LINK "/run/freehold/esp"
#define EFIVARS "/sys/firmware/efi/efivars"
#define WAIT_STEP_MS 20
#define WAIT_STEPS (30 * 1000 / WAIT_STEP_MS)

/* What sysfs says of the block device `name`, or with "/.." behind it of the disk it is a part of. */
static bool read_uevent(const char *name, const char *suffix, char *text, size_t size)
{
	char path[512];

	snprintf(path, sizeof(path), "/sys/class/block/%s%s/uevent", name, suffix);
	ssize_t length = read_file(path, text, size - 1);
	if (length <= 0)
		return false;
	text[length] = '\0';
	return true;
}

/* The name of the disk that the partition `name` is a part of. */
static bool parent(const char *name, char *disk, size_t size)
{
	char text[1024];
	const char *found;

	if (!read_uevent(name, "/..", text, sizeof(text)) || !(found = strstr(text, "DEVNAME=")))
		return false;
	found += strlen("DEVNAME=");
	size_t length = strcspn(found, "\n");
	if (length >= size)
		return false;
	memcpy(disk, found, length);
	disk[length] = '\0';
	return true;
}

/* Does the disk `name` have the partition that the boot loader came from? */
static bool is_boot_disk(const char *name, const char *uuid)
{
	static unsigned char head[GPT_BYTES];
	char path[300];
	size_t used = 0;
	ssize_t got;

	snprintf(path, sizeof(path), "/dev/%s", name);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	while (used < sizeof(head) && (got = read(fd, head + used, sizeof(head) - used)) > 0)
		used += (size_t)got;
	close(fd);
	return gpt_has(head, used, uuid);
}

/*
 * Find a partition by its line in uevent. `disk`: on that disk only, or any when empty. `uuid`: only on the disk with
 * that partition, or on any when NULL. Sets `device`, and `disk` to what it is a part of.
 */
static bool find_partition(const char *line, const char *uuid, char *disk, size_t disk_size, char *device, size_t size)
{
	DIR *blocks = opendir("/sys/class/block");
	bool found = false;

	if (!blocks)
		return false;
	for (struct dirent *entry; (entry = readdir(blocks));) {
		char text[1024], whole[256];
		if (entry->d_name[0] == '.' || !read_uevent(entry->d_name, "", text, sizeof(text)) || !strstr(text, line) ||
		    !parent(entry->d_name, whole, sizeof(whole)))
			continue;
		if ((disk[0] && strcmp(disk, whole) != 0) || (uuid && !is_boot_disk(whole, uuid)))
			continue;
		if (found)
			die("two partitions of %s are called the same: which one is this machine's?", whole);
		snprintf(disk, disk_size, "%s", whole);
		snprintf(device, size, "/dev/%s", entry->d_name);
		found = true;
	}
	closedir(blocks);
	return found;
}

/* Name the boot partition of the same disk for user space: two disks may have one of its name. */
static void name_esp(char *disk, size_t size)
{
	char device[300];

	if (!find_partition(ESP_LINE, NULL, disk, size, device, sizeof(device)) || symlink(device, ESP_LINK) < 0)
		say("the boot partition of %s is not found", disk);
}

void disk_mount(void)
{
	char device[300], disk[256] = "", uuid[GPT_UUID + 1];
	bool known = gpt_boot_partition(EFIVARS, uuid);

	modules_load_present();
	for (int step = 0;; step++) {
		if (find_partition(ROOT_LINE, known ? uuid : NULL, disk, sizeof(disk), device, sizeof(device)))
			break;
		if (step == WAIT_STEPS && known && find_partition(ROOT_LINE, NULL, disk, sizeof(disk), device, sizeof(device))) {
			say("no partition freehold-root lies on the disk that was booted: taking %s", device);
			break;
		}
		if (step == WAIT_STEPS)
			die("no partition is named freehold-root: is the disk attached?");
		modules_load_present();
		nanosleep(&(struct timespec){ .tv_nsec = WAIT_STEP_MS * 1000000L }, NULL);
	}
	int error = mount_at(device, DISK, "ext4", MS_NOATIME | MS_NODEV | MS_NOSUID, NULL);
	if (error)
		die("the root partition %s cannot be mounted: %s", device, strerror(-error));
	name_esp(disk, sizeof(disk));
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
	int error = verity_measure(fd, hex);
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
