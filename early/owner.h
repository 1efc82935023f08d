/* SPDX-License-Identifier: Apache-2.0 */
/* The owner's directory on the disk: this machine's id and the standing, signed intent. */
#ifndef FREEHOLD_OWNER_H
#define FREEHOLD_OWNER_H

#include <stdbool.h>

#include "intent.h"

#define OWNER DISK "/owner"
#define MACHINE_HEX 32

enum standing {
	STANDING_ABSENT,  /* never locked: open */
	STANDING_VALID,
	STANDING_INVALID, /* there is one and it does not verify: locked, with factory settings */
};

struct owner {
	char machine[MACHINE_HEX + 1];
	bool first_boot;
	bool replaced; /* the inbox had a newer, valid intent and it stands now */
	enum standing standing;
	struct intent intent;
};

/*
 * Create the owner's directory at the first boot, take a newer intent from the inbox if its
 * signature, machine and serial are right and its floor is not above `release`, the number of the release that boots,
 * and read the standing one. The only writer of the
 * standing intent on a locked machine. Dies when the directory cannot be made or read.
 *
 * Survives a power cut at any point: the inbox is removed only after the new intent is durable, and
 * a second pass over the same inbox finds a serial that is not newer.
 */
void owner_read(struct owner *owner, uint64_t release);

#endif
