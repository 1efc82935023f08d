# SPDX-License-Identifier: Apache-2.0
"""The owner's commands on a running machine (docs/device.md)."""
