# SPDX-License-Identifier: Apache-2.0
"""What makes a deployment's rescue image out of its normal one: another command line and another os-release. Pure.

Kernel and initrd are the same. Whoever assembles boot images (:func:`freehold.build.uki.write_pair`, and
:func:`freehold.device.derive.rescue_image` for a deployment that a machine makes for itself) makes the normal one first, and
the rescue image from *its* command line and os-release with :func:`line` and :func:`os_release`; both are signed alike, and
both are named in the manifest.

The order in the boot menu follows from systemd-boot 257's ``boot_entry_compare``: entries without a try left come last; then
IMAGE_ID decides, ascending, then IMAGE_VERSION, newest first.
"""

from __future__ import annotations

#: The rescue image beside a manifest, in a release and on the root file system.
FILE = "rescue.efi"
#: What a server has of it: :mod:`freehold.update.parts` that make it out of the normal image.
PARTS = "rescue.parts"
#: How the name of a rescue entry on the ESP begins; no version begins like that.
PREFIX = "freehold-rescue-"
#: Sorts behind every normal entry: no recipe's name begins with "zz".
SORT_KEY = "zz-rescue"
#: What the rescue entry's command line has more. The last `systemd.unit=` wins, so it comes after the recipe's own words.
WORDS = ("freehold.rescue", "systemd.unit=freehold-rescue.target")


def line(normal: str) -> str:
    """The sealed command line of the rescue image, from the normal one's."""
    return " ".join([normal, *WORDS])


def is_rescue(cmdline: str) -> bool:
    """Whether a kernel with this command line starts the rescue."""
    return WORDS[0] in cmdline.split()


def os_release(normal: str) -> str:
    """The rescue image's os-release, from the normal one's: what the boot menu sorts by and shows."""
    lines = []
    for text in normal.splitlines():
        if text.startswith("IMAGE_ID="):
            text = f"IMAGE_ID={SORT_KEY}"
        elif text.startswith('PRETTY_NAME="'):
            text = f'{text.removesuffix(chr(34))} (rescue)"'
        lines.append(text)
    return "".join(f"{text}\n" for text in lines)


def name(version: str, identity: str) -> str:
    """The rescue entry's file name on the ESP for the deployment ``identity``. It has no boot counter, ever."""
    return f"{PREFIX}{version}-{identity}.efi"
