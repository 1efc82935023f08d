/* SPDX-License-Identifier: Apache-2.0 */
#include "floor.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "disk.h"
#include "memory.h"
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

uint64_t floor_number(const char *text)
{
	char again[32], *end;
	unsigned long long value = strtoull(text, &end, 10);

	snprintf(again, sizeof(again), "%llu", value);
	return strcmp(again, text) == 0 && value <= INTENT_MAX_NUMBER ? value : 0;
}

static bool differs(const struct floor_copy *copy, const struct floor_copy *wanted)
{
	return !copy->present || copy->raised != wanted->raised || copy->serial != wanted->serial;
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

/* What commands of the running system may know of the TPM's memory: the guard closes this directory, not the TPM. */
static void note_memory(const char *directory, const struct memory *memory)
{
	char text[MEMORY_MAX_FILE], there[MEMORY_MAX_FILE], path[128];
	size_t length = memory_write_text(memory, text);
	int error = 0;

	snprintf(path, sizeof(path), "%s/remembered", directory);
	ssize_t old = read_file(path, there, sizeof(there));
	if (!length && old != -ENOENT)
		error = unlink(path) < 0 ? -errno : 0;
	else if (length && (old != (ssize_t)length || memcmp(there, text, length) != 0))
		error = write_file_durably(directory, "remembered", text, length);
	if (error)
		say("%s cannot be kept: %s", path, strerror(-error));
}

enum floor_tpm floor_settle_at(const struct floor_places *places, const struct owner *owner, uint64_t release,
			       const char *digest, struct floor *floor)
{
	struct floor_facts facts = {
		.standing = owner->standing,
		.intent = &owner->intent,
		.release = release,
		.confirmed = confirmed(places->inbox, digest),
		.tpm = places->memory->floor,
	};
	char text[FLOOR_MAX_TEXT];
	struct memory next;

	read_file_copy(places->owner, &facts.file);
	facts.tpm.foreign = strcmp(places->memory->machine, owner->machine) != 0;
	floor_judge(&facts, floor);
	struct floor_copy copy = { .present = true, .raised = floor->raised, .serial = floor->serial };
	/*
	 * Without an owner's word nothing is changed: a machine that never was locked leaves nothing in the TPM, and what
	 * is in there of a machine that lost its owner's directory waits for the owner.
	 */
	bool wanted = memory_next(places->memory, owner, floor, &next);
	if (floor->set)
		say("the owner set the rollback floor to %" PRIu64, floor->effective);
	if (floor->risen)
		say("the rollback floor rises to %" PRIu64 ", this release", floor->raised);
	enum floor_tpm result = memory_keep(places->tpm, places->memory, &next, wanted, facts.file.present);
	if (wanted && (facts.file.present || facts.tpm.present || floor->effective > 0) && differs(&facts.file, &copy)) {
		int error = write_file_durably(places->owner, "floor", text, floor_write_text(&copy, text));
		if (error)
			say("the rollback floor cannot be stored: %s", strerror(-error));
	}
	note_memory(places->owner, &next);
	return result;
}

enum floor_tpm floor_enforce(const struct tpm *tpm, const struct memory *memory, const struct owner *owner, uint64_t release,
			     const char *digest, bool rescue, struct floor *floor)
{
	struct floor_places places = { OWNER, INBOX, tpm, memory };
	enum floor_tpm result = floor_settle_at(&places, owner, release, digest, floor);

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
