# SPDX-License-Identifier: Apache-2.0
"""``python -m freehold``."""

from freehold.cli import entry

entry()
