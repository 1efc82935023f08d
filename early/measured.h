/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What this boot is, in the TPM (docs/attest.md): PCR 15 begins with it. systemd measures into that PCR what a system
 * is (systemd-pcrmachine: the machine's id), after us; nothing measures into it before. A PCR takes nothing back, so
 * who has root later cannot say that the boot was another one.
 */
#ifndef FREEHOLD_MEASURED_H
#define FREEHOLD_MEASURED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "owner.h"
#include "tpm.h"

#define MEASURED_PCR 15
#define MEASURED_MAX 640

struct measured {
	const char *image; /* digest of the running image, hex */
	uint64_t release;
	const struct owner *owner;
	bool rescue;
};

/* The lock of this boot: the intent's, locked when it is not believed, else open. A rescue is locked in any case. */
enum intent_lock measured_lock(const struct owner *owner);

/* The text; returns its length. freehold.attest.measured reads it. Pure. */
size_t measured_write(const struct measured *measured, char text[MEASURED_MAX]);

/*
 * Extend the PCR with the SHA-256 of the text, then leave the text as DIRECTORY/measured. `tpm` may be NULL: nothing is
 * done. What fails is said; then nothing can be proved of this boot, and it goes on.
 */
void measured_extend(const struct tpm *tpm, const struct measured *measured, const char *directory);

#endif
