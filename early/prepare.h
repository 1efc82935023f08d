/* SPDX-License-Identifier: Apache-2.0 */
/*
 * boot/prepare: the sealed Python that applies typed machine state and, once, Ignition.
 *
 * Starting Python takes as long as loading the guard, and neither needs the other: so it is started first and waits, at the
 * gate, before it reads anything that root could have written. Its standard input is the gate; it opens when that ends.
 */
#pragma once

#include <sys/types.h>

struct preparation {
	pid_t child;
	int gate;
};

/* An empty file system over each directory below root/var that the sealed tree lists. 0 or -errno. */
int prepare_cover(const char *root);
/* Starts it. Dies when it cannot. */
void prepare_start(struct preparation *preparation);
/* Opens the gate and waits for its end. Dies unless all was well. */
void prepare_finish(struct preparation *preparation);
