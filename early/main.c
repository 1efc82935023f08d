/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The early-boot step: the only program of the initrd, /init, static.
 *
 * From the kernel's first userland instruction to systemd, in this order:
 *   1. the keychain goes into the kernel's .fs-verity ring and the ring is sealed for good: the firmware's
 *      certificates with Secure Boot, else the image's own, without those that are revoked;
 *   2. the root partition is found and mounted;
 *   3. the metadata image is mounted if the kernel measures exactly the digest that the signed
 *      command line names; the sealed tree is built from it;
 *   4. the owner's signed intent is verified, and compared with what the TPM remembers of it: it says open, audit or
 *      locked, and which committed /etc; a locked machine boots no release below its rollback floor; what this boot is
 *      goes into the TPM, for attestation;
 *   5. /etc, /root and /var are put together as the state asks; the root is switched;
 *   6. where the intent says so, the release's policy of kernel inputs is put into force, the guard is loaded and latched,
 *      and lockdown is raised
 *      (the rescue entry: in any case, and with factory settings, see rescue.h);
 *   7. boot/prepare from the sealed tree applies typed machine state, and Ignition at the first boot (it is started
 *      before 6 and waits for it, see prepare.h);
 *   8. systemd.
 * Nothing that the disk says is believed before the kernel has verified it. What fails ends the boot:
 * the boot loader is asked for another deployment, and boot counting leads away from this one.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <unistd.h>

#include "device_key.h"
#include "disk.h"
#include "emergency.h"
#include "../bpf/guard.h"
#include "fallback.h"
#include "firmware.h"
#include "floor.h"
#include "guard.h"
#include "inputs.h"
#include "keyring.h"
#include "measure.h"
#include "memory.h"
#include "modules.h"
#include "notice.h"
#include "owner.h"
#include "prepare.h"
#include "rescue.h"
#include "revoked.h"
#include "tpm.h"
#include "util.h"

#define KEYCHAIN "/keychain"
/* The command lines that were sealed with this initrd, one a line: the normal one, the rescue entry's. */
#define SEALED_LINES "/cmdline"
#define RUN_STATE "/run/freehold"
/* overlayfs features that would let a changed lower layer confuse the upper one stay off. */
#define ETC_OPTIONS "redirect_dir=off,metacopy=off,index=off,xino=off"

static void mount_kernel_file_systems(void)
{
	static const struct {
		const char *type, *target, *options;
		unsigned long flags;
	} table[] = {
		{ "proc", "/proc", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC },
		{ "sysfs", "/sys", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC },
		{ "devtmpfs", "/dev", "mode=755", MS_NOSUID },
		{ "tmpfs", "/run", "mode=755,size=20%", MS_NOSUID | MS_NODEV },
		/* Mounted here, so that systemd finds it and puts no other one over the guard's pins. */
		{ "bpf", "/sys/fs/bpf", "mode=700", MS_NOSUID | MS_NODEV | MS_NOEXEC },
		{ "securityfs", "/sys/kernel/security", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC },
	};

	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		make_directory(table[i].target, 0755);
		if (mount(table[i].type, table[i].target, table[i].type, table[i].flags, table[i].options) < 0)
			die("%s cannot be mounted: %s", table[i].target, strerror(errno));
	}
	if (make_directory(RUN_STATE, 0755))
		die("no %s", RUN_STATE);
}

/* What became of the keychain, for the boot record. */
struct trust {
	bool secure_boot;
	struct keyring_filled ring;
};

/* What became of the rollback floor and of what the TPM remembers, for the boot record. */
struct floored {
	uint64_t release;
	struct floor floor;
	enum floor_tpm tpm;
	struct memory memory;
};

/* Fill the ring that says whose signatures on files count, and say what that rests on. */
static void load_keychain(struct trust *trust)
{
	static struct revoked revoked;
	static unsigned char text[MAX_REVOKED_TEXT];
	struct firmware firmware;
	ssize_t length = read_file(KEYCHAIN "/revoked", text, sizeof(text));

	if (length != -ENOENT && (length < 0 || revoked_add_text(&revoked, text, (size_t)length)))
		die("the image's list of revoked certificates is damaged");
	firmware_read(&firmware, &revoked);
	keyring_refuse(&revoked);
	if (keyring_load_verity(KEYCHAIN, &firmware, &trust->ring) != 0)
		die("the keychain cannot be loaded into the kernel");
	trust->secure_boot = firmware.secure_boot;
	if (!firmware.secure_boot)
		notice_not_verified();
	else if (!trust->ring.from_firmware)
		say("the firmware's certificates are not used (%s): the image's own keychain counts",
		    firmware.fault ? firmware.fault : "none is left");
}

/* What the guard has to know of this boot: which super block is the sealed tree, where the owner's directory is. */
static struct guard_config describe_guard(void)
{
	struct guard_config config;
	int error = guard_describe(NEWROOT, OWNER, &config);

	if (error)
		die("the sealed tree or the owner's directory cannot be described: %s", strerror(-error));
	return config;
}

/*
 * /etc: writes go to the disk while open, to memory while locked; the owner's image lies over the factory's.
 * Each intent has an upper directory of its own, named by its serial: what was changed under an older
 * intent is in the image that the newer one commits, and must not hide it. Returns whether it is new.
 */
static bool mount_etc(bool locked, bool config, unsigned long long serial)
{
	char options[768], base[128], upper[160], work[160];
	struct stat status;

	if (locked)
		snprintf(base, sizeof(base), "%s", RUN_STATE "/etc");
	else
		snprintf(base, sizeof(base), OWNER "/etc/%llu", serial);
	snprintf(upper, sizeof(upper), "%s/upper", base);
	snprintf(work, sizeof(work), "%s/work", base);
	bool fresh = stat(upper, &status) < 0;
	if (make_directory(base, 0700) || make_directory(work, 0700) || make_directory(upper, 0755))
		die("no place for /etc");
	snprintf(options, sizeof(options), "lowerdir=%s" NEWROOT "/usr/etc,upperdir=%s,workdir=%s," ETC_OPTIONS,
		 config ? CONFIG ":" : "", upper, work);
	if (mount_at("etc", NEWROOT "/etc", "overlay", MS_NODEV | MS_NOSUID, options))
		die("/etc cannot be put together");
	return fresh;
}

static void mount_state(bool locked)
{
	/* Mounts follow links, and who had the disk (or was root) could leave one: to /etc, to the owner's directory. */
	if (real_directory(DISK "/var", 0755) || real_directory(DISK "/var/roothome", 0700))
		die("no /var");
	if (mount_at(DISK "/var", NEWROOT "/var", NULL, MS_BIND, NULL) ||
	    mount_at(NULL, NEWROOT "/var", NULL, MS_BIND | MS_REMOUNT | MS_NODEV | MS_NOSUID | MS_NOATIME, NULL))
		die("/var cannot be mounted");
	/* /root is a link to here. Under the lock nothing in root's home is believed. */
	if (locked ? mount_at("roothome", NEWROOT "/var/roothome", "tmpfs", MS_NODEV | MS_NOSUID, "mode=700")
		   : mount_at(DISK "/owner/roothome", NEWROOT "/var/roothome", NULL, MS_BIND, NULL))
		die("root's home cannot be mounted");
	if (locked && prepare_cover(NEWROOT))
		die("what is not believed under the lock cannot be covered");
}

/* The release's number on the signed command line; 0 when it has none. */
static uint64_t release_number(void)
{
	char text[24];

	return command_line_value("freehold.release", text, sizeof(text)) ? floor_number(text) : 0;
}

/*
 * On a locked boot: from here on the kernel reads only what this release has, or the owner signed. What the initrd needs is
 * loaded. Where the firmware knows a certificate of the keychain, which is how the kernel knows the policy's signer, there is
 * no boot without it: else whoever removes a file would have removed it. The rescue entry repairs such files. Returns what
 * became of it, for the boot record.
 */
static const char *bind_inputs(const struct trust *trust, const char *digest, bool rescue)
{
	char name[72], file[128];

	if (!command_line_value(INPUTS_WORD, name, sizeof(name)))
		return "none";
	snprintf(file, sizeof(file), DISK "/deployments/%.16s/" INPUTS_FILE, digest);
	int error = inputs_enforce(file, name);
	if (!error)
		return "enforced";
	if (trust->ring.own && !rescue)
		die("the list of kernel inputs cannot be enforced (%s), and the owner asked for the lock", inputs_fault(error));
	say("the list of kernel inputs is not enforced by the kernel itself (%s): the guard alone judges them",
	    inputs_fault(error));
	return error == -ENOKEY ? "unknown" : "failed";
}

static void write_boot_record(const struct trust *trust, const struct owner *owner, const struct floored *floored,
			      const char *digest, bool config, bool rescue, const char *inputs, const char *emergency)
{
	static const char *const standing[] = { "absent", "valid", "invalid" };
	char text[1536];
	bool valid = owner->standing == STANDING_VALID;
	int length = snprintf(text, sizeof(text),
			      "{\"schema\":\"freehold-boot-1\",\"image\":\"%s\",\"machine\":\"%s\",\"first_boot\":%s,"
			      "\"intent\":{\"state\":\"%s\",\"serial\":%llu,\"lock\":\"%s\",\"tier\":\"%s\",\"scripts\":\"%s\",\"since\":%llu},\"config\":\"%s\","
			      "\"release\":%llu,\"floor\":{\"effective\":%llu,\"raised\":%llu,\"serial\":%llu,\"risen\":%s,\"set\":%s,\"tpm\":\"%s\"},"
			      "\"remembered\":{\"lock\":\"%s\",\"serial\":%llu,\"overruled\":%s},"
			      "\"secure_boot\":%s,\"keychain_source\":\"%s\",\"keychain_loaded\":%d,\"keychain_skipped\":%d,"
			      "\"keychain_own\":%d,"
			      "\"emergency_ssh\":\"%s\",\"rescue\":%s,\"kernel_inputs\":\"%s\"}\n",
			      digest, owner->machine, owner->first_boot ? "true" : "false", standing[owner->standing],
			      valid ? (unsigned long long)owner->intent.serial : 0ULL,
			      intent_lock_name(measure_lock(owner)),
			      intent_tier_name(valid ? owner->intent.tier : INTENT_PRIVILEGED),
			      intent_scripts_name(valid ? owner->intent.scripts : INTENT_S1),
			      valid ? (unsigned long long)owner->intent.since : 0ULL, config ? owner->intent.config : "",
			      (unsigned long long)floored->release, (unsigned long long)floored->floor.effective,
			      (unsigned long long)floored->floor.raised, (unsigned long long)floored->floor.serial,
			      floored->floor.risen ? "true" : "false", floored->floor.set ? "true" : "false",
			      floor_tpm_name(floored->tpm), memory_lock_name(floored->memory.lock),
			      (unsigned long long)floored->memory.serial, owner->forgotten ? "true" : "false",
			      trust->secure_boot ? "true" : "false",
			      trust->ring.from_firmware ? "firmware" : "image", trust->ring.loaded,
			      trust->ring.skipped, trust->ring.own, emergency, rescue ? "true" : "false", inputs);

	if (length < 0 || (size_t)length >= sizeof(text) || write_file_durably(RUN_STATE, "boot.json", text, (size_t)length))
		say("no boot record");
}

/* The machine's TPM; NULL when it has none, or none that the kernel knows this early. *fd is its, and to be closed. */
static const struct tpm *open_tpm(struct tpm *tpm, int *fd)
{
	*fd = tpm_open("/dev/tpm0");
	if (*fd < 0 && *fd != -ENOENT)
		say("the TPM cannot be opened (%s): the disk counts", strerror(-*fd));
	*tpm = (struct tpm){ tpm_device_exchange, fd };
	return *fd < 0 ? NULL : tpm;
}

static void switch_root(void)
{
	static const char *const moved[] = { "/proc", "/sys", "/dev", "/run" };
	char target[64];

	for (size_t i = 0; i < sizeof(moved) / sizeof(moved[0]); i++) {
		snprintf(target, sizeof(target), NEWROOT "%s", moved[i]);
		if (mount_at(moved[i], target, NULL, MS_MOVE, NULL))
			die("%s cannot be moved", moved[i]);
	}
	if (mount_at(DISK, NEWROOT "/sysroot", NULL, MS_MOVE, NULL))
		die("the disk cannot be moved");
	if (chdir(NEWROOT) < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
		die("the root cannot be switched: %s", strerror(errno));
}

/* What is latched with the mode. An intent that is not believed does not say. */
static unsigned tiers(const struct intent *intent)
{
	return (intent->tier == INTENT_ALL_CODE ? GUARD_ALL_CODE : 0) | (intent->scripts == INTENT_S2 ? GUARD_SCRIPTS_S2 : 0);
}

/* Raise the kernel's lockdown and switch the guard's enforcement on. There is no way back in this boot. */
static void latch(bool locked, unsigned flags)
{
	int fd = locked ? open("/sys/kernel/security/lockdown", O_WRONLY | O_CLOEXEC) : -1;

	/* EPERM: it is at this level already, as with Secure Boot. */
	if (locked && (fd < 0 || (write(fd, "integrity", 9) < 0 && errno != EPERM)))
		die("kernel lockdown cannot be raised: %s", strerror(errno));
	if (fd >= 0)
		close(fd);
	int error = guard_latch(locked ? GUARD_LOCKED : GUARD_AUDIT, flags);
	if (error && locked)
		die("the guard cannot be latched: %s", strerror(-error));
	if (error)
		say("the guard cannot be latched: %s", strerror(-error));
}

int main(void)
{
	char digest[DIGEST_HEX + 2];
	struct owner owner;
	struct trust trust;
	struct floored floored;

	struct tpm chip;
	int chip_fd;

	at_death = fallback_refuse;
	umask(022);
	mount_kernel_file_systems();
	if (!command_line_value("freehold.image", digest, sizeof(digest)) || !is_digest(digest))
		die("the command line names no image digest");
	if (modules_load_always() != 0)
		say("not every module could be loaded");
	load_keychain(&trust);

	make_directory(DISK, 0755);
	make_directory(IMAGE, 0755);
	make_directory(CONFIG, 0755);
	make_directory(NEWROOT, 0755);
	disk_mount();
	int error = mount_verified_image(DISK "/images", digest, IMAGE);
	if (error)
		die("the system image %.16s is refused: %s", digest,
		    error == -EBADMSG ? "it is not the image that was signed" : strerror(-error));
	if (mount_sealed_tree())
		die("the sealed tree cannot be mounted");

	bool rescue = rescue_asked();
	floored.release = release_number();
	const struct tpm *tpm = open_tpm(&chip, &chip_fd);
	memory_read(tpm, &floored.memory);
	owner_read(&owner, &floored.memory, floored.release);
	rescue_keep_log(DISK "/inbox", OWNER);
	floored.tpm = floor_enforce(tpm, &floored.memory, &owner, floored.release, digest, rescue, &floored.floor);
	bool valid = owner.standing == STANDING_VALID;
	bool locked = rescue || owner.standing == STANDING_INVALID || (valid && owner.intent.lock == INTENT_LOCKED);
	bool audit = !rescue && valid && owner.intent.lock == INTENT_AUDIT;
	/* Firmware, hypervisor or an add-on said more than was signed; systemd and the kernel would obey it. */
	if (!command_line_is_sealed(SEALED_LINES)) {
		if (locked)
			die("the command line is not the signed one, and the owner asked for the lock");
		say("the command line is not the signed one");
	}
	/* Before anything of the disk runs, and on every boot. */
	bool device_key = !rescue && valid && owner.intent.lock == INTENT_LOCKED && !owner.intent.strict;
	measure_intent(tpm, device_key);
	const struct measured measured = { digest, floored.release, &owner, rescue, device_key };
	measure_boot(tpm, &measured, RUN_STATE);
	if (tpm)
		close(chip_fd);
	/* An intent that is not believed may be a damaged file, and rescue is locked: then the key stays, and is not used. */
	if (!rescue && !device_key && owner.standing != STANDING_INVALID)
		device_key_forget();
	bool config = false;
	if (!rescue && valid && owner.intent.config[0]) {
		error = mount_verified_image(OWNER "/config", owner.intent.config, CONFIG);
		config = error == 0;
		if (error)
			say("the owner's /etc %.16s is refused (%s): factory settings are in force", owner.intent.config,
			    error == -EBADMSG ? "it is not what the owner signed" : strerror(-error));
	}
	bool fresh = mount_etc(locked, config, valid ? (unsigned long long)owner.intent.serial : 0ULL);
	mount_state(locked);
	struct guard_config guard = describe_guard(); /* with /etc in its place */
	if (config) {
		make_directory(RUN_STATE "/config", 0755);
		if (mount_at(CONFIG, RUN_STATE "/config", NULL, MS_MOVE, NULL))
			die("the owner's /etc cannot be moved");
	}
	const char *inputs = locked ? bind_inputs(&trust, digest, rescue) : "off";
	bool chosen = !rescue && valid && owner.intent.lock == INTENT_LOCKED;
	const char *emergency = emergency_settle(chosen ? owner.intent.emergency_ssh : "") ? owner.intent.emergency_ssh : "";
	if (emergency[0])
		notice_emergency(emergency);
	write_boot_record(&trust, &owner, &floored, digest, config, rescue, inputs, emergency);
	switch_root();
	struct preparation preparation;
	bool prepared = owner.first_boot || fresh;
	if (prepared)
		prepare_start(&preparation);
	/* An open machine pays nothing for it: `freehold lock` loads it when it is asked for. */
	if (locked || audit) {
		error = guard_load(&guard);
		if (error)
			die("the guard cannot be loaded (%s) and the owner asked for it", strerror(-error));
		latch(locked, rescue || !valid ? 0 : tiers(&owner.intent));
	}
	if (prepared)
		prepare_finish(&preparation);
	fallback_done(RUN_STATE);
	execl("/usr/lib/systemd/systemd", "/sbin/init", NULL);
	die("systemd cannot be started: %s", strerror(errno));
}
