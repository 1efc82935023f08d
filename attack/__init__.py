# SPDX-License-Identifier: Apache-2.0
"""The attack suite: changes made to a locked machine, each with its judgement and its control. Not shipped."""
