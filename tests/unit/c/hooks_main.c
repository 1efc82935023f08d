/* SPDX-License-Identifier: Apache-2.0 */
/* Test program for early/hooks.h: the hooks of a file of BTF, a line each; or the number of the error. */
#include <stdio.h>

#include "hooks.h"

int main(int argc, char **argv)
{
	struct hooks hooks;
	int error = argc == 2 ? hooks_read(&hooks, argv[1]) : -EINVAL;

	if (error)
		printf("error %d\n", -error);
	for (unsigned i = 0; !error && i < hooks.count; i++)
		printf("%s %u\n", hooks.hook[i].name, hooks_find(&hooks, hooks.hook[i].name));
	if (argc == 2)
		hooks_forget(&hooks);
	return 0;
}
