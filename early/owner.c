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

#include "commits.h"
#include "floor.h"
#include "keyring.h"
#include "memory.h"
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

/* What was verified, and the digests by which it is known again. */
struct verified {
	struct intent intent;
	unsigned char text[SHA256_SIZE], signed_text[SHA256_SIZE];
};

/* Verify the `length` bytes in `buffer` for this machine. NULL when good, else the reason. */
static const char *verify(size_t length, const char *machine, struct verified *verified)
{
	unsigned char signature[MAX_SIGNATURE];
	size_t signature_length = 0;
	size_t text = split_signature(buffer, length, signature, &signature_length);

	if (!text)
		return "it carries no signature";
	/* Nothing in the text is looked at before the signature over all of it is good. */
	if (keyring_verify(KEYCHAIN, "owner", buffer, text, signature, signature_length) != 1)
		return "no owner's key of this keychain signed it";
	if (intent_parse(buffer, text, &verified->intent) != 0)
		return "it is not a valid intent";
	if (strcmp(verified->intent.machine, machine) != 0)
		return "it was signed for another machine";
	sha256(buffer, text, verified->text);
	sha256(buffer, length, verified->signed_text);
	return NULL;
}

static void stand(struct owner *owner, const struct verified *verified)
{
	owner->standing = STANDING_VALID;
	owner->intent = verified->intent;
	memcpy(owner->text, verified->text, sizeof(owner->text));
	memcpy(owner->signed_text, verified->signed_text, sizeof(owner->signed_text));
}

static void store_machine(const char *machine)
{
	char text[MACHINE_HEX + 2];

	snprintf(text, sizeof(text), "%s\n", machine);
	int error = write_file_durably(OWNER, "id", text, MACHINE_HEX + 1);
	if (error)
		die("%s/id cannot be written: %s", OWNER, strerror(-error));
}

/*
 * The machine that the TPM remembers, when the disk says that it is another one: with a foreign id it would believe
 * what the owner signed for that one.
 */
static void keep_machine(struct owner *owner, const char *known, bool other)
{
	strcpy(owner->machine, known);
	if (other && rename(OWNER "/id", OWNER "/id.aside") < 0)
		die("%s/id cannot be set aside: %s", OWNER, strerror(errno));
	store_machine(known);
	say("the machine's id is %s, as the TPM remembers%s", known,
	    other ? "; the one on the disk is set aside as " OWNER "/id.aside" : "");
}

static void read_machine(struct owner *owner, const char *known)
{
	unsigned char random[MACHINE_HEX / 2];
	char text[MACHINE_HEX + 2];
	ssize_t length = read_file(OWNER "/id", text, sizeof(text) - 1);

	if (length == MACHINE_HEX + 1 && text[MACHINE_HEX] == '\n' &&
	    strspn(text, "0123456789abcdef") == MACHINE_HEX) {
		text[MACHINE_HEX] = '\0';
		if (known && strcmp(text, known) != 0)
			keep_machine(owner, known, true);
		else
			strcpy(owner->machine, text);
		return;
	}
	if (known) {
		keep_machine(owner, known, length != -ENOENT);
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
	store_machine(owner->machine);
}

/*
 * Is the committed /etc that `offered` names in the owner's directory, from where it may come by way of the inbox? What
 * does not change it, and what repairs an intent that is not believed, is taken without: then factory settings are in force.
 */
static bool has_config(const struct owner *owner, const struct intent *offered)
{
	if (!offered->config[0] || commits_obtain(offered->config) == 0)
		return true;
	return owner->standing == STANDING_INVALID || strcmp(offered->config, owner->intent.config) == 0;
}

static void take_inbox(struct owner *owner, const struct memory *memory, uint64_t release)
{
	struct verified offered;
	ssize_t length = read_file(INBOX "/intent", buffer, sizeof(buffer));

	if (length == -ENOENT)
		return;
	if (length < 0) {
		say("the intent in the inbox cannot be read; ignored");
		return;
	}
	const char *fault = verify((size_t)length, owner->machine, &offered);
	if (!fault && owner->standing == STANDING_VALID && offered.intent.serial <= owner->intent.serial)
		fault = "its serial is not newer";
	if (!fault && !memory_allows(memory, &offered.intent, offered.text))
		fault = "the TPM remembers a newer one";
	if (!fault && !floor_may_take(&offered.intent, release))
		fault = "its floor is above this release";
	if (!fault && !has_config(owner, &offered.intent))
		fault = "its /etc is not here, or is not what the owner signed";
	if (fault) {
		say("the intent in the inbox is ignored: %s", fault);
		return;
	}
	int error = write_file_durably(OWNER, "intent", buffer, (size_t)length);
	if (error) {
		say("the new intent cannot be stored: %s", strerror(-error));
		return;
	}
	stand(owner, &offered);
	owner->replaced = true;
	owner->forgotten = NULL;
	unlink(INBOX "/intent");
	say("a new intent of the owner stands: serial %llu", (unsigned long long)offered.intent.serial);
}

void owner_read(struct owner *owner, const struct memory *memory, uint64_t release)
{
	struct verified verified;
	struct stat status;

	memset(owner, 0, sizeof(*owner));
	/* At the top of its file system and no link: the guard protects this directory, not what leads to another one. */
	if (lstat(OWNER, &status) == 0 && !S_ISDIR(status.st_mode))
		die("the owner's directory is not a directory");
	owner->first_boot = stat(OWNER "/provisioned", &status) < 0;
	if (make_directory(OWNER, 0700) || make_directory(INBOX, 0700) || make_directory(OWNER "/config", 0700) ||
	    make_directory(OWNER "/commits", 0700) || make_directory(OWNER "/etc", 0700) ||
	    make_directory(OWNER "/roothome", 0700) || make_directory(OWNER "/secret", 0700)) /* the guard's rule `secret` */
		die("the owner's directory cannot be made");
	read_machine(owner, memory_machine(memory));
	ssize_t length = read_file(OWNER "/intent", buffer, sizeof(buffer));
	if (length != -ENOENT) {
		const char *fault = length < 0 ? "it cannot be read" : verify((size_t)length, owner->machine, &verified);
		if (!fault)
			stand(owner, &verified);
		else
			owner->standing = STANDING_INVALID;
		if (fault)
			say("the standing intent is not believed (%s): starting locked", fault);
	}
	owner->forgotten = memory_fault(memory, owner->standing, &owner->intent, owner->text);
	if (owner->forgotten) {
		owner->standing = STANDING_INVALID;
		say("the standing intent is not believed (%s; number %llu): starting locked; %s", owner->forgotten,
		    (unsigned long long)memory->serial, MEMORY_WAY_BACK);
	}
	take_inbox(owner, memory, release);
	if (owner->standing != STANDING_VALID)
		return;
	/* A cut came between image and intent, or an older release took the intent, which knows no images in the inbox. */
	if (owner->intent.config[0] && !owner->replaced)
		commits_obtain(owner->intent.config);
	length = read_file(OWNER "/intent", buffer, sizeof(buffer));
	if (length > 0)
		commits_keep(&owner->intent, buffer, (size_t)length);
}
