# SPDX-License-Identifier: Apache-2.0
"""May the device key be used on this boot? A pure verdict over what was read before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Trust(NamedTuple):
    """``ok`` only on a boot whose chain is unbroken from firmware to the tree; else ``reason`` says where it breaks."""

    ok: bool
    reason: str


def trusted_boot(record: Mapping[str, object], *, secure_boot: bool, image: str, ring_from_firmware: bool) -> Trust:
    """Whether this boot may use keys that sign for the owner. Pure.

    ``record``: the early step's boot record, empty when there is none. ``secure_boot``: the firmware's own word
    (:meth:`freehold.device.sysroot.Sysroot.secure_boot`), not the record's. ``image``: digest of the running metadata
    image, from the signed command line. ``ring_from_firmware``: that the kernel believes files by firmware's
    certificates, as the record says and who calls may have checked in /proc/keys.

    Every part has to hold; a missing or strange one counts as broken.
    """
    if not secure_boot:
        return Trust(False, "not verified: Secure Boot is off")
    if record.get("schema") != "freehold-boot-1":
        return Trust(False, "the early step left no record of this boot")
    if record.get("secure_boot") is not True:
        return Trust(False, "the early step did not see Secure Boot")
    if len(image) != 64 or record.get("image") != image:
        return Trust(False, "the running image is not the one that the early step verified")
    if record.get("keychain_source") != "firmware" or not ring_from_firmware:
        return Trust(False, "files are not believed by the firmware's certificates")
    if record.get("rescue") is not False:
        return Trust(False, "this is a rescue")
    return Trust(True, "")
