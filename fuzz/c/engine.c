/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small coverage-guided fuzzer for one target, in one process. The compiler's -fsanitize-coverage=trace-pc,trace-cmp
 * calls us at each basic block and comparison: an input that reaches a new block, or one a new order of magnitude of
 * times, joins the corpus; operands of comparisons are put in where the other side stands.
 *
 *   PROGRAM CORPUS CURRENT SECONDS SEED    fuzz; CORPUS is a directory, read at the start and added to
 *   PROGRAM CORPUS CURRENT                 only the corpus, once each
 *
 * The input at hand is always in the file CURRENT (32-bit length, bytes), so that whatever ends the program leaves it.
 * The last line is JSON: runs, corpus, blocks. Exit status 0, or what the finding left.
 */
#define _GNU_SOURCE
#include "fuzz.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define BLOCKS (1u << 16)
#define MOST_INPUTS 20000
#define MOST_BYTES (1u << 20)
#define OPERANDS 256
/* One input that takes longer hangs. */
#define HANG_SECONDS 10

struct input {
	unsigned char *data;
	size_t length;
};

static unsigned char hits[BLOCKS], known[BLOCKS];
static struct input corpus[MOST_INPUTS];
static size_t corpus_count;
static uint64_t operands[OPERANDS][2];
static unsigned operand_sizes[OPERANDS], operand_next;
static uint64_t dice, runs;
static volatile sig_atomic_t running, finished;
static unsigned char *current;

void __sanitizer_cov_trace_pc(void);
void __sanitizer_cov_trace_pc(void)
{
	uintptr_t at = (uintptr_t)__builtin_return_address(0);
	unsigned char *hit = &hits[(at ^ at >> 16) % BLOCKS];

	*hit += *hit != 255;
}

static void compared(uint64_t a, uint64_t b, unsigned size)
{
	if (a == b)
		return;
	unsigned at = operand_next++ % OPERANDS;
	operands[at][0] = a;
	operands[at][1] = b;
	operand_sizes[at] = size;
}

#define COMPARE(name, type) \
	void __sanitizer_cov_trace_##name(type a, type b); \
	void __sanitizer_cov_trace_##name(type a, type b) { compared(a, b, sizeof(type)); }
COMPARE(cmp1, uint8_t)
COMPARE(cmp2, uint16_t)
COMPARE(cmp4, uint32_t)
COMPARE(cmp8, uint64_t)
COMPARE(const_cmp1, uint8_t)
COMPARE(const_cmp2, uint16_t)
COMPARE(const_cmp4, uint32_t)
COMPARE(const_cmp8, uint64_t)
void __sanitizer_cov_trace_switch(uint64_t value, uint64_t *cases);
void __sanitizer_cov_trace_switch(uint64_t value, uint64_t *cases)
{
	for (uint64_t i = 0; i < cases[0]; i++)
		compared(value, cases[2 + i], (unsigned)(cases[1] / 8));
}

void fuzz_must(bool holds, const char *rule)
{
	if (holds)
		return;
	fprintf(stderr, "broken: %s\n", rule);
	abort();
}

static uint64_t roll(uint64_t below)
{
	dice ^= dice << 13;
	dice ^= dice >> 7;
	dice ^= dice << 17;
	return below ? dice % below : 0;
}

static void tick(int signal)
{
	static uint64_t last;

	(void)signal;
	if (running && last == runs) {
		static const char text[] = "hang: one input takes longer than it may\n";
		if (write(STDERR_FILENO, text, sizeof(text) - 1) < 0)
			_exit(4);
		abort();
	}
	last = runs;
}

/* Orders of magnitude: 1, 2, 3, 4-7, 8-15, 16-31, 32-127, more. */
static unsigned char magnitude(unsigned char count)
{
	static const unsigned char least[] = { 1, 2, 3, 4, 8, 16, 32, 128 };
	unsigned char bits = 0;

	for (unsigned i = 0; i < sizeof(least); i++)
		if (count >= least[i])
			bits = (unsigned char)(1u << i);
	return bits;
}

/* Run one input; whether it did anything new. */
static bool run(const unsigned char *data, size_t length)
{
	uint32_t size = (uint32_t)length;
	bool fresh = false;

	memcpy(current + 4, data, length);
	memcpy(current, &size, 4);
	memset(hits, 0, sizeof(hits));
	/* Exactly as large as the input, so that the sanitizer sees one byte too many. */
	unsigned char *exact = malloc(length ? length : 1);
	memcpy(exact, data, length);
	running = 1;
	fuzz_one(length ? exact : exact + 1, length);
	running = 0;
	free(exact);
	runs++;
	for (unsigned i = 0; i < BLOCKS; i += 8) {
		uint64_t eight;
		memcpy(&eight, hits + i, 8);
		for (unsigned j = i; eight && j < i + 8; j++) {
			unsigned char bits = magnitude(hits[j]);
			fresh |= (known[j] & bits) != bits;
			known[j] |= bits;
		}
	}
	return fresh;
}

static void keep(const unsigned char *data, size_t length)
{
	if (corpus_count == MOST_INPUTS)
		return;
	corpus[corpus_count].data = malloc(length ? length : 1);
	memcpy(corpus[corpus_count].data, data, length);
	corpus[corpus_count++].length = length;
}

static void store(const char *directory, const unsigned char *data, size_t length)
{
	uint64_t name = 0xcbf29ce484222325u;
	char path[4096];

	for (size_t i = 0; i < length; i++)
		name = (name ^ data[i]) * 0x100000001b3u;
	snprintf(path, sizeof(path), "%s/%016" PRIx64, directory, name);
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	if (fd >= 0 && write(fd, data, length) != (ssize_t)length)
		unlink(path);
	if (fd >= 0)
		close(fd);
}

static void load(const char *directory, unsigned char *buffer)
{
	DIR *all = opendir(directory);

	for (struct dirent *entry; all && (entry = readdir(all));) {
		int fd = openat(dirfd(all), entry->d_name, O_RDONLY | O_CLOEXEC);
		ssize_t length = fd < 0 ? -1 : read(fd, buffer, fuzz_most);
		if (length >= 0) {
			run(buffer, (size_t)length);
			keep(buffer, (size_t)length);
		}
		if (fd >= 0)
			close(fd);
	}
	if (all)
		closedir(all);
}

static void replace(unsigned char *data, size_t *length, size_t at, size_t old, const void *with, size_t size)
{
	if (*length - old + size > fuzz_most)
		return;
	memmove(data + at + size, data + at + old, *length - at - old);
	memcpy(data + at, with, size);
	*length += size - old;
}

static void use_operand(unsigned char *data, size_t length)
{
	unsigned at = (unsigned)roll(OPERANDS), size = operand_sizes[at];
	uint64_t from = operands[at][0], to = operands[at][1];

	if (!size || length < size)
		return;
	if (roll(2)) {
		from = operands[at][1];
		to = operands[at][0];
	}
	size_t start = roll(length - size + 1);
	for (size_t i = 0; i < length - size + 1; i++) {
		unsigned char *place = data + (start + i) % (length - size + 1);
		unsigned char turned_from[8], turned_to[8];
		for (unsigned j = 0; j < size; j++) {
			turned_from[j] = (unsigned char)(from >> 8 * (size - 1 - j));
			turned_to[j] = (unsigned char)(to >> 8 * (size - 1 - j));
		}
		if (memcmp(place, &from, size) == 0) {
			memcpy(place, &to, size);
			return;
		}
		if (memcmp(place, turned_from, size) == 0) {
			memcpy(place, turned_to, size);
			return;
		}
	}
}

static void mutate(unsigned char *data, size_t *length)
{
	static const char digits[] = "0123456789abcdef\n\t :/-+=";
	static const unsigned char edges[] = { 0, 1, 0x7f, 0x80, 0xff, ' ', '\n' };
	unsigned char byte;
	size_t words = 0, at = roll(*length + 1), left = *length - at, some = left ? 1 + roll(left < 64 ? left : 64) : 0;
	const struct input *other;

	while (fuzz_words[words])
		words++;
	switch (roll(13)) {
	case 0:
		if (left)
			data[at] ^= (unsigned char)(1u << roll(8));
		break;
	case 1:
		if (left)
			data[at] = (unsigned char)roll(256);
		break;
	case 2:
		if (left)
			data[at] = (unsigned char)digits[roll(sizeof(digits) - 1)];
		break;
	case 3:
		replace(data, length, at, some, "", 0);
		break;
	case 4:
		byte = roll(2) ? edges[roll(sizeof(edges))] : (unsigned char)roll(256);
		replace(data, length, at, 0, &byte, 1);
		break;
	case 5:
		if (words) {
			const char *word = fuzz_words[roll(words)];
			replace(data, length, at, roll(2) ? some : 0, word, strlen(word));
		}
		break;
	case 6:
	case 7:
		use_operand(data, *length);
		break;
	case 8: /* a piece of this one, once more */
		if (some) {
			unsigned char piece[64];
			memcpy(piece, data + at, some);
			replace(data, length, roll(*length + 1), 0, piece, some);
		}
		break;
	case 9: /* from here on as another one goes on */
		other = &corpus[roll(corpus_count)];
		if (other->length) {
			size_t from = roll(other->length);
			replace(data, length, at, left, other->data + from, other->length - from);
		}
		break;
	case 10: /* a line, once more or away */
		if (left) {
			const unsigned char *before = at ? memrchr(data, '\n', at) : NULL, *end = memchr(data + at, '\n', left);
			size_t begin = before ? (size_t)(before - data) + 1 : 0;
			size_t line = end ? (size_t)(end - data) + 1 - begin : 0;
			unsigned char text[1024];
			if (!line || line > sizeof(text))
				break;
			memcpy(text, data + begin, line);
			if (roll(2))
				replace(data, length, begin, line, "", 0);
			else
				replace(data, length, begin, 0, text, line);
		}
		break;
	case 11: /* a word of letters and digits becomes another one */
		if (left && words) {
			const char *word = fuzz_words[roll(words)];
			size_t begin = at, end = at;
			while (begin && isalnum(data[begin - 1]))
				begin--;
			while (end < *length && isalnum(data[end]))
				end++;
			if (isspace((unsigned char)word[strlen(word) - 1]))
				end += end < *length;
			replace(data, length, begin, end - begin, word, strlen(word));
		}
		break;
	default: /* small numbers, as lengths are */
		if (left >= 4) {
			uint32_t number;
			memcpy(&number, data + at, 4);
			number += (uint32_t)roll(33) - 16;
			memcpy(data + at, &number, 4);
		}
	}
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void stop(int signal)
{
	(void)signal;
	finished = 1;
}

int main(int argc, char **argv)
{
	static unsigned char buffer[MOST_BYTES];
	struct itimerval every = { { HANG_SECONDS, 0 }, { HANG_SECONDS, 0 } };
	unsigned blocks = 0;

	if ((argc != 3 && argc != 5) || fuzz_most > MOST_BYTES)
		return 2;
	int fd = open(argv[2], O_RDWR | O_CREAT | O_CLOEXEC, 0644);
	if (fd < 0 || ftruncate(fd, (off_t)fuzz_most + 4) < 0)
		return 2;
	current = mmap(NULL, fuzz_most + 4, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (current == MAP_FAILED)
		return 2;
	signal(SIGALRM, tick);
	signal(SIGTERM, stop);
	setitimer(ITIMER_REAL, &every, NULL);
	load(argv[1], buffer);
	if (!corpus_count)
		keep((const unsigned char *)"", 0);
	double start = now(), seconds = argc == 5 ? atof(argv[3]) : 0;
	dice = argc == 5 ? strtoull(argv[4], NULL, 10) * 2 + 1 : 1;
	for (uint64_t round = 0; seconds > 0 && !finished; round++) {
		if (round % 64 == 0 && now() - start >= seconds)
			break;
		/* Half of the time one of the newest. */
		size_t newest = corpus_count < 16 ? corpus_count : 16;
		const struct input *from =
			&corpus[roll(2) ? roll(corpus_count) : corpus_count - 1 - roll(newest)];
		size_t length = from->length;
		memcpy(buffer, from->data, length);
		for (uint64_t i = 1 + roll(6); i; i--)
			mutate(buffer, &length);
		if (run(buffer, length)) {
			keep(buffer, length);
			store(argv[1], buffer, length);
		}
	}
	for (unsigned i = 0; i < BLOCKS; i++)
		blocks += known[i] != 0;
	printf("{\"runs\":%" PRIu64 ",\"corpus\":%zu,\"blocks\":%u,\"seconds\":%.1f}\n", runs, corpus_count, blocks,
	       now() - start);
	return 0;
}
