# SPDX-License-Identifier: Apache-2.0
"""``make fuzz``: runs the targets one after the other, each for ``--seconds``; see docs/fuzzing.md.

A target runs in slices of at most a minute; after each its seconds and runs are stored beside its corpus, so that what was
interrupted goes on where it was, and what has had its time since the code under test changed is not run again. When it has,
``fuzz/results/TARGET.json`` is written. The exit status is 1 when anything was found.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from freehold import atomic, run
from freehold.build.store import cache_directory
from freehold.errors import FreeholdError
from fuzz import native
from fuzz.targets import BY_NAME, REPOSITORY, TARGETS, Target

RESULTS = REPOSITORY / "fuzz/results"
SCHEMA = "freehold-fuzz-1"
SLICE = 60.0
#: Leaks do not matter to programs that run once, and the engine keeps its corpus to the end.
ENVIRONMENT = {"ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0", "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'src'}"}
ENGINES = {
    "c": "gcc -fsanitize=address,undefined, coverage-guided (fuzz/c/engine.c)",
    "python": "Python, guided by lines that were reached (fuzz/engine.py)",
}


class State:
    """What a target has had: a file beside its corpus. Another code under test, and the seconds begin anew."""

    def __init__(self, directory: Path, digest: str) -> None:
        self.path = directory / "state.json"
        self.fields: dict[str, float] = {"seconds": 0.0, "runs": 0, "corpus": 0, "reached": 0}
        self.digest = digest
        try:
            kept = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return
        if kept.get("source") == digest:
            self.fields = {name: kept[name] for name in self.fields}

    def add(self, said: dict[str, float]) -> None:
        """One slice more."""
        self.fields["seconds"] = round(self.fields["seconds"] + said["seconds"], 1)
        self.fields["runs"] += said["runs"]
        self.fields.update(corpus=said["corpus"], reached=said["blocks"])
        atomic.write(self.path, json.dumps({"source": self.digest, **self.fields}) + "\n")


def machine() -> dict[str, object]:
    """The kind of machine, as far as it says how much was tried."""
    model = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "cores": os.cpu_count(), "processor": model[1] if model else platform.machine(), "kernel": platform.release(),
        "python": platform.python_version(),
    }  # fmt: skip


def command_of(target: Target, work: Path) -> list[run.Argument]:
    """The program that fuzzes ``target``; for those in C it is built."""
    if target.engine == "c":
        return native.build(target, work)
    return [sys.executable, "-m", "fuzz.worker", target.name]


def prepare(target: Target, corpus: Path) -> None:
    """Put the seeds into the corpus."""
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds():
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)


def finding(done: run.Completed, current: Path, directory: Path) -> dict[str, str]:
    """What ended a target, and its input, which is kept in ``directory``."""
    said = done.stderr.decode(errors="replace").splitlines()
    telling = [line for line in said if re.search(r"ERROR: |runtime error|broken: |hang: |^[\w.]+(Error|Found)\b", line)]
    held = current.read_bytes()
    data = held[4 : 4 + int.from_bytes(held[:4], "little")]
    name = hashlib.sha256(data).hexdigest()[:16]
    directory.mkdir(exist_ok=True)
    (directory / name).write_bytes(data)
    (directory / f"{name}.txt").write_text("\n".join(said[:200]) + "\n")
    return {"input": name, "said": re.sub(r"==\d+==|/[\w./-]*/", "", (telling or said or ["nothing"])[-1])[:200]}


def fuzz(target: Target, work: Path, seconds: float, command: Sequence[run.Argument] | None = None) -> dict[str, object]:
    """Run ``target`` until it has had ``seconds``, or found something; the result, as in its file.

    ``command`` stands in for the target's own program.
    """
    corpus, current = work / "corpus", work / "current"
    prepare(target, corpus)
    command = command_of(target, work) if command is None else command
    digest = target.digest()
    state = State(work, digest)
    # Whatever is kept runs once in any case, so that an old finding that is back is seen.
    done = run.run([*command, corpus, current], env=ENVIRONMENT, check=False)
    findings = [finding(done, current, work / "findings")] if done.status else []
    while not findings and state.fields["seconds"] < seconds:
        some = min(SLICE, max(1.0, seconds - state.fields["seconds"]))
        dice = str(int.from_bytes(os.urandom(4), "little"))
        done = run.run([*command, corpus, current, f"{some:.1f}", dice], env=ENVIRONMENT, check=False)
        if done.status:
            findings.append(finding(done, current, work / "findings"))
        else:
            state.add(json.loads(done.text.splitlines()[-1]))
    return {
        "schema": SCHEMA, "target": target.name, "what": target.what, "engine": ENGINES[target.engine],
        "source": digest, **state.fields, "findings": findings,
        "taken": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": machine(),
    }  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Run the chosen targets, or all; 0 when nothing was found."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(BY_NAME)} (default: all)")
    parser.add_argument("--seconds", type=float, default=600, help="for each target, over all runs (default 600)")
    parser.add_argument("--work", type=Path, help="where corpora are kept (default: fuzz in Freehold's cache)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where results are written")
    options = parser.parse_args(arguments)
    if unknown := set(options.targets) - set(BY_NAME):
        parser.error(f"no target is called {', '.join(sorted(unknown))}")
    work = (options.work or cache_directory() / "fuzz").absolute()
    found = 0
    for target in TARGETS:
        if options.targets and target.name not in options.targets:
            continue
        try:
            result = fuzz(target, work / target.name, options.seconds)
        except FreeholdError as error:
            print(f"fuzz: {error.message}\n{error.diagnostics()}", file=sys.stderr)
            return error.exit_status
        findings = result["findings"]
        assert isinstance(findings, list)  # noqa: S101 (for the type checker)
        found += len(findings)
        options.results.mkdir(parents=True, exist_ok=True)
        atomic.write(options.results / f"{target.name}.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        print(f"{target.name}: {result['runs']} runs in {result['seconds']} s, {result['corpus']} inputs kept, "
              f"{len(findings)} findings", flush=True)  # fmt: skip
        for one in findings:
            print(f"  {work / target.name / 'findings' / one['input']}: {one['said']}", flush=True)
    return 1 if found else 0
