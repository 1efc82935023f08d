/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Target: what the guard's loader and guardctl read of the running system, early/guard.c and early/guardctl.c: a process's status and
 * mappings, its descriptors, disks below disks, names of interpreters. The files come from the input. Texts are written as the
 * kernel writes them around the input's values, so that it is known what has to be found.
 */
#define _GNU_SOURCE
#include "fuzz.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Declared before the names mean ours. */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>

static FILE *given_file(const char *path);
static DIR *given_directory(const char *path);
static struct dirent *given_entry(DIR *directory);
static int given_status(const char *path, struct stat *status);
static ssize_t given_link(char *buffer, size_t size);
static int given_close(DIR *directory);
static FILE *sink;

#define fopen(path, mode) given_file(path)
#define opendir(path) given_directory(path)
#define readdir(directory) given_entry(directory)
#define closedir(directory) given_close(directory)
#define dirfd(directory) 0
#define fstatat(directory, name, status, flags) given_status(name, status)
#define stat(path, status) given_status(path, status)
#define access(path, mode) (given_next() % 3 ? -1 : 0)
#define readlink(path, buffer, size) given_link(buffer, size)
#define printf(...) fprintf(sink, __VA_ARGS__)
#define putchar(byte) fputc(byte, sink)
#define main guardctl_main
static unsigned char given_next(void);

#include "guard.c"
#include "guardctl.c"

#undef fopen
#undef printf
#undef main

const char *const fuzz_words[] = {
	"Uid:\t", "CapPrm:\t", "Kthread:\t1\n", "Name:\t", "r-xp", "rwxp", "[vdso]", "[vsyscall]", "\n", "flags:\t02\n", "/owner/secret",
	"python3.13", "bash", "perl5", "lua5.4", "nodejs", "8:1", NULL,
};
const size_t fuzz_most = 16384;

static const unsigned char *input;
static size_t input_length;
static char *text;	   /* what the next file has */
static size_t text_length;
static unsigned entries_left;
static struct dirent entry;

static unsigned char given_next(void)
{
	if (!input_length)
		return 0;
	input_length--;
	return *input++;
}

static FILE *given_file(const char *path)
{
	(void)path;
	if (!text_length)
		return fopen("/dev/null", "re");
	return fmemopen(text, text_length, "r");
}

static DIR *given_directory(const char *path)
{
	(void)path;
	entries_left = given_next() % 8;
	return (DIR *)&entry; /* never looked into */
}

static int given_close(DIR *directory)
{
	(void)directory;
	return 0;
}

static struct dirent *given_entry(DIR *directory)
{
	size_t used = 0;

	(void)directory;
	if (!entries_left || !input_length)
		return NULL;
	entries_left--;
	for (unsigned char byte; used < sizeof(entry.d_name) - 1 && (byte = given_next()) && byte != '/' && byte != '\n';)
		entry.d_name[used++] = (char)byte;
	entry.d_name[used] = '\0';
	return &entry;
}

static int given_status(const char *path, struct stat *status)
{
	(void)path;
	memset(status, 0, sizeof(*status));
	status->st_mode = given_next() % 2 ? S_IFREG : S_IFBLK;
	status->st_dev = makedev(given_next() % 2 ? 8 : 9, 1);
	status->st_rdev = makedev(8, given_next() % 4);
	status->st_ino = 1u + given_next();
	return 0;
}

static ssize_t given_link(char *buffer, size_t size)
{
	size_t used = 0;

	for (unsigned char byte; used < size && (byte = given_next());)
		buffer[used++] = (char)byte;
	return (ssize_t)used;
}

/* Raw bytes as a file. */
static void raw(void)
{
	text = malloc(input_length + 1);
	memcpy(text, input, input_length);
	text[input_length] = '\0';
	text_length = input_length;
}

/* The kernel's spelling: a newline as \n or \012, a backslash (in names of processes) as \\. */
static void escaped(FILE *out, bool octal, size_t most)
{
	for (unsigned char byte; most-- && (byte = given_next());) {
		if (byte == '\n')
			fputs(octal ? "\\012" : "\\n", out);
		else if (byte == '\\' && !octal)
			fputs("\\\\", out);
		else
			fputc(byte, out);
	}
}

static void process_status(void)
{
	const unsigned long long harmless = 1ull << 10 | 1ull << 11 | 1ull << 13 | 1ull << 14 | 1ull << 35 | 1ull << 36;
	FILE *out = open_memstream(&text, &text_length);
	unsigned uid[4];
	unsigned long long permitted = 0;
	bool thread, zero = false;

	for (int i = 0; i < 4; i++) {
		uid[i] = given_next() % 3 ? 1000u + given_next() * 16777216u : 0;
		zero |= !uid[i];
	}
	for (int i = 0; i < 3; i++)
		permitted |= given_next() % 2 ? 1ull << given_next() % 41 : 0;
	thread = given_next() % 4 == 3;
	fputs("Name:\t", out);
	escaped(out, false, 64);
	fprintf(out, "\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t12\nUid:\t%u\t%u\t%u\t%u\nGid:\t0\t0\t0\t0\nFDSize:\t64\nGroups:\t", uid[0],
		uid[1], uid[2], uid[3]);
	for (unsigned groups = given_next() * 2u; groups; groups--)
		fprintf(out, "%u ", given_next() * 4099u);
	fprintf(out, "\nKthread:\t%d\nThreads:\t1\nCapInh:\tffffffffffffffff\nCapPrm:\t%016llx\nCapEff:\t%016llx\n", thread, permitted,
		permitted);
	fclose(out);
	fuzz_must(privileged_status("") == (!thread && (zero || (permitted & ~harmless))), "who is privileged is known");
}

static void process_mappings(void)
{
	struct guard_bpf__rodata config = { .sealed_dev = 8u << 20 | 1 };
	FILE *out = open_memstream(&text, &text_length);
	int wanted = 0;
	bool first = true;

	for (unsigned lines = 1 + given_next() % 4; lines; lines--) {
		unsigned char flags = given_next(), major = given_next() % 2 ? 8 : 0, minor = given_next() % 2;
		bool code = flags & 4, writable = flags & 2;

		fprintf(out, "7f0000000000-7f0000001000 %c%c%c%c 00000000 %02x:%02x %u ", flags & 1 ? 'r' : '-', writable ? 'w' : '-',
			code ? 'x' : '-', flags & 8 ? 's' : 'p', major, minor, given_next());
		fputs("                     /", out);
		escaped(out, true, 4095);
		fputc('\n', out);
		wanted += code && !(major == 8 && minor == 1 && !writable);
	}
	fclose(out);
	/* A path longer than the line's room may look like one more mapping; none may look like none. */
	fuzz_must(show_mappings("1", &config, &first) >= wanted, "every foreign code is found");
}

static void check_disks(void)
{
	struct guard_config *config = calloc(1, sizeof(*config));
	int found = 0;

	raw();
	add_disk(config, (struct guard_disk){ 8, 1 });
	while (found < GUARD_DISKS && config->disks[found].major)
		found++;
	fuzz_must(found >= 1 && config->disks[0].major == 8, "the first disk is the one that was named");
	free(config);
}

static void check_interpreters(void)
{
	static const char *const known[] = { "sh",   "dash", "bash",  "ksh", "mksh",   "zsh",  "yash",	 "fish", "python", "pypy",
					     "perl", "ruby", "lua", "luajit", "node", "nodejs", "php",  "tclsh", "guile" };
	const unsigned char *from = input;
	size_t length = input_length;
	struct guard_config *config = calloc(1, sizeof(*config));
	int wanted = 0, found = 0;

	/* The same names again, by another rule: what stands before the first digit or dot. */
	given_directory("");
	for (struct dirent *one; (one = given_entry(NULL));) {
		struct stat status;
		size_t stem = strcspn(one->d_name, ".0123456789");
		bool listed = false;
		for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
			listed |= strlen(known[i]) == stem && memcmp(known[i], one->d_name, stem) == 0;
		if (listed) {
			given_status("", &status);
			wanted += S_ISREG(status.st_mode);
		}
	}
	input = from;
	input_length = length;
	fuzz_must(list_interpreters("", config) == 0, "few interpreters fit");
	while (found < GUARD_INTERPRETERS && config->interpreters[found].ino)
		found++;
	fuzz_must(found == wanted, "every interpreter is listed, and nothing else");
	free(config);
}

static void check_descriptors(void)
{
	struct guard_bpf__rodata config = { .owner_dev = 8u << 20 | 1, .owner_disks = { 8u << 20 | 1 } };
	unsigned flags = given_next() * 64u + given_next() % 64;
	FILE *out = open_memstream(&text, &text_length);
	bool first = true;

	fprintf(out, "pos:\t0\nflags:\t0%o\nmnt_id:\t25\nino:\t12\n", flags);
	fclose(out);
	int found = show_descriptors("1", &config, given_next() % 2, &first);
	fuzz_must(!(flags & O_PATH) || !found, "a descriptor without access is none");
}

void fuzz_one(const unsigned char *data, size_t length)
{
	static char said[1 << 17];
	bool first = true;
	struct guard_bpf__rodata config = { .sealed_dev = 8u << 20 | 1 };

	if (!length)
		return;
	input = data + 1;
	input_length = length - 1;
	text = NULL;
	text_length = 0;
	sink = fmemopen(said, sizeof(said), "w");
	switch (data[0] % 7) {
	case 0:
		process_status();
		break;
	case 1:
		process_mappings();
		break;
	case 2:
		check_disks();
		break;
	case 3:
		check_interpreters();
		break;
	case 4:
		check_descriptors();
		break;
	case 5:
		raw();
		privileged_status("");
		break;
	default:
		raw();
		show_mappings("1", &config, &first);
	}
	long used = ftell(sink);
	fclose(sink);
	/* Permissions and numbers are printed as they are: the kernel writes no others. */
	for (long i = 0; data[0] % 7 == 1 && i < used && i < (long)sizeof(said); i++)
		fuzz_must(said[i] >= ' ' && said[i] < 0x7f, "what is printed is printable");
	free(text);
	text = NULL;
}
