# SPDX-License-Identifier: Apache-2.0
"""``freehold verify``: the deployments on this machine, and the boot partition that starts them.

What is read here is small (manifests, headers, names); what is large becomes a :data:`Job` that somebody else runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple, NoReturn

from freehold.device import inputs, loader, verify_esp
from freehold.device.sysroot import ID, Sysroot
from freehold.device.verify_findings import BOOT, Finding, deviation, note
from freehold.device.verify_kernel import read_regular
from freehold.errors import FreeholdError, InputError, NotHereError, VerificationError
from freehold.keys import pe
from freehold.keys.verify import Keychain
from freehold.seal.kernel_inputs import FILE
from freehold.update import believe, rescue_entry
from freehold.update.manifest import MANIFEST_LIMIT, SIGNATURE_LIMIT, UKI_LIMIT, Manifest, Uki, image_of, parse_manifest

#: Reads something large through the buffer; what it found, and how many bytes it read.
Job = Callable[[bytearray], tuple[list[Finding], int]]
#: More directories than this in deployments/ are not ours.
MAX_DEPLOYMENTS = 256
_SEALED_LOADER = "usr/lib/systemd/boot/efi/systemd-bootx64.efi"
_LOADER_LIMIT = 16 << 20
#: Block devices that are looked at for a second boot partition, and bytes of what udev noted of one.
MAX_PARTITIONS = 1024
_RECORD_LIMIT = 64 << 10
_AGAIN = "`freehold cleanup` removes it; then `freehold upgrade` brings a whole one"
_MADE_AGAIN = "`freehold cleanup` makes it again"
_SIGNED = "signed by a release key of the keychain, or what this machine made by its own key or its owner's"
_FIRMWARE = "start another deployment from the boot menu, then remove this entry"


class Found(NamedTuple):
    """A deployment's directory. ``manifest`` is ``None`` when it has no usable one."""

    id: str
    manifest: Manifest | None
    signer: str
    entries: tuple[loader.Entry, ...]
    rescues: tuple[loader.Rescue, ...] = ()


class Boot(NamedTuple):
    """The boot partition: our entries on it, and findings about everything else there."""

    entries: tuple[loader.Entry, ...]
    rescues: tuple[loader.Rescue, ...]
    findings: tuple[Finding, ...]


class Sealed(NamedTuple):
    """The command lines in a deployment's kernel images on the boot partition; ``None`` where there is none to read."""

    normal: str | None = None
    rescue: str | None = None

    def of(self, running: str) -> str | None:
        """The one that belongs to a kernel that was started with ``running``."""
        return self.rescue if rescue_entry.is_rescue(running) else self.normal


def open_esp(sysroot: Sysroot) -> Boot:
    """What lies on the boot partition; it is mounted when no unit did."""
    from freehold.device.stage import ensure_esp

    try:
        entries = ensure_esp(sysroot)
        rescues = loader.rescues(sysroot.esp)
        files = list(_files(sysroot.esp))
    except (NotHereError, OSError) as error:
        said = error.message if isinstance(error, NotHereError) else str(error.strerror)
        return Boot(
            (),
            (),
            (deviation("boot-partition", BOOT, str(sysroot.esp), "the boot partition", said, "is its disk attached?"),),
        )
    names = {one.name for one in loader.both(entries, rescues)}
    found = verify_esp.judge_files(files, names)
    if len(files) >= verify_esp.MAX_FILES:
        found.append(
            deviation("boot-partition", BOOT, str(sysroot.esp), f"at most {verify_esp.MAX_FILES} files", "more")
        )
    for path in files:
        name = path.rpartition("/")[2]
        # An empty file with an entry's name is none: what a cut in the middle of a rename leaves.
        ours = loader.parse(name) is not None or loader.parse_rescue(name) is not None
        if path == f"{loader.LINUX}/{name}" and name not in names and ours:
            found = [one for one in found if one.object != path]
            found.append(note("leftover", BOOT, path, "", "an empty boot entry", "`freehold cleanup` removes it"))
    try:
        found += verify_esp.judge_loader_conf(
            read_regular(sysroot.esp / verify_esp.LOADER_CONF, verify_esp.LOADER_CONF_LIMIT)
        )
    except FileNotFoundError:
        found += verify_esp.judge_loader_conf(None)
    except (OSError, FreeholdError) as error:
        found.append(deviation("loader-conf", BOOT, verify_esp.LOADER_CONF, "a readable file", str(error)))
    copies = [(name, _loader(sysroot.esp / name)) for name in verify_esp.LOADERS]
    hashes = [(name, hashlib.sha256(content).hexdigest() if content else "") for name, content in copies]
    sealed = _authenticode(_loader(sysroot.system / _SEALED_LOADER))
    found += verify_esp.judge_loaders(hashes, _authenticode(copies[0][1]), sealed)
    found += verify_esp.judge_partitions(_partitions(sysroot), _number(sysroot.esp))
    return Boot(tuple(entries), tuple(rescues), tuple(found))


def _partitions(sysroot: Sysroot) -> dict[str, str]:
    """What udev noted of block devices, by their numbers: reading the table itself is refused under the lock."""
    place = sysroot.system / "run/udev/data"
    found = {}
    with contextlib.suppress(OSError):
        for path in sorted(place.glob("b*"))[:MAX_PARTITIONS]:
            with contextlib.suppress(OSError, FreeholdError):
                found[path.name[1:]] = read_regular(path, _RECORD_LIMIT).decode(errors="replace")
    return found


def _number(place: Path) -> str:
    """The number of the device that is mounted there."""
    dev = place.stat().st_dev
    return f"{os.major(dev)}:{os.minor(dev)}"


def _files(top: Path) -> Iterator[str]:
    count = 0
    for directory, names, files in os.walk(top, onerror=_fail):
        relative = os.path.relpath(directory, top)
        if relative.count("/") + 1 >= verify_esp.MAX_DEPTH:
            names.clear()
        for name in files:
            count += 1
            if count > verify_esp.MAX_FILES:
                return
            yield name if relative == "." else f"{relative}/{name}"


def _fail(error: OSError) -> NoReturn:
    """What cannot be listed may hold anything."""
    raise error


def _loader(path: Path) -> bytes:
    """A boot loader, empty when it is not there; it is small."""
    try:
        return read_regular(path, _LOADER_LIMIT)
    except (OSError, FreeholdError):
        return b""


def _authenticode(program: bytes) -> str:
    """What a signature of ``program`` covers, as a digest in hex; "" when it is no program."""
    try:
        return pe.parse(program).authenticode().hex()
    except ValueError:
        return ""


def deployments(sysroot: Sysroot, boot: Boot, keychain: Keychain) -> tuple[list[Found], list[Finding]]:
    """Every deployment's directory, its manifest verified and its boot entries beside it; the booted one first."""
    booted = sysroot.booted_id()
    machine = sysroot.machine
    try:
        names = sorted(os.listdir(sysroot.deployments))
    except OSError as error:
        return [], [deviation("deployments", BOOT, str(sysroot.deployments), "a directory", str(error.strerror))]
    found: list[Found] = []
    findings: list[Finding] = []
    if len(names) > MAX_DEPLOYMENTS:
        said = f"{len(names)}; the others are not looked at"
        findings.append(deviation("deployments", BOOT, "deployments", f"at most {MAX_DEPLOYMENTS}", said))
    for name in sorted(names, key=lambda name: (name != booted, name))[:MAX_DEPLOYMENTS]:
        if not ID.match(name):
            findings.append(note("foreign-file", BOOT, f"deployments/{name}", "", "not a deployment"))
            continue
        mine = tuple(entry for entry in boot.entries if entry.id == name)
        rescues = tuple(entry for entry in boot.rescues if entry.id == name)
        manifest, signer, faults = _manifest(
            sysroot.deployments / name, name, keychain, machine, bootable=bool(mine or rescues) or name == booted
        )
        findings += faults
        found.append(Found(name, manifest, signer, mine, rescues))
    known = {one.id for one in found}
    for entry in loader.both(boot.entries, boot.rescues):
        if entry.id not in known:
            path = f"{loader.LINUX}/{entry.name}"
            findings.append(
                deviation(
                    "entry-without-deployment", BOOT, path, f"deployments/{entry.id}", "no such deployment", _AGAIN
                )
            )
    if booted not in known:
        findings.append(
            deviation("booted", booted, booted, "the deployment that runs", "it has no directory in deployments/")
        )
    return found, findings


def _manifest(
    directory: Path, name: str, keychain: Keychain, machine: str | None, *, bootable: bool
) -> tuple[Manifest | None, str, list[Finding]]:
    path = f"deployments/{name}/manifest.json"
    try:
        data = read_regular(directory / "manifest.json", MANIFEST_LIMIT)
    except FileNotFoundError:
        if not bootable:
            return (
                None,
                "",
                [
                    note(
                        "leftover",
                        name,
                        path,
                        "",
                        "no manifest: a download was interrupted",
                        "`freehold cleanup` removes it",
                    )
                ],
            )
        return None, "", [deviation("manifest", name, path, "a signed manifest", "missing", _AGAIN)]
    except (OSError, FreeholdError) as error:
        return None, "", [deviation("manifest", name, path, "a signed manifest", str(error), _AGAIN)]
    try:
        signature = read_regular(directory / "manifest.json.sig", SIGNATURE_LIMIT)
    except (OSError, FreeholdError):
        signature = b""
    found: list[Finding] = []
    signer = ""
    try:
        try:
            manifest, signer = believe.manifest(data, signature, keychain, machine, "it")
        except VerificationError as error:
            found.append(deviation("manifest-signature", name, path, _SIGNED, error.message, _AGAIN))
            manifest = parse_manifest(data)  # what else is amiss is worth saying
    except InputError as error:
        return None, "", [*found, deviation("manifest", name, path, "a valid manifest", error.message, _AGAIN)]
    if manifest.id != name:
        found.append(deviation("manifest-id", name, path, name, f"it is the manifest of {manifest.id}", _AGAIN))
        return None, signer, found
    return manifest, signer, found


def kernel_inputs(sysroot: Sysroot, one: Found) -> list[Finding]:
    """A finding when the file that a locked boot gives the kernel is not whole: where the firmware knows us, that boot ends."""
    if one.manifest is None or inputs.is_whole(sysroot, one.manifest):
        return []
    path = f"deployments/{one.id}/{FILE}"
    return [deviation("kernel-inputs", one.id, path, "what the manifest names", "missing, or another", _MADE_AGAIN)]


def kernel_images(sysroot: Sysroot, one: Found, *, booted: bool) -> tuple[list[Finding], list[tuple[int, Job]], Sealed]:
    """The boot entries of a deployment: findings, jobs with their sizes, and the command lines that the first ones seal."""
    found: list[Finding] = []
    jobs: list[tuple[int, Job]] = []
    lines: dict[type, str] = {}
    if not one.entries:
        found += _without_entry(sysroot, one, booted=booted)
    if len(one.entries) > 1:
        names = ", ".join(entry.name for entry in one.entries)
        found.append(note("entry-twice", one.id, names, "one entry", f"{len(one.entries)} entries of one deployment"))
    if one.entries and not one.rescues:
        found.append(_without_rescue(one))
    for entry in loader.both(one.entries, one.rescues):
        path, name = sysroot.esp / loader.LINUX / entry.name, f"{loader.LINUX}/{entry.name}"
        if isinstance(entry, loader.Entry) and entry.state in ("bad", "set-aside"):
            why = "did not come up healthy" if entry.state == "bad" else "was set aside by a rollback"
            found.append(note("entry-state", one.id, name, "", why))
        if one.manifest is None:
            continue
        if entry.version != one.manifest.version:
            # The boot loader goes by the name: a higher number would put an old release in front.
            found.append(
                deviation("entry-version", one.id, name, one.manifest.version, entry.version, "rename the entry")
            )
        try:
            line, size = _command_line(path)
        except (OSError, ValueError) as error:
            said = str(error.strerror) if isinstance(error, OSError) else str(error)
            found.append(deviation("uki-format", one.id, name, "a unified kernel image", said, _FIRMWARE))
        else:
            lines.setdefault(type(entry), line)
            if image_of(line) != one.manifest.image_digest:
                has = image_of(line) or "no image digest, or more than one"
                found.append(deviation("uki-image", one.id, name, one.manifest.image_digest, has, _FIRMWARE))
            wanted = one.manifest.uki if isinstance(entry, loader.Entry) else one.manifest.rescue
            jobs.append((size, partial(_uki_bytes, path, name, one.id, wanted)))
    return found, jobs, Sealed(lines.get(loader.Entry), lines.get(loader.Rescue))


def _without_rescue(one: Found) -> Finding:
    path = f"{loader.LINUX}/{rescue_entry.PREFIX}*-{one.id}.efi"
    hint = "`repair-esp` at the console of another rescue entry, or from a stick, brings it back"
    return deviation("rescue-missing", one.id, path, "the deployment's rescue entry", "none", hint)


def _without_entry(sysroot: Sysroot, one: Found, *, booted: bool) -> list[Finding]:
    waiting = sysroot.deployments / one.id / "uki.efi"
    if not booted and waiting.is_file():
        return [
            note(
                "not-staged",
                one.id,
                one.id,
                "",
                "downloaded, not staged",
                "`freehold upgrade` makes it the next to boot",
            )
        ]
    if one.manifest is None and not booted:
        return []
    hint = "it cannot be started again: `freehold upgrade`" if booted else _AGAIN
    return [deviation("uki-missing", one.id, f"{loader.LINUX}/freehold-*-{one.id}*.efi", "a boot entry", "none", hint)]


def _command_line(path: Path) -> tuple[str, int]:
    with path.open("rb") as source:
        size = os.fstat(source.fileno()).st_size
        if size > UKI_LIMIT:
            raise ValueError(f"larger than {UKI_LIMIT} bytes")
        section = pe.command_line_section(pe.headers(source.read(pe.HEAD_BYTES), size))
        source.seek(section.start)
        return pe.command_line(source.read(section.stored)), size


def _uki_bytes(path: Path, name: str, identity: str, wanted: Uki, buffer: bytearray) -> tuple[list[Finding], int]:
    """FAT keeps no digests, so this one is hashed here."""
    digest = hashlib.sha256()
    done = 0
    try:
        with path.open("rb", buffering=0) as source:
            os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            view = memoryview(buffer)
            while got := source.readinto(buffer):
                digest.update(view[:got])
                done += got
    except OSError as error:
        return [deviation("uki-bytes", identity, name, "a readable file", str(error.strerror), _FIRMWARE)], done
    if done != wanted.size or digest.hexdigest() != wanted.sha256:
        has = f"{digest.hexdigest()}, {done} bytes"
        return [deviation("uki-bytes", identity, name, f"SHA-256 {wanted.sha256}", has, _FIRMWARE)], done
    return [], done
