# SPDX-License-Identifier: Apache-2.0
"""The two other forms of ``freehold.lock.rules``: the reporter's C table and the journal's catalog.

``PYTHONPATH=src python3 tests/unit/lab_rules.py`` writes both after a change of the table; a test compares them.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from freehold.lock import rules

ROOT = Path(__file__).parents[2]
HEADER = ROOT / "early/refusal_words.h"
CATALOG = ROOT / "data/usr/lib/systemd/catalog/freehold.catalog"


def header() -> str:
    """``early/refusal_words.h``."""
    rows = "\n".join(f'\t{{ "{rule.name}", "{rule.id}", "{rule.act}" }},' for rule in (*rules.RULES, rules.OTHER))
    return (
        "/* SPDX-License-Identifier: Apache-2.0 */\n"
        "/* Written by tests/unit/lab_rules.py from freehold.lock.rules: name, MESSAGE_ID, what was not allowed. */\n"
        "static const struct words {\n\tconst char *rule, *id, *act;\n} WORDS[] = {\n"
        f"{rows}\n}};\n#define FLOOD_ID \"{rules.FLOOD}\"\n"
    )


def entry(message_id: str, subject: str, text: str) -> str:
    """One message of a catalog, see the journal's catalog format."""
    body = "\n".join(textwrap.fill(line, 100, break_long_words=False, break_on_hyphens=False) for line in text.split("\n"))
    return f"-- {message_id}\nSubject: {subject}\nDefined-By: Freehold\nSupport: man:journalctl(1)\n\n{body}\n"


def catalog() -> str:
    """The catalog that ``journalctl -x`` shows."""
    entries = []
    for rule in (*rules.RULES, rules.OTHER):
        ways = "\n".join(f"* {way.text}" + (f": {way.command}" if way.command else "") for way in rule.ways)
        told = f"{rule.why}\n\nProgram: @FREEHOLD_PROGRAM@, path: @FREEHOLD_PATH@, refusals: @FREEHOLD_COUNT@\n"
        entries.append(entry(rule.id, f"The lock's rule {rule.name}", f"{told}\n{ways}\n`freehold denials` has the whole list."))
    flood = "More kinds of refusals than lines. `freehold denials` has them."
    entries.append(entry(rules.FLOOD, "Many refusals of the lock", flood))
    entries += [entry(id_, subject, f"{text}\n\nClient: @FREEHOLD_PEER@") for id_, subject, text in rules.SESSIONS]
    return "# SPDX-License-Identifier: Apache-2.0\n" + "\n".join(entries)


if __name__ == "__main__":
    HEADER.write_text(header())
    CATALOG.parent.mkdir(parents=True, exist_ok=True)
    CATALOG.write_text(catalog())
