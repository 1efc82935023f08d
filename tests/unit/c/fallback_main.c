/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Test program for the way out of a refusal. The first argument says what:
 *   choose        records of three: LoaderEntries' value, the selected id, the chain. Prints the ids, then the choice
 *   same A B      whether the two name one entry
 *   pattern ID    what the boot loader is asked for
 *   append ID REASON    a record, the chain, gives the longer chain
 *   refuse DIRECTORY REASON, done DIRECTORY TARGET    with files as efivarfs has them
 * What would be said on the console comes in brackets.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fallback.h"
#include "util.h"
#include "say.h"

struct record {
	unsigned char *data;
	size_t length;
};

static bool read_record(struct record *record)
{
	unsigned char head[4];

	if (fread(head, 1, 4, stdin) != 4)
		return false;
	record->length = head[0] | (size_t)head[1] << 8 | (size_t)head[2] << 16 | (size_t)head[3] << 24;
	/* Exactly as large as the input, so that the sanitizer sees one byte too many. */
	record->data = malloc(record->length);
	return fread(record->data, 1, record->length, stdin) == record->length;
}

static void choose(void)
{
	struct record entries, selected, chain;

	while (read_record(&entries) && read_record(&selected) && read_record(&chain)) {
		char id[FALLBACK_MAX_ID], own[FALLBACK_MAX_ID] = "";
		size_t offset = 0;

		memcpy(own, selected.data, selected.length < sizeof(own) ? selected.length : 0);
		while (fallback_next_id(entries.data, entries.length, &offset, id))
			printf("%s ", id);
		enum fallback next =
			fallback_choose(entries.data, entries.length, own, (char *)chain.data, chain.length, id);
		printf("%d %s\n", (int)next, next == FALLBACK_NONE ? "-" : id);
		free(entries.data);
		free(selected.data);
		free(chain.data);
	}
}

int main(int argc, char **argv)
{
	static char out[FALLBACK_MAX_CHAIN];
	struct record chain;
	const char *what = argc > 1 ? argv[1] : "";

	if (strcmp(what, "choose") == 0)
		choose();
	else if (strcmp(what, "same") == 0 && argc == 4)
		printf("%d\n", fallback_same_id(argv[2], argv[3]));
	else if (strcmp(what, "pattern") == 0 && argc == 3) {
		fallback_pattern(argv[2], out);
		printf("%s\n", out);
	} else if (strcmp(what, "append") == 0 && argc == 4 && read_record(&chain)) {
		fwrite(out, 1, fallback_append((char *)chain.data, chain.length, argv[2], argv[3], out), stdout);
		free(chain.data);
	} else if (strcmp(what, "refuse") == 0 && argc == 4)
		printf("%u\n", fallback_refuse_in(argv[2], argv[3]));
	else if (strcmp(what, "done") == 0 && argc == 4)
		fallback_done_in(argv[2], argv[3]);
	else
		return 2;
	return 0;
}
