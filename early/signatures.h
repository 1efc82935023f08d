/* SPDX-License-Identifier: Apache-2.0 */
/*
 * EFI signature lists, the content of db, dbx and MokListRT (UEFI specification 2.10, section 32.4.1), and the
 * part of a certificate that dbx names by hash. Pure: bytes in, answers out. The Python reader of the same
 * format is freehold/keys/efi.py; tests/unit/test_efi.py asks both.
 */
#ifndef FREEHOLD_SIGNATURES_H
#define FREEHOLD_SIGNATURES_H

#include <stdbool.h>
#include <stddef.h>

#define GUID_SIZE 16

extern const unsigned char GUID_X509[GUID_SIZE];	/* a certificate, DER */
extern const unsigned char GUID_X509_SHA256[GUID_SIZE]; /* sha256 of a certificate's signed part, time of revocation */

/* One entry; everything points into the list. GUIDs are in the firmware's byte order. */
struct signature {
	const unsigned char *type, *owner, *data;
	size_t length; /* of data */
};

/*
 * Call `use` with each entry until it returns other than 0, and return that; `use` may be NULL. Returns 0 at the
 * end, -EBADMSG at the first list whose sizes do not fit: entries before it have been seen, so check first.
 */
int signatures_walk(const unsigned char *lists, size_t length, int (*use)(const struct signature *, void *),
		    void *argument);

/* The signed part (tbsCertificate, with its header) of a DER certificate that is `length` bytes long, no more, no less. */
bool certificate_signed_part(const unsigned char *certificate, size_t length, const unsigned char **part,
			     size_t *part_length);

#endif
