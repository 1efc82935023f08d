# SPDX-License-Identifier: Apache-2.0
"""``python -m attack``."""

from __future__ import annotations

import sys

from attack.run import main

sys.exit(main(sys.argv[1:]))
