# SPDX-License-Identifier: Apache-2.0
"""Recipes: what an operating system is made of, in TOML.

:func:`parse` is pure: text in, checked document out, every fault with its line. :func:`load` reads
files, follows ``inherit`` and resolves ``source``; what it returns has no more references to files.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from freehold.build.recipe_lines import KeyPath, LineIndex, show
from freehold.build.recipe_schema import SCHEMA, Key, Table, faults, suggest
from freehold.errors import InputError
from freehold.keys.formats import (
    MAX_REVOKED_BYTES,
    REVOKED_NAME,
    Revocation,
    merge_revoked,
    parse_revoked,
    serialize_revoked,
)
from freehold.keys.verify import KEYCHAIN_ROLES

MAX_RECIPE_BYTES = 1 << 20
MAX_FILE_BYTES = 16 << 20
MAX_CERTIFICATE_BYTES = 1 << 16
MAX_ANCESTORS = 8
#: Lists in which a recipe says the whole, not more: its own value replaces the inherited one.
REPLACED_LISTS = (("pockets",), ("boot", "console"))
#: Arrays of tables are merged by this key; the inheriting recipe's element wins as a whole.
ARRAY_KEYS = {"users": "name", "files": "path"}
BROKEN = re.compile(r"^(?P<what>.*?) \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)$", re.DOTALL)


@dataclass(frozen=True)
class RecipeDocument:
    """One checked recipe text. ``data`` has only known keys of the right types."""

    source: str
    data: Mapping[str, Any]
    lines: LineIndex

    def where(self, path: KeyPath) -> str:
        """``file:line key.path`` of ``path``."""
        return f"{self.source}:{self.lines.line(path)} {show(path)}"


@dataclass(frozen=True)
class User:
    """An account in the image. ``uid`` None: the id lock chooses one and keeps it."""

    name: str
    uid: int | None
    groups: tuple[str, ...]
    shell: str
    home: str
    gecos: str


@dataclass(frozen=True)
class File:
    """A file of the recipe's own. ``owner`` is ``user:group`` by name."""

    path: str
    content: bytes
    mode: int
    owner: str


@dataclass(frozen=True)
class Module:
    """A kernel module of the recipe's own, signed: a file name (.ko, .ko.xz) and the file's bytes."""

    name: str
    content: bytes


@dataclass(frozen=True)
class Units:
    """What systemd shall do with units: names, in the recipe's order."""

    enable: tuple[str, ...]
    disable: tuple[str, ...]
    mask: tuple[str, ...]


@dataclass(frozen=True)
class Certificate:
    """A keychain member: ``data`` is DER; ``filename`` is its name in the keychain."""

    role: str
    name: str
    data: bytes

    @property
    def filename(self) -> str:
        """``ROLE-NAME.der``."""
        return f"{self.role}-{self.name}.der"


@dataclass(frozen=True)
class Recipe:
    """A whole recipe: inheritance resolved, files read, defaults filled in."""

    name: str
    description: str
    version: str
    epoch: int | None
    suite: str
    pockets: tuple[str, ...]
    architecture: str
    packages: tuple[str, ...]
    kernel: str
    recommends: bool
    users: tuple[User, ...]
    files: tuple[File, ...]
    modules: tuple[Module, ...]
    units: Units
    cmdline: tuple[str, ...]
    console: tuple[str, ...]
    timeout: int
    platform: str
    update_url: str | None
    update_stream: str
    keychain: tuple[Certificate, ...]
    revoked: tuple[Revocation, ...]
    var_tmpfiles: tuple[str, ...]
    var_discard: tuple[str, ...]
    var_seed: tuple[str, ...]
    setuid_keep: tuple[str, ...]
    lock_tier: str

    def canonical(self) -> str:
        """Everything that can change the result, as JSON with sorted keys; file contents by sha256."""
        return json.dumps(
            {field.name: _plain(getattr(self, field.name)) for field in fields(self)},
            sort_keys=True, separators=(",", ":"), ensure_ascii=True,
        )  # fmt: skip

    @property
    def id(self) -> str:
        """sha256 of :meth:`canonical`, 64 hex digits."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def keychain_files(self) -> tuple[tuple[str, bytes], ...]:
        """The keychain as (file name, content), sorted by name: certificates, and the list of revoked ones if any is."""
        revoked = [(REVOKED_NAME, serialize_revoked(self.revoked))] if self.revoked else []
        return tuple(sorted([*((one.filename, one.data) for one in self.keychain), *revoked]))

    def version_at(self, date: str, serial: int) -> str:
        """The version for a build on ``date`` (YYYYMMDD) that is number ``serial`` of that day, from 0."""
        return self.version.replace("{date}", date).replace("{serial}", str(serial))


def _plain(value: object) -> object:
    """``value`` as JSON-able data, bytes by their digest."""
    if isinstance(value, bytes):
        return {"sha256": hashlib.sha256(value).hexdigest(), "size": len(value)}
    if isinstance(value, tuple):
        return [_plain(element) for element in value]
    if isinstance(value, User | File | Module | Units | Certificate):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return value


def parse(text: str, *, source: str) -> RecipeDocument:
    """Check one recipe text; ``source`` is its name in messages. Pure.

    Raises :class:`InputError` with every fault, or with the line and column where it stops being TOML.
    """
    if len(text.encode(errors="surrogateescape")) > MAX_RECIPE_BYTES:
        raise InputError("the recipe is too large", faults=[f"{source}: more than {MAX_RECIPE_BYTES} bytes"])
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = BROKEN.match(str(error))
        what = match["what"] if match else str(error)
        line = match["line"] if match and match["line"] else str(text.rstrip("\n").count("\n") + 1)
        at = f"{source}:{line}:{match['column']}" if match and match["column"] else f"{source}:{line}"
        raise InputError("the recipe is not TOML", faults=[f"{at}: {what[:1].lower()}{what[1:]}"]) from None
    except RecursionError:
        raise InputError("the recipe is not usable", faults=[f"{source}: nested too deeply"]) from None
    document = RecipeDocument(source, data, LineIndex(text))
    found = sorted(((document.lines.line(path), path, what) for path, what in faults(data)), key=lambda fault: fault[0])
    if found:
        raise InputError("the recipe has faults", faults=[f"{document.where(path)}: {what}" for _, path, what in found])
    return document


def merge(
    parent: Mapping[str, Any], child: Mapping[str, Any], table: Table = SCHEMA, at: tuple[str, ...] = ()
) -> dict[str, Any]:
    """``child`` over ``parent``: single values replace, lists add (but :data:`REPLACED_LISTS`), tables merge. Pure."""
    merged = dict(parent)
    for name, value in child.items():
        path, old, entry = (*at, name), parent.get(name), table.keys[name]
        if old is None:
            merged[name] = value
        elif isinstance(entry, Table) and entry.many:
            key = ARRAY_KEYS[name]
            mine = {element[key] for element in value}
            merged[name] = [*(element for element in old if element[key] not in mine), *value]
        elif isinstance(entry, Table):
            merged[name] = merge(old, value, entry, path)
        elif isinstance(value, list) and path not in REPLACED_LISTS:
            merged[name] = list(dict.fromkeys([*old, *value]))
        else:
            merged[name] = value
    if at == ("units",):
        # The inheriting recipe's word about a unit is the last one.
        for name in table.keys:
            elsewhere = {unit for other in table.keys if other != name for unit in child.get(other, ())}
            if name in merged:
                merged[name] = [unit for unit in merged[name] if unit in child.get(name, ()) or unit not in elsewhere]
    return merged


def conflicts(document: RecipeDocument) -> list[str]:
    """Faults that show only when one document is looked at as a whole. Pure."""
    found = []
    seen: dict[str, str] = {}
    for verb in ("enable", "disable", "mask"):
        for index, unit in enumerate(document.data.get("units", {}).get(verb, ())):
            if unit in seen:
                found.append(f"{document.where(('units', verb, index))}: {unit!r} is also under {seen[unit]}")
            seen.setdefault(unit, verb)
    for array, key in ARRAY_KEYS.items():
        known: set[object] = set()
        for index, element in enumerate(document.data.get(array, ())):
            if element[key] in known:
                found.append(f"{document.where((array, index, key))}: {element[key]!r} is given twice")
            known.add(element[key])
    return found


def load(path: Path) -> Recipe:
    """Read the recipe at ``path`` with everything that it refers to.

    Raises :class:`InputError` with all faults of all documents: unreadable or missing files, cycles, bad values.
    """
    problems: list[str] = []
    chain = _chain(path, problems)
    prepared = [_resolve(document, base, problems) for document, base in chain]
    merged: dict[str, Any] = {}
    for data in prepared:
        without = set(data.get("without", ()))
        unknown = sorted(without - set(merged.get("packages", ())))
        problems += [
            f"{path}: without: {name!r} is not inherited{suggest(name, merged.get('packages', []))}" for name in unknown
        ]
        kept = [name for name in merged.get("packages", ()) if name not in without]
        merged = merge({**merged, "packages": kept}, data)
    if chain and chain[-1][0].source == str(path):
        # Without the recipe's own text, every required key would be reported as missing.
        problems += assembly_faults(merged, str(path))
    if problems:
        raise InputError("the recipe has faults", faults=problems)
    return assemble(merged)


def _chain(path: Path, problems: list[str]) -> list[tuple[RecipeDocument, Path]]:
    """The documents from the oldest ancestor to ``path`` itself, each with its directory."""
    chain: list[tuple[RecipeDocument, Path]] = []
    seen: list[Path] = []
    asked_by = ""
    while True:
        real = path.resolve()
        if real in seen or len(seen) >= MAX_ANCESTORS:
            what = "inherits itself" if real in seen else f"more than {MAX_ANCESTORS} generations"
            problems.append(f"{asked_by}: {what}")
            break
        seen.append(real)
        try:
            text = _read(path, MAX_RECIPE_BYTES).decode()
        except UnicodeDecodeError:
            problems.append(f"{path}: not UTF-8")
            break
        except OSError as error:
            problems.append(f"{asked_by or path}: cannot read {str(path)!r}: {error.strerror}" if asked_by else
                            f"{path}: {error.strerror}")  # fmt: skip
            break
        try:
            document = parse(text, source=str(path))
        except InputError as error:
            problems.extend(error.faults)
            break
        problems += conflicts(document)
        chain.append((document, path.parent))
        parent = document.data.get("inherit")
        if parent is None:
            break
        asked_by = document.where(("inherit",))
        path = path.parent / parent
    return chain[::-1]


def _read(path: Path, limit: int) -> bytes:
    """The bytes of a regular file; :class:`OSError` also for a larger or irregular one."""
    with path.open("rb") as source:
        content = source.read(limit + 1)
    if len(content) > limit:
        raise OSError(0, f"more than {limit} bytes")
    return content


def _resolve(document: RecipeDocument, base: Path, problems: list[str]) -> dict[str, Any]:
    """``document.data`` with file sources and certificates replaced by their bytes."""
    data = dict(document.data)
    files = []
    for index, element in enumerate(data.get("files", ())):
        content = element.get("content", "").encode()
        if "source" in element:
            try:
                content = _read(base / element["source"], MAX_FILE_BYTES)
            except OSError as error:
                where = document.where(("files", index, "source"))
                problems.append(f"{where}: {element['source']!r}: {error.strerror}")
        files.append({**element, "content": content})
    if files:
        data["files"] = files
    modules = []
    for index, name in enumerate(data.get("modules", {}).get("files", ())):
        where = document.where(("modules", "files", index))
        try:
            modules.append(_module(base / name))
        except OSError as error:
            problems.append(f"{where}: {name!r}: {error.strerror}")
        except InputError as error:
            problems.append(f"{where}: {name!r}: {error.message}")
    if modules:
        data["modules"] = {"files": modules}
    keychain: dict[str, list[Any]] = {}
    for role, names in data.get("keychain", {}).items():
        if role == REVOKED_NAME:
            where = document.where(("keychain", role))
            try:
                keychain[role] = list(parse_revoked(_read(base / names, MAX_REVOKED_BYTES)))
            except OSError as error:
                problems.append(f"{where}: {names!r}: {error.strerror}")
            except ValueError as error:
                problems.append(f"{where}: {names!r}: {error}")
            continue
        for index, name in enumerate(names):
            where = document.where(("keychain", role, index))
            try:
                der = certificate_der(_read(base / name, MAX_CERTIFICATE_BYTES))
                keychain.setdefault(role, []).append(Certificate(role, PurePosixPath(name).stem, der))
            except OSError as error:
                problems.append(f"{where}: {name!r}: {error.strerror}")
            except ValueError as error:
                problems.append(f"{where}: {name!r}: {error}")
    if "keychain" in data:
        data["keychain"] = keychain
    return data


def _module(path: Path) -> Module:
    """A module that can be loaded under the lock: what is unsigned is better known now than on the machine."""
    from freehold.keys import module

    content = _read(path, module.MAX_BYTES)
    parts = module.split(module.unpacked(content, path.name))
    module.check(parts.module)
    if parts.signature is None:
        raise InputError(f"is not signed: freehold key sign-module {path.name} --key URI")
    return Module(path.name, content)


def certificate_der(content: bytes) -> bytes:
    """The DER of one X.509 certificate in PEM or DER. Pure. :class:`ValueError` when it is none, or several."""
    if b"-----BEGIN" in content:
        blocks = re.findall(rb"-----BEGIN CERTIFICATE-----\s+([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----", content)
        if b"PRIVATE KEY-----" in content:
            raise ValueError("contains a private key; name the certificate only")
        if len(blocks) != 1:
            raise ValueError(f"must hold one certificate, holds {len(blocks)}")
        try:
            content = base64.b64decode(b"".join(blocks[0].split()), validate=True)
        except binascii.Error:
            raise ValueError("is not valid PEM") from None
    from cryptography import x509

    try:
        x509.load_der_x509_certificate(content)
    except ValueError:
        raise ValueError("is not an X.509 certificate") from None
    return content


def required_keys() -> list[str]:
    """Top-level keys without which there is no recipe."""
    return [name for name, entry in SCHEMA.keys.items() if isinstance(entry, Key) and entry.required]


def assembly_faults(data: Mapping[str, Any], source: str) -> list[str]:
    """What is missing from, or contradictory in, a merged recipe. Pure."""
    found = [
        f"{source}: {name}: is missing" for name in required_keys() if name not in data
    ]  # fmt: skip
    uids: dict[int, str] = {}
    for user in data.get("users", ()):
        uid = user.get("uid")
        if uid in uids:
            found.append(f"{source}: users: {user['name']!r} and {uids[uid]!r} both have uid {uid}")
        elif uid is not None:
            uids[uid] = user["name"]
    names: set[str] = set()
    for role in KEYCHAIN_ROLES:
        for certificate in data.get("keychain", {}).get(role, ()):
            if certificate.filename in names:
                found.append(f"{source}: keychain: two certificates would be {certificate.filename}")
            names.add(certificate.filename)
    modules = [one.name.partition(".")[0] for one in data.get("modules", {}).get("files", ())]
    found += [f"{source}: modules: two files are called {name}" for name in sorted(set(modules)) if modules.count(name) > 1]
    claimed: dict[str, str] = {}
    for verdict in ("tmpfiles", "discard", "seed"):
        for pattern in data.get("var", {}).get(verdict, ()):
            if pattern in claimed:
                found.append(f"{source}: var.{verdict}: {pattern!r} is also under {claimed[pattern]}")
            claimed.setdefault(pattern, verdict)
    return found


def assemble(data: Mapping[str, Any]) -> Recipe:
    """The recipe that a merged, faultless document describes. Pure."""

    def part(table: str, name: str, default: Any) -> Any:  # noqa: ANN401 (the schema has checked the types)
        return data.get(table, {}).get(name, default)

    def names(values: Sequence[str]) -> tuple[str, ...]:
        return tuple(values)

    files = [
        File(one["path"], one["content"], one.get("mode", 0o644), one.get("owner", "root:root"))
        for one in data.get("files", ())
    ]
    taken = {one.path for one in files}
    for key, path, line in (("hostname", "/etc/hostname", "{}\n"), ("locale", "/etc/locale.conf", "LANG={}\n")):
        value = part("etc", key, None)
        if value is not None and path not in taken:
            files.append(File(path, line.format(value).encode(), 0o644, "root:root"))
    epoch = data.get("epoch", "auto")
    return Recipe(
        name=data["name"], description=data.get("description", ""), version=data.get("version", "{date}.{serial}"),
        epoch=None if epoch == "auto" else epoch,
        suite=data.get("suite", "trixie"), pockets=names(data.get("pockets", ("security", "updates"))),
        architecture=data.get("architecture", "amd64"), packages=tuple(sorted(data.get("packages", ()))),
        kernel=data.get("kernel", "linux-image-cloud-amd64"), recommends=data.get("recommends", False),
        users=tuple(
            User(
                one["name"], one.get("uid"), tuple(one.get("groups", ())), one.get("shell", "/bin/bash"),
                one.get("home", f"/home/{one['name']}"), one.get("gecos", ""),
            )
            for one in sorted(data.get("users", ()), key=lambda one: str(one["name"]))
        ),
        files=tuple(sorted(files, key=lambda one: one.path)),
        modules=tuple(sorted(part("modules", "files", ()), key=lambda one: str(one.name))),
        units=Units(
            names(part("units", "enable", ())), names(part("units", "disable", ())), names(part("units", "mask", ()))
        ),
        cmdline=names(part("boot", "cmdline", ())), console=names(part("boot", "console", ("tty0", "ttyS0"))),
        timeout=part("boot", "timeout", 0), platform=part("provision", "platform", "none"),
        update_url=part("update", "url", None), update_stream=part("update", "stream", "stable"),
        keychain=tuple(
            sorted(
                (one for role in KEYCHAIN_ROLES for one in data.get("keychain", {}).get(role, ())),
                key=lambda one: str(one.filename),
            )
        ),
        revoked=merge_revoked(part("keychain", REVOKED_NAME, ())),
        var_tmpfiles=names(part("var", "tmpfiles", ())), var_discard=names(part("var", "discard", ())),
        var_seed=names(part("var", "seed", ())), setuid_keep=tuple(sorted(part("setuid", "keep", ()))),
        lock_tier=part("lock", "tier", "S1"),
    )  # fmt: skip
