/* SPDX-License-Identifier: Apache-2.0 */
/* Test program for early/kernel_types.h: hooks FILE, a line each; small FILE NAME…, the BTF. Or the number of the error. */
#define _GNU_SOURCE
#include <stdio.h>

#include "kernel_types.h"

static bool is_named(const char *name, void *names)
{
	for (char **one = names; *one; one++)
		if (strcmp(*one, name) == 0)
			return true;
	return false;
}

int main(int argc, char **argv)
{
	static struct kernel_types types;
	int error = argc > 2 ? types_read(&types, argv[2]) : -EINVAL;

	if (!error && strcmp(argv[1], "small") == 0) {
		char buffer[4096];
		ssize_t got;
		int fd = types_small(&types, is_named, argv + 3);

		error = fd < 0 ? fd : lseek(fd, 0, SEEK_SET) < 0 ? -errno : 0;
		while (!error && (got = read(fd, buffer, sizeof(buffer))) > 0)
			fwrite(buffer, 1, (size_t)got, stdout);
		if (fd >= 0)
			close(fd);
	} else if (!error)
		for (unsigned i = 0; i < types.hooks; i++)
			printf("%s %u\n", types.hook[i].name, types_hook(&types, types.hook[i].name));
	if (error)
		printf("error %d\n", -error);
	types_forget(&types);
	return 0;
}
