// SPDX-License-Identifier: Apache-2.0
/*
 * The two programs of the races, without a C library: `good` ends with 0; `evil` (-DEVIL), which nobody signed, ends with 77 when it
 * runs with privilege, else with 0. Equally large, so that one can be written over the other.
 */
#include <sys/syscall.h>

static long call(long number, long argument)
{
	long result;

	__asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(argument) : "rcx", "r11", "memory");
	return result;
}

__attribute__((noreturn, force_align_arg_pointer)) void _start(void)
{
	long status = 0;

#ifdef EVIL
	if (call(SYS_getuid, 0) == 0 || call(SYS_geteuid, 0) == 0)
		status = 77;
#endif
	for (;;)
		call(SYS_exit_group, status);
}
