/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "gpt.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "util.h"

#define VARIABLE "LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
#define ATTRIBUTES 4
#define NON_VOLATILE 1
#define GUID 16
#define ENTRY_MIN 128
#define ENTRIES_MAX 1024

static uint64_t little(const unsigned char *data, int bytes)
{
	uint64_t value = 0;

	for (int i = bytes - 1; i >= 0; i--)
		value = value << 8 | data[i];
	return value;
}

static int digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* A GUID's 16 bytes from its text: the first three groups are little endian. */
static bool parse_guid(const char *text, unsigned char guid[GUID])
{
	static const int place[GUID] = { 3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15 };
	int byte = 0;

	if (strlen(text) != GPT_UUID)
		return false;
	for (int at = 0; at < GPT_UUID;) {
		if (at == 8 || at == 13 || at == 18 || at == 23) {
			if (text[at++] != '-')
				return false;
			continue;
		}
		int high = digit(text[at]), low = digit(text[at + 1]);
		if (high < 0 || low < 0)
			return false;
		guid[place[byte++]] = (unsigned char)(high << 4 | low);
		at += 2;
	}
	return true;
}

bool gpt_has(const unsigned char *data, size_t length, const char *uuid)
{
	static const size_t sectors[] = { 512, 4096 };
	unsigned char guid[GUID];

	if (!parse_guid(uuid, guid))
		return false;
	for (size_t i = 0; i < sizeof(sectors) / sizeof(sectors[0]); i++) {
		const size_t sector = sectors[i];
		const unsigned char *head = data + sector;

		if (length < 2 * sector || memcmp(head, "EFI PART", 8) != 0)
			continue;
		uint64_t start = little(head + 72, 8), count = little(head + 80, 4), size = little(head + 84, 4);
		if (start > length / sector || count > ENTRIES_MAX || size < ENTRY_MIN || size > length)
			continue;
		for (uint64_t entry = 0; entry < count; entry++) {
			uint64_t at = start * sector + entry * size;
			if (at + size > length)
				break;
			if (memcmp(data + at + GUID, guid, GUID) == 0)
				return true;
		}
	}
	return false;
}

bool gpt_boot_partition(const char *directory, char uuid[GPT_UUID + 1])
{
	unsigned char data[ATTRIBUTES + 2 * (GPT_UUID + 1)], guid[GUID];
	char path[256];

	snprintf(path, sizeof(path), "%s/" VARIABLE, directory);
	ssize_t length = read_file(path, data, sizeof(data));
	/* A stored one was left by a system that ran before. */
	if (length < ATTRIBUTES + 2 * GPT_UUID || data[0] & NON_VOLATILE)
		return false;
	for (int i = 0; i < GPT_UUID; i++) {
		if (data[ATTRIBUTES + 2 * i + 1])
			return false;
		uuid[i] = (char)data[ATTRIBUTES + 2 * i];
	}
	uuid[GPT_UUID] = '\0';
	return parse_guid(uuid, guid);
}
