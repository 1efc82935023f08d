// SPDX-License-Identifier: Apache-2.0
/* Loads the guard (see early/guard.h). Everything root could later change is frozen here, before the programs run. */
#define _GNU_SOURCE
#include "guard.h"

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "../bpf/guard.h"
#include "guard.skel.h"
#include "kernel_types.h"

_Static_assert(GUARD_JIT == GUARD_JIT_LIMIT && GUARD_DISKS == GUARD_DISKS_LIMIT &&
		       GUARD_INTERPRETERS == GUARD_INTERPRETERS_LIMIT,
	       "one limit, two headers");

#define BPFFS_MAGIC 0xcafe4a11
#define EMERGENCY_KEY "/sysroot/owner/emergency/key"
#define KERNEL_BTF "/sys/kernel/btf/vmlinux"
#define MAX_PROCESSES 65536

/* Debian 13's libelf.a leaves these two out of the archive. They prepare and free the search tree of
 * elf_getdata_rawchunk(), which libbpf never calls, in a structure that libelf allocates zeroed: nothing is to be done.
 * Weak, so that a complete archive wins. */
__attribute__((weak)) void eu_search_tree_init(void *tree);
__attribute__((weak)) void eu_search_tree_fini(void *tree, void (*free_node)(void *));

__attribute__((weak)) void eu_search_tree_init(void *tree)
{
	(void)tree;
}

__attribute__((weak)) void eu_search_tree_fini(void *tree, void (*free_node)(void *))
{
	(void)tree;
	(void)free_node;
}

static int fail(const char *what, int error)
{
	fprintf(stderr, "guard: %s: %s\n", what, strerror(error < 0 ? -error : error));
	return error < 0 ? error : -error;
}

/* Warnings of libbpf explain a refused program; its chatter about probing does not. */
static int print(enum libbpf_print_level level, const char *format, va_list arguments)
{
	return level == LIBBPF_WARN ? vfprintf(stderr, format, arguments) : 0;
}

/* The kernel's own packing of a device number, which differs from stat's. */
static __u32 kernel_dev(unsigned major, unsigned minor)
{
	return major << 20 | minor;
}

static int mount_bpffs(void)
{
	struct statfs fs;

	if (statfs(GUARD_BPFFS, &fs) != 0)
		return fail(GUARD_BPFFS, errno);
	if ((__u32)fs.f_type != BPFFS_MAGIC &&
	    mount("bpf", GUARD_BPFFS, "bpf", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0700") != 0)
		return fail("cannot mount bpffs", errno);
	if (mkdir(GUARD_PINS, 0700) != 0)
		return fail(GUARD_PINS, errno);
	return 0;
}

/* What libbpf would look up for each program alone: the number of its hook. */
static int say_hook(struct bpf_program *program, struct bpf_prog_load_opts *options, long types)
{
	const char *name = strchr(bpf_program__section_name(program), '/');
	unsigned id = name ? types_hook((const struct kernel_types *)types, name + 1) : 0;

	if (!id)
		return fail(bpf_program__section_name(program), ESRCH);
	options->attach_btf_id = id;
	return bpf_program__set_type(program, BPF_PROG_TYPE_LSM);
}

/* Names of the types that the guard was compiled with, in order. */
struct own_names {
	char **name;
	unsigned count;
};

static int compare_names(const void *one, const void *other)
{
	return strcmp(*(const char *const *)one, *(const char *const *)other);
}

static bool is_own(const char *name, void *data)
{
	const struct own_names *own = data;

	return bsearch(&name, own->name, own->count, sizeof(*own->name), compare_names);
}

/* The kernel's types of those names, and nothing else: a descriptor, or -errno. */
static int own_types(const struct kernel_types *types)
{
	struct guard_bpf *guard = guard_bpf__open();
	const struct btf *btf = guard ? bpf_object__btf(guard->obj) : NULL;
	struct own_names own = {NULL, 0};
	int result = -ENOMEM;

	own.name = btf ? calloc(btf__type_cnt(btf), sizeof(*own.name)) : NULL;
	if (own.name) {
		for (unsigned id = 1; id < btf__type_cnt(btf); id++) {
			const char *name = btf__name_by_offset(btf, btf__type_by_id(btf, id)->name_off);
			const char *flavour = name ? strstr(name, "___") : NULL;

			/* libbpf looks for a name up to its flavour. */
			if (name && *name && (own.name[own.count] = strndup(name, flavour ? (size_t)(flavour - name) : strlen(name))))
				own.count++;
		}
		qsort(own.name, own.count, sizeof(*own.name), compare_names);
		result = types_small(types, is_own, &own);
	}
	for (unsigned i = 0; i < own.count; i++)
		free(own.name[i]);
	free(own.name);
	guard_bpf__destroy(guard);
	return result;
}

/* What has to last while the guard is loaded. */
struct opening {
	struct kernel_types types;
	int handler, small;
	char path[32];
};

static void opening_end(struct opening *opening)
{
	if (opening->handler >= 0)
		libbpf_unregister_prog_handler(opening->handler);
	if (opening->small >= 0)
		close(opening->small);
	types_forget(&opening->types);
}

/*
 * Opens the guard's object, with what libbpf would look for in the kernel's types said in advance. Programs get their kind
 * only when they are loaded: for one of kind LSM libbpf would read all of the types. NULL when something is not as we know
 * it; then libbpf has to look for itself.
 */
static struct guard_bpf *open_with_types(struct opening *opening)
{
	LIBBPF_OPTS(libbpf_prog_handler_opts, options, .cookie = (long)&opening->types, .prog_prepare_load_fn = say_hook);
	LIBBPF_OPTS(bpf_object_open_opts, open, .btf_custom_path = opening->path);
	struct guard_bpf *guard;
	int error = types_read(&opening->types, KERNEL_BTF);

	if (!error) {
		opening->small = own_types(&opening->types);
		error = opening->small < 0 ? opening->small : 0;
	}
	if (error) {
		fail("the kernel's types are read the long way", error);
		return NULL;
	}
	snprintf(opening->path, sizeof(opening->path), "/proc/self/fd/%d", opening->small);
	opening->handler = libbpf_register_prog_handler("lsm+", BPF_PROG_TYPE_SOCKET_FILTER, BPF_LSM_MAC, &options);
	guard = opening->handler < 0 ? NULL : guard_bpf__open_opts(&open);
	if (guard)
		bpf_program__set_autoload(guard->progs.guard_file_setattr, types_hook(&opening->types, "inode_file_setattr") != 0);
	return guard;
}

static struct guard_bpf *open_guard(struct opening *opening)
{
	struct guard_bpf *guard;

	*opening = (struct opening){.handler = -1, .small = -1};
	guard = open_with_types(opening);
	if (guard)
		return guard;
	opening_end(opening);
	*opening = (struct opening){.handler = -1, .small = -1};
	guard = guard_bpf__open();
	if (guard)
		bpf_program__set_autoload(guard->progs.guard_file_setattr,
					  libbpf_find_vmlinux_btf_id("inode_file_setattr", BPF_LSM_MAC) > 0);
	return guard;
}

static unsigned long long kept[2]; /* bytes that the maps and the programs take in the kernel */

/* What the kernel charges for a map or a program of ours, by its descriptor, while we have one. */
static unsigned long long charged(int fd)
{
	char path[64], line[128];
	unsigned long long bytes = 0;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	FILE *file = fopen(path, "re");
	while (file && fgets(line, sizeof(line), file))
		sscanf(line, "memlock: %llu", &bytes);
	if (file)
		fclose(file);
	return bytes;
}

static void count_kept(struct guard_bpf *guard)
{
	struct bpf_program *program;
	struct bpf_map *map;

	kept[0] = kept[1] = 0;
	bpf_object__for_each_map(map, guard->obj)
		kept[0] += charged(bpf_map__fd(map));
	bpf_object__for_each_program(program, guard->obj)
		if (bpf_program__autoload(program))
			kept[1] += charged(bpf_program__fd(program));
}

void guard_kept(unsigned long long *maps, unsigned long long *programs)
{
	*maps = kept[0];
	*programs = kept[1];
}

static int pin_all(struct guard_bpf *guard)
{
	struct bpf_program *program;
	struct bpf_map *map;
	char path[128];
	int error;

	bpf_object__for_each_program(program, guard->obj) {
		struct bpf_link *link;

		if (!bpf_program__autoload(program) || program == guard->progs.guard_latch)
			continue;
		link = bpf_program__attach_lsm(program); /* libbpf knows no section any more: see open_guard() */
		if (!link)
			return fail(bpf_program__name(program), errno);
		snprintf(path, sizeof(path), GUARD_PINS "/link_%s", bpf_program__name(program));
		error = bpf_link__pin(link, path);
		if (error)
			return fail(path, error);
		bpf_link__disconnect(link); /* the pin holds it from here on */
		bpf_link__destroy(link);
	}
	bpf_object__for_each_map(map, guard->obj) {
		const char *name = bpf_map__name(map);
		const char *dot = strrchr(name, '.');

		/* The maps that decide are reached by nobody; the programs hold them. */
		if (dot ? strcmp(dot, ".rodata") != 0 : map != guard->maps.gd_counters && map != guard->maps.gd_denials)
			continue;
		snprintf(path, sizeof(path), GUARD_PINS "/%s", dot ? "config" : name);
		if (bpf_obj_pin(bpf_map__fd(map), path) != 0)
			return fail(path, errno);
	}
	if (bpf_obj_pin(bpf_program__fd(guard->progs.guard_latch), GUARD_PINS "/latch") != 0)
		return fail("cannot pin the latch", errno);
	return 0;
}

/* Takes the pins away again, so that a second attempt finds a clean place. */
static void unpin_all(void)
{
	DIR *pins = opendir(GUARD_PINS);
	struct dirent *entry;

	while (pins && (entry = readdir(pins)))
		if (entry->d_name[0] != '.')
			unlinkat(dirfd(pins), entry->d_name, 0);
	if (pins)
		closedir(pins);
	rmdir(GUARD_PINS);
}

/* One thread that ran before the programs did: what they would have noted at its exec. Gone by now is as good. */
static int tag_thread(int map, pid_t thread, const void *tag)
{
	int pidfd = pidfd_open(thread, PIDFD_THREAD), error = 0;

	if (pidfd < 0) {
		error = errno;
		return kill(thread, 0) == 0 ? -error : 0;
	}
	if (bpf_map_update_elem(map, &pidfd, tag, BPF_ANY) != 0 && errno != ESRCH)
		error = -errno;
	close(pidfd);
	return error;
}

static int tag_process(struct guard_bpf *guard, pid_t process, const void *tag)
{
	char path[32];
	struct dirent *entry;
	int error = 0;

	snprintf(path, sizeof(path), "/proc/%d/task", process);
	DIR *threads = opendir(path);
	if (!threads)
		return errno == ENOENT || errno == ESRCH ? 0 : -errno;
	while (!error && (entry = readdir(threads)))
		if (isdigit((unsigned char)entry->d_name[0]))
			error = tag_thread(bpf_map__fd(guard->maps.gd_tasks), atoi(entry->d_name), tag);
	closedir(threads);
	return error;
}

static bool shares_memory(pid_t process, const pid_t *others, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (syscall(SYS_kcmp, process, others[i], KCMP_VM, 0, 0) == 0)
			return true;
	return false;
}

/*
 * Processes with a privileged thread, and those that share one's memory, count as begun privileged: whether their other
 * threads once were, nobody can tell. Who shares with nobody privileged has nothing to gain. Twice, since a fork may slip
 * through between the reading of /proc and the tag of its parent; what is forked after that tag inherits it.
 */
static int tag_running(struct guard_bpf *guard)
{
	__u32 *tag = calloc(1, bpf_map__value_size(guard->maps.gd_tasks));
	pid_t *privileged = calloc(MAX_PROCESSES, sizeof(*privileged)), *others = calloc(MAX_PROCESSES, sizeof(*others));
	int error = tag && privileged && others ? 0 : -ENOMEM;

	if (!error) {
		tag[0] = 1; /* struct task_tag begins with born_privileged */
		tag[1] = SCRIPT_SEEN; /* and script: whatever it was, it runs */
	}
	for (int round = 0; round < 2 && !error; round++) {
		size_t privileged_count = 0, others_count = 0;
		DIR *proc = opendir("/proc");
		struct dirent *entry;

		if (!proc) {
			error = -errno;
			break;
		}
		while ((entry = readdir(proc))) {
			if (!isdigit((unsigned char)entry->d_name[0]))
				continue;
			if (privileged_count + others_count == MAX_PROCESSES)
				error = -E2BIG;
			else if (guard_is_privileged(entry->d_name))
				privileged[privileged_count++] = atoi(entry->d_name);
			else
				others[others_count++] = atoi(entry->d_name);
		}
		closedir(proc);
		for (size_t i = 0; i < privileged_count && !error; i++)
			error = tag_process(guard, privileged[i], tag);
		for (size_t i = 0; i < others_count && !error; i++)
			if (shares_memory(others[i], privileged, privileged_count))
				error = tag_process(guard, others[i], tag);
	}
	free(tag);
	free(privileged);
	free(others);
	return error ? fail("cannot tag what runs already", error) : 0;
}

/* Mirrors the kernel half: any uid 0, or a permitted capability beyond the harmless ones. The kernel's own threads run
 * nobody's code. */
static bool privileged_status(const char *path)
{
	const unsigned long long harmless = 1ull << 10 | 1ull << 11 | 1ull << 13 | 1ull << 14 | 1ull << 35 | 1ull << 36;
	unsigned long long permitted = 0;
	unsigned uid[4] = {0, 0, 0, 0};
	int kernel_thread = 0;
	char line[256];
	FILE *status = fopen(path, "re");

	if (!status)
		return errno != ENOENT && errno != ESRCH; /* gone is nobody; what cannot be read is taken for the worst */
	while (fgets(line, sizeof(line), status)) {
		if (strncmp(line, "Uid:", 4) == 0)
			sscanf(line + 4, "%u %u %u %u", &uid[0], &uid[1], &uid[2], &uid[3]);
		else if (strncmp(line, "CapPrm:", 7) == 0)
			sscanf(line + 7, "%llx", &permitted);
		else if (strncmp(line, "Kthread:", 8) == 0)
			kernel_thread = atoi(line + 8);
	}
	fclose(status);
	return !kernel_thread && (!uid[0] || !uid[1] || !uid[2] || !uid[3] || (permitted & ~harmless));
}

bool guard_is_privileged(const char *pid)
{
	char path[300];
	struct dirent *entry;
	bool found = false;

	snprintf(path, sizeof(path), "/proc/%.10s/task", pid);
	DIR *threads = opendir(path);
	while (threads && !found && (entry = readdir(threads))) {
		snprintf(path, sizeof(path), "/proc/%.10s/task/%.10s/status", pid, entry->d_name);
		found = isdigit((unsigned char)entry->d_name[0]) && privileged_status(path);
	}
	if (threads)
		closedir(threads);
	return found;
}

/* ---- what the guard has to know of this boot ---- */

static int read_disk(const char *path, struct guard_disk *disk)
{
	FILE *file = fopen(path, "re");
	int count = file ? fscanf(file, "%u:%u", &disk->major, &disk->minor) : 0;

	if (file)
		fclose(file);
	/* Major 0 is no disk, and would end the list. */
	return count == 2 && disk->major ? 0 : -ENODEV;
}

/* Adds a block device, the disk that it is a partition of, and the devices that either is stacked on. */
static int add_disk(struct guard_config *config, struct guard_disk disk)
{
	char path[128], inner[400];
	struct guard_disk below;
	struct dirent *entry;
	int i = 0, error = 0;
	DIR *slaves;

	while (i < GUARD_DISKS && config->disks[i].major) {
		if (config->disks[i].major == disk.major && config->disks[i].minor == disk.minor)
			return 0;
		i++;
	}
	if (i == GUARD_DISKS)
		return -E2BIG;
	config->disks[i] = disk;
	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/partition", disk.major, disk.minor);
	if (access(path, F_OK) == 0) {
		snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/../dev", disk.major, disk.minor);
		error = read_disk(path, &below);
		if (!error)
			error = add_disk(config, below);
	}
	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/slaves", disk.major, disk.minor);
	slaves = opendir(path);
	while (!error && slaves && (entry = readdir(slaves))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(inner, sizeof(inner), "%s/%s/dev", path, entry->d_name);
		error = read_disk(inner, &below);
		if (!error)
			error = add_disk(config, below);
	}
	if (slaves)
		closedir(slaves);
	return error;
}

/* The kind of interpreter that Debian has under this name; a version may follow. */
static unsigned interpreter_kind(const char *name)
{
	static const struct {
		const char *name;
		unsigned kind;
	} known[] = {
		{"sh", INTERPRETER_SHELL},     {"dash", INTERPRETER_SHELL},   {"bash", INTERPRETER_SHELL}, {"ksh", INTERPRETER_SHELL},
		{"mksh", INTERPRETER_SHELL},   {"zsh", INTERPRETER_SHELL},    {"yash", INTERPRETER_SHELL}, {"fish", INTERPRETER_SHELL},
		{"python", INTERPRETER_PYTHON}, {"pypy", INTERPRETER_PYTHON}, {"perl", INTERPRETER_PERL},  {"ruby", INTERPRETER_OTHER},
		{"lua", INTERPRETER_OTHER},    {"luajit", INTERPRETER_OTHER}, {"node", INTERPRETER_OTHER}, {"nodejs", INTERPRETER_OTHER},
		{"php", INTERPRETER_OTHER},    {"tclsh", INTERPRETER_OTHER},  {"guile", INTERPRETER_OTHER},
	};
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
		size_t length = strlen(known[i].name);

		if (strncmp(name, known[i].name, length) == 0 &&
		    (!name[length] || name[length] == '.' || isdigit((unsigned char)name[length])))
			return known[i].kind;
	}
	return INTERPRETER_NONE;
}

/* Lists the tree's interpreters: more than fit is a fault, since those left out would go unguarded. */
static int list_interpreters(const char *root, struct guard_config *config)
{
	char path[256];
	struct dirent *entry;
	struct stat status;
	int count = 0, error = 0;

	snprintf(path, sizeof(path), "%s/usr/bin", root);
	DIR *programs = opendir(path);
	if (!programs)
		return -errno;
	while (!error && (entry = readdir(programs))) {
		unsigned kind = interpreter_kind(entry->d_name);

		/* Links lead to others of the list. */
		if (kind == INTERPRETER_NONE || fstatat(dirfd(programs), entry->d_name, &status, AT_SYMLINK_NOFOLLOW) != 0 ||
		    !S_ISREG(status.st_mode))
			continue;
		if (count == GUARD_INTERPRETERS)
			error = -E2BIG;
		else
			config->interpreters[count++] = (struct guard_program){status.st_ino, kind};
	}
	closedir(programs);
	return error;
}

int guard_describe(const char *root, const char *owner, struct guard_config *config)
{
	struct stat sealed, etc, own;
	struct statx mount;
	char path[256];

	memset(config, 0, sizeof(*config));
	snprintf(path, sizeof(path), "%s/etc", root);
	if (stat(root, &sealed) != 0 || stat(path, &etc) != 0 || stat(owner, &own) != 0)
		return -errno;
	if (statx(AT_FDCWD, root, 0, STATX_MNT_ID, &mount) != 0 || !(mount.stx_mask & STATX_MNT_ID))
		return -ENOTSUP;
	config->sealed_major = major(sealed.st_dev);
	config->sealed_minor = minor(sealed.st_dev);
	if (etc.st_dev != sealed.st_dev) {
		config->etc_major = major(etc.st_dev);
		config->etc_minor = minor(etc.st_dev);
	}
	config->root_mount = mount.stx_mnt_id;
	config->owner_major = major(own.st_dev);
	config->owner_minor = minor(own.st_dev);
	config->owner_ino = own.st_ino;
	int error = list_interpreters(root, config);
	if (error)
		return error;
	/* Major 0: in memory, and no disk has a copy. */
	return config->owner_major ? add_disk(config, (struct guard_disk){config->owner_major, config->owner_minor}) : 0;
}

int guard_load(const struct guard_config *config)
{
	struct guard_bpf *guard;
	struct opening opening;
	struct stat namespace;
	int error;

	libbpf_set_print(print);
	if (stat("/proc/self/ns/mnt", &namespace) != 0)
		return fail("/proc/self/ns/mnt", errno);
	guard = open_guard(&opening);
	if (!guard) {
		error = fail("cannot read the program", errno);
		opening_end(&opening);
		return error;
	}
	guard->rodata->sealed_dev = kernel_dev(config->sealed_major, config->sealed_minor);
	guard->rodata->owner_dev = kernel_dev(config->owner_major, config->owner_minor);
	guard->rodata->owner_ino = config->owner_ino;
	guard->rodata->first_mount_ns = namespace.st_ino;
	for (int i = 0; i < GUARD_JIT; i++)
		guard->rodata->jit_inodes[i] = config->jit_inodes[i];
	for (int i = 0; i < GUARD_INTERPRETERS; i++)
		guard->rodata->interpreters[i] = (struct guard_interpreter){config->interpreters[i].ino, config->interpreters[i].kind};
	guard->rodata->etc_dev = kernel_dev(config->etc_major, config->etc_minor);
	guard->rodata->root_mount = config->root_mount;
	for (int i = 0; i < GUARD_DISKS; i++)
		guard->rodata->owner_disks[i] = kernel_dev(config->disks[i].major, config->disks[i].minor);
	error = guard_bpf__load(guard);
	if (error)
		fail("the kernel refused the program", error);
	if (!error)
		error = mount_bpffs();
	if (!error) {
		error = pin_all(guard);
		if (!error)
			error = tag_running(guard);
		if (error)
			unpin_all();
		else
			count_kept(guard);
	}
	guard_bpf__destroy(guard);
	opening_end(&opening);
	return error;
}

/* Runs the pinned latch: what it returned, or -errno. */
static int request(unsigned mode, unsigned flags)
{
	struct guard_latch_request request = {.mode = mode, .flags = flags};
	struct stat root, etc;
	LIBBPF_OPTS(bpf_test_run_opts, run, .ctx_in = &request, .ctx_size_in = sizeof(request));
	int latch = bpf_obj_get(GUARD_PINS "/latch");
	int error;

	if (latch < 0)
		return -errno;
	if (mode == GUARD_LOCKED && stat("/", &root) == 0 && stat("/etc", &etc) == 0 && etc.st_dev != root.st_dev)
		request.etc_dev = kernel_dev(major(etc.st_dev), minor(etc.st_dev));
	/* Nobody can put one there later. */
	request.emergency = mode == GUARD_LOCKED && access(EMERGENCY_KEY, F_OK) == 0;
	error = bpf_prog_test_run_opts(latch, &run);
	close(latch);
	return error ? error : (int)run.retval;
}

int guard_mode(void)
{
	int word = request(GUARD_OPEN, 0);

	return word < 0 ? word : word & GUARD_MODES;
}

unsigned guard_flags(void)
{
	int word = request(GUARD_OPEN, 0);

	return word < 0 ? 0 : (unsigned)word & GUARD_FLAGS;
}

int guard_latch(unsigned mode, unsigned flags)
{
	int error = mode == GUARD_OPEN ? -EINVAL : request(mode, flags);

	if (error == -ENOENT)
		return fail("the guard is not loaded", error);
	return error ? fail("the latch refused", error) : 0;
}
