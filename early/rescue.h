/* SPDX-License-Identifier: Apache-2.0 */
/* The rescue entry of the boot menu: was it chosen, and what earlier rescues did. */
#ifndef FREEHOLD_RESCUE_H
#define FREEHOLD_RESCUE_H

#include <stdbool.h>

/*
 * Whether this boot comes from the rescue entry: the bare word "freehold.rescue" on the signed command line. Says so
 * on the console. Such a boot is locked whatever the intent says, with factory settings, and never provisions.
 */
bool rescue_asked(void);

/* The same for the text of a command line. Pure. */
bool rescue_word(const char *line);

/*
 * Move what rescues left in `inbox`/rescue.log to the end of `owner`/rescue.log, bounded and in printable ASCII.
 * Whoever has root can write the inbox: the log informs, it proves nothing. A cut in the middle leaves the inbox,
 * whose lines are then there twice.
 */
void rescue_keep_log(const char *inbox, const char *owner);

#endif
