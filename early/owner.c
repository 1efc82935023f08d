/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "disk.h"
#include "owner.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "floor.h"
#include "keyring.h"
#include "util.h"

#define KEYCHAIN "/keychain"
#define INBOX DISK "/inbox"

/* A signed intent is the text and one more line: "signature HEX". Its limit leaves room for that line. */
#define MAX_SIGNATURE 512
#define MAX_SIGNED (65536 + 16 + 2 * MAX_SIGNATURE)
#define MARK "signature "

static unsigned char buffer[MAX_SIGNED];

static int hex_value(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return -1;
}

/* Split off the signature line. Returns the length of the signed text, or 0 when there is none. */
static size_t split_signature(const unsigned char *data, size_t length, unsigned char *signature, size_t *signature_length)
{
	size_t start;

	if (length < 2 || data[length - 1] != '\n')
		return 0;
	for (start = length - 1; start > 0 && data[start - 1] != '\n'; start--)
		;
	size_t line = length - 1 - start;
	const char *text = (const char *)data + start;
	if (start == 0 || line <= strlen(MARK) || memcmp(text, MARK, strlen(MARK)) != 0)
		return 0;
	text += strlen(MARK);
	line -= strlen(MARK);
	if (line % 2 || line / 2 > MAX_SIGNATURE)
		return 0;
	for (size_t i = 0; i < line / 2; i++) {
		int high = hex_value(text[2 * i]), low = hex_value(text[2 * i + 1]);
		if (high < 0 || low < 0)
			return 0;
		signature[i] = (unsigned char)(high << 4 | low);
	}
	*signature_length = line / 2;
	return start;
}

/* Verify the `length` bytes in `buffer` for this machine. NULL when good, else the reason. */
static const char *verify(size_t length, const char *machine, struct intent *intent)
{
	unsigned char signature[MAX_SIGNATURE];
	size_t signature_length = 0;
	size_t text = split_signature(buffer, length, signature, &signature_length);

	if (!text)
		return "it carries no signature";
	/* Nothing in the text is looked at before the signature over all of it is good. */
	if (keyring_verify(KEYCHAIN, "owner", buffer, text, signature, signature_length) != 1)
		return "no owner's key of this keychain signed it";
	if (intent_parse(buffer, text, intent) != 0)
		return "it is not a valid intent";
	if (strcmp(intent->machine, machine) != 0)
		return "it was signed for another machine";
	return NULL;
}

static void read_machine(struct owner *owner)
{
	unsigned char random[MACHINE_HEX / 2];
	char text[MACHINE_HEX + 2];
	ssize_t length = read_file(OWNER "/id", text, sizeof(text) - 1);

	if (length == MACHINE_HEX + 1 && text[MACHINE_HEX] == '\n' &&
	    strspn(text, "0123456789abcdef") == MACHINE_HEX) {
		memcpy(owner->machine, text, MACHINE_HEX);
		owner->machine[MACHINE_HEX] = '\0';
		return;
	}
	if (length != -ENOENT)
		die("%s/id is damaged", OWNER);
	if (getrandom(random, sizeof(random), 0) != (ssize_t)sizeof(random))
		die("no random numbers");
	/* A version 4 UUID, as machine-id(5) wants. */
	random[6] = (random[6] & 0x0f) | 0x40;
	random[8] = (random[8] & 0x3f) | 0x80;
	for (size_t i = 0; i < sizeof(random); i++)
		sprintf(owner->machine + 2 * i, "%02x", random[i]);
	snprintf(text, sizeof(text), "%s\n", owner->machine);
	int error = write_file_durably(OWNER, "id", text, MACHINE_HEX + 1);
	if (error)
		die("%s/id cannot be written: %s", OWNER, strerror(-error));
}

static void take_inbox(struct owner *owner, uint64_t release)
{
	struct intent offered;
	ssize_t length = read_file(INBOX "/intent", buffer, sizeof(buffer));

	if (length == -ENOENT)
		return;
	if (length < 0) {
		say("the intent in the inbox cannot be read; ignored");
		return;
	}
	const char *fault = verify((size_t)length, owner->machine, &offered);
	if (!fault && owner->standing == STANDING_VALID && offered.serial <= owner->intent.serial)
		fault = "its serial is not newer";
	if (!fault && !floor_may_take(&offered, release))
		fault = "its floor is above this release";
	if (fault) {
		say("the intent in the inbox is ignored: %s", fault);
		return;
	}
	int error = write_file_durably(OWNER, "intent", buffer, (size_t)length);
	if (error) {
		say("the new intent cannot be stored: %s", strerror(-error));
		return;
	}
	owner->intent = offered;
	owner->standing = STANDING_VALID;
	owner->replaced = true;
	unlink(INBOX "/intent");
	say("a new intent of the owner stands: serial %llu", (unsigned long long)offered.serial);
}

void owner_read(struct owner *owner, uint64_t release)
{
	struct stat status;

	memset(owner, 0, sizeof(*owner));
	/* At the top of its file system and no link: the guard protects this directory, not what leads to another one. */
	if (lstat(OWNER, &status) == 0 && !S_ISDIR(status.st_mode))
		die("the owner's directory is not a directory");
	owner->first_boot = stat(OWNER "/provisioned", &status) < 0;
	if (make_directory(OWNER, 0700) || make_directory(INBOX, 0700) || make_directory(OWNER "/config", 0700) ||
	    make_directory(OWNER "/etc", 0700) || make_directory(OWNER "/roothome", 0700) ||
	    make_directory(OWNER "/secret", 0700)) /* the guard's rule `secret` */
		die("the owner's directory cannot be made");
	read_machine(owner);
	ssize_t length = read_file(OWNER "/intent", buffer, sizeof(buffer));
	if (length != -ENOENT) {
		const char *fault =
			length < 0 ? "it cannot be read" : verify((size_t)length, owner->machine, &owner->intent);
		owner->standing = fault ? STANDING_INVALID : STANDING_VALID;
		if (fault)
			say("the standing intent is not believed (%s): starting locked", fault);
	}
	take_inbox(owner, release);
}
