/* SPDX-License-Identifier: Apache-2.0 */
#include "memory.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util.h"

static void put_number(unsigned char *at, uint64_t value)
{
	for (size_t i = 0; i < 8; i++)
		at[i] = (unsigned char)(value >> (56 - 8 * i));
}

static uint64_t get_number(const unsigned char *at)
{
	uint64_t value = 0;

	for (size_t i = 0; i < 8; i++)
		value = value << 8 | at[i];
	return value;
}

static void put_machine(unsigned char *at, const char *machine)
{
	char pair[3] = "";

	for (size_t i = 0; machine[0] && i < MACHINE_HEX / 2; i++) {
		memcpy(pair, machine + 2 * i, 2);
		at[i] = (unsigned char)strtoul(pair, NULL, 16);
	}
}

void memory_pack(const struct memory *memory, unsigned char data[MEMORY_NV_SIZE])
{
	memset(data, 0, MEMORY_NV_SIZE);
	data[0] = MEMORY_VERSION;
	data[1] = (unsigned char)memory->lock;
	put_number(data + 8, memory->floor.raised);
	put_number(data + 16, memory->floor.serial);
	put_number(data + 24, memory->serial);
	put_machine(data + 32, memory->machine);
	memcpy(data + 48, memory->text, MEMORY_TEXT);
}

void memory_unpack(const unsigned char data[MEMORY_NV_SIZE], struct memory *memory)
{
	unsigned char again[MEMORY_NV_SIZE];

	*memory = (struct memory){ .state = MEMORY_READ };
	memory->lock = data[1] <= REMEMBERED_LOCKED ? (enum remembered)data[1] : REMEMBERED_NOTHING;
	memory->floor = (struct floor_copy){ .raised = get_number(data + 8), .serial = get_number(data + 16) };
	memory->floor.present = memory->floor.raised > 0 || memory->floor.serial > 0;
	memory->serial = get_number(data + 24);
	for (size_t i = 0; i < MACHINE_HEX / 2; i++)
		sprintf(memory->machine + 2 * i, "%02x", data[32 + i]);
	memcpy(memory->text, data + 48, MEMORY_TEXT);
	/* No release has a larger number and no intent such a serial; the rest has one spelling. */
	memory_pack(memory, again);
	if (memcmp(again, data, sizeof(again)) == 0 && memory->lock != REMEMBERED_NOTHING && memory->serial > 0 &&
	    memory->floor.raised <= INTENT_MAX_NUMBER && memory->floor.serial <= INTENT_MAX_NUMBER &&
	    memory->serial <= INTENT_MAX_NUMBER)
		return;
	/* Of a later release, perhaps; whatever it says, it does not say "open" to this one. */
	*memory = (struct memory){ .state = MEMORY_UNKNOWN, .lock = REMEMBERED_LOCKED };
}

bool memory_allows(const struct memory *memory, const struct intent *intent, const unsigned char digest[SHA256_SIZE])
{
	if (memory->lock != REMEMBERED_LOCKED)
		return true;
	/* Two of one serial may have been signed, and only one of them stood. */
	return intent->serial > memory->serial ||
	       (intent->serial == memory->serial && memcmp(digest, memory->text, MEMORY_TEXT) == 0);
}

const char *memory_fault(const struct memory *memory, enum standing standing, const struct intent *intent,
			 const unsigned char digest[SHA256_SIZE])
{
	if (memory->lock != REMEMBERED_LOCKED || standing == STANDING_INVALID)
		return NULL;
	if (standing == STANDING_ABSENT)
		return "it is gone, and the TPM remembers that this machine was locked";
	return memory_allows(memory, intent, digest) ? NULL : "it is not the newest, and the TPM remembers that the newest locked this machine";
}

const char *memory_machine(const struct memory *memory)
{
	return memory->lock == REMEMBERED_LOCKED && memory->machine[0] ? memory->machine : NULL;
}

bool memory_next(const struct memory *old, const struct owner *owner, const struct floor *floor, struct memory *next)
{
	*next = *old;
	if (owner->standing != STANDING_VALID)
		return false;
	/* On a machine that is open by the owner's newest word an older one may stand; the newest is not forgotten. */
	bool newest = strcmp(old->machine, owner->machine) != 0 || owner->intent.serial >= old->serial;
	next->state = MEMORY_READ;
	next->floor.raised = floor->raised;
	next->floor.serial = floor->serial;
	if (newest) {
		next->lock = (enum remembered)(owner->intent.lock + REMEMBERED_OPEN);
		next->serial = owner->intent.serial;
		memcpy(next->machine, owner->machine, sizeof(next->machine));
		memcpy(next->text, owner->text, MEMORY_TEXT);
	}
	return true;
}

const char *memory_lock_name(enum remembered lock)
{
	static const char *const names[] = { "nothing", "open", "audit", "locked" };

	return names[lock];
}

size_t memory_write_text(const struct memory *memory, char text[MEMORY_MAX_FILE])
{
	if (memory->state != MEMORY_READ && memory->state != MEMORY_UNKNOWN)
		return 0;
	int used = snprintf(text, MEMORY_MAX_FILE, "freehold-remembered 1\nlock %s\nserial %" PRIu64 "\ntext ",
			    memory_lock_name(memory->lock), memory->serial);
	for (size_t i = 0; i < MEMORY_TEXT; i++)
		used += snprintf(text + used, MEMORY_MAX_FILE - (size_t)used, "%02x", memory->text[i]);
	text[used++] = '\n';
	return (size_t)used;
}

static void say_tpm(const char *what, int error)
{
	if (error > 0)
		say("the TPM cannot %s what it remembers of lock and rollback floor (its answer is 0x%x): the disk counts", what,
		    (unsigned)error);
	else
		say("the TPM cannot %s what it remembers of lock and rollback floor (%s): the disk counts", what,
		    strerror(-error));
}

void memory_read(const struct tpm *tpm, struct memory *memory)
{
	unsigned char data[MEMORY_NV_SIZE];

	*memory = (struct memory){ .state = MEMORY_NONE };
	if (!tpm)
		return;
	memory->state = MEMORY_EMPTY;
	int error = tpm_nv_check(tpm, MEMORY_INDEX, sizeof(data));
	if (error == TPM_RC_HANDLE)
		return;
	if (error == -EEXIST) {
		say("the TPM's index for lock and rollback floor is not the one that was made: replaced");
		error = tpm_nv_undefine(tpm, MEMORY_INDEX);
		if (!error)
			return;
	}
	memory->state = MEMORY_BLANK;
	if (!error) {
		error = tpm_nv_read(tpm, MEMORY_INDEX, data, sizeof(data));
		if (error == TPM_RC_NV_UNINITIALIZED)
			return;
		if (!error)
			memory_unpack(data, memory);
	}
	if (memory->state == MEMORY_UNKNOWN)
		say("what the TPM remembers of the lock was not written by this release, or not by us: it counts as locked");
	if (error) {
		say_tpm("read", error);
		*memory = (struct memory){ .state = MEMORY_FAILED, .error = error };
	}
}

static int write_index(const struct tpm *tpm, bool *defined, const struct memory *next)
{
	unsigned char data[MEMORY_NV_SIZE];
	int error = *defined ? 0 : tpm_nv_define(tpm, MEMORY_INDEX, sizeof(data));

	*defined = *defined || !error;
	memory_pack(next, data);
	return error ? error : tpm_nv_write(tpm, MEMORY_INDEX, data, sizeof(data));
}

static bool differs(const struct memory *old, const struct memory *next)
{
	unsigned char before[MEMORY_NV_SIZE], after[MEMORY_NV_SIZE];

	memory_pack(old, before);
	memory_pack(next, after);
	return old->state != MEMORY_READ || memcmp(before, after, sizeof(before)) != 0;
}

enum floor_tpm memory_keep(const struct tpm *tpm, const struct memory *old, struct memory *next, bool wanted, bool had_floor)
{
	bool defined = old->state != MEMORY_NONE && old->state != MEMORY_EMPTY;
	enum floor_tpm result = defined ? FLOOR_TPM_KEPT : FLOOR_TPM_UNUSED;

	if (old->state == MEMORY_NONE)
		return FLOOR_TPM_NONE;
	if (old->state == MEMORY_FAILED) {
		*next = *old;
		/* One that cannot be read may still be closed. A TPM that gave no answer is not asked again. */
		if (old->error > 0 && tpm_nv_lock(tpm, MEMORY_INDEX) != 0) {
			/* It was said already that it does not do its work. */
		}
		return FLOOR_TPM_FAILED;
	}
	if (wanted && differs(old, next)) {
		bool anew = old->state != MEMORY_READ;
		int error = write_index(tpm, &defined, next);
		if (error)
			say_tpm("keep", error);
		else if (anew && had_floor)
			say("the TPM has no rollback floor, though this machine has: cleared, or another board; kept anew");
		result = error ? FLOOR_TPM_FAILED : anew ? FLOOR_TPM_ANEW : FLOOR_TPM_KEPT;
		if (error)
			*next = *old;
	}
	if (defined) {
		int error = tpm_nv_lock(tpm, MEMORY_INDEX);
		/* Closed already: this boot was started by kexec. */
		if (error && error != TPM_RC_NV_LOCKED) {
			say_tpm("close", error);
			result = FLOOR_TPM_FAILED;
		}
	}
	return result;
}
