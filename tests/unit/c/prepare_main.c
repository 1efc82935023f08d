/* SPDX-License-Identifier: Apache-2.0 */
/* Test program for early/prepare.c: cover ROOT | gate STARTED ENDED. Mounts are printed, not made. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "prepare.h"
#include "util.h"

int __wrap_mount_at(const char *source, const char *target, const char *type, unsigned long flags, const char *options);

int __wrap_mount_at(const char *source, const char *target, const char *type, unsigned long flags, const char *options)
{
	printf("%s %s %s %lx %s\n", source, target, type, flags, options);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && strcmp(argv[1], "cover") == 0)
		return prepare_cover(argv[2]) ? 1 : 0;
	if (argc == 4 && strcmp(argv[1], "gate") == 0) {
		struct preparation preparation;

		prepare_start(&preparation);
		while (access(argv[2], F_OK) != 0)
			usleep(1000);
		/* It runs; it must not get past the gate. */
		usleep(200000);
		printf("%s\n", access(argv[3], F_OK) == 0 ? "went on" : "waits");
		prepare_finish(&preparation);
		printf("%s\n", access(argv[3], F_OK) == 0 ? "went on" : "waits");
		return 0;
	}
	return 2;
}
