/* SPDX-License-Identifier: Apache-2.0 */
/* The checks, each 0 when it was let through, else errno. Part of lab.c, included there once. */
#ifndef FREEHOLD_GUARD_LAB_CHECKS_H
#define FREEHOLD_GUARD_LAB_CHECKS_H

/* ---- code ---- */

static int exec_unsigned(void) { return RUN("/tmp/lab", "ok"); }
static int exec_script(void) { return RUN("/tmp/script"); }
static int exec_sealed(void) { return RUN(LAB, "ok"); }
static int exec_sealed_script(void) { return RUN("/usr/bin/script"); }
static int exec_dynamic(void) { return RUN("/usr/bin/dyn"); }
static int exec_signed(void) { return RUN("/signed/signed", "ok"); }
static int exec_verity_unsigned(void) { return RUN("/signed/unsigned", "ok"); }
static int ld_so_file(void) { return RUN("/lib64/ld-linux-x86-64.so.2", "/tmp/dyn"); }
static int setuid_unsigned(void) { return RUN("/tmp/setuid", "ok"); }
static int setgid_unsigned(void) { return RUN("/tmp/setgid", "ok"); }

static int exec_memfd(void)
{
	char path[64];
	int fd = memfd_create("x", 0), in = open(LAB, O_RDONLY);
	ssize_t size;
	char buffer[65536];

	while ((size = read(in, buffer, sizeof(buffer))) > 0)
		if (write(fd, buffer, size) != size)
			return errno;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return RUN(path, "ok");
}

static int preload(void) /* dyn prints nothing and exits 9 when the library's constructor ran */
{
	int status = spawn((char *[]){"/usr/bin/dyn", NULL}, (char *[]){"LD_PRELOAD=/tmp/evil.so", NULL});

	return status == 9 ? 0 : EPERM;
}

static int python(const char *text)
{
	return spawn((char *[]){"/usr/bin/python3.13", "-I", "-S", "-c", (char *)text, NULL}, (char *[]){NULL});
}

static int python_ctypes(void) { return python("import ctypes; assert ctypes.CDLL(None).getpid() > 0"); }

/* Debian's libffi makes callbacks in anonymous executable memory. */
static int python_callback(void) { return python("import ctypes\nassert ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 7)() == 7"); }
static int jit_allowed(void) { return RUN("/usr/bin/jit", "anonymous"); }

static int map_anonymous(void)
{
	void *at = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return at == MAP_FAILED ? errno : 0;
}

static int protect_anonymous(void)
{
	void *at = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return ret(mprotect(at, 4096, PROT_READ | PROT_EXEC));
}

static int map_file(const char *path, int first, int then, bool dirty)
{
	int fd = open(path, O_RDONLY);
	char *at = mmap(NULL, 4096, first, MAP_PRIVATE, fd, 0);

	close(fd);
	if (at == MAP_FAILED)
		return errno;
	if (dirty)
		at[0] ^= 1;
	return then ? ret(mprotect(at, 4096, then)) : 0;
}

#define R PROT_READ
#define RW (PROT_READ | PROT_WRITE)
#define RX (PROT_READ | PROT_EXEC)
#define RWX (PROT_READ | PROT_WRITE | PROT_EXEC)
static int map_unsigned(void) { return map_file("/tmp/lab", RX, 0, false); }
static int map_sealed(void) { return map_file(LAB, RX, 0, false); }
static int map_sealed_writable(void) { return map_file(LAB, RWX, 0, false); }
static int protect_unsigned(void) { return map_file("/tmp/lab", R, RX, false); }
static int protect_sealed(void) { return map_file(LAB, R, RX, false); }
static int protect_sealed_writable(void) { return map_file(LAB, R, RWX, false); }
static int protect_modified(void) { return map_file(LAB, RW, RX, true); }

/* A child that shares our memory drops its privileges for good and maps code where we could jump to it. */
static int drop_and_map(void *unused)
{
	(void)unused;
	if (syscall(SYS_setresgid, 1000, 1000, 1000) || syscall(SYS_setresuid, 1000, 1000, 1000))
		return 99;
	return map_file("/tmp/lab", RX, 0, false);
}

static int shared_memory_drop(void)
{
	static char stack[65536] __attribute__((aligned(16)));
	int status;
	/* The lab must have been exec'ed as root for its memory to count as born privileged: it was. */
	pid_t pid = clone(drop_and_map, stack + sizeof(stack), CLONE_VM | SIGCHLD, NULL);

	waitpid(pid, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1000;
}

static int module(const char *path)
{
	int fd = open(path, O_RDONLY);
	int error = ret(syscall(SYS_finit_module, fd, "", 4));

	close(fd);
	return error == EEXIST ? 0 : error;
}

static int module_unsigned(void) { return module("/tmp/overlay.ko.xz"); }
static int module_sealed(void) { return module("/usr/lib/overlay.ko.xz"); }

static int module_buffer(void) /* 8 is ENOEXEC: the kernel looked at the bytes, so it was let through */
{
	static char bytes[512] = "\177ELF";
	int error = ret(syscall(SYS_init_module, bytes, sizeof(bytes), ""));

	return error == ENOEXEC ? 0 : error;
}

/* ---- tampering ---- */

static int attach(pid_t pid)
{
	int error = ret(ptrace(PTRACE_SEIZE, pid, NULL, NULL));

	return error;
}

static int ptrace_init(void) { return attach(1); }
static int ptrace_root(void) { return attach(victim); }

static int vm_write(void)
{
	char byte = 0;
	struct iovec local = {&byte, 1}, remote = {&phase, 1};
	ssize_t size;

	process_vm_readv(victim, &local, 1, &remote, 1, 0);
	size = process_vm_writev(victim, &local, 1, &remote, 1, 0);
	return ret(size);
}

static int ptrace_own(void) /* an unprivileged process and its own child */
{
	int error;
	pid_t pid = fork();

	if (pid == 0) {
		pause();
		_exit(0);
	}
	error = attach(pid);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	return error;
}

static int own_memory_file(void) { return done(open("/proc/self/mem", O_RDWR)); }
static int core_pattern(void) { return done(open("/proc/sys/kernel/core_pattern", O_WRONLY)); }
static int modprobe_path(void) { return done(open("/proc/sys/kernel/modprobe", O_WRONLY)); }
static int harmless_sysctl(void) { return done(open("/proc/sys/kernel/panic", O_WRONLY)); }
static int ipe_enforce(void) { return done(open("/sys/kernel/security/ipe/enforce", O_WRONLY)); }
static int apparmor_remove(void) { return done(open("/sys/kernel/security/apparmor/.remove", O_WRONLY)); }
static int block_write(void) { return done(open("/dev/vda", O_RDWR)); }
static int block_read(void) { return done(open("/dev/vda", O_RDONLY)); }
static int rawio(void) { return ret(syscall(SYS_ioperm, 0x80, 1, 1)); }

static int mount_at(const char *target)
{
	int error = ret(mount("tmpfs", target, "tmpfs", 0, "size=64k"));

	if (!error && phase != GUARD_LOCKED)
		umount2(target, MNT_DETACH);
	return error;
}

static int mount_usr(void) { return mount_at("/usr/lib/place"); }
static int mount_etc(void) { return mount_at("/etc"); }
static int mount_tmp(void) { int error = mount_at("/tmp/place"); umount("/tmp/place"); return error; }
static int bind_etc_file(void)
{
	int error = ret(mount("/tmp/script", "/etc/file", NULL, MS_BIND, NULL));

	umount("/etc/file");
	return error;
}

static int bind_usr_new_interface(void)
{
	int tree = syscall(SYS_open_tree, AT_FDCWD, "/tmp", 1 /* OPEN_TREE_CLONE */), error;

	if (tree < 0)
		return errno;
	error = ret(syscall(SYS_move_mount, tree, "", AT_FDCWD, "/usr/lib/place", 4 /* F_EMPTY_PATH */));
	close(tree);
	umount("/usr/lib/place");
	return error;
}

static int mount_usr_own_namespace(void)
{
	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		return errno;
	return ret(mount("tmpfs", "/usr/lib/place", "tmpfs", 0, NULL));
}

static int move_a_mount(void)
{
	int error = ret(mount("/mnt/move", "/tmp/place", NULL, MS_MOVE, NULL));

	if (!error)
		mount("/tmp/place", "/mnt/move", NULL, MS_MOVE, NULL);
	return error;
}

static int remount_propagation(void) { return ret(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)); }

static int pivot(void) /* EBUSY: the hook let it through to the rule that a root cannot replace itself */
{
	int error = ret(syscall(SYS_pivot_root, "/", "/"));

	return error == EBUSY ? 0 : error;
}

static int lazy_parent(void)
{
	mount("tmpfs", "/mnt/parent", "tmpfs", 0, NULL);
	mkdir("/mnt/parent/child", 0755);
	mount("tmpfs", "/mnt/parent/child", "tmpfs", 0, NULL);
	return ret(umount2("/mnt/parent", MNT_DETACH));
}

static int lazy_leaf(void)
{
	mount("tmpfs", "/mnt/leaf", "tmpfs", 0, NULL);
	return ret(umount2("/mnt/leaf", MNT_DETACH));
}

/* ---- the guard itself ---- */

static int pin_remove(void)
{
	char path[64];

	snprintf(path, sizeof(path), PINS "spare_%s", MODES[phase]);
	return ret(rmdir(path));
}

static int pin_rename(void)
{
	char from[64], to[64];

	snprintf(from, sizeof(from), PINS "name_%s", MODES[phase]);
	snprintf(to, sizeof(to), "/sys/fs/bpf/away_%s", MODES[phase]);
	return ret(rename(from, to));
}

static int bpffs_umount(void)
{
	mount("bpf", "/mnt/bpf", "bpf", 0, NULL);
	return ret(umount("/mnt/bpf"));
}

/* The map's number is found the way bpftool finds it. */
static int guard_map_by_id(unsigned flags, const char *wanted)
{
	union bpf_attr attr = {};
	int refused = ENOENT;

	for (;;) {
		struct bpf_map_info info = {};
		union bpf_attr get = {}, ask = {};
		int fd;

		if (bpf(BPF_MAP_GET_NEXT_ID, &attr) < 0)
			return refused; /* not among those that could be opened */
		get.map_id = attr.next_id;
		get.open_flags = flags;
		fd = bpf(BPF_MAP_GET_FD_BY_ID, &get);
		if (fd < 0)
			refused = errno;
		ask.info.bpf_fd = fd;
		ask.info.info_len = sizeof(info);
		ask.info.info = (unsigned long)&info;
		bpf(BPF_OBJ_GET_INFO_BY_FD, &ask);
		close(fd);
		if (strcmp(info.name, wanted) == 0)
			return 0;
		attr.start_id = attr.next_id;
	}
}

static int mode_map_write(void) { return guard_map_by_id(0, "gd_mode"); }
static int inode_map_write(void) { return guard_map_by_id(0, "gd_inodes"); }
static int mode_map_read(void) { return guard_map_by_id(BPF_F_RDONLY, "gd_mode"); }
static int denials_map_write(void) { return guard_map_by_id(0, "gd_denials"); }
static int denials_map_read(void) { return guard_map_by_id(BPF_F_RDONLY, "gd_denials"); }
static int other_map_write(void) /* the guard does not mind other people's maps */
{
	union bpf_attr attr = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1,
			       .map_name = "other"};
	int fd = bpf(BPF_MAP_CREATE, &attr), error = fd < 0 ? errno : guard_map_by_id(0, "other");

	close(fd);
	return error;
}

static int program_load(unsigned type)
{
	/* r0 = 0, more often than a probe of libbpf's has instructions; exit */
	struct bpf_insn code[] = {{.code = 0xb7}, {.code = 0xb7}, {.code = 0xb7}, {.code = 0xb7}, {.code = 0x95}};
	union bpf_attr attr = {.prog_type = type, .insn_cnt = 5, .insns = (unsigned long)code,
			       .license = (unsigned long)"GPL"};

	return done(bpf(BPF_PROG_LOAD, &attr));
}

static int load_tracepoint(void) { return program_load(BPF_PROG_TYPE_TRACEPOINT); }
static int load_socket_filter(void) { return program_load(BPF_PROG_TYPE_SOCKET_FILTER); }

static int latch_down(void) /* from locked to audit: refused by the latch itself; before that, upwards is not tried */
{
	return phase == GUARD_OPEN ? 0 : -guard_latch(GUARD_AUDIT, 0);
}

static int latch_all_code(void) /* after the latch that did not say so */
{
	return phase == GUARD_LOCKED ? -guard_latch(GUARD_LOCKED, GUARD_ALL_CODE) : 0;
}

/* ---- the owner directory ---- */

#define OWNER "/sysroot/owner/"
static int owner_read(void) { return done(open(OWNER "file", O_RDONLY)); }
static int owner_write(void) { return done(open(OWNER "file", O_WRONLY)); }
static int owner_deep_write(void) { return done(open(OWNER "a/b/c/file", O_WRONLY | O_APPEND)); }
static int owner_truncate(void) { return ret(truncate(OWNER "file", 1)); }
static int owner_create(void) { int e = done(open(OWNER "new", O_WRONLY | O_CREAT | O_EXCL, 0600)); unlink(OWNER "new"); return e; }
static int owner_temporary(void) { return done(open("/sysroot/owner", O_RDWR | O_TMPFILE, 0600)); }
static int owner_link_in(void) { int e = ret(link("/sysroot/outside", OWNER "new")); unlink(OWNER "new"); return e; }
static int owner_link_out(void) { int e = ret(link(OWNER "file", "/sysroot/alias")); unlink("/sysroot/alias"); return e; }
static int owner_symlink(void) { int e = ret(symlink("x", OWNER "new")); unlink(OWNER "new"); return e; }
static int owner_mkdir(void) { int e = ret(mkdir(OWNER "new", 0700)); rmdir(OWNER "new"); return e; }
static int owner_rmdir(void) { int e = ret(rmdir(OWNER "dir")); mkdir(OWNER "dir", 0700); return e; }
static int owner_mknod(void) { int e = ret(mknod(OWNER "new", S_IFIFO | 0600, 0)); unlink(OWNER "new"); return e; }
static int owner_unlink(void) { int e = ret(unlink(OWNER "gone")); if (!e) put(OWNER "gone", "x", 0600); return e; }
static int owner_rename_in(void) { int e = ret(rename("/sysroot/outside", OWNER "new")); rename(OWNER "new", "/sysroot/outside"); return e; }
static int owner_rename_out(void) { int e = ret(rename(OWNER "file", "/sysroot/away")); rename("/sysroot/away", OWNER "file"); return e; }
static int owner_rename_self(void) { int e = ret(rename("/sysroot/owner", "/sysroot/x")); rename("/sysroot/x", "/sysroot/owner"); return e; }
static int owner_chmod(void) { return ret(chmod(OWNER "file", 0600)); }
static int owner_chown(void) { return ret(chown(OWNER "file", 0, 0)); }
static int owner_setxattr(void) { return ret(setxattr(OWNER "file", "trusted.x", "1", 1, 0)); }
static int owner_removexattr(void)
{
	int error = ret(removexattr(OWNER "file", "trusted.keep"));

	if (!error)
		setxattr(OWNER "file", "trusted.keep", "1", 1, 0);
	return error;
}
static int owner_flags(void)
{
	int fd = open(OWNER "file", O_RDONLY), flags = 0, error;

	error = ret(ioctl(fd, FS_IOC_GETFLAGS, &flags)); /* reading them stays allowed */
	if (!error)
		error = ret(ioctl(fd, FS_IOC_SETFLAGS, &flags));
	close(fd);
	return error;
}
static int owner_through_bind(void) { return done(open("/mnt/bind/file", O_WRONLY)); }
static int outside_write(void) { return done(open("/sysroot/outside", O_WRONLY)); }

#endif
