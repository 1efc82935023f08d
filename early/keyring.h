/* SPDX-License-Identifier: Apache-2.0 */
/* The keychain in the kernel's keyrings. All cryptography is the kernel's; no libkeyutils. */
#ifndef FREEHOLD_KEYRING_H
#define FREEHOLD_KEYRING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct firmware;
struct revoked;

/* What the .fs-verity ring was filled with. */
struct keyring_filled {
	bool from_firmware; /* from the firmware's lists, else from the image's own keychain */
	int loaded;	    /* certificates that are in it */
	int own;	    /* of the firmware's: those that the image's keychain has as well */
	int skipped;	    /* that were offered and are not: revoked, for firmware's programs only, unknown to the kernel */
};

/* From now on these certificates are neither loaded nor believed. The list is not copied. */
void keyring_refuse(const struct revoked *revoked);

/*
 * Fill the kernel's .fs-verity ring and seal it, for good, also when something went wrong. With Secure Boot on, the
 * firmware's certificates go in and no others; where there are none that can be used, and without Secure Boot, those
 * of directory DIR (.der), which the image brings along. Needs /proc. Returns 0, -ENOENT when there is no certificate,
 * or -errno.
 */
int keyring_load_verity(const char *dir, const struct firmware *firmware, struct keyring_filled *filled);

/*
 * Was `data` signed (RSA PKCS#1 v1.5, SHA-256, raw) by one of the certificates ROLE-NAME.der in DIR that is not refused?
 * Returns 1 for yes, 0 for no (also when no certificate has that role), -errno when it cannot be told.
 */
int keyring_verify(const char *dir, const char *role, const unsigned char *data, size_t data_length,
		   const unsigned char *signature, size_t signature_length);

/*
 * The id in a line of /proc/keys, if it is the live keyring called `name` that belongs to uid 0, else 0.
 * `line` is terminated.
 */
int32_t keyring_parse_line(const char *line, const char *name);

#endif
