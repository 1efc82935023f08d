# SPDX-License-Identifier: Apache-2.0
"""``make demo``."""

import sys

from demo.story import main

sys.exit(main())
