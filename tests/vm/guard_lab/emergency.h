/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checks of emergency ssh. Part of lab.c, included there once, after secrets.h. Launcher and shell are the ones that ship;
 * sshd and its two helpers are the laboratory, which does what it reads from descriptor 1, a socket that the launcher leaves.
 */
#ifndef FREEHOLD_GUARD_LAB_EMERGENCY_H
#define FREEHOLD_GUARD_LAB_EMERGENCY_H

#define EMERGENCY_LAUNCHER "/usr/lib/freehold/emergency-sshd"
#define EMERGENCY_SHELL "/usr/lib/freehold/emergency-shell"
#define GO "/tmp/go"
#define RESULT "/tmp/result"
#define UNSIGNED "/tmp/lab ok"
/* Says who it is, and tries when it is told to. */
#define LATER "echo $$; while [ ! -e " GO " ]; do :; done; " UNSIGNED "; echo $? >" RESULT

/* ---- sshd, as the laboratory plays it ---- */

static void read_line(int fd, char *line, size_t size)
{
	size_t length = 0;

	while (length < size - 1 && read(fd, line + length, 1) == 1 && line[length] != '\n')
		length++;
	line[length] = 0;
}

static int end_of(pid_t pid)
{
	int status;

	waitpid(pid, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 96;
}

static void become_shell(const char *command)
{
	execl(EMERGENCY_SHELL, "emergency-shell", "-c", command, NULL);
	_exit(97);
}

/* "PLAN COMMAND": one client. */
static int sshd(void)
{
	char line[512], *command;
	pid_t pid;

	read_line(1, line, sizeof(line));
	command = strchr(line, ' ');
	if (!command)
		return 95;
	*command++ = 0;
	pid = fork();
	if (pid == 0) {
		execl("/usr/lib/openssh/sshd-session", "sshd-session", line, command, NULL);
		_exit(97);
	}
	return end_of(pid);
}

static int sshd_session(const char *plan, const char *command)
{
	char line[16];
	pid_t pid;

	dprintf(1, "%d\n", getpid());
	pid = fork();
	if (pid == 0) {
		if (strcmp(plan, "detour") == 0)
			execl(LAB, "lab", "detour", command, NULL);
		else if (strncmp(plan, "auth", 4) == 0)
			execl("/usr/lib/openssh/sshd-auth", "sshd-auth", plan, command, NULL);
		else
			become_shell(command);
		_exit(97);
	}
	if (strcmp(plan, "orphan") == 0) { /* its shell is killed, and it ends: what bash does then is nobody's session */
		read_line(1, line, sizeof(line));
		kill(pid, SIGKILL);
		return 0;
	}
	return end_of(pid);
}

static int sshd_auth(const char *plan, const char *command)
{
	if (strcmp(plan, "auth") == 0)
		become_shell(command);
	if (setresgid(1000, 1000, 1000) || setresuid(1000, 1000, 1000))
		return 94;
	dprintf(1, "%d\n", getpid());
	pause();
	return 0;
}

/* ---- one session, from outside ---- */

struct session {
	pid_t daemon, leader;
	int socket;
};

struct how {
	int ends[2];
	const char *launcher;
};

static int begin(void *given)
{
	const struct how *how = given;

	dup2(how->ends[1], 1);
	execl(how->launcher, how->launcher, NULL);
	_exit(97);
}

static struct session session_with(const char *launcher, int flags, const char *plan)
{
	static char stack[65536] __attribute__((aligned(16)));
	struct how how = {.launcher = launcher};
	struct session session;
	char line[16];

	unlink(GO);
	unlink(RESULT);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, how.ends))
		_exit(93);
	session.daemon = clone(begin, stack + sizeof(stack), flags | SIGCHLD, &how);
	close(how.ends[1]);
	session.socket = how.ends[0];
	dprintf(session.socket, "%s\n", plan);
	read_line(session.socket, line, sizeof(line));
	session.leader = atoi(line);
	return session;
}

/* How it ended. That a program could not be started bash says by 126. */
static int outcome(int status) { return status == 126 ? EPERM : status; }

static int ended(struct session session)
{
	int status = end_of(session.daemon);

	close(session.socket);
	return outcome(status);
}

static int emergency(const char *plan) { return ended(session_with(EMERGENCY_LAUNCHER, 0, plan)); }

/* A session that waits, what is done to the process that it told of, and how its own attempt ended then. */
static int later(const char *plan, int (*act)(pid_t, struct session), int *attempt)
{
	struct session session = session_with(EMERGENCY_LAUNCHER, 0, plan);
	char line[16];
	int error, fd;

	*attempt = 92;
	read_line(session.socket, line, sizeof(line));
	if (!session.leader || !atoi(line)) /* none came about: nobody to do anything to */
		return ended(session) + 88;
	error = act(atoi(line), session);
	put(GO, "", 0600);
	for (int i = 0; i < 500; i++) {
		fd = open(RESULT, O_RDONLY);
		memset(line, 0, sizeof(line));
		if (fd >= 0 && read(fd, line, sizeof(line) - 1) > 1)
			break;
		close(fd);
		usleep(10000);
	}
	*attempt = line[0] ? outcome(atoi(line)) : 92;
	kill(session.leader, SIGCONT);
	ended(session);
	return error;
}

/* ---- what it may ---- */

static int emergency_unsigned(void) { return emergency("run /tmp/exempt ok"); }
static int emergency_grandchild(void) { return emergency("run bash -c '(" UNSIGNED ")'"); }
static int emergency_source(void) { return emergency("run . /tmp/emergency.sh") == 7 ? 0 : EPERM; }
static int emergency_anonymous(void) { return emergency("run /usr/bin/lab anonymous"); }
static int emergency_owner(void)
{
	int status = emergency("run echo x >/sysroot/owner/new");

	unlink("/sysroot/owner/new");
	return status == 1 ? EPERM : status;
}
static int emergency_loader_list(void) { return emergency("run /usr/bin/lab loader-list"); }
static int loader_list(void)
{
	int first = syscall(SYS_pidfd_open, 1, 0);

	return setns(first, CLONE_NEWNS) ? 91 : done(open("/etc/ld.so.preload", O_RDONLY));
}

/* ---- who is not it ---- */

static int emergency_host_key(void) { return done(open(SECRET "emergency-host-key", O_RDONLY)); }
static int emergency_shell_alone(void) { return outcome(RUN(EMERGENCY_SHELL, "-c", UNSIGNED)); }
static int emergency_without_launcher(void) { return ended(session_with("/usr/sbin/sshd", 0, "run " UNSIGNED)); }
static int emergency_copied_launcher(void) { return ended(session_with("/usr/lib/freehold/emergency-copy", 0, "run " UNSIGNED)); }
static int emergency_detour(void) { return emergency("detour " UNSIGNED); } /* by another sealed program */
static int emergency_by_auth(void) { return emergency("auth " UNSIGNED); }
static int emergency_in_namespace(void) { return unshare(CLONE_NEWNS) ? 99 : emergency("run " UNSIGNED); }
static int emergency_shared_directories(void) { return ended(session_with(EMERGENCY_LAUNCHER, CLONE_FS, "run " UNSIGNED)); }

static int emergency_filtered(void)
{
	struct sock_filter allow = {.code = BPF_RET | BPF_K, .k = SECCOMP_RET_ALLOW};
	struct sock_fprog program = {1, &allow};

	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) ? 99 : emergency("run " UNSIGNED);
}

static int second_session(pid_t pid, struct session session)
{
	int error;

	(void)pid;
	(void)session;
	error = emergency("run " UNSIGNED);
	return error;
}

static int emergency_second_session(void)
{
	int first, error = later("run " LATER, second_session, &first);

	return first ? 90 : error; /* and the first one bypasses the lock all the while */
}

static int end_it(pid_t pid, struct session session)
{
	(void)pid;
	dprintf(session.socket, "end\n");
	return end_of(session.daemon);
}

static int emergency_child_after_end(void)
{
	int attempt, error = later("orphan " LATER, end_it, &attempt);

	return error ? error : attempt;
}

static int stop_it(pid_t pid, struct session session)
{
	(void)pid;
	return ret(kill(session.leader, SIGSTOP));
}

static int emergency_while_stopped(void) /* so that it does not see its client go */
{
	int attempt, error = later("run " LATER, stop_it, &attempt);

	return error ? error : attempt;
}

/* ---- who looks into it ---- */

static int robust_list_of(pid_t pid, struct session session)
{
	(void)session;
	return ask_robust_list(pid);
}

static int attach_to(pid_t pid, struct session session)
{
	int error = attach(pid);

	(void)session;
	if (!error)
		ptrace(PTRACE_INTERRUPT, pid, NULL, NULL), waitpid(pid, NULL, 0), ptrace(PTRACE_DETACH, pid, NULL, NULL);
	return error;
}

static int mounts_of(pid_t pid, struct session session)
{
	char path[64];
	int error;

	(void)session;
	snprintf(path, sizeof(path), "/proc/%d/ns/mnt", pid);
	error = done(open(path, O_RDONLY));
	return error == EACCES ? EPERM : error; /* as this file says it */
}

static int looks(const char *plan, int (*act)(pid_t, struct session))
{
	int attempt, error = later(plan, act, &attempt);

	return attempt ? 90 : error;
}

static int emergency_looked_into(void) { return looks("run " LATER, robust_list_of); }
static int emergency_attached(void) { return looks("run " LATER, attach_to); }
static int emergency_entered(void) { return looks("run " LATER, mounts_of); }

static int emergency_auth_looked_into(void)
{
	struct session session = session_with(EMERGENCY_LAUNCHER, 0, "auth-waits x");
	char line[16];
	int error;

	read_line(session.socket, line, sizeof(line));
	if (!atoi(line))
		return ended(session) + 88;
	error = ask_robust_list(atoi(line));
	kill(atoi(line), SIGKILL);
	ended(session);
	return error;
}

/* ---- typing for others ---- */

static int terminal_typed(void)
{
	int controller = open("/dev/ptmx", O_RDWR | O_NOCTTY), zero = 0, terminal, error;

	if (controller < 0 || ioctl(controller, TIOCSPTLCK, &zero))
		return 99;
	terminal = ioctl(controller, TIOCGPTPEER, O_RDWR | O_NOCTTY);
	error = ret(ioctl(terminal, TIOCSTI, "x"));
	close(terminal);
	close(controller);
	return error;
}

#endif
