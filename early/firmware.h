/* SPDX-License-Identifier: Apache-2.0 */
/* What the UEFI firmware says: is Secure Boot on, whose signatures does it believe, whose not any more. */
#ifndef FREEHOLD_FIRMWARE_H
#define FREEHOLD_FIRMWARE_H

#include <stdbool.h>
#include <stddef.h>

#include "revoked.h"

/* Where its variables are, once firmware_read() was here. */
#define FIRMWARE_VARIABLES "/sys/firmware/efi/efivars"

struct lists {
	const unsigned char *data;
	size_t length;
};

struct firmware {
	bool secure_boot;     /* on, and not in setup mode */
	struct lists db, mok; /* whose signatures count: firmware's list, shim's list; well formed */
	const char *fault;    /* why they are empty although Secure Boot is on, else NULL */
};

/*
 * Ask the firmware; what it revoked is added to `revoked`. Needs /sys; leaves efivarfs mounted below it. Without
 * UEFI, or where a variable is missing that every Secure Boot has, secure_boot is false.
 */
void firmware_read(struct firmware *firmware, struct revoked *revoked);

/* The same from a directory with a file for each variable, as efivarfs has them. */
void firmware_read_from(const char *directory, struct firmware *firmware, struct revoked *revoked);

/*
 * The value of a boolean variable of the firmware's own: `data` is attributes, then one byte. One that is stored
 * (non-volatile) was written by somebody else, and counts as 0, as does anything of another length.
 */
bool firmware_flag(const unsigned char *data, size_t length);

/*
 * Call `use` with each certificate that counts for files; `use` says whether it took it. Certificates that are there
 * for firmware's own programs (option ROMs) are not offered. Counts both kinds of certificates, taken and not.
 */
void firmware_offer(const struct firmware *firmware, bool (*use)(const unsigned char *, size_t, void *), void *argument,
		    int *taken, int *skipped);

#endif
