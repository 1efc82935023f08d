# SPDX-License-Identifier: Apache-2.0
"""What the running system measured after the firmware: systemd's log, and Linux's own (IMA). All pure.

systemd writes ``/run/log/systemd/tpm2-measure.log``, JSON text sequences (RFC 7464) close to the TCG's canonical event log.
IMA without a policy measures one thing, the firmware's PCRs ("boot_aggregate"); its binary list is described in the
kernel's ``Documentation/security/IMA-templates.rst`` and ``security/integrity/ima/ima_fs.c``. Numbers are little endian.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Literal

from freehold.keys.wire import Reader

MAX_LOG_BYTES = 1 << 20
MAX_RECORDS = 10_000
_RECORD_START = b"\x1e"
_HEX = re.compile(r"[0-9a-f]{64}")
#: What systemd says in ``eventType`` and measures as the text that it logs.
_TEXTUAL = ("phase", "machine-id", "product-id", "filesystem")


@dataclass(frozen=True)
class Record:
    """One measurement of the running system; ``said`` is for people, ``proven`` when the digest is that of ``text``."""

    pcr: int
    digest: bytes
    source: Literal["systemd", "ima"]
    kind: str
    text: str
    proven: bool


def parse_systemd(log: bytes) -> tuple[Record, ...]:
    """systemd's log in order. :class:`ValueError` for anything else, and for a record without a SHA-256 digest."""
    if len(log) > MAX_LOG_BYTES:
        raise ValueError(f"larger than {MAX_LOG_BYTES} bytes")
    if not log:
        return ()
    first, *parts = log.split(_RECORD_START)
    if first or len(parts) > MAX_RECORDS:
        raise ValueError("not a sequence of JSON texts, or too many of them")
    return tuple(map(_systemd_record, parts))


def _systemd_record(part: bytes) -> Record:
    try:
        value = json.loads(part.decode())
    except (ValueError, RecursionError):
        raise ValueError("a record is not JSON") from None
    if not isinstance(value, dict):
        raise ValueError("a record is not an object")
    pcr, digests, content = value.get("pcr"), value.get("digests"), value.get("content")
    if not isinstance(pcr, int) or isinstance(pcr, bool) or not 0 <= pcr < 24 or not isinstance(digests, list):
        raise ValueError("a record without a PCR or digests")
    found = [one.get("digest") for one in digests[:16] if isinstance(one, dict) and one.get("hashAlg") == "sha256"]
    if len(found) != 1 or not isinstance(found[0], str) or not _HEX.fullmatch(found[0]):
        raise ValueError("a record without exactly one SHA-256 digest")
    content = content if isinstance(content, dict) else {}
    kind, text = content.get("eventType"), content.get("string")
    kind, text = (one if isinstance(one, str) else "" for one in (kind, text))
    digest = bytes.fromhex(found[0])
    try:
        proven = kind in _TEXTUAL and hashlib.sha256(text.encode()).digest() == digest
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell
        proven = False
    return Record(pcr, digest, "systemd", _clean(kind), _clean(text), proven)


def parse_ima(log: bytes) -> tuple[Record, ...]:
    """IMA's list with SHA-256 digests (``binary_runtime_measurements_sha256``). :class:`ValueError` for anything else."""
    if len(log) > MAX_LOG_BYTES:
        raise ValueError(f"larger than {MAX_LOG_BYTES} bytes")
    reader = Reader(log, "little")
    found: list[Record] = []
    while reader.left:
        if len(found) >= MAX_RECORDS:
            raise ValueError("too many records")
        pcr, digest = reader.number(4), reader.take(32)
        template, data = reader.sized(4, 64), reader.sized(4, 65536)
        if pcr >= 24:
            raise ValueError(f"there is no PCR {pcr}")
        proven = hashlib.sha256(data).digest() == digest
        # A file that changed while it was measured: the list has zeros, the PCR got ones.
        violation = digest == bytes(32)
        found.append(
            Record(
                pcr, b"\xff" * 32 if violation else digest, "ima", _clean(template.decode("latin-1")),
                _clean(_last_field(data)), proven,
            )
        )  # fmt: skip
    return tuple(found)


def _last_field(data: bytes) -> str:
    """The name of what was measured, in the templates that Linux uses by default (ima-ng, ima-sig)."""
    reader, fields = Reader(data, "little"), []
    try:
        while reader.left:
            fields.append(reader.sized(4, 65536))
    except ValueError:
        return ""
    return fields[1].rstrip(b"\0").decode("latin-1") if len(fields) >= 2 else ""


def _clean(text: str) -> str:
    """``text`` for a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)[:200]
