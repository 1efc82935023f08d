/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel measures of a file with fs-verity. Unit tests put a digest of their own in its place. */
#ifndef FREEHOLD_VERITY_H
#define FREEHOLD_VERITY_H

#include <stdbool.h>

#define DIGEST_HEX 64

/* True when `text` is exactly 64 lower-case hex digits. */
bool is_digest(const char *text);

/* The SHA-256 digest that is enforced for the open file `fd`, in hex. 0, -EBADMSG for another algorithm, or -errno. */
int verity_measure(int fd, char hex[DIGEST_HEX + 1]);

#endif
