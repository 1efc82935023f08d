/* SPDX-License-Identifier: Apache-2.0 */
/* The guard's loader: used by the early boot program (load, latch) and by guardctl (latch, status). */
#ifndef FREEHOLD_EARLY_GUARD_H
#define FREEHOLD_EARLY_GUARD_H

#include <stdbool.h>

#define GUARD_BPFFS "/sys/fs/bpf"
#define GUARD_PINS GUARD_BPFFS "/freehold"
#define GUARD_JIT_LIMIT 16
#define GUARD_DISKS_LIMIT 8
#define GUARD_INTERPRETERS_LIMIT 64

struct guard_disk {
	unsigned major, minor;
};

/* A sealed program that runs text, and how it takes its script (enum guard_interpreter_kind of bpf/guard.h). */
struct guard_program {
	unsigned long long ino;
	unsigned kind;
};

/* Device numbers as stat(2) gives them. The owner directory lies at the top of its file system. Unused ends of
 * jit_inodes are 0: sealed programs, by inode number on the sealed overlay, that may have anonymous executable memory.
 * etc is 0:0 when /etc is no file system of its own. disks are the block devices that hold the owner directory: its
 * partition, the whole disk, and what those are made of; the first one with major 0 ends the list. interpreters are those of the tree's /usr/bin, by their names. */
struct guard_config {
	unsigned sealed_major, sealed_minor;
	unsigned owner_major, owner_minor;
	unsigned long long owner_ino;
	unsigned long long jit_inodes[GUARD_JIT_LIMIT];
	struct guard_program interpreters[GUARD_INTERPRETERS_LIMIT];
	unsigned etc_major, etc_minor;
	unsigned long long root_mount;
	struct guard_disk disks[GUARD_DISKS_LIMIT];
};

/* Fills everything but jit_inodes, for the sealed tree mounted at `root` (with /etc in its place) and the owner
 * directory `owner`. Needs /sys. The tree's mount may be moved afterwards, but not made anew. 0, or
 * -errno. */
int guard_describe(const char *root, const char *owner, struct guard_config *config);

/* Loads and attaches the programs in open mode and pins them below GUARD_PINS; mounts bpffs at GUARD_BPFFS if it is not.
 * Needs /proc and /sys, and the first mount namespace. Processes that run already are tagged as the programs would have
 * tagged them. When it fails nothing of it stays. 0, or -errno with one line on standard error. */
int guard_load(const struct guard_config *config);

/* What the kernel says its maps and programs take, in bytes, as they were loaded; 0 unless this process did it. What it
 * keeps for each task and inode comes on top. The maps that decide are open to nobody later. */
void guard_kept(unsigned long long *maps, unsigned long long *programs);

/* Has the process (a name in /proc) a thread that is privileged, as docs/guard.md has it? */
bool guard_is_privileged(const char *pid);

/* Raises the mode (GUARD_AUDIT or GUARD_LOCKED) through the pins, with GUARD_FLAGS. 0, or -errno with one line on standard
 * error; -EPERM when the mode is already higher, or this high without these flags. */
int guard_latch(unsigned mode, unsigned flags);

/* The mode now (GUARD_OPEN and up), or -errno: -ENOENT when the guard is not loaded. Prints nothing. */
int guard_mode(void);

/* The flags that the mode was raised with; 0 while open. Prints nothing. */
unsigned guard_flags(void);

#endif
