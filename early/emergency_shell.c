/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an emergency session runs, static: /usr/lib/freehold/emergency-shell [-c COMMAND], as root's login shell in the
 * emergency sshd's own accounts.
 *
 * From the exec of this program on the guard lets the session bypass the lock, so nothing that root wrote may steer what it
 * starts: it goes back to the machine's own mounts and puts four things in front of them, in a mount namespace of the
 * session's own: the image's /etc, the sshd's few devices with the session's terminal, an empty home, /proc. There it
 * starts bash without start-up files. The machine's own are below /proc/1/root. It stays as the parent of all that the session leaves behind, and takes it along when the session
 * ends, be it that bash ends or that sshd does.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define BASH "/usr/bin/bash"
#define HOME "/root"
#define JOURNAL "/run/systemd/journal/socket"
/* Of data/usr/lib/systemd/catalog/freehold.catalog. */
#define BEGINS "61d189d958fc47eb9af7dbac314319f4"
#define BEGINS_LOCKED "8f8dcdd0864a4263ac370e5b8eee1b9c"
#define ENDS "f01d5e7d47024ca99250fe0bae098cad"
#define MAX_TERM 32
#define MAX_PEER 64

static char peer[MAX_PEER + 1]; /* address and port of the client, as sshd says */
static int kernel_log = -1;

static int fail(const char *what)
{
	fprintf(stderr, "emergency-shell: %s: %s\n", what, strerror(errno));
	return 1;
}

/* ---- what is said ---- */

/* In the journal, and by the kernel's log on every console. */
__attribute__((format(printf, 2, 3))) static void tell(const char *id, const char *format, ...)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = JOURNAL };
	char text[256], message[512];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	int length = snprintf(message, sizeof(message),
			      "MESSAGE=%s\nPRIORITY=2\nSYSLOG_IDENTIFIER=freehold\nMESSAGE_ID=%s\nFREEHOLD_PEER=%s\n", text, id, peer);
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || sendto(fd, message, (size_t)length, MSG_NOSIGNAL | MSG_DONTWAIT, (struct sockaddr *)&address, sizeof(address)) < 0)
		fprintf(stderr, "emergency-shell: the journal does not hear: %s\n", strerror(errno));
	close(fd);
	if (kernel_log >= 0)
		dprintf(kernel_log, "<2>freehold: %s\n", text);
}

/* ---- surroundings ---- */

/* The value of a variable of sshd's if it is short and plain, else "". */
static void plain(const char *name, const char *alphabet, char *out, size_t size)
{
	const char *value = getenv(name);

	if (value && strlen(value) < size && strspn(value, alphabet) == strlen(value))
		strcpy(out, value);
}

/* Whether this session bypasses the lock: code in memory is what the guard refuses to everybody else who is privileged. */
static bool is_exempt(void)
{
	void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return page != MAP_FAILED && munmap(page, 4096) == 0;
}

/* The machine's mounts, as they are, with four in front of them that only this session sees. */
static int settle(void)
{
	int devices = (int)syscall(SYS_open_tree, AT_FDCWD, "/dev", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);
	int first = pidfd_open(1, 0);

	if (devices < 0)
		return fail("/dev");
	if (first < 0 || setns(first, CLONE_NEWNS) != 0 || unshare(CLONE_NEWNS) != 0)
		return fail("the machine's mounts");
	close(first);
	if (mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) != 0)
		return fail("mounts of its own");
	if (mount("/usr/etc", "/etc", NULL, MS_BIND, NULL) != 0 || mount(NULL, "/etc", NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL) != 0)
		return fail("/etc");
	kernel_log = open("/dev/kmsg", O_WRONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
	/* A changed /dev/tty or /dev/fd would type into what the session runs. */
	if (syscall(SYS_move_mount, devices, "", AT_FDCWD, "/dev", MOVE_MOUNT_F_EMPTY_PATH) != 0)
		return fail("/dev");
	close(devices);
	if (mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) != 0)
		return fail("/proc");
	if (mount("home", HOME, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0700") != 0 || chdir(HOME) != 0)
		return fail(HOME);
	umask(022);
	return 0;
}

/* ---- the session ---- */

static void start(const char *command, char *const environment[])
{
	char *interactive[] = { "bash", "--noprofile", "--norc", NULL };
	char *single[] = { "bash", "--noprofile", "--norc", "-c", (char *)command, NULL };
	sigset_t none;

	for (int number = 1; number < NSIG; number++)
		signal(number, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	execve(BASH, command ? single : interactive, environment);
	_exit(fail(BASH));
}

/* Ends what is left of the session: all of it has become, or becomes, a child of ours. */
static void end_children(void)
{
	char path[64];
	int child;

	snprintf(path, sizeof(path), "/proc/self/task/%d/children", getpid());
	for (;;) {
		FILE *list = fopen(path, "re");

		while (list && fscanf(list, "%d", &child) == 1)
			kill(child, SIGKILL);
		if (list)
			fclose(list);
		if (waitpid(-1, NULL, 0) < 0)
			return;
	}
}

int main(int argc, char **argv)
{
	static char term[MAX_TERM + 6] = "TERM=dumb";
	static char *const environment[] = {
		"PATH=/usr/sbin:/usr/bin", "LANG=C.UTF-8", "HOME=" HOME, "USER=root", "LOGNAME=root", "SHELL=" BASH, "PS1=emergency# ",
		"INPUTRC=/usr/lib/freehold/emergency.inputrc", "HISTFILE=", term, NULL,
	};
	bool single = argc == 3 && strcmp(argv[1], "-c") == 0;
	char name[MAX_TERM] = "", client[MAX_PEER] = "";
	siginfo_t ended;
	int status = 1;
	sigset_t watched;

	if (argc != 1 && !single)
		return 2;
	plain("TERM", "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.+-_", name, sizeof(name));
	plain("SSH_CLIENT", "0123456789abcdefABCDEF.:% ", client, sizeof(client));
	if (name[0])
		snprintf(term, sizeof(term), "TERM=%s", name);
	strcpy(peer, client[0] ? client : "somewhere");
	if (close_range(STDERR_FILENO + 1, ~0u, 0) != 0 || settle() != 0)
		return 1;
	if (!is_exempt()) {
		fprintf(stderr, "This session does NOT bypass the lock: another one does, or this is not the emergency sshd's.\n");
		tell(BEGINS_LOCKED, "emergency ssh: a session from %s that does not bypass the lock", peer);
	} else {
		tell(BEGINS, "emergency ssh: a session from %s bypasses the lock", peer);
		if (!single)
			fprintf(stderr, "This session bypasses the lock, and all of it ends with it. /etc and /dev are its own; the machine's are "
					"/proc/1/root/etc and /proc/1/root/dev.\n");
	}
	/* The loop below is told of the children, and of sshd's end; the terminal's keys are for the shell. */
	sigemptyset(&watched);
	for (int number = SIGHUP; number <= SIGTERM; number++)
		sigaddset(&watched, number);
	sigaddset(&watched, SIGCHLD);
	sigaddset(&watched, SIGTSTP);
	sigaddset(&watched, SIGTTIN);
	sigaddset(&watched, SIGTTOU);
	sigprocmask(SIG_BLOCK, &watched, NULL);
	pid_t parent = getppid();
	if (prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0 || prctl(PR_SET_PDEATHSIG, SIGTERM, 0, 0, 0) != 0)
		return fail("prctl");
	pid_t shell = fork();
	if (shell == 0)
		start(single ? argv[2] : NULL, environment);
	if (shell < 0)
		return fail("fork");
	bool over = getppid() != parent; /* it ended before we would have been told */
	while (!over) {
		int number = sigwaitinfo(&watched, &ended);
		pid_t child;
		int how;

		over = number == SIGHUP || number == SIGTERM;
		while ((child = waitpid(-1, &how, WNOHANG)) > 0) {
			if (child != shell)
				continue;
			status = WIFEXITED(how) ? WEXITSTATUS(how) : 128 + WTERMSIG(how);
			over = true;
		}
	}
	end_children();
	tell(ENDS, "emergency ssh: the session from %s ended", peer);
	return status;
}
