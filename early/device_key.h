/* SPDX-License-Identifier: Apache-2.0 */
/* The device key on boots that are not its own. docs/device-key.md */
#ifndef FREEHOLD_DEVICE_KEY_H
#define FREEHOLD_DEVICE_KEY_H

/*
 * On a boot that is not locked, or strict: overwrite and remove the device key, before anybody could read it.
 * The next `freehold lock` makes another. A cut on the way is made good by the next such boot.
 */
void device_key_forget(void);

#endif
