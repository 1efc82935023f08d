/* SPDX-License-Identifier: Apache-2.0 */
/*
 * /init of a guest that asks the kernel: which signatures early/keyring.c believes, what gets into a sealed
 * .fs-verity ring (filled as with Secure Boot, from lists that the test wrote in the firmware's form), and whether files that user space prepared are verity files to it. Each answer is a line
 * "@ NAME VALUE" on the console; the test knows what the values should be.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fsverity.h>
#include <linux/keyctl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "firmware.h"
#include "keyring.h"
#include "revoked.h"
#include "sha256.h"

#define KEYCHAIN "/keychain"
#define LONGEST 70000

static unsigned char data[LONGEST], signature[4096], certificate[16384];
static unsigned char db[16384], dbx[16384];
static struct revoked revoked;
static size_t data_length;

static void answer(const char *name, long value)
{
	printf("@ %s %ld\n", name, value);
}

static size_t load(const char *path, void *buffer, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : read(fd, buffer, size);

	if (fd >= 0)
		close(fd);
	if (got < 0) {
		printf("@ %s unreadable\n", path);
		return 0;
	}
	return (size_t)got;
}

static int verify(const char *role, size_t signature_length)
{
	return keyring_verify(KEYCHAIN, role, data, data_length, signature, signature_length);
}

/* The kernel's own word, without the checks of keyring.c: 0 or errno. */
static int raw_verify(size_t signature_length)
{
	unsigned char digest[SHA256_SIZE];
	size_t length = load(KEYCHAIN "/owner-first.der", certificate, sizeof(certificate));
	long ring = syscall(SYS_add_key, "keyring", "raw", NULL, 0, KEY_SPEC_PROCESS_KEYRING);
	long key = syscall(SYS_add_key, "asymmetric", "", certificate, length, ring);
	struct keyctl_pkey_params parameters = {
		.key_id = (int)key, .in_len = SHA256_SIZE, .in2_len = (unsigned)signature_length
	};

	sha256(data, data_length, digest);
	long result = syscall(SYS_keyctl, KEYCTL_PKEY_VERIFY, &parameters, "enc=pkcs1 hash=sha256", digest, signature);
	return result < 0 ? errno : 0;
}

/* An owner of the keychain, before and after the keychain's list and dbx say that it counts no more. */
static void ask_revoked(void)
{
	size_t length = load("/data.lost", signature, sizeof(signature)), unknown = 0;

	answer("not-yet-revoked", verify("owner", length));
	keyring_refuse(&revoked);
	size_t listed = load("/revoked", data + data_length, sizeof(data) - data_length);
	answer("revoked-list", revoked_add_text(&revoked, data + data_length, listed));
	answer("revoked", verify("owner", length));
	answer("dbx", revoked_add_lists(&revoked, dbx, load("/dbx", dbx, sizeof(dbx)), &unknown));
	answer("good-beside-revoked", verify("owner", load("/data.first", signature, sizeof(signature))));
}

static void ask_signatures(void)
{
	data_length = load("/data", data, sizeof(data));
	size_t length = load("/data.first", signature, sizeof(signature));

	answer("good", verify("owner", length));
	answer("wrong-role", verify("release", length));
	answer("absent-role", verify("nobody", length));
	answer("absent-keychain", keyring_verify("/nothere", "owner", data, data_length, signature, length));
	answer("short-signature", verify("owner", length - 1));
	answer("one-byte-signature", verify("owner", 1));
	answer("empty-signature", verify("owner", 0));
	answer("long-signature", verify("owner", length + 1));
	answer("endless-signature", verify("owner", sizeof(signature)));
	answer("raw-good", raw_verify(length));
	answer("raw-short", raw_verify(length - 1));
	data[5] ^= 1;
	answer("flipped-data", verify("owner", length));
	data[5] ^= 1;
	answer("data-cut", keyring_verify(KEYCHAIN, "owner", data, data_length - 1, signature, length));
	signature[9] ^= 1;
	answer("flipped-signature", verify("owner", length));
	memset(signature, 0xff, sizeof(signature));
	answer("all-ones", verify("owner", length));
	memset(signature, 0, sizeof(signature));
	answer("all-zeros", verify("owner", length));
	answer("second-owner", verify("owner", load("/data.second", signature, sizeof(signature))));
	length = load("/data.release", signature, sizeof(signature));
	answer("release", verify("release", length));
	answer("release-as-owner", verify("owner", length));
	answer("foreign", verify("owner", load("/data.foreign", signature, sizeof(signature))));
	ask_revoked();
}

/* The number of the .fs-verity ring and how many keys /proc/keys counts in it. */
static int verity_ring(long *keys)
{
	FILE *file = fopen("/proc/keys", "r");
	char line[512];
	int ring = 0;

	while (file && fgets(line, sizeof(line), file)) {
		char *count = strstr(line, ".fs-verity:");
		if (count) {
			ring = (int)strtoul(line, NULL, 16);
			*keys = strtol(count + strlen(".fs-verity:"), NULL, 10);
		}
	}
	if (file)
		fclose(file);
	return ring;
}

/* Returns the ring. */
static int ask_ring(void)
{
	long keys = -1;

	struct firmware firmware = { .secure_boot = true, .db = { db, load("/db", db, sizeof(db)) } };
	struct keyring_filled filled;

	answer("load", keyring_load_verity(KEYCHAIN, &firmware, &filled));
	answer("from-firmware", filled.from_firmware);
	answer("loaded", filled.loaded);
	answer("own", filled.own);
	answer("skipped", filled.skipped);
	firmware.secure_boot = false;
	answer("load-again", keyring_load_verity(KEYCHAIN, &firmware, &filled));
	int ring = verity_ring(&keys);
	answer("ring-keys", keys);
	size_t length = load("/foreign.der", certificate, sizeof(certificate));
	long added = syscall(SYS_add_key, "asymmetric", "", certificate, length, ring);
	answer("add-after-seal", added < 0 ? errno : 0);
	return ring;
}

static void measure(const char *path)
{
	struct {
		struct fsverity_digest head;
		unsigned char bytes[32];
	} measured = { .head = { .digest_size = 32 } };
	static unsigned char buffer[1 << 20];
	ssize_t got, total = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || ioctl(fd, FS_IOC_MEASURE_VERITY, &measured) < 0) {
		printf("@ measure%s errno-%d\n", path, errno);
		if (fd >= 0)
			close(fd);
		return;
	}
	printf("@ measure%s ", path);
	for (size_t i = 0; i < sizeof(measured.bytes); i++)
		printf("%02x", measured.bytes[i]);
	printf("\n");
	while ((got = read(fd, buffer, sizeof(buffer))) > 0)
		total += got;
	printf("@ read%s %zd\n", path, got < 0 ? -(ssize_t)errno : total);
	int writable = open(path, O_WRONLY | O_CLOEXEC);
	printf("@ write%s %d\n", path, writable < 0 ? errno : 0);
	if (writable >= 0)
		close(writable);
	close(fd);
}

/* Enable verity on a new file with `data` in it and a built-in signature: 0 or errno. */
static int enable(const char *path, const char *built_in)
{
	size_t length = built_in ? load(built_in, signature, sizeof(signature)) : 0;
	struct fsverity_enable_arg argument = {
		.version = 1, .hash_algorithm = FS_VERITY_HASH_ALG_SHA256, .block_size = 4096,
		.sig_size = (unsigned)length, .sig_ptr = (unsigned long)signature,
	};
	int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0644);

	if (fd < 0 || write(fd, data, data_length) != (ssize_t)data_length)
		return -1;
	close(fd);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	int error = ioctl(fd, FS_IOC_ENABLE_VERITY, &argument) < 0 ? errno : 0;
	close(fd);
	return error;
}

static void ask_files(void)
{
	for (int i = 0; i < 50 && access("/dev/vda", F_OK); i++)
		usleep(100000);
	answer("mount", mount("/dev/vda", "/mnt", "ext4", 0, NULL) < 0 ? errno : 0);
	measure("/mnt/plain");
	measure("/mnt/signed");
	measure("/mnt/signed-foreign");
	measure("/mnt/big");
	measure("/mnt/empty");
	measure("/mnt/damaged");
	answer("enable-by-ring", enable("/mnt/by-ring", "/first.p7"));
	answer("enable-by-leaf", enable("/mnt/by-leaf", "/leaf.p7"));
	answer("enable-by-bare-leaf", enable("/mnt/by-bare-leaf", "/leaf-bare.p7"));
	answer("enable-by-foreign", enable("/mnt/by-foreign", "/foreign.p7"));
	answer("enable-by-barred", enable("/mnt/by-barred", "/barred.p7"));
	answer("enable-by-lost", enable("/mnt/by-lost", "/lost.p7"));
	answer("enable-unsigned", enable("/mnt/unsigned", NULL));
	measure("/mnt/by-ring");
}

/* Root may empty the ring. What is believed then? */
static void ask_cleared(int ring)
{
	long cleared = syscall(SYS_keyctl, KEYCTL_CLEAR, ring);

	answer("clear", cleared < 0 ? errno : 0);
	answer("enable-after-clear", enable("/mnt/after-clear", "/first.p7"));
	size_t length = load(KEYCHAIN "/owner-first.der", certificate, sizeof(certificate));
	long added = syscall(SYS_add_key, "asymmetric", "", certificate, length, ring);
	answer("add-after-clear", added < 0 ? errno : 0);
}

int main(void)
{
	mkdir("/proc", 0755);
	mkdir("/dev", 0755);
	mkdir("/mnt", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	int console = open("/dev/console", O_RDWR);
	if (console >= 0) {
		dup2(console, STDOUT_FILENO);
		dup2(console, STDERR_FILENO);
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	int module = open("/virtio_blk.ko", O_RDONLY | O_CLOEXEC);
	answer("module", syscall(SYS_finit_module, module, "", 0) < 0 ? errno : 0);
	ask_signatures();
	int ring = ask_ring();
	ask_files();
	ask_cleared(ring);
	puts("@end");
	umount("/mnt");
	sync();
	reboot(RB_POWER_OFF);
	return 1;
}
