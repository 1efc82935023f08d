/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the TPM is told of this boot, on every boot, before anything of the disk runs. A PCR takes nothing back: who has
 * root later can add to what was said, and cannot say that the boot was another one.
 *
 * PCR 11, after systemd-stub's measurements: one word about the device key (docs/device-key.md).
 * PCR 15 begins with a text about image and lock (docs/attest.md). systemd measures into that PCR what a system is
 * (systemd-pcrmachine: the machine's id), after us; nothing measures into it before.
 */
#ifndef FREEHOLD_MEASURE_H
#define FREEHOLD_MEASURE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "owner.h"
#include "tpm.h"

/* The words; freehold.keys.pcr has the same. */
#define MEASURE_LOCKED "freehold-locked"
#define MEASURE_NOT_LOCKED "freehold-not-locked"
#define MEASURE_WORD_PCR 11
#define MEASURE_BOOT_PCR 15
#define MEASURE_MAX 640

struct measured {
	const char *image; /* digest of the running image, hex */
	uint64_t release;
	const struct owner *owner;
	bool rescue;
	bool device_key; /* the word: a valid, locked, not strict intent, and no rescue */
};

/* The lock of this boot: the intent's, locked when it is not believed, else open. A rescue is locked in any case. */
enum intent_lock measure_lock(const struct owner *owner);

/* The text; returns its length. freehold.attest.measured reads it. Pure. */
size_t measure_write(const struct measured *measured, char text[MEASURE_MAX]);

/* Measure a word into PCR 11 of the SHA-256 bank. Returns 0, -errno, or -EIO when the TPM refuses. */
int measure_word(const struct tpm *tpm, const char *word);

/*
 * Say to the TPM whether this boot is one that may have the device key. The other word matters as much: without it root
 * of an open boot could say the first one. Nothing without a TPM (NULL).
 */
void measure_intent(const struct tpm *tpm, bool device_key);

/*
 * Extend PCR 15 with the SHA-256 of the text, then leave the text as DIRECTORY/measured. Nothing without a TPM. What fails
 * is said; then nothing can be proved of this boot, and it goes on.
 */
void measure_boot(const struct tpm *tpm, const struct measured *measured, const char *directory);

#endif
