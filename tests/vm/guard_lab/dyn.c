// SPDX-License-Identifier: Apache-2.0
/* A dynamically linked program. As evil.so (-DEVIL) it is the library that ends it with status 9. */
#include <unistd.h>
#ifdef EVIL
__attribute__((constructor)) static void fire(void)
{
	_exit(9);
}
#else
int main(void)
{
	return 0;
}
#endif
