# SPDX-License-Identifier: Apache-2.0
"""The rows, by what they change."""
