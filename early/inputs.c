/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "inputs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "util.h"

/* Tests build with a directory of their own. */
#ifndef IPE
#define IPE "/sys/kernel/security/ipe"
#endif
#define MAX_POLICY 65535 /* the kernel's own limit for CMS, lib/asn1_decoder.c */
#define NAME_DIGITS 64

/* All of it by one write(2), as IPE wants it. 0 or -errno. */
static int put(const char *path, const void *data, size_t length)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t done = fd < 0 ? -1 : write(fd, data, length);
	int error = done < 0 ? errno : (size_t)done == length ? 0 : EIO;

	if (fd >= 0)
		close(fd);
	return -error;
}

/* Does a switch of IPE's say 1? */
static bool is_on(const char *path)
{
	char text[4];

	return read_file(path, text, sizeof(text)) > 0 && text[0] == '1';
}

static int load(const char *file)
{
	unsigned char *policy = malloc(MAX_POLICY);
	ssize_t length = policy ? read_file(file, policy, MAX_POLICY) : -ENOMEM;
	int error = length < 0 ? (int)length : put(IPE "/new_policy", policy, (size_t)length);

	free(policy);
	/* It is there already: what counts is its name, which its signature covers. */
	return error == -EEXIST ? 0 : error;
}

int inputs_enforce(const char *file, const char *name)
{
	char active[sizeof(IPE) + NAME_DIGITS + 64];

	if (strlen(name) != NAME_DIGITS || strspn(name, "0123456789abcdef") != NAME_DIGITS)
		return -EBADMSG;
	if (access(IPE "/new_policy", F_OK) < 0)
		return -EOPNOTSUPP;
	int error = load(file);
	if (error)
		return error;
	snprintf(active, sizeof(active), IPE "/policies/freehold-%s/active", name);
	error = is_on(active) ? 0 : put(active, "1", 1);
	/* The kernel believed its signer, but it is another one: an older release's, put in the place of this one's. */
	if (error == -ENOENT)
		return -EBADMSG;
	if (!error && !is_on(IPE "/enforce"))
		error = put(IPE "/enforce", "1", 1);
	return error || (is_on(active) && is_on(IPE "/enforce")) ? error : -EIO;
}

const char *inputs_fault(int error)
{
	switch (error) {
	case -EOPNOTSUPP:
		return "this kernel has no IPE";
	case -ENOENT:
		return "it is not there";
	case -ENOKEY:
		return "the firmware does not know its signer";
	case -EKEYREJECTED:
	case -EBADMSG:
		return "it is damaged, or another release's";
	default:
		return strerror(-error);
	}
}
