# SPDX-License-Identifier: Apache-2.0
"""Release manifests and stream pointers: parsing and writing, no I/O (docs/release-format.md).

A manifest names everything a release consists of; one signature over its bytes covers all of it. A stream
pointer names the newest release of a stream. Both are JSON with sorted keys and no spaces. Parsing is
strict about what it reads (types, ranges, duplicate keys) and ignores keys that it does not know, so
that a newer builder can say more without stranding older machines. The values are named tuples rather than data
classes, whose import alone is a tenth of the time that ``freehold status`` may take.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from typing import NamedTuple

from freehold.errors import InputError
from freehold.keys.wire import json_object

MANIFEST_FORMAT = "freehold-release-1"
STREAM_FORMAT = "freehold-stream-1"
#: Sizes in bytes above which a document is refused unread.
MANIFEST_LIMIT = 4 << 20
STREAM_LIMIT = 64 << 10
SIGNATURE_LIMIT = 16384
#: Metadata images and UKIs larger than this are a mistake or an attack on the disk.
IMAGE_LIMIT = 1 << 30
UKI_LIMIT = 512 << 20
#: Hex digits of the image digest that make a deployment's id.
ID_LENGTH = 16
#: Times and release numbers.
NUMBER_LIMIT = 2**53
_PACKAGES_LIMIT = 50_000
_LINES_LIMIT = 512

_IMAGE = re.compile(r"(?:^|\s)freehold\.image=([0-9a-f]{64})(?=\s|\Z)")
_HEX64 = re.compile(r"[0-9a-f]{64}\Z")
#: No "+", which begins the boot counter in file names on the ESP; nothing that FAT refuses; not how rescue entries begin.
_VERSION = re.compile(r"(?!(?i:rescue)(?:-|\Z))[0-9A-Za-z][0-9A-Za-z.~^_-]{0,63}\Z")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")
_LINE = re.compile(r"[ -~]{1,1024}\Z")
_WORD = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+~:_-]{0,127}\Z")
_FILE = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+~^_-]{0,127}\Z")


class Uki(NamedTuple):
    """A unified kernel image of a release, the normal or the rescue one: file name, sha256 (hex) and size in bytes."""

    name: str
    sha256: str
    size: int


class Derived(NamedTuple):
    """What a machine made its deployment from: a release, and the owner's requests.

    ``base`` is the release's image digest, ``manifest`` the SHA-256 of its manifest, ``version`` its version;
    ``requests`` the SHA-256 of the list, ``lines`` the list itself.
    """

    base: str
    manifest: str
    version: str
    requests: str
    lines: tuple[str, ...] = ()


class Inputs(NamedTuple):
    """The policy of what may be read into the kernel (docs/kernel-inputs.md): its name, and its detached signature (CMS, DER)."""

    name: str
    signature: bytes


class Manifest(NamedTuple):
    """What one release consists of. ``timestamp`` in seconds since 1970; sizes in bytes; digests in hex.

    ``number`` orders releases for the rollback floor (docs/floor.md); the UKI's command line has the same.
    """

    name: str
    version: str
    commit: str
    image_digest: str
    image_size: int
    uki: Uki
    rescue: Uki
    timestamp: int
    number: int
    architecture: str
    kernel: str
    suite: str
    pockets: tuple[str, ...] = ()
    packages: tuple[tuple[str, str, str], ...] = ()
    #: Only in what a machine made for itself; a publisher's release has none.
    derived: Derived | None = None
    #: What is signed of the kernel inputs; the text follows from the image. None: the tree has no such policy.
    inputs: Inputs | None = None

    @property
    def id(self) -> str:
        """The deployment id: the first 16 hex digits of the image digest."""
        return self.image_digest[:ID_LENGTH]


class Stream(NamedTuple):
    """Which release a stream points to; ``manifest_sha256`` in hex, ``timestamp`` in seconds since 1970."""

    stream: str
    version: str
    manifest_sha256: str
    timestamp: int


def canonical(value: object) -> bytes:
    """``value`` as canonical JSON: UTF-8, sorted keys, no spaces, no newline at the end."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256(data: bytes) -> str:
    """SHA-256 of ``data`` in hex."""
    return hashlib.sha256(data).hexdigest()


def image_of(cmdline: str) -> str:
    """The image digest that a kernel command line names, "" when it names none or more than one."""
    found = set(_IMAGE.findall(cmdline))
    return str(found.pop()) if len(found) == 1 else ""


def version_valid(version: str) -> bool:
    """Whether ``version`` may name a release."""
    return bool(_VERSION.match(version)) and ".." not in version


def stream_valid(stream: str) -> bool:
    """Whether ``stream`` may name a stream."""
    return bool(_NAME.match(stream)) and ".." not in stream


def serialize_manifest(manifest: Manifest) -> bytes:
    """The bytes to sign and to publish."""
    return canonical(
        {
            "format": MANIFEST_FORMAT,
            "name": manifest.name,
            "version": manifest.version,
            "commit": manifest.commit,
            "image_digest": manifest.image_digest,
            "image_size": manifest.image_size,
            "uki": manifest.uki._asdict(),
            "rescue": manifest.rescue._asdict(),
            "timestamp": manifest.timestamp,
            "number": manifest.number,
            "architecture": manifest.architecture,
            "kernel": manifest.kernel,
            "suite": manifest.suite,
            "pockets": list(manifest.pockets),
            "packages": [list(package) for package in sorted(manifest.packages)],
            **({"derived": _derived_fields(manifest.derived)} if manifest.derived else {}),
            **({"kernel_inputs": _inputs_fields(manifest.inputs)} if manifest.inputs else {}),
        }
    )


def _derived_fields(derived: Derived) -> dict[str, object]:
    return {**derived._asdict(), "lines": list(derived.lines)}


def _inputs_fields(inputs: Inputs) -> dict[str, str]:
    return {"name": inputs.name, "signature": base64.b64encode(inputs.signature).decode()}


def serialize_stream(stream: Stream) -> bytes:
    """The bytes to sign and to publish."""
    return canonical(
        {
            "format": STREAM_FORMAT,
            "stream": stream.stream,
            "version": stream.version,
            "manifest_sha256": stream.manifest_sha256,
            "timestamp": stream.timestamp,
        }
    )


class _Reader:
    """Takes typed values out of a JSON object and collects every fault."""

    def __init__(self, what: str, fields: Mapping[str, object]) -> None:
        self.what = what
        self.fields = fields
        self.faults: list[str] = []

    def text(self, key: str, pattern: re.Pattern[str], *, meaning: str) -> str:
        value = self.fields.get(key)
        if isinstance(value, str) and pattern.match(value) and ".." not in value:
            return value
        self.faults.append(f"{key}: {meaning} expected")
        return ""

    def number(self, key: str, low: int, high: int) -> int:
        value = self.fields.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        self.faults.append(f"{key}: a number from {low} to {high} expected")
        return low

    def finish(self) -> None:
        if self.faults:
            raise InputError(f"the {self.what} is not valid: {self.faults[0]}", faults=self.faults)


def _load(data: bytes, what: str, limit: int, wanted: str) -> _Reader:
    if len(data) > limit:
        raise InputError(f"the {what} is larger than {limit} bytes")
    try:
        value = json_object(data)
    except ValueError:
        raise InputError(f"the {what} is not a JSON object") from None
    if value.get("format") != wanted:
        found = str(value.get("format"))[:40]
        raise InputError(f"the {what} has the format {found!r}, this version reads {wanted!r}")
    return _Reader(what, value)


def parse_manifest(data: bytes) -> Manifest:
    """Read manifest bytes; :class:`InputError` lists every fault."""
    reader = _load(data, "release manifest", MANIFEST_LIMIT, MANIFEST_FORMAT)
    result = Manifest(
        name=reader.text("name", _NAME, meaning="a name"),
        version=reader.text("version", _VERSION, meaning="a version (letters, digits and .~^_-)"),
        commit=reader.text("commit", _HEX64, meaning="64 hex digits"),
        image_digest=reader.text("image_digest", _HEX64, meaning="64 hex digits"),
        image_size=reader.number("image_size", 1, IMAGE_LIMIT),
        uki=_uki(reader, "uki"),
        rescue=_uki(reader, "rescue"),
        timestamp=reader.number("timestamp", 1, NUMBER_LIMIT),
        number=reader.number("number", 0, NUMBER_LIMIT),
        architecture=reader.text("architecture", _WORD, meaning="an architecture"),
        kernel=reader.text("kernel", _WORD, meaning="a kernel version"),
        suite=reader.text("suite", _WORD, meaning="a suite"),
        pockets=_words(reader, "pockets"),
        packages=_packages(reader),
        derived=_derived(reader),
        inputs=_inputs(reader),
    )
    reader.finish()
    return result


def parse_stream(data: bytes) -> Stream:
    """Read a stream pointer's bytes; :class:`InputError` lists every fault."""
    reader = _load(data, "stream pointer", STREAM_LIMIT, STREAM_FORMAT)
    result = Stream(
        stream=reader.text("stream", _NAME, meaning="a name"),
        version=reader.text("version", _VERSION, meaning="a version (letters, digits and .~^_-)"),
        manifest_sha256=reader.text("manifest_sha256", _HEX64, meaning="64 hex digits"),
        timestamp=reader.number("timestamp", 1, NUMBER_LIMIT),
    )
    reader.finish()
    return result


def _uki(reader: _Reader, key: str) -> Uki:
    nested = reader.fields.get(key)
    inner = _Reader(key, nested if isinstance(nested, dict) else {})
    result = Uki(
        name=inner.text("name", _FILE, meaning="a file name"),
        sha256=inner.text("sha256", _HEX64, meaning="64 hex digits"),
        size=inner.number("size", 1, UKI_LIMIT),
    )
    reader.faults.extend(f"{key}.{fault}" for fault in inner.faults)
    return result


def _derived(reader: _Reader) -> Derived | None:
    if "derived" not in reader.fields:
        return None
    nested = reader.fields["derived"]
    inner = _Reader("derived", nested if isinstance(nested, dict) else {})
    lines = inner.fields.get("lines")
    sound = isinstance(lines, list) and len(lines) <= _LINES_LIMIT
    if not (sound and isinstance(lines, list) and all(isinstance(line, str) and _LINE.match(line) for line in lines)):
        inner.faults.append("lines: a list of requests expected")
        lines = []
    result = Derived(
        base=inner.text("base", _HEX64, meaning="64 hex digits"),
        manifest=inner.text("manifest", _HEX64, meaning="64 hex digits"),
        version=inner.text("version", _VERSION, meaning="a version"),
        requests=inner.text("requests", _HEX64, meaning="64 hex digits"),
        lines=tuple(lines),
    )
    reader.faults.extend(f"derived.{fault}" for fault in inner.faults)
    return result


def _inputs(reader: _Reader) -> Inputs | None:
    if "kernel_inputs" not in reader.fields:
        return None
    nested = reader.fields["kernel_inputs"]
    inner = _Reader("kernel_inputs", nested if isinstance(nested, dict) else {})
    name = inner.text("name", _HEX64, meaning="64 hex digits")
    text, signature = inner.fields.get("signature"), b""
    if isinstance(text, str) and len(text) <= SIGNATURE_LIMIT:
        with contextlib.suppress(ValueError, binascii.Error):
            signature = base64.b64decode(text, validate=True)
    if not signature:
        inner.faults.append("signature: base64 expected")
    reader.faults.extend(f"kernel_inputs.{fault}" for fault in inner.faults)
    return Inputs(name, signature)


def _words(reader: _Reader, key: str) -> tuple[str, ...]:
    value = reader.fields.get(key, [])
    if isinstance(value, list) and len(value) <= 64 and all(isinstance(w, str) and _WORD.match(w) for w in value):
        return tuple(value)
    reader.faults.append(f"{key}: a list of words expected")
    return ()


def _packages(reader: _Reader) -> tuple[tuple[str, str, str], ...]:
    value = reader.fields.get("packages", [])
    result: list[tuple[str, str, str]] = []
    if isinstance(value, list) and len(value) <= _PACKAGES_LIMIT:
        for row in value:
            if not isinstance(row, list) or len(row) != 3:
                break
            if not all(isinstance(word, str) and _WORD.match(word) for word in row):
                break
            result.append((row[0], row[1], row[2]))
        else:
            return tuple(result)
    reader.faults.append("packages: a list of [name, version, architecture] expected")
    return ()


class Difference(NamedTuple):
    """Packages that two releases do not share: rows of (name, old version, new version)."""

    added: tuple[tuple[str, str], ...]
    removed: tuple[tuple[str, str], ...]
    changed: tuple[tuple[str, str, str], ...]


def difference(old: Manifest, new: Manifest) -> Difference:
    """Which packages go, come and change between ``old`` and ``new``."""
    before = {(name, arch): version for name, version, arch in old.packages}
    after = {(name, arch): version for name, version, arch in new.packages}
    return Difference(
        added=tuple((key[0], after[key]) for key in sorted(after.keys() - before.keys())),
        removed=tuple((key[0], before[key]) for key in sorted(before.keys() - after.keys())),
        changed=tuple(
            (key[0], before[key], after[key])
            for key in sorted(before.keys() & after.keys())
            if before[key] != after[key]
        ),
    )
