/* SPDX-License-Identifier: Apache-2.0 */
/* The root partition, verified image files, and the mounts of the sealed tree. */
#ifndef FREEHOLD_DISK_H
#define FREEHOLD_DISK_H

#include <stdbool.h>

#include "verity.h"

/* Where things are mounted while the early step runs. Tests build with a disk of their own. */
#ifndef DISK
#define DISK "/disk"
#endif
#define IMAGE "/image"
#define CONFIG "/config"
#define NEWROOT "/newroot"

/*
 * Wait for the root partition and mount it at DISK; dies when there is none. Of two, the one on the disk that the
 * boot loader came from. Leaves /run/freehold/esp, a link to that disk's boot partition.
 */
void disk_mount(void);

/*
 * Mount the EROFS image `directory`/`digest` at `target` if and only if the kernel's fs-verity
 * measurement of the file is `digest`. 0, -EBADMSG when it is another file, or -errno.
 */
int mount_verified_image(const char *directory, const char *digest, const char *target);

/* Mount the sealed tree at NEWROOT: the image's metadata over the object store; 0 or -errno. */
int mount_sealed_tree(void);

#endif
