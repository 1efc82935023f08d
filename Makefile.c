# SPDX-License-Identifier: Apache-2.0
# The C programs: `early` (the initrd's only program), `guardctl`, the launchers `updater` and `emergency-sshd`, `emergency-shell`
# and the reporter `refusals`, all static.
#   make -f Makefile.c [OUT=DIR]     from the top of the repository, in the tools tree
# bpf/guard.mk builds the guard's BPF object, its loader and guardctl; early links the same loader.
OUT ?= build-output/c
CC := gcc
CFLAGS_C := -O2 -g -std=gnu17 -Wall -Wextra -Werror -fstack-protector-strong -D_FORTIFY_SOURCE=2 -ffile-prefix-map=$(CURDIR)=.
GUARD_OUT := $(OUT)/guard
GUARD_CC := $(CC)
GUARD_CFLAGS := $(CFLAGS_C)

.PHONY: all clean
all: $(OUT)/early $(OUT)/guardctl $(OUT)/updater $(OUT)/emergency-sshd $(OUT)/emergency-shell $(OUT)/refusals

include bpf/guard.mk

# The guard's own two sources have their rules in guard.mk; the launcher and the reporter are programs of their own.
EARLY_SOURCES := $(filter-out early/guard.c early/guardctl.c early/updater.c early/refusals.c early/watch.c \
	early/emergency_sshd.c early/emergency_shell.c,\
	$(sort $(wildcard early/*.c)))
EARLY_OBJECTS := $(patsubst early/%.c,$(OUT)/early-objects/%.o,$(EARLY_SOURCES))

$(OUT)/early-objects/%.o: early/%.c $(wildcard early/*.h) bpf/guard.h
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_C) -Iearly -Ibpf -c $< -o $@

$(OUT)/early: $(EARLY_OBJECTS) $(GUARD_OUT)/guard.o
	$(CC) $(CFLAGS_C) -static $^ -o $@ $(GUARD_LIBS)

$(OUT)/guardctl: $(GUARD_OUT)/guardctl
	cp $< $@

# One file and the C library: the sealed program that the guard lets start the updater.
$(OUT)/updater: early/updater.c early/launcher.h
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_C) -static $< -o $@

$(OUT)/emergency-%: early/emergency_%.c early/launcher.h
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_C) -static $< -o $@

$(OUT)/refusals: early/watch.c early/refusals.c early/refusals.h early/refusal_words.h bpf/guard.h
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_C) -static early/watch.c early/refusals.c -o $@

clean:
	rm -rf $(OUT)
