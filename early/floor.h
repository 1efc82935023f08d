/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rollback floor (docs/floor.md): a locked machine boots no release with a lower number.
 *
 * The floor in force is the higher of the intent's and the machine's own raised one. The raised one is kept in the
 * owner's directory, which the guard closes, and in the TPM where there is one, closed for the rest of the boot.
 * Each copy says up to which of the owner's intents it is right. An intent that names a floor and is newer than a
 * copy sets that copy to exactly its floor: so the owner lowers it, once for each intent.
 *
 * The raised floor rises only here, only to the number of the release that is booting, and only where a boot of that
 * same image was found healthy before. A floor of the intent that is higher than the release which would take the
 * intent is not taken (owner.c). Therefore the floor never rises above a release that boots.
 */
#ifndef FREEHOLD_FLOOR_H
#define FREEHOLD_FLOOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "owner.h"
#include "tpm.h"

#define FLOOR_MAX_TEXT 96

struct memory;

/* One copy of the raised floor. */
struct floor_copy {
	bool present;
	bool foreign; /* it is of another machine id */
	uint64_t raised;
	uint64_t serial; /* the newest intent that named a floor when this was written; 0: none did */
};

struct floor_facts {
	enum standing standing;
	const struct intent *intent; /* looked at only when the standing is valid */
	uint64_t release;
	bool confirmed; /* a boot of this image was healthy before */
	struct floor_copy file, tpm;
};

struct floor {
	uint64_t raised, serial; /* what both copies shall be */
	uint64_t named;	       /* by the standing intent; 0: none */
	uint64_t effective;
	bool refused; /* this release may not boot */
	bool risen;   /* by this boot */
	bool set;     /* to what a newer intent says */
};

enum floor_tpm { FLOOR_TPM_NONE, FLOOR_TPM_UNUSED, FLOOR_TPM_KEPT, FLOOR_TPM_ANEW, FLOOR_TPM_FAILED };

/* Where the copies are: the file's directory, the mark of a healthy boot, and what was read from the TPM (may be NULL). */
struct floor_places {
	const char *owner, *inbox;
	const struct tpm *tpm;
	const struct memory *memory;
};

/*
 * Whether a boot of `release` may take a new intent: one with a floor above it would refuse this release, and perhaps
 * there is no other. Pure, as the next one.
 */
bool floor_may_take(const struct intent *offered, uint64_t release);

void floor_judge(const struct floor_facts *facts, struct floor *floor);

/* The file's text: both return its length; 0 when it is none. `text` of at least FLOOR_MAX_TEXT bytes. */
size_t floor_write_text(const struct floor_copy *copy, char *text);
size_t floor_read_text(const char *text, size_t length, struct floor_copy *copy);

/* A decimal number from 0 to 2^53 in one spelling; anything else is 0, no number. */
uint64_t floor_number(const char *text);

/*
 * Judge by both copies, write back what differs, with what the TPM remembers of the intent (memory.h), and close the
 * TPM's index for this boot. What fails is said in one line, and the boot goes on with the other copy. The files are
 * written last: a power cut before that leaves one that the next boot brings up to date by the same rule. Returns what
 * became of the TPM's index.
 */
enum floor_tpm floor_settle_at(const struct floor_places *places, const struct owner *owner, uint64_t release,
			       const char *digest, struct floor *floor);

/*
 * The same with this machine's own places. Dies when the release may not boot. A `rescue` is held to the floor that the
 * owner signed, not to the raised one: copies that somebody damaged shall not shut the owner out.
 */
enum floor_tpm floor_enforce(const struct tpm *tpm, const struct memory *memory, const struct owner *owner, uint64_t release,
			     const char *digest, bool rescue, struct floor *floor);

/* "none", "unused", "kept", "anew" or "failed". */
const char *floor_tpm_name(enum floor_tpm tpm);

#endif
