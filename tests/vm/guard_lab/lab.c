// SPDX-License-Identifier: Apache-2.0
/*
 * The guard's laboratory: PID 1 of a small guest. It builds a sealed overlay, loads the guard, moves into the overlay
 * as a real machine does, and plays one list of checks three times: open (the controls), audit, locked.
 * Each result is one line on the console, `@@ {"mode":…,"check":…,"got":ERRNO}`; the test knows what to expect.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/fsverity.h>
#include <linux/perf_event.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/socket.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include "../../../bpf/guard.h"
#include "../../../early/guard.h"

#define LAB "/usr/bin/lab"
#define PINS "/sys/fs/bpf/freehold/"

static const char *const MODES[] = {"open", "audit", "locked"};
static int phase;
static pid_t victim; /* a sleeping root process */

/* ---- small tools ---- */

static int ret(long result)
{
	return result < 0 ? errno : 0;
}

static int done(int fd)
{
	int error = fd < 0 ? errno : 0;

	if (fd >= 0)
		close(fd);
	return error;
}

static int copy(const char *from, const char *to, mode_t mode)
{
	char buffer[65536];
	int in = open(from, O_RDONLY), out;
	ssize_t size;

	unlink(to);
	out = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (in < 0 || out < 0)
		return errno;
	while ((size = read(in, buffer, sizeof(buffer))) > 0)
		if (write(out, buffer, size) != size)
			return errno;
	fchmod(out, mode);
	close(in);
	close(out);
	return 0;
}

static void put(const char *path, const char *text, mode_t mode)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		perror(path);
	fchmod(fd, mode);
	close(fd);
}

static int spawn(char *const argv[], char *const env[])
{
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		execve(argv[0], argv, env);
		_exit(errno);
	}
	waitpid(pid, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

#define RUN(...) spawn((char *[]){__VA_ARGS__, NULL}, (char *[]){NULL})

static long bpf(int command, union bpf_attr *attr)
{
	return syscall(SYS_bpf, command, attr, sizeof(*attr));
}

#include "checks.h"
#include "secrets.h"
#include "emergency.h"
#include "veterans.h"
#include "scripts.h"

/* ---- the list ---- */

enum who { ROOT, USER, CONTAINER /* root of a user's own user namespace */ };

#define C(name) {#name, name, ROOT}
#define U(name) {"user_" #name, name, USER}
#define N(name) {"container_" #name, name, CONTAINER}
static const struct check {
	const char *name;
	int (*run)(void);
	enum who who;
} CHECKS[] = {
	C(exec_unsigned), C(exec_script), C(exec_sealed), C(exec_sealed_script), C(exec_dynamic), C(exec_signed),
	C(exec_verity_unsigned), C(exec_memfd), C(ld_so_file), C(preload), C(python_ctypes), C(python_callback), C(jit_allowed), C(map_anonymous),
	C(protect_anonymous), C(map_unsigned), C(map_sealed), C(map_sealed_writable), C(protect_unsigned),
	C(protect_sealed), C(protect_sealed_writable), C(protect_modified), C(shared_memory_drop), C(veteran_thread),
	C(veteran_process), C(veteran_user), C(module_unsigned),
	C(module_sealed), C(module_buffer), C(ptrace_init), C(ptrace_root), C(vm_write), C(own_memory_file),
	C(core_pattern), C(modprobe_path), C(harmless_sysctl), C(ipe_enforce), C(apparmor_remove),
	C(block_write), C(block_read), C(rawio), C(mount_usr), C(mount_etc), C(mount_tmp), C(bind_etc_file),
	C(bind_usr_new_interface), C(mount_usr_own_namespace), C(move_a_mount), C(remount_propagation), C(pivot),
	C(lazy_parent), C(lazy_leaf), C(pin_remove), C(pin_rename), C(bpffs_umount), C(mode_map_write),
	C(inode_map_write), C(mode_map_read), C(denials_map_write), C(denials_map_read), C(other_map_write), C(load_tracepoint), C(load_socket_filter), C(latch_down), C(latch_all_code), C(owner_read),
	C(owner_write), C(owner_deep_write), C(owner_truncate), C(owner_create), C(owner_temporary), C(owner_link_in),
	C(owner_link_out), C(owner_symlink), C(owner_mkdir), C(owner_rmdir), C(owner_mknod), C(owner_unlink),
	C(owner_rename_in), C(owner_rename_out), C(owner_rename_self), C(owner_chmod), C(owner_chown),
	C(owner_setxattr), C(owner_removexattr), C(owner_flags), C(owner_through_bind), C(outside_write),
	C(secret_read), C(secret_list), C(secret_through_bind), C(secret_through_path_descriptor),
	C(secret_through_overlay), C(secret_through_mount), C(secret_by_handle), C(owner_by_handle), C(secret_partition),
	C(secret_partition_as_udev), C(secret_disk), C(secret_disk_by_node), C(scsi_generic), C(disk_unbind),
	C(module_hands_out_disks), C(perf_event), C(tracefs_write), C(bpf_reads_memory), C(bpf_reads_memory_as_admin),
	C(admin_after_load), C(another_program), C(updater_reads), C(updater_child), C(updater_next_program),
	C(updater_reads_etc), C(updater_without_launcher), C(updater_copied_launcher), C(updater_in_namespace),
	C(updater_in_pid_namespace), C(updater_in_jail), C(updater_filtered),
	C(updater_shared_directories), C(updater_looked_into), C(updater_memory), C(updater_attached),
	C(others_looked_into), C(mount_over_owner), C(mount_over_owner_disk), C(umount_owner_disk),
	C(mount_usr_through_peer), C(mount_usr_in_peer_namespace),
	C(umount_bpffs_in_peer_namespace),
	C(dash_script), C(bash_script), C(dash_source), C(bash_source), C(bash_source_as_input), C(bash_source_input),
	C(bash_in_subshell), C(bash_child_reads), C(dash_starts_unsigned), C(dash_script_says_so), C(bash_environment), C(etc_changed_source), C(python_script), C(python_script_link),
	C(python_script_called_library), C(python_script_called_link), C(python_script_called_here),
	C(python_script_options), C(python_script_dashes), C(python_import), C(perl_script), C(perl_options), C(perl_import),
	C(sealed_shell_script), C(sealed_source), C(etc_source), C(shell_reads_input), C(dash_reads_input),
	C(shell_reads_kernel), C(shell_names_image), C(shell_reads_accounts), C(bash_accounts_as_script), C(bash_other_accounts), C(shell_pipe), C(shell_heredoc), C(shell_writes), C(python_sealed_script),
	C(python_sealed_directory), C(python_sealed_here), C(python_sealed_other_name), C(python_sealed_link), C(python_command), C(perl_command), C(old_script_reads_data), C(veteran_script_reads_data),
	C(emergency_unsigned), C(emergency_grandchild), C(emergency_source), C(emergency_anonymous), C(emergency_owner),
	C(emergency_loader_list), C(emergency_host_key), C(emergency_shell_alone), C(emergency_without_launcher),
	C(emergency_copied_launcher), C(emergency_detour), C(emergency_by_auth), C(emergency_in_namespace),
	C(emergency_shared_directories), C(emergency_filtered), C(emergency_second_session), C(emergency_child_after_end),
	C(emergency_while_stopped), C(emergency_looked_into), C(emergency_attached), C(emergency_entered),
	C(emergency_auth_looked_into), C(terminal_typed),
	U(exec_unsigned), U(exec_script), U(exec_memfd), U(ld_so_file), U(preload), U(map_anonymous), U(map_unsigned),
	U(protect_modified), U(ptrace_own), U(own_memory_file), U(setuid_unsigned), U(setgid_unsigned),
	U(dash_script), U(bash_source), U(python_script), U(python_import), U(perl_script), U(bash_child_reads),
	U(exec_sealed), U(exec_sealed_script), U(exec_dynamic), U(exec_signed), U(jit_allowed), U(map_sealed), U(sealed_shell_script),
	U(sealed_source), U(etc_source), U(shell_reads_input), U(python_sealed_script), U(python_sealed_link), U(python_command),
	N(exec_unsigned), N(exec_script), N(exec_memfd), N(map_anonymous), N(map_unsigned), N(protect_modified),
	N(mount_usr_own_namespace), N(ptrace_own), N(dash_script), N(python_script), N(another_program_map), N(exec_sealed),
	N(python_command),
	C(dash_command), C(dash_standard_input), C(dash_prompt), C(bash_plus), C(bash_option_argument), C(bash_init_file), C(bash_cluster),
	C(python_module), C(perl_module), C(dash_fifo), C(dash_fifo_called_library), C(dash_plain_options), C(dash_by_itself), C(dash_lone_dash), C(dash_lone_dash_input),
	C(dash_script_reads_fifo), U(dash_command), U(dash_standard_input), U(dash_fifo), N(dash_command),
};

static int become(enum who who)
{
	if (who == ROOT)
		return 0;
	if (setgid(1000) || setuid(1000))
		return 1;
	/* Dropping privileges makes /proc/self root's; a fresh program is a user's in every respect. */
	return 0;
}

/* Runs one check in a process of its own; users' checks in a freshly executed lab, as after a login. */
static int play(const struct check *check)
{
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		char index[16];

		if (check->who == ROOT)
			_exit(check->run() & 0xff);
		snprintf(index, sizeof(index), "%d", (int)(check - CHECKS));
		if (become(check->who))
			_exit(98);
		execl(LAB, "lab", "check", index, MODES[phase], NULL);
		_exit(97);
	}
	waitpid(pid, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static void write_map(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		_exit(96);
	close(fd);
}

static int play_here(int index, const char *mode)
{
	phase = mode[0] == 'o' ? GUARD_OPEN : mode[0] == 'a' ? GUARD_AUDIT : GUARD_LOCKED;
	if (CHECKS[index].who == CONTAINER) {
		if (unshare(CLONE_NEWUSER | CLONE_NEWNS))
			return 95;
		write_map("/proc/self/setgroups", "deny");
		write_map("/proc/self/uid_map", "0 1000 1");
		write_map("/proc/self/gid_map", "0 1000 1");
	}
	return CHECKS[index].run() & 0xff;
}

static bool asked(const char *word)
{
	char text[4096] = "";
	int fd = open("/proc/cmdline", O_RDONLY);
	bool found = read(fd, text, sizeof(text) - 1) > 0 && strstr(text, word);

	close(fd);
	return found;
}

static long long now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000ll + ts.tv_nsec / 1000;
}

static void guardctl(const char *command, const char *argument)
{
	/* What the latch says with the mode: a word of its own on the kernel's command line. */
	const char *flags = strcmp(command, "latch") ? NULL : asked("lab.all-code") ? "all-code" : asked("lab.S2") ? "S2" : NULL;
	int status;
	pid_t pid;

	printf("@%s ", argument ? argument : command);
	fflush(stdout);
	pid = fork();
	if (pid == 0) {
		execl("/usr/bin/guardctl", "guardctl", command, argument, flags, NULL);
		_exit(90);
	}
	waitpid(pid, &status, 0);
	printf("@exit %s %d\n", argument ? argument : command, WEXITSTATUS(status));
}

static void play_all(void)
{
	long long started;

	victim = fork();
	if (victim == 0) {
		pause();
		_exit(0);
	}
	for (size_t i = 0; i < sizeof(CHECKS) / sizeof(CHECKS[0]); i++) {
		int got = play(&CHECKS[i]);

		printf("@@ {\"mode\":\"%s\",\"check\":\"%s\",\"got\":%d}\n", MODES[phase], CHECKS[i].name, got);
		fflush(stdout);
	}
	kill(victim, SIGKILL);
	waitpid(victim, NULL, 0);
	started = now_us();
	for (int i = 0; i < 200; i++)
		RUN(LAB, "ok");
	printf("@time spawn_%s %lld\n", MODES[phase], (now_us() - started) / 200);
	started = now_us();
	for (int i = 0; i < 5000; i++)
		done(open("/tmp/script", O_RDWR));
	printf("@time open_write_%s %lld\n", MODES[phase], (now_us() - started) / 5); /* ns each */
	guardctl("status", NULL);
	guardctl("denials", NULL);
}

/* What would end the guard if it were let through, so only tried under the lock, last. */
static void play_fatal(void)
{
	struct {
		const char *name;
		int got;
	} tries[] = {
		{"real_pin_unlink", ret(unlink(PINS "link_guard_exec"))},
		{"real_pin_directory", ret(rename("/sys/fs/bpf/freehold", "/sys/fs/bpf/x"))},
		{"real_bpffs_umount", ret(umount2("/sys/fs/bpf", 0))},
		{"real_bpffs_lazy", ret(umount2("/sys/fs/bpf", MNT_DETACH))},
		{"real_sys_lazy", ret(umount2("/sys", MNT_DETACH))},
		{"still_refused", exec_unsigned()},
	};

	for (size_t i = 0; i < sizeof(tries) / sizeof(tries[0]); i++)
		printf("@@ {\"mode\":\"locked\",\"check\":\"%s\",\"got\":%d}\n", tries[i].name, tries[i].got);
}

/* ---- the guest ---- */

static void check_or_stop(int bad, const char *what)
{
	if (bad) {
		printf("@fatal %s: %s\n", what, strerror(errno));
		fflush(stdout);
		reboot(RB_POWER_OFF);
	}
}

#include "race.h"

static void must_mount(const char *source, const char *target, const char *type, unsigned long flags, const char *data)
{
	mkdir(target, 0755);
	check_or_stop(mount(source, target, type, flags, data), target);
}

/* As the early boot program does it: sealed tree, guard, move, chroot, init. */
static void first_stage(void)
{
	static const char *const MOVED[] = {"/dev", "/proc", "/sys", "/tmp", "/sysroot", "/mnt", "/signed"};
	struct guard_config config;
	struct stat st;
	long long started;

	must_mount("proc", "/proc", "proc", 0, NULL);
	must_mount("sysfs", "/sys", "sysfs", 0, NULL);
	must_mount("dev", "/dev", "devtmpfs", 0, NULL);
	check_or_stop(mount("securityfs", "/sys/kernel/security", "securityfs", 0, NULL), "securityfs");
	must_mount("tmpfs", "/tmp", "tmpfs", 0, "mode=1777");
	must_mount("tmpfs", "/mnt", "tmpfs", 0, NULL);
	check_or_stop(module("/modules/overlay.ko.xz"), "overlay module");
	check_or_stop(module("/modules/virtio_blk.ko.xz"), "virtio_blk module");
	module("/modules/libcrc32c.ko.xz"); /* where it is a module */
	check_or_stop(module("/modules/erofs.ko.xz"), "erofs module");
	for (int i = 0; i < 100 && (access("/dev/vda", F_OK) || access("/dev/vdb1", F_OK)); i++)
		usleep(50000);
	must_mount("/dev/vdb1", "/sysroot", "ext4", 0, NULL);
	must_mount("/dev/vda", "/signed", "ext4", 0, NULL);
	/* On a machine the tree's names come from such an image: a file that the kernel reads when somebody asks. */
	check_or_stop(copy("/image", "/sysroot/image", 0644), "/sysroot/image");
	must_mount("/sysroot/image", "/mnt/image", "erofs", MS_RDONLY, NULL);
	must_mount("overlay", "/root", "overlay", 0, "lowerdir=/seal:/empty");
	/* As on a machine: over the sealed files a layer in memory. */
	must_mount("tmpfs", "/layer", "tmpfs", 0, NULL);
	copy("/evil", "/tmp/evil", 0755);
	check_or_stop(mkdir("/layer/upper", 0755) || mkdir("/layer/work", 0755), "/layer");
	must_mount("overlay", "/root/etc", "overlay", 0, "lowerdir=/root/etc,upperdir=/layer/upper,workdir=/layer/work");
	mkdir("/sysroot/owner", 0755);
	check_or_stop((errno = -guard_describe("/root", "/sysroot/owner", &config)), "guard_describe");
	check_or_stop(!config.disks[1].major || config.disks[2].major, "a partition and its disk");
	check_or_stop(stat("/root/usr/bin/jit", &st), "jit");
	config.jit_inodes[0] = st.st_ino;
	veterans_enlist();
	loop_start(LOOP_VETERAN_FD, "/root", "/usr/lib/loop");
	usleep(300000); /* until they have dropped what they had */
	started = now_us();
	check_or_stop(guard_load(&config), "guard_load");
	printf("@time load %lld\n", now_us() - started);
	for (size_t i = 0; i < sizeof(MOVED) / sizeof(MOVED[0]); i++) {
		char target[64];

		snprintf(target, sizeof(target), "/root%s", MOVED[i]);
		check_or_stop(mount(MOVED[i], target, NULL, MS_MOVE, NULL), target);
	}
	check_or_stop(chdir("/root") || mount("/root", "/", NULL, MS_MOVE, NULL) || chroot("."), "switch root");
	execl(LAB, "lab", "second", NULL);
	check_or_stop(1, LAB);
}

static int add_key_and_sign(void)
{
	char buffer[4096];
	int fd = open("/usr/lib/cert.der", O_RDONLY), ring = -1, error;
	ssize_t size = read(fd, buffer, sizeof(buffer));
	FILE *keys = fopen("/proc/keys", "r");
	char line[512];
	struct fsverity_enable_arg arg = {.version = 1, .hash_algorithm = 1, .block_size = 4096};

	close(fd);
	while (keys && fgets(line, sizeof(line), keys))
		if (strstr(line, " .fs-verity"))
			ring = strtol(line, NULL, 16);
	fclose(keys);
	if (syscall(SYS_add_key, "asymmetric", "", buffer, size, ring) < 0)
		return errno;
	copy(LAB, "/signed/unsigned", 0755);
	copy(LAB, "/signed/signed", 0755);
	fd = open("/signed/unsigned", O_RDONLY);
	error = ret(ioctl(fd, FS_IOC_ENABLE_VERITY, &arg));
	close(fd);
	if (error)
		return error;
	fd = open("/usr/lib/lab.sig", O_RDONLY);
	size = read(fd, buffer, sizeof(buffer));
	close(fd);
	arg.sig_ptr = (unsigned long)buffer;
	arg.sig_size = size;
	fd = open("/signed/signed", O_RDONLY);
	error = ret(ioctl(fd, FS_IOC_ENABLE_VERITY, &arg));
	close(fd);
	return error;
}

/* The races alone: a guest of its own, for they take long. */
static void races_only(int tries)
{
	race_begin();
	race_all(tries);
	guardctl("latch", "locked");
	phase = GUARD_LOCKED;
	race_all(tries);
	guardctl("status", NULL);
	printf("@end\n");
	fflush(stdout);
	reboot(RB_POWER_OFF);
}

static void second_stage(void)
{
	static const char *const PLACES[] = {"/mnt/move", "/mnt/bind", "/mnt/bpf", "/mnt/parent", "/mnt/leaf", "/tmp/place",
					     OWNER "a", OWNER "a/b", OWNER "a/b/c", OWNER "secret", OWNER "emergency", "/mnt/over", "/mnt/empty",
					     "/mnt/again", "/mnt/peer", "/mnt/jail"};
	char path[64];

	for (size_t i = 0; i < sizeof(PLACES) / sizeof(PLACES[0]); i++)
		mkdir(PLACES[i], 0755);
	for (int i = 0; i < 3; i++) {
		snprintf(path, sizeof(path), PINS "spare_%s", MODES[i]);
		mkdir(path, 0700);
		snprintf(path, sizeof(path), PINS "name_%s", MODES[i]);
		mkdir(path, 0700);
	}
	put("/sysroot/outside", "x", 0600);
	put(OWNER "file", "x", 0600);
	put(OWNER "gone", "x", 0600);
	put(OWNER "a/b/c/file", "x", 0600);
	put(SECRET "key", "x", 0600);
	put(SECRET "emergency-host-key", "x", 0600);
	put(OWNER "emergency/key", "x", 0600);
	put("/tmp/emergency.sh", "exit 7\n", 0600);
	put("/etc/ld.so.preload", "", 0644);
	must_mount("devpts", "/dev/pts", "devpts", 0, "ptmxmode=0666");
	unlink("/dev/kmsg"); /* or what sessions say would be among what we say */
	mkdir(OWNER "dir", 0700);
	setxattr(OWNER "file", "trusted.keep", "1", 1, 0);
	must_mount("tmpfs", "/mnt/move", "tmpfs", 0, NULL);
	check_or_stop(mount("/sysroot/owner", "/mnt/bind", NULL, MS_BIND, NULL), "bind");
	must_mount("tracefs", "/mnt/trace", "tracefs", 0, NULL);
	copy(LAB, "/tmp/lab", 0755);
	copy("/usr/bin/dyn", "/tmp/dyn", 0755);
	copy("/usr/lib/evil.so", "/tmp/evil.so", 0755);
	copy("/usr/lib/overlay.ko.xz", "/tmp/overlay.ko.xz", 0644);
	copy(LAB, "/tmp/exempt", 0755);
	copy(LAB, "/tmp/setuid", 04755);
	copy(LAB, "/tmp/setgid", 02755);
	put("/tmp/script", "#!/usr/bin/lab ok\n", 0755);
	scripts_write();
	loop_start(LOOP_FD, "/", "/tmp/loop");
	check_or_stop((errno = add_key_and_sign()), "fs-verity signature");
	/* The same files at another root: from there somebody could mount over its /usr. */
	check_or_stop(mount("/", "/mnt/jail", NULL, MS_BIND | MS_REC, NULL), "jail");
	if (getenv("races"))
		races_only(atoi(getenv("races")));
	guardctl("status", NULL);
	guardctl("preflight", NULL);
	play_all();
	guardctl("latch", "audit");
	phase = GUARD_AUDIT;
	play_all();
	guardctl("latch", "locked");
	phase = GUARD_LOCKED;
	play_all();
	play_fatal();
	guardctl("preflight", NULL);
	guardctl("latch", "audit");
	guardctl("status", NULL);
	printf("@end\n");
	fflush(stdout);
	reboot(RB_POWER_OFF);
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (strcmp(argv[0], "/usr/sbin/sshd") == 0)
		return sshd();
	if (argc == 3 && strcmp(argv[0], "sshd-session") == 0)
		return sshd_session(argv[1], argv[2]);
	if (argc == 3 && strcmp(argv[0], "sshd-auth") == 0)
		return sshd_auth(argv[1], argv[2]);
	if (argc == 3 && strcmp(argv[1], "detour") == 0)
		become_shell(argv[2]);
	if (argc == 2 && strcmp(argv[1], "loader-list") == 0)
		return loader_list();
	if (argc >= 2 && strcmp(argv[1], "ok") == 0)
		return 0;
	if (argc == 2 && strcmp(argv[1], "anonymous") == 0)
		return map_anonymous();
	if (argc == 2 && strcmp(argv[1], "secret") == 0)
		return secret_read();
	if (argc == 6 && strcmp(argv[5], "self-check") == 0) /* the launcher takes us for Python */
		return updater_program(argv[4]);
	if (argc == 4 && strcmp(argv[1], "check") == 0)
		return play_here(atoi(argv[2]), argv[3]);
	if (argc == 2 && strcmp(argv[1], "second") == 0)
		second_stage();
	else
		first_stage();
	return 1;
}
