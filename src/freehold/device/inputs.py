# SPDX-License-Identifier: Apache-2.0
"""The policy of kernel inputs of a deployment, where the early step looks for it (docs/kernel-inputs.md).

A manifest has the policy's name and its signature; the text follows from the image. So nothing more is fetched, and a lost file
is made again. Only the kernel's word counts: what lies there is neither believed nor needed by anybody else.
"""

from __future__ import annotations

from pathlib import Path

from freehold import atomic
from freehold.device.sysroot import Sysroot
from freehold.errors import FreeholdError, VerificationError
from freehold.files import read_bytes
from freehold.seal import kernel_inputs
from freehold.update.manifest import IMAGE_LIMIT, Manifest


def place(sysroot: Sysroot, manifest: Manifest) -> None:
    """Write the policy beside the deployment's manifest, unless it is there; nothing for a tree without one.

    :class:`VerificationError` when the image has other kernel inputs than the manifest says.
    """
    if manifest.inputs is None or is_whole(sysroot, manifest):
        return
    data = kernel_inputs.of_image(read_bytes(sysroot.images / manifest.image_digest, IMAGE_LIMIT))
    if kernel_inputs.check(data) != manifest.inputs.name:
        raise VerificationError(
            f"the image of {manifest.version} has other kernel inputs than its manifest says",
            hint="the machine is unchanged",
        )
    atomic.write(_path(sysroot, manifest), kernel_inputs.attach(manifest.inputs.signature, data))


def of_running(sysroot: Sysroot, name: str) -> bytes:
    """The signed policy ``name`` of the running deployment, made again where it was lost; b"" when it cannot be."""
    deployment = sysroot.deployment(sysroot.booted_id())
    if deployment is None or deployment.manifest.inputs is None or deployment.manifest.inputs.name != name:
        return b""
    try:
        place(sysroot, deployment.manifest)
        return read_bytes(_path(sysroot, deployment.manifest), 2 * kernel_inputs.MAX_BYTES)
    except (OSError, FreeholdError):
        return b""


def is_whole(sysroot: Sysroot, manifest: Manifest) -> bool:
    """Whether the file that the early step will read is there, and what the manifest says; true for a tree without a policy."""
    if manifest.inputs is None:
        return True
    try:
        whole = read_bytes(_path(sysroot, manifest), kernel_inputs.MAX_BYTES + len(manifest.inputs.signature) + 64)
        data = kernel_inputs.content(whole)
        again = kernel_inputs.attach(manifest.inputs.signature, data)
        return kernel_inputs.check(data) == manifest.inputs.name and whole == again
    except (OSError, FreeholdError):
        return False


def _path(sysroot: Sysroot, manifest: Manifest) -> Path:
    return sysroot.deployments / manifest.id / kernel_inputs.FILE
