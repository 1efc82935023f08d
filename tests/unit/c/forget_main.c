/* SPDX-License-Identifier: Apache-2.0 */
/* Test program, built with a DISK of the test's: what an open boot does with the device key. */
#include "owner.h"

int main(void)
{
	owner_forget_device_key();
	return 0;
}
