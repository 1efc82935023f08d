/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "keyring.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/keyctl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "firmware.h"
#include "revoked.h"
#include "sha256.h"

#define MAX_CERTIFICATE 16384
#define MAX_SIGNATURE 512
#define MAX_LINE 512
#define SUFFIX ".der"
#define PKEY_INFO "enc=pkcs1 hash=sha256"

static const struct revoked *refused;

void keyring_refuse(const struct revoked *revoked)
{
	refused = revoked;
}

static long add_key(const char *type, const char *description, const void *payload, size_t length, int32_t ring)
{
	long id = syscall(SYS_add_key, type, description, payload, length, ring);

	return id < 0 ? -errno : id;
}

static long keyctl(int command, unsigned long a, unsigned long b, unsigned long c, unsigned long d)
{
	long result = syscall(SYS_keyctl, command, a, b, c, d);

	return result < 0 ? -errno : result;
}

/* The next blank-separated word; moves `at` behind it. An empty one at the end of the line. */
static size_t next_word(const char **at, const char **word)
{
	*word = *at + strspn(*at, " ");
	size_t length = strcspn(*word, " \n");
	*at = *word + length;
	return length;
}

/* Lines are: id flags usage timeout permissions uid gid type description: summary */
int32_t keyring_parse_line(const char *line, const char *name)
{
	const char *words[8], *at = line;
	size_t lengths[8];
	char *end;

	for (int i = 0; i < 8; i++) {
		lengths[i] = next_word(&at, &words[i]);
		if (!lengths[i])
			return 0;
	}
	if (lengths[0] != 8 || lengths[5] != 1 || words[5][0] != '0' || lengths[7] != 7 ||
	    memcmp(words[7], "keyring", 7) != 0)
		return 0;
	/* Flags: I instantiated, R revoked, D dead, ... A ring that is not plainly alive is not the one. */
	if (words[1][0] != 'I' || memchr(words[1], 'R', lengths[1]) || memchr(words[1], 'D', lengths[1]))
		return 0;
	at += strspn(at, " ");
	if (strncmp(at, name, strlen(name)) != 0 || at[strlen(name)] != ':')
		return 0;
	unsigned long id = strtoul(words[0], &end, 16);
	return end == words[0] + 8 && id > 0 && id <= INT32_MAX ? (int32_t)id : 0;
}

/* Find the kernel's own ring `name`. User space cannot make rings whose name starts with a dot. */
static int32_t find_ring(const char *name)
{
	char buffer[4096], line[MAX_LINE + 1];
	size_t used = 0;
	ssize_t got;
	bool too_long = false;
	int32_t found = 0;
	int fd = open("/proc/keys", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	while (!found && (got = read(fd, buffer, sizeof(buffer))) > 0) {
		for (ssize_t i = 0; i < got && !found; i++) {
			if (buffer[i] != '\n') {
				too_long |= used == MAX_LINE;
				if (!too_long)
					line[used++] = buffer[i];
				continue;
			}
			line[used] = '\0';
			if (!too_long)
				found = keyring_parse_line(line, name);
			used = 0;
			too_long = false;
		}
	}
	close(fd);
	return found ? found : -ENOKEY;
}

/* Read one certificate of the keychain into a buffer. Returns its length or -errno. */
static ssize_t read_certificate(int directory, const char *name, unsigned char *buffer)
{
	struct stat status;
	size_t used = 0;
	ssize_t got = 0;
	int fd = openat(directory, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);

	if (fd < 0)
		return -errno;
	if (fstat(fd, &status) < 0 || !S_ISREG(status.st_mode) || status.st_size > MAX_CERTIFICATE) {
		close(fd);
		return -EBADMSG;
	}
	while (used < MAX_CERTIFICATE && (got = read(fd, buffer + used, MAX_CERTIFICATE - used)) > 0)
		used += (size_t)got;
	int error = errno;
	close(fd);
	return got < 0 ? -error : (ssize_t)used;
}

/* Does the name have the form ROLE-NAME.der (any role when NULL)? */
static bool has_role(const char *name, const char *role)
{
	size_t length = strlen(name), suffix = strlen(SUFFIX), prefix = role ? strlen(role) : 0;

	if (length <= suffix || strcmp(name + length - suffix, SUFFIX) != 0)
		return false;
	return !role || (length > prefix + 1 + suffix && strncmp(name, role, prefix) == 0 && name[prefix] == '-');
}

/*
 * Call `use` with each certificate of a role until it returns other than 0. Returns what it returned
 * last, or the -errno of a file that could not be read; `count` is how many certificates were seen.
 */
static long each_certificate(const char *dir, const char *role, int *count,
			     long (*use)(const unsigned char *, size_t, void *), void *argument)
{
	static unsigned char certificate[MAX_CERTIFICATE];
	_Alignas(struct dirent64) char entries[2048];
	long got, result = 0;
	int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	*count = 0;
	if (fd < 0)
		return -errno;
	while (!result && (got = syscall(SYS_getdents64, fd, entries, sizeof(entries))) != 0) {
		if (got < 0) {
			result = -errno;
			break;
		}
		for (long at = 0; at < got && !result;) {
			const struct dirent64 *entry = (const void *)(entries + at);
			at += entry->d_reclen;
			if (!has_role(entry->d_name, role))
				continue;
			ssize_t length = read_certificate(fd, entry->d_name, certificate);
			result = length < 0 ? length : use(certificate, (size_t)length, argument);
			++*count;
		}
	}
	close(fd);
	return result;
}

static bool is_refused(const unsigned char *certificate, size_t length)
{
	return refused && revoked_has(refused, certificate, length);
}

/* Where certificates go, and what became of them. */
struct filling {
	const char *keychain;
	int32_t ring;
	struct keyring_filled *filled;
};

static long add_to_ring(const unsigned char *certificate, size_t length, const struct filling *filling)
{
	long id = add_key("asymmetric", "", certificate, length, filling->ring);

	return id < 0 ? id : 0;
}

/* The image's own: one that the kernel does not take is a fault of the image. */
static long take_from_image(const unsigned char *certificate, size_t length, void *argument)
{
	const struct filling *filling = argument;

	if (is_refused(certificate, length)) {
		filling->filled->skipped++;
		return 0;
	}
	filling->filled->loaded++;
	return add_to_ring(certificate, length, filling);
}

struct sought {
	const unsigned char *certificate;
	size_t length;
};

static long is_sought(const unsigned char *certificate, size_t length, void *argument)
{
	const struct sought *sought = argument;

	return length == sought->length && memcmp(certificate, sought->certificate, length) == 0;
}

/* The firmware's: it may have some of kinds that the kernel does not know. */
static bool take_from_firmware(const unsigned char *certificate, size_t length, void *argument)
{
	const struct filling *filling = argument;
	struct sought sought = { certificate, length };
	int count;

	if (length > MAX_CERTIFICATE || is_refused(certificate, length) || add_to_ring(certificate, length, filling) != 0)
		return false;
	filling->filled->own += each_certificate(filling->keychain, NULL, &count, is_sought, &sought) == 1;
	return true;
}

int keyring_load_verity(const char *dir, const struct firmware *firmware, struct keyring_filled *filled)
{
	struct filling filling = { .keychain = dir, .ring = find_ring(".fs-verity"), .filled = filled };
	long result = 0;
	int count;

	memset(filled, 0, sizeof(*filled));
	if (filling.ring < 0)
		return filling.ring;
	if (firmware->secure_boot) {
		firmware_offer(firmware, take_from_firmware, &filling, &filled->loaded, &filled->skipped);
		filled->from_firmware = filled->loaded > 0;
	}
	if (!filled->from_firmware) {
		memset(filled, 0, sizeof(*filled));
		result = each_certificate(dir, NULL, &count, take_from_image, &filling);
	}
	/* Sealed in any case: a ring that lacks a key refuses too much, an open one believes too much. */
	long sealed = keyctl(KEYCTL_RESTRICT_KEYRING, (unsigned long)filling.ring, 0, 0, 0);
	if (!result && !filled->loaded)
		result = -ENOENT;
	return (int)(result ? result : sealed);
}

/* What a certificate is asked. */
struct question {
	const unsigned char *signature;
	size_t signature_length;
	unsigned char digest[SHA256_SIZE];
	int32_t ring;
};

/* 1 when the certificate's key made the signature, 0 when not. */
static long ask(const unsigned char *certificate, size_t length, void *argument)
{
	const struct question *question = argument;
	struct keyctl_pkey_params parameters = { .in_len = SHA256_SIZE };
	struct keyctl_pkey_query query;

	if (is_refused(certificate, length))
		return 0;
	long key = add_key("asymmetric", "", certificate, length, question->ring);

	if (key < 0)
		return key;
	parameters.key_id = (int32_t)key;
	parameters.in2_len = (uint32_t)question->signature_length;
	long result = keyctl(KEYCTL_PKEY_QUERY, (unsigned long)key, 0, (unsigned long)PKEY_INFO, (unsigned long)&query);
	/* Ours to check: the kernel has been seen to accept a signature cut short (6.12). */
	if (result == 0 && question->signature_length != (query.key_size + 7) / 8)
		result = -EBADMSG;
	if (result == 0)
		result = keyctl(KEYCTL_PKEY_VERIFY, (unsigned long)&parameters, (unsigned long)PKEY_INFO,
				(unsigned long)question->digest, (unsigned long)question->signature);
	keyctl(KEYCTL_UNLINK, (unsigned long)key, (unsigned long)question->ring, 0, 0);
	if (result == 0)
		return 1;
	/* These mean "not by this key": wrong padding, wrong digest, wrong length for its modulus. */
	if (result == -EKEYREJECTED || result == -EBADMSG || result == -EINVAL || result == -EOVERFLOW)
		return 0;
	return result;
}

int keyring_verify(const char *dir, const char *role, const unsigned char *data, size_t data_length,
		   const unsigned char *signature, size_t signature_length)
{
	struct question question = { .signature = signature, .signature_length = signature_length };
	int count;

	if (!signature_length || signature_length > MAX_SIGNATURE)
		return 0;
	sha256(data, data_length, question.digest);
	/* A ring of our own, in the ring of this process: gone with it, seen by nobody else. */
	long ring = add_key("keyring", "freehold-verify", NULL, 0, KEY_SPEC_PROCESS_KEYRING);
	if (ring < 0)
		return (int)ring;
	question.ring = (int32_t)ring;
	long result = each_certificate(dir, role, &count, ask, &question);
	keyctl(KEYCTL_UNLINK, (unsigned long)ring, (unsigned long)KEY_SPEC_PROCESS_KEYRING, 0, 0);
	return (int)result;
}
