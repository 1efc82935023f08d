# SPDX-License-Identifier: Apache-2.0
"""Freehold: a verified, image-based Debian that its owner can lock, and unlock."""

__version__ = "0.1.0"
