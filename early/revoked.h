/* SPDX-License-Identifier: Apache-2.0 */
/* Certificates that count for nothing any more: the image's own list and the firmware's. Pure. */
#ifndef FREEHOLD_REVOKED_H
#define FREEHOLD_REVOKED_H

#include <stdbool.h>
#include <stddef.h>

#include "sha256.h"

#define MAX_REVOKED 1024
#define MAX_REVOKED_TEXT (256 << 10)

struct digests {
	size_t count;
	unsigned char digest[MAX_REVOKED][SHA256_SIZE];
};

/* By sha256 of the whole certificate, and of its signed part. All zeros: nothing is revoked. */
struct revoked {
	struct digests whole, signed_part;
};

/*
 * Add the keychain's list: the line "freehold-revoked 1", then lines "SHA256HEX reason", each ended. Returns 0,
 * -EBADMSG when it is anything else, -E2BIG when there are too many; then nothing more than before is to be believed.
 */
int revoked_add_text(struct revoked *revoked, const unsigned char *text, size_t length);

/*
 * Add the certificates of signature lists (dbx), whole ones and hashes of signed parts. Entries of other kinds are
 * about programs, or name certificates by a hash that we cannot compute: `*unknown` counts the latter. Returns as above.
 */
int revoked_add_lists(struct revoked *revoked, const unsigned char *lists, size_t length, size_t *unknown);

/* Is this certificate revoked, or no certificate that could be looked up? */
bool revoked_has(const struct revoked *revoked, const unsigned char *certificate, size_t length);

#endif
