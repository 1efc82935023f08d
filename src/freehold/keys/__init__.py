# SPDX-License-Identifier: Apache-2.0
"""Keys and what they vouch for: fs-verity digests, certificates, signatures, verdicts."""
