# SPDX-License-Identifier: Apache-2.0
"""Was it refused, did it fall back, was it harmless, or does a changed system run? Values in, a verdict out. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from attack.model import Facts, Row, Seen, Truth
from freehold.update import rescue_entry

#: What firmware prints when it is at its end: no boot program is left that it may start.
DEAD_END = re.compile(
    r"No bootable option or device was found|Shell>|UEFI Interactive Shell|Press any key to enter the Boot Manager"
)
#: Firmware's and boot loader's own words for a program whose signature does not count.
DENIED = r"Access Denied|Security Violation|Access denied|Security violation"


@dataclass(frozen=True)
class Verdict:
    """``kept``: the promise was kept. ``end`` is what was seen, ``told`` one sentence, ``reason`` the console's own words."""

    kept: bool
    end: str
    told: str
    reason: str = ""


def words(line: str) -> list[str]:
    """A command line's words."""
    return line.split()


def deviations(facts: Facts, truth: Truth, row: Row) -> list[str]:
    """How a running machine differs from an unchanged, locked one; an empty list is the only good answer."""
    found = []
    rescue = row.rescue and rescue_entry.is_rescue(facts.command_line)
    versions = {image: version for version, image in truth.images.items()}
    version = versions.get(facts.image)
    if version is None:
        found.append(f"an image that nobody signed runs ({facts.image[:16] or 'none'})")
    else:
        if facts.version != version and not (row.unnamed and not facts.version):
            found.append(f"status says release {facts.version}, the image is release {version}'s")
        signed = truth.command_lines[version]
        if rescue:
            signed = rescue_entry.line(signed)
        if words(facts.command_line) != words(signed):
            added = [word for word in words(facts.command_line) if word not in words(signed)]
            found.append(f"the command line is not the signed one ({' '.join(added)[:120] or 'words are missing'})")
    if facts.lock != "locked":
        found.append(f"the machine is {facts.lock or 'of no state'}, not locked")
    if not facts.secure_boot:
        found.append("Secure Boot is off")
    if facts.keychain != "firmware" or facts.certificates != truth.certificates:
        found.append(f"the keychain is {facts.certificates} certificates of the {facts.keychain or 'nobody'}")
    if facts.machine != truth.machine:
        found.append("the machine has another id")
    if facts.config != truth.config and not ((row.factory_etc or rescue) and not facts.config):
        found.append(f"another /etc is in force ({facts.config[:16] or 'none'})")
    if facts.canaries:
        found.append(f"planted code ran: {', '.join(facts.canaries)}")
    return found


def failed_probes(row: Row, facts: Facts) -> list[str]:
    """The row's own questions that were answered otherwise than they must be."""
    return [
        f"{probe.what}: {facts.probes.get(key, 'not asked')[:160] or 'nothing'}"
        for number, probe in enumerate(row.probes)
        if (key := f"{row.id}/{number}") not in facts.probes or not re.search(probe.pattern, facts.probes[key])
    ]


def said(row: Row, console: str) -> str:
    """The line of the console that gives the row's reason; empty when there is none."""
    if not row.reason:
        return ""
    for line in console.splitlines():
        if re.search(row.reason, line):
            return line.strip()[-200:]
    return ""


def judge(row: Row, seen: Seen, truth: Truth, *, alone: bool = True) -> Verdict:
    """The verdict on one row.

    Not ``alone``: other rows' plants were on the same disk; of their canaries this row is not guilty.
    """
    if row.ends == ("effective",):
        return _judge_control(row, seen)
    reason = said(row, seen.console)
    if seen.facts is not None:
        facts = seen.facts if alone else _own(row, seen.facts)
        wrong = deviations(facts, truth, row)
        if wrong:
            return Verdict(False, "changed", f"a changed system runs: {'; '.join(wrong)}", reason)
        if wrong := failed_probes(row, facts):
            return Verdict(False, "harmless", "; ".join(wrong), reason)
        end = "harmless" if facts.image == truth.images[truth.versions[0]] else "fallback"
        told = f"release {facts.version or 'without a believed name'} runs, locked, unchanged"
    elif reason or (not row.reason and seen.stopped == "dead end"):
        end, told = "refused", f"nothing starts ({seen.stopped})"
    else:
        return Verdict(False, "silent", f"it does not come up and does not say why ({seen.stopped})", "")
    if end not in row.ends:
        return Verdict(False, end, f"{told}; expected: {' or '.join(row.ends)}", reason)
    if row.reason and not reason and not (end == "harmless" and len(row.ends) > 1):
        return Verdict(False, end, f"{told}, but the console does not say why", "")
    if end == "refused":
        return _judge_recovery(row, seen, truth, told, reason)
    return Verdict(True, end, told, reason)


def _own(row: Row, facts: Facts) -> Facts:
    from dataclasses import replace

    return replace(
        facts, canaries=tuple(one for one in facts.canaries if one == row.id or one.startswith(f"{row.id}."))
    )


def _judge_recovery(row: Row, seen: Seen, truth: Truth, told: str, reason: str) -> Verdict:
    if seen.recovered is None:
        return Verdict(False, "brick", f"{told}, and there is no way back: {seen.recovery}", reason)
    wrong = deviations(seen.recovered, truth, row)
    if wrong:
        return Verdict(False, "changed", f"after the way back a changed system runs: {'; '.join(wrong)}", reason)
    return Verdict(True, "refused", f"{told}; {seen.recovery}: release {seen.recovered.version} runs, locked", reason)


def _judge_control(row: Row, seen: Seen) -> Verdict:
    if seen.facts is None:
        return Verdict(False, "silent", f"the control does not come up ({seen.stopped})")
    if wrong := failed_probes(row, seen.facts):
        return Verdict(False, "without effect", f"the control proves nothing: {'; '.join(wrong)}")
    return Verdict(True, "effective", "; ".join(probe.what for probe in row.probes))
