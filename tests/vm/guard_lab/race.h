/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Races for an exec or an executable mapping: something trusted is named, and something else lies there when it is used. Each
 * technique has one attempt, played many times, and mostly somebody who changes the file, the path or the mount beside it all the
 * time. A win: code that nobody signed ran with privilege. While the guard is open the same has to win, else a technique shows nothing.
 * Part of lab.c, included there once.
 */
#define WON 77
#define RACE_GOOD "/usr/bin/good"
#define RACE_EVIL "/tmp/evil"
#define RACE_PAGE "/usr/lib/race/page" /* a page of code that returns 0 */
#define RACE_DIR "/tmp/race/"

/* mov eax, WON; ret, and the same with 0. */
static const unsigned char RACE_CODE[] = {0xb8, WON, 0, 0, 0, 0xc3}, RACE_CALM[] = {0xb8, 0, 0, 0, 0, 0xc3};
static unsigned char race_good[16384], race_evil[16384];
static ssize_t race_good_size, race_evil_size;
static volatile struct {
	int stop;
	unsigned dice;
} *race_shared;
static pid_t race_other; /* who changes things */

/* ---- small tools ---- */

static unsigned race_roll(unsigned below)
{
	unsigned dice = race_shared->dice * 1664525u + 1013904223u;

	race_shared->dice = dice;
	return (dice >> 8) % below;
}

/* Turns of an empty loop: for a system call's time, and for a few of them. */
#define RACE_SHORT 4000
#define RACE_LONG 400000

static void race_wait(unsigned most)
{
	for (volatile unsigned i = race_roll(most); i; i--)
		;
}

static ssize_t race_read(const char *path, unsigned char *into)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t size = read(fd, into, sizeof(race_good));

	close(fd);
	return size;
}

static void race_write(int fd, bool evil)
{
	if (pwrite(fd, evil ? race_evil : race_good, evil ? race_evil_size : race_good_size, 0) < 0)
		return; /* whoever executes it keeps us out */
}

static void race_write_file(const char *path, bool evil)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0755);

	race_write(fd, evil);
	close(fd);
}

static void race_write_page(const char *path, bool evil)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0755);

	if (pwrite(fd, evil ? RACE_CODE : RACE_CALM, sizeof(RACE_CODE), 0) < 0)
		perror(path);
	close(fd);
}

static int race_exec(const char *path)
{
	execve(path, (char *[]){"race", NULL}, (char *[]){NULL});
	return errno;
}

/* Code at an address: what it returns, when it belongs to a privileged process. */
static int race_call(void *at)
{
	int (*code)(void) = (int (*)(void))at;
	int result = code();

	return result == WON && getuid() != 0 ? 0 : result;
}

static void race_thread_ends(int signal)
{
	(void)signal;
	if (gettid() != getpid())
		syscall(SYS_exit, 0);
	_exit(99);
}

/* A thread of this process, or (`flags`) another process with its memory. */
static void race_thread(int (*run)(void *), void *argument, int flags)
{
	static char stack[65536] __attribute__((aligned(16)));
	struct sigaction action = {.sa_handler = race_thread_ends};

	sigaction(SIGSEGV, &action, NULL);
	if (clone(run, stack + sizeof(stack), flags, argument) < 0)
		_exit(98);
}

#define RACE_THREAD (CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD)

/* ---- names: what lies at the path ---- */

static void rename_prepare(void)
{
	unlink("/signed/prog");
	unlink("/signed/other");
	check_or_stop(link("/signed/good", "/signed/prog") || link("/signed/evil", "/signed/other"), "/signed/prog");
}

static void rename_change(unsigned turn)
{
	unlink("/signed/next");
	if (link(turn % 2 ? "/signed/good" : "/signed/evil", "/signed/next") || rename("/signed/next", "/signed/prog"))
		perror("rename");
}

static int rename_try(void) { return race_exec("/signed/prog"); }

static void exchange_change(unsigned turn)
{
	(void)turn;
	syscall(SYS_renameat2, AT_FDCWD, "/signed/prog", AT_FDCWD, "/signed/other", RENAME_EXCHANGE);
}

static int execveat_try(void)
{
	int fd = open("/signed/prog", O_PATH | O_CLOEXEC);

	race_wait(RACE_SHORT);
	syscall(SYS_execveat, fd, "", (char *[]){"race", NULL}, (char *[]){NULL}, AT_EMPTY_PATH);
	return errno;
}

static void symlink_change(unsigned turn)
{
	unlink(RACE_DIR "next");
	if (symlink(turn % 2 ? RACE_GOOD : RACE_EVIL, RACE_DIR "next") || rename(RACE_DIR "next", RACE_DIR "link"))
		perror("symlink");
}

static void symlink_prepare(void) { symlink_change(1); }
static int symlink_try(void) { return race_exec(RACE_DIR "link"); }
/* A script of the sealed tree whose interpreter is that link. */
static int interpreter_try(void) { return race_exec("/usr/bin/racing"); }

static int directory_thread(void *unused)
{
	(void)unused;
	for (;;)
		if (chdir("/tmp/race/other") || chdir("/usr/bin"))
			return 1;
}

static int directory_try(void)
{
	if (chdir("/usr/bin"))
		return errno;
	race_thread(directory_thread, NULL, RACE_THREAD);
	race_wait(RACE_LONG);
	return race_exec("./good");
}

/* ---- mounts ---- */

static void bind_prepare(void)
{
	put("/mnt/race", "", 0755);
	check_or_stop(mount(RACE_GOOD, "/mnt/race", NULL, MS_BIND, NULL), "/mnt/race");
}

static void bind_change(unsigned turn)
{
	(void)turn;
	if (mount(RACE_EVIL, "/mnt/race", NULL, MS_BIND, NULL))
		return;
	race_wait(RACE_LONG);
	umount2("/mnt/race", MNT_DETACH);
}

static int bind_try(void) { return race_exec("/mnt/race"); }
static void bind_clean(void) { umount2("/mnt/race", MNT_DETACH); }

/* In a namespace of its own root may mount over /usr; who tries goes there. */
static void namespace_change(unsigned turn)
{
	if (!turn && (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)))
		_exit(1);
	if (mount(RACE_EVIL, RACE_GOOD, NULL, MS_BIND, NULL))
		return;
	race_wait(RACE_LONG);
	umount2(RACE_GOOD, MNT_DETACH);
}

static int namespace_try(void)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/ns/mnt", race_other);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (setns(fd, CLONE_NEWNS))
		return 98;
	return race_exec(RACE_GOOD);
}

/* An overlay over the sealed tree, made anew for each try, so that the file is copied up anew. */
static int overlay_mount(const char *options)
{
	umount2("/mnt/layers", MNT_DETACH);
	unlink(RACE_DIR "upper/good");
	unlink(RACE_DIR "upper/page");
	return ret(mount("overlay", "/mnt/layers", "overlay", 0, options));
}

#define OVERLAY ",upperdir=" RACE_DIR "upper,workdir=" RACE_DIR "work"

static void overlay_exec_change(unsigned turn)
{
	int fd = open("/mnt/layers/good", O_WRONLY | O_CLOEXEC);

	race_write(fd, turn % 4 != 3);
	close(fd);
}

static int overlay_exec_try(void)
{
	int error = overlay_mount("lowerdir=/usr/bin" OVERLAY);

	if (error)
		return error + 100;
	race_wait(RACE_LONG);
	return race_exec("/mnt/layers/good");
}

static void overlay_map_change(unsigned turn)
{
	int fd = open("/mnt/layers/page", O_WRONLY | O_CLOEXEC);

	(void)turn;
	if (fd >= 0 && pwrite(fd, RACE_CODE, sizeof(RACE_CODE), 0) < 0)
		perror("page");
	close(fd);
}

static int map_and_call(const char *path, unsigned wait)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	race_wait(wait);
	void *at = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0);
	if (at == MAP_FAILED)
		return errno;
	race_wait(wait);
	return race_call(at);
}

static int overlay_map_try(void)
{
	int error = overlay_mount("lowerdir=/usr/lib/race" OVERLAY);

	if (error)
		return error + 100;
	race_wait(RACE_LONG);
	return map_and_call("/mnt/layers/page", RACE_SHORT);
}

static void overlay_clean(void) { umount2("/mnt/layers", MNT_DETACH); }

/* ---- contents: what is in the file ---- */

static void write_prepare(void) { race_write_file(RACE_DIR "file", false); }
static void write_change(unsigned turn) { race_write_file(RACE_DIR "file", turn % 2); }
static int write_try(void) { return race_exec(RACE_DIR "file"); }

/* Through a descriptor that was open for writing before anybody executed the file. */
static void held_change(unsigned turn)
{
	static int fd;

	if (!turn)
		fd = open(RACE_DIR "file", O_RDWR | O_CLOEXEC);
	race_write(fd, turn % 2);
}

static void map_prepare(void) { race_write_page(RACE_DIR "page", false); }
static void map_change(unsigned turn) { race_write_page(RACE_DIR "page", turn % 2); }
static int map_try(void) { return map_and_call(RACE_DIR "page", RACE_SHORT); }

/* A file that gets a good signature while somebody writes into it. */
static void verity_change(unsigned turn)
{
	int fd = open("/signed/fresh", O_WRONLY | O_CLOEXEC);

	(void)turn;
	if (fd < 0)
		return;
	race_wait(RACE_SHORT);
	race_write(fd, true);
	close(fd);
}

static int verity_try(void)
{
	static unsigned char signature[4096];
	struct fsverity_enable_arg arg = {.version = 1, .hash_algorithm = 1, .block_size = 4096};
	int fd;

	arg.sig_size = race_read("/usr/lib/good.sig", signature);
	arg.sig_ptr = (unsigned long)signature;
	unlink("/signed/fresh");
	race_write_file("/signed/fresh", false);
	race_wait(5 * RACE_SHORT);
	fd = open("/signed/fresh", O_RDONLY | O_CLOEXEC);
	ioctl(fd, FS_IOC_ENABLE_VERITY, &arg);
	close(fd);
	return race_exec("/signed/fresh");
}

static int memfd_thread(void *fd)
{
	race_wait(RACE_SHORT);
	race_write((int)(long)fd, true);
	fcntl((int)(long)fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW);
	return 0;
}

static int memfd_try(void)
{
	int fd = memfd_create("race", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	race_write(fd, false);
	race_thread(memfd_thread, (void *)(long)fd, RACE_THREAD);
	race_wait(RACE_SHORT);
	syscall(SYS_execveat, fd, "", (char *[]){"race", NULL}, (char *[]){NULL}, AT_EMPTY_PATH);
	return errno;
}

/* ---- memory and credentials ---- */

static int dirty_thread(void *at)
{
	race_wait(RACE_SHORT);
	memcpy(at, RACE_CODE, sizeof(RACE_CODE));
	return 0;
}

/* A private copy of a sealed page is written by one thread while the other makes it executable. */
static int dirty_try(void)
{
	int fd = open(RACE_PAGE, O_RDONLY | O_CLOEXEC);
	void *at = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);

	if (at == MAP_FAILED)
		return errno;
	race_thread(dirty_thread, at, RACE_THREAD);
	race_wait(RACE_SHORT);
	if (mprotect(at, 4096, PROT_READ | PROT_EXEC))
		return errno;
	race_wait(RACE_SHORT);
	return race_call(at);
}

static void *volatile race_mapped;
static volatile int race_refused;

/* Gives up all privileges and maps code into the memory that it shares with a privileged process. */
static int drop_thread(void *unused)
{
	int fd = open(RACE_DIR "code", O_RDONLY);

	(void)unused;
	if (syscall(SYS_setresgid, 1000, 1000, 1000) || syscall(SYS_setresuid, 1000, 1000, 1000))
		return 1;
	void *at = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0);
	race_refused = at == MAP_FAILED ? errno : 0;
	race_mapped = at;
	for (;;)
		pause();
}

static void drop_prepare(void) { race_write_page(RACE_DIR "code", true); }

static int drop_try(void)
{
	race_mapped = NULL;
	race_thread(drop_thread, NULL, race_roll(2) ? RACE_THREAD : CLONE_VM | SIGKILL);
	for (int i = 0; i < 2000 && !race_mapped; i++)
		sched_yield();
	if (!race_mapped)
		return 97;
	return race_mapped == MAP_FAILED ? race_refused : race_call(race_mapped);
}

static int flicker_thread(void *unused)
{
	(void)unused;
	for (;;)
		if (syscall(SYS_setresuid, -1, 1000, -1) || syscall(SYS_setresuid, -1, 0, -1))
			return 1;
}

static int exec_thread(void *unused)
{
	(void)unused;
	if (race_roll(2) && syscall(SYS_setresuid, 1000, 1000, 1000))
		return 1;
	race_wait(RACE_SHORT);
	return race_exec(RACE_EVIL);
}

/* One thread executes, of this one or that one's credentials, while the other's come and go. */
static int credentials_try(void)
{
	if (race_roll(2)) {
		race_thread(flicker_thread, NULL, RACE_THREAD);
		race_wait(RACE_SHORT);
		return race_exec(RACE_EVIL);
	}
	race_thread(exec_thread, NULL, RACE_THREAD);
	for (int i = 0; i < 400; i++)
		if (syscall(SYS_setresuid, -1, 1000, -1) || syscall(SYS_setresuid, -1, 0, -1))
			return 98;
	return EPERM; /* the other one is still here: refused */
}

/* ---- the list ---- */

static const struct race {
	const char *name;
	void (*prepare)(void);
	void (*change)(unsigned turn); /* beside the tries, all the time */
	int (*attempt)(void);
	void (*clean)(void);
} RACES[] = {
	{"rename", rename_prepare, rename_change, rename_try, NULL},
	{"exchange", rename_prepare, exchange_change, rename_try, NULL},
	{"execveat", rename_prepare, exchange_change, execveat_try, NULL},
	{"symlink", symlink_prepare, symlink_change, symlink_try, NULL},
	{"interpreter", symlink_prepare, symlink_change, interpreter_try, NULL},
	{"directory", NULL, NULL, directory_try, NULL},
	{"bind", bind_prepare, bind_change, bind_try, bind_clean},
	{"namespace", NULL, namespace_change, namespace_try, NULL},
	{"overlay_exec", NULL, overlay_exec_change, overlay_exec_try, overlay_clean},
	{"overlay_map", NULL, overlay_map_change, overlay_map_try, overlay_clean},
	{"write", write_prepare, write_change, write_try, NULL},
	{"held", write_prepare, held_change, write_try, NULL},
	{"map_then_write", map_prepare, map_change, map_try, NULL},
	{"verity", NULL, verity_change, verity_try, NULL},
	{"memfd", NULL, NULL, memfd_try, NULL},
	{"dirty_page", NULL, NULL, dirty_try, NULL},
	{"shared_memory", drop_prepare, NULL, drop_try, NULL},
	{"credentials", NULL, NULL, credentials_try, NULL},
};

static void race_play(const struct race *race, int tries)
{
	int counts[4] = {0}, status; /* wins, the trusted one ran, refused, anything else */
	long long started = now_us();

	race_shared->stop = 0;
	if (race->prepare)
		race->prepare();
	race_other = race->change ? fork() : 0;
	if (race->change && race_other == 0) {
		for (unsigned turn = 0; !race_shared->stop; turn++)
			race->change(turn);
		_exit(0);
	}
	for (int i = 0; i < tries; i++) {
		pid_t pid = fork();

		if (pid == 0)
			_exit(race->attempt() & 0xff);
		waitpid(pid, &status, 0);
		int code = WIFEXITED(status) ? WEXITSTATUS(status) : 99;
		counts[code == WON ? 0 : code == 0 ? 1 : code == EPERM ? 2 : 3]++;
	}
	race_shared->stop = 1;
	if (race->change)
		waitpid(race_other, NULL, 0);
	if (race->clean)
		race->clean();
	printf("@race {\"mode\":\"%s\",\"technique\":\"%s\",\"tries\":%d,\"wins\":%d,\"trusted\":%d,\"refused\":%d,\"other\":%d,\"ms\":%lld}\n",
	       MODES[phase], race->name, tries, counts[0], counts[1], counts[2], counts[3], (now_us() - started) / 1000);
	fflush(stdout);
}

static void race_begin(void)
{
	static const char *const PLACES[] = {RACE_DIR, RACE_DIR "other", RACE_DIR "upper", RACE_DIR "work", "/mnt/layers"};
	static unsigned char signature[4096];
	struct fsverity_enable_arg arg = {.version = 1, .hash_algorithm = 1, .block_size = 4096};
	int fd;

	race_shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	race_shared->dice = now_us();
	for (size_t i = 0; i < sizeof(PLACES) / sizeof(PLACES[0]); i++)
		mkdir(PLACES[i], 0755);
	race_good_size = race_read(RACE_GOOD, race_good);
	race_evil_size = race_read(RACE_EVIL, race_evil);
	check_or_stop(race_good_size <= 0 || race_evil_size <= 0, "the programs of the races");
	race_write_file("/signed/good", false);
	race_write_file("/signed/evil", true);
	race_write_file(RACE_DIR "other/good", true);
	arg.sig_size = race_read("/usr/lib/good.sig", signature);
	arg.sig_ptr = (unsigned long)signature;
	fd = open("/signed/good", O_RDONLY | O_CLOEXEC);
	check_or_stop(ioctl(fd, FS_IOC_ENABLE_VERITY, &arg), "/signed/good");
	close(fd);
}

/* Each technique so many times, before the latch and behind it. */
static void race_all(int tries)
{
	for (size_t i = 0; i < sizeof(RACES) / sizeof(RACES[0]); i++)
		race_play(&RACES[i], tries);
}
