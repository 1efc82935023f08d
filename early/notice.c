/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "notice.h"

#include <string.h>
#include <sys/stat.h>

#include "util.h"

/* freehold.device.status has the same words; a test compares them. */
#define SENTENCE                                                                                                       \
	"not verified: Secure Boot is off, so the chain of trust starts at the initrd; "                               \
	"whoever can write the boot partition can replace it"

void notice_not_verified(void)
{
	static const char text[] = "freehold: " SENTENCE "\n";
	static const struct {
		const char *directory, *name, *path;
	} places[] = {
		{ "/run/issue.d", "freehold.issue", "/run/issue.d/freehold.issue" },
		{ "/run/motd.d", "freehold", "/run/motd.d/freehold" },
	};

	say("%s", SENTENCE);
	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++)
		if (make_directory(places[i].directory, 0755) ||
		    write_file_durably(places[i].directory, places[i].name, text, strlen(text)) ||
		    chmod(places[i].path, 0644) < 0)
			say("%s cannot be written", places[i].path);
}
