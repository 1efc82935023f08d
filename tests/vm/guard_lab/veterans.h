/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Processes that run before the guard is loaded, as everything does on a machine that is locked while it runs. Each has
 * dropped its privileges and maps code when asked: two into the memory of a privileged process, one into a user's own.
 * Part of lab.c, included there once. Descriptors cross the lab's exec under fixed numbers.
 */
enum { VETERAN_THREAD, VETERAN_PROCESS, VETERAN_USER, VETERANS };
#define VETERAN_FD 100 /* request; its answer is the next one */

static int veteran(void *number)
{
	int fd = VETERAN_FD + 2 * (int)(long)number, error;
	char byte;

	if (syscall(SYS_setresgid, 1000, 1000, 1000) || syscall(SYS_setresuid, 1000, 1000, 1000))
		return 99;
	while (read(fd, &byte, 1) == 1) {
		/* The lab's own program in the initramfs, which nobody trusts. */
		error = map_file("/init", RX, 0, false);
		if (write(fd + 1, &error, sizeof(error)) < 0)
			break;
	}
	return 0;
}

static void veteran_start(int number, int flags)
{
	static char stacks[VETERANS + 1][65536] __attribute__((aligned(16)));

	if (clone(veteran, stacks[number + 1], flags, (void *)(long)number) < 0)
		_exit(1);
}

static void veterans_enlist(void)
{
	int request[2], answer[2], ends[VETERANS][2];

	for (int i = 0; i < VETERANS; i++) {
		if (pipe(request) || pipe(answer))
			return;
		ends[i][0] = request[1];
		ends[i][1] = answer[0];
		dup2(request[0], VETERAN_FD + 2 * i);
		dup2(answer[1], VETERAN_FD + 2 * i + 1);
		close(request[0]);
		close(answer[1]);
	}
	if (fork() == 0) {
		veteran_start(VETERAN_THREAD, CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD);
		veteran_start(VETERAN_PROCESS, CLONE_VM | SIGCHLD);
		for (;;)
			pause();
	}
	if (fork() == 0) {
		if (setgid(1000) || setuid(1000))
			_exit(1);
		veteran_start(VETERAN_USER, CLONE_VM | SIGCHLD);
		for (;;)
			pause();
	}
	for (int i = 0; i < VETERANS; i++) {
		dup2(ends[i][0], VETERAN_FD + 2 * i);
		dup2(ends[i][1], VETERAN_FD + 2 * i + 1);
		close(ends[i][0]);
		close(ends[i][1]);
	}
}

static int veteran_ask(int number)
{
	int fd = VETERAN_FD + 2 * number, error = 1001;

	return write(fd, "?", 1) == 1 && read(fd + 1, &error, sizeof(error)) == sizeof(error) ? error : 1002;
}

static int veteran_thread(void) { return veteran_ask(VETERAN_THREAD); }
static int veteran_process(void) { return veteran_ask(VETERAN_PROCESS); }
static int veteran_user(void) { return veteran_ask(VETERAN_USER); }
