# SPDX-License-Identifier: Apache-2.0
"""Fuzzing: every parser that reads what somebody else may have written, for minutes each; see docs/fuzzing.md."""
