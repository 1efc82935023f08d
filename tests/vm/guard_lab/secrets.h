/* SPDX-License-Identifier: Apache-2.0 */
/* Checks of what only the updater may read. Part of lab.c, included there once, after checks.h. */
#ifndef FREEHOLD_GUARD_LAB_SECRETS_H
#define FREEHOLD_GUARD_LAB_SECRETS_H

#define SECRET OWNER "secret/"
#define LAUNCHER "/usr/lib/freehold/updater"
#define WORD "/tmp/updater" /* what the updater of the laboratory is to do */

/* ---- the files ---- */

static int secret_read(void) { return done(open(SECRET "key", O_RDONLY)); }
static int secret_list(void) { return done(open(SECRET, O_RDONLY | O_DIRECTORY)); }
static int secret_through_bind(void) { return done(open("/mnt/bind/secret/key", O_RDONLY)); }

static int secret_through_path_descriptor(void)
{
	char path[64];
	int fd = open(SECRET "key", O_PATH);

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return fd < 0 ? 99 : done(open(path, O_RDONLY));
}

static int secret_through_overlay(void)
{
	int error = ret(mount("x", "/mnt/over", "overlay", MS_RDONLY, "lowerdir=/sysroot/owner/secret:/mnt/empty"));

	if (error)
		return 99;
	error = done(open("/mnt/over/key", O_RDONLY));
	umount("/mnt/over");
	return error;
}

static int secret_through_mount(void)
{
	int error = ret(mount("/dev/vdb1", "/mnt/again", "ext4", 0, NULL));

	if (error)
		return 99;
	error = done(open("/mnt/again/owner/secret/key", O_RDONLY));
	umount("/mnt/again");
	return error;
}

/* Once nothing of the path is cached, a file that is opened by its handle has no place in the tree. */
static int by_handle(const char *path, int flags)
{
	struct file_handle *handle = calloc(1, sizeof(*handle) + MAX_HANDLE_SZ);
	int number, top = open("/sysroot", O_RDONLY | O_DIRECTORY), caches = open("/proc/sys/vm/drop_caches", O_WRONLY), error;

	handle->handle_bytes = MAX_HANDLE_SZ;
	if (name_to_handle_at(AT_FDCWD, path, handle, &number, 0) < 0 || write(caches, "2", 1) != 1)
		return 99;
	close(caches);
	error = done(open_by_handle_at(top, handle, flags));
	close(top);
	return error;
}

static int secret_by_handle(void) { return by_handle(SECRET "key", O_RDONLY); }
static int owner_by_handle(void) { return by_handle(OWNER "a/b/c/file", O_WRONLY); }

/* ---- the disk below them ---- */

static int secret_partition(void) { return done(open("/dev/vdb1", O_RDONLY)); }
static int secret_partition_as_udev(void) { return done(open("/dev/vdb1", O_RDONLY | O_NONBLOCK)); }
static int secret_disk(void) { return done(open("/dev/vdb", O_RDONLY)); }

static int open_node(mode_t type, dev_t device)
{
	int error;

	unlink("/tmp/node");
	if (mknod("/tmp/node", type | 0600, device))
		return 99;
	error = done(open("/tmp/node", O_RDONLY));
	return error == ENXIO ? 0 : error; /* let through to a driver that is not there */
}

static int secret_disk_by_node(void)
{
	struct stat st;

	return stat("/dev/vdb", &st) ? 99 : open_node(S_IFBLK, st.st_rdev);
}

static int scsi_generic(void) { return open_node(S_IFCHR, makedev(21, 0)); }
static int disk_unbind(void) { return done(open("/sys/bus/virtio/drivers/virtio_blk/unbind", O_WRONLY)); }
static int module_hands_out_disks(void) { return module("/usr/lib/nvmet.ko.xz"); }

/* ---- the memory that holds them ---- */

static int perf_event(void)
{
	struct perf_event_attr attr = {.type = PERF_TYPE_SOFTWARE, .size = sizeof(attr), .config = PERF_COUNT_SW_CPU_CLOCK};

	return done(syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0));
}

static int tracefs_write(void) { return done(open("/mnt/trace/tracing_on", O_WRONLY)); }

/* A packet filter that reads an address of the kernel's. The verifier has errors of its own for what it does not allow. */
static int bpf_reads_memory(void)
{
	struct bpf_insn code[] = {
		{.code = 0xbf, .dst_reg = 1, .src_reg = 10}, /* r1 = stack */
		{.code = 0x07, .dst_reg = 1, .imm = -8},
		{.code = 0xb7, .dst_reg = 2, .imm = 8},
		{.code = 0xb7, .dst_reg = 3, .imm = 0},
		{.code = 0x85, .imm = BPF_FUNC_probe_read_kernel},
		{.code = 0xb7},
		{.code = 0x95},
	};
	union bpf_attr attr = {.prog_type = BPF_PROG_TYPE_SOCKET_FILTER, .insn_cnt = sizeof(code) / sizeof(code[0]),
			       .insns = (unsigned long)code, .license = (unsigned long)"GPL"};

	return done(bpf(BPF_PROG_LOAD, &attr)) ? EPERM : 0;
}

static int bpf_reads_memory_as_admin(void) /* CAP_SYS_ADMIN stands in for the capability that is dropped here */
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2];

	if (syscall(SYS_capget, &header, data))
		return 99;
	data[1].effective &= ~(1u << (CAP_PERFMON - 32));
	data[1].permitted &= ~(1u << (CAP_PERFMON - 32));
	data[1].inheritable &= ~(1u << (CAP_PERFMON - 32));
	if (syscall(SYS_capset, &header, data))
		return 99;
	return bpf_reads_memory();
}

static int admin_after_load(void)
{
	int error = load_socket_filter();

	bpf_reads_memory(); /* fails under the lock, in the middle */
	return error ? error : ret(sethostname("lab", 3));
}

/* EBUSY: let through to the rule that the old program must be unmapped first. */
static int another_program(void)
{
	int fd = open("/usr/bin/jit", O_RDONLY), error = ret(prctl(PR_SET_MM, PR_SET_MM_EXE_FILE, fd, 0, 0));

	close(fd);
	return error == EBUSY ? 0 : error;
}

/* The same as root of one's own user namespace may do it: with everything else as it is. */
static int another_program_map(void)
{
	struct prctl_mm_map map = {};
	unsigned long long field[52] = {};
	char text[2048] = "", *at = text, *word;
	int fd = open("/proc/self/stat", O_RDONLY), error;

	if (read(fd, text, sizeof(text) - 1) < 0)
		return errno;
	close(fd);
	for (int i = 1; i < 52 && (word = strsep(&at, " ")); i++)
		field[i] = strtoull(word, NULL, 10);
	map.start_code = field[26];
	map.end_code = field[27];
	map.start_stack = field[28];
	map.start_data = field[45];
	map.end_data = field[46];
	map.start_brk = field[47];
	map.brk = (unsigned long)sbrk(0);
	map.arg_start = field[48];
	map.arg_end = field[49];
	map.env_start = field[50];
	map.env_end = field[51];
	map.exe_fd = open("/usr/bin/jit", O_RDONLY);
	error = ret(prctl(PR_SET_MM, PR_SET_MM_MAP, &map, sizeof(map), 0));
	close(map.exe_fd);
	return error == EBUSY ? 0 : error;
}

/* ---- the updater ---- */

/* What the laboratory's updater does; the launcher takes everything away by which one could tell it, but a file. */
static int updater_program(const char *script)
{
	char word[16] = "";
	int status, fd = done(open(script, O_RDONLY)) ? -1 : open(WORD, O_RDONLY); /* as Python does: first its script */
	pid_t pid;

	if (read(fd, word, sizeof(word) - 1) < 0)
		return 98;
	close(fd);
	if (strcmp(word, "read") == 0)
		return secret_read();
	if (strcmp(word, "etc") == 0)
		return done(open("/etc/file", O_RDONLY));
	if (strcmp(word, "exec") == 0) {
		execl(LAB, "lab", "secret", NULL);
		return 98;
	}
	if (strcmp(word, "fork") == 0) {
		pid = fork();
		if (pid == 0)
			_exit(secret_read());
		waitpid(pid, &status, 0);
		return WIFEXITED(status) ? WEXITSTATUS(status) : 98;
	}
	if (strcmp(word, "wait") == 0)
		pause();
	return 98;
}

static int launch(void *word)
{
	if (word)
		put(WORD, word, 0600);
	execl(LAUNCHER, "updater", "self-check", NULL);
	return 97;
}

static int updater(const char *word)
{
	put(WORD, word, 0600);
	return RUN(LAUNCHER, "self-check");
}

static int updater_reads(void) { return updater("read"); }
static int updater_child(void) { return updater("fork"); }
static int updater_next_program(void) { return updater("exec"); }
static int updater_reads_etc(void) { return updater("etc"); }

static int updater_without_launcher(void)
{
	put(WORD, "read", 0600);
	return RUN("/usr/bin/python3", "-I", "-S", "-B", "/usr/lib/freehold/updater.py", "self-check");
}

static int updater_copied_launcher(void) /* under another name of the sealed tree */
{
	put(WORD, "read", 0600);
	return RUN("/usr/lib/freehold/copy", "self-check");
}

static int updater_in_namespace(void) { return unshare(CLONE_NEWNS) ? 99 : updater("read"); }
static int updater_in_pid_namespace(void) { return unshare(CLONE_NEWPID) ? 99 : updater("read"); }
static int updater_in_jail(void) { return chroot("/mnt/jail") || chdir("/") ? 99 : updater("read"); }

static int updater_filtered(void)
{
	struct sock_filter allow = {.code = BPF_RET | BPF_K, .k = SECCOMP_RET_ALLOW};
	struct sock_fprog program = {1, &allow};

	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) ? 99 : updater("read");
}

static int updater_shared_directories(void) /* with whom it shares them could change its root at any time */
{
	static char stack[65536] __attribute__((aligned(16)));
	int status;
	pid_t pid = clone(launch, stack + sizeof(stack), CLONE_FS | SIGCHLD, "read");

	waitpid(pid, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1000;
}

/* Starts one that waits, and does something to it. */
static int to_the_updater(int (*act)(pid_t))
{
	char path[64], name[16] = "";
	pid_t pid = fork();
	int error;

	if (pid == 0)
		_exit(launch("wait"));
	snprintf(path, sizeof(path), "/proc/%d/comm", pid);
	for (int i = 0; i < 500 && strncmp(name, "python3\n", 8) != 0; i++) {
		int fd = open(path, O_RDONLY);

		if (read(fd, name, sizeof(name)) < 0)
			name[0] = 0;
		close(fd);
		usleep(10000);
	}
	error = strncmp(name, "python3\n", 8) == 0 ? act(pid) : 99;
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	return error;
}

static int ask_robust_list(pid_t pid) /* reading access, as many files of /proc need it */
{
	void *head;
	size_t size;

	return ret(syscall(SYS_get_robust_list, pid, &head, &size));
}

static int read_memory(pid_t pid)
{
	char byte;
	struct iovec local = {&byte, 1}, remote = {&phase, 1};

	return ret(process_vm_readv(pid, &local, 1, &remote, 1, 0));
}

static int updater_looked_into(void) { return to_the_updater(ask_robust_list); }
static int updater_memory(void) { return to_the_updater(read_memory); }
static int updater_attached(void) { return to_the_updater(attach); }
static int others_looked_into(void) { return ask_robust_list(victim); }

/* ---- mounts that show in the first mount namespace though they are made elsewhere ---- */

static bool is_tmpfs(const char *path)
{
	struct statfs fs;

	return statfs(path, &fs) == 0 && fs.f_type == 0x01021994;
}

static int mount_usr_through_peer(void)
{
	int error;

	if (mount(NULL, "/", NULL, MS_SHARED, NULL) || mount("/", "/mnt/peer", NULL, MS_BIND, NULL))
		return 99;
	error = ret(mount("tmpfs", "/mnt/peer/usr/lib/place", "tmpfs", 0, "size=64k"));
	if (!error && !is_tmpfs("/usr/lib/place"))
		error = 98;
	umount("/mnt/peer/usr/lib/place");
	umount("/mnt/peer");
	mount(NULL, "/", NULL, MS_PRIVATE, NULL);
	return error;
}

static int mount_over_owner(void) { return mount_at("/sysroot/owner/a"); }
static int mount_over_owner_disk(void) { return mount_at("/sysroot"); }

static int umount_owner_disk(void) /* EAGAIN, EBUSY: let through to what only tries */
{
	int error = ret(umount2("/sysroot", MNT_EXPIRE));

	return error == EAGAIN || error == EBUSY ? 0 : error;
}

/* In a child with mounts of its own, whose peers ours are. */
static int elsewhere(const char *shared, int (*act)(void))
{
	int status;
	pid_t pid;

	if (mount(NULL, shared, NULL, MS_SHARED, NULL))
		return 99;
	pid = fork();
	if (pid == 0)
		_exit(unshare(CLONE_NEWNS) ? 99 : act());
	waitpid(pid, &status, 0);
	mount(NULL, shared, NULL, MS_PRIVATE, NULL);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1000;
}

static int mount_then_umount_usr(void)
{
	int error = ret(mount("tmpfs", "/usr/lib/place", "tmpfs", 0, "size=64k"));

	umount("/usr/lib/place");
	return error;
}

static int umount_a_bpffs(void) { return ret(umount("/mnt/bpf_of_peers")); }
static int mount_usr_in_peer_namespace(void) { return elsewhere("/", mount_then_umount_usr); }

static int umount_bpffs_in_peer_namespace(void)
{
	/* A place of its own: over a private mount, as bpffs_umount leaves one, nothing would spread. */
	mkdir("/mnt/bpf_of_peers", 0700);
	mount("bpf", "/mnt/bpf_of_peers", "bpf", 0, NULL);
	return elsewhere("/mnt", umount_a_bpffs);
}

#endif
