/* SPDX-License-Identifier: Apache-2.0 */
/* Emergency ssh: the key that the intent names is put into force, or none is. docs/emergency-ssh.md. */
#ifndef FREEHOLD_EMERGENCY_H
#define FREEHOLD_EMERGENCY_H

#include <stdbool.h>
#include <stddef.h>

/* The one key in force, as sshd reads it; the emergency sshd's unit and launcher go by it. */
#define EMERGENCY_DIRECTORY OWNER "/emergency"
#define EMERGENCY_KEY EMERGENCY_DIRECTORY "/key"
#define EMERGENCY_PORT 2222
#define EMERGENCY_DIGEST 44 /* base64 of SHA-256, with padding */

/*
 * Is `line` one public key, "TYPE BASE64\n", of a type that emergency ssh takes, and SHA-256 of its blob `digest` (as the
 * intent has it)? Pure; touches nothing beyond line[length - 1].
 */
bool emergency_matches(const char *line, size_t length, const char *digest);

/*
 * At each boot, before anything of the disk runs: EMERGENCY_KEY is written anew from the stored key that `digest` names, or
 * removed where that is empty, missing or forged. Returns whether one is in force. Needs the owner's directory.
 */
bool emergency_settle(const char *digest);

#endif
