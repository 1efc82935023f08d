/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What loading the guard needs of the kernel's own type information (BTF), read in one passage: the numbers of the LSM
 * hooks, and the structures that the guard reads, as a BTF of its own with nothing else in it.
 *
 * libbpf would go through all hundred thousand types for each hook and for each structure, which is most of the time that
 * loading takes. For early/guard.c alone, and the test of it.
 */
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <linux/btf.h>
#include <stddef.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define HOOK_PREFIX "bpf_lsm_"
#define HOOKS_LIMIT 512
#define MAX_BTF (64 << 20)

struct kernel_types {
	unsigned char *btf;
	size_t length;
	const unsigned char *types; /* in btf */
	const char *strings;	    /* in btf */
	unsigned strings_length;
	unsigned *at; /* number of a type → where it is in types; 0 is void */
	unsigned count;
	unsigned hooks;
	struct {
		const char *name; /* without the prefix; in btf */
		unsigned id;
	} hook[HOOKS_LIMIT];
};

/* Bytes that follow struct btf_type, or -1 for a kind that is not known. */
static inline long types_tail(const struct btf_type *type)
{
	unsigned count = BTF_INFO_VLEN(type->info);

	switch (BTF_INFO_KIND(type->info)) {
	case BTF_KIND_INT:
	case BTF_KIND_VAR:
	case BTF_KIND_DECL_TAG:
		return 4;
	case BTF_KIND_ARRAY:
		return sizeof(struct btf_array);
	case BTF_KIND_STRUCT:
	case BTF_KIND_UNION:
		return (long)count * (long)sizeof(struct btf_member);
	case BTF_KIND_ENUM:
	case BTF_KIND_FUNC_PROTO:
		return (long)count * 8;
	case BTF_KIND_DATASEC:
	case BTF_KIND_ENUM64:
		return (long)count * 12;
	case BTF_KIND_PTR:
	case BTF_KIND_FWD:
	case BTF_KIND_TYPEDEF:
	case BTF_KIND_VOLATILE:
	case BTF_KIND_CONST:
	case BTF_KIND_RESTRICT:
	case BTF_KIND_FUNC:
	case BTF_KIND_FLOAT:
	case BTF_KIND_TYPE_TAG:
		return 0;
	default:
		return -1;
	}
}

/* Finds the types and the hooks in types->btf. 0 or -errno: -EBADMSG for what is no BTF of this machine's byte order. */
static inline int types_parse(struct kernel_types *types)
{
	struct btf_header header;

	if (types->length < sizeof(header))
		return -EBADMSG;
	memcpy(&header, types->btf, sizeof(header));
	if (header.magic != BTF_MAGIC || header.hdr_len < sizeof(header) || header.hdr_len > types->length)
		return -EBADMSG;
	size_t room = types->length - header.hdr_len;
	if (header.type_off > room || header.type_len > room - header.type_off || header.str_off > room ||
	    !header.str_len || header.str_len > room - header.str_off)
		return -EBADMSG;
	types->types = types->btf + header.hdr_len + header.type_off;
	types->strings = (const char *)types->btf + header.hdr_len + header.str_off;
	types->strings_length = header.str_len;
	if (types->strings[header.str_len - 1])
		return -EBADMSG;
	types->at = malloc((header.type_len / sizeof(struct btf_type) + 1) * sizeof(*types->at));
	if (!types->at)
		return -ENOMEM;
	types->count = 1;
	for (size_t at = 0; at < header.type_len;) {
		struct btf_type type;

		if (header.type_len - at < sizeof(type))
			return -EBADMSG;
		memcpy(&type, types->types + at, sizeof(type));
		long tail = types_tail(&type);
		types->at[types->count] = (unsigned)at;
		at += sizeof(type);
		if (tail < 0 || (size_t)tail > header.type_len - at || type.name_off >= header.str_len)
			return -EBADMSG;
		at += (size_t)tail;
		const char *name = types->strings + type.name_off;
		if (BTF_INFO_KIND(type.info) == BTF_KIND_FUNC && strncmp(name, HOOK_PREFIX, strlen(HOOK_PREFIX)) == 0) {
			if (types->hooks == HOOKS_LIMIT)
				return -E2BIG;
			types->hook[types->hooks].name = name + strlen(HOOK_PREFIX);
			types->hook[types->hooks++].id = types->count;
		}
		types->count++;
	}
	return 0;
}

/* Reads a file of BTF. 0 or -errno. types_forget() in any case. */
static inline int types_read(struct kernel_types *types, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = -1;

	memset(types, 0, sizeof(*types));
	if (fd < 0)
		return -errno;
	types->btf = malloc(MAX_BTF);
	while (types->btf && types->length < MAX_BTF &&
	       (got = read(fd, types->btf + types->length, MAX_BTF - types->length)) > 0)
		types->length += (size_t)got;
	int error = !types->btf ? -ENOMEM : got < 0 ? -errno : got > 0 ? -EFBIG : 0;
	close(fd);
	return error ? error : types_parse(types);
}

static inline void types_forget(struct kernel_types *types)
{
	free(types->at);
	free(types->btf);
	memset(types, 0, sizeof(*types));
}

/* The number of a hook's type; 0 when the kernel has no such hook. */
static inline unsigned types_hook(const struct kernel_types *types, const char *name)
{
	for (unsigned i = 0; i < types->hooks; i++)
		if (strcmp(types->hook[i].name, name) == 0)
			return types->hook[i].id;
	return 0;
}

/* What is left out of the small BTF is void there: what pointers point to, to begin with. */
struct small_btf {
	const struct kernel_types *from;
	unsigned *id;	 /* number in from → number here; 0: not here */
	unsigned *wanted; /* to be looked at */
	unsigned waiting;
	unsigned char *types;
	char *strings;
	unsigned types_length, strings_length;
};

static inline void small_want(struct small_btf *small, unsigned id)
{
	if (!id || id >= small->from->count || small->id[id])
		return;
	small->id[id] = 1;
	small->wanted[small->waiting++] = id;
}

static inline void small_text(struct small_btf *small, unsigned char *offset)
{
	unsigned old, new = 0;

	memcpy(&old, offset, sizeof(old));
	if (old && old < small->from->strings_length) {
		const char *text = small->from->strings + old;

		new = small->strings_length;
		strcpy(small->strings + new, text);
		small->strings_length += (unsigned)strlen(text) + 1;
	}
	memcpy(offset, &new, sizeof(new));
}

static inline void small_refer(struct small_btf *small, unsigned char *reference)
{
	unsigned id;

	memcpy(&id, reference, sizeof(id));
	id = id < small->from->count ? small->id[id] : 0;
	memcpy(reference, &id, sizeof(id));
}

/* What a type is made of; with `renumber` its numbers become those of the small BTF, else they are wanted too. */
static inline void small_parts(struct small_btf *small, unsigned char *raw, bool renumber)
{
	unsigned char *tail = raw + sizeof(struct btf_type), *parts[2] = {NULL, NULL};
	struct btf_type type;

	memcpy(&type, raw, sizeof(type));
	unsigned kind = BTF_INFO_KIND(type.info), count = BTF_INFO_VLEN(type.info), step = 0, part = 0;
	if (kind == BTF_KIND_STRUCT || kind == BTF_KIND_UNION) {
		step = sizeof(struct btf_member);
		part = offsetof(struct btf_member, type);
	} else if (kind == BTF_KIND_ENUM)
		step = sizeof(struct btf_enum);
	else if (kind == BTF_KIND_ENUM64)
		step = sizeof(struct btf_enum64);
	else if (kind == BTF_KIND_ARRAY) {
		parts[0] = tail + offsetof(struct btf_array, type);
		parts[1] = tail + offsetof(struct btf_array, index_type);
	} else if (kind == BTF_KIND_TYPEDEF || kind == BTF_KIND_VOLATILE || kind == BTF_KIND_CONST ||
		   kind == BTF_KIND_RESTRICT || kind == BTF_KIND_TYPE_TAG)
		parts[0] = raw + offsetof(struct btf_type, type);
	else if (kind == BTF_KIND_PTR && renumber)
		memset(raw + offsetof(struct btf_type, type), 0, 4);
	for (unsigned i = 0; i < 2 && parts[i]; i++) {
		unsigned id;

		memcpy(&id, parts[i], sizeof(id));
		if (renumber)
			small_refer(small, parts[i]);
		else
			small_want(small, id);
	}
	if (renumber)
		small_text(small, raw + offsetof(struct btf_type, name_off));
	for (unsigned i = 0; step && i < count; i++) {
		unsigned char *one = tail + i * step;
		unsigned id;

		if (renumber)
			small_text(small, one); /* members and values begin with their name */
		if (!part)
			continue;
		memcpy(&id, one + part, sizeof(id));
		if (renumber)
			small_refer(small, one + part);
		else
			small_want(small, id);
	}
}

static inline int small_write(const struct small_btf *small)
{
	const struct btf_header header = {
		.magic = BTF_MAGIC, .version = BTF_VERSION, .hdr_len = sizeof(header), .type_len = small->types_length,
		.str_off = small->types_length, .str_len = small->strings_length,
	};
	const struct {
		const void *data;
		size_t size;
	} parts[] = { { &header, sizeof(header) }, { small->types, small->types_length }, { small->strings, small->strings_length } };
	int fd = memfd_create("btf", MFD_CLOEXEC);

	for (size_t i = 0; fd >= 0 && i < sizeof(parts) / sizeof(parts[0]); i++)
		if (write(fd, parts[i].data, parts[i].size) != (ssize_t)parts[i].size) {
			close(fd);
			errno = EIO;
			fd = -1;
		}
	return fd < 0 ? -errno : fd;
}

/*
 * A file in memory with the BTF of all structures, unions, enumerations and type names that `wanted` names, and of what they
 * are made of. A descriptor, or -errno.
 */
static inline int types_small(const struct kernel_types *types, bool (*wanted)(const char *name, void *data), void *data)
{
	struct small_btf small = { .from = types, .strings_length = 1 };
	unsigned next = 1;
	int result = -ENOMEM;

	small.id = calloc(types->count, sizeof(*small.id));
	small.wanted = calloc(types->count, sizeof(*small.wanted));
	/* Each type once, each of its names once: no larger than all of it, but for names that many share. */
	small.types = malloc(types->length);
	small.strings = calloc(1, MAX_BTF);
	if (!small.id || !small.wanted || !small.types || !small.strings)
		goto out;
	for (unsigned id = 1; id < types->count; id++) {
		struct btf_type type;

		memcpy(&type, types->types + types->at[id], sizeof(type));
		unsigned kind = BTF_INFO_KIND(type.info);
		if ((kind == BTF_KIND_STRUCT || kind == BTF_KIND_UNION || kind == BTF_KIND_ENUM || kind == BTF_KIND_ENUM64 ||
		     kind == BTF_KIND_TYPEDEF) && type.name_off && wanted(types->strings + type.name_off, data))
			small_want(&small, id);
	}
	while (small.waiting)
		/* Nothing is written: only looked at. */
		small_parts(&small, (unsigned char *)types->types + types->at[small.wanted[--small.waiting]], false);
	for (unsigned id = 1; id < types->count; id++)
		if (small.id[id])
			small.id[id] = next++;
	for (unsigned id = 1; id < types->count; id++) {
		if (!small.id[id])
			continue;
		struct btf_type type;
		memcpy(&type, types->types + types->at[id], sizeof(type));
		size_t size = sizeof(type) + (size_t)types_tail(&type);
		memcpy(small.types + small.types_length, types->types + types->at[id], size);
		small_parts(&small, small.types + small.types_length, true);
		small.types_length += (unsigned)size;
		if (small.strings_length > MAX_BTF / 2) {
			result = -EFBIG;
			goto out;
		}
	}
	result = small_write(&small);
out:
	free(small.strings);
	free(small.types);
	free(small.wanted);
	free(small.id);
	return result;
}
