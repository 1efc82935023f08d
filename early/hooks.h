/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernel's LSM hooks by their numbers, read from the kernel's own type information (BTF).
 *
 * libbpf looks every hook up by itself, through all hundred thousand types: of loading the guard, a sixth. Here they are
 * found in one passage. For early/guard.c alone, and the test of it.
 */
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <linux/btf.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HOOK_PREFIX "bpf_lsm_"
#define HOOKS_LIMIT 512
#define MAX_BTF (64 << 20)

struct hooks {
	unsigned char *btf;
	size_t length;
	unsigned count;
	struct {
		const char *name; /* without the prefix; in btf */
		unsigned id;
	} hook[HOOKS_LIMIT];
};

/* Bytes that follow struct btf_type, or -1 for a kind that is not known. */
static inline long hooks_tail(const struct btf_type *type)
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

/* Collects the hooks of hooks->btf. 0 or -errno: -EBADMSG for what is no BTF of this machine's byte order. */
static inline int hooks_parse(struct hooks *hooks)
{
	struct btf_header header;
	unsigned id = 1;

	hooks->count = 0;
	if (hooks->length < sizeof(header))
		return -EBADMSG;
	memcpy(&header, hooks->btf, sizeof(header));
	if (header.magic != BTF_MAGIC || header.hdr_len < sizeof(header) || header.hdr_len > hooks->length)
		return -EBADMSG;
	size_t room = hooks->length - header.hdr_len;
	if (header.type_off > room || header.type_len > room - header.type_off || header.str_off > room ||
	    !header.str_len || header.str_len > room - header.str_off)
		return -EBADMSG;
	const unsigned char *types = hooks->btf + header.hdr_len + header.type_off;
	const char *strings = (const char *)hooks->btf + header.hdr_len + header.str_off;
	if (strings[header.str_len - 1])
		return -EBADMSG;
	for (size_t at = 0; at < header.type_len; id++) {
		struct btf_type type;

		if (header.type_len - at < sizeof(type))
			return -EBADMSG;
		memcpy(&type, types + at, sizeof(type));
		long tail = hooks_tail(&type);
		at += sizeof(type);
		if (tail < 0 || (size_t)tail > header.type_len - at || type.name_off >= header.str_len)
			return -EBADMSG;
		at += (size_t)tail;
		const char *name = strings + type.name_off;
		if (BTF_INFO_KIND(type.info) != BTF_KIND_FUNC || strncmp(name, HOOK_PREFIX, strlen(HOOK_PREFIX)) != 0)
			continue;
		if (hooks->count == HOOKS_LIMIT)
			return -E2BIG;
		hooks->hook[hooks->count].name = name + strlen(HOOK_PREFIX);
		hooks->hook[hooks->count++].id = id;
	}
	return 0;
}

/* Reads a file of BTF and collects its hooks. 0 or -errno. hooks_forget() in any case. */
static inline int hooks_read(struct hooks *hooks, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = -1;

	memset(hooks, 0, sizeof(*hooks));
	if (fd < 0)
		return -errno;
	hooks->btf = malloc(MAX_BTF);
	while (hooks->btf && hooks->length < MAX_BTF && (got = read(fd, hooks->btf + hooks->length, MAX_BTF - hooks->length)) > 0)
		hooks->length += (size_t)got;
	int error = !hooks->btf ? -ENOMEM : got < 0 ? -errno : got > 0 ? -EFBIG : 0;
	close(fd);
	return error ? error : hooks_parse(hooks);
}

static inline void hooks_forget(struct hooks *hooks)
{
	free(hooks->btf);
	memset(hooks, 0, sizeof(*hooks));
}

/* The number of a hook's type; 0 when the kernel has no such hook. */
static inline unsigned hooks_find(const struct hooks *hooks, const char *name)
{
	for (unsigned i = 0; i < hooks->count; i++)
		if (strcmp(hooks->hook[i].name, name) == 0)
			return hooks->hook[i].id;
	return 0;
}
