# SPDX-License-Identifier: Apache-2.0
"""What may be read into the kernel: the policy of a tree for IPE (docs/kernel-inputs.md). Pure.

The policy's text is a function of the tree's modules and firmware files alone: builders, machines and whoever wants to check come
to the same bytes. It is named by the SHA-256 of its rules, and the sealed command line has that name; so a policy of another tree
is not this one's, whoever signed it. Grammar: kernel ``Documentation/admin-guide/LSM/ipe.rst``, 6.12.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping

from freehold.errors import InputError
from freehold.keys import cms, der
from freehold.seal import erofs
from freehold.seal.headerball import Entry

#: Beside a deployment's manifest: the policy as the kernel takes it.
FILE = "kernel-inputs.p7"
#: The word of the command line. ``early/inputs.h`` has both as well.
WORD = "freehold.inputs"
#: Bytes. The kernel's reader of CMS takes no more than 65,535 (lib/asn1_decoder.c, EMSGSIZE), and the text is inside of one with
#: up to three certificates.
MAX_BYTES = 56 << 10
#: Where the kernel, and kmod, look; everything below counts, whatever its name.
PLACES = (("KMODULE", "/usr/lib/modules/"), ("FIRMWARE", "/usr/lib/firmware/"))
#: What the kernel reads and nobody here needs: a kexec is no verified boot, policies and certificates come otherwise.
CLOSED = ("KEXEC_IMAGE", "KEXEC_INITRAMFS", "POLICY", "X509_CERT")
_MODULE = re.compile(r"\.ko(?:\.[a-z0-9]+)?\Z")
_NAMED = re.compile(rf"(?:^|\s){re.escape(WORD)}=([0-9a-f]{{64}})(?=\s|\Z)")
_HEAD = re.compile(r"policy_name=freehold-([0-9a-f]{64}) policy_version=0\.0\.0\n")


def rules(entries: Iterable[Entry]) -> str:
    """The rules for a tree's ``entries``: which files are modules and firmware, by their fs-verity digests.

    A list that is too long for the kernel is left out, the longest one first: of these files the others judge
    (docs/kernel-inputs.md).
    """
    digests: dict[str, set[str]] = {operation: set() for operation, _ in PLACES}
    for entry in entries:
        for operation, place in PLACES:
            wanted = entry.path.startswith(place) and (operation != "KMODULE" or _MODULE.search(entry.path))
            if wanted and entry.digest:
                digests[operation].add(entry.digest.hex())
    for operation in sorted(digests, key=lambda one: -len(digests[one])):
        if len(policy(text := _text(digests))) <= MAX_BYTES:
            return text
        del digests[operation]
    return _text(digests)


def _text(digests: Mapping[str, Collection[str]]) -> str:
    lines = ["DEFAULT action=ALLOW"]
    for operation, found in digests.items():
        lines.append(f"DEFAULT op={operation} action=DENY")
        lines += [f"op={operation} fsverity_digest=sha256:{digest} action=ALLOW" for digest in sorted(found)]
        # The owner's own, signed for the kernel's sealed ring.
        lines.append(f"op={operation} fsverity_signature=TRUE action=ALLOW")
    lines += [f"DEFAULT op={operation} action=DENY" for operation in CLOSED]
    return "".join(f"{line}\n" for line in lines)


def policy(text: str) -> bytes:
    """The policy with the rules ``text``, as it is signed."""
    return f"policy_name=freehold-{name_of(text)} policy_version=0.0.0\n{text}".encode()


def of_image(data: bytes) -> bytes:
    """The policy of the tree in the metadata image ``data``. :class:`InputError` when it is no image of ours."""
    return policy(rules(erofs.below(data, [place.rstrip("/") for _, place in PLACES])))


def name_of(text: str) -> str:
    """The name of the rules ``text``: their SHA-256 in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def check(data: bytes) -> str:
    """The name of the policy ``data``. :class:`InputError` unless it is one, of bounded size, called by its own rules."""
    head = _HEAD.match(data[:256].decode("ascii", "replace"))
    text = data.partition(b"\n")[2]
    if len(data) > MAX_BYTES or head is None or hashlib.sha256(text).hexdigest() != head[1]:
        raise InputError("this is no policy of kernel inputs")
    return head[1]


def count(data: bytes) -> tuple[int, int]:
    """How many modules and firmware files the policy ``data`` lists."""
    return data.count(b"\nop=KMODULE fsverity_digest="), data.count(b"\nop=FIRMWARE fsverity_digest=")


def named(line: str) -> str:
    """The policy that a kernel command line names, "" when it names none or more than one."""
    found = set(_NAMED.findall(line))
    return str(found.pop()) if len(found) == 1 else ""


def word(name: str) -> str:
    """How the command line names a policy."""
    return f"{WORD}={name}"


def sign(data: bytes, signer: cms.Signs) -> bytes:
    """The detached signature by which kernels take the policy ``data`` whose firmware knows the signer, or who certified it.

    Raises :class:`InputError` when the signer's certificate is not valid now.
    """
    signer.check_dates()
    return cms.sign(data, signer.certificate_der(), signer.sign, attached=False)


def content(whole: bytes) -> bytes:
    """The policy inside of what :func:`attach` made. :class:`InputError` when there is none."""
    try:
        _, outer = der.children(der.only(whole, der.SEQUENCE))
        parts = der.children(der.only(der.only(outer.whole, der.EXPLICIT_0), der.SEQUENCE))
        inside = der.children(parts[2].content)[1]
        return der.only(der.only(inside.whole, der.EXPLICIT_0), der.OCTETS)
    except (ValueError, IndexError):
        raise InputError("this is no signed policy of kernel inputs") from None


def attach(signature: bytes, data: bytes) -> bytes:
    """The policy ``data`` with its detached ``signature`` (:mod:`freehold.keys.cms`), as the kernel takes it.

    Whether the signature is right, the kernel says. :class:`InputError` when it is no signature.
    """
    try:
        kind, outer = der.children(der.only(signature, der.SEQUENCE))
        parts = der.children(der.only(der.only(outer.whole, der.EXPLICIT_0), der.SEQUENCE))
        (data_kind,) = der.children(parts[2].content)
    except (ValueError, IndexError):
        raise InputError("the signature of the kernel inputs is none") from None
    content = der.wrap(der.SEQUENCE, data_kind.whole + der.wrap(der.EXPLICIT_0, der.wrap(der.OCTETS, data)))
    inside = b"".join(part.whole for part in parts[:2]) + content + b"".join(part.whole for part in parts[3:])
    return der.wrap(der.SEQUENCE, kind.whole + der.wrap(der.EXPLICIT_0, der.wrap(der.SEQUENCE, inside)))
