# SPDX-License-Identifier: Apache-2.0
"""Error families: what went wrong in one line, what to do about it, and the exit status.

Every error that a person can cause or meet derives from :class:`FreeholdError`; the command line
prints ``message`` and ``hint`` and exits with ``exit_status``. Anything else is a bug and shows
as one (its traceback under ``--debug``).
"""

from __future__ import annotations

# Not `typing`'s: every locked boot waits for this module, see freehold.lock.machine.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNCHANGED = 77
EXIT_INTERRUPTED = 130


class FreeholdError(Exception):
    """Something failed. ``message`` is one line; ``hint`` says what to do next."""

    exit_status = EXIT_FAILED

    def __init__(self, message: str, *, hint: str | None = None, details: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details

    def diagnostics(self) -> str:
        """More lines for ``--debug`` and bug reports; empty when there is nothing to add."""
        return self.details or ""


class InputError(FreeholdError):
    """The person's input is wrong: exit status 2, every fault listed.

    ``faults`` are lines of the form ``where: what``; ``message`` is their heading.
    """

    exit_status = EXIT_USAGE

    def __init__(self, message: str, *, faults: Sequence[str] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.faults = tuple(faults)


class CommandError(FreeholdError):
    """A program that we started failed. ``details`` has its command line and last output."""

    def __init__(self, message: str, *, argv: Sequence[str], status: int, output: str) -> None:
        super().__init__(message, details=output)
        self.argv = tuple(argv)
        self.status = status
        self.output = output


class VerificationError(FreeholdError):
    """A signature, digest or freshness check said no. Nothing that failed it may be used."""


class NotHereError(FreeholdError):
    """The command needs something that this machine is not or does not have."""


class BusyError(FreeholdError):
    """Another command holds the lock that this one needs."""
