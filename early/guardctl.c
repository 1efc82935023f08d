// SPDX-License-Identifier: Apache-2.0
/*
 * guardctl: what the guard is doing, as JSON on standard output (ABI 2). Static, so that it runs anywhere.
 *
 *   guardctl status            {"abi":2,"loaded":…,"mode":"open|audit|locked","tier":"privileged|all-code",
 *                              "scripts":"S1|S2","counters":{RULE:N,…}}
 *   guardctl load              what status says; loads the guard in open mode unless it is loaded
 *   guardctl latch audit|locked [all-code] [S2]
 *   guardctl denials           {"abi":2,"denials":[{rule,comm,path,count,last,uid,pid,mode,detail},…]}
 *   guardctl preflight [all-code]
 *                              {"abi":2,"mappings":[…],"writers":[…],"readers":[…]}: what the latch cannot undo;
 *                              status 1 if any
 *
 * Exit status: 0 done, 1 failed or found something, 2 usage.
 */
#define _GNU_SOURCE
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "../bpf/guard.h"
#include "guard.h"
#include "guard.skel.h"

#define OWNER_DIRECTORY "/sysroot/owner"

static const char *const RULES[RULE_COUNT] = GUARD_RULE_NAMES;
static const char *const MODES[] = {"open", "audit", "locked", "exempt"}; /* the last in records only */
static const char *const TIERS[] = {"privileged", "all-code"};
static const char *const SCRIPTS[] = {"S1", "S2"};

static int open_map(const char *name)
{
	LIBBPF_OPTS(bpf_obj_get_opts, options, .file_flags = BPF_F_RDONLY);
	char path[128];
	int map;

	snprintf(path, sizeof(path), GUARD_PINS "/%s", name);
	map = bpf_obj_get_opts(path, &options);
	if (map < 0)
		fprintf(stderr, "guardctl: %s: %s\n", path, strerror(errno));
	return map;
}

/* Bytes outside printable ASCII become \u00XX: file names are bytes, JSON is text. */
static void print_text(const char *text)
{
	putchar('"');
	for (; *text; text++) {
		unsigned char byte = *text;

		if (byte == '"' || byte == '\\')
			printf("\\%c", byte);
		else if (byte < 0x20 || byte > 0x7e)
			printf("\\u%04x", byte);
		else
			putchar(byte);
	}
	putchar('"');
}

static int show_status(void)
{
	int mode = guard_mode(), counters;

	if (mode == -ENOENT) {
		printf("{\"abi\":%d,\"loaded\":false,\"mode\":\"open\",\"tier\":\"%s\",\"scripts\":\"%s\",\"counters\":{}}\n", GUARD_ABI,
		       TIERS[0], SCRIPTS[0]);
		return 0;
	}
	if (mode < 0 || mode > GUARD_LOCKED) {
		fprintf(stderr, "guardctl: cannot ask the guard: %s\n", strerror(mode < 0 ? -mode : EPROTO));
		return 1;
	}
	counters = open_map("gd_counters");
	if (counters < 0)
		return 1;
	printf("{\"abi\":%d,\"loaded\":true,\"mode\":\"%s\",\"tier\":\"%s\",\"scripts\":\"%s\",\"counters\":{", GUARD_ABI,
	       MODES[mode], TIERS[guard_flags() & GUARD_ALL_CODE ? 1 : 0], SCRIPTS[guard_flags() & GUARD_SCRIPTS_S2 ? 1 : 0]);
	for (__u32 key = 0; key < RULE_COUNT; key++) {
		__u64 count = 0;

		if (bpf_map_lookup_elem(counters, &key, &count) != 0)
			return 1;
		printf("%s\"%s\":%llu", key ? "," : "", RULES[key], count);
	}
	printf("}}\n");
	return 0;
}

static int show_denials(void)
{
	struct guard_denial_key key, next;
	struct guard_denial denial;
	const void *from = NULL;
	bool first = true;
	int map = open_map("gd_denials");

	if (map < 0)
		return 1;
	printf("{\"abi\":%d,\"denials\":[", GUARD_ABI);
	/* The table may change under us, and then the walk starts again: twice its size bounds it. */
	for (int i = 0; i < 2048 && bpf_map_get_next_key(map, from, &next) == 0; i++) {
		char path[GUARD_NAMES * (GUARD_NAME + 1) + 1] = "";

		key = next;
		from = &key;
		if (bpf_map_lookup_elem(map, &key, &denial) != 0 || key.rule >= RULE_COUNT)
			continue;
		for (int part = GUARD_NAMES - 1; part >= 0; part--) {
			key.name[part][GUARD_NAME - 1] = 0;
			if (!key.name[part][0])
				continue;
			if (path[0] && path[strlen(path) - 1] != '/')
				strcat(path, "/");
			strcat(path, key.name[part]);
		}
		key.comm[GUARD_COMM - 1] = 0;
		printf("%s{\"rule\":\"%s\",\"comm\":", first ? "" : ",", RULES[key.rule]);
		print_text(key.comm);
		printf(",\"path\":");
		print_text(path);
		printf(",\"count\":%llu,\"last\":%llu.%09llu,\"uid\":%u,\"pid\":%u,\"mode\":\"%s\",\"detail\":%u}",
		       denial.count, denial.last_ns / 1000000000, denial.last_ns % 1000000000, denial.uid, denial.pid,
		       denial.mode <= GUARD_EXEMPTED ? MODES[denial.mode] : "?", denial.detail);
		first = false;
	}
	printf("]}\n");
	return 0;
}

/* Executable mappings that are neither of the sealed tree nor the kernel's own. */
static int show_mappings(const char *pid, const struct guard_bpf__rodata *config, bool *first)
{
	char path[64], line[4600];
	int found = 0;
	FILE *maps;

	snprintf(path, sizeof(path), "/proc/%.10s/maps", pid);
	maps = fopen(path, "re");
	if (!maps)
		return 0;
	while (fgets(line, sizeof(line), maps)) {
		char perms[5] = "";
		unsigned major = 0, minor = 0;
		int name = 0;

		line[strcspn(line, "\n")] = 0;
		if (sscanf(line, "%*x-%*x %4s %*x %x:%x %*u %n", perms, &major, &minor, &name) != 3 || perms[2] != 'x')
			continue;
		if (strcmp(line + name, "[vdso]") == 0 || strcmp(line + name, "[vsyscall]") == 0)
			continue;
		if (config->sealed_dev && (major << 20 | minor) == config->sealed_dev && perms[1] != 'w')
			continue;
		printf("%s{\"pid\":%s,\"perms\":\"%s\",\"path\":", *first ? "" : ",", pid, perms);
		print_text(line + name);
		printf("}");
		*first = false;
		found++;
	}
	fclose(maps);
	return found;
}

/* Is it one of the block devices that hold the owner directory? */
static bool is_owner_disk(const struct stat *st, const struct guard_bpf__rodata *config)
{
	if (!S_ISBLK(st->st_mode))
		return false;
	for (int i = 0; i < GUARD_DISKS && config->owner_disks[i]; i++)
		if ((major(st->st_rdev) << 20 | minor(st->st_rdev)) == config->owner_disks[i])
			return true;
	return false;
}

/* Descriptors that were opened before the latch: for writing below the owner directory, or (`readers`) for reading its
 * secrets or the disk below. */
static int show_descriptors(const char *pid, const struct guard_bpf__rodata *config, bool readers, bool *first)
{
	char path[64], target[4096], info[64], line[256];
	struct dirent *entry;
	int found = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%.10s/fd", pid);
	dir = opendir(path);
	while (dir && (entry = readdir(dir))) {
		char link[340];
		unsigned flags = 0;
		struct stat st;
		bool disk;
		ssize_t size;
		FILE *file;

		if (!isdigit((unsigned char)entry->d_name[0]))
			continue;
		snprintf(link, sizeof(link), "%s/%s", path, entry->d_name);
		if (stat(link, &st) != 0)
			continue;
		disk = readers && is_owner_disk(&st, config);
		if (!disk && (major(st.st_dev) << 20 | minor(st.st_dev)) != config->owner_dev)
			continue;
		size = readlink(link, target, sizeof(target) - 1);
		if (size < 0)
			continue;
		target[size] = 0;
		snprintf(info, sizeof(info), "/proc/%.10s/fdinfo/%.10s", pid, entry->d_name);
		file = fopen(info, "re");
		while (file && fgets(line, sizeof(line), file))
			sscanf(line, "flags: %o", &flags);
		if (file)
			fclose(file);
		if (flags & O_PATH)
			continue;
		if (readers ? !disk && !strstr(target, "/owner/secret")
			    : (flags & O_ACCMODE) == O_RDONLY || !strstr(target, "/owner/"))
			continue;
		printf("%s{\"pid\":%s,\"fd\":%s,\"path\":", *first ? "" : ",", pid, entry->d_name);
		print_text(target);
		printf("}");
		*first = false;
		found++;
	}
	if (dir)
		closedir(dir);
	return found;
}

/* About PID 1's root directory, whatever ours is. */
static int describe(struct guard_config *config)
{
	int error = guard_describe("/proc/1/root", "/proc/1/root" OWNER_DIRECTORY, config);

	if (error)
		fprintf(stderr, "guardctl: %s: %s\n", OWNER_DIRECTORY, strerror(-error));
	return error;
}

/* What counts as sealed and as the owner's: by the guard's own word, or as it would be loaded now. */
static int configuration(struct guard_bpf__rodata *config)
{
	struct bpf_map_info info = {};
	__u32 key = 0, size = sizeof(info);
	struct guard_config described;
	int map;

	if (guard_mode() == -ENOENT) {
		if (describe(&described) != 0)
			return -1;
		memset(config, 0, sizeof(*config));
		config->sealed_dev = described.sealed_major << 20 | described.sealed_minor;
		config->owner_dev = described.owner_major << 20 | described.owner_minor;
		for (int i = 0; i < GUARD_DISKS; i++)
			config->owner_disks[i] = described.disks[i].major << 20 | described.disks[i].minor;
		return 0;
	}
	map = open_map("config");
	if (map < 0)
		return -1;
	if (bpf_map_get_info_by_fd(map, &info, &size) != 0 || info.value_size != sizeof(*config) ||
	    bpf_map_lookup_elem(map, &key, config) != 0) {
		fprintf(stderr, "guardctl: the loaded guard is of another version\n");
		return -1;
	}
	return 0;
}

/* `everybody`: users' mappings as well. */
static int preflight(bool everybody)
{
	struct guard_bpf__rodata config;
	int found = 0;

	if (configuration(&config) != 0)
		return 1;
	printf("{\"abi\":%d", GUARD_ABI);
	for (int round = 0; round < 3; round++) {
		static const char *const lists[] = {"mappings", "writers", "readers"};
		DIR *proc = opendir("/proc");
		struct dirent *entry;
		bool first = true;

		printf(",\"%s\":[", lists[round]);
		while (proc && (entry = readdir(proc))) {
			if (!isdigit((unsigned char)entry->d_name[0]))
				continue;
			if (round)
				found += show_descriptors(entry->d_name, &config, round == 2, &first);
			else if (everybody || guard_is_privileged(entry->d_name))
				found += show_mappings(entry->d_name, &config, &first);
		}
		if (proc)
			closedir(proc);
		printf("]");
	}
	printf("}\n");
	return found ? 1 : 0;
}

static int load(void)
{
	unsigned long long maps, programs;
	struct guard_config config;
	struct stat ours, first;

	if (guard_mode() != -ENOENT)
		return show_status();
	if (stat("/proc/self/ns/mnt", &ours) != 0 || stat("/proc/1/ns/mnt", &first) != 0 || ours.st_ino != first.st_ino) {
		fprintf(stderr, "guardctl: run this in the first mount namespace\n");
		return 1;
	}
	if (describe(&config) || guard_load(&config))
		return 1;
	guard_kept(&maps, &programs);
	fprintf(stderr, "guardctl: the maps take %llu bytes, the programs %llu\n", maps, programs);
	return show_status();
}

int main(int argc, char **argv)
{
	unsigned flags = 0;

	libbpf_set_print(NULL);
	while (argc > 2 && (strcmp(argv[argc - 1], TIERS[1]) == 0 || strcmp(argv[argc - 1], SCRIPTS[1]) == 0))
		flags |= argv[--argc][0] == 'S' ? GUARD_SCRIPTS_S2 : GUARD_ALL_CODE;
	if (argc == 2 && strcmp(argv[1], "status") == 0)
		return show_status();
	if (argc == 2 && strcmp(argv[1], "load") == 0)
		return load();
	if (argc == 2 && strcmp(argv[1], "denials") == 0)
		return show_denials();
	if (argc == 2 && strcmp(argv[1], "preflight") == 0)
		return preflight(flags & GUARD_ALL_CODE);
	if (argc == 3 && strcmp(argv[1], "latch") == 0) {
		for (unsigned mode = GUARD_AUDIT; mode <= GUARD_LOCKED; mode++)
			if (strcmp(argv[2], MODES[mode]) == 0)
				return guard_latch(mode, flags) ? 1 : show_status();
	}
	fprintf(stderr, "usage: guardctl status | load | denials | preflight [all-code] | latch audit|locked [all-code] [S2]\n");
	return 2;
}
