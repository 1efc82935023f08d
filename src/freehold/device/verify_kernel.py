# SPDX-License-Identifier: Apache-2.0
"""What ``freehold verify`` asks the kernel: digests, content, images, the ring of keys. I/O only; judged elsewhere."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from freehold.device.verify_image import MAX_FILES, METACOPY, REDIRECT, Listing, Pointer, pointer
from freehold.device.verify_keys import RING, Ring, find_ring, ring_keys
from freehold.errors import FreeholdError
from freehold.keys.kernel import measure_descriptor
from freehold.lock import mounts

#: Bytes of one read: enough that the disk, not Python, sets the speed.
BUFFER_BYTES = 1 << 20
_KEYCTL = {"x86_64": 250, "aarch64": 219}
_KEYCTL_READ, _KEYCTL_RESTRICT_KEYRING = 11, 29
#: More keys than this in the ring are an attack on memory.
_MAX_RING_KEYS = 4096


class Probe(NamedTuple):
    """The questions; tests answer some of them themselves, where the host has no fs-verity."""

    #: (descriptor, name) → the fs-verity digest that is enforced, ``None`` for none.
    measure: Callable[[int, str], bytes | None]
    #: (descriptor, buffer) → bytes read, from the disk where the kernel lets us; :class:`OSError` for damage.
    read: Callable[[int, bytearray], int]
    #: (descriptor of an image, directory to mount it at) → what it says; :class:`OSError`.
    list_image: Callable[[int, Path], Listing]
    #: text of /proc/keys → the ring.
    ring: Callable[[str], Ring]
    #: Before the first image is listed.
    isolate: Callable[[], None]


def read_through(fd: int, buffer: bytearray) -> int:
    """Read the whole file behind ``fd`` into ``buffer``, again and again; how many bytes. :class:`OSError` for damage.

    Nothing looks at the bytes: the kernel compares each block with the file's Merkle tree before it hands it out. What was
    read before is dropped first; pages that a process has mapped stay, and are not read from the disk again.
    """
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    size = os.fstat(fd).st_size
    done = 0
    while done < size:
        got = os.readv(fd, [buffer])
        if got == 0:
            raise OSError(errno.EIO, "it ends too early")
        done += got
    return done


def list_image(fd: int, place: Path) -> Listing:
    """Mount the metadata image that is open as ``fd`` at the directory ``place`` and list its files with data elsewhere.

    Read-only, nothing in it runs or counts as a device; unmounted before this returns. Raises :class:`OSError` when the kernel
    does not take it, :class:`FreeholdError` when it holds more than :data:`MAX_FILES` files.
    """
    place.mkdir(parents=True, exist_ok=True)
    flags = mounts.MS_RDONLY | mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC
    try:
        # The very file that was measured, whatever its name refers to by now.
        mounts.mount(f"/proc/self/fd/{fd}", place, "erofs", flags)
        try:
            return walk_image(str(place))
        finally:
            mounts.unmount(place)
    finally:
        place.rmdir()


def walk_image(top: str) -> Listing:
    """The files below ``top``, a mounted metadata image."""
    pointers: list[Pointer] = []
    faults: list[tuple[str, str]] = []
    waiting = [top]
    count = 0
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                count += 1
                if count > MAX_FILES:
                    raise FreeholdError(f"the image has more than {MAX_FILES} files")
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                    continue
                if not entry.is_file(follow_symlinks=False):
                    continue
                path = entry.path[len(top) :]
                size = entry.stat(follow_symlinks=False).st_size
                try:
                    one = pointer(path, size, _attribute(entry.path, REDIRECT), _attribute(entry.path, METACOPY))
                except ValueError as error:
                    faults.append((path, str(error)))
                    continue
                if one is not None:
                    pointers.append(one)
    return Listing(tuple(pointers), tuple(faults))


def _attribute(path: str, name: str) -> bytes | None:
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENODATA:
            return None
        raise


def read_regular(path: Path, limit: int) -> bytes:
    """The regular file ``path``, at most ``limit`` bytes.

    Root may have put a pipe or a link there: neither is followed, or waited for. :class:`FreeholdError` for those and for what
    is larger, :class:`OSError` when it is missing or unreadable.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as source:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise FreeholdError(f"{path} is not a regular file")
        content = source.read(limit + 1)
    if len(content) > limit:
        raise FreeholdError(f"{path} is larger than {limit} bytes")
    return content


def store_objects(objects: Path) -> dict[str, int]:
    """Every file object of a bare repository, ``xx/yyyy.file``, and its inode's number; links and empty ones too.

    :class:`OSError` when the store cannot be listed.
    """
    found: dict[str, int] = {}
    with os.scandir(objects) as groups:
        names = [one.name for one in groups if len(one.name) == 2 and one.is_dir(follow_symlinks=False)]
    for name in names:
        with os.scandir(objects / name) as entries:
            found.update((f"{name}/{entry.name}", entry.inode()) for entry in entries if entry.name.endswith(".file"))
    return found


def keyctl(operation: int, *arguments: int | bytes | None) -> int:
    """keyctl(2); :class:`OSError` with the kernel's reason."""
    number = _KEYCTL.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    libc = ctypes.CDLL(None, use_errno=True)
    words = [ctypes.c_long(one) if isinstance(one, int) else one for one in (*arguments, *[0] * (4 - len(arguments)))]
    result = int(libc.syscall(ctypes.c_long(number), ctypes.c_long(operation), *words))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def is_sealed(ring: int) -> bool | None:
    """Whether the keyring ``ring`` takes no more keys; ``None`` when the kernel does not say.

    /proc/keys does not tell. So the kernel is asked for a restriction that it must refuse: the ring by what is in the ring
    itself. It looks first whether there is a restriction already (EEXIST), then for such a circle (EDEADLK); see
    ``keyring_restrict`` in ``security/keys/keyring.c``. The ring stays as it is either way.
    """
    try:
        keyctl(_KEYCTL_RESTRICT_KEYRING, ring, b"asymmetric", b"key_or_keyring:%d" % ring)
    except OSError as error:
        return {errno.EEXIST: True, errno.EDEADLK: False}.get(error.errno or 0)
    return None


def keys_in(ring: int) -> list[int]:
    """The serial numbers of the keys in the keyring ``ring``; :class:`OSError`."""
    buffer = ctypes.create_string_buffer(4 * _MAX_RING_KEYS)
    libc = ctypes.CDLL(None, use_errno=True)
    number = _KEYCTL.get(platform.machine(), -1)
    length = libc.syscall(
        ctypes.c_long(number), ctypes.c_long(_KEYCTL_READ), ctypes.c_long(ring), buffer, ctypes.c_long(len(buffer))
    )  # fmt: skip
    if length < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    count = min(int(length), len(buffer)) // 4
    return list(struct.unpack_from(f"={count}i", buffer.raw))


def read_ring(keys: str) -> Ring:
    """The ``.fs-verity`` ring; ``keys`` is the text of /proc/keys. :class:`OSError` when it cannot be read."""
    serial = find_ring(keys, RING)
    if serial is None:
        return Ring(False, None, ())
    return Ring(True, is_sealed(serial), ring_keys(keys, keys_in(serial)))


KERNEL = Probe(
    measure=measure_descriptor, read=read_through, list_image=list_image, ring=read_ring, isolate=mounts.private_namespace
)  # fmt: skip
