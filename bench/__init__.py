# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: Freehold beside what it is compared with, measured in one run on one machine."""
