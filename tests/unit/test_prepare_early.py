# SPDX-License-Identifier: Apache-2.0
"""Boot preparation: it waits at the gate while the guard loads; what is covered under the lock; what is not built again."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from freehold.boot import prepare
from freehold.run import run

EARLY = Path(__file__).parents[2] / "early"
DATA = Path(__file__).parents[2] / "data"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the program and the script that it starts are."""
    return tmp_path_factory.mktemp("prepare")


@pytest.fixture(scope="module")
def program(directory: Path) -> Path:
    """The C code with the sanitizers on; it starts a script of ours instead of the sealed one."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    built = directory / "program"
    quiet = directory / "quiet.c"
    quiet.write_text(
        '#include <stdlib.h>\n#include "util.h"\n'
        "void __wrap_say(const char *f, ...);\nvoid __wrap_say(const char *f, ...) { (void)f; }\n"
        "void __wrap_die(const char *f, ...);\nvoid __wrap_die(const char *f, ...) { (void)f; exit(9); }\n"
    )
    sources = [Path(__file__).parent / "c/prepare_main.c", EARLY / "prepare.c", EARLY / "util.c", quiet]
    flags = ["-std=gnu17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]
    wraps = [f"-Wl,--wrap={name}" for name in ("say", "die", "mount_at")]
    own = f'-DPREPARE="{directory / "script"}"'
    run(["cc", *flags, own, "-fno-sanitize-recover=all", *wraps, f"-I{EARLY}", "-o", built, *sources])
    return built


def script(directory: Path, text: str) -> None:
    """What takes the place of the sealed program."""
    path = directory / "script"
    path.write_text(f"#!{sys.executable} -ISB\n{text}")
    path.chmod(0o755)


def test_nothing_of_roots_is_read_before_the_gate_opens(program: Path, directory: Path, tmp_path: Path) -> None:
    """The real `wait`, between the two marks."""
    source = Path(prepare.__file__).parents[2]
    script(directory, f"import sys\nsys.path.insert(0, {str(source)!r})\nfrom freehold.boot import prepare\n"
           f"open({str(tmp_path / 'started')!r}, 'w')\nprepare.wait()\nopen({str(tmp_path / 'ended')!r}, 'w')\n")  # fmt: skip
    done = run([program, "gate", tmp_path / "started", tmp_path / "ended"], timeout=30)
    assert done.text.split("\n") == ["waits", "went on", ""]


def test_a_preparation_that_fails_ends_the_boot(program: Path, directory: Path, tmp_path: Path) -> None:
    script(directory, f"open({str(tmp_path / 'started')!r}, 'w')\nraise SystemExit(1)\n")
    assert run([program, "gate", tmp_path / "started", tmp_path / "ended"], check=False, timeout=30).status == 9


def sealed(root: Path, listing: str) -> Path:
    (root / "usr/lib/freehold").mkdir(parents=True)
    (root / "usr/lib/freehold/unbelieved.list").write_text(listing)
    (root / "var").mkdir()
    return root


def test_every_listed_directory_is_covered(program: Path, tmp_path: Path) -> None:
    listing = (DATA / "usr/lib/freehold/unbelieved.list").read_text()
    root = sealed(tmp_path / "root", listing)
    names = [line for line in listing.splitlines() if line and not line.startswith("#")]
    assert "/var/spool/cron" in names
    rows = run([program, "cover", root]).text.splitlines()
    # 6: MS_NOSUID | MS_NODEV.
    assert rows == [f"freehold-empty {root}{name} tmpfs 6 mode=0755,size=5%" for name in names]
    assert all((root / name[1:]).is_dir() for name in names)


def test_links_of_root_do_not_aim_the_mounts(program: Path, tmp_path: Path) -> None:
    root = sealed(tmp_path / "root", "# comment\n\n/var/spool/cron\n/var/lib/at\n/var/lib/deep/none\n")
    for name in ("spool/cron", "elsewhere"):
        (root / "var" / name).mkdir(parents=True)
    (root / "var/lib").symlink_to(root / "var/elsewhere")
    (root / "var/spool/cron/job").write_text("")
    rows = run([program, "cover", root]).text.splitlines()
    assert [row.split()[1] for row in rows] == [f"{root}/var/{name}" for name in ("spool/cron", "lib/at", "lib/deep/none")]
    assert not (root / "var/lib").is_symlink()
    assert (root / "var/lib/deep/none").is_dir()
    assert list((root / "var/elsewhere").iterdir()) == []


@pytest.mark.parametrize("listing", ["/etc/cron.d\n", "/variable/x\n", "/var/" + "x" * 600 + "\n"])
def test_a_list_that_names_something_else_ends_the_boot(program: Path, tmp_path: Path, listing: str) -> None:
    root = sealed(tmp_path / "root", listing)
    assert run([program, "cover", root], check=False).status == 1
    (root / "usr/lib/freehold/unbelieved.list").unlink()
    assert run([program, "cover", root], check=False).status == 1


@pytest.mark.parametrize(
    ("lock", "committed", "stamped"),
    [
        ("locked", None, True), ("locked", "hostname", True), ("locked", "udev/rules.d", True),
        ("locked", "ld.so.conf.d/own.conf", False), ("locked", "sysusers.d/own.conf", False),
        ("locked", "udev/hwdb.d/own.hwdb", False), ("open", None, False),
    ],
)  # fmt: skip
def test_what_the_image_brought_is_not_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lock: str, committed: str | None, stamped: bool
) -> None:
    """systemd compares the times of /usr and /etc/.updated. Committed files may be what it is made from; an open /etc changes."""
    record = f'{{"intent":{{"lock":"{lock}","state":"valid"}},"first_boot":false,"rescue":false}}\n'
    (tmp_path / "boot.json").write_text(record)
    (tmp_path / "id").write_text("f" * 32 + "\n")
    usr, etc = tmp_path / "usr", tmp_path / "etc"
    if committed:
        (tmp_path / "config" / committed).parent.mkdir(parents=True)
        (tmp_path / "config" / committed).write_text("")
    usr.mkdir()
    etc.mkdir()
    (etc / "passwd").write_text("root:x:0:0::/root:/bin/bash\n")
    (tmp_path / "var").mkdir()
    os.utime(usr, ns=(1_700_000_000_000_000_000, 1_700_000_000_000_000_000))
    places = {"BOOT_RECORD": "boot.json", "MACHINE_ID": "id", "CONFIG": "config", "USR": "usr", "ETC": "etc", "VAR": "var"}
    for name, path in {**places, "FACTORY": "none", "STATE": "none"}.items():
        monkeypatch.setattr(prepare, name, tmp_path / path)
    monkeypatch.setattr(prepare, "wait", lambda: None)
    assert prepare.main() == 0
    assert (etc / ".updated").exists() is stamped
    if stamped:
        assert (etc / ".updated").stat().st_mtime_ns == usr.stat().st_mtime_ns
