/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Text that bound interpreters run (privileged ones, or all): script files, sourced and imported ones. Part of guard.bpf.c, included there
 * once. docs/guard.md, "Scripts", has the reasons.
 *
 * With the flag S2 a privileged interpreter starts for a script only: not for code in its arguments or on its input.
 *
 * A shell reads code as it reads data, so the reading is judged: of an untrusted file it may read its standard input only.
 * The others read data all day. Of them the file that is their script is judged, and what has a name that they import.
 */
#ifndef FREEHOLD_BPF_GUARD_SCRIPT_H
#define FREEHOLD_BPF_GUARD_SCRIPT_H

#define MAY_READ 4
#define FMODE_EXEC 0x20 /* among the flags: no caller of open(2) can set it */
#define MNT_NS_INTERNAL -22 /* an error's number in the place of a pointer; fs/mount.h */
#define SIGKILL 9
#define MEM_MAJOR 1 /* null, zero, random */
#define ARGUMENTS 512 /* bytes of a program's arguments that are looked at */

struct script_walk {
	__u32 kind;
	__u32 argument;	 /* number of the argument that the walk is in */
	__u32 place;	 /* enum place */
	__u32 skip_next; /* the next argument belongs to an option */
	__u32 no_options;
	__u32 result; /* enum guard_script */
	__u32 odd;    /* there is an option that may bring code, or that is not known */
	__u32 begin;  /* where the script's path begins */
	__u32 from;   /* and its last part */
};

/* A script's path as it was said, and that of a file which may be it. The walk is here and not on the stack: the verifier would
 * follow each of its values through each option of each interpreter. */
struct script_paths {
	struct script_walk walk;
	char text[ARGUMENTS]; /* all arguments; the path begins in it */
	char path[ARGUMENTS];
};

struct path_comparison {
	__u32 text, path; /* where each begins */
	__u32 directory;  /* the text may be the directory of the path */
	__u32 same;
};

enum place { PLACE_BEGIN, PLACE_SKIPPED, PLACE_DASH, PLACE_DASHES, PLACE_OPTIONS, PLACE_OPTION_ARGUMENT, PLACE_SCRIPT };

/* The arguments, until the script has been opened. By task: two of one processor can be at it. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct script_paths);
} gd_arguments SEC(".maps");

/* ---- which programs ---- */

static __noinline __u32 interpreter_of(struct task_struct *task)
{
	struct inode *inode = BPF_CORE_READ(task, mm, exe_file, f_inode);
	__u64 ino = BPF_CORE_READ(inode, i_ino);

	if (!sealed_dev || BPF_CORE_READ(inode, i_sb, s_dev) != sealed_dev)
		return INTERPRETER_NONE;
	for (int i = 0; i < GUARD_INTERPRETERS && interpreters[i].ino; i++)
		if (interpreters[i].ino == ino)
			return interpreters[i].kind;
	return INTERPRETER_NONE;
}

/* ---- which files ---- */

/* What the kernel itself says is no code that somebody stored. */
static __always_inline bool is_kernel_text(struct inode *inode)
{
	__u64 magic = BPF_CORE_READ(inode, i_sb, s_magic);

	return magic == PROC_MAGIC || magic == SYSFS_MAGIC || magic == CGROUP2_MAGIC || magic == SECURITYFS_MAGIC;
}

/* The running /etc: its lower layers are the sealed tree and the owner's image, its upper one is whose root is. The
 * pointer to the upper one stands behind the inode (struct ovl_inode); the laboratory fails where a kernel moves it. */
static __always_inline bool is_verified_etc(struct inode *inode)
{
	__u64 upper = 1;

	if (BPF_CORE_READ(inode, i_sb, s_magic) != OVERLAYFS_MAGIC)
		return false;
	bpf_probe_read_kernel(&upper, sizeof(upper), (char *)inode + bpf_core_type_size(struct inode));
	return !upper;
}

static __noinline bool trusted_text(struct file *file)
{
	struct inode *inode = file->f_inode;

	if (BPF_CORE_READ(inode, i_sb, s_dev) == etc_device())
		return is_verified_etc(inode);
	return is_kernel_text(inode) || trusted_inode(inode);
}

/* A file that the kernel opened for its own use. One below an overlay's, through a mount of no namespace where no path leads: the
 * one above has been judged. Or a program that is to start: it has a rule of its own. */
static __always_inline bool is_kernels(struct file *file)
{
	struct mount *mnt = mount_of(BPF_CORE_READ(file, f_path.mnt));

	return BPF_CORE_READ(file, f_mode) & FMODE_BACKING || BPF_CORE_READ(file, f_flags) & FMODE_EXEC ||
	       (__s64)BPF_CORE_READ(mnt, mnt_ns) == MNT_NS_INTERNAL;
}

#define TAIL3(a, b, c) ((__u32)(a) << 8 | (__u32)(b) << 16 | (__u32)(c) << 24)
#define TAIL4(a, b, c, d) ((__u32)(a) | TAIL3(b, c, d))

/* Names of what is imported without having been named: by Python, Perl, and the others that Debian has. */
static __noinline bool is_importable(struct dentry *dentry)
{
	__u32 length = BPF_CORE_READ(dentry, d_name.len), tail = 0, tail3;

	if (length < 4)
		return false;
	bpf_probe_read_kernel(&tail, sizeof(tail), BPF_CORE_READ(dentry, d_name.name) + length - 4);
	tail3 = tail & 0xffffff00;
	if (tail3 == TAIL3('.', 'p', 'y') || tail3 == TAIL3('.', 'p', 'l') || tail3 == TAIL3('.', 'p', 'm') ||
	    tail3 == TAIL3('.', 'p', 'h') || tail3 == TAIL3('.', 'a', 'l') || tail3 == TAIL3('.', 'r', 'b') ||
	    tail3 == TAIL3('.', 'j', 's'))
		return true;
	return tail == TAIL4('.', 'p', 'y', 'c') || tail == TAIL4('.', 'p', 't', 'h') || tail == TAIL4('.', 'z', 'i', 'p') ||
	       tail == TAIL4('.', 'e', 'g', 'g') || tail == TAIL4('.', 'w', 'h', 'l') || tail == TAIL4('.', 'p', 'y', 'z') ||
	       tail == TAIL4('.', 'l', 'u', 'a') || tail == TAIL4('.', 't', 'c', 'l') || tail == TAIL4('.', 'm', 'j', 's') ||
	       tail == TAIL4('.', 'c', 'j', 's') || tail == TAIL4('.', 'p', 'h', 'p');
}

/* ---- which of its arguments is the script ---- */

#define LETTER(c) BIT((c) - 'A')

/* Options with which an interpreter runs its script and nothing else. What brings code, a prompt, a module or another file of
 * commands is not among them. */
static __always_inline bool is_plain_option(__u32 kind, char c)
{
	__u64 letters;

	if (c < 'A' || c > 'z')
		return false;
	if (kind == INTERPRETER_SHELL)
		letters = LETTER('a') | LETTER('e') | LETTER('f') | LETTER('h') | LETTER('l') | LETTER('n') | LETTER('o') |
			  LETTER('O') | LETTER('p') | LETTER('u') | LETTER('v') | LETTER('x');
	else if (kind == INTERPRETER_PYTHON)
		letters = LETTER('b') | LETTER('B') | LETTER('E') | LETTER('I') | LETTER('O') | LETTER('P') | LETTER('q') |
			  LETTER('s') | LETTER('S') | LETTER('u') | LETTER('v') | LETTER('W') | LETTER('X');
	else if (kind == INTERPRETER_PERL)
		letters = LETTER('I') | LETTER('t') | LETTER('T') | LETTER('w') | LETTER('W') | LETTER('X');
	else
		letters = LETTER('w') | LETTER('W');
	return letters & LETTER(c);
}

/* One letter of a cluster of options: what follows it. */
static __always_inline void option_letter(struct script_walk *walk, char c)
{
	__u32 kind = walk->kind;
	bool code, argument, rest = false;

	switch (kind) {
	case INTERPRETER_SHELL:
		code = c == 'c' || c == 's';
		argument = c == 'o' || c == 'O';
		break;
	case INTERPRETER_PYTHON:
		code = c == 'c' || c == 'm';
		argument = c == 'W' || c == 'X';
		break;
	default:
		code = c == 'e' || c == 'E' || (kind == INTERPRETER_OTHER && (c == 'c' || c == 'r'));
		argument = c == 'I';
		rest = c == 'F' || c == 'M' || c == 'm' || c == 'i' || c == 'x' || c == 'C' || c == 'D' || c == 'V' || c == ':';
	}
	if (!is_plain_option(kind, c))
		walk->odd = 1;
	if (code)
		walk->result = SCRIPT_NONE;
	walk->place = argument ? PLACE_OPTION_ARGUMENT : rest ? PLACE_SKIPPED : PLACE_OPTIONS;
}

static long walk_arguments(__u32 index, void *unused)
{
	struct script_paths *paths = bpf_task_storage_get(&gd_arguments, bpf_get_current_task_btf(), 0, 0);
	struct script_walk *walk;
	char c;

	if (!paths || index >= ARGUMENTS)
		return 1;
	walk = &paths->walk;
	c = paths->text[index];
	if (!c) {
		if (walk->place == PLACE_SCRIPT)
			walk->result = SCRIPT_PENDING;
		else if (walk->place == PLACE_DASH && walk->kind != INTERPRETER_SHELL) /* standard input */
			walk->result = SCRIPT_NONE;
		else if (walk->place == PLACE_DASH || walk->place == PLACE_DASHES)
			walk->no_options = 1;
		walk->skip_next = walk->place == PLACE_OPTION_ARGUMENT;
		walk->place = PLACE_BEGIN;
		walk->argument++;
		return walk->result != SCRIPT_UNKNOWN;
	}
	switch (walk->place) {
	case PLACE_BEGIN:
		if (!walk->argument || walk->skip_next) {
			walk->place = PLACE_SKIPPED;
		} else if (c == '-' && !walk->no_options) {
			walk->place = PLACE_DASH;
		} else {
			walk->place = PLACE_SCRIPT;
			if (c == '+' && walk->kind == INTERPRETER_SHELL) /* options, too */
				walk->odd = 1;
			walk->begin = index;
			walk->from = c == '/' ? index + 1 : index;
		}
		break;
	case PLACE_DASH:
		if (c == '-')
			walk->place = PLACE_DASHES;
		else
			option_letter(walk, c);
		break;
	case PLACE_OPTIONS:
		option_letter(walk, c);
		break;
	case PLACE_DASHES: /* a long option */
		walk->odd = 1;
		walk->place = PLACE_SKIPPED;
		break;
	case PLACE_OPTION_ARGUMENT:
		if (walk->kind == INTERPRETER_SHELL) /* more options: their argument is the next one all the same */
			walk->odd = 1;
		walk->place = PLACE_SKIPPED;
		break;
	case PLACE_SCRIPT:
		if (c == '/')
			walk->from = index + 1;
		break;
	}
	return walk->result != SCRIPT_UNKNOWN;
}

/* Which argument is the script, by the interpreter's rules. Where they are too many, or not to be read: one that no file is.
 * Says whether that script is all that it runs. */
static __noinline bool find_script(struct task_struct *task, struct task_tag *tag)
{
	__u64 from = BPF_CORE_READ(task, mm, arg_start), size = BPF_CORE_READ(task, mm, arg_end) - from;
	__u32 length = size < ARGUMENTS ? size : ARGUMENTS - 1;
	struct script_paths *paths;
	struct script_walk *walk;
	bool plain;
	__u32 last;

	tag->script = SCRIPT_PENDING;
	__builtin_memset(tag->script_name, 0, sizeof(tag->script_name));
	paths = bpf_task_storage_get(&gd_arguments, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!paths)
		return false;
	walk = &paths->walk;
	__builtin_memset(walk, 0, sizeof(*walk));
	walk->kind = tag->interpreter;
	barrier_var(length); /* or the compiler leaves out the bound that the verifier looks for */
	paths->text[length & (ARGUMENTS - 1)] = 0;
	if (bpf_probe_read_user(paths->text, length & (ARGUMENTS - 1), (void *)from) == 0) {
		bpf_loop(ARGUMENTS, walk_arguments, NULL, 0);
		if (walk->result == SCRIPT_UNKNOWN && size < ARGUMENTS)
			walk->result = SCRIPT_NONE; /* no script at all: a prompt, or standard input */
		last = walk->from;
		if (walk->result == SCRIPT_PENDING && last < ARGUMENTS)
			bpf_probe_read_kernel_str(tag->script_name, sizeof(tag->script_name), paths->text + last);
		if (walk->result == SCRIPT_NONE)
			tag->script = SCRIPT_NONE;
		tag->script_begin = walk->begin;
		tag->script_from = walk->from;
	}
	plain = walk->result == SCRIPT_PENDING && !walk->odd && tag->script_name[0];
	if (tag->script == SCRIPT_NONE)
		bpf_task_storage_delete(&gd_arguments, task);
	return plain;
}

/* Has the file the name of the script? */
static __noinline bool is_called(struct dentry *dentry, const struct task_tag *tag)
{
	char name[GUARD_NAME] __attribute__((aligned(8))) = {};
	const __u64 *one = (const __u64 *)name, *other = (const __u64 *)tag->script_name;

	bpf_probe_read_kernel_str(name, sizeof(name), BPF_CORE_READ(dentry, d_name.name));
	return name[0] && one[0] == other[0] && one[1] == other[1] && one[2] == other[2] && one[3] == other[3];
}

/* Or the one that a directory is run by? */
static __noinline bool is_named(struct dentry *dentry, const struct task_tag *tag)
{
	char name[12] __attribute__((aligned(8))) = {};

	bpf_probe_read_kernel_str(name, sizeof(name), BPF_CORE_READ(dentry, d_name.name));
	return __builtin_memcmp(name, "__main__.py", 11) == 0 || is_called(dentry, tag);
}

static long compare_paths(__u32 index, struct path_comparison *at)
{
	struct script_paths *paths = bpf_task_storage_get(&gd_arguments, bpf_get_current_task_btf(), 0, 0);
	char one, other;

	if (!paths)
		return 1;
	one = paths->text[(at->text + index) & (ARGUMENTS - 1)];
	other = paths->path[(at->path + index) & (ARGUMENTS - 1)];
	if (one && one == other)
		return 0;
	at->same = !one && (!other || (at->directory && other == '/'));
	return 1;
}

/*
 * Is the file the one that the arguments name? By its whole path: libraries and modules are opened before a script is, and one
 * may be called like it.
 */
static __always_inline bool is_script(struct file *file, struct dentry *dentry, struct task_struct *task, const struct task_tag *tag)
{
	struct path_comparison at = {.text = tag->script_begin};
	struct script_paths *paths;
	__u32 begin = tag->script_begin & (ARGUMENTS - 1);

	if (!is_named(dentry, tag))
		return false;
	paths = bpf_task_storage_get(&gd_arguments, task, 0, 0);
	if (!paths)
		return false;
	if (paths->text[begin] != '/') /* in the current directory, or not known again */
		return begin == tag->script_from && BPF_CORE_READ(dentry, d_parent) == BPF_CORE_READ(task, fs, pwd.dentry);
	if (bpf_d_path(&file->f_path, paths->path, sizeof(paths->path)) < 0)
		return false;
	/* /bin, /sbin and /lib are links. */
	if (__builtin_memcmp(paths->path, "/usr/", 5) == 0 && (paths->text[(begin + 1) & (ARGUMENTS - 1)] != 'u' ||
							       paths->text[(begin + 2) & (ARGUMENTS - 1)] != 's'))
		at.path = 4;
	at.directory = !is_called(dentry, tag);
	bpf_loop(ARGUMENTS, compare_paths, &at, 0);
	return at.same;
}

/* Notes that the script has been opened, if this trusted file is it. */
static __noinline void script_opened(struct file *file, struct dentry *dentry, struct task_struct *task, struct task_tag *tag)
{
	if (tag->script == SCRIPT_LINK || (tag->script == SCRIPT_PENDING && is_script(file, dentry, task, tag))) {
		tag->script = SCRIPT_SEEN;
		bpf_task_storage_delete(&gd_arguments, task);
	}
}

/* The dynamic loader's lists: what they lead to is judged when it is mapped. */
static __noinline bool is_loaders(struct dentry *dentry)
{
	char name[8] __attribute__((aligned(8))) = {};

	if (BPF_CORE_READ(dentry, d_sb, s_dev) != etc_device())
		return false;
	bpf_probe_read_kernel_str(name, sizeof(name), BPF_CORE_READ(dentry, d_name.name));
	return __builtin_memcmp(name, "ld.so.", 6) == 0;
}

/* Who a user is, which shells look up by the C library when they start. Accounts of the machine's own are rendered into the running
 * /etc, so it is in no lower layer. As a script that is named it is none of these: that is refused when it is opened. */
static __noinline bool is_accounts(struct dentry *dentry)
{
	char name[8] __attribute__((aligned(8))) = {};

	if (BPF_CORE_READ(dentry, d_sb, s_dev) != etc_device() || BPF_CORE_READ(dentry, d_parent) != BPF_CORE_READ(dentry, d_sb, s_root))
		return false;
	bpf_probe_read_kernel_str(name, sizeof(name), BPF_CORE_READ(dentry, d_name.name));
	return __builtin_memcmp(name, "passwd", 7) == 0 || __builtin_memcmp(name, "group", 6) == 0;
}

/* ---- the hooks ---- */

static __always_inline struct file *file_of_descriptor(struct task_struct *task, __u64 number)
{
	struct file **files = BPF_CORE_READ(task, files, fdt, fd), *file = NULL;

	if (number < BPF_CORE_READ(task, files, fdt, max_fds))
		bpf_probe_read_kernel(&file, sizeof(file), files + number);
	return file;
}

static __always_inline struct file *standard_input(struct task_struct *task)
{
	return file_of_descriptor(task, 0);
}

/* Whether the system call is about this file. While a shell looks up a name the kernel reads files of its own in its name: the
 * image that a file system lies in. Shells read by read(2) and its kin, of which the descriptor is the first argument: of 32 bits
 * in another register, which holds no number of that file otherwise. */
static __always_inline bool is_asked_for(struct task_struct *task, struct file *file)
{
	struct pt_regs *registers = (struct pt_regs *)bpf_task_pt_regs(task);

	return file_of_descriptor(task, PT_REGS_PARM1_CORE_SYSCALL(registers)) == file ||
	       file_of_descriptor(task, (__u32)BPF_CORE_READ(registers, bx)) == file;
}

/* Who has no tag and is not privileged began before the latch, or as a copy of one that did: so did its text. */
static __always_inline struct task_tag *script_tag(struct task_struct *task)
{
	struct task_tag *tag = bpf_task_storage_get(&gd_tasks, task, 0, 0);

	if (tag)
		return tag;
	tag = bpf_task_storage_get(&gd_tasks, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (tag && !privileged(BPF_CORE_READ(task, real_cred)))
		tag->script = SCRIPT_SEEN;
	return tag;
}

/* It dies in the dynamic loader, before a line of its own: an open that fails it might get over. */
static __noinline int launch_without_script(struct task_struct *task, const struct task_tag *tag)
{
	int result;

	if (!latched(GUARD_SCRIPTS_S2) || !privileged(BPF_CORE_READ(task, real_cred)))
		return 0;
	result = refuse(RULE_LAUNCH, BPF_CORE_READ(task, mm, exe_file, f_path.dentry), tag->interpreter);
	if (result)
		bpf_send_signal(SIGKILL);
	return result;
}

/* With S2 a script is a file: a pipe or a terminal that is opened before it may be what was named instead. */
static __noinline int script_stream(struct inode *inode, struct dentry *dentry)
{
	struct task_tag *tag = bpf_task_storage_get(&gd_tasks, bpf_get_current_task_btf(), 0, 0);

	if (!latched(GUARD_SCRIPTS_S2) || !tag || (tag->script != SCRIPT_PENDING && tag->script != SCRIPT_LINK) ||
	    BPF_CORE_READ(inode, i_rdev) >> 20 == MEM_MAJOR || !privileged_now())
		return 0;
	return refuse(RULE_SCRIPT, dentry, tag->interpreter);
}

/* A regular file opened for reading, by whomever. */
static __noinline int script_open(struct file *file, struct dentry *dentry)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct task_tag *tag;
	int result;

	if (!bound_now() || is_kernels(file))
		return 0;
	tag = script_tag(task);
	if (!tag)
		return 0;
	if (!tag->interpreter)
		tag->interpreter = interpreter_of(task);
	if (tag->interpreter == INTERPRETER_NONE)
		return 0;
	if (!tag->script && !find_script(task, tag)) {
		result = launch_without_script(task, tag);
		if (result)
			return result;
	}
	if (tag->interpreter == INTERPRETER_SHELL) {
		if (trusted_text(file))
			script_opened(file, dentry, task, tag);
		if (trusted_text(file) || is_loaders(dentry))
			return 0;
		/* Judged when it is read; but a file that becomes standard input as it is opened cannot be told from one that
		 * was. And dash says nothing of a script that it cannot read, so its script it shall not open. */
		if (standard_input(task) && !(tag->script == SCRIPT_PENDING && is_named(dentry, tag)))
			return 0;
		return refuse(RULE_SCRIPT, dentry, tag->interpreter);
	}
	if (trusted_text(file)) {
		script_opened(file, dentry, task, tag);
		return 0;
	}
	if (tag->script != SCRIPT_PENDING && tag->script != SCRIPT_LINK && !is_importable(dentry))
		return 0;
	if (is_loaders(dentry))
		return 0;
	result = refuse(RULE_SCRIPT, dentry, tag->interpreter);
	if (!result)
		tag->script = SCRIPT_SEEN; /* under audit, once */
	return result;
}

/* By a link of the sealed tree the script has another name. Only what is said to lie there: libraries are opened by links, too. */
SEC("lsm/inode_follow_link")
int BPF_PROG(guard_follow_link, struct dentry *dentry, struct inode *inode, bool rcu)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct task_tag *tag = bpf_task_storage_get(&gd_tasks, task, 0, 0);
	struct script_paths *paths;
	char place[8] __attribute__((aligned(8))) = {};

	if (!tag || tag->script != SCRIPT_PENDING || !is_sealed(dentry) || !is_named(dentry, tag))
		return 0;
	paths = bpf_task_storage_get(&gd_arguments, task, 0, 0);
	if (!paths)
		return 0;
	bpf_probe_read_kernel(place, sizeof(place), paths->text + (tag->script_begin & (ARGUMENTS - 1)));
	if (__builtin_memcmp(place, "/usr/", 5) == 0 || __builtin_memcmp(place, "/bin/", 5) == 0 ||
	    __builtin_memcmp(place, "/sbin/", 6) == 0)
		tag->script = SCRIPT_LINK;
	return 0;
}

/* Of an untrusted file a bound shell reads its standard input, which is data, and no script of its own. */
SEC("lsm/file_permission")
int BPF_PROG(guard_read, struct file *file, int mask)
{
	struct task_struct *task;
	struct task_tag *tag;

	if (!(mask & MAY_READ) || mode() == GUARD_OPEN)
		return 0;
	task = bpf_get_current_task_btf();
	tag = bpf_task_storage_get(&gd_tasks, task, 0, 0);
	if (!tag || tag->interpreter != INTERPRETER_SHELL || (BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) != S_IFREG)
		return 0;
	if (is_kernels(file) || standard_input(task) == file || !is_asked_for(task, file) || trusted_text(file) || !bound_now())
		return 0;
	if (is_accounts(BPF_CORE_READ(file, f_path.dentry)))
		return 0;
	return refuse(RULE_SCRIPT, BPF_CORE_READ(file, f_path.dentry), tag->interpreter);
}

#endif
