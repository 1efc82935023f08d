/* SPDX-License-Identifier: Apache-2.0 */
/* The guard protects itself: its maps, its pins, other people's programs; and the latch. Part of guard.bpf.c, included there once. */
#ifndef FREEHOLD_BPF_GUARD_SELF_H
#define FREEHOLD_BPF_GUARD_SELF_H

SEC("lsm/bpf_map")
int BPF_PROG(guard_map, struct bpf_map *map, fmode_t fmode)
{
	struct guard_denial_key key = {};

	/* A descriptor for reading is enough to have a program write: the verifier does not look at its mode. So the
	 * maps that decide cannot be opened at all, and those that report for reading only. */
	if (map != (struct bpf_map *)&gd_mode && map != (struct bpf_map *)&gd_inodes &&
	    map != (struct bpf_map *)&gd_tasks && map != (struct bpf_map *)&gd_session &&
	    map != (struct bpf_map *)&gd_arguments) {
		if (!(fmode & FMODE_WRITE))
			return 0;
		if (map != (struct bpf_map *)&gd_counters && map != (struct bpf_map *)&gd_denials)
			return 0;
	}
	/* In every mode: nothing outside has a reason to, and a mode that root can write is no latch. */
	key.rule = RULE_MAP_FD;
	verdict(&key, BPF_CORE_READ(map, id));
	return -EPERM;
}

/* libbpf tries out what the kernel can do by programs of at most this many instructions, whoever uses it for whatever. */
#define PROBE 4

SEC("lsm/bpf_prog_load")
int BPF_PROG(guard_prog_load, struct bpf_prog *prog)
{
	struct task_tag *tag;
	__u32 type;

	if (mode() == GUARD_OPEN || is_init())
		return 0;
	type = BPF_CORE_READ(prog, type);
	if (type == BPF_PROG_TYPE_KPROBE || type == BPF_PROG_TYPE_TRACEPOINT || type == BPF_PROG_TYPE_PERF_EVENT ||
	    type == BPF_PROG_TYPE_RAW_TRACEPOINT || type == BPF_PROG_TYPE_RAW_TRACEPOINT_WRITABLE ||
	    type == BPF_PROG_TYPE_TRACING || type == BPF_PROG_TYPE_STRUCT_OPS || type == BPF_PROG_TYPE_EXT ||
	    type == BPF_PROG_TYPE_LSM || type == BPF_PROG_TYPE_SYSCALL) {
		if (BPF_CORE_READ(prog, len) <= PROBE)
			return silent_refusal();
		return refuse(RULE_PROGRAM, NULL, type);
	}
	/* The other kinds may not read memory at will: see observing_program(). */
	tag = bpf_task_storage_get(&gd_tasks, bpf_get_current_task_btf(), 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!tag)
		return silent_refusal();
	tag->loading = 1;
	return 0;
}

SEC("lsm/sb_umount")
int BPF_PROG(guard_umount, struct vfsmount *vfsmount, int flags)
{
	struct mount *mnt, *above;
	struct dentry *root;

	if (mode() == GUARD_OPEN)
		return 0;
	mnt = mount_of(vfsmount);
	above = BPF_CORE_READ(mnt, mnt_parent);
	if (!in_first_mount_ns() && !propagates(above))
		return 0;
	root = BPF_CORE_READ(vfsmount, mnt_root);
	/* A lazy unmount of a parent takes bpffs along, and this hook sees the parent only. */
	if (BPF_CORE_READ(vfsmount, mnt_sb, s_magic) == BPFFS_MAGIC || is_system_place(vfsmount, root) ||
	    shared_system_place(above, BPF_CORE_READ(mnt, mnt_mountpoint)) || is_owner_root(root) ||
	    ((flags & MNT_DETACH) && BPF_CORE_READ(mnt, mnt_mounts.next) != &mnt->mnt_mounts))
		return refuse(RULE_UMOUNT, BPF_CORE_READ(mnt, mnt_mountpoint), flags);
	return 0;
}

/* ---- the latch: the only way to change mode and flags, and only upwards; a request for GUARD_OPEN asks for them ---- */

SEC("syscall")
int guard_latch(struct guard_latch_request *request)
{
	__u32 zero = 0, one = 1, two = 2, wanted = request->mode, etc = request->etc_dev, flags = request->flags,
	      chosen = request->emergency;
	__u32 *value = bpf_map_lookup_elem(&gd_mode, &zero), *place = bpf_map_lookup_elem(&gd_mode, &one);
	__u32 *emergency = bpf_map_lookup_elem(&gd_mode, &two);

	if (!value || !place || !emergency || wanted > GUARD_LOCKED || (flags & ~GUARD_FLAGS))
		return -22;
	if (wanted == GUARD_OPEN)
		return *(volatile __u32 *)value;
	for (int i = 0; i < 4; i++) {
		__u32 now = *(volatile __u32 *)value;

		if ((now & GUARD_MODES) == wanted)
			return flags & ~now ? -EPERM : 0;
		if ((now & GUARD_MODES) > wanted)
			return -EPERM;
		if (__sync_val_compare_and_swap(value, now, wanted | flags) == now) {
			if (wanted == GUARD_LOCKED && etc) /* once: nobody gets here a second time */
				*(volatile __u32 *)place = etc;
			if (wanted == GUARD_LOCKED)
				*(volatile __u32 *)emergency = chosen != 0;
			return 0;
		}
	}
	return -11;
}

#endif
