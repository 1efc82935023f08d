/* SPDX-License-Identifier: Apache-2.0 */
/* What the TPM is told of the owner's intent: one word in PCR 11, after systemd-stub's measurements. docs/device-key.md */
#ifndef FREEHOLD_MEASURE_H
#define FREEHOLD_MEASURE_H

#include <stdbool.h>

/* The words; freehold.keys.pcr has the same. */
#define MEASURE_LOCKED "freehold-locked"
#define MEASURE_NOT_LOCKED "freehold-not-locked"

/*
 * Measure a word into PCR 11 of the SHA-256 bank, through a descriptor that takes TPM 2.0 commands and
 * gives their responses. Returns 0, -errno, or -EIO when the TPM refuses.
 */
int measure_word(int fd, const char *word);

/*
 * Say to the TPM whether this boot is one that may have the device key: a valid, locked, not strict intent.
 * The other word matters as much: without it root of an open boot could say the first one. Nothing without a TPM.
 */
void measure_intent(bool device_key);

#endif
