# SPDX-License-Identifier: Apache-2.0
"""Units that are shell text become units that start a script; what cannot is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.build import unit_scripts
from freehold.build.unit_scripts import PLACE, convert
from freehold.errors import InputError
from freehold.run import run

HEAD = "[Unit]\nDescription=with 'a quote\n# ExecStart=/bin/sh -c 'commented'\n\n[Service]\nType=oneshot\n"


def service(*lines: str) -> str:
    return HEAD + "".join(f"{line}\n" for line in lines) + "User=root\n"


def script_of(*lines: str) -> str:
    made = convert("a.service", service(*lines))
    assert list(made.scripts) == ["ExecStart-1"]
    return made.scripts["ExecStart-1"]


def quoted(text: str) -> str:
    """``text`` as one word of a unit's command, by systemd.syntax(7): a writer of its own."""
    escaped = "".join(
        f"\\{char}" if char in "\\'\"" else f"\\x{ord(char):02x}" if ord(char) < 0x20 else char for char in text
    )
    return "'" + escaped.replace("%", "%%").replace("$", "$$") + "'"


SHELL = st.text(st.sampled_from(list("abc $\"'\\%;#{}|&<>()\n\t=-0é")), min_size=1, max_size=40)


@given(SHELL, st.sampled_from(["", "-", "+", "-+"]), st.sampled_from(["", "e", "eu"]))
def test_the_script_is_the_text(text: str, prefix: str, options: str) -> None:
    unit = service(f"ExecStart={prefix}/bin/sh -{options}c {quoted(text)}")
    if re.search(r"\$\{?0", text):
        with pytest.raises(InputError):
            convert("a.service", unit)
        return
    made = convert("a.service", unit)
    assert made.scripts == {"ExecStart-1": f"#!/bin/sh{f' -{options}' if options else ''}\n{text}\n"}
    assert made.text == service(f"ExecStart={prefix}{PLACE}/a.service/ExecStart-1")
    # Done once, there is nothing left to do.
    assert convert("a.service", made.text).text == made.text


@given(st.text(st.sampled_from(list("ExecStart=/bin/sh -c'\"\\\n\r\0;#%$ a")), max_size=60))
def test_any_text_is_converted_or_refused(text: str) -> None:
    try:
        made = convert("a.service", text)
    except InputError as error:
        assert error.faults
        return
    assert made.scripts or made.text == text
    assert "sh -c" not in made.text or not made.scripts or convert("a.service", made.text).text == made.text


@given(st.lists(st.sampled_from([
    "ExecStart=/usr/sbin/sshd -D $SSHD_OPTS", "ExecStart=/bin/sh /usr/lib/x.sh", "ExecStart=/usr/bin/bash", "ExecStart=",
    "ExecReload=/bin/kill -HUP $MAINPID", "ExecStart=/usr/bin/printf 'sh -c'", "Environment=ExecStart='/bin/sh -c x'",
    "[Install]",
    "ExecStart=/usr/bin/tool \\;", "ExecStart=/usr/bin/tool \\", "; ExecStart=/bin/sh -c x", "ExecStart=/usr/bin/tool --with=%i",
])))  # fmt: skip
def test_other_units_stay_byte_for_byte(lines: list[str]) -> None:
    unit = service(*lines)
    assert convert("a.service", unit) == unit_scripts.Converted(unit, {})


@pytest.mark.parametrize(("line", "script"), [
    ("ExecStart=sh -c 'exit 0'", "#!/usr/bin/sh\nexit 0\n"), ("ExecStart=/bin/sh -c ';' - ';'", "#!/bin/sh\n;\n"),
    ('ExecStart=/usr/bin/bash -e -u -c "a=b; exec true"', "#!/usr/bin/bash -eu\na=b; exec true\n"),
    ("ExecStart=/bin/dash -euxc true", "#!/bin/dash -eux\ntrue\n"),
    ("ExecStart=:/bin/sh -c 'echo $$ ${HOME}'", "#!/bin/sh\necho $$ ${HOME}\n"),
    ("ExecStart=/bin/sh -c 'echo \"$HOME\" $$1 $${x}'", "#!/bin/sh\necho \"$HOME\" $1 ${x}\n"),
    ("ExecStart=/bin/sh \\\n    # why\n  -c 'one; \\\n    two'", "#!/bin/sh\none;  two\n"),
    ("ExecStart=/bin/sh -c 'a\\x20b\\tc\\nd\\101'", "#!/bin/sh\na b\tc\ndA\n"),
    ("ExecStart=/bin/sh -c 'date +%%s'", "#!/bin/sh\ndate +%s\n"),
])  # fmt: skip
def test_forms(line: str, script: str) -> None:
    assert script_of(line) == script


def test_arguments_stay_as_they_were_written() -> None:
    made = convert("x@.service", service("ExecStart=/bin/sh -c 'echo \"$@\"' self %i  ${OPTIONS} 'a b'"))
    assert f"\nExecStart={PLACE}/x@.service/ExecStart-1 %i  ${{OPTIONS}} 'a b'\n" in made.text
    assert made.scripts == {"ExecStart-1": '#!/bin/sh\necho "$@"\n'}


@pytest.mark.parametrize(("line", "why"), [
    ("ExecStart=/bin/sh -c 'echo %i'", "a specifier"),
    ("ExecStart=/bin/sh -c 'echo ${NAME}'", "a variable of systemd's"),
    ("ExecStart=/bin/sh -c $TEXT", "a variable of systemd's"),
    ("ExecStart=/bin/sh -c '$TEXT and more'", "a variable of systemd's"),
    ("ExecStart=/bin/sh -c 'echo $0'", "its own name"),
    ("ExecStart=@/bin/sh me -c true", "another name"), ("ExecStart=@/bin/sh -c true", "another name"),
    ("ExecStart=/bin/sh -c one ; /bin/true", "several commands"),
    ("ExecStart=/bin/sh -c 'unended", "does not end"), ("ExecStart=/bin/sh -c 'a\\qb'", "does not know"),
    ("ExecStart=/bin/sh -c", "without text"), ("ExecStart=/bin/sh -ic true", "only sh, dash and bash"),
    ("ExecStop=/usr/bin/python3 -c 'print(1)'", "python3 -c"), ("ExecStart=-/usr/bin/perl -we 1", "perl -we"),
    ("ExecStart=/usr/bin/env sh -c true", "by way of /usr/bin/env"),
    ("RootDirectory=/srv\nExecStart=/bin/sh -c true", "a root directory of the unit's own"),
])  # fmt: skip
def test_what_cannot_be_converted_is_named(line: str, why: str) -> None:
    with pytest.raises(InputError) as raised:
        convert("a.service", service(line))
    assert len(raised.value.faults) == 1
    assert raised.value.faults[0].startswith("a.service: Exec")
    assert why in raised.value.faults[0]


def tree(root: Path, units: dict[str, str]) -> Path:
    for name, line in units.items():
        path = root / "usr/lib/systemd/system" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(service(line))
    (root / "etc/systemd/system").mkdir(parents=True)
    return root


def test_a_tree(tmp_path: Path) -> None:
    root = tree(tmp_path, {
        "one.service": "ExecStart=/bin/sh -c 'echo one \"$1\"' - two", "two.service": "ExecStart=/bin/true",
        "three.service.d/x.conf": "ExecStartPost=/bin/sh -c 'echo three'",
    })  # fmt: skip
    unit_scripts.settle(root)
    script = root / f"{PLACE[1:]}/one.service/ExecStart-1"
    assert run([script, "two"]).text == run(["/bin/sh", "-c", 'echo one "$1"', "-", "two"]).text == "one two\n"
    units = root / "usr/lib/systemd/system"
    assert (units / "one.service").read_text() == service(f"ExecStart={PLACE}/one.service/ExecStart-1 two")
    assert (units / "two.service").read_text() == service("ExecStart=/bin/true")
    drop_in = "three.service.d/x.conf"
    assert (units / drop_in).read_text() == service(f"ExecStartPost={PLACE}/{drop_in}/ExecStartPost-1")


def test_faults_name_every_unit_but_masked_ones(tmp_path: Path) -> None:
    root = tree(tmp_path, {
        "one.service": "ExecStart=/bin/sh -c %i", "two.service": "ExecStart=/bin/sh -c", "three.service": "ExecStart=/bin/true",
    })  # fmt: skip
    with pytest.raises(InputError) as raised:
        unit_scripts.settle(root)
    assert [fault.split(":")[0] for fault in raised.value.faults] == ["one.service", "two.service"]
    for name in ("one.service", "two.service"):
        (root / "etc/systemd/system" / name).symlink_to("/dev/null")
    unit_scripts.settle(root)
    assert (root / "usr/lib/systemd/system/one.service").read_text() == service("ExecStart=/bin/sh -c %i")
