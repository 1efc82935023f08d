/* SPDX-License-Identifier: Apache-2.0 */
/* Test program, built with a DISK of the test's: what an open boot does with the device key. */
#include "device_key.h"

int main(void)
{
	device_key_forget();
	return 0;
}
