/* SPDX-License-Identifier: Apache-2.0 */
/* Verdicts and their records; who is privileged, what is trusted, which places are protected. Part of guard.bpf.c, included there once. */
#ifndef FREEHOLD_BPF_GUARD_JUDGE_H
#define FREEHOLD_BPF_GUARD_JUDGE_H

/* ---- verdicts ---- */

static __always_inline __u32 mode(void)
{
	__u32 zero = 0;
	__u32 *value = bpf_map_lookup_elem(&gd_mode, &zero);

	return value ? *(volatile __u32 *)value & GUARD_MODES : GUARD_LOCKED;
}

/* Was the flag said when the mode rose? */
static __always_inline bool latched(__u32 flag)
{
	__u32 zero = 0;
	__u32 *value = bpf_map_lookup_elem(&gd_mode, &zero);

	return value && *(volatile __u32 *)value & flag;
}

/* The running /etc: locking a machine that runs puts another file system there, after the guard was loaded. */
static __always_inline __u32 etc_device(void)
{
	__u32 one = 1;
	__u32 *value = bpf_map_lookup_elem(&gd_mode, &one);
	__u32 now = value ? *(volatile __u32 *)value : 0;

	return now ? now : etc_dev;
}

static __always_inline void names_of(char (*name)[GUARD_NAME], struct dentry *dentry)
{
	for (int i = 0; i < GUARD_NAMES && dentry; i++) {
		struct dentry *parent = BPF_CORE_READ(dentry, d_parent);

		bpf_probe_read_kernel_str(name[i], GUARD_NAME, BPF_CORE_READ(dentry, d_name.name));
		if (parent == dentry)
			break;
		dentry = parent;
	}
}

static bool exempt(__u32 rule); /* guard_emergency.h */

/* Counts the denial; -EPERM under the lock, 0 under audit, and for the emergency session. */
static __noinline int verdict(struct guard_denial_key *key, __u32 detail)
{
	struct guard_denial fresh = {}, *seen;
	__u32 now = mode(), rule = key->rule;
	__u64 *counter = bpf_map_lookup_elem(&gd_counters, &rule);
	int result = 0;

	if (now == GUARD_OPEN)
		return 0;
	if (exempt(rule))
		now = GUARD_EXEMPTED;
	bpf_get_current_comm(key->comm, sizeof(key->comm));
	if (counter)
		__sync_fetch_and_add(counter, 1);
	seen = bpf_map_lookup_elem(&gd_denials, key);
	if (!seen) {
		bpf_map_update_elem(&gd_denials, key, &fresh, BPF_NOEXIST);
		seen = bpf_map_lookup_elem(&gd_denials, key);
	}
	if (seen) {
		__sync_fetch_and_add(&seen->count, 1);
		seen->last_ns = bpf_ktime_get_boot_ns();
		seen->uid = (__u32)bpf_get_current_uid_gid();
		seen->pid = bpf_get_current_pid_tgid() >> 32;
		seen->mode = now;
		seen->detail = detail;
	}
	if (now == GUARD_LOCKED) {
		result = -EPERM;
		barrier_var(result); /* or the compiler folds the branch into arithmetic the verifier rejects */
	}
	return result;
}

static __noinline int refuse(__u32 rule, struct dentry *dentry, __u32 detail)
{
	struct guard_denial_key key = {};

	key.rule = rule;
	names_of(key.name, dentry);
	return verdict(&key, detail);
}

/* ---- judgements ---- */

/* The kernel's uid counts in every namespace; capabilities count in the initial user namespace only. */
static __noinline bool privileged(const struct cred *cred)
{
	if (!BPF_CORE_READ(cred, uid.val) || !BPF_CORE_READ(cred, euid.val) || !BPF_CORE_READ(cred, suid.val) ||
	    !BPF_CORE_READ(cred, fsuid.val))
		return true;
	if (BPF_CORE_READ(cred, user_ns, level))
		return false;
	return BPF_CORE_READ(cred, cap_permitted.val) & ~HARMLESS;
}

/* The running task. real_cred: overlayfs and others borrow the mounter's credentials in `cred`. A thread that dropped
 * its privileges but shares an address space that began privileged could map code for one that did not drop them. */
static __always_inline bool privileged_now(void)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct task_tag *tag;

	if (privileged(BPF_CORE_READ(task, real_cred)))
		return true;
	tag = bpf_task_storage_get(&gd_tasks, task, 0, 0);
	return tag && tag->born_privileged && BPF_CORE_READ(task, mm, mm_users.counter) > 1;
}

/* Do the rules about code bind the running task? */
static __always_inline bool bound_now(void)
{
	return latched(GUARD_ALL_CODE) || privileged_now();
}

static __always_inline bool trusted_inode(struct inode *inode)
{
	__u32 *signature;

	if (sealed_dev && BPF_CORE_READ(inode, i_sb, s_dev) == sealed_dev)
		return true;
	signature = bpf_inode_storage_get(&gd_inodes, inode, 0, 0);
	return signature && *signature;
}

static __always_inline bool in_first_mount_ns(void)
{
	struct task_struct *task = bpf_get_current_task_btf();

	return BPF_CORE_READ(task, nsproxy, mnt_ns, ns.inum) == first_mount_ns;
}

/* PID 1 of the machine: sealed code by the exec rule, and out of reach of ptrace. */
static __always_inline bool is_init(void)
{
	return bpf_get_current_pid_tgid() >> 32 == 1;
}

/* Is the dentry the owner directory, or below it? */
static __noinline bool owned(struct dentry *dentry)
{
	if (!dentry || !owner_ino || BPF_CORE_READ(dentry, d_sb, s_dev) != owner_dev)
		return false;
	for (int i = 0; i < MAX_DEPTH; i++) {
		struct dentry *parent = BPF_CORE_READ(dentry, d_parent);

		if (BPF_CORE_READ(dentry, d_inode, i_ino) == owner_ino)
			return true;
		if (parent == dentry) /* opened by handle, a file may have no place: it could be one of the owner's */
			return dentry != BPF_CORE_READ(dentry, d_sb, s_root);
		dentry = parent;
	}
	return false;
}

#define IS(buffer, literal) (__builtin_memcmp(buffer, literal, sizeof(literal)) == 0)

static __always_inline struct mount *mount_of(struct vfsmount *mnt)
{
	return (struct mount *)((__u64)mnt - bpf_core_field_offset(struct mount, mnt));
}

/* Is what lies at the top of a tree, none for the root itself, the root, /usr or /etc? */
static __noinline bool is_system_name(struct dentry *top)
{
	char name[8] __attribute__((aligned(8))) = {};

	if (!top)
		return true;
	bpf_probe_read_kernel_str(name, sizeof(name), BPF_CORE_READ(top, d_name.name));
	return IS(name, "usr") || IS(name, "etc");
}

/* Is the place the root directory, or /usr, /etc or below them? Follows mounts up to the namespace's root. */
static __noinline bool is_system_place(struct vfsmount *vfsmount, struct dentry *dentry)
{
	struct mount *mnt = mount_of(vfsmount);
	struct dentry *top = NULL;

	for (int i = 0; i < MAX_DEPTH; i++) {
		struct dentry *parent;

		if (dentry == BPF_CORE_READ(mnt, mnt.mnt_root)) {
			struct mount *above = BPF_CORE_READ(mnt, mnt_parent);

			if (above == mnt)
				break;
			dentry = BPF_CORE_READ(mnt, mnt_mountpoint);
			mnt = above;
			continue;
		}
		parent = BPF_CORE_READ(dentry, d_parent);
		if (parent == dentry)
			break;
		top = dentry;
		dentry = parent;
	}
	return is_system_name(top);
}

/* Does a change on this mount show on others? Root's namespaces, and bind mounts of one place in two, may be peers of
 * the first namespace's mounts. A namespace of a user's own cannot: what it has of ours are slaves. */
static __always_inline bool propagates(struct mount *mnt)
{
	struct task_struct *task = bpf_get_current_task_btf();

	return BPF_CORE_READ(mnt, mnt_group_id) && !BPF_CORE_READ(task, nsproxy, mnt_ns, user_ns, level);
}

/* The top directory of the owner directory's file system: what is mounted there, or taken from there, hides it. */
static __always_inline bool is_owner_root(struct dentry *dentry)
{
	return owner_ino && BPF_CORE_READ(dentry, d_sb, s_dev) == owner_dev && BPF_CORE_READ(dentry, d_sb, s_root) == dentry;
}

/* Would a mount here put other files in the place of the owner directory, where the first mount namespace looks? The
 * updater believes what lies there: an older intent is signed as well. */
static __noinline bool covers_owner(struct mount *mnt, struct dentry *dentry)
{
	if (!in_first_mount_ns() && !propagates(mnt))
		return false;
	return is_owner_root(dentry) || owned(dentry);
}

/* Is it a place of the sealed tree's or of /etc's file system from where a mount would spread to / , /usr and /etc? */
static __noinline bool shared_system_place(struct mount *mnt, struct dentry *dentry)
{
	struct dentry *top = NULL;
	__u32 dev, etc = etc_device();

	if (!propagates(mnt))
		return false;
	dev = BPF_CORE_READ(dentry, d_sb, s_dev);
	if (etc && dev == etc)
		return true;
	if (!sealed_dev || dev != sealed_dev)
		return false;
	for (int i = 0; i < MAX_DEPTH; i++) {
		struct dentry *parent = BPF_CORE_READ(dentry, d_parent);

		if (parent == dentry)
			break;
		top = dentry;
		dentry = parent;
	}
	return is_system_name(top);
}

#endif
