# SPDX-License-Identifier: Apache-2.0
"""The whole story in a virtual machine, with the same commands that a person would type."""
