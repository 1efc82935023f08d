/* SPDX-License-Identifier: Apache-2.0 */
/* What a person has to read wherever they look: that firmware did not check what it started, and who may bypass the lock. */
#ifndef FREEHOLD_NOTICE_H
#define FREEHOLD_NOTICE_H

/*
 * Say it on the console, and leave it in /run for the login prompt (issue.d, agetty) and for every login (motd.d,
 * pam_motd). `freehold status` says the same sentence. Needs /run.
 */
void notice_not_verified(void);

/* The same for the key of emergency ssh in force, named by its digest in the intent. */
void notice_emergency(const char *digest);

#endif
