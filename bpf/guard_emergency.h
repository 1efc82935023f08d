/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Emergency ssh: which session bypasses the lock, and for how long. Part of guard.bpf.c, included there once.
 * docs/emergency-ssh.md has the reasons.
 *
 * A chain of execs leads there: the sealed launcher in plain surroundings, sshd, sshd-session for one client, and the
 * sealed shell that a client gets who had the key. Each is marked by what came before. The session is known by its
 * sshd-session process: one at a time, and with its end the exemption of all that it started is over.
 */
#ifndef FREEHOLD_BPF_GUARD_EMERGENCY_H
#define FREEHOLD_BPF_GUARD_EMERGENCY_H

#define HOST_KEY "emergency-host-key" /* among the owner's secrets */
#define PID_BITS 22		      /* the kernel has no higher process number */
#define PF_EXITING 4
#define TASK_FROZEN 0x8000
#define JOBCTL_STOPS (1ul << 17 | 1ul << 23 | 1ul << 26) /* stops, freezes, stopped: not in BTF; the laboratory fails where a kernel moves them */
#define TIOCSTI 0x5412

extern struct task_struct *bpf_task_from_pid(s32 pid) __ksym;
extern void bpf_task_release(struct task_struct *task) __ksym;

enum emergency {
	EMERGENCY_NONE,
	EMERGENCY_LAUNCHER,
	EMERGENCY_DAEMON, /* sshd; with a session: sshd-session of one client */
	EMERGENCY_AUTH,	  /* sshd-auth: nobody looks into it either, and it leads nowhere */
	EMERGENCY_EXEMPT,
};

enum chain_program { NOT_OF_THE_CHAIN, CHAIN_LAUNCHER, CHAIN_SSHD, CHAIN_SESSION, CHAIN_AUTH, CHAIN_SHELL };

/* The one session that may be exempt. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} gd_session SEC(".maps");

/* Did the owner choose a key, as of the latch? */
static __always_inline bool emergency_chosen(void)
{
	__u32 two = 2;
	__u32 *value = bpf_map_lookup_elem(&gd_mode, &two);

	return value && *(volatile __u32 *)value;
}

/* ---- sessions ---- */

/* A process by number and time of its start: no later one has both. */
static __always_inline __u64 session_of(struct task_struct *task)
{
	return BPF_CORE_READ(task, start_boottime) << PID_BITS | (__u32)BPF_CORE_READ(task, pid);
}

/* Is its sshd-session there, and at work? One that root stopped could not see that its client is gone. */
static __noinline bool session_lives(__u64 session)
{
	struct task_struct *task = bpf_task_from_pid((s32)(session & ((1u << PID_BITS) - 1)));
	bool lives;

	if (!task)
		return false;
	lives = session_of(task) == session && !BPF_CORE_READ(task, exit_state) &&
		!(BPF_CORE_READ(task, flags) & PF_EXITING) && !(BPF_CORE_READ(task, jobctl) & JOBCTL_STOPS) &&
		!(BPF_CORE_READ(task, __state) & TASK_FROZEN);
	bpf_task_release(task);
	return lives;
}

static __always_inline __u64 *the_place(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&gd_session, &zero);
}

/* The place of the one exempt session, if nobody has it who lives. */
static __noinline bool take_place(__u64 session)
{
	__u64 *place = the_place(), holder;

	if (!place || !session)
		return false;
	holder = *(volatile __u64 *)place;
	if (holder == session)
		return true;
	if (holder && session_lives(holder))
		return false;
	return __sync_val_compare_and_swap(place, holder, session) == holder;
}

/* ---- the chain ---- */

/* Which program of the sealed tree it is. By name: nothing in that tree can be renamed. */
static __noinline __u32 chain_program(struct dentry *dentry)
{
	char name[GUARD_NAME] __attribute__((aligned(8))) = {}, folder[GUARD_NAME] __attribute__((aligned(8))) = {};
	__u32 which;

	if (!is_sealed(dentry))
		return NOT_OF_THE_CHAIN;
	bpf_probe_read_kernel_str(name, sizeof(name), BPF_CORE_READ(dentry, d_name.name));
	dentry = BPF_CORE_READ(dentry, d_parent);
	bpf_probe_read_kernel_str(folder, sizeof(folder), BPF_CORE_READ(dentry, d_name.name));
	dentry = BPF_CORE_READ(dentry, d_parent);
	if (IS(folder, "sbin"))
		which = IS(name, "sshd") ? CHAIN_SSHD : NOT_OF_THE_CHAIN;
	else if (IS(folder, "openssh"))
		which = IS(name, "sshd-session") ? CHAIN_SESSION : IS(name, "sshd-auth") ? CHAIN_AUTH : NOT_OF_THE_CHAIN;
	else if (IS(folder, "freehold"))
		which = IS(name, "emergency-sshd") ? CHAIN_LAUNCHER : IS(name, "emergency-shell") ? CHAIN_SHELL : NOT_OF_THE_CHAIN;
	else
		return NOT_OF_THE_CHAIN;
	if (which != CHAIN_SSHD && !STEP_UP(dentry, name, "lib"))
		return NOT_OF_THE_CHAIN;
	if (!STEP_UP(dentry, name, "usr") || BPF_CORE_READ(dentry, d_parent) != dentry)
		return NOT_OF_THE_CHAIN;
	return which;
}

static __noinline void emergency_after_exec(struct task_struct *task, struct dentry *program, int unsafe, struct task_tag *tag)
{
	__u32 before = tag->emergency, which;

	if (before == EMERGENCY_EXEMPT) /* whatever the session starts, until it ends */
		return;
	tag->emergency = EMERGENCY_NONE;
	/* Before the lock root may look into every process: what runs then leads nowhere. */
	if (mode() != GUARD_LOCKED || !emergency_chosen() || (unsafe & (LSM_UNSAFE_SHARE | LSM_UNSAFE_PTRACE)))
		return;
	which = chain_program(program);
	if (which == CHAIN_LAUNCHER) {
		tag->session = 0;
		if (surroundings_are_plain(task))
			tag->emergency = EMERGENCY_LAUNCHER;
	} else if (which == CHAIN_SSHD) {
		if (before == EMERGENCY_LAUNCHER || (before == EMERGENCY_DAEMON && !tag->session))
			tag->emergency = EMERGENCY_DAEMON;
	} else if (which == CHAIN_SESSION) {
		if (before == EMERGENCY_DAEMON && !tag->session) {
			tag->session = session_of(task);
			tag->emergency = EMERGENCY_DAEMON;
		}
	} else if (which == CHAIN_AUTH) {
		if (before == EMERGENCY_DAEMON && tag->session)
			tag->emergency = EMERGENCY_AUTH;
	} else if (which == CHAIN_SHELL) {
		if (before == EMERGENCY_DAEMON && take_place(tag->session))
			tag->emergency = EMERGENCY_EXEMPT;
	}
}

/* ---- what follows from it ---- */

/* May the running task do what the rule is against? Rules that protect the lock itself are for everybody. */
static __noinline bool exempt(__u32 rule)
{
	struct task_tag *tag;
	__u64 *place;

	if (rule != RULE_EXEC && rule != RULE_GAIN && rule != RULE_MAP && rule != RULE_MAP_WRITABLE &&
	    rule != RULE_ANONYMOUS && rule != RULE_MODIFIED && rule != RULE_SCRIPT && rule != RULE_LAUNCH)
		return false;
	tag = bpf_task_storage_get(&gd_tasks, bpf_get_current_task_btf(), 0, 0);
	place = the_place(); /* a session that was stopped has lost it to one that came then */
	return tag && place && tag->emergency == EMERGENCY_EXEMPT && *(volatile __u64 *)place == tag->session &&
	       session_lives(tag->session);
}

/* Neither is looked into from outside: sshd-auth could be made to have another's login signed, and what a process has
 * for mounts, terminals and files is reached the same way. Who is exempt looks at its own. */
static __noinline int emergency_looked_into(const struct task_tag *tag, struct dentry *program, unsigned int access, __u32 pid)
{
	struct task_tag *own = bpf_task_storage_get(&gd_tasks, bpf_get_current_task_btf(), 0, 0);

	if (own && own->emergency == EMERGENCY_EXEMPT && tag->emergency == EMERGENCY_EXEMPT && own->session == tag->session)
		return 0;
	if (!(access & PTRACE_MODE_ATTACH)) /* ps, and the journal about whoever writes to it */
		return silent_refusal();
	return refuse(RULE_PTRACE, program, pid);
}

/* The launcher, and nobody after it, reads the key by which clients know the machine. */
static __noinline bool emergency_reads(struct dentry *dentry)
{
	struct task_tag *tag = bpf_task_storage_get(&gd_tasks, bpf_get_current_task_btf(), 0, 0);
	char name[GUARD_NAME] __attribute__((aligned(8))) = {};

	if (!tag || tag->emergency != EMERGENCY_LAUNCHER)
		return false;
	bpf_probe_read_kernel_str(name, sizeof(name), BPF_CORE_READ(dentry, d_name.name));
	return IS(name, HOST_KEY);
}

/* Of the running /etc the chain reads nothing, and what is exempt no list of the loader's that root changed: it would have
 * code in the session that its owner did not start. */
static __noinline bool emergency_mistrusts(struct inode *inode, struct dentry *dentry)
{
	struct task_tag *tag = bpf_task_storage_get(&gd_tasks, bpf_get_current_task_btf(), 0, 0);

	if (!tag || !tag->emergency)
		return false;
	return tag->emergency != EMERGENCY_EXEMPT || (is_loaders(dentry) && !is_verified_etc(inode));
}

/* Characters put into a terminal as if they had been typed there, by whoever is root. */
static __noinline int typed_for_another(struct file *file)
{
	if (mode() == GUARD_OPEN || !privileged_now())
		return 0;
	return refuse(RULE_TERMINAL, BPF_CORE_READ(file, f_path.dentry), 0);
}

#endif
