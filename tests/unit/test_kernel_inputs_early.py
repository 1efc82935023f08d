# SPDX-License-Identifier: Apache-2.0
"""The early step's own code puts a policy into force by the same rules as `freehold lock`; IPE is a directory here."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from freehold.lock import inputs
from freehold.seal import kernel_inputs

EARLY = Path(__file__).parents[2] / "early"
NAME, OTHER = "ab" * 32, "cd" * 32


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the sanitizers on; IPE is looked for below the working directory."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    target = tmp_path_factory.mktemp("c") / "inputs"
    sources = [Path(__file__).parent / "c/inputs_main.c", EARLY / "inputs.c", EARLY / "util.c"]
    flags = ["-std=gnu17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]
    command = ["cc", *flags, "-fno-sanitize-recover=all", f'-DIPE="{inputs.IPE}"', f"-I{EARLY}", "-o", target, *sources]
    subprocess.run([str(word) for word in command], check=True, timeout=120)
    return target


def switches(system: Path) -> dict[str, str]:
    top = system / inputs.IPE
    return {str(path.relative_to(top)): path.read_text().strip() for path in sorted(top.rglob("*")) if path.is_file()}


@pytest.fixture
def system(tmp_path: Path) -> Callable[..., Path]:
    """Makes machines that are alike: IPE with the policies that are given, each 0 or 1."""
    count = iter(range(10))

    def make(enforce: str, **policies: str) -> Path:
        made = tmp_path / str(next(count))
        (made / inputs.IPE / "policies").mkdir(parents=True)
        for name, content in (("new_policy", ""), ("enforce", enforce)):
            (made / inputs.IPE / name).write_text(content)
        for name, active in policies.items():
            place = made / inputs.IPE / "policies" / f"freehold-{name}"
            place.mkdir()
            (place / "active").write_text(active)
        (made / "policy").write_bytes(b"signed")
        return made

    return make


def early(program: Path, system: Path, name: str = NAME, file: str = "policy") -> int:
    done = subprocess.run([program, file, name], cwd=system, capture_output=True, text=True, check=True, timeout=60)
    return int(done.stdout.split()[0])


@pytest.mark.parametrize(
    ("enforce", "policies", "said"),
    [
        ("1", {NAME: "0"}, 0), ("0", {NAME: "0", OTHER: "1"}, 0), ("1", {NAME: "1"}, 0), ("0", {NAME: "1"}, 0),
        ("1", {OTHER: "0"}, errno.EBADMSG), ("1", {}, errno.EBADMSG),
    ],
)  # fmt: skip
def test_both_do_the_same(
    program: Path, system: Callable[..., Path], enforce: str, policies: dict[str, str], said: int
) -> None:
    one, two = system(enforce, **policies), system(enforce, **policies)
    assert early(program, one) == inputs.enforce(b"signed", NAME, two) == said
    assert switches(one) == switches(two)
    if said == 0:
        found = switches(one)
        assert (found[f"policies/freehold-{NAME}/active"], found["enforce"], found["new_policy"]) == ("1", "1", "signed")
    assert switches(one).get(f"policies/freehold-{OTHER}/active") == policies.get(OTHER)


def test_what_ends_it_at_once(program: Path, system: Callable[..., Path], tmp_path: Path) -> None:
    made = system("1", **{NAME: "0"})
    before = switches(made)
    assert early(program, made, file="absent") == errno.ENOENT
    for name in ("", "ab", NAME[:-1], NAME + "a", NAME + "z", NAME.upper(), "../" + NAME[3:]):
        assert early(program, made, name=name) == errno.EBADMSG
    (made / "large").write_bytes(bytes(1 << 16))
    assert early(program, made, file="large") == errno.EFBIG
    assert switches(made) == before
    (tmp_path / "policy").write_bytes(b"signed")
    assert early(program, tmp_path) == errno.EOPNOTSUPP


def test_both_call_it_the_same() -> None:
    header = (EARLY / "inputs.h").read_text()
    assert f'#define INPUTS_WORD "{kernel_inputs.WORD}"\n' in header
    assert f'#define INPUTS_FILE "{kernel_inputs.FILE}"\n' in header
