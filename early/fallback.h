/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The way out of a refusal: a deployment that the early step refuses lets the boot loader start another one next.
 *
 * An entry that was once found healthy has no boot counter, so without this it would be tried for ever. The boot
 * loader (systemd-boot) lists its entries in LoaderEntries, says in LoaderEntrySelected which one runs, and takes
 * LoaderEntryOneShot for one boot. Ours, FreeholdRefused, is the chain: what was refused since the last boot that
 * reached systemd, with reasons. Whoever can write these variables can choose among the entries of the menu, which
 * the firmware verifies, and can put words into `freehold status`; nothing else follows from them.
 */
#ifndef FREEHOLD_FALLBACK_H
#define FREEHOLD_FALLBACK_H

#include <stdbool.h>
#include <stddef.h>

#define FALLBACK_MAX_ID 160
#define FALLBACK_MAX_REASON 240
#define FALLBACK_MAX_CHAIN 4096
/*
 * Entries of this name's beginning repair a machine (freehold.update.rescue_entry); they are chosen only when every
 * other one of ours was refused. No deployment's version begins like that.
 */
#define FALLBACK_RESCUE "freehold-rescue-"

enum fallback {
	FALLBACK_OTHER,	 /* another deployment */
	FALLBACK_RESCUED, /* a rescue entry */
	FALLBACK_NONE,	 /* all were refused */
};

/*
 * The next string of a list as the loader writes it (UTF-16, little endian, each ended by NUL), from *offset on, in
 * lower case. Strings that are not printable ASCII, or too long, are passed over. False at the end.
 */
bool fallback_next_id(const unsigned char *data, size_t length, size_t *offset, char id[FALLBACK_MAX_ID]);

/* Whether two ids name one entry: the boot counter (+LEFT-DONE before .efi) changes with each try. */
bool fallback_same_id(const char *a, const char *b);

/*
 * What the boot loader is asked for: its patterns match an id with whatever counter the entry has by then. `pattern` of
 * at least FALLBACK_MAX_ID + 2 bytes.
 */
void fallback_pattern(const char *id, char *pattern);

/* Whether `id` is in the chain: lines of id, TAB, reason. */
bool fallback_in_chain(const char *chain, size_t length, const char *id);

/*
 * Choose what boots next: `entries` is LoaderEntries' value. The first of ours that is neither `selected` nor in the
 * chain; then a rescue entry of which the same is true.
 */
enum fallback fallback_choose(const unsigned char *entries, size_t length, const char *selected, const char *chain,
			      size_t chain_length, char chosen[FALLBACK_MAX_ID]);

/*
 * Write `chain` with one more line to `out`, at most FALLBACK_MAX_CHAIN bytes; an earlier line of that id and the oldest
 * lines that have no room are left out. Bytes outside printable ASCII become '?'. Returns the length.
 */
size_t fallback_append(const char *chain, size_t length, const char *id, const char *reason, char *out);

/*
 * This deployment is refused for `reason`: note it, and ask the boot loader for another one. Returns the seconds that a
 * person gets to read it. Without UEFI, or with another boot loader, nothing is noted.
 */
unsigned fallback_refuse(const char *reason);
unsigned fallback_refuse_in(const char *directory, const char *reason);

/* This boot reaches systemd: the chain ends; what it said goes to DIRECTORY/last-refusal for `freehold status`. */
void fallback_done(const char *directory);
void fallback_done_in(const char *variables, const char *directory);

#endif
