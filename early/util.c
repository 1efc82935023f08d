/* SPDX-License-Identifier: Apache-2.0 */
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <unistd.h>

/* Time for a person to read why a boot stopped. */
#define READING_SECONDS 5

unsigned (*at_death)(const char *reason);

static void say_line(const char *level, const char *format, va_list arguments)
{
	char line[512];
	int used = snprintf(line, sizeof(line), "%sfreehold: ", level);
	int more = vsnprintf(line + used, sizeof(line) - (size_t)used - 1, format, arguments);
	size_t length = (size_t)used + (more < 0 ? 0 : (size_t)more);

	if (length > sizeof(line) - 2)
		length = sizeof(line) - 2;
	line[length++] = '\n';
	int fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		fd = dup(STDERR_FILENO);
	if (fd >= 0) {
		if (write(fd, line, length) < 0) {
			/* Nobody is left to tell. */
		}
		close(fd);
	}
}

void say(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	say_line("<4>", format, arguments);
	va_end(arguments);
}

void die(const char *format, ...)
{
	va_list arguments;
	char reason[256];

	va_start(arguments, format);
	say_line("<2>", format, arguments);
	va_end(arguments);
	va_start(arguments, format);
	vsnprintf(reason, sizeof(reason), format, arguments);
	va_end(arguments);
	/* Once: what it calls may die as well. */
	unsigned (*last)(const char *) = at_death;
	at_death = NULL;
	unsigned seconds = last ? last(reason) : READING_SECONDS;
	say("this deployment does not boot; restarting in %u seconds", seconds);
	sync();
	sleep(seconds);
	reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}

ssize_t read_file(const char *path, void *buffer, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	size_t used = 0;

	if (fd < 0)
		return -errno;
	for (;;) {
		char spare;
		ssize_t got = used < size ? read(fd, (char *)buffer + used, size - used) : read(fd, &spare, 1);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0 || (got > 0 && used == size)) {
			int error = got < 0 ? errno : EFBIG;
			close(fd);
			return -error;
		}
		if (got == 0)
			break;
		used += (size_t)got;
	}
	close(fd);
	return (ssize_t)used;
}

int write_file_durably(const char *directory, const char *name, const void *data, size_t size)
{
	char temporary[512], final[512];
	int fd, error = 0;

	snprintf(temporary, sizeof(temporary), "%s/.tmp-%s", directory, name);
	snprintf(final, sizeof(final), "%s/%s", directory, name);
	fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return -errno;
	for (size_t done = 0; done < size && !error;) {
		ssize_t put = write(fd, (const char *)data + done, size - done);
		if (put < 0 && errno != EINTR)
			error = -errno;
		else if (put > 0)
			done += (size_t)put;
	}
	if (!error && fsync(fd) < 0)
		error = -errno;
	close(fd);
	if (!error && rename(temporary, final) < 0)
		error = -errno;
	if (error) {
		unlink(temporary);
		return error;
	}
	fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (fsync(fd) < 0)
		error = -errno;
	close(fd);
	return error;
}

int make_directory(const char *path, unsigned mode)
{
	if (mkdir(path, mode) < 0 && errno != EEXIST)
		return -errno;
	return 0;
}

int real_directory(const char *path, unsigned mode)
{
	struct stat status;

	if (lstat(path, &status) == 0 && !S_ISDIR(status.st_mode)) {
		say("%s was no directory: removed", path);
		if (unlink(path) < 0)
			return -errno;
	}
	return make_directory(path, mode);
}

int mount_at(const char *source, const char *target, const char *type, unsigned long flags, const char *options)
{
	if (mount(source, target, type, flags, options) < 0) {
		int error = errno;
		say("mounting %s at %s failed: %s", source, target, strerror(error));
		return -error;
	}
	return 0;
}

/* The next word of a line; its length, 0 at the end. */
static size_t next_word(const char **at)
{
	*at += strspn(*at, " ");
	return strcspn(*at, " \n");
}

bool same_words(const char *one, const char *other)
{
	for (;;) {
		size_t length = next_word(&one);

		if (length != next_word(&other) || memcmp(one, other, length) != 0)
			return false;
		if (!length)
			return true;
		one += length;
		other += length;
	}
}

bool command_line_is_sealed(const char *path)
{
	char running[4096], sealed[8192];
	ssize_t length = read_file("/proc/cmdline", running, sizeof(running) - 1);
	ssize_t known = read_file(path, sealed, sizeof(sealed) - 1);

	if (length < 0 || known < 0)
		return false;
	running[length] = sealed[known] = '\0';
	for (const char *line = sealed; *line; line = strchr(line, '\n') + 1) {
		if (same_words(running, line))
			return true;
		if (!strchr(line, '\n'))
			break;
	}
	return false;
}

bool command_line_value(const char *name, char *value, size_t size)
{
	char line[4096];
	ssize_t length = read_file("/proc/cmdline", line, sizeof(line) - 1);
	size_t name_length = strlen(name);
	if (length < 0)
		return false;
	line[length] = '\0';
	for (char *save = NULL, *word = strtok_r(line, " \n", &save); word; word = strtok_r(NULL, " \n", &save)) {
		if (strncmp(word, name, name_length) == 0 && word[name_length] == '=') {
			if (strlen(word + name_length + 1) >= size)
				return false;
			strcpy(value, word + name_length + 1);
			return true;
		}
	}
	return false;
}
