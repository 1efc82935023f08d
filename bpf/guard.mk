# SPDX-License-Identifier: Apache-2.0
# The guard: kernel half (BPF object, skeleton), loader object, and the static guardctl.
# Needs clang, bpftool, libbpf-dev, linux-bpf-dev, libelf-dev, libzstd-dev, gcc: the tools tree has them.
#   make -f bpf/guard.mk GUARD_OUT=DIR     from the top of the repository
GUARD_OUT ?= build/guard
GUARD_CC ?= gcc
GUARD_CFLAGS ?= -O2 -g -std=gnu17 -Wall -Wextra -Werror
GUARD_LIBS := -lbpf -lelf -lz -lzstd
GUARD_VMLINUX ?= $(firstword $(wildcard /usr/include/*/linux/bpf/vmlinux.h))
GUARD_BPFTOOL ?= /usr/sbin/bpftool

.PHONY: guard
guard: $(GUARD_OUT)/guard.o $(GUARD_OUT)/guardctl

$(GUARD_OUT)/guard.bpf.o: bpf/guard.bpf.c bpf/guard.h bpf/guard_emergency.h bpf/guard_judge.h bpf/guard_owner.h bpf/guard_secret.h bpf/guard_script.h bpf/guard_self.h
	@mkdir -p $(GUARD_OUT)
	clang -O2 -g -Wall -Werror -target bpf -mcpu=v3 -D__TARGET_ARCH_x86 -I$(dir $(GUARD_VMLINUX)) -Ibpf \
		-ffile-prefix-map=$(CURDIR)=. -c $< -o $@.tmp
	llvm-strip -g $@.tmp
	mv $@.tmp $@

$(GUARD_OUT)/guard.skel.h: $(GUARD_OUT)/guard.bpf.o
	$(GUARD_BPFTOOL) gen skeleton $< name guard_bpf >$@.tmp
	mv $@.tmp $@

$(GUARD_OUT)/guard.o: early/guard.c early/guard.h early/kernel_types.h bpf/guard.h $(GUARD_OUT)/guard.skel.h
	$(GUARD_CC) $(GUARD_CFLAGS) -I$(GUARD_OUT) -Ibpf -Iearly -c $< -o $@

$(GUARD_OUT)/guardctl: early/guardctl.c $(GUARD_OUT)/guard.o
	$(GUARD_CC) $(GUARD_CFLAGS) -I$(GUARD_OUT) -Ibpf -Iearly -static $^ -o $@ $(GUARD_LIBS)
