/* SPDX-License-Identifier: Apache-2.0 */
#include "signatures.h"

#include <errno.h>

/* Type, size of the list, size of a header of the type's own, size of each entry. */
#define LIST_HEAD (GUID_SIZE + 12)
#define SEQUENCE 0x30

const unsigned char GUID_X509[GUID_SIZE] = { 0xa1, 0x59, 0xc0, 0xa5, 0xe4, 0x94, 0xa7, 0x4a,
					     0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72 };
const unsigned char GUID_X509_SHA256[GUID_SIZE] = { 0x92, 0xa4, 0xd2, 0x3b, 0xc0, 0x96, 0x79, 0x40,
						    0xb4, 0x20, 0xfc, 0xf9, 0x8e, 0xf1, 0x03, 0xed };

static size_t little_endian(const unsigned char *at)
{
	return at[0] | (size_t)at[1] << 8 | (size_t)at[2] << 16 | (size_t)at[3] << 24;
}

int signatures_walk(const unsigned char *lists, size_t length, int (*use)(const struct signature *, void *),
		    void *argument)
{
	while (length) {
		if (length < LIST_HEAD)
			return -EBADMSG;
		size_t list = little_endian(lists + GUID_SIZE), header = little_endian(lists + GUID_SIZE + 4);
		size_t each = little_endian(lists + GUID_SIZE + 8);
		/* Every difference is taken only after it is known not to be negative. */
		if (list < LIST_HEAD || list > length || header > list - LIST_HEAD || each <= GUID_SIZE)
			return -EBADMSG;
		size_t entries = list - LIST_HEAD - header;
		if (!entries || entries % each)
			return -EBADMSG;
		for (const unsigned char *at = lists + LIST_HEAD + header; use && at < lists + list; at += each) {
			struct signature entry = {
				.type = lists, .owner = at, .data = at + GUID_SIZE, .length = each - GUID_SIZE
			};
			int result = use(&entry, argument);
			if (result)
				return result;
		}
		lists += list;
		length -= list;
	}
	return 0;
}

/* A SEQUENCE in DER at `data`: the length of its header and of its content, if both lie within `length`. */
static bool sequence(const unsigned char *data, size_t length, size_t *header, size_t *content)
{
	if (length < 2 || data[0] != SEQUENCE)
		return false;
	size_t size = data[1], more = 0;
	if (size & 0x80) {
		more = size & 0x7f;
		if (more < 1 || more > 3 || length - 2 < more)
			return false;
		size = 0;
		for (size_t i = 0; i < more; i++)
			size = size << 8 | data[2 + i];
		/* DER has one way to write a length, the shortest. */
		if (size < 0x80 || (more > 1 && size >> 8 * (more - 1) == 0))
			return false;
	}
	*header = 2 + more;
	*content = size;
	return size <= length - *header;
}

bool certificate_signed_part(const unsigned char *certificate, size_t length, const unsigned char **part,
			     size_t *part_length)
{
	size_t header, content, inner_header, inner_content;

	/* Bytes behind the certificate would give it another hash, and hide it from a list of hashes. */
	if (!sequence(certificate, length, &header, &content) || header + content != length)
		return false;
	if (!sequence(certificate + header, content, &inner_header, &inner_content))
		return false;
	*part = certificate + header;
	*part_length = inner_header + inner_content;
	return true;
}
