/* SPDX-License-Identifier: Apache-2.0 */
/* The owner's intent, parsed. docs/intent.md is the format; freehold.lock.intent reads the same. */
#ifndef FREEHOLD_INTENT_H
#define FREEHOLD_INTENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define INTENT_MAX_BYTES 65536
#define INTENT_MAX_NUMBER (UINT64_C(1) << 53)

enum intent_lock { INTENT_OPEN, INTENT_AUDIT, INTENT_LOCKED };
enum intent_tier { INTENT_PRIVILEGED, INTENT_ALL_CODE };
enum intent_scripts { INTENT_S1, INTENT_S2 };

struct intent {
	uint64_t serial;
	uint64_t since;		/* seconds since 1970, informational */
	enum intent_lock lock;
	enum intent_tier tier;
	enum intent_scripts scripts;
	bool has_floor;		/* it says a floor, perhaps 0: the raised one is set to exactly that */
	uint64_t floor;		/* no release below it boots while locked; 0: none */
	bool strict;		/* no device key: the owner signs every deployment */
	char machine[32 + 1];	/* lower-case hex */
	char config[64 + 1];	/* lower-case hex; empty: none */
	char emergency_ssh[44 + 1]; /* base64 with its padding; empty: none */
	char requests[64 + 1];	/* SHA-256 of the list of requests, lower-case hex; empty: none */
};

/*
 * Parse the text of an intent (without its signature line). Returns 0, or -EINVAL; then `out` says no more
 * than "locked".
 * Touches nothing beyond data[length - 1] and allocates nothing.
 */
int intent_parse(const unsigned char *data, size_t length, struct intent *out);

/* "open", "audit" or "locked"; "privileged" or "all-code"; "s1" or "s2". */
const char *intent_lock_name(enum intent_lock lock);
const char *intent_tier_name(enum intent_tier tier);
const char *intent_scripts_name(enum intent_scripts scripts);

#endif
