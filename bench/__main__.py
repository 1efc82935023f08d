# SPDX-License-Identifier: Apache-2.0
"""``python -m bench``."""

from __future__ import annotations

import sys

from bench.run import main

sys.exit(main(sys.argv[1:]))
