/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Test program, built with a DISK of the test's: which key of emergency ssh a boot puts into force.
 *   settle DIGEST     what is said, in brackets, then 0 or 1
 *   match DIGEST      whether standard input is the key
 */
#include <stdlib.h>
#include <string.h>

#include "emergency.h"
#include "say.h"

int main(int argc, char **argv)
{
	if (argc == 3 && strcmp(argv[1], "match") == 0) {
		char *line = malloc(65536);
		size_t length = fread(line, 1, 65536, stdin);
		char *exact = malloc(length + 1); /* the sanitizer watches its end */

		memcpy(exact, line, length);
		exact = realloc(exact, length ? length : 1);
		printf("%d\n", length > 0 && emergency_matches(exact, length, argv[2]));
		free(line);
		free(exact);
		return 0;
	}
	if (argc != 3 || strcmp(argv[1], "settle") != 0)
		return 2;
	printf("%d\n", emergency_settle(argv[2]));
	return 0;
}
