// SPDX-License-Identifier: Apache-2.0
/*
 * The guard: a BPF LSM program. While the machine is locked, privileged processes (all, where the owner said all-code) run
 * sealed code only, and nobody changes the guard, the owner directory or what the kernel itself starts. docs/guard.md explains
 * each rule.
 *
 * tracking         inode_setintegrity                      remembers files whose fs-verity signature the kernel accepted
 *                  bprm_creds_for_exec, bprm_check_security  remember an untrusted file anywhere in a chain of interpreters
 *                  bprm_committed_creds, task_alloc        remember which address spaces began privileged
 * code             bprm_creds_from_file                    exec, judged by the credentials after it
 *                  mmap_file, file_mprotect                executable memory
 *                  kernel_read_file, kernel_load_data      modules, firmware, kexec, policies
 * scripts          file_open, inode_follow_link            which file is an interpreter's script, what it imports
 *                  file_permission                         what a shell reads
 * tampering        ptrace_access_check, ptrace_traceme     other privileged processes
 *                  capable                                 CAP_MAC_ADMIN, CAP_SYS_RAWIO
 *                  file_open                               block devices, helper sysctls, /proc/PID/mem, IPE's files
 *                  task_prctl                              the running program's name
 *                  sb_mount, move_mount, sb_pivotroot      what lies at /, /usr and /etc
 * secrets          bprm_committed_creds                    who is the updater
 *                  file_open, ptrace_access_check          files and processes that only the updater may read
 *                  file_ioctl(_compat), uring_cmd          the disk below them
 *                  perf_event_open, bpf, capable           the memory that holds them
 * emergency        bprm_committed_creds, task_alloc        which session bypasses the lock
 *                  file_ioctl(_compat)                     typing for others
 * owner directory  file_open, file_ioctl(_compat), inode_{create,link,unlink,symlink,mkdir,rmdir,mknod,rename,setattr,
 *                  setxattr,removexattr,set_acl,remove_acl,file_setattr}
 * self-protection  bpf_map, bpf_prog_load, inode_{unlink,rmdir,rename} on bpffs, sb_umount
 *
 * No hook declares the trailing `ret` argument: 7.x added arguments, and one object is to load on both.
 */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "guard.h"

char LICENSE[] SEC("license") = "GPL"; /* the kernel offers these helpers to such programs only */

#define EPERM 1
#define ENOSYS 38
#define PR_SET_MM 35
#define PR_SET_MM_EXE_FILE 13
#define PR_SET_MM_MAP 14
#define PROT_WRITE 2
#define PROT_EXEC 4
#define FMODE_WRITE 2
#define FMODE_BACKING (1u << 24) /* not in BTF; the laboratory fails where a kernel moves it */
#define S_IFMT 0170000
#define S_IFREG 0100000
#define S_IFBLK 0060000
#define S_IFCHR 0020000
#define S_IFIFO 0010000
#define O_NONBLOCK 04000
#define SG_MAJOR 21
#define LOOP_MAJOR 7
#define MS_REMOUNT (1ul << 5)
#define MS_MOVE (1ul << 13)
#define MS_PROPAGATION (0xful << 17)
#define MNT_DETACH 2
#define PTRACE_MODE_ATTACH 2
#define PTRACE_MODE_NOAUDIT 4
#define CAP_OPT_NOAUDIT 2
#define CAP_SYS_RAWIO 17
#define CAP_SYS_ADMIN 21
#define CAP_MAC_ADMIN 33
#define CAP_PERFMON 38
#define BPFFS_MAGIC 0xcafe4a11
#define PROC_MAGIC 0x9fa0
#define SYSFS_MAGIC 0x62656572
#define SECURITYFS_MAGIC 0x73636673
#define BINFMT_MAGIC 0x42494e4d
#define CGROUP1_MAGIC 0x27e0eb
#define CGROUP2_MAGIC 0x63677270
#define OVERLAYFS_MAGIC 0x794c7630
#define TRACEFS_MAGIC 0x74726163
#define MAX_DEPTH 48

#define BIT(n) (1ull << (n))
/* What these allow does not change the machine: NET_BIND_SERVICE, NET_BROADCAST, NET_RAW, IPC_LOCK, WAKE_ALARM,
 * BLOCK_SUSPEND. Everything else can lead to all of it. */
#define HARMLESS (BIT(10) | BIT(11) | BIT(13) | BIT(14) | BIT(35) | BIT(36))

/* ---- configuration: frozen before the programs load ---- */

const volatile __u32 sealed_dev;     /* kernel dev_t of the sealed overlay; no other super block is trusted */
const volatile __u32 owner_dev;	     /* the owner directory */
const volatile __u64 owner_ino;
const volatile __u32 first_mount_ns; /* inode number of the first mount namespace */
const volatile __u64 jit_inodes[GUARD_JIT]; /* on the sealed tree; 0 ends the list */
const volatile struct guard_interpreter interpreters[GUARD_INTERPRETERS]; /* on the sealed tree; ino 0 ends the list */
const volatile __u32 etc_dev;	     /* the running /etc, when it is a file system of its own */
const volatile __u32 root_mount;     /* number of the first root's mount; without it nobody is the updater */
const volatile __u32 owner_disks[GUARD_DISKS]; /* block devices whose bytes are the owner directory's; 0 ends the list */

/* ---- maps ---- */

struct task_tag {
	__u32 born_privileged; /* the address space began with a privileged exec; the loader writes this and the next */
	__u32 script;	       /* enum guard_script: the program's script, */
	__u32 updater;	       /* enum updater */
	__u32 loading;	       /* a BPF program is in the verifier, in this system call */
	__u32 untrusted;       /* the exec under way has an untrusted file in its chain ... */
	char name[GUARD_NAMES][GUARD_NAME]; /* ... this one */
	__u32 interpreter; /* enum guard_interpreter_kind; found out at the first open after an exec */
	__u32 script_begin, script_from; /* where among the arguments its path and the last part of it begin */
	char script_name[GUARD_NAME] __attribute__((aligned(8))); /* the last part of the script's path, cut */
	__u64 session;	 /* of the emergency sshd, as session_of() says; 0: none */
	__u32 emergency; /* enum emergency */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 3); /* mode and flags; the running /etc, where locking put another one in its place; emergency ssh */
	__type(key, __u32);
	__type(value, __u32);
} gd_mode SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, RULE_COUNT);
	__type(key, __u32);
	__type(value, __u64);
} gd_counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct guard_denial_key);
	__type(value, struct guard_denial);
} gd_denials SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_INODE_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u32);
} gd_inodes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct task_tag);
} gd_tasks SEC(".maps");

#include "guard_judge.h"
#include "guard_secret.h"
#include "guard_script.h"
#include "guard_emergency.h"

/* ---- tracking ---- */

SEC("lsm/inode_setintegrity")
int BPF_PROG(guard_setintegrity, struct inode *inode, enum lsm_integrity_type type, const void *value, size_t size)
{
	__u32 *signature;

	if (type != LSM_INT_FSVERITY_BUILTINSIG_VALID)
		return 0;
	signature = bpf_inode_storage_get(&gd_inodes, inode, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (signature)
		*signature = size != 0; /* the kernel calls this with a size only after it accepted the signature */
	return 0;
}

SEC("lsm/bprm_creds_for_exec")
int BPF_PROG(guard_exec_begins, struct linux_binprm *bprm)
{
	struct task_tag *tag =
		bpf_task_storage_get(&gd_tasks, bpf_get_current_task_btf(), 0, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (tag)
		tag->untrusted = 0;
	return 0;
}

/* Called for each file of a chain: the script, then its interpreter. */
SEC("lsm/bprm_check_security")
int BPF_PROG(guard_exec_file, struct linux_binprm *bprm)
{
	struct task_tag *tag = bpf_task_storage_get(&gd_tasks, bpf_get_current_task_btf(), 0, 0);

	if (!tag || tag->untrusted || trusted_inode(bprm->file->f_inode))
		return 0;
	__builtin_memset(tag->name, 0, sizeof(tag->name));
	names_of(tag->name, BPF_CORE_READ(bprm, file, f_path.dentry));
	tag->untrusted = 1;
	return 0;
}

SEC("lsm/bprm_committed_creds")
int BPF_PROG(guard_exec_done, const struct linux_binprm *bprm)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct task_tag *tag = bpf_task_storage_get(&gd_tasks, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (tag) {
		tag->born_privileged = privileged(BPF_CORE_READ(task, real_cred));
		tag->updater = updater_after_exec(task, BPF_CORE_READ(bprm, file, f_path.dentry),
						  BPF_CORE_READ(bprm, unsafe), tag->updater);
		emergency_after_exec(task, BPF_CORE_READ(bprm, file, f_path.dentry), BPF_CORE_READ(bprm, unsafe), tag);
		tag->loading = 0;
		tag->interpreter = INTERPRETER_UNKNOWN;
		/* While it is not bound nobody watches which files it opens: then it counts as one that ran before. */
		tag->script = SCRIPT_UNKNOWN;
		if (mode() == GUARD_OPEN || !(tag->born_privileged || latched(GUARD_ALL_CODE)))
			tag->script = SCRIPT_SEEN;
	}
	return 0;
}

SEC("lsm/task_alloc")
int BPF_PROG(guard_fork, struct task_struct *task, unsigned long clone_flags)
{
	struct task_tag *parent = bpf_task_storage_get(&gd_tasks, bpf_get_current_task_btf(), 0, 0), *child;

	if (!parent || !(parent->born_privileged || parent->emergency || latched(GUARD_ALL_CODE)))
		return 0;
	child = bpf_task_storage_get(&gd_tasks, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (child) {
		child->born_privileged = parent->born_privileged;
		child->interpreter = parent->interpreter;
		child->script = parent->script;
		if (parent->emergency != EMERGENCY_LAUNCHER)
			child->emergency = parent->emergency;
		child->session = parent->session;
		__builtin_memcpy(child->script_name, parent->script_name, sizeof(child->script_name));
	}
	return 0;
}

/* ---- code ---- */

SEC("lsm/bprm_creds_from_file")
int BPF_PROG(guard_exec, struct linux_binprm *bprm, const struct file *file)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct guard_denial_key key = {};
	const struct cred *after, *before;
	struct task_tag *tag;

	if (mode() == GUARD_OPEN)
		return 0;
	tag = bpf_task_storage_get(&gd_tasks, task, 0, 0);
	if (tag && !tag->untrusted && trusted_inode(bprm->file->f_inode) && trusted_inode(file->f_inode))
		return 0;
	after = BPF_CORE_READ(bprm, cred);
	before = BPF_CORE_READ(task, real_cred);
	if (tag && tag->untrusted)
		__builtin_memcpy(key.name, tag->name, sizeof(key.name));
	else
		names_of(key.name, BPF_CORE_READ(file, f_path.dentry));
	if (latched(GUARD_ALL_CODE) || privileged(after)) {
		key.rule = RULE_EXEC;
		return verdict(&key, 0);
	}
	/* A set-gid program of a writable place could reach, say, the group of the disks. In a user namespace the ids
	 * are the user's own. */
	if (!BPF_CORE_READ(after, user_ns, level) &&
	    (BPF_CORE_READ(after, euid.val) != BPF_CORE_READ(before, euid.val) ||
	     BPF_CORE_READ(after, egid.val) != BPF_CORE_READ(before, egid.val))) {
		key.rule = RULE_GAIN;
		return verdict(&key, 0);
	}
	return 0;
}

static __noinline int anonymous_exec(struct task_struct *task)
{
	struct file *exe = BPF_CORE_READ(task, mm, exe_file);
	struct dentry *dentry = BPF_CORE_READ(exe, f_path.dentry);

	if (sealed_dev && BPF_CORE_READ(exe, f_inode, i_sb, s_dev) == sealed_dev) {
		__u64 ino = BPF_CORE_READ(exe, f_inode, i_ino);

		for (int i = 0; i < GUARD_JIT && jit_inodes[i]; i++)
			if (jit_inodes[i] == ino)
				return 0;
	}
	return refuse(RULE_ANONYMOUS, dentry, 0);
}

SEC("lsm/mmap_file")
int BPF_PROG(guard_mmap, struct file *file, unsigned long reqprot, unsigned long prot, unsigned long flags)
{
	__u64 raw = 0;

	if (!(prot & PROT_EXEC) || mode() == GUARD_OPEN || !bound_now())
		return 0;
	/* The verifier of 6.12 believes file is never NULL and deletes the check: look at the raw word. */
	bpf_probe_read_kernel(&raw, sizeof(raw), ctx);
	if (!raw || !file)
		return anonymous_exec(bpf_get_current_task_btf());
	if (!trusted_inode(file->f_inode))
		return refuse(RULE_MAP, BPF_CORE_READ(file, f_path.dentry), 0);
	if (prot & PROT_WRITE)
		return refuse(RULE_MAP_WRITABLE, BPF_CORE_READ(file, f_path.dentry), 0);
	return 0;
}

SEC("lsm/file_mprotect")
int BPF_PROG(guard_mprotect, struct vm_area_struct *vma, unsigned long reqprot, unsigned long prot)
{
	struct file *file;
	struct dentry *dentry;
	bool trusted = false;

	if (!(prot & PROT_EXEC) || mode() == GUARD_OPEN || !bound_now())
		return 0;
	file = vma->vm_file;
	if (!file)
		return anonymous_exec(bpf_get_current_task_btf());
	dentry = BPF_CORE_READ(file, f_path.dentry);
	if (BPF_CORE_READ(file, f_mode) & FMODE_BACKING) {
		/* A mapping through overlayfs holds the file below it, and the path above it on the side. */
		struct backing_file *backing = (struct backing_file *)file;

		dentry = BPF_CORE_READ(backing, user_path.dentry);
		trusted = sealed_dev && BPF_CORE_READ(dentry, d_sb, s_dev) == sealed_dev;
	} else {
		trusted = trusted_inode(file->f_inode);
	}
	if (!trusted)
		return refuse(RULE_MAP, dentry, 0);
	if (prot & PROT_WRITE)
		return refuse(RULE_MAP_WRITABLE, dentry, 0);
	if (BPF_CORE_READ(vma, anon_vma))
		return refuse(RULE_MODIFIED, dentry, 0);
	return 0;
}

/* Whatever kind the kernel calls it: 7.x reads compressed modules as a kind of their own, which 6.12 does not know. */
SEC("lsm/kernel_read_file")
int BPF_PROG(guard_read_file, struct file *file, enum kernel_read_file_id id, bool contents)
{
	struct dentry *dentry;

	if (mode() == GUARD_OPEN)
		return 0;
	dentry = BPF_CORE_READ(file, f_path.dentry);
	if (trusted_inode(file->f_inode) && !hands_out_disks(dentry))
		return 0;
	return refuse(RULE_KERNEL_FILE, dentry, id);
}

/* From a buffer: nobody can say where it came from. kmod passes descriptors. */
SEC("lsm/kernel_load_data")
int BPF_PROG(guard_load_data, enum kernel_load_data_id id, bool contents)
{
	if (mode() == GUARD_OPEN)
		return 0;
	return refuse(RULE_KERNEL_FILE, NULL, id);
}

/* ---- tampering ---- */

SEC("lsm/ptrace_access_check")
int BPF_PROG(guard_ptrace, struct task_struct *child, unsigned int access)
{
	struct task_tag *tag;

	if (mode() == GUARD_OPEN)
		return 0;
	tag = bpf_task_storage_get(&gd_tasks, child, 0, 0);
	if (tag && tag->updater) {
		if (access & PTRACE_MODE_NOAUDIT) /* ps and the like */
			return silent_refusal();
		return refuse(RULE_SECRET, BPF_CORE_READ(child, mm, exe_file, f_path.dentry), BPF_CORE_READ(child, tgid));
	}
	if (tag && tag->emergency)
		return emergency_looked_into(tag, BPF_CORE_READ(child, mm, exe_file, f_path.dentry), access,
					     BPF_CORE_READ(child, tgid));
	if (!(access & PTRACE_MODE_ATTACH) || !privileged(BPF_CORE_READ(child, real_cred)))
		return 0;
	return refuse(RULE_PTRACE, BPF_CORE_READ(child, mm, exe_file, f_path.dentry), BPF_CORE_READ(child, tgid));
}

SEC("lsm/ptrace_traceme")
int BPF_PROG(guard_traceme, struct task_struct *parent)
{
	struct task_struct *task = bpf_get_current_task_btf();

	if (mode() == GUARD_OPEN || !privileged(BPF_CORE_READ(task, real_cred)))
		return 0;
	return refuse(RULE_PTRACE, BPF_CORE_READ(task, mm, exe_file, f_path.dentry), BPF_CORE_READ(task, tgid));
}

SEC("lsm/capable")
int BPF_PROG(guard_capable, const struct cred *cred, struct user_namespace *ns, int cap, unsigned int opts)
{
	char name[GUARD_NAME] __attribute__((aligned(8))) = {};
	struct file *exe;

	if (cap == CAP_PERFMON || cap == CAP_SYS_ADMIN)
		return observing_program();
	if (cap != CAP_MAC_ADMIN && cap != CAP_SYS_RAWIO)
		return 0;
	if (mode() == GUARD_OPEN || (opts & CAP_OPT_NOAUDIT) || BPF_CORE_READ(ns, level))
		return 0;
	exe = BPF_CORE_READ(bpf_get_current_task_btf(), mm, exe_file);
	/* Container engines load a profile through the sealed parser; taking one away is closed in file_open. */
	if (cap == CAP_MAC_ADMIN && sealed_dev && BPF_CORE_READ(exe, f_inode, i_sb, s_dev) == sealed_dev) {
		bpf_probe_read_kernel_str(name, sizeof(name), BPF_CORE_READ(exe, f_path.dentry, d_name.name));
		if (IS(name, "apparmor_parser"))
			return 0;
	}
	return refuse(RULE_CAPABILITY, BPF_CORE_READ(exe, f_path.dentry), cap);
}

static __always_inline int system_file(struct dentry *dentry, __u64 magic)
{
	char name[GUARD_NAME] __attribute__((aligned(8))) = {};

	bpf_probe_read_kernel_str(name, sizeof(name), BPF_CORE_READ(dentry, d_name.name));
	if (magic == PROC_MAGIC) {
		if (IS(name, "mem") && privileged_now())
			return refuse(RULE_MEMORY_FILE, dentry, 0);
		if (IS(name, "core_pattern") || IS(name, "modprobe") || IS(name, "poweroff_cmd") || IS(name, "hotplug") ||
		    IS(name, "bset") || IS(name, "inheritable")) {
			if (is_init()) /* writes a constant, at its start */
				return 0;
			return refuse(RULE_HELPER, dentry, 0);
		}
	}
	if (magic == SYSFS_MAGIC && IS(name, "uevent_helper"))
		return refuse(RULE_HELPER, dentry, 0);
	/* A disk that leaves and comes back has another number. */
	if (magic == SYSFS_MAGIC && (IS(name, "unbind") || IS(name, "remove") || IS(name, "delete")))
		return refuse(RULE_BLOCK, dentry, 0);
	if (magic == TRACEFS_MAGIC)
		return refuse(RULE_OBSERVE, dentry, 0);
	if (magic == CGROUP1_MAGIC && IS(name, "release_agent"))
		return refuse(RULE_HELPER, dentry, 0);
	if (magic == BINFMT_MAGIC)
		return refuse(RULE_HELPER, dentry, 0);
	if (magic == SECURITYFS_MAGIC) {
		struct dentry *up = dentry;

		if (IS(name, ".remove"))
			return refuse(RULE_SECURITYFS, dentry, 0);
		for (int i = 0; i < 5; i++) {
			up = BPF_CORE_READ(up, d_parent);
			bpf_probe_read_kernel_str(name, sizeof(name), BPF_CORE_READ(up, d_name.name));
			if (IS(name, "ipe"))
				return refuse(RULE_SECURITYFS, dentry, 0);
		}
	}
	return 0;
}

SEC("lsm/file_open")
int BPF_PROG(guard_open, struct file *file)
{
	struct dentry *dentry;
	struct inode *inode;
	__u32 type;

	if (mode() == GUARD_OPEN)
		return 0;
	dentry = BPF_CORE_READ(file, f_path.dentry);
	inode = BPF_CORE_READ(file, f_inode);
	type = BPF_CORE_READ(inode, i_mode) & S_IFMT;
	if (type == S_IFCHR && BPF_CORE_READ(inode, i_rdev) >> 20 == SG_MAJOR) /* reads disks in any mode */
		return refuse(RULE_BLOCK, dentry, BPF_CORE_READ(inode, i_rdev));
	if (type == S_IFREG) {
		int result = script_open(file, dentry);

		if (result)
			return result;
	} else if (type == S_IFIFO || type == S_IFCHR) {
		int result = script_stream(inode, dentry);

		if (result)
			return result;
	}
	if (!(BPF_CORE_READ(file, f_mode) & FMODE_WRITE))
		return reading(file, inode, dentry, type);
	if (type == S_IFBLK) {
		__u32 device = BPF_CORE_READ(inode, i_rdev);

		if (device >> 20 != LOOP_MAJOR)
			return refuse(RULE_BLOCK, dentry, device);
		return 0;
	}
	if (owned(dentry))
		return refuse(RULE_OWNER, dentry, 0);
	return system_file(dentry, BPF_CORE_READ(inode, i_sb, s_magic));
}

SEC("lsm/sb_mount")
int BPF_PROG(guard_mount, const char *device, const struct path *path, const char *type, unsigned long flags, void *data)
{
	struct dentry *dentry;
	struct mount *mnt;

	if (mode() == GUARD_OPEN || (flags & (MS_REMOUNT | MS_PROPAGATION)))
		return 0;
	dentry = BPF_CORE_READ(path, dentry);
	mnt = mount_of(BPF_CORE_READ(path, mnt));
	if (shared_system_place(mnt, dentry) || covers_owner(mnt, dentry))
		return refuse(RULE_MOUNT, dentry, 0);
	if (!in_first_mount_ns())
		return 0;
	if ((flags & MS_MOVE) || is_system_place(BPF_CORE_READ(path, mnt), dentry))
		return refuse(RULE_MOUNT, dentry, 0);
	return 0;
}

SEC("lsm/move_mount")
int BPF_PROG(guard_move_mount, const struct path *from, const struct path *to)
{
	struct dentry *dentry;
	struct mount *source, *mnt;

	if (mode() == GUARD_OPEN)
		return 0;
	dentry = BPF_CORE_READ(to, dentry);
	mnt = mount_of(BPF_CORE_READ(to, mnt));
	if (shared_system_place(mnt, dentry) || covers_owner(mnt, dentry))
		return refuse(RULE_MOUNT, dentry, 0);
	if (!in_first_mount_ns())
		return 0;
	source = mount_of(BPF_CORE_READ(from, mnt));
	/* A new mount comes from an anonymous namespace, a moved one from ours. */
	if (BPF_CORE_READ(source, mnt_ns, ns.inum) == first_mount_ns ||
	    is_system_place(BPF_CORE_READ(to, mnt), dentry))
		return refuse(RULE_MOUNT, dentry, 0);
	return 0;
}

SEC("lsm/sb_pivotroot")
int BPF_PROG(guard_pivot, const struct path *old_path, const struct path *new_path)
{
	if (mode() == GUARD_OPEN || !in_first_mount_ns())
		return 0;
	return refuse(RULE_PIVOT, BPF_CORE_READ(new_path, dentry), 0);
}

#include "guard_owner.h"
#include "guard_self.h"
