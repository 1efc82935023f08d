/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Test program for the reporter of refusals. Arguments: the state file, "last" or "now".
 * Standard input: any number of looks; each is a time (8 bytes), a number of records (8 bytes), and the records: key,
 * 4 bytes of padding, value. Each datagram is printed after its length in four bytes; each look ends with a length of 0.
 * With "mute" as third argument nothing can be sent.
 */
#include <stdio.h>
#include <string.h>

#include "refusals.h"

static struct refusals all;

static bool print(const char *message, size_t length)
{
	__u32 size = length;

	return fwrite(&size, 4, 1, stdout) == 1 && fwrite(message, 1, length, stdout) == length;
}

static bool fail(const char *message, size_t length)
{
	(void)message;
	(void)length;
	return false;
}

int main(int argc, char **argv)
{
	struct record {
		struct guard_denial_key key;
		__u32 padding;
		struct guard_denial denial;
	} record;
	__u64 head[2];
	__u32 end = 0;

	all.send = argc > 3 ? fail : print;
	if (refusals_load(&all, argv[1]) != 0)
		return 3;
	while (fread(head, sizeof(head), 1, stdin) == 1) {
		refusals_begin(&all);
		for (__u64 i = 0; i < head[1]; i++) {
			if (fread(&record, sizeof(record), 1, stdin) != 1)
				return 4;
			refusals_show(&all, &record.key, &record.denial, head[0], strcmp(argv[2], "last") == 0);
		}
		refusals_end(&all);
		fwrite(&end, 4, 1, stdout);
	}
	return refusals_save(&all, argv[1]) == 0 ? 0 : 5;
}
