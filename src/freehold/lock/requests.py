# SPDX-License-Identifier: Apache-2.0
"""The owner's list of requests: what a machine adds to every release it takes. Pure (docs/derived.md).

A text named by its SHA-256 in the signed intent; so the list itself carries no signature. It has one spelling: what
:func:`parse` accepts is what :func:`serialize` writes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from freehold.errors import InputError

HEAD = "freehold-requests 1"
MAX_BYTES = 65536
MAX_REQUESTS = 512
MAX_VALUE_BYTES = 512
#: Bytes of a kernel command line: the x86 kernel cuts what is longer (COMMAND_LINE_SIZE is 2048 with the end).
MAX_COMMAND_LINE = 2047
Verb = Literal["append", "delete", "replace"]
VERBS: tuple[Verb, ...] = ("append", "delete", "replace")

#: A kernel argument: printable ASCII without blanks. Quotes could join words that only the kernel takes apart.
_ARGUMENT = re.compile(r"[!#-&(-~]{1,512}")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]{1,127}")
_VERSION = re.compile(r"[0-9][0-9A-Za-z.+~:-]{0,127}")
_HEX64 = re.compile(r"[0-9a-f]{64}")
_FILE = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+~_-]{0,127}\.deb")

#: Arguments whose effect the owner should hear of before signing: (key or its beginning, what it does).
_RISKS: tuple[tuple[str, str], ...] = (
    ("init=", "starts another first program than systemd"),
    ("rdinit=", "starts another program in the initrd: nothing is verified"),
    ("lsm=", "chooses the kernel's security modules: without bpf there is no guard"),
    ("security=", "chooses the kernel's security module"),
    ("lockdown=", "changes what root may do to the kernel"),
    ("module.sig_enforce", "changes whether unsigned modules load"),
    ("proc_mem.force_override", "lets processes write past page protection"),
    ("bdev_allow_write_mounted", "lets root write below mounted file systems"),
    ("systemd.debug_shell", "opens a root shell on a console"),
    ("rd.systemd.debug_shell", "opens a root shell on a console"),
    ("systemd.unit=", "boots into another target, a root shell for example"),
    ("systemd.run", "runs a command as root at boot"),
    ("systemd.import_credentials", "lets firmware and hypervisor pass settings and secrets in"),
    ("systemd.set_credential", "passes a setting to services"),
    ("systemd.wants=", "starts other units at boot"),
    ("systemd.mask=", "keeps units from starting"),
    ("systemd.volatile=", "changes where /etc and /var come from"),
    ("systemd.setenv=", "sets variables for all services"),
    ("systemd.gpt_auto", "mounts partitions that nothing signed names"),
    ("rescue", "boots into a root shell"),
    ("emergency", "boots into a root shell"),
    ("single", "boots into a root shell"),
    ("kgdb", "lets a debugger change the running kernel"),
    ("mitigations=", "switches protections of the processor on or off"),
    ("nokaslr", "takes away the kernel's random place in memory"),
    ("iommu=", "changes what devices may reach of the memory"),
    ("intel_iommu=", "changes what devices may reach of the memory"),
    ("amd_iommu=", "changes what devices may reach of the memory"),
    ("efi=", "changes how the firmware is used"),
    ("acpi", "changes which tables of the firmware are believed"),
    ("ima_", "changes how files are measured"),
    ("ipe.", "changes whether integrity policies are enforced"),
    ("root", "is not what chooses the root file system here; the sealed image is"),
    ("panic=", "changes whether a failed boot falls back to the deployment before"),
    ("init_on_alloc=", "changes whether memory is cleared"),
)


class Karg(NamedTuple):
    """A change of the kernel command line; ``value`` is ``KEY`` or ``KEY=VALUE``."""

    verb: Verb
    value: str

    @property
    def line(self) -> str:
        """Its line in the list."""
        return f"karg {self.verb} {self.value}"


class Package(NamedTuple):
    """A Debian package to add, of exactly ``version`` when that is not empty."""

    name: str
    version: str = ""

    @property
    def line(self) -> str:
        """Its line in the list."""
        return f"package {self.name}={self.version}" if self.version else f"package {self.name}"


class File(NamedTuple):
    """A local package file, by the SHA-256 of its content; ``name`` is for people."""

    sha256: str
    name: str

    @property
    def line(self) -> str:
        """Its line in the list."""
        return f"file {self.sha256} {self.name}"


class Requests(NamedTuple):
    """The whole list. Kernel arguments keep their order, which matters; the others are sorted."""

    kargs: tuple[Karg, ...] = ()
    packages: tuple[Package, ...] = ()
    files: tuple[File, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.kargs or self.packages or self.files)

    @property
    def lines(self) -> tuple[str, ...]:
        """Each request as its line."""
        listed = [one.line for one in self.kargs] + [one.line for one in self.packages]
        return (*listed, *(one.line for one in self.files))


def normal_key(argument: str) -> str:
    """The key of a kernel argument, as the kernel compares it: dashes are underscores. Pure."""
    return argument.partition("=")[0].replace("-", "_")


def _karg(verb: str, value: str) -> Karg:
    found = next((known for known in VERBS if known == verb), None)
    if found is None:
        raise ValueError("a kernel argument is appended, deleted or replaced")
    if not _ARGUMENT.fullmatch(value) or not normal_key(value):
        raise ValueError("not a kernel argument (printable, without blanks and quotes)")
    if normal_key(value).startswith("freehold."):
        raise ValueError("freehold.* belongs to the release: it names the sealed tree")
    if value == "--":
        raise ValueError("-- would hand what follows to the first program")
    if found == "replace" and "=" not in value:
        raise ValueError("replace needs KEY=VALUE")
    return Karg(found, value)


def _package(value: str) -> Package:
    name, separator, version = value.partition("=")
    if not _PACKAGE.fullmatch(name) or (separator and not _VERSION.fullmatch(version)):
        raise ValueError("not a package (NAME or NAME=VERSION)")
    return Package(name, version)


def _file(sha256: str, name: str) -> File:
    if not _HEX64.fullmatch(sha256) or not _FILE.fullmatch(name):
        raise ValueError("not a package file (SHA-256 and NAME.deb)")
    return File(sha256, name)


def parse(data: bytes) -> Requests:
    """The list in ``data``. :class:`InputError` lists every fault."""
    if len(data) > MAX_BYTES:
        raise InputError("the list of requests is not valid", faults=[f"it is larger than {MAX_BYTES} bytes"])
    lines = data.decode("latin-1").split("\n")
    faults = [] if lines.pop() == "" else ["the last line does not end"]
    if not lines or lines[0] != HEAD:
        faults.append(f"line 1: must be {HEAD!r}")
    if len(lines) > MAX_REQUESTS + 1:
        faults.append(f"more than {MAX_REQUESTS} requests")
    kargs: list[Karg] = []
    packages: list[Package] = []
    files: list[File] = []
    for number, line in enumerate(lines[1 : MAX_REQUESTS + 1], start=2):
        words = line.split(" ")
        try:
            if words[0] == "karg" and len(words) == 3:
                kargs.append(_karg(words[1], words[2]))
            elif words[0] == "package" and len(words) == 2:
                packages.append(_package(words[1]))
            elif words[0] == "file" and len(words) == 3:
                files.append(_file(words[1], words[2]))
            else:
                raise ValueError("not a request that this version knows")
        except ValueError as error:
            faults.append(f"line {number}: {error}")
    found = Requests(tuple(kargs), tuple(packages), tuple(files))
    if not faults:
        faults = _twice(found)
        if not faults and _text(found) != data:
            faults.append("it is not in its one order: kernel arguments, then packages, then files, each sorted")
    if faults:
        raise InputError("the list of requests is not valid", faults=faults)
    return found


def _twice(found: Requests) -> list[str]:
    """What two requests contradict or repeat each other about."""
    faults = []
    for what, names in (
        ("the request", [one.line for one in found.kargs]),
        ("the package", [one.name for one in found.packages]),
        ("the file", [one.sha256 for one in found.files]),
    ):
        faults += [f"{what} {name} is there twice" for name in sorted({one for one in names if names.count(one) > 1})]
    return faults


def _text(requests: Requests) -> bytes:
    ordered = Requests(requests.kargs, tuple(sorted(requests.packages)), tuple(sorted(requests.files)))
    return "".join(f"{line}\n" for line in (HEAD, *ordered.lines)).encode("latin-1", "replace")


def serialize(requests: Requests) -> bytes:
    """The list's text; :class:`InputError` for one that the format does not allow."""
    data = _text(requests)
    parse(data)
    return data


def split(data: bytes) -> tuple[bytes, bytes | None]:
    """Intent and list of a request file; ``None`` when the file has no list behind the intent. Pure."""
    mark = f"{HEAD}\n".encode()
    at = data.find(mark)
    return (data, None) if at < 0 else (data[:at], data[at:])


def name_of(data: bytes) -> str:
    """What an intent calls the list ``data``: its SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def from_lines(lines: Sequence[str]) -> Requests:
    """The list of the request ``lines`` (a derived manifest carries them); :class:`InputError` as :func:`parse`."""
    return parse("".join(f"{line}\n" for line in (HEAD, *lines)).encode("latin-1", "replace"))


class Edit(NamedTuple):
    """What a command changes about the list."""

    kargs: tuple[Karg, ...] = ()
    add: tuple[Package, ...] = ()
    add_files: tuple[File, ...] = ()
    remove: tuple[str, ...] = ()


def edit(old: Requests, change: Edit) -> Requests:
    """``old`` with ``change``. :class:`InputError` names what is not there to be removed, or not well formed."""
    kargs = list(old.kargs)
    for one in change.kargs:
        kargs = _add_karg(kargs, one)
    packages = {one.name: one for one in old.packages}
    files = {one.sha256: one for one in old.files}
    for name in change.remove:
        stored = [one for one in files.values() if name in (one.name, one.sha256, one.name.partition("_")[0])]
        if name not in packages and not stored:
            known = ", ".join([*packages, *(one.name for one in files.values())]) or "none"
            raise InputError(f"{name} was not requested", hint=f"requested packages: {known}")
        packages.pop(name, None)
        for gone in stored:
            del files[gone.sha256]
    packages.update({one.name: one for one in change.add})
    files.update({one.sha256: one for one in change.add_files})
    made = Requests(tuple(kargs), tuple(sorted(packages.values())), tuple(sorted(files.values())))
    serialize(made)
    return made


def _add_karg(kargs: list[Karg], new: Karg) -> list[Karg]:
    """Taking back an own request leaves no trace; otherwise the new one goes last."""
    if new.verb == "delete":
        taken = [one for one in kargs if one.verb != "delete" and _matches(new.value, one.value)]
        if taken:
            return [one for one in kargs if one not in taken]
    if new.verb == "append" and Karg("delete", new.value) in kargs:
        return [one for one in kargs if one != Karg("delete", new.value)]
    if new.verb == "replace":
        key = normal_key(new.value)
        kargs = [one for one in kargs if not (one.verb == "replace" and normal_key(one.value) == key)]
    return kargs if new in kargs else [*kargs, new]


def _matches(wanted: str, argument: str) -> bool:
    """Whether deleting ``wanted`` deletes ``argument``: a key alone means all its values."""
    if "=" in wanted:
        return wanted.partition("=")[2] == argument.partition("=")[2] and normal_key(wanted) == normal_key(argument)
    return normal_key(wanted) == normal_key(argument)


def command_line(base: str, kargs: Sequence[Karg]) -> str:
    """The command line ``base`` with ``kargs`` applied in their order. Pure.

    Arguments of ``freehold.`` never change. Raises :class:`InputError` when the result is longer than the kernel reads.
    """
    words = base.split()
    for one in kargs:
        mine = [index for index, word in enumerate(words) if not normal_key(word).startswith("freehold.")]
        if one.verb == "append":
            words.append(one.value)
        elif one.verb == "delete":
            gone = {index for index in mine if _matches(one.value, words[index])}
            words = [word for index, word in enumerate(words) if index not in gone]
        else:
            same = [index for index in mine if normal_key(words[index]) == normal_key(one.value)]
            words = [
                one.value if index in same[:1] else word for index, word in enumerate(words) if index not in same[1:]
            ]
            words += [] if same else [one.value]
    line = " ".join(words)
    if len(line) > MAX_COMMAND_LINE:
        raise InputError(
            f"the kernel command line would be {len(line)} bytes long; the kernel reads {MAX_COMMAND_LINE}"
        )
    return line


def warnings(requests: Requests) -> list[str]:
    """What the owner should know before signing: arguments that weaken what the release sealed. Pure.

    Nothing of it is refused: it is the owner's machine, and nobody else can sign the list.
    """
    found = []
    for one in requests.kargs:
        key = normal_key(one.value)
        for start, effect in _RISKS:
            name = start.rstrip("=")
            if key == name or (not start.endswith("=") and key.startswith(name)):
                found.append(f"{one.line}: {key} {effect}")
                break
        else:
            if one.verb == "delete" and key in ("ro", "rootfstype"):
                found.append(f"{one.line}: the sealed tree may not come up without it")
    return found


def describe(requests: Requests) -> list[str]:
    """The list in words, a line each. Pure."""
    words = {
        "append": "add the kernel argument",
        "delete": "take out the kernel argument",
        "replace": "set the kernel argument",
    }
    lines = [f"{words[one.verb]} {one.value}" for one in requests.kargs]
    names = [(one.name, f", version {one.version}" if one.version else "") for one in requests.packages]
    lines += [f"add the package {name}{version}" for name, version in names]
    lines += [f"add the package file {file.name} (SHA-256 {file.sha256})" for file in requests.files]
    return lines or ["nothing: the release as its publisher made it"]
