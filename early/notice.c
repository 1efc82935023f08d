/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "notice.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "emergency.h"
#include "util.h"

/* freehold.device.status has the same words; a test compares them. */
#define SENTENCE                                                                                                       \
	"not verified: Secure Boot is off, so the chain of trust starts at the initrd; "                               \
	"whoever can write the boot partition can replace it"
/* freehold.lock.emergency has the same words; a test compares them. */
#define EMERGENCY_SENTENCE "emergency ssh: SHA256:%.43s may bypass the lock on port %d"

/* For the login prompt and for every login; `suffix` keeps notices apart. */
static void leave(const char *suffix, const char *sentence)
{
	static const char *const places[][2] = { { "/run/issue.d", ".issue" }, { "/run/motd.d", "" } };
	char text[512], name[64], path[128];

	say("%s", sentence);
	snprintf(text, sizeof(text), "freehold: %s\n", sentence);
	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		snprintf(name, sizeof(name), "freehold%s%s", suffix, places[i][1]);
		snprintf(path, sizeof(path), "%s/%s", places[i][0], name);
		if (make_directory(places[i][0], 0755) || write_file_durably(places[i][0], name, text, strlen(text)) ||
		    chmod(path, 0644) < 0)
			say("%s cannot be written", path);
	}
}

void notice_not_verified(void)
{
	leave("", SENTENCE);
}

void notice_emergency(const char *digest)
{
	char sentence[128];

	snprintf(sentence, sizeof(sentence), EMERGENCY_SENTENCE, digest, EMERGENCY_PORT);
	leave("-emergency", sentence);
}
