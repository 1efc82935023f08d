/* SPDX-License-Identifier: Apache-2.0 */
/* What a target is, for the engine (engine.c). One program has one target. */
#ifndef FREEHOLD_FUZZ_H
#define FREEHOLD_FUZZ_H

#include <stdbool.h>
#include <stddef.h>

/* Words that the target's formats are made of; NULL ends the list. */
extern const char *const fuzz_words[];
/* Longest input that is tried. */
extern const size_t fuzz_most;

/*
 * One input, in an allocation of exactly its size. Whatever ends the program is a finding: a sanitizer, a signal, or
 * fuzz_must(false). State does not outlast a call.
 */
void fuzz_one(const unsigned char *data, size_t length);

/* What has to hold of everything that the code under test accepts; says `rule` and ends the program when it does not. */
void fuzz_must(bool holds, const char *rule);

#endif
