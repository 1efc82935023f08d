/* SPDX-License-Identifier: Apache-2.0 */
/* What of the guard's records is new, and how the journal is told (early/refusals.c). No BPF in here. */
#ifndef FREEHOLD_EARLY_REFUSALS_H
#define FREEHOLD_EARLY_REFUSALS_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/types.h>

#include "../bpf/guard.h"

#define REFUSALS_LIMIT 2048 /* twice the guard's own table */
#define REFUSALS_LINES 16   /* lines per look; what is more becomes one line */
#define REFUSALS_PAUSE 60   /* seconds between two lines about the same */
#define REFUSALS_MESSAGE 4096

struct refusals_known {
	struct guard_denial_key key;
	__u64 told;    /* refusals that the journal has */
	__u64 told_at; /* seconds since boot */
	__u32 seen;    /* still in the guard's table */
};

struct refusals {
	__u32 count;
	struct refusals_known known[REFUSALS_LIMIT];
	/* Of this look. */
	__u32 lines;
	__u64 flood, flood_kinds;
	bool waiting; /* something is new, and its line has to wait */
	/* Sends one datagram; false: not sent, so not told. */
	bool (*send)(const char *message, size_t length);
};

/* A look begins; every record is shown; the look ends. `now` in seconds since boot; `last`: nothing waits any more. */
void refusals_begin(struct refusals *all);
void refusals_show(struct refusals *all, const struct guard_denial_key *key, const struct guard_denial *denial, __u64 now,
		   bool last);
void refusals_end(struct refusals *all);

/* The journal's native protocol: one refusal, `fresh` of which are new. Returns the length. Pure. */
size_t refusals_message(char *out, const struct guard_denial_key *key, const struct guard_denial *denial, __u64 fresh);

/* What was told survives a restart of the reporter, in a file of /run. 0 or -errno; load takes a file of another form
 * as none. */
int refusals_save(const struct refusals *all, const char *path);
int refusals_load(struct refusals *all, const char *path);

#endif
