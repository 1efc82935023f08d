# SPDX-License-Identifier: Apache-2.0
"""``make attack``: changes a locked machine from outside, row by row, and prints how each ended; see docs/attacks.md.

python -m attack                      every row; what was seen before on the same image is not seen again
python -m attack --only intent-older  one row, or one area (loader, uki, tree, owner, var, firmware, disk, control)
python -m attack --list               the rows, without a machine
python -m attack persistence          the other table: what root on the running machine tries (its own --help)
python -m attack all                  the persistence table, then this one
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from attack.model import Row
from attack.persistence import run as persistence
from attack.play import Player, features, log
from attack.results import SCHEMA, Memory, Result, result, summary, table
from attack.table import batches, chosen
from freehold import atomic
from freehold.build.store import cache_directory
from freehold.build.tools import ensure
from freehold.errors import FreeholdError
from freehold.monitor import NullMonitor


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="attack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", default=[], metavar="ROW", help="a row's id or an area (repeatable)")
    parser.add_argument("--list", action="store_true", help="print the rows and stop")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument("--again", action="store_true", help="see the chosen rows again")
    parser.add_argument("--apart", action="store_true", help="one boot for each row, also of those that can share one")
    parser.add_argument("--failed", action="store_true", help="see those again that did not end as they must")
    parser.add_argument("--without-tpm", action="store_true", help="on a machine that has no TPM")
    parser.add_argument("--report", action="store_true", help="only judge what was seen before: no machine is started")
    parser.add_argument(
        "--library",
        default="demo",
        metavar="NAME",
        help="whose keys and releases are used (default %(default)s: the demo's)",
    )
    return parser


def say(text: str) -> None:
    """One line for the person who waits."""
    print(f"attack: {text}", file=sys.stderr, flush=True)


def listing(rows: list[Row]) -> str:
    """The rows without results. Pure."""
    return "\n".join(f"{row.area:9} {row.id:27} {' or '.join(row.ends):22} {row.what}" for row in rows)


def main(argv: list[str]) -> int:
    """Play what is chosen; 0 when every row ended as it must, 1 when one did not, 2 for a usage error."""
    if argv[:1] == ["persistence"]:
        return persistence.main(argv[1:])
    if argv == ["all"]:
        return max(persistence.main([]), main([]))
    options = arguments().parse_args(argv)
    try:
        rows = chosen(options.only)
    except KeyError as error:
        print(f"attack: no row or area is called {error.args[0]}\n(hint: --list shows them)", file=sys.stderr)
        return 2
    if options.list:
        print(listing(rows))
        return 0
    # Ended from outside, its machine is switched off as well; what was seen is kept.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        results = _results(options, rows)
    except KeyboardInterrupt:
        print("attack: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except FreeholdError as error:
        print(f"attack: {error.message}\n{error.diagnostics()}", file=sys.stderr)
        return error.exit_status
    data = {"schema": SCHEMA, "rows": [one.data() for one in results], "summary": summary(results)}
    if options.output:
        atomic.write(options.output, json.dumps(data, indent=1) + "\n")
    print(json.dumps(data, indent=1) if options.json else f"{table(results)}\n{summary(results)}")
    return 0 if all(one.verdict is None or one.verdict.kept for one in results) else 1


def _results(options: argparse.Namespace, rows: list[Row]) -> list[Result]:
    from demo.stage import Stage, end

    from attack import base as bases

    stage = Stage(name="attack", port=18647, library=options.library)
    stage.root.mkdir(parents=True, exist_ok=True)
    tools = ensure(cache_directory(), NullMonitor())
    with atomic.exclusive(stage.path("attack.lock"), "the attack suite"):
        try:
            say("the base: keys enrolled, two releases, locked (made once)")
            base = bases.prepare(stage, tools, tpm=not options.without_tpm)
            memory = Memory(stage.path("seen.json"))
            absent = features(base, not options.without_tpm)
            player = Player(stage, tools, base)
            todo = [
                row
                for row in rows
                if not absent[row.needs] and not options.report and _due(row, memory, player, options)
            ]
            apart = options.apart or bool(options.only)
            for batch in [[row] for row in todo] if apart else batches(todo):
                _play(player, batch, memory)
        finally:
            end(stage)
        found = []
        for row in rows:
            known = result(row, memory, base.id, base.truth)
            why = absent[row.needs] or "not seen: it could not be played, see the messages above"
            found.append(known if known and not absent[row.needs] else Result(row, None, skipped=why))
        return found


def _due(row: Row, memory: Memory, player: Player, options: argparse.Namespace) -> bool:
    if options.again:
        return True
    known = result(row, memory, player.base.id, player.base.truth)
    return known is None or (options.failed and known.verdict is not None and not known.verdict.kept)


def _play(player: Player, rows: list[Row], memory: Memory) -> None:
    """Play the rows of one boot and say how they ended; when they fail together, each alone."""
    base, truth = player.base.id, player.base.truth
    say(f"{', '.join(row.id for row in rows)} ...")
    began = time.monotonic()
    try:
        seen = player.play(rows)
    except KeyboardInterrupt:
        raise
    except Exception as error:
        # A row that cannot be played must not end the table; it counts as not seen.
        player.stage.note(traceback.format_exc())
        told = error.message if isinstance(error, FreeholdError) else f"{type(error).__name__}: {error}"
        say(f"  could not be played: {told}")
        if len(rows) > 1:
            for row in rows:
                _play(player, [row], memory)
        return
    alone = len(rows) == 1
    for row in rows:
        memory.put(row, base, seen, alone=alone)
        log(player.stage.path("consoles"), row, seen)
    verdicts = [result(row, memory, base, truth) for row in rows]
    bad = [one for one in verdicts if one is not None and one.verdict is not None and not one.verdict.kept]
    if bad and not alone:
        say(f"  {len(bad)} of {len(rows)} not as they must: each alone")
        for row in rows:
            _play(player, [row], memory)
        return
    for one in verdicts:
        if one is not None and one.verdict is not None:
            say(f"  {'ok' if one.verdict.kept else 'FAILED'} {one.row.id}: {one.verdict.end}: {one.verdict.told}")
    say(f"  ({time.monotonic() - began:.0f} s; console: {os.fspath(player.stage.path('consoles'))})")
