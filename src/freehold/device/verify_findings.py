# SPDX-License-Identifier: Apache-2.0
"""What ``freehold verify`` found, and how it is said. Pure; schema ``freehold-verify-1`` (docs/verify.md).

Names in findings come from disks that somebody else may have written: every text is cut to a length, and what
could steer a terminal is spelt out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

SCHEMA = "freehold-verify-1"
DEVIATION, NOTE = "deviation", "note"
#: Where a finding belongs, unless it is a deployment's id.
MACHINE, BOOT, STORE = "machine", "boot", "store"
_TITLES = {MACHINE: "This machine", BOOT: "Boot partition", STORE: "Object store"}
#: Longest text of a finding, in characters; a path of the tree may have more.
TEXT_LIMIT = 300
#: So many findings of one kind are shown to people; --json has all.
SHOWN = 12


class Finding(NamedTuple):
    """One thing that is not as it should be (``deviation``) or worth knowing (``note``).

    ``check`` is a stable name; ``where`` is ``machine``, ``boot``, ``store`` or a deployment's id.
    """

    severity: str
    check: str
    where: str
    object: str
    expected: str
    found: str
    hint: str = ""


class Checked(NamedTuple):
    """One deployment as it was looked at. ``files``: distinct objects of its tree; sizes in bytes."""

    id: str
    version: str
    booted: bool
    state: str
    signer: str
    files: int
    bytes: int


class Result(NamedTuple):
    """Everything that was looked at: ``files`` distinct files, ``bytes`` of them read, in ``seconds``."""

    findings: tuple[Finding, ...]
    deployments: tuple[Checked, ...]
    files: int
    bytes: int
    seconds: float
    quick: bool
    jobs: int

    @property
    def deviations(self) -> int:
        """How many findings are deviations."""
        return sum(1 for one in self.findings if one.severity == DEVIATION)


def clean(text: str) -> str:
    """``text`` in one line, cut, without characters that a terminal would act on."""
    cut = text if len(text) <= TEXT_LIMIT else text[: TEXT_LIMIT - 1] + "…"
    return "".join(one if one.isprintable() else f"\\x{ord(one):02x}" for one in cut)


def deviation(check: str, where: str, subject: str, expected: str, found: str, hint: str = "") -> Finding:
    """A finding that makes the verdict a no."""
    return Finding(DEVIATION, check, where, clean(subject), clean(expected), clean(found), hint)


def note(check: str, where: str, subject: str, expected: str, found: str, hint: str = "") -> Finding:
    """A finding that does not."""
    return Finding(NOTE, check, where, clean(subject), clean(expected), clean(found), hint)


def data(result: Result) -> dict[str, object]:
    """The report for programs."""
    return {
        "schema": SCHEMA,
        "verdict": "deviation" if result.deviations else "ok",
        "quick": result.quick,
        "jobs": result.jobs,
        "files": result.files,
        "bytes": result.bytes,
        "seconds": round(result.seconds, 3),
        "deployments": [one._asdict() for one in result.deployments],
        "findings": [one._asdict() for one in result.findings],
    }


def text(result: Result) -> str:
    """The report for people: by deployment, the verdict last."""
    lines: list[str] = []
    for deployment in result.deployments:
        words = [word for word in ("booted" if deployment.booted else "", deployment.state) if word]
        signer = f", signed by {clean(deployment.signer)}" if deployment.signer else ""
        size = f"{deployment.files:,} files, {deployment.bytes / (1 << 20):,.0f} MiB"
        head = f"Deployment {clean(deployment.version)}  {deployment.id}  {', '.join(words)}{signer}: {size}"
        lines += _group(head, [one for one in result.findings if one.where == deployment.id])
    known = {deployment.id for deployment in result.deployments}
    for where in dict.fromkeys(one.where for one in result.findings if one.where not in known):
        title = _TITLES.get(where, f"Deployment {clean(where)}")
        lines += _group(title, [one for one in result.findings if one.where == where])
    return "\n".join([*lines, verdict(result)]) + "\n"


def _group(head: str, findings: Sequence[Finding]) -> Iterable[str]:
    yield head
    shown: dict[str, int] = {}
    for one in sorted(findings, key=lambda one: one.severity != DEVIATION):
        shown[one.check] = shown.get(one.check, 0) + 1
        if shown[one.check] > SHOWN:
            continue
        mark = "!" if one.severity == DEVIATION else "-"
        wanted = f" (expected: {one.expected})" if one.expected else ""
        yield f"  {mark} {one.check}: {one.object}: {one.found}{wanted}"
        if one.hint and shown[one.check] == 1:
            yield f"      {one.hint}"
    for check, count in shown.items():
        if count > SHOWN:
            yield f"  … {count - SHOWN} more of {check}; --json lists them"


def verdict(result: Result) -> str:
    """The last line."""
    amount = f"{result.bytes / (1 << 30):.2f} GiB verified" if not result.quick else "content not read (--quick)"
    count = len(result.deployments)
    head = f"{result.files:,} files, {count} deployment{'s' * (count != 1)}, {amount} in {result.seconds:.1f} s"
    number = result.deviations
    return f"{head}; {f'{number} deviation' + 's' * (number != 1) if number else 'no deviation'}"
