/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "commits.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "disk.h"
#include "owner.h"
#include "util.h"
#include "verity.h"

#define COMMITS OWNER "/commits"
#define IMAGES OWNER "/config"
/* A signed intent, as in owner.c. */
#define MAX_SIGNED (INTENT_MAX_BYTES + 16 + 2 * 512)

/* Is the open file the image that is called `digest`? 0, -EBADMSG, or -errno. */
static int is_image(int fd, const char *digest)
{
	char hex[DIGEST_HEX + 1];
	struct stat status;

	if (fstat(fd, &status) < 0)
		return -errno;
	if (!S_ISREG(status.st_mode) || status.st_size == 0 || status.st_size > COMMITS_IMAGE_MAX)
		return -EBADMSG;
	int error = verity_measure(fd, hex);
	return error ? error : strcmp(hex, digest) != 0 ? -EBADMSG : 0;
}

static int open_directory(int at, const char *name)
{
	int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

/* The inbox's directory of images, without following a link that root left on the way; or -errno. */
static int open_inbox(void)
{
	int disk = open_directory(AT_FDCWD, DISK);
	if (disk < 0)
		return disk;
	int inbox = open_directory(disk, "inbox");
	close(disk);
	if (inbox < 0)
		return inbox;
	int images = open_directory(inbox, "config");
	close(inbox);
	return images;
}

/* Bring the measured file `fd`, which is `digest` in the directory `inbox`, into the owner's directory. */
static int take_over(int inbox, int fd, const char *digest)
{
	char target[sizeof(IMAGES) + DIGEST_HEX + 2];
	struct stat status;

	/* With a second name whoever has it could change its attributes later: the guard asks by the directory. */
	if (fstat(fd, &status) < 0)
		return -errno;
	if (status.st_nlink != 1)
		return -EMLINK;
	if ((status.st_uid || status.st_gid) && fchown(fd, 0, 0) < 0)
		return -errno;
	snprintf(target, sizeof(target), IMAGES "/%s", digest);
	if (fchmod(fd, 0600) < 0 || fsync(fd) < 0 || renameat(inbox, digest, AT_FDCWD, target) < 0)
		return -errno;
	int images = open_directory(AT_FDCWD, IMAGES);
	int error = images < 0 ? images : fsync(images) < 0 || fsync(inbox) < 0 ? -errno : 0;
	if (images >= 0)
		close(images);
	return error;
}

int commits_obtain(const char *digest)
{
	char path[sizeof(IMAGES) + DIGEST_HEX + 2];

	if (!is_digest(digest))
		return -EINVAL;
	snprintf(path, sizeof(path), IMAGES "/%s", digest);
	/* Not to wait for a pipe's other end. */
	int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd >= 0) {
		int error = is_image(fd, digest);
		close(fd);
		if (!error)
			return 0;
	}
	int inbox = open_inbox();
	if (inbox < 0)
		return inbox;
	fd = openat(inbox, digest, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	int error = fd < 0 ? -errno : is_image(fd, digest);
	if (!error)
		error = take_over(inbox, fd, digest);
	if (fd >= 0)
		close(fd);
	close(inbox);
	return error;
}

/* The serial that a record is named by; 0 when `name` is none. */
static uint64_t record_serial(const char *name)
{
	size_t length = strlen(name);

	if (length == 0 || length > 16 || name[0] == '0' || strspn(name, "0123456789") != length)
		return 0;
	uint64_t serial = strtoull(name, NULL, 10);
	return serial <= INTENT_MAX_NUMBER ? serial : 0;
}

/* The serials of all records: how many, the lowest, and the highest that is not above `most`. 0 or -errno. */
static int scan(uint64_t most, unsigned *count, uint64_t *lowest, uint64_t *highest)
{
	DIR *directory = opendir(COMMITS);

	*count = 0;
	*lowest = *highest = 0;
	if (!directory)
		return -errno;
	for (struct dirent *entry; (entry = readdir(directory));) {
		uint64_t serial = record_serial(entry->d_name);
		if (!serial)
			continue;
		(*count)++;
		if (!*lowest || serial < *lowest)
			*lowest = serial;
		if (serial <= most && serial > *highest)
			*highest = serial;
	}
	closedir(directory);
	return 0;
}

/* The image that the record `serial` names, "" for none. What is no intent names none; -errno when it cannot be read. */
static int record_config(uint64_t serial, char config[DIGEST_HEX + 1])
{
	static unsigned char data[MAX_SIGNED];
	char path[sizeof(COMMITS) + 24];
	struct intent intent;

	config[0] = '\0';
	snprintf(path, sizeof(path), COMMITS "/%" PRIu64, serial);
	ssize_t length = read_file(path, data, sizeof(data));
	if (length < 0)
		return (int)length;
	/* Without the last line, the signature. These were verified when they came, and decide nothing. */
	for (length--; length > 0 && data[length - 1] != '\n'; length--)
		;
	if (length > 0 && intent_parse(data, (size_t)length, &intent) == 0)
		strcpy(config, intent.config);
	return 0;
}

static int drop_old_records(void)
{
	char path[sizeof(COMMITS) + 24];
	uint64_t lowest, highest;
	unsigned count;

	for (;;) {
		int error = scan(0, &count, &lowest, &highest);
		if (error || count <= COMMITS_MAX)
			return error;
		snprintf(path, sizeof(path), COMMITS "/%" PRIu64, lowest);
		if (unlink(path) < 0)
			return -errno;
	}
}

/* Remove the images that no record names, apart from `standing`. Nothing when a record cannot be read. */
static int drop_old_images(const char *standing)
{
	static char kept[COMMITS_MAX + 1][DIGEST_HEX + 1];
	unsigned used = 0;

	strcpy(kept[used++], standing);
	DIR *directory = opendir(COMMITS);
	if (!directory)
		return -errno;
	for (struct dirent *entry; (entry = readdir(directory));) {
		uint64_t serial = record_serial(entry->d_name);
		if (!serial)
			continue;
		int error = used > COMMITS_MAX ? -EOVERFLOW : record_config(serial, kept[used]);
		if (error) {
			closedir(directory);
			return error;
		}
		used++;
	}
	closedir(directory);
	directory = opendir(IMAGES);
	if (!directory)
		return -errno;
	for (struct dirent *entry; (entry = readdir(directory));) {
		unsigned i = 0;
		while (i < used && strcmp(kept[i], entry->d_name) != 0)
			i++;
		if (i == used && is_digest(entry->d_name) && unlinkat(dirfd(directory), entry->d_name, 0) < 0)
			say(IMAGES "/%s cannot be removed: %s", entry->d_name, strerror(errno));
	}
	closedir(directory);
	return 0;
}

void commits_keep(const struct intent *intent, const unsigned char *data, size_t length)
{
	char config[DIGEST_HEX + 1] = "", name[24];
	uint64_t lowest, newest;
	unsigned count;
	int error = scan(intent->serial, &count, &lowest, &newest);

	if (!error && newest)
		error = record_config(newest, config);
	/* A machine whose owner never committed anything has no history. */
	if (!error && strcmp(config, intent->config) == 0)
		return;
	snprintf(name, sizeof(name), "%" PRIu64, intent->serial);
	if (!error)
		error = write_file_durably(COMMITS, name, data, length);
	if (!error)
		error = drop_old_records();
	if (!error)
		error = drop_old_images(intent->config);
	if (error)
		say("the commits of /etc cannot be kept in order: %s", strerror(-error));
}
