/* SPDX-License-Identifier: Apache-2.0 */
/* What the code under test says goes to standard output, in brackets. Link with -Wl,--wrap=say; included once. */
#include <stdarg.h>
#include <stdio.h>

void __wrap_say(const char *format, ...);

void __wrap_say(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	printf("[");
	vprintf(format, arguments);
	printf("]\n");
	va_end(arguments);
}
