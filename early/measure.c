/* SPDX-License-Identifier: Apache-2.0 */
#include "measure.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "sha256.h"
#include "util.h"

#define TRIES 3

static int measure(const struct tpm *tpm, uint32_t pcr, const void *data, size_t length)
{
	unsigned char digest[SHA256_SIZE];

	sha256(data, length, digest);
	int error = tpm_pcr_extend(tpm, pcr, digest);
	return error > 0 || error == -EBADMSG ? -EIO : error;
}

int measure_word(const struct tpm *tpm, const char *word)
{
	return measure(tpm, MEASURE_WORD_PCR, word, strlen(word));
}

void measure_intent(const struct tpm *tpm, bool device_key)
{
	int error = 0;

	for (int i = 0; tpm && i < TRIES; i++) {
		error = measure_word(tpm, device_key ? MEASURE_LOCKED : MEASURE_NOT_LOCKED);
		if (!error)
			return;
	}
	if (error)
		say("the TPM was not told whether this boot is locked (%s): the device key may not be had", strerror(-error));
}

enum intent_lock measure_lock(const struct owner *owner)
{
	return owner->standing == STANDING_VALID   ? owner->intent.lock :
	       owner->standing == STANDING_INVALID ? INTENT_LOCKED :
						     INTENT_OPEN;
}

size_t measure_write(const struct measured *measured, char text[MEASURE_MAX])
{
	static const char *const standing[] = { "absent", "valid", "invalid" };
	static const char *const guard[] = { "none", "audit", "locked" };
	const struct owner *owner = measured->owner;
	bool valid = owner->standing == STANDING_VALID;
	enum intent_lock lock = measure_lock(owner);
	char digest[2 * SHA256_SIZE + 1] = "none";

	for (size_t i = 0; valid && i < SHA256_SIZE; i++)
		sprintf(digest + 2 * i, "%02x", owner->signed_text[i]);
	return (size_t)snprintf(text, MEASURE_MAX,
				"freehold-measured 1\nimage %s\nrelease %" PRIu64 "\nmachine %s\nintent %s\nserial %" PRIu64
				"\nlock %s\nsigned %s\nrescue %s\nguard %s\ndevice-key %s\n",
				measured->image, measured->release, owner->machine, standing[owner->standing],
				valid ? owner->intent.serial : 0, intent_lock_name(lock), digest,
				measured->rescue ? "yes" : "no", measured->rescue ? "locked" : guard[lock],
				measured->device_key ? "yes" : "no");
}

void measure_boot(const struct tpm *tpm, const struct measured *measured, const char *directory)
{
	char text[MEASURE_MAX];
	int error = 0;

	if (!tpm)
		return;
	size_t length = measure_write(measured, text);
	for (int i = 0; i < TRIES; i++) {
		error = measure(tpm, MEASURE_BOOT_PCR, text, length);
		if (!error)
			break;
	}
	if (error)
		say("the TPM does not take this boot's measurement (%s): its lock cannot be proved elsewhere", strerror(-error));
	else if (write_file_durably(directory, "measured", text, length))
		say("%s/measured cannot be written: the lock of this boot cannot be proved elsewhere", directory);
}
