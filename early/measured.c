/* SPDX-License-Identifier: Apache-2.0 */
#include "measured.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "sha256.h"
#include "util.h"

enum intent_lock measured_lock(const struct owner *owner)
{
	return owner->standing == STANDING_VALID   ? owner->intent.lock :
	       owner->standing == STANDING_INVALID ? INTENT_LOCKED :
						     INTENT_OPEN;
}

size_t measured_write(const struct measured *measured, char text[MEASURED_MAX])
{
	static const char *const standing[] = { "absent", "valid", "invalid" };
	static const char *const guard[] = { "none", "audit", "locked" };
	const struct owner *owner = measured->owner;
	bool valid = owner->standing == STANDING_VALID;
	enum intent_lock lock = measured_lock(owner);
	char digest[2 * SHA256_SIZE + 1] = "none";

	for (size_t i = 0; valid && i < SHA256_SIZE; i++)
		sprintf(digest + 2 * i, "%02x", owner->signed_text[i]);
	int length = snprintf(text, MEASURED_MAX,
			      "freehold-measured 1\nimage %s\nrelease %" PRIu64 "\nmachine %s\nintent %s\nserial %" PRIu64
			      "\nlock %s\nsigned %s\nrescue %s\nguard %s\n",
			      measured->image, measured->release, owner->machine, standing[owner->standing],
			      valid ? owner->intent.serial : 0, intent_lock_name(lock), digest,
			      measured->rescue ? "yes" : "no", measured->rescue ? "locked" : guard[lock]);
	return (size_t)length;
}

void measured_extend(const struct tpm *tpm, const struct measured *measured, const char *directory)
{
	unsigned char digest[SHA256_SIZE];
	char text[MEASURED_MAX];

	if (!tpm)
		return;
	size_t length = measured_write(measured, text);
	sha256(text, length, digest);
	int error = tpm_pcr_extend(tpm, MEASURED_PCR, digest);
	if (error > 0)
		say("the TPM does not take this boot's measurement (its answer is 0x%x): its lock cannot be proved elsewhere",
		    (unsigned)error);
	else if (error)
		say("the TPM does not take this boot's measurement (%s): its lock cannot be proved elsewhere", strerror(-error));
	else if (write_file_durably(directory, "measured", text, length))
		say("%s/measured cannot be written: the lock of this boot cannot be proved elsewhere", directory);
}
