/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The owner's commits of /etc: OWNER/config/DIGEST are their images, OWNER/commits/SERIAL the signed intents that first named
 * them (docs/etc.md; freehold.lock.commits does the same on an open machine).
 */
#ifndef FREEHOLD_COMMITS_H
#define FREEHOLD_COMMITS_H

#include <stddef.h>

#include "intent.h"

/* The last so many commits are kept. */
#define COMMITS_MAX 64
/* Bytes of an image; the same as freehold.device.committed.MAX_IMAGE. */
#define COMMITS_IMAGE_MAX (512LL << 20)

/*
 * Have the image that is called `digest` in OWNER/config. From INBOX/config it is taken over by one rename, if it is a plain
 * file with one name, of at most COMMITS_IMAGE_MAX bytes, of which the kernel measures exactly that digest; links are not
 * followed. 0, -EBADMSG when it is another file, or -errno (-ENOENT: it is nowhere).
 */
int commits_obtain(const char *digest);

/*
 * Keep the standing, verified intent, whose signed form is `data`, unless the newest one that is kept up to its serial names
 * the same image. Then the oldest records beyond COMMITS_MAX go, and after them the images that none of them names. Done
 * at each boot: what a cut left undone, the next one does. What fails is said.
 */
void commits_keep(const struct intent *intent, const unsigned char *data, size_t length);

#endif
