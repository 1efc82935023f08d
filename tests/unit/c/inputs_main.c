/* SPDX-License-Identifier: Apache-2.0 */
/* Test program: inputs_main FILE NAME says what early/inputs.c returns, as a number that is not negative, and in words. */
#include <stdio.h>

#include "inputs.h"

int main(int count, char **words)
{
	int error = count == 3 ? inputs_enforce(words[1], words[2]) : -1;

	printf("%d %s\n", -error, inputs_fault(error));
	return 0;
}
