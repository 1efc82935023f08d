/* SPDX-License-Identifier: Apache-2.0 */
/*
 * /init of a guest whose firmware knows our certificates: which policies of kernel inputs early/inputs.c gets into
 * force, and which modules the kernel then takes. Each answer is a line "@ NAME VALUE" on the console, a value being
 * 0 or an errno; the test knows what they should be.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fsverity.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "firmware.h"
#include "inputs.h"
#include "keyring.h"
#include "util.h"

#define COMPRESSED 4 /* MODULE_INIT_COMPRESSED_FILE */
#define LARGEST (4 << 20)

static unsigned char buffer[LARGEST], built_in[4096];

static void answer(const char *name, long value)
{
	printf("@ %s %ld\n", name, value);
}

/* Load a module from a file as kmod does: by descriptor, packed ones by the kernel's own unpacker. */
static int load(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return 1000 + errno;
	int error = syscall(SYS_finit_module, fd, "", strstr(path, ".xz") ? COMPRESSED : 0) < 0 ? errno : 0;
	close(fd);
	return error;
}

static int unload(const char *name)
{
	return syscall(SYS_delete_module, name, 0) < 0 ? errno : 0;
}

/* The same bytes without a file. */
static int load_buffer(const char *path)
{
	ssize_t length = read_file(path, buffer, sizeof(buffer));

	if (length < 0)
		return 1000 - (int)length;
	return syscall(SYS_init_module, buffer, length, "") < 0 ? errno : 0;
}

static int copy(const char *from, const char *to)
{
	ssize_t length = read_file(from, buffer, sizeof(buffer));
	int fd = open(to, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0755);
	int error = length < 0 || fd < 0 || write(fd, buffer, (size_t)length) != length ? EIO : 0;

	if (fd >= 0)
		close(fd);
	return error;
}

/* A file of the metadata layer that points to `object` and demands its digest, as an image has them. */
static int point(const char *path, const char *object)
{
	struct {
		struct fsverity_digest head;
		unsigned char bytes[32];
	} measured = { .head = { .digest_size = 32 } };
	unsigned char copied[36] = { 0, 36, 0, 1 };
	char below[128], redirect[64];
	struct stat status;

	snprintf(below, sizeof(below), "/mnt/objects/%s", object);
	snprintf(redirect, sizeof(redirect), "/%s", object);
	int source = open(below, O_RDONLY | O_CLOEXEC);
	int made = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
	if (source < 0 || made < 0 || fstat(source, &status) < 0 || ioctl(source, FS_IOC_MEASURE_VERITY, &measured) < 0)
		return errno;
	memcpy(copied + 4, measured.bytes, 32);
	if (ftruncate(made, status.st_size) < 0 ||
	    fsetxattr(made, "trusted.overlay.redirect", redirect, strlen(redirect), 0) < 0 ||
	    fsetxattr(made, "trusted.overlay.metacopy", copied, sizeof(copied), 0) < 0)
		return errno;
	close(source);
	close(made);
	return 0;
}

/* Make a verity file of `path` with the built-in signature in `signature`. */
static int sign(const char *path, const char *signature)
{
	ssize_t length = read_file(signature, built_in, sizeof(built_in));
	struct fsverity_enable_arg argument = {
		.version = 1, .hash_algorithm = FS_VERITY_HASH_ALG_SHA256, .block_size = 4096,
		.sig_size = length < 0 ? 0 : (unsigned)length, .sig_ptr = (unsigned long)built_in,
	};
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	int error = fd < 0 || ioctl(fd, FS_IOC_ENABLE_VERITY, &argument) < 0 ? errno : 0;

	if (fd >= 0)
		close(fd);
	return error;
}

static int run(const char *path)
{
	int status = 0;
	pid_t child = fork();

	if (child == 0) {
		execl(path, path, "works", NULL);
		_exit(errno);
	}
	waitpid(child, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1000;
}

static void build_overlay(void)
{
	static const char *const files[] = { "listed.ko.xz", "unlisted.ko.xz", "owner.ko", "unsigned.ko", "foreign.ko" };
	char path[64];
	int error = 0;

	mkdir("/mnt/meta", 0755);
	for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
		snprintf(path, sizeof(path), "/mnt/meta/%s", files[i]);
		error = error ? error : point(path, files[i]);
	}
	answer("layer", error);
	answer("overlay", mount("overlay", "/tree", "overlay", MS_RDONLY,
				"lowerdir=/mnt/meta::/mnt/objects,verity=require,metacopy=on,redirect_dir=on") < 0 ? errno : 0);
}

static void ask_policies(const char *name, const char *older)
{
	answer("no-file", -inputs_enforce("/nothere", name));
	answer("no-name", -inputs_enforce("/policy.p7", "x"));
	answer("foreign", -inputs_enforce("/foreign.p7", name));
	answer("tampered", -inputs_enforce("/tampered.p7", name));
	answer("detached", -inputs_enforce("/detached.p7", name));
	answer("older", -inputs_enforce("/older.p7", name));
	/* Nothing of all that is in force. */
	answer("unlisted-yet", load("/tree/unlisted.ko.xz"));
	answer("unload", unload("ifb"));
	answer("older-by-name", -inputs_enforce("/older.p7", older));
	answer("listed-by-older", load("/tree/listed.ko.xz"));
	answer("policy", -inputs_enforce("/policy.p7", name));
	answer("again", -inputs_enforce("/policy.p7", name));
}

static void ask_modules(void)
{
	answer("listed", load("/tree/listed.ko.xz"));
	answer("listed-object", unload("dummy") ? 1001 : load("/mnt/objects/listed.ko.xz"));
	answer("listed-elsewhere", unload("dummy") ? 1001 : load("/listed.ko.xz"));
	answer("listed-buffer", load_buffer("/owner.ko"));
	answer("unlisted", load("/tree/unlisted.ko.xz"));
	answer("program", run("/self"));
	/* Controls: only the next step refuses these. */
	answer("unsigned-open", load("/tree/unsigned.ko"));
	answer("foreign-open", load("/tree/foreign.ko"));
	answer("unload-unsigned", unload("macvlan"));
	answer("unload-foreign", unload("loop"));
	int fd = open("/sys/kernel/security/lockdown", O_WRONLY | O_CLOEXEC);
	answer("lockdown", fd < 0 || write(fd, "integrity", 9) < 0 ? errno : 0);
	close(fd);
	answer("unsigned", load("/tree/unsigned.ko"));
	answer("foreign-module", load("/tree/foreign.ko"));
	answer("owner", load("/tree/owner.ko"));
	answer("changed", load("/changed.ko"));
	answer("not-sealed", load("/mnt/signed.ko"));
	answer("signing", sign("/mnt/signed.ko", "/signed.p7"));
	answer("signed-file", load("/mnt/signed.ko"));
}

/* What the kernel said of it, for people: records that begin a line each. */
static void show_log(void)
{
	char record[1024];
	ssize_t length;
	int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);

	while (fd >= 0 && (length = read(fd, record, sizeof(record) - 1)) > 0) {
		record[length] = '\0';
		record[strcspn(record, "\n")] = '\0';
		if (strstr(record, "Lockdown: ") || strstr(record, "type=1420"))
			printf("@log %s\n", record);
	}
	close(fd);
}

int main(int count, char **arguments)
{
	static const struct firmware none;
	struct keyring_filled filled;
	char name[80], older[80];

	if (count > 1 && strcmp(arguments[1], "works") == 0)
		return 0;
	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mkdir("/dev", 0755);
	mkdir("/mnt", 0755);
	mkdir("/tree", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mount("securityfs", "/sys/kernel/security", "securityfs", 0, NULL);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	int console = open("/dev/console", O_RDWR);
	if (console >= 0) {
		dup2(console, STDOUT_FILENO);
		dup2(console, STDERR_FILENO);
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	puts(""); /* the firmware's last line has no end */
	answer("modules", load("/virtio_blk.ko.xz") + load("/overlay.ko.xz"));
	answer("ring", keyring_load_verity("/keychain", &none, &filled));
	for (int i = 0; i < 50 && access("/dev/vda", F_OK); i++)
		usleep(100000);
	answer("mount", mount("/dev/vda", "/mnt", "ext4", 0, NULL) < 0 ? errno : 0);
	build_overlay();
	answer("self", copy("/init", "/self"));
	answer("copies", copy("/tree/listed.ko.xz", "/listed.ko.xz") + copy("/tree/owner.ko", "/owner.ko"));
	if (command_line_value(INPUTS_WORD, name, sizeof(name)) && command_line_value("older", older, sizeof(older))) {
		ask_policies(name, older);
		ask_modules();
		show_log();
	}
	puts("@end");
	umount("/tree");
	umount("/mnt");
	sync();
	reboot(RB_POWER_OFF);
	return 1;
}
