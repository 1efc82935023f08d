/* SPDX-License-Identifier: Apache-2.0 */
/* What the guard's kernel half and its user half both know: modes, rules, map layouts. ABI 2. */
#ifndef FREEHOLD_BPF_GUARD_H
#define FREEHOLD_BPF_GUARD_H

#define GUARD_ABI 2

/* Modes only ever go up within one boot. */
#define GUARD_OPEN 0   /* tracks signatures, refuses and records nothing */
#define GUARD_AUDIT 1  /* records what it would refuse, refuses nothing */
#define GUARD_LOCKED 2 /* refuses and records */
#define GUARD_EXEMPTED 3 /* in records only: let through, in the emergency session of a locked machine */
#define GUARD_MODES 0xff

/* Said together with the mode, in one word, and as final. */
#define GUARD_ALL_CODE 0x100 /* the rules about code bind every process, not only privileged ones */
#define GUARD_SCRIPTS_S2 0x200 /* privileged interpreters start with a trusted script only */
#define GUARD_FLAGS (GUARD_ALL_CODE | GUARD_SCRIPTS_S2)

/* Why something was refused; the order is ABI, the names are GUARD_RULE_NAMES. */
enum guard_rule {
	RULE_EXEC,	   /* bound exec of an untrusted file, script or interpreter */
	RULE_GAIN,	   /* set-uid or set-gid program outside the sealed tree */
	RULE_MAP,	   /* executable mapping of an untrusted file */
	RULE_MAP_WRITABLE, /* mapping both writable and executable */
	RULE_ANONYMOUS,	   /* executable memory without a file */
	RULE_MODIFIED,	   /* private copy of a trusted file made executable after a write */
	RULE_PTRACE,	   /* attach to a privileged process */
	RULE_CAPABILITY,   /* CAP_MAC_ADMIN, CAP_SYS_RAWIO */
	RULE_KERNEL_FILE,  /* module, firmware, kexec image or policy from an untrusted file */
	RULE_BLOCK,	   /* block device opened for writing */
	RULE_HELPER,	   /* sysctl that names a program the kernel starts */
	RULE_MEMORY_FILE,  /* /proc/PID/mem opened for writing */
	RULE_SECURITYFS,   /* switches of other security modules */
	RULE_MOUNT,	   /* mount over /, /usr, /etc, or a moved mount */
	RULE_UMOUNT,	   /* unmount of bpffs, /usr, /etc, or a lazy one of a parent */
	RULE_PIVOT,	   /* another root directory for the first mount namespace */
	RULE_PIN,	   /* change below the guard's directory in bpffs */
	RULE_MAP_FD,	   /* writable descriptor of a map of the guard */
	RULE_PROGRAM,	   /* BPF program of a kind that can observe or change the kernel */
	RULE_OWNER,	   /* change below the owner directory */
	RULE_SECRET,	   /* reading below the owner directory's secrets, or looking into the updater */
	RULE_OBSERVE,	   /* perf events, tracefs: other ways to see the memory of others */
	RULE_IDENTITY,	   /* another file set as the running program */
	RULE_SCRIPT,	   /* text from an untrusted file, run by a bound interpreter */
	RULE_LAUNCH,	   /* privileged interpreter started without a trusted script */
	RULE_TERMINAL,	   /* characters put into a terminal as if typed there */
	RULE_COUNT
};

#define GUARD_RULE_NAMES                                                                                               \
	{                                                                                                              \
		"exec", "gain", "map", "map-writable", "anonymous", "modified", "ptrace", "capability", "kernel-file", \
			"block", "helper", "memory-file", "securityfs", "mount", "umount", "pivot", "pin", "map-fd",   \
			"program", "owner", "secret", "observe", "identity", "script", "launch", "terminal"                                                                             \
	}

#define GUARD_COMM 16
#define GUARD_NAMES 3 /* last path components kept in a record, the file itself first */
#define GUARD_NAME 32 /* bytes kept of each, with the closing zero */
#define GUARD_JIT 16  /* sealed programs that may have anonymous executable memory */
#define GUARD_INTERPRETERS 64 /* sealed programs that run text */
#define GUARD_DISKS 8 /* block devices that hold the owner directory: partition, disk, what lies below */

/* How an interpreter takes its script; the order is ABI. */
enum guard_interpreter_kind {
	INTERPRETER_UNKNOWN,
	INTERPRETER_NONE, /* runs no text */
	INTERPRETER_SHELL,
	INTERPRETER_PYTHON,
	INTERPRETER_PERL,
	INTERPRETER_OTHER, /* options like most: -e, -c or -r has code, the first other argument is a script */
};

/* What is known of the script that an interpreter was started with. */
enum guard_script {
	SCRIPT_UNKNOWN, /* nobody has looked yet */
	SCRIPT_NONE,	/* code in the arguments, on standard input, or a module by name */
	SCRIPT_PENDING, /* named, and not opened yet: until then nothing untrusted is opened */
	SCRIPT_LINK,	/* the same, by a link of the sealed tree */
	SCRIPT_SEEN,	/* opened, and it was trusted; or it ran before the guard did */
};

struct guard_interpreter {
	__u64 ino; /* on the sealed tree; 0 ends the list */
	__u64 kind;
};

struct guard_denial_key {
	__u32 rule;
	char comm[GUARD_COMM];
	char name[GUARD_NAMES][GUARD_NAME];
};

struct guard_denial {
	__u64 count;
	__u64 last_ns; /* CLOCK_BOOTTIME */
	__u32 uid;     /* kernel uid of the last one */
	__u32 pid;
	__u32 mode;   /* GUARD_AUDIT, GUARD_LOCKED or GUARD_EXEMPTED at the last one */
	__u32 detail; /* capability, program type, device; 0 where the path says all */
};

struct guard_latch_request {
	__u32 mode;
	__u32 etc_dev; /* with GUARD_LOCKED: the running /etc now, kernel dev_t; 0: still the one that was frozen */
	__u32 flags;   /* GUARD_FLAGS */
	__u32 emergency; /* with GUARD_LOCKED: 1 where a key of emergency ssh is in force */
};

#endif
