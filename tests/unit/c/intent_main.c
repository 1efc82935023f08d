/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Test program: reads records (32-bit little-endian length, bytes) from standard input. Prints the sha256
 * of each and what intent_parse made of it. With an argument: /proc/keys lines against that ring name.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "intent.h"
#include "keyring.h"
#include "sha256.h"

int main(int argc, char **argv)
{
	unsigned char head[4], digest[SHA256_SIZE];
	struct intent intent;

	while (fread(head, 1, 4, stdin) == 4) {
		size_t length = head[0] | (size_t)head[1] << 8 | (size_t)head[2] << 16 | (size_t)head[3] << 24;
		/* Exactly as large as the input, so that the sanitizer sees one byte too many. */
		unsigned char *data = malloc(length + (argc > 1));
		if (fread(data, 1, length, stdin) != length)
			return 2;
		if (argc > 1) {
			data[length] = '\0';
			printf("%08x\n", (unsigned)keyring_parse_line((const char *)data, argv[1]));
			free(data);
			continue;
		}
		sha256(data, length, digest);
		for (int i = 0; i < SHA256_SIZE; i++)
			printf("%02x", digest[i]);
		if (intent_parse(data, length, &intent) == 0) {
			char floor[24] = "-";
			if (intent.has_floor)
				snprintf(floor, sizeof(floor), "%" PRIu64, intent.floor);
			printf(" %s %" PRIu64 " %s %s %" PRIu64 " %s %s %s %s %d %s\n", intent.machine, intent.serial,
			       intent_lock_name(intent.lock), intent_tier_name(intent.tier), intent.since,
			       intent.config[0] ? intent.config : "-",
			       intent.emergency_ssh[0] ? intent.emergency_ssh : "-", floor,
			       intent.requests[0] ? intent.requests : "-", intent.strict,
			       intent_scripts_name(intent.scripts));
		} else
			printf(" refused\n");
		free(data);
	}
	return 0;
}
