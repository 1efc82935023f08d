/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the TPM remembers of the owner's word (docs/memory.md): the newest intent that ever stood, whether it locked the
 * machine, and beside it the raised rollback floor (floor.h). One index, closed for writing at each boot.
 *
 * Whoever has the disk can remove the intent, or put an older one back. Where the newest one that stood locked the
 * machine, neither is believed, and the machine keeps the id for which that one was signed: with another id it would
 * take what the owner signed for another machine.
 */
#ifndef FREEHOLD_MEMORY_H
#define FREEHOLD_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "floor.h"
#include "owner.h"
#include "sha256.h"
#include "tpm.h"

/* Where the index is: in the range for owners (TCG registry of reserved handles). */
#define MEMORY_INDEX 0x01846668u
/*
 * Big endian: version (1 byte, now 2), lock (1), zeros (6), raised floor, floor's serial, intent's serial (8 each),
 * machine's id (16), begin of the SHA-256 of the intent's text (16).
 */
#define MEMORY_NV_SIZE 64
#define MEMORY_VERSION 2
#define MEMORY_TEXT 16
#define MEMORY_MAX_FILE 128
#define MEMORY_WAY_BACK "put the newest one back, sign a newer one (rescue entry, inbox), or clear the TPM in the firmware"

/* In the index as 1, 2, 3; 0 is nothing. */
enum remembered { REMEMBERED_NOTHING, REMEMBERED_OPEN, REMEMBERED_AUDIT, REMEMBERED_LOCKED };

enum memory_state {
	MEMORY_NONE,	/* no TPM */
	MEMORY_EMPTY,	/* no index */
	MEMORY_BLANK,	/* an index that was never written */
	MEMORY_FAILED,	/* the TPM could not be asked; said */
	MEMORY_READ,
	MEMORY_UNKNOWN, /* of a version, or with values, that nobody here writes: locked, whoever wrote it */
};

struct memory {
	enum memory_state state;
	int error; /* of MEMORY_FAILED */
	enum remembered lock;
	uint64_t serial;
	char machine[MACHINE_HEX + 1]; /* empty: none */
	unsigned char text[MEMORY_TEXT];
	struct floor_copy floor;
};

/* The index's bytes. Pure, as all up to memory_read(). */
void memory_pack(const struct memory *memory, unsigned char data[MEMORY_NV_SIZE]);
void memory_unpack(const unsigned char data[MEMORY_NV_SIZE], struct memory *memory);

/*
 * Why the standing intent is not believed, as the TPM remembers; NULL when the standing may stay what it is.
 * `intent` and `digest` (SHA-256 of its text) are looked at only when the standing is valid.
 */
const char *memory_fault(const struct memory *memory, enum standing standing, const struct intent *intent,
			 const unsigned char digest[SHA256_SIZE]);

/* Whether a signed intent for this machine may stand: where locked is remembered, that very one or a newer one. */
bool memory_allows(const struct memory *memory, const struct intent *intent, const unsigned char digest[SHA256_SIZE]);

/* The id that this machine has to have, or NULL: that of the intent that locked it. */
const char *memory_machine(const struct memory *memory);

/* What is to be remembered after this boot. Only a valid standing changes anything. Returns whether it is so. */
bool memory_next(const struct memory *old, const struct owner *owner, const struct floor *floor, struct memory *next);

/* "nothing", "open", "audit", "locked". */
const char *memory_lock_name(enum remembered lock);

/* Text for the owner's directory, for commands of the running system; returns its length, 0 when nothing is known. */
size_t memory_write_text(const struct memory *memory, char text[MEMORY_MAX_FILE]);

/* Read the index; `tpm` may be NULL. An index that cannot be ours is removed. What fails is said in one line. */
void memory_read(const struct tpm *tpm, struct memory *memory);

/*
 * Bring the index up to date (`wanted`) and close it for this boot; close it in any case where there is one. `had_floor`:
 * the owner's directory has a floor. Returns what became of it; `next` is what the TPM has after that.
 */
enum floor_tpm memory_keep(const struct tpm *tpm, const struct memory *old, struct memory *next, bool wanted, bool had_floor);

#endif
