/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The few TPM 2.0 commands that a protected number needs, one non-volatile index with its own empty password, and one
 * that measures. Formats: TPM 2.0 Library, parts 2 and 3 (NV commands, TPM2_PCR_Extend), as raw bytes; no library.
 */
#ifndef FREEHOLD_TPM_H
#define FREEHOLD_TPM_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define TPM_MAX_DATA 64
/* Response codes of interest. A code's handle number (bits 8 to 11) is taken off where the format allows one. */
#define TPM_RC_NV_LOCKED 0x148
#define TPM_RC_NV_UNINITIALIZED 0x14a
#define TPM_RC_HANDLE 0x08b
/* What the index is, beside its size: written and read by its own (empty) password, closed by TPM2_NV_WriteLock until
 * the TPM starts anew, no dictionary attack counter. */
#define TPM_INDEX_ATTRIBUTES (1u << 2 | 1u << 14 | 1u << 18 | 1u << 25)

/* Sends a command and returns the length of the answer, at most `size` bytes, or -errno. */
typedef ssize_t (*tpm_exchange)(void *argument, const unsigned char *command, size_t length, unsigned char *answer,
				size_t size);

struct tpm {
	tpm_exchange exchange;
	void *argument;
};

/* Open the kernel's TPM; the descriptor, or -errno. The exchange for it takes a pointer to the descriptor. */
int tpm_open(const char *path);
ssize_t tpm_device_exchange(void *argument, const unsigned char *command, size_t length, unsigned char *answer, size_t size);

/*
 * All return 0, a positive TPM response code, or -errno (-EBADMSG: the answer is malformed).
 * tpm_nv_check: 0 when there is such an index and it is ours to the bit; -EEXIST when it is another one.
 */
int tpm_nv_check(const struct tpm *tpm, uint32_t index, size_t size);
int tpm_nv_define(const struct tpm *tpm, uint32_t index, size_t size);
int tpm_nv_undefine(const struct tpm *tpm, uint32_t index);
int tpm_nv_read(const struct tpm *tpm, uint32_t index, unsigned char *data, size_t size);
int tpm_nv_write(const struct tpm *tpm, uint32_t index, const unsigned char *data, size_t size);
/* No more writing until the TPM starts anew. */
int tpm_nv_lock(const struct tpm *tpm, uint32_t index);
/* Extend the SHA-256 bank of a PCR (0 to 23) with a digest of 32 bytes. */
int tpm_pcr_extend(const struct tpm *tpm, uint32_t pcr, const unsigned char digest[32]);

#endif
