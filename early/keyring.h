/* SPDX-License-Identifier: Apache-2.0 */
/* The keychain in the kernel's keyrings. All cryptography is the kernel's; no libkeyutils. */
#ifndef FREEHOLD_KEYRING_H
#define FREEHOLD_KEYRING_H

#include <stddef.h>
#include <stdint.h>

/*
 * Put every certificate (.der) of directory DIR into the kernel's .fs-verity ring and seal it, for good, also when
 * a certificate was refused. Needs /proc. Returns 0, -ENOENT when there is no certificate, or -errno.
 */
int keyring_load_verity(const char *dir);

/*
 * Was `data` signed (RSA PKCS#1 v1.5, SHA-256, raw) by one of the certificates ROLE-NAME.der in DIR?
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
