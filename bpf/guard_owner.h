/* SPDX-License-Identifier: Apache-2.0 */
/* The owner directory, and the guard's own pins: every hook by which a name or an inode changes. Part of guard.bpf.c, included there once. */
#ifndef FREEHOLD_BPF_GUARD_OWNER_H
#define FREEHOLD_BPF_GUARD_OWNER_H

/* ---- owner directory, and the guard's pins ---- */

static __always_inline int owner_only(struct dentry *dentry)
{
	if (mode() == GUARD_OPEN || !owned(dentry))
		return 0;
	return refuse(RULE_OWNER, dentry, 0);
}

/* Is the dentry in a directory `freehold` at the top of a bpffs, or that directory? */
static __noinline bool pinned(struct dentry *dentry)
{
	char name[16] __attribute__((aligned(8))) = {};

	if (BPF_CORE_READ(dentry, d_sb, s_magic) != BPFFS_MAGIC)
		return false;
	for (int i = 0; i < 4; i++) {
		struct dentry *parent = BPF_CORE_READ(dentry, d_parent);

		if (parent == dentry)
			return false;
		bpf_probe_read_kernel_str(name, sizeof(name), BPF_CORE_READ(dentry, d_name.name));
		if (IS(name, "freehold") && BPF_CORE_READ(parent, d_parent) == parent)
			return true;
		dentry = parent;
	}
	return false;
}

static __always_inline int protected_entry(struct dentry *dentry)
{
	if (mode() == GUARD_OPEN)
		return 0;
	if (pinned(dentry))
		return refuse(RULE_PIN, dentry, 0);
	if (owned(dentry))
		return refuse(RULE_OWNER, dentry, 0);
	return 0;
}

SEC("lsm/inode_unlink")
int BPF_PROG(guard_unlink, struct inode *dir, struct dentry *dentry)
{
	return protected_entry(dentry);
}

SEC("lsm/inode_rmdir")
int BPF_PROG(guard_rmdir, struct inode *dir, struct dentry *dentry)
{
	return protected_entry(dentry);
}

SEC("lsm/inode_rename")
int BPF_PROG(guard_rename, struct inode *old_dir, struct dentry *old_dentry, struct inode *new_dir,
	     struct dentry *new_dentry)
{
	int result = protected_entry(old_dentry);

	if (result)
		return result;
	return protected_entry(new_dentry);
}

SEC("lsm/inode_create")
int BPF_PROG(guard_create, struct inode *dir, struct dentry *dentry)
{
	return owner_only(dentry);
}

SEC("lsm/inode_link")
int BPF_PROG(guard_link, struct dentry *old_dentry, struct inode *dir, struct dentry *new_dentry)
{
	int result = owner_only(old_dentry); /* a second name outside would be a way in */

	if (result)
		return result;
	return owner_only(new_dentry);
}

SEC("lsm/inode_symlink")
int BPF_PROG(guard_symlink, struct inode *dir, struct dentry *dentry)
{
	return owner_only(dentry);
}

SEC("lsm/inode_mkdir")
int BPF_PROG(guard_mkdir, struct inode *dir, struct dentry *dentry)
{
	return owner_only(dentry);
}

SEC("lsm/inode_mknod")
int BPF_PROG(guard_mknod, struct inode *dir, struct dentry *dentry)
{
	return owner_only(dentry);
}

SEC("lsm/inode_setattr")
int BPF_PROG(guard_setattr, struct mnt_idmap *idmap, struct dentry *dentry)
{
	return protected_entry(dentry);
}

SEC("lsm/inode_setxattr")
int BPF_PROG(guard_setxattr, struct mnt_idmap *idmap, struct dentry *dentry)
{
	return owner_only(dentry);
}

SEC("lsm/inode_removexattr")
int BPF_PROG(guard_removexattr, struct mnt_idmap *idmap, struct dentry *dentry)
{
	return owner_only(dentry);
}

SEC("lsm/inode_set_acl")
int BPF_PROG(guard_set_acl, struct mnt_idmap *idmap, struct dentry *dentry)
{
	return owner_only(dentry);
}

SEC("lsm/inode_remove_acl")
int BPF_PROG(guard_remove_acl, struct mnt_idmap *idmap, struct dentry *dentry)
{
	return owner_only(dentry);
}

/* Since 6.17, file_setattr(2); the loader leaves it out on an older kernel. */
SEC("?lsm/inode_file_setattr")
int BPF_PROG(guard_file_setattr, struct dentry *dentry)
{
	return owner_only(dentry);
}

/* Flags, project ids, verity and extent swaps can be set through a descriptor opened for reading. */
static __always_inline int owner_ioctl(struct file *file, unsigned int cmd)
{
	unsigned int type = cmd >> 8 & 0xff, number = cmd & 0xff;

	if (mode() == GUARD_OPEN || !(cmd & 0x40000000) || (type != 'f' && type != 'X' && type != 'v'))
		return 0;
	if (type == 'f' && (number == 11 || number == 134 || number == 135)) /* FIEMAP, measure and read verity */
		return 0;
	return owner_only(BPF_CORE_READ(file, f_path.dentry));
}

SEC("lsm/file_ioctl")
int BPF_PROG(guard_ioctl, struct file *file, unsigned int cmd)
{
	if (is_disk_command(cmd))
		return disk_command(file, cmd);
	if (cmd == TIOCSTI)
		return typed_for_another(file);
	return owner_ioctl(file, cmd);
}

SEC("lsm/file_ioctl_compat")
int BPF_PROG(guard_ioctl_compat, struct file *file, unsigned int cmd)
{
	if (is_disk_command(cmd))
		return disk_command(file, cmd);
	if (cmd == TIOCSTI)
		return typed_for_another(file);
	return owner_ioctl(file, cmd);
}

/* NVMe's way through io_uring. */
SEC("lsm/uring_cmd")
int BPF_PROG(guard_uring_command, struct io_uring_cmd *command)
{
	unsigned int cmd = BPF_CORE_READ(command, cmd_op);

	if (!is_disk_command(cmd))
		return 0;
	return disk_command(BPF_CORE_READ(command, file), cmd);
}

#endif
