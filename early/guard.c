// SPDX-License-Identifier: Apache-2.0
/* Loads the guard (see early/guard.h). Everything root could later change is frozen here, before the programs run. */
#define _GNU_SOURCE
#include "guard.h"

#include <bpf/bpf.h>
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

_Static_assert(GUARD_JIT == GUARD_JIT_LIMIT && GUARD_DISKS == GUARD_DISKS_LIMIT &&
		       GUARD_INTERPRETERS == GUARD_INTERPRETERS_LIMIT,
	       "one limit, two headers");

#define BPFFS_MAGIC 0xcafe4a11
#define EMERGENCY_KEY "/sysroot/owner/emergency/key"
#define KERNEL_BTF "/sys/kernel/btf/vmlinux"
#define MAX_BTF (64 << 20)
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

/*
 * Does the kernel have the hook? Its name stands in BTF's table of strings, and no type or member is called so. Looking
 * for the bytes takes no time; having libbpf index the whole a second time takes a fifth of loading the guard.
 */
static int has_hook(const char *name, bool *has)
{
	int fd = open(KERNEL_BTF, O_RDONLY | O_CLOEXEC);
	char *text = malloc(MAX_BTF);
	size_t length = 0;
	ssize_t got = -1;

	while (fd >= 0 && text && length < MAX_BTF && (got = read(fd, text + length, MAX_BTF - length)) > 0)
		length += (size_t)got;
	int error = fd < 0 || got < 0 ? errno : text ? 0 : ENOMEM;
	/* With the zeros on both sides: the whole name. */
	*has = !error && memmem(text, length, name, 1 + strlen(name + 1) + 1);
	free(text);
	if (fd >= 0)
		close(fd);
	return error || !length ? fail("the kernel has no BTF", error ? error : ENODATA) : 0;
}

static int leave_out_missing_hooks(struct guard_bpf *guard)
{
	bool has;
	int error = has_hook("\0bpf_lsm_inode_file_setattr", &has);

	if (!error)
		bpf_program__set_autoload(guard->progs.guard_file_setattr, has);
	return error;
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
		link = bpf_program__attach(program);
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
	return count == 2 ? 0 : -ENODEV;
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
	struct stat namespace;
	int error;

	libbpf_set_print(print);
	if (stat("/proc/self/ns/mnt", &namespace) != 0)
		return fail("/proc/self/ns/mnt", errno);
	guard = guard_bpf__open();
	if (!guard)
		return fail("cannot read the program", errno);
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
	error = leave_out_missing_hooks(guard);
	if (!error) {
		error = guard_bpf__load(guard);
		if (error)
			fail("the kernel refused the program", error);
	}
	if (!error)
		error = mount_bpffs();
	if (!error) {
		error = pin_all(guard);
		if (!error)
			error = tag_running(guard);
		if (error)
			unpin_all();
	}
	guard_bpf__destroy(guard);
	return error;
}

/* Runs the pinned latch: what it returned, or -errno. */
static int request(unsigned mode)
{
	struct guard_latch_request request = {.mode = mode};
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
	return request(GUARD_OPEN);
}

int guard_latch(unsigned mode)
{
	int error = mode == GUARD_OPEN ? -EINVAL : request(mode);

	if (error == -ENOENT)
		return fail("the guard is not loaded", error);
	return error ? fail("the latch refused", error) : 0;
}
