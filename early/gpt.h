/* SPDX-License-Identifier: Apache-2.0 */
/* Which disk the boot loader came from, where two carry this system (an installed one and a stick). */
#ifndef FREEHOLD_GPT_H
#define FREEHOLD_GPT_H

#include <stdbool.h>
#include <stddef.h>

#define GPT_UUID 36
/* As much of a disk's begin as holds the table of every usual layout, also with sectors of 4 KiB. */
#define GPT_BYTES (64 << 10)

/*
 * Does the partition table in the first `length` bytes of a disk (UEFI specification, chapter 5.3) have a partition
 * with the unique id `uuid`, in text form? Pure: no checksum is looked at, nothing is believed because of it.
 */
bool gpt_has(const unsigned char *data, size_t length, const char *uuid);

/*
 * The id of the partition that the boot loader was started from, from a directory as efivarfs has it
 * (LoaderDevicePartUUID, Boot Loader Interface). False without one, or when it was not the boot loader that set it.
 */
bool gpt_boot_partition(const char *directory, char uuid[GPT_UUID + 1]);

#endif
