# SPDX-License-Identifier: Apache-2.0
"""What the benchmark of the lock makes of its samples, and what it gives IPE and the recipe."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from bench import lock, lock_disks, lock_peers
from bench.builds import Bench
from bench.lock import JOBS, LOT, READS, SPAWNS, Samples

from freehold.build.recipe import load
from freehold.errors import FreeholdError
from freehold.run import run


def test_pairs_are_of_one_round() -> None:
    """A machine that gets slower all the time makes neither state slower than the other."""
    opened, locked = [1.0, 2.0, 3.0, 4.0], [1.01, 2.02, 3.03, 40.0]
    assert lock.paired(locked, opened) == pytest.approx(1.01)
    assert lock.longer([10.5, 12.5, 90.0], [10.0, 12.0, 14.0]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="longer"):
        lock.paired([1.0], [1.0, 2.0])
    assert lock.spread([1.0, 1.1, 0.9, 1.0, 5.0]) == pytest.approx(0.1)


@pytest.mark.parametrize("rounds", [1, 3, 4, 7, 30])
def test_every_state_starts_enough_programs(rounds: int) -> None:
    assert lock.lots(rounds) * rounds * LOT >= SPAWNS
    assert (lock.lots(rounds) - 1) * rounds * LOT < SPAWNS


def test_either_state_is_first_as_often() -> None:
    assert [lock.order(turn) for turn in range(3)] == [("open", "locked"), ("locked", "open"), ("open", "locked")]


def samples(name: str, seconds: float, boot: float) -> Samples:
    one = Samples(name, [seconds] * 4, [seconds] * JOBS, boots=[boot] * 2)
    for kind in READS:
        one.reads[kind] = [seconds] * JOBS
    return one


@pytest.mark.parametrize(
    ("factor", "added", "kept"), [(1.01, 1.4, [True] * 3), (1.05, 1.6, [False] * 3), (1.025, 0.1, [False, True, True])]
)
def test_the_promises(factor: float, added: float, kept: list[bool]) -> None:
    states = {"open": samples("open", 2.0, 10.0), "locked": samples("locked", 2.0 * factor, 10.0 + added)}
    others = {"fapolicyd": samples("fapolicyd", 6.0, 0.0), "IPE": samples("IPE", 2.0, 0.0)}
    promises, told = lock.ratios(states, samples("bare", 2.0, 0.0), others)
    assert [one.kept for one in promises] == kept
    assert told["starts, fapolicyd / nothing"] == 3.0
    assert told["starts, IPE / nothing"] == 1.0
    assert told["reads by shell, locked / open"] == pytest.approx(factor)


def test_what_failed_in_one_boot_is_not_compared() -> None:
    states = {name: samples(name, 2.0, 10.0) for name in ("open", "locked")}
    _, told = lock.ratios(states, samples("bare", 2.0, 0.0), {"fapolicyd": Samples("fapolicyd", [6.0]), "IPE": Samples("IPE")})
    assert not [name for name in told if name.startswith("starts")]


def test_only_what_was_sampled_is_told() -> None:
    names = [series.name for series in Samples("IPE", [1.0]).series()]
    assert names == [f"IPE: {LOT} starts of /bin/true"]
    assert len(samples("open", 1.0, 1.0).series()) == 3 + len(READS)


def test_what_the_guard_takes_is_read() -> None:
    assert lock_disks.kept_bytes("x\nguardctl: the maps take 12345 bytes, the programs 678\n") == (12345, 678)
    with pytest.raises(FreeholdError, match="did not say"):
        lock_disks.kept_bytes("")


def test_the_driver_counts_lots() -> None:
    driver = Path(lock.__file__).with_name("spawn_many.py")
    done = run([sys.executable, driver, "3", "2", shutil.which("true") or "/bin/true"])
    assert [seconds > 0 for seconds in json.loads(done.stdout)] == [True] * 3
    assert run([sys.executable, driver, "1", "1", shutil.which("false") or "/bin/false"], check=False).status == 1


def test_the_measured_system_is_the_reference_and_fapolicyd() -> None:
    mine, reference = load(lock_disks.RECIPE), load(lock_disks.RECIPE.parents[1] / "recipes/server.toml")
    assert set(mine.packages) == {*reference.packages, "fapolicyd"}
    assert mine.name != reference.name


def test_the_policy_is_signed_with_its_text(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    bench = Bench(tmp_path, tmp_path)
    bench.make_keys()
    signed = tmp_path / "policy.p7b"
    signed.write_bytes(lock_peers.sign_policy(bench, lock_peers.IPE_POLICY))
    cms = ["openssl", "cms", "-inform", "DER", "-in", str(signed)]
    assert run([*cms, "-verify", "-noverify", "-binary"]).stdout.decode() == lock_peers.IPE_POLICY
    shown = run([*cms, "-cmsout", "-print"]).text
    assert " ".join(shown.split()).count("edAttrs: <ABSENT>") == 2, "the kernel wants no attributes"
