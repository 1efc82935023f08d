/* SPDX-License-Identifier: Apache-2.0 */
/* Kernel modules that the root file system needs, loaded by what hardware is there. */
#ifndef FREEHOLD_MODULES_H
#define FREEHOLD_MODULES_H

/* Load what is needed in any case. Returns the number of modules that failed. */
int modules_load_always(void);

/* Load the drivers of the devices present now. Call again after new ones may have appeared. */
void modules_load_present(void);

#endif
