# SPDX-License-Identifier: Apache-2.0
"""What the measurements say about the boot: firmware, Secure Boot, programs, the boot image. All pure.

Root can add measurements after the boot and cannot take any back. So nothing here asks whether a good measurement is
there only: each also asks that nothing else is.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence

from freehold.attest.document import FIRMWARE_PCRS, VARIABLES, Identity
from freehold.attest.userlog import Record
from freehold.attest.verdict import Verdict
from freehold.keys import efi, eventlog, pcr, pe
from freehold.keys.eventlog import Event
from freehold.keys.pcr import KERNEL_PCR, SECURE_BOOT_PCR
from freehold.keys.verify import Keychain

PROGRAM_PCR, SYSTEM_PCR = 4, 15
#: Where systemd-stub measures what lies beside the image: command lines, credentials, add-ons; system extensions.
BESIDE_PCRS = {12: "command lines, credentials or add-ons", 13: "system extensions"}
_SEPARATOR_BYTES, _REMARK_BYTES = 4, 200
_GUIDS = {"SecureBoot": efi.GLOBAL_VARIABLE, **efi.VARIABLES, "dbx": efi.IMAGE_SECURITY_DATABASE}


def firmware(verdict: Verdict, pcrs: Sequence[bytes], identity: Identity | None) -> None:
    """Is the firmware, with its option ROMs, the one of the identity?"""
    if identity is None:
        verdict.unknown("firmware", "compared with nothing", decides=False)
        return
    changed = [number for number in FIRMWARE_PCRS if pcrs[number] != identity.firmware[number]]
    if changed:
        listed = ", ".join(map(str, changed))
        verdict.refused("firmware", f"not what it was (PCR {listed}); after an update of it, take a new identity")
    else:
        verdict.ok("firmware", "it and its option ROMs are what they were when the identity was taken")


def variables(events: Sequence[Event]) -> dict[str, bytes]:
    """Secure Boot's variables as they were measured before anything was started.

    :class:`ValueError` when one is missing, there twice, or changed later.
    """
    found: dict[str, bytes] = {}
    closed = False
    for event in (one for one in events if one.pcr == SECURE_BOOT_PCR):
        # A kind is only a label that root can change, the order of the digests is not. Variables behind other labels
        # could hide what came first, so in this PCR nothing may be of another kind.
        if event.kind == eventlog.SEPARATOR and _is_end(event):
            closed = True
        elif event.kind == eventlog.VARIABLE_DRIVER_CONFIG and event.proven:
            variable = eventlog.parse_variable(event.data)
            if _GUIDS.get(variable.name) != variable.guid:
                continue  # dbt, dbr, DeployedMode, vendors' own
            if closed or variable.name in found:
                raise ValueError(f"{variable.name} was measured twice, or changed during the boot")
            found[variable.name] = variable.data
        elif not (closed and event.kind == eventlog.VARIABLE_AUTHORITY) and not is_remark(event):
            raise ValueError(f"a measurement that the log does not explain ({event.kind_name})")
    missing = [name for name in _GUIDS if name not in found]
    if missing:
        raise ValueError(f"{', '.join(missing)} not measured")
    if not closed:
        raise ValueError("no end of the variables was measured")
    return found


def is_remark(event: Event) -> bool:
    """Whether a short text was measured and nothing else: the firmware's remarks, which no program or variable is."""
    text = event.data.rstrip(b"\0")
    return event.proven and len(text) <= _REMARK_BYTES and text.isascii() and text.decode("ascii").isprintable()


def secure_boot(
    verdict: Verdict, events: Sequence[Event], identity: Identity | None, keychain: Keychain | None
) -> bool:
    """Was Secure Boot on, by whose keys? True only when it was, and every key is known."""
    try:
        found = variables(events)
        entries = {name: efi.parse_lists(found[name]) for name in (*VARIABLES, "dbx")}
    except (ValueError, UnicodeDecodeError) as error:
        verdict.refused("secure-boot", f"its variables cannot be relied on: {error}")
        return False
    if found["SecureBoot"] != b"\1":
        verdict.unknown("secure-boot", "it was off: firmware refused nothing, measurements alone speak", decides=False)
        return False
    names = {
        hashlib.sha256(one.der).hexdigest(): f"{one.role} {one.name}" for one in (keychain or Keychain()).certificates
    }
    known = True
    for name in VARIABLES:
        if identity is not None and identity.variables[name] == hashlib.sha256(found[name]).digest():
            verdict.ok("secure-boot", f"{name}: {len(entries[name])} entries, as when the identity was taken")
            continue
        holders = [_holder(one, names) for one in entries[name]]
        strangers = [text for ours, text in holders if not ours]
        listed = ", ".join(text for _, text in holders) or "nothing"
        if identity is None and keychain is None:
            verdict.unknown("secure-boot", f"{name}: {listed}: compared with nothing", decides=True)
            known = False
        elif strangers or not holders:
            verdict.refused("secure-boot", f"{name} has changed, and holds what is not of your keychain: {listed}")
            known = False
        else:
            verdict.ok("secure-boot", f"{name} holds keys of your keychain only: {listed}")
    if known:
        verdict.ok("secure-boot", f"it was on: only what db vouches for started; dbx has {len(entries['dbx'])} entries")
    return known


def _holder(entry: efi.Signature, names: Mapping[str, str]) -> tuple[bool, str]:
    """Whether an entry of db is of the keychain, and what it is."""
    fingerprint = hashlib.sha256(entry.data).hexdigest()
    if entry.type == efi.CERT_X509:
        return fingerprint in names, names.get(fingerprint, f"certificate {fingerprint[:16]}")
    return False, f"an entry of type {entry.type}"


def authorities(verdict: Verdict, events: Sequence[Event], keychain: Keychain | None) -> bool:
    """By which entries of db were programs accepted? True when all of them are certificates of the keychain.

    Which program an entry accepted is not measured: one that a stranger signed may start any kernel, and that may measure
    whatever a good boot measures.
    """
    try:
        found = variables(events)
        allowed = {(one.owner.bytes_le + one.data) for one in efi.parse_lists(found["db"])}
    except (ValueError, UnicodeDecodeError):
        return False  # said already
    ours = {one.der for one in (keychain or Keychain()).certificates}
    used: list[bytes | None] = []
    for event in events:
        if event.pcr != SECURE_BOOT_PCR or event.kind != eventlog.VARIABLE_AUTHORITY:
            continue
        try:
            variable = eventlog.parse_variable(event.data) if event.proven else None
        except (ValueError, UnicodeDecodeError):
            variable = None
        used.append(None)
        if variable is None:
            verdict.refused("authority", "something was accepted by an authority that the log does not show")
        elif variable.name == "db" and variable.guid == efi.IMAGE_SECURITY_DATABASE and variable.data in allowed:
            used[-1] = certificate = variable.data[16:]
            stranger = "" if certificate in ours else ", which is not of your keychain"
            verdict.ok("authority", f"db's certificate {hashlib.sha256(certificate).hexdigest()[:16]} was used{stranger}")
        else:
            verdict.unknown("authority", f"{_clean(variable.name)} was an authority, which is not db", decides=True)
    return bool(used) and all(one in ours for one in used)


def started(events: Sequence[Event]) -> list[bytes]:
    """The Authenticode digests of programs that firmware started from disks (PCR 4), in order.

    Whatever there is no remark and no end counts as one, by whatever name the log calls it.
    """
    return [one.digest for one in events if one.pcr == PROGRAM_PCR and not is_remark(one) and not _is_end(one)]


def _is_end(event: Event) -> bool:
    return event.proven and len(event.data) == _SEPARATOR_BYTES


def programs(
    verdict: Verdict, events: Sequence[Event], identity: Identity | None, program: pe.Program | None, *, vouched: bool
) -> None:
    """Does somebody answer for each program that was started? ``vouched``: Secure Boot did, by keys of the keychain only."""
    known = dict.fromkeys(identity.programs if identity else (), "as when the identity was taken")
    if program is not None:
        known.update(_programs_of(program))
    found = started(events)
    if not found:
        verdict.refused("programs", "the firmware started none from a disk")
    for digest in found:
        label = f"{digest.hex()[:16]}"
        if digest in known:
            verdict.ok("programs", f"{label}: {known[digest]}")
        elif identity is None and program is None and not vouched:
            verdict.unknown("programs", f"{label}: compared with nothing", decides=True)
        elif vouched:
            verdict.ok("programs", f"{label}: not known by itself, accepted by Secure Boot")
        else:
            verdict.refused("programs", f"{label}: nobody answers for it; --release does for a newer release")
    if program is not None and program.authenticode() not in found:
        verdict.refused("programs", "the release's boot image is not among them")


def _programs_of(program: pe.Program) -> dict[bytes, str]:
    """The release's image, and the kernel in it, which firmware may measure as well when the stub starts it."""
    known = {program.authenticode(): "the release's boot image"}
    with contextlib.suppress(ValueError):
        known[pe.parse(program.content(".linux") or b"").authenticode()] = "the kernel in the release's boot image"
    return known


def boot_image(verdict: Verdict, events: Sequence[Event], program: pe.Program | None) -> dict[str, bytes]:
    """The digests of the boot image's sections, by name; compared with the release's where there is one."""
    mine = eventlog.register(events, KERNEL_PCR)
    names = {pcr.name_digest(name): name for name in pe.MEASURED}
    found: dict[str, bytes] = {}
    for at in range(0, len(mine), 2):
        name = names.get(mine[at])
        if name is None or name in found or at + 1 == len(mine):
            verdict.refused("boot-image", "PCR 11 has measurements that are not systemd-stub's")
            return {}
        found[name] = mine[at + 1]
    if not found:
        verdict.refused("boot-image", "none measured itself (PCR 11): kernel and initrd are not shown")
    elif program is None:
        verdict.unknown(
            "boot-image", f"{', '.join(found)} were measured; --release compares them with a release", decides=False
        )  # fmt: skip
    else:
        wanted = pcr.section_digests(program)
        wrong = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
        text = (
            f"not the release's: {', '.join(wrong)}"
            if wrong
            else f"kernel, initrd and all are the release's: {', '.join(found)}"
        )
        verdict.judged("boot-image", text, good=not wrong)
    return found


def beside(verdict: Verdict, pcrs: Sequence[bytes]) -> None:
    """Was anything given to the boot image from beside it? The PCRs alone say so."""
    given = [f"{what} (PCR {number})" for number, what in BESIDE_PCRS.items() if pcrs[number] != bytes(32)]
    text = f"the boot image was given {', '.join(given)}" if given else "the boot image was given nothing from outside"
    verdict.judged("beside", text, good=not given)


def system(verdict: Verdict, records: Sequence[Record], machine: str) -> None:
    """What the running system measured: phases, the machine's id, and what nobody here knows."""
    phases = [one.text for one in records if one.pcr == KERNEL_PCR and one.kind == "phase" and one.proven]
    if phases:
        verdict.unknown("system", f"phases of the boot that it measured itself: {', '.join(phases)}", decides=False)
    ids = [one for one in records if one.pcr == SYSTEM_PCR and one.kind == "machine-id"]
    for one in ids:
        good = one.proven and one.text == f"machine-id:{machine}"
        verdict.judged(
            "system", f"it measured {one.text if one.proven else 'a machine id that the log hides'}", good=good
        )
    others = [
        one
        for one in records
        if not one.proven or (one.source == "systemd" and one.kind not in ("phase", "machine-id"))
    ]
    if others:
        listed = ", ".join(
            dict.fromkeys(f"PCR {one.pcr} {one.source} {one.kind} {one.text}".strip() for one in others[:12])
        )
        verdict.unknown("system", f"measured by itself, and not judged: {listed}", decides=False)


def _clean(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)[:60]
