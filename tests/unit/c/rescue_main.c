/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Test program for early/rescue.c and early/gpt.c:
 *   word TEXT | line RUNNING SEALED | log INBOX OWNER | loader DIRECTORY | gpt UUID < DISK
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpt.h"
#include "rescue.h"
#include "util.h"

int main(int argc, char **argv)
{
	char uuid[GPT_UUID + 1];

	if (argc == 3 && strcmp(argv[1], "word") == 0)
		printf("%d\n", rescue_word(argv[2]));
	else if (argc == 4 && strcmp(argv[1], "line") == 0)
		printf("%d\n", same_words(argv[2], argv[3]));
	else if (argc == 4 && strcmp(argv[1], "log") == 0)
		rescue_keep_log(argv[2], argv[3]);
	else if (argc == 3 && strcmp(argv[1], "loader") == 0)
		printf("%s\n", gpt_boot_partition(argv[2], uuid) ? uuid : "none");
	else if (argc == 3 && strcmp(argv[1], "gpt") == 0) {
		static unsigned char all[GPT_BYTES];
		size_t length = fread(all, 1, sizeof(all), stdin);
		/* Exactly as large as the input, so that the sanitizer sees one byte too many. */
		unsigned char *data = malloc(length);
		memcpy(data, all, length);
		printf("%d\n", gpt_has(data, length, argv[2]));
		free(data);
	} else
		return 2;
	return 0;
}
