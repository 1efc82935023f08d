/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What only the updater may read: who it is, the files, the disk below them, the memory that holds them.
 * Part of guard.bpf.c, included there once. docs/guard.md, "Secrets", has the reasons.
 */
#ifndef FREEHOLD_BPF_GUARD_SECRET_H
#define FREEHOLD_BPF_GUARD_SECRET_H

#define SECRET "secret"	      /* this directory in the owner directory, and all below */
#define LSM_UNSAFE_SHARE 1    /* another process shares root and current directory */
#define LSM_UNSAFE_PTRACE 2
#define SG_IO 0x2285
#define BPF_CALL_64 321
#define BPF_CALL_32 357
#define X32_BIT 0x40000000u

enum updater {
	UPDATER_NONE,
	UPDATER_LAUNCHER, /* the sealed launcher runs, in surroundings that nobody prepared */
	UPDATER_RUNS,	  /* and this is what it executed */
};

/* Refuses under the lock without a record: for what is asked for as a matter of course. */
static __noinline int silent_refusal(void)
{
	int result = 0;

	if (mode() >= GUARD_LOCKED) {
		result = -EPERM;
		barrier_var(result);
	}
	return result;
}

/* ---- who is the updater ---- */

#define STEP_UP(dentry, name, literal)                                                                       \
	({                                                                                                   \
		bpf_probe_read_kernel_str(name, sizeof(name), BPF_CORE_READ(dentry, d_name.name));          \
		dentry = BPF_CORE_READ(dentry, d_parent);                                                    \
		IS(name, literal);                                                                           \
	})

static __always_inline bool is_sealed(struct dentry *dentry)
{
	return sealed_dev && BPF_CORE_READ(dentry, d_sb, s_dev) == sealed_dev;
}

/* /usr/lib/freehold/updater of the sealed tree. By name: nothing in that tree can be renamed. */
static __noinline bool is_launcher(struct dentry *dentry)
{
	char name[GUARD_NAME] __attribute__((aligned(8))) = {};

	if (!is_sealed(dentry))
		return false;
	if (!STEP_UP(dentry, name, "updater") || !STEP_UP(dentry, name, "freehold"))
		return false;
	if (!STEP_UP(dentry, name, "lib") || !STEP_UP(dentry, name, "usr"))
		return false;
	return BPF_CORE_READ(dentry, d_parent) == dentry;
}

/* Would a program that starts now see what the sealed tree says, and nobody else's idea of it? */
static __noinline bool surroundings_are_plain(struct task_struct *task)
{
	struct mount *root = mount_of(BPF_CORE_READ(task, fs, root.mnt));

	if (!root_mount || BPF_CORE_READ(root, mnt_id) != root_mount || !in_first_mount_ns())
		return false;
	if (BPF_CORE_READ(task, fs, root.dentry) != BPF_CORE_READ(root, mnt.mnt_root))
		return false;
	/* A filter of the parent's can answer system calls in the kernel's place. */
	if (BPF_CORE_READ(task, seccomp.mode) || BPF_CORE_READ(task, ptrace))
		return false;
	if (BPF_CORE_READ(task, real_cred, user_ns, level) || BPF_CORE_READ(task, thread_pid, level))
		return false;
	return !BPF_CORE_READ(task, real_cred, uid.val) && !BPF_CORE_READ(task, real_cred, euid.val);
}

/* The launcher may be started by anybody; the next sealed program that it executes is the updater; no third one is. */
static __noinline __u32 updater_after_exec(struct task_struct *task, struct dentry *program, int unsafe, __u32 before)
{
	if ((unsafe & (LSM_UNSAFE_SHARE | LSM_UNSAFE_PTRACE)) || !surroundings_are_plain(task))
		return UPDATER_NONE;
	if (is_launcher(program))
		return UPDATER_LAUNCHER;
	if (before == UPDATER_LAUNCHER && is_sealed(program))
		return UPDATER_RUNS;
	return UPDATER_NONE;
}

static __always_inline __u32 updater_now(void)
{
	struct task_tag *tag = bpf_task_storage_get(&gd_tasks, bpf_get_current_task_btf(), 0, 0);

	return tag ? tag->updater : UPDATER_NONE;
}

/* ---- files ---- */

/* Is the dentry, on the owner directory's file system, one of the secrets, or without a place? */
static __noinline bool is_secret(struct dentry *dentry)
{
	char name[8] __attribute__((aligned(8))) = {};

	for (int i = 0; i < MAX_DEPTH; i++) {
		struct dentry *parent = BPF_CORE_READ(dentry, d_parent);

		if (parent == dentry)
			return dentry != BPF_CORE_READ(dentry, d_sb, s_root);
		if (BPF_CORE_READ(parent, d_inode, i_ino) == owner_ino) {
			bpf_probe_read_kernel_str(name, sizeof(name), BPF_CORE_READ(dentry, d_name.name));
			return IS(name, SECRET);
		}
		dentry = parent;
	}
	return false;
}

/* udev names file systems and partitions. It opens devices for that without waiting, and no text file so. */
static __noinline bool is_probing(struct file *file)
{
	struct dentry *program = BPF_CORE_READ(bpf_get_current_task_btf(), mm, exe_file, f_path.dentry);
	char name[GUARD_NAME] __attribute__((aligned(8))) = {};

	if (!(BPF_CORE_READ(file, f_flags) & O_NONBLOCK) || !is_sealed(program))
		return false;
	if (!STEP_UP(program, name, "udevadm") || !STEP_UP(program, name, "bin") || !STEP_UP(program, name, "usr"))
		return false;
	return BPF_CORE_READ(program, d_parent) == program;
}

static __always_inline bool is_owner_disk(__u32 device)
{
	for (int i = 0; i < GUARD_DISKS && owner_disks[i]; i++)
		if (owner_disks[i] == device)
			return true;
	return false;
}

static bool emergency_reads(struct dentry *dentry); /* guard_emergency.h */
static bool emergency_mistrusts(struct inode *inode, struct dentry *dentry);

/* A file opened for reading only. */
static __noinline int reading(struct file *file, struct inode *inode, struct dentry *dentry, __u32 type)
{
	__u32 dev;

	if (type == S_IFBLK) {
		__u32 device = BPF_CORE_READ(inode, i_rdev);

		if (is_owner_disk(device) && !is_probing(file))
			return refuse(RULE_BLOCK, dentry, device);
		return 0;
	}
	dev = BPF_CORE_READ(inode, i_sb, s_dev);
	if (owner_ino && dev == owner_dev) {
		if (is_secret(dentry) && updater_now() != UPDATER_RUNS && !emergency_reads(dentry))
			return refuse(RULE_SECRET, dentry, 0);
		return 0;
	}
	/* The updater believes nothing that root can write there: no ld.so.preload, no openssl.cnf, no apt sources. */
	if (dev == etc_device() && (updater_now() || emergency_mistrusts(inode, dentry)))
		return silent_refusal(); /* the C library tries at each start */
	return 0;
}

/* ---- the disk below them ---- */

/* Modules that open a block device on somebody's word, without the hook that opening a file has. */
static __noinline bool hands_out_disks(struct dentry *dentry)
{
	char name[GUARD_NAME] __attribute__((aligned(8))) = {};

	bpf_probe_read_kernel_str(name, sizeof(name), BPF_CORE_READ(dentry, d_name.name));
	return __builtin_memcmp(name, "nvmet", 5) == 0 || __builtin_memcmp(name, "rnbd-server", 11) == 0 ||
	       __builtin_memcmp(name, "target_core_pscsi", 17) == 0;
}

/* Commands to the device itself: SG_IO; NVMe's reads and writes, as ioctl and by io_uring, not its administration. */
static __always_inline bool is_disk_command(unsigned int cmd)
{
	unsigned int number = cmd & 0xff;

	if (cmd == SG_IO)
		return true;
	return (cmd >> 8 & 0xff) == 'N' &&
	       (number == 0x42 || number == 0x43 || number == 0x48 || number == 0x49 || number == 0x80 || number == 0x81);
}

/* On character devices. A disk's block device cannot be opened, and on a partition the kernel passes no commands. */
static __noinline int disk_command(struct file *file, unsigned int cmd)
{
	if (mode() == GUARD_OPEN || (BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) != S_IFCHR)
		return 0;
	return refuse(RULE_BLOCK, BPF_CORE_READ(file, f_path.dentry), cmd);
}

/* ---- the memory that holds them ---- */

/*
 * Whoever has CAP_PERFMON, or in its place CAP_SYS_ADMIN, may load a BPF program of any kind that reads any memory.
 * So while such a program is in the verifier nobody has them: it gets what CAP_BPF and CAP_NET_ADMIN allow. PID 1's
 * programs are not marked. Nothing is recorded: the verifier asks for each program, and most don't need it.
 */
static __noinline int observing_program(void)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct task_tag *tag = bpf_task_storage_get(&gd_tasks, task, 0, 0);
	struct pt_regs *regs;
	__u32 call;

	if (!tag || !tag->loading)
		return 0;
	regs = (struct pt_regs *)bpf_task_pt_regs(task);
	call = (__u32)BPF_CORE_READ(regs, orig_ax) & ~X32_BIT;
	if (call != BPF_CALL_64 && call != BPF_CALL_32) {
		tag->loading = 0; /* that call is over */
		return 0;
	}
	return silent_refusal();
}

/* A new call: whatever program was in the verifier is in it no more. */
SEC("lsm/bpf")
int BPF_PROG(guard_bpf_call, int command)
{
	struct task_tag *tag = bpf_task_storage_get(&gd_tasks, bpf_get_current_task_btf(), 0, 0);

	if (tag)
		tag->loading = 0;
	return 0;
}

/* The guard itself and the list of what may have executable memory ask which file a program is; root may say another. */
SEC("lsm/task_prctl")
int BPF_PROG(guard_prctl, int option, unsigned long what)
{
	int result;

	if (option != PR_SET_MM || (what != PR_SET_MM_EXE_FILE && what != PR_SET_MM_MAP) || mode() == GUARD_OPEN ||
	    !bound_now())
		return -ENOSYS; /* what this hook says for "go on" */
	result = refuse(RULE_IDENTITY, BPF_CORE_READ(bpf_get_current_task_btf(), mm, exe_file, f_path.dentry), what);
	if (!result)
		return -ENOSYS;
	return result;
}

/* Samples carry registers and stacks of whoever runs. */
SEC("lsm/perf_event_open")
int BPF_PROG(guard_perf)
{
	if (mode() == GUARD_OPEN || is_init())
		return 0;
	return refuse(RULE_OBSERVE, NULL, 0);
}

#endif
