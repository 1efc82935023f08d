# SPDX-License-Identifier: Apache-2.0
"""What a machine proves about itself with its TPM, and judging it elsewhere."""
