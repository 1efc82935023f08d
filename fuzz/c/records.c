/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Target: the early step's other records: an intent's signature line, names of kept commits, the TPM's memory and answers, the rollback
 * floor, the boot loader's list of entries, the chain of refusals, command lines. The first byte says which.
 */
#include "fuzz.h"

/* For the parts that have no header. */
#include "owner.c"
#undef MAX_SIGNED
#include "commits.c"

#include "fallback.h"
#include "rescue.h"
#include "tpm.h"

const char *const fuzz_words[] = {
	"signature ", "freehold-intent 1\n", "freehold-floor 1\nraised ", "\nserial ", "9007199254740993", "freehold-rescue-",
	"freehold-", "+3-1", ".efi", "\t", "\n", "f\0r\0e\0", "\x80\x01", "\x80\x02", "freehold.rescue", "quiet", NULL,
};
const size_t fuzz_most = 8192;

static void signature_line(const unsigned char *data, size_t length)
{
	unsigned char signature[MAX_SIGNATURE];
	size_t bytes = 0, text = split_signature(data, length, signature, &bytes);

	if (!text)
		return;
	fuzz_must(text < length && data[text - 1] == '\n' && memcmp(data + text, MARK, strlen(MARK)) == 0,
		  "the text ends where the last line begins");
	fuzz_must(bytes <= MAX_SIGNATURE && text + strlen(MARK) + 2 * bytes + 1 == length, "the line is the signature, and no more");
	for (size_t i = 0; i < bytes; i++) {
		char pair[3];
		sprintf(pair, "%02x", signature[i]);
		fuzz_must(memcmp(data + text + strlen(MARK) + 2 * i, pair, 2) == 0, "a signature has one spelling");
	}
}

static void commit_name(const char *name)
{
	char again[24];
	uint64_t serial = record_serial(name);

	snprintf(again, sizeof(again), "%" PRIu64, serial);
	fuzz_must(!serial || strcmp(again, name) == 0, "a record's name has one spelling");
	fuzz_must(!is_digest(name) || strspn(name, "0123456789abcdef") == DIGEST_HEX, "an image is called by its digest");
}

static void remembered(const unsigned char *data, size_t length)
{
	unsigned char bytes[MEMORY_NV_SIZE] = { 0 }, again[MEMORY_NV_SIZE];
	struct memory memory;
	char text[MEMORY_MAX_FILE];

	memcpy(bytes, data, length < sizeof(bytes) ? length : sizeof(bytes));
	memory_unpack(bytes, &memory);
	if (memory.state == MEMORY_READ) {
		memory_pack(&memory, again);
		fuzz_must(memcmp(again, bytes, sizeof(again)) == 0, "the TPM's memory has one spelling");
	} else
		fuzz_must(memory.lock == REMEMBERED_LOCKED, "what cannot be read does not say open");
	fuzz_must(memory_write_text(&memory, text) < sizeof(text), "the note fits");
}

struct canned {
	const unsigned char *bytes;
	size_t length;
};

static ssize_t canned_exchange(void *argument, const unsigned char *command, size_t length, unsigned char *answer, size_t size)
{
	const struct canned *canned = argument;

	(void)command;
	(void)length;
	memcpy(answer, canned->bytes, canned->length < size ? canned->length : size);
	return (ssize_t)canned->length;
}

static void answers(const unsigned char *data, size_t length)
{
	struct canned canned = { data, length };
	struct tpm tpm = { canned_exchange, &canned };
	unsigned char read[MEMORY_NV_SIZE], digest[SHA256_SIZE] = { 0 };

	tpm_nv_check(&tpm, MEMORY_INDEX, sizeof(read));
	if (tpm_nv_read(&tpm, MEMORY_INDEX, read, sizeof(read)) == 0)
		fuzz_must(length > sizeof(read) && memmem(data, length, read, sizeof(read)), "what was read was in the answer");
	tpm_nv_write(&tpm, MEMORY_INDEX, digest, sizeof(digest));
	tpm_pcr_extend(&tpm, 15, digest);
}

static void floor_text(const unsigned char *data, size_t length)
{
	struct floor_copy copy;
	char again[FLOOR_MAX_TEXT];

	if (floor_read_text((const char *)data, length, &copy))
		fuzz_must(floor_write_text(&copy, again) == length && memcmp(again, data, length) == 0, "the floor has one spelling");
	else
		fuzz_must(!copy.present, "what is refused is not there");
}

/* Lengths of entries and chain come first. */
static void loader_entries(const unsigned char *data, size_t length)
{
	static char out[FALLBACK_MAX_CHAIN];
	char chosen[FALLBACK_MAX_ID] = "", selected[FALLBACK_MAX_ID] = "freehold-1-aa.efi", pattern[FALLBACK_MAX_ID + 2];
	size_t first = length ? data[0] * length / 256 : 0;

	enum fallback next = fallback_choose(data, first, selected, (const char *)data + first, length - first, chosen);
	if (next != FALLBACK_NONE) {
		fuzz_must(strncmp(chosen, "freehold-", 9) == 0 && !fallback_same_id(chosen, selected) &&
				  !fallback_in_chain((const char *)data + first, length - first, chosen),
			  "what is chosen is ours, and was not refused before");
		fallback_pattern(chosen, pattern);
	}
	size_t used = fallback_append((const char *)data + first, length - first, selected, "why", out);
	fuzz_must(used <= FALLBACK_MAX_CHAIN && fallback_in_chain(out, used, selected), "what was refused is in the chain");
}

static void lines(char *text)
{
	char *other = strchr(text, '\t');

	rescue_word(text);
	floor_number(text);
	fuzz_must(same_words(text, text), "a line is the same as itself");
	if (!other)
		return;
	*other++ = '\0';
	fuzz_must(same_words(text, other) == same_words(other, text), "the same is the same the other way round");
}

void fuzz_one(const unsigned char *data, size_t length)
{
	if (!length)
		return;
	char *text = malloc(length);
	memcpy(text, data + 1, length - 1);
	text[length - 1] = '\0';
	switch (data[0] % 7) {
	case 0:
		signature_line(data + 1, length - 1);
		break;
	case 1:
		commit_name(text);
		break;
	case 2:
		remembered(data + 1, length - 1);
		break;
	case 3:
		answers(data + 1, length - 1);
		break;
	case 4:
		floor_text(data + 1, length - 1);
		break;
	case 5:
		loader_entries(data + 1, length - 1);
		break;
	default:
		lines(text);
	}
	free(text);
}
