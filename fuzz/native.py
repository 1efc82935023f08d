# SPDX-License-Identifier: Apache-2.0
"""Builds the targets in C, with the sanitizers and our own engine (fuzz/c/engine.c).

The loader needs the guard's skeleton and libbpf, so it is built and run in the tools tree; all others by the host's compiler.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from freehold import run
from freehold.build.store import cache_directory
from freehold.build.tools import Tools, identity
from freehold.errors import NotHereError
from fuzz.targets import REPOSITORY, Target

COMPILER = ("-std=gnu17", "-g", "-Wall", "-Wextra", "-Werror", "-Iearly", "-Ibpf", "-Ifuzz/c")
SANITIZERS = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
COVERAGE = "-fsanitize-coverage=trace-pc,trace-cmp"
LIBRARIES = ("-lbpf", "-lelf", "-lz", "-lzstd")


def tools() -> Tools | None:
    """The tools tree, when it has been made."""
    found = Tools(cache_directory() / f"tools-{identity()}", identity())
    return found if found.root.is_dir() else None


def build(target: Target, out: Path, *, instead: Mapping[Path, Path] | None = None) -> list[run.Argument]:
    """Build ``target`` into the directory ``out``; the command line that runs it (corpus and so on come behind).

    ``instead``: other files for some of the sources. Raises :class:`NotHereError` without compiler or tools tree,
    :class:`CommandError` when it does not compile.
    """
    out.mkdir(parents=True, exist_ok=True)
    program, engine = out / target.name, out / f"{target.name}-engine.o"
    sources = [(instead or {}).get(path, path) for path in target.sources if path.stem not in target.included]
    first: list[run.Argument] = ["gcc", *COMPILER, "-O2", "-c", "fuzz/c/engine.c", "-o", engine]
    second: list[run.Argument] = ["gcc", *COMPILER, *SANITIZERS, COVERAGE, f"-I{out}", "-o", program, target.harness]
    second += [*sources, engine]
    if "guard" not in target.included:
        if shutil.which("gcc") is None:
            raise NotHereError("there is no C compiler", hint="apt install gcc")
        for command in (first, second):
            run.run(command, cwd=REPOSITORY)
        return [program]
    tree = tools()
    if tree is None:
        raise NotHereError("the tools tree has not been made", hint="any `freehold build` makes it")
    skeleton: list[run.Argument] = ["make", "-s", "-f", "bpf/guard.mk", f"GUARD_OUT={out}", f"{out}/guard.skel.h"]
    for command in (skeleton, first, second + list(LIBRARIES)):
        tree.run(command, binds=[out], ro_binds=[REPOSITORY], cwd=REPOSITORY)
    return tree.argv([program], binds=[out])
