# SPDX-License-Identifier: Apache-2.0
"""Getting back in: the rescue entry's console, and repairing a machine's disk from another system."""
