# SPDX-License-Identifier: Apache-2.0
"""The command line: one table of verbs, one place that prints results, one place that exits."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence

from freehold import __version__
from freehold.cli.table import VERBS, Verb
from freehold.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, FreeholdError, InputError
from freehold.monitor import JsonMonitor, Monitor, NullMonitor, TextMonitor
from freehold.report import Report

Handler = Callable[[argparse.Namespace, Monitor], Report]
Row = tuple[str, str, Callable[[argparse.ArgumentParser], None], Handler]


class UsageError(Exception):
    """argparse refused the arguments; it has said why."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises instead of exiting."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Print usage and the fault, then raise :class:`UsageError`."""
        print(f"{self.format_usage()}{self.prog}: {message}", file=sys.stderr)
        raise UsageError


def overview() -> str:
    """What ``freehold`` alone prints."""
    width = max(len(verb.name) for verb in VERBS)
    rows = "\n".join(f"  {verb.name:{width}}  {verb.summary}" for verb in VERBS)
    return (
        "Freehold: a verified, image-based Debian that its owner can lock, and unlock.\n\n"
        f"usage: freehold VERB [options]     (freehold VERB -h explains one)\n\n{rows}\n\n"
        "Start with:  freehold build recipes/server.toml     on a computer that builds\n"
        "             freehold status                        on a Freehold machine"
    )


def rows_of(verb: Verb) -> dict[str, Row]:
    """The verbs that ``verb``'s module implements."""
    return {row[0]: row for row in importlib.import_module(verb.module).VERBS}


def _common(parser: argparse.ArgumentParser, verb: Verb) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print the result as JSON")
    group.add_argument("--progress-fd", type=int, metavar="N", help="write progress as JSON Lines to descriptor N")
    group.add_argument("--debug", action="store_true", help="log every command, show tracebacks")
    group.add_argument("-q", "--quiet", action="store_true", help="no progress on standard error")
    if verb.examples:
        parser.epilog = "examples:\n" + "\n".join(f"  {example}" for example in verb.examples)
        parser.formatter_class = argparse.RawDescriptionHelpFormatter


def parse(verb: Verb, arguments: Sequence[str]) -> tuple[argparse.Namespace, Handler]:
    """Parse a verb's arguments; raises :class:`UsageError`."""
    rows = rows_of(verb)
    if not verb.group:
        _, summary, add_arguments, handler = rows[verb.name]
        parser = Parser(prog=f"freehold {verb.name}", description=summary)
        add_arguments(parser)
        _common(parser, verb)
        return parser.parse_args(arguments), handler
    parser = Parser(prog=f"freehold {verb.name}", description=verb.summary)
    _common(parser, verb)
    inner = parser.add_subparsers(dest="subverb", required=True, metavar="VERB", parser_class=Parser)
    for name, summary, add_arguments, _ in rows.values():
        child = inner.add_parser(name, help=summary, description=summary)
        add_arguments(child)
        _common(child, Verb(name, verb.module, summary))
    namespace = parser.parse_args(arguments)
    return namespace, rows[namespace.subverb][3]


def monitor_for(options: argparse.Namespace) -> Monitor:
    """Progress where the reader is: a descriptor, the terminal, a pipe, or nowhere."""
    if options.progress_fd is not None:
        return JsonMonitor(options.progress_fd)
    if options.quiet or options.json:
        return NullMonitor()
    terminal = sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    return TextMonitor(sys.stderr, terminal=terminal)


def _show(report: Report, *, as_json: bool) -> None:
    if as_json and report.data:
        print(json.dumps(dict(report.data), indent=2, sort_keys=True))
    elif report.text:
        print(report.text)
    sys.stdout.flush()


def _complain(error: FreeholdError, *, debug: bool) -> None:
    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    red, grey, plain = ("\x1b[31m", "\x1b[2m", "\x1b[0m") if colour else ("", "", "")
    print(f"{red}freehold: {error.message}{plain}", file=sys.stderr)
    if isinstance(error, InputError):
        for fault in error.faults:
            print(f"  {fault}", file=sys.stderr)
    if error.hint:
        print(f"{grey}  ({error.hint}){plain}", file=sys.stderr)
    if debug and error.diagnostics():
        print(error.diagnostics(), file=sys.stderr)


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit status."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if arguments[0] == "--version":
        print(f"freehold {__version__}")
        return 0
    verb = next((verb for verb in VERBS if verb.name == arguments[0]), None)
    if verb is None:
        import difflib

        near = difflib.get_close_matches(arguments[0], [verb.name for verb in VERBS], n=1)
        suggestion = f" (did you mean {near[0]!r}?)" if near else ""
        print(f"freehold: unknown verb {arguments[0]!r}{suggestion}; `freehold -h` lists them", file=sys.stderr)
        return EXIT_USAGE
    before = list(arguments).index("--") if "--" in arguments else len(arguments)
    debug = "--debug" in arguments[:before]
    try:
        options, handler = parse(verb, arguments[1:])
        if options.debug:
            import logging

            logging.basicConfig(level=logging.DEBUG, format="%(message)s", stream=sys.stderr)
        report = handler(options, monitor_for(options))
        _show(report, as_json=options.json)
    except UsageError:
        return EXIT_USAGE
    except FreeholdError as error:
        _complain(error, debug=debug)
        if debug:
            import logging

            logging.getLogger("freehold").debug("where:", exc_info=True)
        return error.exit_status
    except KeyboardInterrupt:
        print("freehold: interrupted; nothing half done was kept", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away: its choice, not our failure.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if debug:
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(f"freehold: {error.strerror or error}{where}", file=sys.stderr)
        return EXIT_FAILED
    return report.status


def entry() -> None:
    """The program ``freehold``: the only place that exits."""
    try:
        status = main(sys.argv[1:])
    except SystemExit as stop:  # argparse's -h
        status = stop.code if isinstance(stop.code, int) else EXIT_FAILED
    sys.exit(status)
