# SPDX-License-Identifier: Apache-2.0
"""The sealed tree's two halves on the root partition: the metadata image, and the objects with their verity metadata."""

from __future__ import annotations

from attack.ext4 import PLAIN_FLAGS, VERITY_FLAG
from attack.model import Probe, Row
from attack.target import Target
from freehold.keys import verity

#: Programs that no boot needs, one for each row, so that the rows can share a boot.
DATA, DESCRIPTOR, UNPROTECTED, BARE, MISSING, OTHER = (
    f"/usr/bin/{name}" for name in ("less", "nano", "vmstat", "slabtop", "pmap", "watch")
)
#: Its Merkle tree has several levels; the top one's block comes first, and every read asks it.
BIG = "/usr/bin/podman"
PID1 = "/usr/lib/systemd/systemd"
IMAGE_REFUSED = r"freehold: the system image \w+ is refused: "


def _unread(path: str, why: str) -> Probe:
    return Probe(f"{path} is not read", f"cat {path} 2>&1 > /dev/null; echo status $?", rf"(?s){why}.*status [1-9]")


READS = Probe("another file is read", "cat /usr/bin/python3 > /dev/null && echo reads", "reads")
EIO = "Input/output error"
OBJECTS = "objects"


def image_flipped(target: Target) -> None:
    target.root.flip(target.image(target.newest), 1200)


def image_truncated(target: Target) -> None:
    path = target.image(target.newest)
    target.root.set_size(path, target.root.size(path) - 4096)


def image_other_deployment(target: Target) -> None:
    target.root.link(target.image(target.previous), target.image(target.newest))


def image_unprotected(target: Target) -> None:
    path = target.image(target.newest)
    target.root.set_flags(path, PLAIN_FLAGS)
    target.root.flip(path, 1200)


def image_merkle(target: Target) -> None:
    path = target.image(target.newest)
    target.root.flip(path, verity.metadata_offset(target.root.size(path)) + 8)


def image_missing(target: Target) -> None:
    target.root.unlink(target.image(target.newest))


def object_data(target: Target) -> None:
    target.root.flip(target.object_of(DATA), 100)


def object_merkle(target: Target) -> None:
    path = target.object_of(BIG)
    size = target.root.size(path)
    target.root.flip(path, verity.metadata_offset(size) + 8)


def descriptor_place(data: bytes) -> int:
    """Where ext4 keeps the verity descriptor of a file with this content. Pure."""
    measured = verity.measure(data)
    return verity.metadata_offset(len(data)) + len(measured.tree)


def object_descriptor(target: Target) -> None:
    path = target.object_of(DESCRIPTOR)
    # Its root hash begins 16 bytes in (struct fsverity_descriptor).
    target.root.flip(path, descriptor_place(target.root.read(path)) + 16)


def object_unprotected(target: Target) -> None:
    path = target.object_of(UNPROTECTED)
    if not target.root.flags(path) & VERITY_FLAG:
        raise ValueError(f"{path} has no verity to begin with")
    target.root.set_flags(path, PLAIN_FLAGS)
    target.root.flip(path, 100)


def object_unprotected_same(target: Target) -> None:
    """The content stays; only what lets the kernel notice a change goes."""
    target.root.set_flags(target.object_of(BARE), PLAIN_FLAGS)


def object_missing(target: Target) -> None:
    target.root.unlink(target.object_of(MISSING))


def object_other(target: Target) -> None:
    """Whoever asks for less gets a shell, from an object that is sound in itself."""
    target.root.link(target.object_of(BIG), target.object_of(OTHER))


def object_of_pid1(target: Target) -> None:
    target.root.flip(target.object_of(PID1), 100)


def manifest(target: Target) -> None:
    path = f"/deployments/{target.truth.images[target.newest][:16]}/manifest.json"
    target.root.write(path, target.root.read(path).replace(b'"version"', b'"vers1on"', 1))


ROWS = (
    Row("image-flipped", "tree", "one bit of the metadata image", ("fallback",), image_flipped, reason=IMAGE_REFUSED + EIO),
    Row("image-truncated", "tree", "the metadata image one block shorter", ("fallback",), image_truncated, reason=IMAGE_REFUSED),
    Row("image-other-deployment", "tree", "the other deployment's metadata image under its name", ("fallback",),
        image_other_deployment, reason=IMAGE_REFUSED + "it is not the image that was signed"),
    Row("image-unprotected", "tree", "the metadata image changed, its verity flag taken off", ("fallback",),
        image_unprotected, reason=IMAGE_REFUSED),
    Row("image-merkle", "tree", "one bit of the metadata image's Merkle tree", ("fallback",), image_merkle, reason=IMAGE_REFUSED),
    Row("image-missing", "tree", "the metadata image removed", ("fallback",), image_missing,
        reason=IMAGE_REFUSED + "No such file"),
    Row("object-data", "tree", "one bit of a program", ("harmless",), object_data,
        probes=(_unread(DATA, EIO), READS), together=OBJECTS),
    Row("object-merkle", "tree", "one bit of a program's Merkle tree", ("harmless",), object_merkle,
        probes=(_unread(BIG, EIO), READS), together=OBJECTS),
    Row("object-descriptor", "tree", "one bit of a program's verity descriptor", ("harmless",), object_descriptor,
        probes=(_unread(DESCRIPTOR, "error|denied|Bad message|Invalid"), READS), together=OBJECTS),
    Row("object-unprotected", "tree", "a program changed, its verity flag taken off", ("harmless",), object_unprotected,
        probes=(_unread(UNPROTECTED, EIO), READS), together=OBJECTS),
    Row("object-unprotected-same", "tree", "a program's verity flag taken off, nothing else", ("harmless",),
        object_unprotected_same, probes=(_unread(BARE, EIO), READS), together=OBJECTS),
    Row("object-missing", "tree", "a program's object removed", ("harmless",), object_missing,
        probes=(_unread(MISSING, "No such file|error"), READS), together=OBJECTS),
    Row("object-other", "tree", "another program's sound object under its name", ("harmless",), object_other,
        probes=(_unread(OTHER, EIO), READS), together=OBJECTS),
    Row("object-of-pid1", "tree", "one bit of systemd itself", ("fallback", "refused"), object_of_pid1,
        reason=r"systemd cannot be started|FILE CORRUPTED|boot preparation", way_back="bytes"),
    Row("manifest", "tree", "the newest deployment's manifest", ("harmless",), manifest, unnamed=True),
)  # fmt: skip
