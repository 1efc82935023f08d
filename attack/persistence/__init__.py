# SPDX-License-Identifier: Apache-2.0
"""The persistence table: what root on the running machine tries, so that something of it outlives the boot."""
