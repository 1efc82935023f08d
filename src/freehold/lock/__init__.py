# SPDX-License-Identifier: Apache-2.0
"""The lock: what the owner wants of a machine, and what the machine may still do once it holds."""
