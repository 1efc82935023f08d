/* SPDX-License-Identifier: Apache-2.0 */
/* The owner's directory on the disk: this machine's id and the standing, signed intent. */
#ifndef FREEHOLD_OWNER_H
#define FREEHOLD_OWNER_H

#include <stdbool.h>

#include "intent.h"
#include "sha256.h"

#define OWNER DISK "/owner"
#define MACHINE_HEX 32

enum standing {
	STANDING_ABSENT,  /* never locked: open */
	STANDING_VALID,
	STANDING_INVALID, /* it does not verify, or the TPM remembers a newer one that locked: locked, with factory settings */
};

struct memory;

struct owner {
	char machine[MACHINE_HEX + 1];
	bool first_boot;
	bool replaced; /* the inbox had a newer, valid intent and it stands now */
	enum standing standing;
	const char *forgotten; /* why the TPM's memory overrules what stands on the disk; NULL: it does not */
	struct intent intent;
	unsigned char text[SHA256_SIZE];      /* of a valid one: SHA-256 of its text */
	unsigned char signed_text[SHA256_SIZE]; /* and with its signature line */
};

/*
 * Create the owner's directory at the first boot, take a newer intent from the inbox if its
 * signature, machine and serial are right and its floor is not above `release`, the number of the release that boots,
 * and read the standing one; both only as far as what the TPM remembers (memory.h) allows. The only writer of the
 * standing intent on a locked machine. Dies when the directory cannot be made or read.
 *
 * Where the memory says which machine this is, OWNER/id becomes that; another one stays beside it as id.aside.
 *
 * An intent that names another committed /etc than the standing one is taken only if the kernel measures that image, in the
 * owner's directory or in the inbox, from where it is taken over first (commits.h). What stands is kept among the commits.
 *
 * Survives a power cut at any point: the image comes before the intent that names it; the inbox is removed only after the
 * new intent is durable, and a second pass over the same inbox finds a serial that is not newer.
 */
void owner_read(struct owner *owner, const struct memory *memory, uint64_t release);

#endif
