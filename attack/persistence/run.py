# SPDX-License-Identifier: Apache-2.0
"""``python -m attack persistence``: what root on the running machine tries, so that something outlives the boot; docs/attacks.md.

python -m attack persistence                   everything: two boots of the open machine, two of the locked one; what was
                                               seen before on the same image is not seen again
python -m attack persistence --only a24-unit   one row, the rows of a technique (a24) or of a class (E)
python -m attack persistence --machine locked  the locked machine again; what was seen of the open one stays
python -m attack persistence --list            the rows, without a machine
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

from attack.persistence import report as reports
from attack.persistence import table
from attack.persistence.model import LOCKED, OPEN, Live, Row
from freehold import atomic
from freehold.build.store import cache_directory
from freehold.build.tools import ensure
from freehold.errors import FreeholdError
from freehold.monitor import NullMonitor


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="attack persistence", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="ROW", help="a row's id, its first part, or a class (repeatable)"
    )
    parser.add_argument("--list", action="store_true", help="print the rows and stop")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument("--again", action="store_true", help="see both machines again")
    parser.add_argument("--machine", choices=(OPEN, LOCKED), help="see this one again")
    parser.add_argument("--report", action="store_true", help="only judge what was seen before: no machine is started")
    parser.add_argument("--without-tpm", action="store_true", help="on a machine that has no TPM")
    parser.add_argument(
        "--library", default="demo", metavar="NAME", help="whose keys and releases are used (default %(default)s: the demo's)"
    )
    return parser


def say(text: str) -> None:
    """One line for the person who waits."""
    print(f"attack: {text}", file=sys.stderr, flush=True)


def main(argv: list[str]) -> int:
    """Play what is chosen; 0 when every row was seen kept, 1 when one was void or fired, 2 for a usage error."""
    options = arguments().parse_args(argv)
    try:
        rows, live = table.chosen(options.only)
    except KeyError as error:
        print(f"attack: no row or class is called {error.args[0]}\n(hint: --list shows them)", file=sys.stderr)
        return 2
    if options.list:
        print(reports.listing(rows, live))
        return 0
    # Ended from outside, its machine is switched off as well.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        found = _play(options, rows, live)
    except KeyboardInterrupt:
        print("attack: interrupted", file=sys.stderr)
        return 130
    except FreeholdError as error:
        print(f"attack: {error.message}\n{error.diagnostics()}", file=sys.stderr)
        return error.exit_status
    data = json.dumps(found.data(), indent=1)
    if options.output:
        atomic.write(options.output, data + "\n")
    print(data if options.json else f"{reports.text(found)}\n{reports.summary(found)}")
    return 0 if found.good else 1


def _play(options: argparse.Namespace, rows: list[Row], live: list[Live]) -> reports.Report:
    from demo.stage import Stage, end

    from attack import base as bases
    from attack.persistence.play import play
    from attack.play import Player

    stage = Stage(name="attack", port=18647, library=options.library)
    stage.root.mkdir(parents=True, exist_ok=True)
    tools = ensure(cache_directory(), NullMonitor())
    with atomic.exclusive(stage.path("attack.lock"), "the attack suite"):
        try:
            say("the base: keys enrolled, two releases, locked (made once)")
            base = bases.prepare(stage, tools, tpm=not options.without_tpm)
            player = Player(stage, tools, base)
            kept = reports.Kept(stage.path("persistence.json"))
            code = reports.code_id(rows, live, table.COLLATERAL)
            sights = {}
            for name in bases.BASES:
                anew = (options.again or options.machine == name) and not options.report
                sight = None if anew else kept.get(name, base.id, code)
                if sight is None and options.report:
                    raise FreeholdError(f"these rows were not seen on the {name} machine of this base", hint="leave out --report")
                if sight is None:
                    sight = play(player, name, rows, live, table.COLLATERAL, say)
                    kept.put(name, base.id, code, sight)
                sights[name] = sight
        finally:
            end(stage)
    return reports.report(rows, live, table.COLLATERAL, sights["open"], sights["locked"])
