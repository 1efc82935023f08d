/* SPDX-License-Identifier: Apache-2.0 */
#include "floor.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "disk.h"
#include "util.h"

#define INBOX DISK "/inbox"
#define FORMAT "freehold-floor 1\nraised %" PRIu64 "\nserial %" PRIu64 "\n"

static uint64_t higher(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

bool floor_may_take(const struct intent *offered, uint64_t release)
{
	return !offered->has_floor || offered->floor <= release;
}

void floor_judge(const struct floor_facts *facts, struct floor *floor)
{
	bool valid = facts->standing == STANDING_VALID;
	bool locked = facts->standing == STANDING_INVALID || (valid && facts->intent->lock == INTENT_LOCKED);
	bool named = valid && facts->intent->has_floor;
	const struct floor_copy *copies[] = { &facts->file, &facts->tpm };
	uint64_t intended = named ? facts->intent->floor : 0;
	bool any = false;

	*floor = (struct floor){ .serial = named ? facts->intent->serial : 0, .named = intended };
	for (size_t i = 0; i < sizeof(copies) / sizeof(copies[0]); i++) {
		const struct floor_copy *copy = copies[i];
		/* Another machine id counts for nothing once the owner signed for this one: the disk was made anew. */
		if (!copy->present || (copy->foreign && valid))
			continue;
		any = true;
		bool older = named && copy->serial < facts->intent->serial;
		floor->set = floor->set || (older && copy->raised != intended);
		floor->raised = higher(floor->raised, older ? intended : copy->raised);
		floor->serial = higher(floor->serial, copy->serial);
	}
	if (!any)
		floor->raised = intended;
	floor->effective = higher(floor->raised, intended);
	floor->refused = locked && facts->release < floor->effective;
	if (valid && locked && facts->confirmed && !floor->refused && facts->release > floor->raised) {
		floor->raised = floor->effective = facts->release;
		floor->risen = true;
	}
}

size_t floor_write_text(const struct floor_copy *copy, char *text)
{
	return (size_t)snprintf(text, FLOOR_MAX_TEXT, FORMAT, copy->raised, copy->serial);
}

size_t floor_read_text(const char *text, size_t length, struct floor_copy *copy)
{
	char input[FLOOR_MAX_TEXT], again[FLOOR_MAX_TEXT];

	*copy = (struct floor_copy){ 0 };
	if (length >= sizeof(input))
		return 0;
	memcpy(input, text, length);
	input[length] = '\0';
	if (sscanf(input, FORMAT, &copy->raised, &copy->serial) != 2)
		return 0;
	/* One spelling: what is read has to give the same bytes again. */
	copy->present = floor_write_text(copy, again) == length && memcmp(again, text, length) == 0 &&
			copy->raised <= INTENT_MAX_NUMBER && copy->serial <= INTENT_MAX_NUMBER;
	return copy->present ? length : 0;
}

static void machine_bytes(const char *machine, unsigned char *bytes)
{
	char pair[3] = "";

	for (size_t i = 0; i < MACHINE_HEX / 2; i++) {
		memcpy(pair, machine + 2 * i, 2);
		bytes[i] = (unsigned char)strtoul(pair, NULL, 16);
	}
}

void floor_write_nv(const struct floor_copy *copy, const char *machine, unsigned char *data)
{
	for (size_t i = 0; i < 8; i++) {
		data[i] = (unsigned char)(copy->raised >> (56 - 8 * i));
		data[8 + i] = (unsigned char)(copy->serial >> (56 - 8 * i));
	}
	machine_bytes(machine, data + 16);
}

void floor_read_nv(const unsigned char *data, const char *machine, struct floor_copy *copy)
{
	unsigned char own[MACHINE_HEX / 2];

	*copy = (struct floor_copy){ .present = true };
	for (size_t i = 0; i < 8; i++) {
		copy->raised = copy->raised << 8 | data[i];
		copy->serial = copy->serial << 8 | data[8 + i];
	}
	machine_bytes(machine, own);
	copy->foreign = memcmp(own, data + 16, sizeof(own)) != 0;
	/* Not written by us: no release has such a number, and no intent such a serial. */
	if (copy->raised > INTENT_MAX_NUMBER || copy->serial > INTENT_MAX_NUMBER)
		copy->present = false;
}

uint64_t floor_number(const char *text)
{
	char again[32], *end;
	unsigned long long value = strtoull(text, &end, 10);

	snprintf(again, sizeof(again), "%llu", value);
	return strcmp(again, text) == 0 && value <= INTENT_MAX_NUMBER ? value : 0;
}

static void say_tpm(const char *what, int error)
{
	if (error > 0)
		say("the TPM cannot %s the rollback floor (its answer is 0x%x): the file counts", what, (unsigned)error);
	else
		say("the TPM cannot %s the rollback floor (%s): the file counts", what, strerror(-error));
}

/* Read the TPM's copy. Returns whether there is such an index, as ours has to be; *failed when it cannot be told. */
static bool read_tpm(const struct tpm *tpm, const char *machine, struct floor_copy *copy, bool *failed)
{
	unsigned char data[FLOOR_NV_SIZE];
	int error = tpm_nv_check(tpm, FLOOR_INDEX, sizeof(data));

	if (error == TPM_RC_HANDLE)
		return false;
	if (error == -EEXIST) {
		say("the TPM's index for the rollback floor is not the one that was made: replaced");
		error = tpm_nv_undefine(tpm, FLOOR_INDEX);
		if (!error)
			return false;
	}
	if (!error) {
		error = tpm_nv_read(tpm, FLOOR_INDEX, data, sizeof(data));
		if (!error)
			floor_read_nv(data, machine, copy);
		else if (error == TPM_RC_NV_UNINITIALIZED)
			error = 0;
	}
	if (error)
		say_tpm("read", error);
	*failed = error != 0;
	return !error;
}

/* Bring the TPM's copy up to date. */
static int write_tpm(const struct tpm *tpm, bool defined, const struct floor_copy *copy, const char *machine)
{
	unsigned char data[FLOOR_NV_SIZE];
	int error = defined ? 0 : tpm_nv_define(tpm, FLOOR_INDEX, sizeof(data));

	floor_write_nv(copy, machine, data);
	return error ? error : tpm_nv_write(tpm, FLOOR_INDEX, data, sizeof(data));
}

static bool differs(const struct floor_copy *copy, const struct floor_copy *wanted)
{
	return !copy->present || copy->foreign || copy->raised != wanted->raised || copy->serial != wanted->serial;
}

static enum floor_tpm settle_tpm(const struct tpm *tpm, const struct floor_facts *facts, bool defined, bool wanted,
				 const struct floor_copy *copy, const char *machine)
{
	enum floor_tpm result = defined ? FLOOR_TPM_KEPT : FLOOR_TPM_UNUSED;

	if (wanted && differs(&facts->tpm, copy)) {
		int error = write_tpm(tpm, defined, copy, machine);
		if (error)
			say_tpm("keep", error);
		else if (!facts->tpm.present && facts->file.present)
			say("the TPM has no rollback floor, though this machine has: cleared, or another board; kept anew");
		result = error ? FLOOR_TPM_FAILED : facts->tpm.present ? FLOOR_TPM_KEPT : FLOOR_TPM_ANEW;
	}
	if (defined || result == FLOOR_TPM_ANEW) {
		int error = tpm_nv_lock(tpm, FLOOR_INDEX);
		/* Closed already: this boot was started by kexec. */
		if (error && error != TPM_RC_NV_LOCKED) {
			say_tpm("close", error);
			result = FLOOR_TPM_FAILED;
		}
	}
	return result;
}

static void read_file_copy(const char *directory, struct floor_copy *copy)
{
	char path[128], text[FLOOR_MAX_TEXT];

	snprintf(path, sizeof(path), "%s/floor", directory);
	ssize_t length = read_file(path, text, sizeof(text));
	if (length != -ENOENT && (length < 0 || !floor_read_text(text, (size_t)length, copy)))
		say("%s is damaged: it counts as missing", path);
}

static bool confirmed(const char *directory, const char *digest)
{
	char path[128], text[DIGEST_HEX + 2];

	snprintf(path, sizeof(path), "%s/healthy", directory);
	return read_file(path, text, sizeof(text)) == DIGEST_HEX + 1 && text[DIGEST_HEX] == '\n' &&
	       memcmp(text, digest, DIGEST_HEX) == 0;
}

enum floor_tpm floor_settle_at(const struct floor_places *places, const struct owner *owner, uint64_t release,
			       const char *digest, struct floor *floor)
{
	struct floor_facts facts = {
		.standing = owner->standing,
		.intent = &owner->intent,
		.release = release,
		.confirmed = confirmed(places->inbox, digest),
	};
	enum floor_tpm result = FLOOR_TPM_NONE;
	bool failed = false, defined = false;
	char text[FLOOR_MAX_TEXT];

	read_file_copy(places->owner, &facts.file);
	if (places->tpm)
		defined = read_tpm(places->tpm, owner->machine, &facts.tpm, &failed);
	floor_judge(&facts, floor);
	struct floor_copy copy = { .present = true, .raised = floor->raised, .serial = floor->serial };
	/*
	 * Without an owner's word nothing is changed: a machine that never was locked leaves nothing in the TPM, and what
	 * is in there of a machine that lost its owner's directory waits for the owner.
	 */
	bool wanted = owner->standing == STANDING_VALID &&
		      (facts.file.present || facts.tpm.present || floor->effective > 0);
	if (floor->set)
		say("the owner set the rollback floor to %" PRIu64, floor->effective);
	if (floor->risen)
		say("the rollback floor rises to %" PRIu64 ", this release", floor->raised);
	if (places->tpm)
		result = failed ? FLOOR_TPM_FAILED :
				  settle_tpm(places->tpm, &facts, defined, wanted, &copy, owner->machine);
	if (wanted && differs(&facts.file, &copy)) {
		int error = write_file_durably(places->owner, "floor", text, floor_write_text(&copy, text));
		if (error)
			say("the rollback floor cannot be stored: %s", strerror(-error));
	}
	return result;
}

enum floor_tpm floor_enforce(const struct owner *owner, uint64_t release, const char *digest, bool rescue,
			     struct floor *floor)
{
	int fd = tpm_open("/dev/tpm0");
	struct tpm tpm = { tpm_device_exchange, &fd };
	struct floor_places places = { OWNER, INBOX, fd < 0 ? NULL : &tpm };

	if (fd < 0 && fd != -ENOENT)
		say_tpm("open", fd);
	enum floor_tpm result = floor_settle_at(&places, owner, release, digest, floor);
	if (fd >= 0)
		close(fd);
	if (floor->refused && !(rescue && release >= floor->named))
		die("this release, number %" PRIu64 ", is below the rollback floor %" PRIu64 " of this locked machine", release,
		    floor->effective);
	return result;
}

const char *floor_tpm_name(enum floor_tpm tpm)
{
	static const char *const names[] = { "none", "unused", "kept", "anew", "failed" };

	return names[tpm];
}
