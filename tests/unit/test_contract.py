# SPDX-License-Identifier: Apache-2.0
"""The import contract of docs/architecture.md: who may start processes, exit, do I/O, and import whom."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from freehold.cli.table import VERBS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "freehold"
MODULES = sorted(PACKAGE.rglob("*.py"))
NAMES = [".".join(("freehold", *path.relative_to(PACKAGE).with_suffix("").parts)) for path in MODULES]
#: Bytes or text in, verdict out: no processes, no files, no system calls.
PURE = (
    "attest.boot", "attest.document", "attest.judge", "attest.measured", "attest.owner", "attest.tpm", "attest.userlog",
    "attest.verdict",
    "build.recipe_lines", "build.recipe_schema",
    "build.token_uri", "device.trust", "device.verify_esp", "device.verify_findings", "device.verify_image",
    "device.verify_keys", "device.verify_machine",
    "keys.cms",
    "keys.dbx", "keys.der", "keys.device", "keys.efi", "keys.eventlog", "keys.formats", "keys.module",
    "keys.pcr", "keys.pe", "keys.pkcs7",
    "keys.verify", "keys.wire", "lock.covered", "lock.denials", "lock.emergency", "lock.etc_request", "lock.intent",
    "lock.kernel_log", "lock.machine", "lock.memory",
    "lock.requests", "lock.rules", "rescue.wish", "seal.authenticode", "seal.cpio",
    "seal.dpkg", "seal.erofs", "seal.headerball", "seal.ids",
    "seal.kernel_inputs", "seal.repack", "seal.varmap", "update.believe", "update.manifest",
    "update.parts", "update.rescue_entry", "vm.machine", "vm.keyboard",
)  # fmt: skip
IMPURE_IMPORTS = {
    "os", "subprocess", "shutil", "socket", "tempfile", "fcntl", "ctypes", "glob", "signal", "http", "urllib.request",
    "multiprocessing", "threading", "asyncio", "select", "io", "freehold.run", "freehold.atomic", "freehold.files",
}  # fmt: skip
IMPURE_METHODS = {
    "open", "read_text", "read_bytes", "write_text", "write_bytes", "exists", "is_file", "is_dir", "lstat", "mkdir", "unlink",
    "iterdir", "glob", "rglob", "resolve", "rename", "symlink_to", "chmod", "touch",
}  # fmt: skip
#: Folder → layer; a module imports from its own layer or a lower number. Top modules by their own name.
LAYERS = {
    "__main__": -1, "cli": 0, "rescue": 1, "device": 1, "server": 1, "build": 1, "vm": 1, "attest": 2, "boot": 2, "lock": 2,
    "update": 2, "seal": 2, "keys": 3, "run": 4, "atomic": 4, "files": 4, "monitor": 4, "errors": 4, "report": 4, "": 4,
}  # fmt: skip
#: Neighbours of one layer that may be used: publishing and starting machines need the builder's tools tree.
BESIDE = {
    ("server", "build"), ("vm", "build"), ("boot", "lock"), ("update", "lock"), ("lock", "update"),
    ("attest", "lock"), ("attest", "update"), ("rescue", "device"),
}  # fmt: skip
#: Verbs gather what their lower layers offer: `lock` acts through the device's system root.
VERB_MODULES = re.compile(r"freehold\.\w+\.(verbs|actions)")
BUILDER_ONLY = ("build", "vm", "server")
#: The interpreter of the standard library, and what takes its place.
PROCESS_STARTERS = {
    "system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp", "execv", "execve", "execvp", "execvpe", "execl",
    "execle", "execlp", "execlpe", "spawnl", "spawnv", "spawnve", "spawnvp", "startfile",
}  # fmt: skip


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def name_of(path: Path) -> str:
    return ".".join(("freehold", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Every module that ``path`` imports anywhere, by full name; type checking blocks count as well."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                is_module = (ROOT / "src" / Path(*whole.split("."))).with_suffix(".py").exists()
                is_package = (ROOT / "src" / Path(*whole.split(".")) / "__init__.py").exists()
                yield whole if is_module or is_package else node.module


def folder(module: str) -> str:
    """``freehold.build.cpio`` → ``build``; ``freehold.run`` → ``run``; ``freehold`` → empty."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def test_the_contract_sees_the_whole_package() -> None:
    assert len(MODULES) > 50
    assert {folder(name_of(path)) for path in MODULES} <= set(LAYERS)


def test_one_module_starts_processes() -> None:
    calls = []
    for path in MODULES:
        if path == PACKAGE / "run.py":
            continue
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
                continue
            if node.value.id == "os" and node.attr in PROCESS_STARTERS:
                calls.append(f"{path}:{node.lineno} os.{node.attr}")
            if node.value.id == "subprocess" and node.attr in (
                "run",
                "call",
                "check_call",
                "check_output",
                "getoutput",
            ):
                calls.append(f"{path}:{node.lineno} subprocess.{node.attr}")
            called = [one for one in ast.walk(tree(path)) if isinstance(one, ast.Call) and one.func is node]
            if node.value.id == "subprocess" and node.attr == "Popen" and called:
                calls.append(f"{path}:{node.lineno} subprocess.Popen")
        for module in imports(path):
            assert module not in ("pty", "multiprocessing", "concurrent.futures.process"), path
    assert calls == []


def is_loader(node: ast.AST) -> bool:
    """A loader may read; everything else of its module takes what it has read."""
    return isinstance(node, ast.FunctionDef) and node.name in ("load", "from_directory")


def uses_of_os(path: Path) -> set[str]:
    """Names of ``os`` that the module uses; one that stands for more (an import of another kind) counts as impure."""
    if set(imports(path)) & IMPURE_IMPORTS != {"os"}:
        return {"something else"}
    found = [
        node for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    ]
    return {node.attr for node in found if isinstance(node.value, ast.Name) and node.value.id == "os"}


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_touch_nothing(module: str) -> None:
    path = PACKAGE / Path(*module.split(".")).with_suffix(".py")
    assert not set(imports(path)) & IMPURE_IMPORTS or uses_of_os(path) <= {"fspath", "PathLike"}
    loaders = {call for node in ast.walk(tree(path)) if is_loader(node) for call in ast.walk(node)}
    calls = [node.func for node in ast.walk(tree(path)) if isinstance(node, ast.Call) and node not in loaders]
    assert [one.attr for one in calls if isinstance(one, ast.Attribute) and one.attr in IMPURE_METHODS] == []
    assert [one.id for one in calls if isinstance(one, ast.Name) and one.id in ("open", "exec", "eval", "input")] == []


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_import_only_pure_ones(module: str) -> None:
    path = PACKAGE / Path(*module.split(".")).with_suffix(".py")
    own = [name for name in imports(path) if name.startswith("freehold")]
    assert [name for name in own if name.removeprefix("freehold.") not in (*PURE, "errors")] == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_layers(path: Path) -> None:
    module, here = name_of(path), folder(name_of(path))
    for other in imports(path):
        if not other.startswith("freehold") or other == "freehold":
            continue
        there = folder(other)
        if there == here or (VERB_MODULES.fullmatch(module) and there != "cli"):
            continue
        assert LAYERS[there] > LAYERS[here] or (here, there) in BESIDE or LAYERS[here] == LAYERS[there] == 4, (
            f"{module} imports {other}, which lies beside or above it"
        )


def test_no_import_cycle_at_load_time() -> None:
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        lines = {node.lineno for node in tree(path).body if isinstance(node, ast.Import | ast.ImportFrom)}
        top = ast.Module([node for node in tree(path).body if getattr(node, "lineno", 0) in lines], [])
        names = set()
        for node in top.body:
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("freehold"):
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                names |= {name for name in whole if name in NAMES} or {node.module}
        graph[name_of(path)] = names - {name_of(path)}
    done: set[str] = set()
    while len(done) < len(graph):
        ready = {name for name, needs in graph.items() if name not in done and not (needs & set(graph)) - done}
        assert ready, f"a cycle among {sorted(set(graph) - done)}"
        done |= ready


@pytest.mark.parametrize("path", [p for p in MODULES if folder(name_of(p)) not in BUILDER_ONLY], ids=name_of)
def test_device_modules_need_the_standard_library_and_cryptography_only(path: Path) -> None:
    tops = {name.split(".")[0] for name in imports(path)}
    assert tops <= set(sys.stdlib_module_names) | {"freehold", "cryptography", "__future__"}


@pytest.mark.parametrize("path", [p for p in MODULES if folder(name_of(p)) not in BUILDER_ONLY], ids=name_of)
def test_cryptography_is_imported_where_it_is_used(path: Path) -> None:
    """At the top of a module it would cost every `freehold status` its start-up time."""
    for node in tree(path).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            assert not node.module.startswith("cryptography")
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("cryptography") for alias in node.names)


def test_one_place_exits() -> None:
    found = []
    for path in MODULES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call):
                text = ast.unparse(node.func)
                if text in ("sys.exit", "exit", "quit", "os._exit", "SystemExit"):
                    found.append(f"{path.relative_to(PACKAGE)} {text}")
    assert found == ["cli/__init__.py sys.exit"]


def test_modules_are_small() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: lines for name, lines in lengths.items() if lines > 600} == {}
    assert sorted(lengths.values())[len(lengths) // 2] <= 200


def source_files() -> list[Path]:
    """Every file of ours that has comments; documents, data formats and generated files have none."""
    kinds = (".py", ".c", ".h", ".mk", ".sh", ".toml", ".service", ".mount", ".automount", ".lock")
    tops = ("src", "tests", "demo", "bench", "attack", "fuzz", "early", "bpf", "recipes", "data", "debian", "docs", ".ci")
    named = [ROOT / name for name in ("Makefile", "Makefile.c", "requirements.lock", ".ci/run", ".ci/prepare")]
    found = [
        path for top in tops for path in (ROOT / top).rglob("*") if path.suffix in (*kinds, ".md") and path.is_file()
    ]
    named += [ROOT / "data/usr/lib/freehold" / name for name in ("prepare", "rescue")]
    return sorted({*named, *found, ROOT / "debian/bin/freehold"})


def test_every_source_file_names_its_licence() -> None:
    missing = []
    for path in source_files():
        head = path.read_text(errors="replace").splitlines()[:3]
        if not any("SPDX-License-Identifier: " in line for line in head):
            missing.append(str(path.relative_to(ROOT)))
    assert missing == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_begins_with_licence_and_docstring(path: Path) -> None:
    assert path.read_text().startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert ast.get_docstring(tree(path))


def test_tests_are_marked_by_folder() -> None:
    """`make test-unit` must never start a machine: what boots one is in tests/vm and says so."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        marked = re.search(r"pytest\.mark\.(vm|build)\b", path.read_text()) is not None
        if path.parent.name == "vm":
            assert marked, f"{path} has no pytest.mark.vm"
        elif path != Path(__file__):
            assert not re.search(r"^pytestmark = pytest\.mark\.vm", path.read_text(), re.MULTILINE), path


def test_every_verb_has_a_module_and_a_handler() -> None:
    from freehold.cli import rows_of  # here: what is broken is named by this test, not by collection

    for verb in VERBS:
        rows = rows_of(verb)
        assert rows if verb.group else verb.name in rows, f"{verb.module} has no verb {verb.name}"


def test_repository_refers_to_nothing_outside() -> None:
    """Neither machines of ours nor registries; only files that are read here."""
    private = re.compile("/" + "work/(main|shared)|" + r"\.\./" + "shared|pypi" + r"\.org|files\.python" + "hosted")
    for path in source_files():
        text = path.read_text(errors="replace")
        assert not private.search(text), f"{path}: {private.search(text)}"
