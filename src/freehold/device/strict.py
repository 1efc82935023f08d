# SPDX-License-Identifier: Apache-2.0
"""Deployments that the owner signs elsewhere: the request a machine writes, the answer that comes back. Pure.

The request holds the very bytes that are to be signed, not digests of them: what the owner's computer shows is taken out
of the kernel image and the manifest that it then signs. The rescue image is the kernel image with another command line,
which the request names: both sides make it (:func:`freehold.device.derive.rescue_image`). File: one line
``freehold-derivation 1 N M``, N bytes of JSON, M bytes of unsigned UKI. The answer is JSON. Both have limits and one
spelling (docs/derived.md).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import NamedTuple

from freehold.device import derive
from freehold.device.derive import Signatures, Unsigned
from freehold.errors import InputError
from freehold.keys.x509 import Signer
from freehold.lock import intent as intents
from freehold.lock import requests
from freehold.lock.intent import Intent
from freehold.seal import kernel_inputs, repack
from freehold.update import rescue_entry
from freehold.update.manifest import UKI_LIMIT, Manifest, canonical, parse_manifest, serialize_manifest

MAGIC = b"freehold-derivation 1 "
ANSWER = "freehold-derivation-answer-1"
HEADER_LIMIT = 8 << 20
MAX_BYTES = UKI_LIMIT + HEADER_LIMIT + 64
MAX_ANSWER_BYTES = 1 << 20
_FIRST = re.compile(rb"freehold-derivation 1 ([1-9][0-9]{0,8}) ([1-9][0-9]{0,8})\n")
_RELEASE = re.compile(r"[0-9a-f]{64}")
_IMAGE = re.compile(r"(?:^| )freehold\.image=([^ ]*)")


class Ask(NamedTuple):
    """What a machine asks to have signed. ``intent`` is ``None`` when the standing one asks for the list already."""

    intent: Intent | None
    text: bytes
    unsigned: Unsigned


class Answer(NamedTuple):
    """Signatures over the deployment whose UKI has the Authenticode digest ``digest``, and the signed intent, if asked.

    ``release``: the image digest of the release that it is made from. No signature covers it: it says where to look.
    """

    digest: bytes
    signatures: Signatures
    intent: bytes | None
    release: str


def pack(ask: Ask) -> bytes:
    """The request file."""
    header = canonical({
        "intent": intents.serialize(ask.intent).decode() if ask.intent else "",
        "requests": ask.text.decode(),
        "manifest": serialize_manifest(ask.unsigned.manifest).decode(),
        "rescue": command_line(ask.unsigned.rescue),
        **({"policy": ask.unsigned.policy.decode()} if ask.unsigned.policy else {}),
    })  # fmt: skip
    return MAGIC + f"{len(header)} {len(ask.unsigned.uki)}\n".encode() + header + ask.unsigned.uki


def unpack(data: bytes) -> Ask:
    """The request in ``data``. :class:`InputError` unless all its parts speak of one and the same deployment."""
    first = _FIRST.match(data[:64])
    if first is None or len(data) > MAX_BYTES:
        raise _bad("it is none")
    length, size = int(first[1]), int(first[2])
    if length > HEADER_LIMIT or len(data) != first.end() + length + size:
        raise _bad("its length is not what it says")
    fields = _fields(data[first.end() : first.end() + length], ("intent", "requests", "manifest", "rescue"), "policy")
    uki = data[first.end() + length :]
    text = fields["requests"].encode()
    intent = intents.parse(fields["intent"].encode()) if fields["intent"] else None
    manifest = parse_manifest(fields["manifest"].encode())
    rescue = fields["rescue"]
    policy = fields.get("policy", "").encode()
    _consistent(intent, text, manifest, uki, rescue)
    _inputs_consistent(manifest, policy, [command_line(uki), rescue])
    made = derive.rescue_image(uki, rescue)
    return Ask(intent, text, Unsigned(manifest, uki, made, repack.digest(repack.parse(uki)), policy))


def _consistent(intent: Intent | None, text: bytes, manifest: Manifest, uki: bytes, rescue: str) -> None:
    listed, derived = requests.parse(text), manifest.derived
    name = requests.name_of(text)
    if derived is None or derived.requests != name or derived.lines != listed.lines:
        raise _bad("its manifest is not of its list of requests")
    if intent is not None and intent.requests != name:
        raise _bad("its intent names another list of requests")
    program = repack.parse(uki)
    if program.certificates[1]:
        raise _bad("its kernel image is signed already")
    lines = [line.decode("ascii", "replace") for line in program.contents(".cmdline")]
    if not lines or any(_IMAGE.findall(line) != [manifest.image_digest] for line in lines):
        raise _bad("its kernel image starts another tree than its manifest names")
    sound = rescue.isascii() and rescue.isprintable() and rescue_entry.is_rescue(rescue)
    if not sound or _IMAGE.findall(rescue) != [manifest.image_digest] or any(map(rescue_entry.is_rescue, lines)):
        raise _bad("it has not one command line for the deployment and one for its rescue entry")


def _inputs_consistent(manifest: Manifest, policy: bytes, lines: list[str]) -> None:
    """One policy of kernel inputs, or none: the release's own, which the manifest has, or another, which is signed now."""
    if policy and manifest.inputs is not None:
        raise _bad("it has two lists of kernel inputs")
    name = kernel_inputs.check(policy) if policy else manifest.inputs.name if manifest.inputs else ""
    if any(kernel_inputs.named(line) != name for line in lines):
        raise _bad("its command lines name other kernel inputs than it has")


def command_line(uki: bytes) -> str:
    """The sealed command line of a UKI, for people and for checks."""
    return repack.content(repack.parse(uki), ".cmdline").decode("ascii", "replace")


def describe(ask: Ask) -> list[str]:
    """In words, what a signature would put into force. Pure."""
    manifest, listed = ask.unsigned.manifest, requests.parse(ask.text)
    derived = manifest.derived
    lines = [
        f"deployment {manifest.version} of {manifest.name}, made from release {derived.version if derived else '?'}:"
    ]
    lines += [f"  {line}" for line in requests.describe(listed)]
    lines += [f"kernel command line: {command_line(ask.unsigned.uki)}"]
    lines += [f"of the rescue entry: {command_line(ask.unsigned.rescue)}"]
    lines += [f"{len(manifest.packages)} packages, tree {manifest.image_digest[:16]}"]
    if ask.unsigned.policy:
        modules, others = kernel_inputs.count(ask.unsigned.policy)
        lines += [f"other kernel inputs than the release's: {modules} modules and {others} firmware files in all"]
    lines += [f"WARNING: {warning}" for warning in requests.warnings(listed)]
    return lines


def answer(ask: Ask, signer: Signer) -> bytes:
    """Sign everything that ``ask`` asks for."""
    signatures, derived = derive.sign(ask.unsigned, signer), ask.unsigned.manifest.derived
    return canonical({
        "format": ANSWER,
        "digest": ask.unsigned.signature_digest.hex(),
        "uki": base64.b64encode(signatures.uki).decode(),
        "rescue": base64.b64encode(signatures.rescue).decode(),
        "manifest": signatures.manifest.decode(),
        "intent": intents.sign(ask.intent, signer.sign).decode() if ask.intent else "",
        "release": derived.base if derived else "",
        **({"policy": base64.b64encode(signatures.policy).decode()} if signatures.policy else {}),
    })  # fmt: skip


def parse_answer(data: bytes) -> Answer:
    """The answer in ``data``; :class:`InputError` when it is none. Whether its signatures count is for others to say."""
    if len(data) > MAX_ANSWER_BYTES:
        raise _bad("the answer is too large")
    fields = _fields(data, ("format", "digest", "uki", "rescue", "manifest", "intent", "release"), "policy")
    try:
        uki, rescue, policy = (base64.b64decode(fields.get(name, ""), validate=True) for name in ("uki", "rescue", "policy"))
        digest = bytes.fromhex(fields["digest"])
    except (ValueError, binascii.Error):
        raise _bad("the answer has no signature") from None
    if fields["format"] != ANSWER or len(digest) != 32 or not _RELEASE.fullmatch(fields["release"]):
        raise _bad("it is no answer")
    signatures = Signatures(uki, rescue, fields["manifest"].encode(), "", policy)
    return Answer(digest, signatures, fields["intent"].encode() or None, fields["release"])


def _fields(data: bytes, keys: tuple[str, ...], optional: str) -> dict[str, str]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise _bad("it is not readable") from None
    if (
        not isinstance(value, dict)
        or set(value) - {optional} != set(keys)
        or not all(isinstance(one, str) for one in value.values())
    ):
        raise _bad("it has not the fields that it should")
    try:
        if canonical(value) != data:
            raise _bad("it is not spelt as Freehold writes it")
    except UnicodeEncodeError:
        raise _bad("it has characters that are none") from None
    return value


def _bad(reason: str) -> InputError:
    return InputError(f"this is not a usable request for a deployment: {reason}")
