# SPDX-License-Identifier: Apache-2.0
"""``python -m fuzz.worker``: one target's process. Apart from the engine, which targets import, so that there is one of it."""

from __future__ import annotations

import sys

from fuzz.engine import main

sys.exit(main(sys.argv[1:]))
