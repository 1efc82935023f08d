// SPDX-License-Identifier: Apache-2.0
/*
 * refusals: tells the journal what the guard refused. Static; enforcement does not depend on it.
 *
 *   refusals MAPS SOCKET STATE     /sys/fs/bpf/freehold /run/systemd/journal/socket /run/freehold/refusals
 *
 * Every few seconds one system call reads the guard's counters; only when one moved are the records looked at. SIGTERM
 * has it look a last time. Plain system calls in place of libbpf: three commands, and a hundredth of its size.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/bpf.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "refusals.h"

#define INTERVAL 5	 /* seconds */
#define COUNTERS 256 /* more than there are rules, also in a newer guard */

static struct refusals all;
static int journal;
static struct sockaddr_un address = { .sun_family = AF_UNIX };

static long bpf(int command, union bpf_attr *attributes)
{
	return syscall(SYS_bpf, command, attributes, sizeof(*attributes));
}

static int open_map(const char *directory, const char *name)
{
	char path[256];
	union bpf_attr get;

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	memset(&get, 0, sizeof(get));
	get.pathname = (__u64)(unsigned long)path;
	get.file_flags = BPF_F_RDONLY;
	long fd = bpf(BPF_OBJ_GET, &get);
	if (fd < 0)
		fprintf(stderr, "refusals: %s: %s\n", path, strerror(errno));
	return fd;
}

/* All counters at once. Their number, or -1. */
static int read_counters(int map, __u64 counters[COUNTERS])
{
	__u32 keys[COUNTERS], last = 0;
	union bpf_attr batch;

	memset(&batch, 0, sizeof(batch));
	batch.batch.map_fd = map;
	batch.batch.keys = (__u64)(unsigned long)keys;
	batch.batch.values = (__u64)(unsigned long)counters;
	batch.batch.out_batch = (__u64)(unsigned long)&last;
	batch.batch.count = COUNTERS;
	if (bpf(BPF_MAP_LOOKUP_BATCH, &batch) != 0 && errno != ENOENT)
		return -1;
	return batch.batch.count;
}

static bool send_message(const char *message, size_t length)
{
	return sendto(journal, message, length, MSG_NOSIGNAL | MSG_DONTWAIT, (const struct sockaddr *)&address,
		      sizeof(address)) == (ssize_t)length;
}

static void look(int map, bool last)
{
	struct guard_denial_key key, next;
	struct guard_denial denial;
	union bpf_attr walk;
	struct timespec now;

	clock_gettime(CLOCK_BOOTTIME, &now);
	refusals_begin(&all);
	/* The table may change under us, and then the walk starts again: twice its size bounds it. */
	for (int i = 0; i < REFUSALS_LIMIT; i++) {
		memset(&walk, 0, sizeof(walk));
		walk.map_fd = map;
		walk.key = i ? (__u64)(unsigned long)&key : 0;
		walk.next_key = (__u64)(unsigned long)&next;
		if (bpf(BPF_MAP_GET_NEXT_KEY, &walk) != 0)
			break;
		key = next;
		memset(&walk, 0, sizeof(walk));
		walk.map_fd = map;
		walk.key = (__u64)(unsigned long)&key;
		walk.value = (__u64)(unsigned long)&denial;
		if (bpf(BPF_MAP_LOOKUP_ELEM, &walk) == 0)
			refusals_show(&all, &key, &denial, now.tv_sec, last);
	}
	refusals_end(&all);
}

int main(int argc, char **argv)
{
	__u64 before[COUNTERS], counters[COUNTERS];
	const struct timespec pause = { .tv_sec = INTERVAL };
	int counter_map, record_map, known = 0;
	bool last = false;
	sigset_t stop;

	if (argc != 4 || strlen(argv[2]) >= sizeof(address.sun_path)) {
		fprintf(stderr, "usage: refusals MAPS SOCKET STATE\n");
		return 2;
	}
	strcpy(address.sun_path, argv[2]);
	sigemptyset(&stop);
	sigaddset(&stop, SIGTERM);
	sigprocmask(SIG_BLOCK, &stop, NULL);
	prctl(PR_SET_TIMERSLACK, 500000000UL);
	all.send = send_message;
	journal = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	counter_map = open_map(argv[1], "gd_counters");
	record_map = open_map(argv[1], "gd_denials");
	if (journal < 0 || counter_map < 0 || record_map < 0)
		return 1;
	if (refusals_load(&all, argv[3]) != 0)
		fprintf(stderr, "refusals: %s cannot be read: what was told may be told again\n", argv[3]);
	while (true) {
		int found = read_counters(counter_map, counters);

		if (found < 0) {
			fprintf(stderr, "refusals: the guard's counters cannot be read: %s\n", strerror(errno));
			return 1;
		}
		if (last || found != known || all.waiting || memcmp(before, counters, found * sizeof(counters[0])) != 0) {
			look(record_map, last);
			if (refusals_save(&all, argv[3]) != 0)
				fprintf(stderr, "refusals: %s cannot be written\n", argv[3]);
		}
		memcpy(before, counters, found * sizeof(counters[0]));
		known = found;
		if (last)
			return 0;
		last = sigtimedwait(&stop, NULL, &pause) == SIGTERM;
	}
}
