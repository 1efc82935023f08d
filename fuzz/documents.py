# SPDX-License-Identifier: Apache-2.0
"""Target: documents and binary formats from mirrors, firmware, other machines and programs: manifests, parts, DER, PKCS#7,
EFI programs and lists, logs of measurements, attestations, device keys' files, boot entries, records of refusals, Ignition's
configurations, requests to commit, policies for PCRs, listings of media, the update server's address.

A reader refuses by the errors that its documentation names, and by no other. What has one spelling is written again and compared.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from freehold.attest import document, measured, userlog
from freehold.attest import tpm as quotes
from freehold.boot import provision
from freehold.device import loader, sysroot
from freehold.errors import InputError
from freehold.keys import dbx, der, device, efi, eventlog, pcr, pe, pkcs7, wire
from freehold.lock import denials, etc_request
from freehold.rescue import media
from freehold.update import manifest, parts
from fuzz.engine import must

WORDS = (
    b"freehold-manifest", b'"format":', b"freehold-", b"-rescue-", b"+3-1", b".efi", b"0123456789abcdef", b"MZ",
    b"PE\0\0", b".cmdline\0", b".profile\0", b".linux\0\0", b"Spec ID Event03\0", b"\x1e", b"sha256", b"\x30\x82",
    b"\x81", b"\x82\0", b"\xa0\x03", b"\x31\x00", b"1.0~rc1", b"null", b"\\u0000", b"\\ud800", b"-1", b"1e400",
    b"9" * 400, b"enable x.service\n", b"exec", b"{path}", b" / / ", b"http://[", b"freehold-etc 1\n",
)  # fmt: skip
KNOWN = bytes(range(256)) * 8


def _manifest(data: bytes) -> object:
    value = manifest.parse_manifest(data)
    must(manifest.parse_manifest(manifest.serialize_manifest(value)) == value, "a manifest, written and read, is the same")
    must(all(one.isprintable() for row in value.packages for one in row), "packages are words")
    must("/" not in value.uki.name + value.rescue.name, "files have plain names")
    return value.derived is None


def _stream(data: bytes) -> object:
    value = manifest.parse_stream(data)
    must(manifest.parse_stream(manifest.serialize_stream(value)) == value, "a stream, written and read, is the same")
    return True


def _parts(data: bytes) -> object:
    must(len(parts.rebuild(KNOWN, data, 1024)) == 1024, "what is made has the size that was asked for")
    return True


def _der(data: bytes) -> object:
    found = der.children(data)
    must(b"".join(one.whole for one in found) == data, "elements are all there is")
    must(all(der.wrap(one.tag, one.content) == one.whole for one in found), "an element has one spelling")
    return len(found) > 2


def _signed(data: bytes) -> object:
    signed = pkcs7.parse(data)
    must(all(one in data for one in signed.certificates), "certificates are enclosed")
    return len(signed.signers), len(signed.certificates)


def _certificate(data: bytes) -> object:
    part = efi.signed_part(data)
    must(part and part in data, "the signed part is a part")
    return True


def _program(data: bytes) -> object:
    program = pe.parse(data)
    must(len(program.authenticode()) == 32, "a digest is a digest")
    for section in program.sections:
        must(len(program.loaded(section)) == section.size, "a section is as large as it says")
    answer = len(program.sections) > 2
    return answer, pe.command_line(program.stored(pe.command_line_section(program)))[:1] != ""


def _lists(data: bytes) -> object:
    found = efi.parse_lists(data)
    must(all(one.data in data for one in found), "entries are in the list")
    return len(found) > 1


def _update(data: bytes) -> object:
    update = dbx.read(data)
    must(update.entries and data.endswith(update.lists), "an update adds what it has")
    return len(update.entries) > 1


def _firmware_log(data: bytes) -> object:
    events, locality = eventlog.parse(data)
    must(all(0 <= one.pcr < 24 and len(one.digest) == 32 for one in events), "an event is of a PCR")
    return len(events) > 2, locality


def _variable(data: bytes) -> object:
    must(eventlog.serialize_variable(eventlog.parse_variable(data)) == data, "a variable has one spelling")
    return True


def _records(data: bytes) -> object:
    found = userlog.parse_systemd(data)
    must(all(one.text.isprintable() and 0 <= one.pcr < 24 for one in found), "what is shown is printable")
    return len(found) > 1


def _ima(data: bytes) -> object:
    found = userlog.parse_ima(data)
    must(all(one.text.isprintable() for one in found), "what is shown is printable")
    return len(found) > 0


def _boot(data: bytes) -> object:
    value = measured.parse(data)
    return value.state, value.word


def _attestation(data: bytes) -> object:
    value = document.parse_attestation(data)
    must(document.parse_attestation(document.serialize_attestation(value)) == value, "what is written reads the same")
    return True


def _evidence(data: bytes) -> object:
    value = document.parse_evidence(data)
    must(value.command_line.isprintable(), "a command line is one line")
    return value.intent is None


def _identity(data: bytes) -> object:
    value = document.parse_identity(data)
    must(document.parse_identity(document.serialize_identity(value)) == value, "an identity, written and read, is the same")
    return len(value.programs)


def _quote(data: bytes) -> object:
    quotes.parse_quote(data)
    return True


def _public(data: bytes) -> object:
    quotes.parse_public(data)
    return True


def _device(data: bytes) -> object:
    if device.is_request(data):
        must(device.write_request(device.read_request(data)) == data, "a request has one spelling")
        return "request"
    must(device.write_key(device.read_key(data)) == data, "a key's file has one spelling")
    return "key"


def _facts(data: bytes) -> object:
    must(device.write_facts(device.read_facts(data)) == data, "facts have one spelling")
    return True


def _object(data: bytes) -> object:
    return len(wire.json_object(data)) > 1


def _names(data: bytes) -> object:
    entries = []
    for name in data.decode("latin-1").split("\n")[:50]:
        entry, rescue = loader.parse(name), loader.parse_rescue(name)
        must(entry is None or rescue is None, "an entry is a deployment's or a rescue's")
        for one in (entry, rescue):
            must(one is None or one in (loader.parse(one.name), loader.parse_rescue(one.name)), "a name is read as written")
            must(one is None or "/" not in one.name, "a name stays in its directory")
        if entry is not None:
            entries.append(entry)
    order = loader.order(entries)
    must(sorted(map(repr, order)) == sorted(map(repr, entries)), "an order leaves nothing out")
    return len(entries)


def _refusals(data: bytes) -> object:
    value = json.loads(data)
    records = [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
    found = denials.group(records, booted=0.0, find=lambda path: None)
    text = denials.text(found, "locked")
    must("\x1b" not in text and "\r" not in text, "a name cannot paint on the terminal")
    json.dumps(denials.data(found, "locked"))
    return len(found)


def _places(data: bytes) -> object:
    path, _, table = data.decode(errors="replace").partition("\n")
    return min(len(denials.places(path, table)), 3)


def _ignition(data: bytes) -> object:
    found = provision.unsupported(data)
    return len(found), len(provision.preset_units(data.decode(errors="replace"))) > 0


def _commit(data: bytes) -> object:
    text, carried = etc_request.split(data)
    must(etc_request.pack(text, carried) == data if carried else text == data, "a request to commit has one spelling")
    return carried is None


def _policies(data: bytes) -> object:
    found = pcr.parse(data)
    must(pcr.parse(pcr.serialize(found)) == found, "what is written reads the same")
    return len(found)


def _media(data: bytes) -> object:
    found = media.parse(data)
    must(all(one.device.startswith("/dev/") and ".." not in one.device for one in found), "a medium is a device")
    return len(found)


def _config(data: bytes) -> object:
    found = sysroot.parse_update_config(data, Path("update.toml"))
    must(found.url.startswith(("http://", "https://")) and found.url.isprintable(), "an address is one")
    must("/" not in found.stream, "a stream is a word")
    return True


class Reader(NamedTuple):
    """A reader, and how it refuses."""

    read: Callable[[bytes], object]
    refuses: type[Exception]


READERS = (
    Reader(_manifest, InputError), Reader(_stream, InputError), Reader(_parts, InputError), Reader(_der, ValueError),
    Reader(_signed, ValueError), Reader(_certificate, ValueError), Reader(_program, ValueError), Reader(_lists, ValueError),
    Reader(_update, ValueError), Reader(_firmware_log, ValueError), Reader(_variable, ValueError), Reader(_records, ValueError),
    Reader(_ima, ValueError), Reader(_boot, ValueError), Reader(_attestation, InputError), Reader(_evidence, InputError),
    Reader(_identity, InputError), Reader(_quote, ValueError), Reader(_public, ValueError), Reader(_device, ValueError),
    Reader(_facts, ValueError), Reader(_object, ValueError), Reader(_names, InputError), Reader(_refusals, ValueError),
    Reader(_places, InputError), Reader(_ignition, InputError),
    Reader(_commit, InputError), Reader(_policies, ValueError), Reader(_media, InputError), Reader(_config, InputError),
)  # fmt: skip


def one(data: bytes) -> object:
    """The first byte says which reader."""
    if not data:
        return None
    which = data[0] % len(READERS)
    reader = READERS[which]
    try:
        return which, reader.read(data[1:])
    except reader.refuses as error:
        return which, type(error).__name__
