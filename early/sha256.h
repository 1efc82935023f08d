/* SPDX-License-Identifier: Apache-2.0 */
/* SHA-256 (FIPS 180-4): the only cryptographic code of ours in the initrd. */
#ifndef FREEHOLD_SHA256_H
#define FREEHOLD_SHA256_H

#include <stddef.h>
#include <stdint.h>

#define SHA256_SIZE 32

struct sha256 {
	uint32_t state[8];
	uint64_t length; /* bytes so far */
	unsigned char block[64];
};

void sha256_start(struct sha256 *hash);
void sha256_update(struct sha256 *hash, const void *data, size_t length);
void sha256_finish(struct sha256 *hash, unsigned char digest[SHA256_SIZE]);

/* The digest of `length` bytes in one go. */
void sha256(const void *data, size_t length, unsigned char digest[SHA256_SIZE]);

#endif
