/* SPDX-License-Identifier: Apache-2.0 */
/* Small helpers of the early-boot step: messages, files, the kernel command line. */
#ifndef FREEHOLD_UTIL_H
#define FREEHOLD_UTIL_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* Say one line on every console and in the kernel log. */
__attribute__((format(printf, 1, 2))) void say(const char *format, ...);

/*
 * What is done with the reason before a restart, if anything: set once, by main. Returns the seconds that a person gets
 * to read it.
 */
extern unsigned (*at_death)(const char *reason);

/* Say why this machine cannot boot this deployment and restart it, so that boot counting goes on. */
__attribute__((format(printf, 1, 2), noreturn)) void die(const char *format, ...);

/* Read a whole file of at most `size` bytes. Returns its length, -EFBIG when longer, or -errno. */
ssize_t read_file(const char *path, void *buffer, size_t size);

/* Write a file completely, flush it and its directory, under its final name at once. 0 or -errno. */
int write_file_durably(const char *directory, const char *name, const void *data, size_t size);

/* Create a directory unless it exists. 0 or -errno. */
int make_directory(const char *path, unsigned mode);

/* The same, and a file or a link in its place is removed: what is mounted there must not land elsewhere. 0 or -errno. */
int real_directory(const char *path, unsigned mode);

/* mount(2) that says what it tried. 0 or -errno. */
int mount_at(const char *source, const char *target, const char *type, unsigned long flags, const char *options);

/* Is the kernel's command line, word for word, one of the lines of the file `path`? */
bool command_line_is_sealed(const char *path);

/* Are two lines (each ends at a newline or a zero) the same words? Pure. */
bool same_words(const char *one, const char *other);

/* The value of `name=` on the kernel command line, or false. The first one wins: what others appended comes later. */
bool command_line_value(const char *name, char *value, size_t size);

#endif
