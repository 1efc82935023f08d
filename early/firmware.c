/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "firmware.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>

#include "signatures.h"
#include "util.h"

#define GLOBAL "8be4df61-93ca-11d2-aa0d-00e098032b8c"
#define SECURITY "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
#define SHIM "605dab50-e046-4300-abb6-3dd810dd8b23"

/* A file of efivarfs begins with the variable's attributes, 32 bits, little endian. */
#define ATTRIBUTES 4
#define NON_VOLATILE 1
#define MAX_DB (64 << 10)
#define MAX_DBX (256 << 10)

/*
 * Owners of entries that are in db for the sake of programs that firmware runs, mostly option ROMs: Microsoft, and
 * `freehold disk --extra-db`. Whoever signs drivers for everybody's graphics card shall not sign files here.
 */
static const unsigned char FIRMWARE_ONLY[][GUID_SIZE] = {
	{ 0xbd, 0x9a, 0xfa, 0x77, 0x59, 0x03, 0x32, 0x4d, 0xbd, 0x60, 0x28, 0xf4, 0xe7, 0x8f, 0x78, 0x4b },
	{ 0x5b, 0x0d, 0x7e, 0x3c, 0x12, 0x9f, 0x6a, 0x48, 0x92, 0xd4, 0x71, 0x0e, 0xa8, 0x35, 0xc6, 0xf1 },
};

static unsigned char db[ATTRIBUTES + MAX_DB], mok[ATTRIBUTES + MAX_DB], denied[ATTRIBUTES + MAX_DBX];

static ssize_t read_variable(const char *directory, const char *name, void *buffer, size_t size)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	return read_file(path, buffer, size);
}

bool firmware_flag(const unsigned char *data, size_t length)
{
	return length == ATTRIBUTES + 1 && !(data[0] & NON_VOLATILE) && data[ATTRIBUTES] == 1;
}

/* -1 where there is no such variable, else its value. */
static int read_flag(const char *directory, const char *name)
{
	unsigned char data[ATTRIBUTES + 1];
	ssize_t length = read_variable(directory, name, data, sizeof(data));

	return length < 0 ? -1 : firmware_flag(data, (size_t)length);
}

/*
 * Read signature lists into `buffer`. A missing variable is an empty one. `own`: firmware or shim makes it anew at
 * each boot; one of that name that is stored was put there by the system that ran before, and is not looked at.
 */
static int read_lists(const char *directory, const char *name, bool own, unsigned char *buffer, size_t size,
		      struct lists *lists)
{
	ssize_t length = read_variable(directory, name, buffer, size);

	*lists = (struct lists){ 0 };
	if (length == -ENOENT)
		return 0;
	if (length < ATTRIBUTES)
		return length < 0 ? (int)length : -EBADMSG;
	if (own && buffer[0] & NON_VOLATILE)
		return 0;
	int error = signatures_walk(buffer + ATTRIBUTES, (size_t)length - ATTRIBUTES, NULL, NULL);
	if (!error)
		*lists = (struct lists){ buffer + ATTRIBUTES, (size_t)length - ATTRIBUTES };
	return error;
}

/* Whom firmware and shim believe, unless it cannot be told whom they do not: NULL, else the reason. */
static const char *read_all(const char *directory, struct firmware *firmware, struct revoked *revoked)
{
	struct lists lists;
	size_t unknown = 0;

	if (read_lists(directory, "dbx-" SECURITY, false, denied, sizeof(denied), &lists) ||
	    revoked_add_lists(revoked, lists.data, lists.length, &unknown))
		return "its list of what is revoked (dbx) cannot be read";
	if (read_lists(directory, "MokListXRT-" SHIM, true, denied, sizeof(denied), &lists) ||
	    revoked_add_lists(revoked, lists.data, lists.length, &unknown))
		return "shim's list of what is revoked cannot be read";
	if (unknown)
		say("the firmware revokes %zu certificates by hashes that are not looked at here", unknown);
	if (read_lists(directory, "db-" SECURITY, false, db, sizeof(db), &firmware->db))
		return "its list of certificates (db) cannot be read";
	if (read_lists(directory, "MokListRT-" SHIM, true, mok, sizeof(mok), &firmware->mok))
		say("shim's list of certificates cannot be read: ignored");
	return NULL;
}

void firmware_read_from(const char *directory, struct firmware *firmware, struct revoked *revoked)
{
	memset(firmware, 0, sizeof(*firmware));
	firmware->secure_boot = read_flag(directory, "SecureBoot-" GLOBAL) == 1 &&
				read_flag(directory, "SetupMode-" GLOBAL) == 0;
	if (firmware->secure_boot)
		firmware->fault = read_all(directory, firmware, revoked);
}

void firmware_read(struct firmware *firmware, struct revoked *revoked)
{
	memset(firmware, 0, sizeof(*firmware));
	/* As systemd would, which keeps it: reading all the variables' names twice would cost a tenth of a second. */
	if (mount("efivarfs", FIRMWARE_VARIABLES, "efivarfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0) {
		/* ENOENT: the firmware is no UEFI. */
		if (errno != ENOENT)
			say("the firmware's variables cannot be read: %s", strerror(errno));
		return;
	}
	firmware_read_from(FIRMWARE_VARIABLES, firmware, revoked);
}

struct offer {
	bool (*use)(const unsigned char *, size_t, void *);
	void *argument;
	int *taken, *skipped;
};

static int offer_one(const struct signature *entry, void *argument)
{
	const struct offer *offer = argument;
	bool wanted = true;

	if (memcmp(entry->type, GUID_X509, GUID_SIZE) != 0)
		return 0;
	for (size_t i = 0; i < sizeof(FIRMWARE_ONLY) / sizeof(FIRMWARE_ONLY[0]); i++)
		wanted = wanted && memcmp(entry->owner, FIRMWARE_ONLY[i], GUID_SIZE) != 0;
	++*(wanted && offer->use(entry->data, entry->length, offer->argument) ? offer->taken : offer->skipped);
	return 0;
}

void firmware_offer(const struct firmware *firmware, bool (*use)(const unsigned char *, size_t, void *), void *argument,
		    int *taken, int *skipped)
{
	struct offer offer = { use, argument, taken, skipped };

	signatures_walk(firmware->db.data, firmware->db.length, offer_one, &offer);
	signatures_walk(firmware->mok.data, firmware->mok.length, offer_one, &offer);
}
