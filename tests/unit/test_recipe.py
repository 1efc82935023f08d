# SPDX-License-Identifier: Apache-2.0
"""Recipes: every fault with its line, inheritance, and an identity that follows the content."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.build import recipe, recipe_schema
from freehold.build.recipe_lines import LineIndex, show
from freehold.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
FULL = '''# a comment with [brackets] and "quotes"
name = "box"
packages = [
    "fish",  # a comment, with a comma
    "less", "nano",
]

[[users]]
name = "ann"
uid = 1000

[[users]]
name = "bob"

[boot]
cmdline = ["quiet"]

[[files]]
path = "/etc/motd"
content = """
[not.a.table]
name = 1
"""
mode = 0o600
'''


def faults_of(text: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        recipe.parse(text, source="r.toml")
    assert caught.value.exit_status == 2
    return list(caught.value.faults)


def write(directory: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (directory / f"{name}.toml").write_text(text)
    return directory / f"{next(iter(texts))}.toml"


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("name",), 2), (("packages",), 3), (("packages", 0), 4), (("packages", 1), 5), (("packages", 2), 5),
        (("users", 0, "uid"), 10), (("users", 1), 12), (("users", 1, "name"), 13), (("users", 1, "uid"), 12),
        (("boot", "cmdline", 0), 16), (("files", 0, "content"), 20), (("files", 0, "mode"), 24), (("nothing",), 1),
    ],
)  # fmt: skip
def test_lines(path: tuple[str | int, ...], line: int) -> None:
    assert LineIndex(FULL).line(path) == line


def test_line_index_knows_dotted_quoted_and_inline_keys() -> None:
    index = LineIndex("a.b = 1\n'c d'.e = {f = [1,\n2], g = '''x'''}\n[h.\"i\"]\nj = \"\\\"]\"\nk = 1\n")
    assert [index.line(p) for p in (("a", "b"), ("c d", "e", "f"), ("h", "i"), ("h", "i", "k"))] == [1, 2, 4, 6]


def test_show() -> None:
    assert show(("users", 0, "uid")) == "users[0].uid"


@given(st.text(max_size=200))
def test_any_text_gives_a_document_or_input_error(text: str) -> None:
    try:
        recipe.parse(text, source="r")
    except InputError as error:
        assert error.faults


@given(st.text(alphabet="ab.=[]{}\"'\n#,\\ 1", max_size=60))
def test_line_index_ends_on_every_toml(text: str) -> None:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    index = LineIndex(text)
    assert all(1 <= index.line((key,)) <= text.count("\n") + 1 for key in data)


def test_all_faults_at_once_with_lines() -> None:
    text = (
        'name = "Box"\npakages = []\nrecommends = "no"\npackages = ["ok", "-bad", 3]\n'
        '[[users]]\nuid = 10\n[boot]\ncmdline = ["init=/bin/sh", "freehold.image=0", "a b"]\n'
        '[[files]]\npath = "/var/x"\nmode = 0o4755\ncontent = ""\nsource = "x"\n[units]\nenable = "ssh.service"\n'
    )
    assert faults_of(text) == [
        "r.toml:1 name: 'Box' is not a name (a-z, 0-9, -; not zz…)",
        "r.toml:2 pakages: unknown key; did you mean 'packages'?",
        "r.toml:3 recommends: must be a boolean, is a string",
        "r.toml:4 packages[1]: '-bad' is not a package name (name or name=version)",
        "r.toml:4 packages[2]: must be a string, is an integer",
        "r.toml:5 users[0]: 'name' is missing",
        "r.toml:6 users[0].uid: must be 1000 to 59999",
        "r.toml:8 boot.cmdline[0]: 'init' is set by the builder",
        "r.toml:8 boot.cmdline[1]: 'freehold.image' is set by the builder",
        "r.toml:8 boot.cmdline[2]: 'a b' is not one kernel argument (no spaces, no quotes)",
        "r.toml:9 files[0]: needs either 'content' or 'source'",
        "r.toml:10 files[0].path: '/var/x' must lie below /usr or /etc",
        "r.toml:11 files[0].mode: must be 0o000 to 0o777 (no set-uid, set-gid, sticky)",
        "r.toml:15 units.enable: must be a list of strings, is a string",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('name = "a"\nx = = 1\n', "r.toml:2:5: invalid value"),
        ('name = "a', "r.toml:1: "),
        ("epoch = true\n", 'r.toml:1 epoch: must be an integer or string, is a boolean'),
        ('suite = "trixi"\n', "r.toml:1 suite: 'trixi' is not one of: trixie; did you mean 'trixie'?"),
        ("boot = 1\n", "r.toml:1 boot: must be a table, is an integer"),
        ("users = {}\n", "r.toml:1 users: must be an array of tables ([[users]]), is a table"),
        ('[[files]]\npath = "/etc/../x"\ncontent = ""\n', "may not contain '..'"),
        ('[var]\nseed = ["/var/x"]\n', "is not a pattern of paths below var/"),
        ("x = " + "[" * 5000 + "]" * 5000, "r.toml"),
    ],
)
def test_single_faults(text: str, fault: str) -> None:
    assert fault in faults_of(text)[0]


def test_inherit_merges(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        child='inherit = "base.toml"\nname = "child"\npackages = ["fish"]\nwithout = ["nano"]\n'
        'pockets = []\n[units]\nenable = ["a.service"]\n[[users]]\nname = "ann"\nuid = 1001\n[boot]\ntimeout = 3\n',
        base='name = "base"\npackages = ["nano", "less"]\n[units]\ndisable = ["a.service", "b.service"]\n'
        '[[users]]\nname = "ann"\n[[users]]\nname = "bob"\n[boot]\ncmdline = ["quiet"]\n',
    )
    result = recipe.load(path)
    assert (result.name, result.packages, result.pockets) == ("child", ("fish", "less"), ())
    assert result.units == recipe.Units(("a.service",), ("b.service",), ())
    assert [(user.name, user.uid) for user in result.users] == [("ann", 1001), ("bob", None)]
    assert (result.cmdline, result.timeout) == (("quiet",), 3)


def test_cycles_missing_files_and_unknown_removals_are_faults(tmp_path: Path) -> None:
    path = write(tmp_path, a='name = "a"\ninherit = "b.toml"\nwithout = ["vim"]\n', b='inherit = "a.toml"\n')
    with pytest.raises(InputError) as caught:
        recipe.load(path)
    assert caught.value.faults == (
        f"{tmp_path}/b.toml:1 inherit: inherits itself", f"{path}: without: 'vim' is not inherited",
    )  # fmt: skip
    path = write(tmp_path, c='inherit = "none.toml"\n[[files]]\npath = "/etc/x"\nsource = "gone"\n')
    with pytest.raises(InputError) as caught:
        recipe.load(path)
    assert [fault.partition(str(tmp_path))[2].partition(":")[0] for fault in caught.value.faults][:2] == ["/c.toml"] * 2
    assert "files[0].source: 'gone': No such file or directory" in caught.value.faults[1]
    assert "name: is missing" in caught.value.faults[2]


def test_contradictions_are_faults(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        a='name = "a"\n[units]\nenable = ["x.service"]\nmask = ["x.service"]\n[[users]]\nname = "u"\nuid = 1000\n'
        '[[users]]\nname = "u"\n[[users]]\nname = "v"\nuid = 1000\n[var]\nseed = ["var/x"]\ndiscard = ["var/x"]\n',
    )
    with pytest.raises(InputError) as caught:
        recipe.load(path)
    text = "\n".join(caught.value.faults)
    assert "a.toml:4 units.mask[0]: 'x.service' is also under enable" in text
    assert "a.toml:9 users[1].name: 'u' is given twice" in text
    assert "both have uid 1000" in text
    assert "var.seed: 'var/x' is also under discard" in text


def test_identity_follows_content(tmp_path: Path) -> None:
    path = write(tmp_path, a='name = "a"\npackages = ["xx", "yy"]\n[[files]]\npath = "/etc/x"\nsource = "data"\n')
    (tmp_path / "data").write_bytes(b"one")
    first = recipe.load(path)
    (tmp_path / "data").write_bytes(b"two")
    second = recipe.load(path)
    path.write_text('# the same\nname = "a"\npackages = ["yy", "xx"]\n[[files]]\nsource = "./data"\npath = "/etc/x"\n')
    assert first.id != second.id
    assert recipe.load(path).id == second.id
    assert set(json.loads(second.canonical())) == {field.name for field in dataclasses.fields(second)}


def certificate(cn: str) -> tuple[bytes, bytes]:
    """A self-signed certificate: (PEM, DER)."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, cn)])
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    built = x509.CertificateBuilder(name, name, key.public_key(), 1, start, start + datetime.timedelta(days=1)).sign(
        key, hashes.SHA256()
    )
    return built.public_bytes(serialization.Encoding.PEM), built.public_bytes(serialization.Encoding.DER)


def test_keychain(tmp_path: Path) -> None:
    pem, der = certificate("vendor")
    (tmp_path / "vendor.pem").write_bytes(pem)
    (tmp_path / "me.der").write_bytes(der)
    path = write(tmp_path, a='name = "a"\n[keychain]\nrelease = ["vendor.pem"]\nowner = ["me.der"]\n')
    assert recipe.load(path).keychain_files() == (("owner-me.der", der), ("release-vendor.der", der))
    (tmp_path / "vendor.pem").write_bytes(pem + b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    (tmp_path / "me.der").write_bytes(b"not one")
    with pytest.raises(InputError) as caught:
        recipe.load(path)
    assert "keychain.release[0]: 'vendor.pem': contains a private key" in caught.value.faults[0]
    assert "keychain.owner[0]: 'me.der': is not an X.509 certificate" in caught.value.faults[1]


def test_version_pattern_and_defaults(tmp_path: Path) -> None:
    result = recipe.load(write(tmp_path, a='name = "a"\n[etc]\nhostname = "box"\n'))
    assert result.version_at("20261124", 2) == "20261124.2"
    assert (result.suite, result.pockets, result.epoch, result.recommends) == (
        "trixie", ("security", "updates"), None, False,
    )  # fmt: skip
    assert result.files == (recipe.File("/etc/hostname", b"box\n", 0o644, "root:root"),)


def test_reference_recipe() -> None:
    result = recipe.load(ROOT / "recipes" / "server.toml")
    assert {"freehold", "openssh-server", "podman", "ignition"} <= set(result.packages)
    assert result.setuid_keep == ()


def test_every_key_is_documented() -> None:
    page = (ROOT / "docs" / "recipe.md").read_text()
    for name, entry in recipe_schema.SCHEMA.keys.items():
        assert f"`{name}`" in page or f"[{name}]" in page
        if isinstance(entry, recipe_schema.Table):
            assert all(f"`{key}`" in page for key in entry.keys), name
