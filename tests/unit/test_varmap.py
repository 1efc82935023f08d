# SPDX-License-Identifier: Apache-2.0
"""What becomes of /var: every path has a verdict, or the build says who put it there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.errors import InputError
from freehold.seal import varmap
from freehold.seal.varmap import Entry, Verdict


def lines(*entries: Entry, rules: tuple[tuple[str, Verdict], ...] = (), made: tuple[str, ...] = ()) -> list[str]:
    text = varmap.classify(entries, rules=rules, made=made).tmpfiles
    return [line for line in text.splitlines() if not line.startswith("#")]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (Entry("var/mail", "d", 0o2775, "root", "mail"), ["d /var/mail 2775 root mail - -"]),
        (Entry("var/spool/mail", "l", 0o777, target="../mail"), ["L /var/spool/mail - - - - ../mail"]),
        (Entry("var/log/btmp", "f", 0o660, "root", "utmp"), ["f /var/log/btmp 0660 root utmp - -"]),
        (Entry("var/cache/ldconfig/aux-cache", "f", 0o600, size=9), []),
        (Entry("var/lib/apt/lists/some_Release", "f", 0o644, size=9), []),
        (
            Entry("var/cache/apt/archives/partial", "d", 0o700, "_apt"),
            ["d /var/cache/apt/archives/partial 0700 _apt root - -"],
        ),
    ],
)  # fmt: skip
def test_built_in_rules(entry: Entry, expected: list[str]) -> None:
    assert lines(entry) == expected


def test_package_database_is_moved_and_linked() -> None:
    result = varmap.classify([Entry("var/lib/dpkg", "d", 0o755), Entry("var/lib/dpkg/status", "f", 0o644, size=9)])
    assert result.moves == (("var/lib/dpkg", "usr/share/dpkg-db"),)
    assert "L+ /var/lib/dpkg - - - - ../../usr/share/dpkg-db\n" in result.tmpfiles
    assert "/var/lib/dpkg/status" not in result.tmpfiles


def test_unknown_paths_are_all_named_with_their_packages() -> None:
    with pytest.raises(InputError) as caught:
        varmap.classify([
            Entry("var/lib/thing", "d", 0o755, package="thing"), Entry("var/lib/thing/data", "f", 0o644, size=3),
            Entry("var/mail", "d", 0o2775),
        ])  # fmt: skip
    assert caught.value.exit_status == 2
    first, second = caught.value.faults
    assert first.startswith("/var/lib/thing (package thing): ")
    assert "tmpfiles = ['var/lib/thing']" in first
    assert second.startswith("/var/lib/thing/data (made by a maintainer script): ")
    assert "seed = ['var/lib/thing/data']" in second


def test_recipe_rules_come_first_and_unused_ones_are_told() -> None:
    entries = [
        Entry("var/lib/thing", "d", 0o750, "thing", "thing"), Entry("var/lib/thing/data", "f", 0o640, size=3),
        Entry("var/cache/adduser", "d", 0o755),
    ]  # fmt: skip
    rules: list[tuple[str, Verdict]] = [
        ("var/lib/thing", "tmpfiles"), ("var/lib/thing/**", "seed"), ("var/cache/adduser", "discard"),
        ("var/x", "seed"),
    ]  # fmt: skip
    result = varmap.classify(entries, rules=rules)
    assert result.seeds == (("var/lib/thing/data", "usr/share/freehold/var/lib/thing/data"),)
    assert "d /var/lib/thing 0750 thing thing - -\n" in result.tmpfiles
    assert "C /var/lib/thing/data 0640 root root - /usr/share/freehold/var/lib/thing/data\n" in result.tmpfiles
    assert result.discards == ("var/cache/adduser",)
    assert result.unused == ("var/x",)


def test_content_is_not_lost_silently() -> None:
    with pytest.raises(InputError, match="nothing has a rule") as caught:
        varmap.classify([Entry("var/x", "f", 0o644, size=1)], rules=[("var/x", "tmpfiles")])
    assert "needs 'seed'" in caught.value.faults[0]


def test_special_files_can_only_be_discarded() -> None:
    pipe = Entry("var/x", "p", 0o644)
    with pytest.raises(InputError):
        varmap.classify([pipe], rules=[("var/x", "tmpfiles")])
    assert varmap.classify([pipe], rules=[("var/x", "discard")]).discards == ("var/x",)


def test_what_packages_make_themselves_is_not_made_twice() -> None:
    text = "# x\nd /var/lib/systemd/coredump 0755 root root 2w\ne /var/tmp 1777 - - 30d\nz /var/log/journal 2755\n"
    made = varmap.made_by(text)
    assert made == {"var/lib/systemd/coredump"}
    assert lines(Entry("var/lib/systemd/coredump", "d", 0o755), made=tuple(made)) == []


def test_odd_names_are_quoted() -> None:
    rules: tuple[tuple[str, Verdict], ...] = (("var/**", "tmpfiles"),)
    assert lines(Entry('var/a b%"', "d", 0o755), rules=rules) == ['d "/var/a\\x20b%%\\"" 0755 root root - -']


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("var/lib/*", "var/lib/a", True), ("var/lib/*", "var/lib/a/b", False), ("var/lib/**", "var/lib/a/b", True),
        ("var/lib/**", "var/lib", False), ("var/a.b", "var/axb", False), ("var/lib/?", "var/lib/a", True),
    ],
)  # fmt: skip
def test_patterns(pattern: str, path: str, expected: bool) -> None:
    assert varmap.matches(pattern, path) is expected


components = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=5)
paths = st.lists(components, min_size=1, max_size=4)


@given(st.dictionaries(paths.map(lambda parts: "/".join(["var", *parts])), st.sampled_from("dfl"), max_size=8),
       st.sampled_from(["tmpfiles", "discard", "seed"]))  # fmt: skip
def test_every_entry_ends_somewhere(kinds: dict[str, str], verdict: Verdict) -> None:
    entries = [Entry(path, kind, 0o644, target="t") for path, kind in kinds.items()]
    result = varmap.classify(entries, rules=[("var/**", verdict)])
    made = [line for line in result.tmpfiles.splitlines() if not line.startswith("#")]
    assert len(made) + len(result.discards) == len(entries) - sum(
        1 for path in kinds if varmap._relocation(path) is not None
    ) + len(result.moves)
