#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds a laboratory inside the tools tree: build.sh WORK [inputs_lab]
# Takes WORK/disk-files and WORK/debugfs; leaves WORK/init and WORK/disk.
set -eu
work=$1
here=$(dirname "$0")
gcc -O1 -g -std=gnu17 -Wall -Wextra -Werror -static -Iearly "$here/${2:-lab}.c" early/inputs.c early/keyring.c early/firmware.c early/revoked.c \
	early/signatures.c early/sha256.c early/util.c -o "$work/init"
strip "$work/init"
rm -f "$work/disk"
mkfs.ext4 -q -b 4096 -O verity -d "$work/disk-files" "$work/disk" 64M
debugfs -w -f "$work/debugfs" "$work/disk" >/dev/null 2>&1
